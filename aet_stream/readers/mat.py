"""MATLAB `.mat`: version 5 through scipy, 7.3 (HDF5) through h5py. A projection array is (y, x) or (y, x, images), as AET codes keep it.

The array is the only numeric one with 2 or 3 dimensions and more than 16 pixels a side; angles are a sibling variable of N values or (N, 3)
Euler angles, of which the second is the tilt.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array, Projection
from aet_stream.readers import Probe, checked_probe, finished, image_in_range, need

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
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
_COMPRESSED = 15
_MAX_UNCOMPRESSED = 4 << 30


def probe(path: Path, size: int) -> Probe:
    with path.open("rb") as file:
        head = file.read(128)
    need(path, len(head), 128, "the header")
    if _is_hdf5(path):
        _complete_hdf5(path, size)
        with _open_hdf5(path) as file:
            _, shape, dtype = _choose(path, {name: (tuple(reversed(d.shape)), d.dtype.str) for name, d in _datasets(path, file).items()})
    else:
        if head[126:128] not in (b"IM", b"MI"):
            raise SourceError(f"{path.name}: not a MATLAB file")
        _complete_v5(path, size, head)
        _, shape, dtype = _choose(path, _v5_variables(path))
    return checked_probe(path, "mat", shape[2] if len(shape) == 3 else 1, shape[0], shape[1], dtype)


def read(path: Path, image: int) -> Projection:
    pixels, angles = _read_hdf5(path, image) if _is_hdf5(path) else _read_v5(path, image)
    tilt = None if angles is None else float(angles[image])
    said = "" if tilt is None else f"angle variable: {tilt!r} deg"
    return Projection(finished(path, pixels), Acquisition(tilt_deg=tilt, tilt_raw=said, reader="mat"))


def _choose(path: Path, variables: dict[str, tuple[tuple[int, ...], str]]) -> tuple[str, tuple[int, ...], str]:
    """(name, shape, dtype) of the projection array."""
    fitting = [
        (name, shape, dtype)
        for name, (shape, dtype) in variables.items()
        if len(shape) in (2, 3) and min(shape[:2]) >= _MIN_EDGE_PX and name not in _ANGLES
    ]
    if len(fitting) != 1:
        found = ", ".join(name for name, _, _ in fitting) or f"none among {', '.join(variables) or 'no variables'}"
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


def _read_v5(path: Path, image: int) -> tuple[Array, Array | None]:
    from scipy.io import loadmat

    variables = _v5_variables(path)
    name, shape, _ = _choose(path, variables)
    images = shape[2] if len(shape) == 3 else 1
    image_in_range(path, image, images)
    beside = next((angle for angle in _ANGLES if angle in variables), None)
    values = loadmat(str(path), appendmat=False, mat_dtype=True, variable_names=[name] + ([beside] if beside else []))
    pixels = values[name]
    return pixels[:, :, image] if pixels.ndim == 3 else pixels, _tilts(values[beside] if beside else None, images)


# -- version 7.3 ----------------------------------------------------------------------------------------------------------------------


def _is_hdf5(path: Path) -> bool:
    """MATLAB writes a 512-byte block of its own before the HDF5 signature."""
    with path.open("rb") as file:
        starts = file.read(8)
        file.seek(512)
        return _HDF5_MAGIC in (starts, file.read(8))


def _complete_hdf5(path: Path, size: int) -> None:
    """The superblock says where the file ends (HDF5 file format specification, II.A)."""
    with path.open("rb") as file:
        block = file.read(1024)
    base = 0 if block.startswith(_HDF5_MAGIC) else 512
    need(path, len(block), base + 64, "the superblock")
    version = block[base + 8]
    at = base + {0: 40, 1: 44, 2: 28, 3: 28}.get(version, 28)
    need(path, size, struct.unpack("<Q", block[at : at + 8])[0], "the HDF5 file")
    if version == 3 and block[base + 11] & 1:
        need(path, 0, 1, "its writer still has it open; the file")


def _open_hdf5(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r", locking=False)


def _datasets(path: Path, file: Any) -> dict[str, Any]:
    """Plain numeric datasets at the top; links out of the file and data stored elsewhere are refused."""
    import h5py

    found = {}
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise SourceError(f"{path.name}: {name} is a link; only data inside the file are read")
        item = file[name]
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
            if item.external or item.is_virtual:
                raise SourceError(f"{path.name}: {name} is stored in another file")
            found[name] = item
    return found


def _read_hdf5(path: Path, image: int) -> tuple[Array, Array | None]:
    with _open_hdf5(path) as file:
        datasets = _datasets(path, file)
        name, shape, _ = _choose(path, {key: (tuple(reversed(d.shape)), d.dtype.str) for key, d in datasets.items()})
        images = shape[2] if len(shape) == 3 else 1
        image_in_range(path, image, images)
        pixels = datasets[name][image] if len(shape) == 3 else datasets[name][()]
        beside = next((datasets[angle][()].T for angle in _ANGLES if angle in datasets), None)
    return np.ascontiguousarray(pixels.T), _tilts(beside, images)  # MATLAB's axes are stored in reverse
