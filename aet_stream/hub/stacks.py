"""Stacks of frames, a contiguous dataset for each plane: written and read back frame by frame, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import h5py
import numpy as np

from aet_stream import durable, failpoints, hdf5, layout, pieces
from aet_stream.layout import PLANES, Plane, Planes, Record
from aet_stream.projection import Array

NameOf = Callable[[Plane], str]
"""What the dataset of a plane is called in a file."""


def write(
    file: hdf5.Written,
    name_of: NameOf,
    records: Sequence[Record],
    reading: Callable[[int], Generator[None, None, Planes]],
    first: Array,
    point: str,
) -> Generator[None]:
    """Write the planes of these projections, and the fill value of those that one has not.

    Parameters
    ----------
    reading : row -> its planes, checked
    first : any raw frame: shape and dtype
    point : names each frame to tests (failpoints)

    Raises
    ------
    OSError : the disk does not take them
    """
    shape = (len(records), *first.shape)
    stacks = {plane: hdf5.frames(file, name_of(plane), shape, plane.dtype_beside(first), plane.fill) for plane in PLANES}
    for row, record in enumerate(records):
        planes = yield from reading(row)
        for plane, dataset in stacks.items():
            yield
            missing = np.broadcast_to(dataset.dtype.type(plane.fill), first.shape)
            yield from pieces.write(dataset, row, planes.get(plane.name, missing))
        file.check()
        durable.sync_now_and_then(file.path, row, layout.nbytes(record, first))
        failpoints.reach(f"{point}.frame", file.path)
        yield


def spoilt(file: h5py.File, name_of: NameOf, records: Sequence[Record]) -> Generator[None, None, int | None]:
    """The first row whose planes do not have the checksums of its projection; None: all have."""
    stacks = {plane.name: file[name_of(plane)] for plane in PLANES}
    for row, record in enumerate(records):
        for name, dataset in stacks.items():
            if name in record.checksums:
                frame = yield from pieces.read(dataset, row)
                if (yield from pieces.crc32(frame)) != record.checksums[name]:
                    return row
            yield
    return None
