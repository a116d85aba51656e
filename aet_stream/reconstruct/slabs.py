"""A volume that is too large for memory: slab after slab in files of their own, with which the next try goes on if this one is ended.

They lie in a hidden folder beside the volume-to-be, named by their first slice, each written whole or not at all and with its checksum, and
go once the volume is there. Several processes may make some of them each (`share`), from what lies there prepared (prepared.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import h5py
import numpy as np

from aet_stream import durable, hdf5
from aet_stream.errors import ReconstructionError
from aet_stream.layout import LIBVER, crc32
from aet_stream.projection import Array
from aet_stream.reconstruct.solver import Slab

_PART_BYTES = 2**27
"""Of a volume in memory, what is looked at together."""
_LOCK, _PREPARED = "lock", "prepared.hdf5"


class SlabFiles:
    """The slabs that are there, which follow each other from the first slice on. One process at a time has them, or a share of them."""

    def __init__(self, target: Path, key: str, shape: tuple[int, int, int], *, share: slice | None = None) -> None:
        """
        Parameters
        ----------
        target : where the volume will be
        key : of all that its voxels depend on; slabs of another are removed
        shape : (slices, rows, columns)
        share : slices of it that this process makes, while others make others: slices are counted, here, from the first of them

        Raises
        ------
        ReconstructionError : another process makes this volume
        OutputFull : the folder cannot be made
        """
        self._share = share
        self.shape = shape if share is None else (share.stop - share.start, *shape[1:])
        self._key, self._folder = key, _folder(target)
        self._squares: list[Array] = []
        self._ends: list[int] = []
        with durable.disk_errors(self._folder):
            durable.make_folder(self._folder)
            self._lock = _hold(self._folder, shared=share is not None)
            self._take_up()
            if share is None:
                self._remove_others()

    def _take_up(self) -> None:
        """Of what lies there, what can be gone on with."""
        while (path := self._path(self.height)).exists() and self.height < self.shape[0]:
            try:
                with h5py.File(path, "r", locking=False) as file:
                    if file.attrs["key"] != self._key:
                        break
                    volume, squares = file["volume"][()], file["squares"][()]
                    if file.attrs["crc32"] != crc32(volume) or volume.shape[1:] != self.shape[1:]:
                        break
            except (OSError, KeyError, RuntimeError):
                break
            self._squares.append(squares)
            self._ends.append(self.height + len(volume))

    def _remove_others(self) -> None:
        """What cannot be gone on with."""
        mine = {self._path(first) for first in (0, *self._ends[:-1]) if self._ends} | {self._folder / _LOCK, self._folder / _PREPARED}
        for path in self._folder.iterdir():
            if path not in mine:
                path.unlink()

    @property
    def height(self) -> int:
        """How many slices are there."""
        return self._ends[-1] if self._ends else 0

    @property
    def squares(self) -> Array:
        """(iterations,) of all slabs together"""
        total: Array = np.sum(self._squares, axis=0)
        return total

    def _path(self, first: int) -> Path:
        return self._folder / f"{first + (self._share.start if self._share else 0):06d}.h5"

    def add(self, slab: Slab) -> None:
        """Keep the next one, durably.

        Raises
        ------
        OutputFull : it cannot be written
        """
        path = self._path(slab.slices.start)
        with durable.replacing(path, "slab") as draft, hdf5.writing(draft, libver=LIBVER) as file:
            file["volume"], file["squares"] = slab.volume, slab.squares
            file.attrs["key"], file.attrs["crc32"] = self._key, np.uint32(crc32(slab.volume))
        self._squares.append(slab.squares)
        self._ends.append(slab.slices.stop)

    def parts(self) -> Iterator[tuple[slice, Array]]:
        """(slices, their voxels), slab after slab."""
        for first, end in zip((0, *self._ends), self._ends, strict=False):
            with h5py.File(self._path(first), "r", locking=False) as file:
                yield slice(first, end), file["volume"][()]

    def close(self) -> None:
        """Let go of them; they stay. Of none, nothing stays."""
        if not self._ends and self._share is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


Volume = Array | SlabFiles
"""(slice y, row, column) float32"""


def parts(volume: Volume) -> Iterator[tuple[slice, Array]]:
    """(slices, their voxels) of all of it, so many that they fit into memory."""
    if isinstance(volume, SlabFiles):
        yield from volume.parts()
        return
    depth = max(1, _PART_BYTES // volume[0].nbytes)
    for first in range(0, len(volume), depth):
        slices = slice(first, min(len(volume), first + depth))
        yield slices, volume[slices]


def discard(target: Path) -> None:
    """Remove the slabs of a volume that is there; not those that another process makes."""
    folder = _folder(target)
    if folder.is_dir():
        with contextlib.suppress(ReconstructionError, OSError), _hold(folder):
            shutil.rmtree(folder)


@contextlib.contextmanager
def emptied(target: Path) -> Iterator[None]:
    """Begin with no slabs of this volume; nobody else does meanwhile.

    Raises
    ------
    ReconstructionError : another process makes this volume
    OutputFull : the folder cannot be made
    """
    folder = _folder(target)
    with durable.disk_errors(folder):
        durable.make_folder(folder)
        lock = _hold(folder)
    with lock:
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink(missing_ok=True)
        yield


def prepared_path(target: Path) -> Path:
    """Where lies what the slabs of this volume are made from, where they are shared out."""
    return _folder(target) / _PREPARED


def _folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.slabs")


def _hold(folder: Path, *, shared: bool = False) -> TextIO:
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ReconstructionError(f"{folder}: another process makes this volume: let it end, or choose another --out") from None
    return lock
