"""Small datasets and attributes, written past h5py's conveniences in half the time: a master has a hundred, for every projection."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

_TEXT = h5py.string_dtype()
_UNDATED = h5p.create(h5p.DATASET_CREATE)
_UNDATED.set_obj_track_times(False)  # as h5py has it: the same content is the same bytes


def put(group: h5py.Group, name: str, values: Any) -> None:
    """A new contiguous dataset; `values` as numpy takes them, text as bytes of fixed length."""
    array = np.asarray(values, order="C")
    dataset = h5d.create(group.id, name.encode(), h5t.py_create(array.dtype, logical=True), _space(array), _UNDATED)
    dataset.write(h5s.ALL, h5s.ALL, array)


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
