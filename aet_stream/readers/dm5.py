"""Gatan DM5: the tags of DM4 in HDF5. Groups are groups, tags are their attributes, entries without names are called `[0]`, `[1]`; only the
pixels are a dataset, `ImageList/[i]/ImageData/Data`. What the tags mean stands in dm.py.

Format: Gatan's page "*.dm5 documentation" (gatan.com/dm5-documentation).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import Source, checked_probe, finished, image_in_range
from aet_stream.readers.dm import Image, Pixels, Tags, acquisition_of
from aet_stream.readers.hdf5 import attribute, known, member, numbers, opened

_ROOTS = ("ImageList", "Thumbnails", "ImageSourceList")
_MAX_DEPTH, _MAX_TAGS = 32, 200_000
_UNNAMED = re.compile(r"\[(\d+)\]")
_DATA_TYPE_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}


class _Dataset(Pixels):
    """An array, by its name in the file."""

    def __init__(self, item: Any) -> None:
        super().__init__(0, int(math.prod(item.shape)), _DATA_TYPE_CODES.get(item.dtype.str[1:], ""))
        self.name = str(item.name)


class Dm5:
    """The image or stack of a file."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        left = [_MAX_TAGS]
        tags = {name: _tags(path, known(path, file, name), left) for name in _ROOTS}
        self._remark = f"more than {_MAX_TAGS} tags; some are not known" if left[0] < 0 else ""
        self._image = image = Image(path, tags)
        self._shape = (image.images, image.height, image.width)
        assert isinstance(image.pixels, _Dataset)
        self._name = image.pixels.name
        data = numbers(path, member(path, file, self._name))
        if data.size != math.prod(self._shape) or data.dtype.itemsize != image.dtype.itemsize:
            raise SourceError(
                f"{path.name}: {data.name} has shape {data.shape} of {data.dtype}, its tags say {self._shape} of {image.dtype}"
            )
        self.probe = checked_probe(path, "dm5", *self._shape, data.dtype.str)

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        with opened(self._path) as file:
            data = numbers(self._path, member(self._path, file, self._name))
            if data.shape == self._shape:
                return finished(self._path, data[image])
            return finished(self._path, np.reshape(data[()], self._shape)[image])

    def acquisition(self, image: int) -> Acquisition:
        return msgspec.structs.replace(acquisition_of(self._image, image, self._remark), reader="dm5")


def _tags(path: Path, group: Any, left: list[int], depth: int = 0) -> Tags:
    """A group and those in it as dm.py has them, in the order of their numbers. Bounded, because a damaged file may contain itself."""
    import h5py

    if not isinstance(group, h5py.Group) or depth > _MAX_DEPTH:
        return {}
    found: Tags = {}
    for name in sorted(group.attrs, key=_order):
        left[0] -= 1
        if left[0] < 0:
            return found
        found[_plain(name)] = attribute(group, name)
    for name in sorted(group, key=_order):
        left[0] -= 1
        item = known(path, group, name)
        if isinstance(item, h5py.Dataset):
            found[_plain(name)] = _Dataset(item)
        elif left[0] >= 0 and item is not None:
            found[_plain(name)] = _tags(path, item, left, depth + 1)
    return found


def _order(name: str) -> tuple[int, str]:
    number = _UNNAMED.fullmatch(name)
    return (int(number[1]), "") if number else (-1, name)


def _plain(name: str) -> str:
    """`[3]` as `3`: so dm.py counts what has no name."""
    number = _UNNAMED.fullmatch(name)
    return number[1] if number else name


def fits(path: Path, file: Any) -> bool:
    return known(path, file, "ImageList") is not None


def open_hdf5(path: Path, file: Any) -> Source:
    return Dm5(path, file)


def open_source(path: Path, size: int) -> Source:
    with opened(path) as file:
        return Dm5(path, file)
