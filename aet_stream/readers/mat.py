"""MATLAB `.mat`: version 5 through scipy, 7.3 (HDF5) through h5py. A projection array is (rows, columns) or (rows, columns, images).

The array is the only numeric one with 2 or 3 dimensions and at least 8 pixels a side; angles are a sibling variable, or stand in a file
beside it (`projections.mat`, `angles.mat`: sidecar.py).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, need, understood
from aet_stream.readers.angle_array import axis_deg, is_angle_name, tilts_deg
from aet_stream.readers.hdf5 import MAGIC, attribute, known, member, numbers, opened

_CLASSES = {
    "double": "<f8",
    "single": "<f4",
    "int8": "|i1",
    "uint8": "|u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "int64": "<i8",
    "uint64": "<u8",
}
_MIN_EDGE_PX = 8
_SAME_DEG = 0.5
_COMPRESSED = 15
_MAX_UNCOMPRESSED = 4 << 30


class Mat:
    """Version 5 is unpacked once and kept; version 7.3 is read image by image."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        is_whole(path, size)
        self._hdf5, variables = _is_hdf5(path), variables_of(path)
        self._name, shape, dtype = _choose(path, variables)
        self._stack = len(shape) == 3
        self.probe = checked_probe(path, "mat", shape[2] if self._stack else 1, shape[0], shape[1], dtype, by_columns=True)
        remarks: list[str] = []
        said = understood(remarks, "its angles", lambda: _stated(path, variables, self._name, self.probe.images), Stated())
        self._stated = said._replace(remark="; ".join(filter(None, (*remarks, said.remark))))
        self._values: Array | None = None

    def acquisition(self, image: int) -> Acquisition:
        said = self._stated
        if said.tilts_deg is None:
            return Acquisition(remark=said.remark, reader="mat")
        tilt = float(said.tilts_deg[image])
        raw = f"{said.name}: {tilt!r} {said.unit}"
        return Acquisition(tilt_deg=tilt, tilt_raw=raw, tilt_unit=said.unit, tilt_axis_deg=said.axis_deg, reader="mat")

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        if self._hdf5:
            with opened(self._path) as file:
                values = numbers(self._path, member(self._path, file, self._name))
                pixels = np.asarray(values[image] if self._stack else values[()]).T  # MATLAB's axes are stored in reverse
            return finished(self._path, pixels)
        if self._values is None:
            self._values = _v5_variable(self._path, self._name)
        return finished(self._path, self._values[:, :, image] if self._stack else self._values)


Variables = dict[str, tuple[tuple[int, ...], str]]
"""Name -> (shape as MATLAB shows it, dtype) of what is numeric."""


class Stated(NamedTuple):
    """What a variable of angles says of the images of a file."""

    name: str = ""
    tilts_deg: Array | None = None
    unit: str = "deg"
    remark: str = ""
    axis_deg: float | None = None
    """Where the tilt axis lies in the images, as Euler angles imply."""


def _choose(path: Path, variables: Variables) -> tuple[str, tuple[int, ...], str]:
    """(name, shape, dtype) of the projection array."""
    fitting = [(name, shape, dtype) for name, (shape, dtype) in variables.items() if _may_be_projections(shape) and not is_angle_name(name)]
    if variables and all(map(is_angle_name, variables)):
        raise SourceError(f"{path.name}: holds angles and no projections; it is read as angles.mat beside projections.mat")
    if len(fitting) != 1:
        found = (
            ", ".join(name for name, _, _ in fitting)
            or f"none among {', '.join(variables) or 'no variables of a numeric type that can be stored'}"
        )
        raise SourceError(f"{path.name}: needs exactly one projection array (y, x, images); found {found}")
    return fitting[0]


def _may_be_projections(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape[:2]) >= _MIN_EDGE_PX


def _stated(path: Path, variables: Variables, projections: str, images: int) -> Stated:
    """The tilts that the variables beside the projections state; several have to agree."""
    said = [_said(path, name, images) for name in variables if is_angle_name(name)]
    tilts = [(one, one.tilts_deg) for one in said if one.tilts_deg is not None]
    for other, values in tilts[1:]:
        apart = float(np.abs(values - tilts[0][1]).max())
        if not apart <= _SAME_DEG:
            return Stated(remark=f"{tilts[0][0].name} and {other.name} differ by up to {apart:g} deg: which are its tilts?")
    if tilts:
        return tilts[0][0]
    others = [name for name, (shape, _) in variables.items() if name != projections and _may_be_angles(shape, images)]
    hint = [f"if {others[0]} holds its tilts, call it angles"] if others and not said else []
    return Stated(remark="; ".join([one.remark for one in said] + hint))


def _said(path: Path, name: str, images: int) -> Stated:
    angles = variable(path, name)
    return Stated(name, *tilts_deg(name, angles, images), axis_deg(angles, images))


def _may_be_angles(shape: tuple[int, ...], images: int) -> bool:
    return images > 1 and sorted(shape) in ([1, images], sorted((3, images)))


def angles_beside(path: Path, images: int) -> Stated:
    """What a file of angles alone states for the images of another file.

    Raises
    ------
    SourceError, SourceNotReady : it cannot be read (now)
    """
    is_whole(path, path.stat().st_size)
    variables = variables_of(path)
    found = [name for name in variables if is_angle_name(name)] or list(variables)
    if len(found) != 1:
        return Stated(remark=f"{path.name} holds {', '.join(found) or 'no numbers'}: one variable of angles is needed")
    said = _said(path, found[0], images)
    return said._replace(remark=said.remark and f"{path.name}: {said.remark}")


def is_whole(path: Path, size: int) -> None:
    """Raises
    ------
    SourceNotReady, SourceError : not whole, or no MATLAB file
    """
    with path.open("rb") as file:
        head = file.read(128)
    need(path, len(head), 128, "the header")
    if not _is_hdf5(path):
        if head[126:128] not in (b"IM", b"MI"):
            raise SourceError(f"{path.name}: not a MATLAB file")
        _complete_v5(path, size, head)


def variables_of(path: Path) -> Variables:
    return _hdf5_variables(path) if _is_hdf5(path) else _v5_variables(path)


def variable(path: Path, name: str) -> Array:
    """One numeric variable, as MATLAB shows it."""
    if not _is_hdf5(path):
        return _v5_variable(path, name)
    with opened(path) as file:
        return np.asarray(numbers(path, member(path, file, name))[()]).T


# -- version 5 ------------------------------------------------------------------------------------------------------------------------


def _complete_v5(path: Path, size: int, head: bytes) -> None:
    """Walk the top-level elements: each says how many bytes it has; a compressed one also has to end."""
    order = "<" if head[126:128] == b"IM" else ">"
    offset = 128
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            tag = file.read(8)
            need(path, offset + len(tag), offset + 8, "an element")
            kind, count = struct.unpack(f"{order}2I", tag)
            need(path, size, offset + 8 + count, f"the element at {offset}")
            if kind == _COMPRESSED:
                _whole_stream(path, file.read(count))
            elif kind != 14:
                raise SourceError(f"{path.name}: an element of type {kind} at {offset}")
            offset += 8 + count + (0 if kind == _COMPRESSED else -count % 8)
    need(path, size, 129 if offset == 128 else offset, "the first variable")


def _whole_stream(path: Path, content: bytes) -> None:
    """Refuse streams that expand beyond reason."""
    unpacker, total = zlib.decompressobj(), 0
    try:
        while content:
            total += len(unpacker.decompress(content, 1 << 24))
            content = unpacker.unconsumed_tail
            if total > _MAX_UNCOMPRESSED:
                raise SourceError(f"{path.name}: expands to more than {_MAX_UNCOMPRESSED >> 30} GiB")
    except zlib.error as error:
        raise SourceError(f"{path.name}: a damaged compressed variable: {error}") from error


def _v5_variables(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    from scipy.io import whosmat

    return {name: (shape, _CLASSES[kind]) for name, shape, kind in whosmat(str(path), appendmat=False) if kind in _CLASSES}


def _v5_variable(path: Path, name: str) -> Array:
    from scipy.io import loadmat

    values = loadmat(str(path), appendmat=False, variable_names=[name])[name]
    if np.iscomplexobj(values):  # the header calls them double or single all the same
        raise SourceError(f"{path.name}: {name} holds complex numbers, which are no projection")
    return np.asarray(values, _v5_variables(path)[name][1])  # doubles may be stored as small integers


# -- version 7.3 ----------------------------------------------------------------------------------------------------------------------


def _is_hdf5(path: Path) -> bool:
    """MATLAB writes a 512-byte block of its own before the HDF5 signature."""
    with path.open("rb") as file:
        starts = file.read(8)
        file.seek(512)
        return MAGIC in (starts, file.read(8))


def _hdf5_variables(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Plain numeric datasets at the top, shape as MATLAB shows it."""
    import h5py

    found = {}
    with opened(path) as file:
        for name in file:
            item = known(path, file, name)  # a link is none
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and attribute(item, "MATLAB_class") != "logical":
                if _may_be_projections(shape := tuple(reversed(item.shape))):
                    numbers(path, item)
                found[name] = (shape, item.dtype.str)
    return found


open_source = Mat
