"""Stacks of frames, a contiguous dataset for each plane: written and read back frame by frame, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import h5py
import numpy as np

from aet_stream import hdf5, pieces
from aet_stream.layout import PLANES, Plane, Planes, Record
from aet_stream.projection import Array


class Stacks:
    """One for each of `PLANES`, in that order."""

    def __init__(self, datasets: Sequence[h5py.Dataset]) -> None:
        self._datasets = datasets

    @classmethod
    def new(cls, file: h5py.File, name_of: Callable[[Plane], str], frames: int, first: Array) -> Stacks:
        """In a file that is being written.

        Parameters
        ----------
        first : any raw frame: shape and dtype
        """
        shape = (frames, *first.shape)
        return cls([hdf5.frames(file, name_of(plane), shape, plane.dtype_beside(first), plane.fill) for plane in PLANES])

    @classmethod
    def of(cls, file: h5py.File, name_of: Callable[[Plane], str]) -> Stacks:
        """Of a file that was written."""
        return cls([file[name_of(plane)] for plane in PLANES])

    def writing(self, row: int, planes: Planes) -> Generator[None]:
        """Put the planes of a projection into a row; the fill value of those that it has not."""
        for plane, dataset in zip(PLANES, self._datasets, strict=True):
            yield
            missing = np.broadcast_to(dataset.dtype.type(plane.fill), dataset.shape[1:])
            yield from pieces.write(dataset, row, planes.get(plane.name, missing))

    def are(self, row: int, record: Record) -> Generator[None, None, bool]:
        """Do the planes of a row have the checksums of this projection?"""
        for plane, dataset in zip(PLANES, self._datasets, strict=True):
            if plane.name in record.checksums:
                frame = yield from pieces.read(dataset, row)
                if (yield from pieces.crc32(frame)) != record.checksums[plane.name]:
                    return False
            yield
        return True
