"""Datasets and attributes, past h5py's conveniences: a master has a hundred small ones, written at every projection, read at a start."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5p, h5s, h5t

_TEXT = h5py.string_dtype()
_TEXT_KIND, _SCALAR = h5t.py_create(_TEXT, logical=True), h5s.create(h5s.SCALAR)
_UNDATED = h5p.create(h5p.DATASET_CREATE)
_UNDATED.set_obj_track_times(False)  # as h5py has it: the same content is the same bytes
_WITH_GROUPS = h5p.create(h5p.LINK_CREATE)
_WITH_GROUPS.set_create_intermediate_group(True)


class Written(h5py.File):  # type: ignore[misc]  # h5py has no types
    """A file that `writing` makes."""

    def __init__(self, path: Path, disk: _Disk, libver: Any) -> None:
        super().__init__(disk, "w", libver=libver)
        self.path, self._disk = path, disk

    def check(self) -> None:
        """Stop here if the disk has refused any of it so far: a long work need not go on for nothing.

        Raises
        ------
        OSError : it has
        """
        if self._disk.refusal is not None:
            raise self._disk.refusal


@contextmanager
def writing(path: Path, *, libver: Any = None) -> Iterator[Written]:
    """A new file, to be written within the block.

    HDF5 does not survive a disk that takes no more: what it could not write it tries again at every close, and then crashes. So it is
    told that all went well, and the first refusal is raised where the block ends.

    Raises
    ------
    OSError : the disk does not take it
    """
    with closing(_Disk(path)) as disk:
        try:
            with Written(path, disk, libver) as file:
                yield file
        finally:
            if disk.refusal is not None:
                raise disk.refusal


class _Disk(io.RawIOBase):
    """A file as HDF5 asks for one, that keeps to itself what the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._descriptor, self._at = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), 0
        self.refusal: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (os.fstat(self._descriptor).st_size if whence == os.SEEK_END else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        there = os.pread(self._descriptor, len(buffer), self._at)
        buffer[:] = there.ljust(len(buffer), b"\0")
        return len(buffer)

    def write(self, content: Any) -> int:
        left, at = memoryview(content), self._at
        try:
            while left and self.refusal is None:
                taken = os.pwrite(self._descriptor, left, at)
                left, at = left[taken:], at + taken
        except OSError as error:
            self.refusal = error
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        try:
            os.ftruncate(self._descriptor, size or 0)
        except OSError as error:
            self.refusal = self.refusal or error
        return size or 0

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def put(group: h5py.Group, name: str, values: Any) -> None:
    """A new contiguous dataset; `values` as numpy takes them, text as bytes of fixed length."""
    array = np.asarray(values, order="C")
    dataset = h5d.create(group.id, name.encode(), h5t.py_create(array.dtype, logical=True), _space(array), _UNDATED)
    dataset.write(h5s.ALL, h5s.ALL, array)


def frames(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> h5py.Dataset:
    """A new contiguous dataset that will be written whole, frame by frame.

    HDF5 would write `fill` everywhere first, within the first frame's write: seconds for a series of large frames.
    """
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(fill, dtype))
    properties.set_fill_time(h5d.FILL_TIME_NEVER)
    kind = h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5d.create(group.id, name.encode(), kind, h5s.create_simple(shape), properties, lcpl=_WITH_GROUPS))


class Virtual:
    """A virtual dataset (n, height, width) while it is put together, from the first row to the last."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> None:
        self._kind, self._space, self._row = h5t.py_create(dtype, logical=True), h5s.create_simple(shape), 0
        self._frame = shape[1:]
        self._properties = h5p.create(h5p.DATASET_CREATE)
        self._properties.set_obj_track_times(False)
        self._properties.set_fill_value(np.array(fill, dtype))

    def add(self, file: str, dataset: str, place: int | None, held: int, rows: int) -> None:
        """The next `rows`: those from `place` of a dataset of `held` frames; place None: of one that is a frame itself."""
        whole = self._frame if place is None else (held, *self._frame)
        source = h5s.create_simple(whole)
        if place is not None:
            source.select_hyperslab((place, 0, 0), (rows, *self._frame))
        self._space.select_hyperslab((self._row, 0, 0), (rows, *self._frame))
        self._properties.set_virtual(self._space, file.encode(), dataset.encode(), source)
        self._row += rows

    def put(self, group: h5py.Group, name: str) -> None:
        self._space.select_all()
        h5d.create(group.id, name.encode(), self._kind, self._space, self._properties, lcpl=_WITH_GROUPS)


def describe(item: h5py.HLObject, /, **attributes: Any) -> None:
    """New attributes; text of any length, else as numpy takes them.

    Raises
    ------
    TypeError, ValueError : HDF5 cannot hold one, such as a text with a NUL in it
    """
    for name, value in attributes.items():
        text = isinstance(value, str)
        array = np.asarray(value, _TEXT if text else None, order="C")
        kind = _TEXT_KIND if text else h5t.py_create(array.dtype, logical=True)
        h5a.create(item.id, name.encode(), kind, _space(array)).write(array)


def attributes(item: h5py.HLObject) -> dict[str, Any]:
    """All of an item, each as `item.attrs` gives it."""
    found: dict[str, Any] = {}
    names: list[bytes] = []
    h5a.iterate(item.id, names.append)
    for name in names:
        one = h5a.open(item.id, name)
        kind = one.dtype
        text = h5t.check_string_dtype(kind)
        if one.shape != () or kind.subdtype is not None or (kind.hasobject and text is None):
            found[name.decode()] = item.attrs[name]
            continue
        array = np.empty((), kind)
        one.read(array)
        value: Any = array[()]
        found[name.decode()] = value.decode("utf-8", "surrogateescape") if text is not None and text.length is None else value
    return found


def values(dataset: h5py.Dataset) -> Any:
    """All of a dataset, as `dataset[()]` gives it."""
    kind, shape = dataset.id.dtype, dataset.id.shape
    if shape is None or 0 in shape or kind.hasobject or kind.subdtype is not None:
        return dataset[()]
    found = np.empty(shape, kind)
    dataset.id.read(h5s.ALL, h5s.ALL, found)
    return found[()]


def items(file: h5py.File) -> Iterator[h5py.Dataset | h5py.Group]:
    """Everything in a file, but for the root; to be read from."""
    names: list[bytes] = []
    h5o.visit(file.id, names.append)
    for name in names:
        there = h5o.open(file.id, name)
        if isinstance(there, h5d.DatasetID):
            yield h5py.Dataset(there, readonly=True)
        elif isinstance(there, h5g.GroupID):
            yield h5py.Group(there)


def _space(array: np.ndarray[Any, Any]) -> h5s.SpaceID:
    return h5s.create_simple(array.shape) if array.shape else _SCALAR
