"""NumPy `.npy`: (height, width) or (images, height, width)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, need

_MAX_HEADER = 65536


class Npy:
    """Header read by NumPy's own functions, without pickles; pixels through a memory map."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with path.open("rb") as file:
            self._shape, self._fortran, self._dtype, self._offset = npy_header(path, file)
        if len(self._shape) not in (2, 3) or self._dtype.hasobject:
            raise SourceError(f"{path.name}: an array of shape {self._shape} and type {self._dtype} is no projection")
        images, height, width = (1, *self._shape) if len(self._shape) == 2 else self._shape
        self.probe = checked_probe(path, "npy", images, height, width, self._dtype.str, by_columns=self._fortran)
        need(path, size, self._offset + math.prod(self._shape) * self._dtype.itemsize, f"an array of shape {self._shape}")

    def acquisition(self, image: int) -> Acquisition:
        return Acquisition(reader="npy")

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        order = "F" if self._fortran else "C"
        try:
            array = np.memmap(self._path, dtype=self._dtype, mode="r", offset=self._offset, shape=self._shape, order=order)  # type: ignore[call-overload]
        except ValueError as error:  # it has become shorter since it was looked at
            raise SourceNotReady(f"{self._path.name}: {error}") from error
        return finished(self._path, np.array(array if len(self._shape) == 2 else array[image]))


def npy_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """(shape, Fortran order, dtype, offset of the pixels), and the file stands at the pixels.

    Raises
    ------
    SourceNotReady, SourceError
    """
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


open_source = Npy
