"""Work that is done piece by piece: a generator that yields wherever others may have their turn, and returns what it has made.

Frames are read, written and checked in bands of rows, so that no piece is longer than some milliseconds, however large a frame is.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import TypeVar

import h5py
import numpy as np

from aet_stream.projection import Array

BAND_BYTES = 4 << 20

_Made = TypeVar("_Made")


def finished(work: Generator[None, None, _Made]) -> _Made:
    """What it makes, without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as ended:
            made: _Made = ended.value
            return made


def read(dataset: h5py.Dataset, *place: int) -> Generator[None, None, Array]:
    """(height, width): the frame at `place`, or all of a dataset that is one frame; yields between bands.

    Raises
    ------
    OSError, RuntimeError, ValueError : how HDF5 shows damage
    """
    frame = np.empty(dataset.shape[len(place) :], dataset.dtype)
    for number, band in enumerate(bands(frame)):
        if number:
            yield
        frame[band] = dataset[(*place, band)]
    return frame


def write(dataset: h5py.Dataset, row: int, frame: Array) -> Generator[None]:
    """Put a frame of (height, width) into a row; yields between bands."""
    for number, band in enumerate(bands(frame)):
        if number:
            yield
        dataset[row, band] = frame[band]


def crc32(frame: Array) -> Generator[None, None, int]:
    """Checksum of its bytes in C order; yields between bands."""
    value = 0
    for number, band in enumerate(bands(frame)):
        if number:
            yield
        value = zlib.crc32(np.ascontiguousarray(frame[band]).data, value)
    return value


def bands(frame: Array) -> Iterator[slice]:
    """Rows of a frame, so many at a time as make up `BAND_BYTES`."""
    row_bytes = max(1, frame[:1].nbytes)
    step = max(1, BAND_BYTES // row_bytes)
    return (slice(first, first + step) for first in range(0, len(frame), step))
