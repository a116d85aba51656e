"""Datasets and attributes, written past h5py's conveniences: a master has a hundred small ones, for every projection, in half the time."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

_TEXT = h5py.string_dtype()
_UNDATED = h5p.create(h5p.DATASET_CREATE)
_UNDATED.set_obj_track_times(False)  # as h5py has it: the same content is the same bytes
_WITH_GROUPS = h5p.create(h5p.LINK_CREATE)
_WITH_GROUPS.set_create_intermediate_group(True)


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


def describe(item: h5py.HLObject, /, **attributes: Any) -> None:
    """New attributes; text of any length, else as numpy takes them.

    Raises
    ------
    TypeError, ValueError : HDF5 cannot hold one, such as a text with a NUL in it
    """
    for name, value in attributes.items():
        array = np.asarray(value, _TEXT if isinstance(value, str) else None, order="C")
        h5a.create(item.id, name.encode(), h5t.py_create(array.dtype, logical=True), _space(array)).write(array)


def _space(array: np.ndarray[Any, Any]) -> h5s.SpaceID:
    return h5s.create_simple(array.shape) if array.shape else h5s.create(h5s.SCALAR)
