"""NumPy `.npy`: (height, width) or (images, height, width)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Projection
from aet_stream.readers import Probe, checked_probe, finished, image_in_range, need

_MAX_HEADER = 65536


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """(shape, Fortran order, dtype, offset of the pixels)."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
        if not head.startswith(b"\x93NUMPY"[: len(head)]):
            raise SourceError(f"{path.name}: not a .npy file")
        need(path, len(head), 12, "the header")
        length = int.from_bytes(head[8:10], "little") + 10 if head[6] == 1 else int.from_bytes(head[8:12], "little") + 12
        if length > _MAX_HEADER:
            raise SourceError(f"{path.name}: a header of {length} bytes")
        need(path, len(head), length, "the header")
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
        except (ValueError, SyntaxError, TypeError) as error:
            raise SourceError(f"{path.name}: unreadable .npy header: {error}") from error
        return shape, fortran, dtype, file.tell()


def probe(path: Path, size: int) -> Probe:
    shape, _, dtype, offset = _header(path)
    if len(shape) not in (2, 3) or dtype.hasobject:
        raise SourceError(f"{path.name}: an array of shape {shape} and type {dtype} is no projection")
    images, height, width = (1, *shape) if len(shape) == 2 else shape
    found = checked_probe(path, "npy", images, height, width, dtype.str)
    need(path, size, offset + math.prod(shape) * dtype.itemsize, f"an array of shape {shape}")
    return found


def read(path: Path, image: int) -> Projection:
    shape, fortran, dtype, offset = _header(path)
    images = 1 if len(shape) == 2 else shape[0]
    image_in_range(path, image, images)
    try:
        array = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")
    except ValueError as error:  # it has become shorter since it was looked at
        raise SourceNotReady(f"{path.name}: {error}") from error
    return Projection(finished(path, np.array(array if len(shape) == 2 else array[image])), Acquisition(reader="npy"))
