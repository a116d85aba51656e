"""MATLAB `.mat`: version 5 through scipy, 7.3 (HDF5) through h5py. A projection array is (y, x) or (y, x, images), as AET codes keep it.

The array is the only numeric one with 2 or 3 dimensions and more than 16 pixels a side; angles are a sibling variable of N values or (N, 3)
Euler angles, of which the second is the tilt.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, need
from aet_stream.readers.hdf5 import MAGIC, attribute, member, numbers, opened

_ANGLES = ("angles", "ang", "angle", "refined_angles", "tilt", "tilts", "theta")
_CLASSES = {
    "double": "<f8",
    "single": "<f4",
    "int8": "|i1",
    "uint8": "|u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
}
_MIN_EDGE_PX = 8
_SURELY_DEG = 1.6
_COMPRESSED = 15
_MAX_UNCOMPRESSED = 4 << 30


class Mat:
    """Version 5 is unpacked once and kept; version 7.3 is read image by image."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with path.open("rb") as file:
            head = file.read(128)
        need(path, len(head), 128, "the header")
        self._hdf5 = _is_hdf5(path)
        if not self._hdf5:
            if head[126:128] not in (b"IM", b"MI"):
                raise SourceError(f"{path.name}: not a MATLAB file")
            _complete_v5(path, size, head)
        variables = _hdf5_variables(path) if self._hdf5 else _v5_variables(path)
        self._name, shape, dtype = _choose(path, variables)
        self._stack = len(shape) == 3
        self.probe = checked_probe(path, "mat", shape[2] if self._stack else 1, shape[0], shape[1], dtype)
        beside = next((angle for angle in _ANGLES if angle in variables), "")
        self._tilts = _tilts(self._variable(beside) if beside else None, self.probe.images)
        self._angle_name = beside
        # Three tilts and more within two degrees are hardly a series in degrees; in radians they are.
        small = self._tilts is not None and len(self._tilts) > 2 and float(np.abs(self._tilts).max()) < _SURELY_DEG
        self._unit = "?" if small else "deg"
        self._values: Array | None = None

    def _variable(self, name: str) -> Array:
        if not self._hdf5:
            return _v5_variable(self._path, name)
        with opened(self._path) as file:
            return np.asarray(numbers(self._path, member(self._path, file, name))[()]).T

    def acquisition(self, image: int) -> Acquisition:
        tilt = None if self._tilts is None else float(self._tilts[image])
        raw = "" if tilt is None else f"{self._angle_name}: {tilt!r} {self._unit}"
        return Acquisition(tilt_deg=tilt, tilt_raw=raw, tilt_unit=self._unit, reader="mat")

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


def _choose(path: Path, variables: dict[str, tuple[tuple[int, ...], str]]) -> tuple[str, tuple[int, ...], str]:
    """(name, shape, dtype) of the projection array."""
    fitting = [
        (name, shape, dtype)
        for name, (shape, dtype) in variables.items()
        if len(shape) in (2, 3) and min(shape[:2]) >= _MIN_EDGE_PX and name not in _ANGLES
    ]
    if len(fitting) != 1:
        found = (
            ", ".join(name for name, _, _ in fitting)
            or f"none among {', '.join(variables) or 'no variables of a numeric type that can be stored'}"
        )
        raise SourceError(f"{path.name}: needs exactly one projection array (y, x, images); found {found}")
    return fitting[0]


def _tilts(angles: Array | None, images: int) -> Array | None:
    """(images,) degrees, from N values or (N, 3) Euler angles with the tilt in the second column."""
    if angles is None:
        return None
    angles = np.asarray(angles, dtype=np.float64)
    if angles.ndim == 2 and angles.shape[1] == 3 and angles.shape[0] == images:
        return angles[:, 1]
    return angles.ravel() if angles.size == images else None


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
            item = member(path, file, name)
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and attribute(item, "MATLAB_class") != "logical":
                numbers(path, item)
                found[name] = (tuple(reversed(item.shape)), item.dtype.str)
    return found


open_source = Mat
