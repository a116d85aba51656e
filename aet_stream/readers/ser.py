"""FEI TIA `.ser`: images or frames of one detector. The tilt stands only in the `.emi` beside it (sidecar.py).

Written from the public description of the format: a header with offsets of the elements, each with calibration (metres) and pixels, and a
tag with its time (unix seconds). Rows are stored from the bottom up, as TIA counts them. Version 0x220 has 64-bit offsets. A stopped
series announces more elements than are valid.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import MAX_IMAGES, checked_probe, finished, image_in_range, need, pixel_size_nm, utc

_TYPES = {1: "<u1", 2: "<u2", 3: "<u4", 4: "<i1", 5: "<i2", 6: "<i4", 7: "<f4", 8: "<f8"}
_NO_LENGTH_M = 1e3
"""A step above this is none in metres: TIA counts diffraction patterns in 1/m, and does not say so."""
_ELEMENT = struct.Struct("<ddiddihii")
"""Offset, delta, element of x; the same of y; data type; width; height: 50 bytes."""


class _Head(NamedTuple):
    step_y_m: float
    step_x_m: float
    dtype: np.dtype[np.generic]
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        return self.height * self.width * self.dtype.itemsize


class Ser:
    """Two-dimensional elements only; spectra are no projections."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with path.open("rb") as file:
            head = file.read(30 + 4)
            need(path, len(head), 34, "the header")
            order, series_id, version, data_kind, tag_kind, total, valid = struct.unpack("<hhhiiii", head[:22])
            if (order, series_id) != (0x4949, 0x0197):
                raise SourceError(f"{path.name}: not a SER file")
            if data_kind != 0x4122:
                raise SourceError(f"{path.name}: elements of kind {data_kind:#x} are no images (0x4122)")
            if not (0 <= valid <= total <= MAX_IMAGES):
                raise SourceError(f"{path.name}: {valid} of {total} elements; at most {MAX_IMAGES}")
            wide = version >= 0x220
            table = struct.unpack("<q" if wide else "<i", head[22 : 30 if wide else 26])[0]
            each, code = (8, "q") if wide else (4, "i")
            need(path, size, max(0, table) + 2 * total * each, "the table of elements")
            if table < 26:
                raise SourceError(f"{path.name}: a table of elements at {table}")
            file.seek(table)
            offsets = struct.unpack(f"<{2 * total}{code}", file.read(2 * total * each))
            need(path, valid, 1, "no element is valid yet; the file")
            self._data, self._tags = offsets[:valid], offsets[total : total + valid]
            self._heads = [self._element(file, offset, size) for offset in self._data]
            self._times = [self._time(file, offset, size, tag_kind) for offset in self._tags]
        largest = max(self._heads, key=lambda head: head.width * head.height)
        self.probe = checked_probe(path, "ser", valid, largest.height, largest.width, largest.dtype.str, announced=total, bottom_up=True)

    def _element(self, file: BinaryIO, offset: int, size: int) -> _Head:
        name = self._path.name
        if offset < 26:
            raise SourceError(f"{name}: an element at {offset}")
        need(self._path, size, offset + _ELEMENT.size, "an element")
        file.seek(offset)
        _, step_x, _, _, step_y, _, kind, width, height = _ELEMENT.unpack(file.read(_ELEMENT.size))
        if kind not in _TYPES:
            raise SourceError(f"{name}: pixels of type {kind} are no projection")
        checked_probe(self._path, "ser", 1, height, width, _TYPES[kind])
        head = _Head(step_y, step_x, np.dtype(_TYPES[kind]), height, width)
        need(self._path, size, offset + _ELEMENT.size + head.nbytes, "the image of an element")
        return head

    def _time(self, file: BinaryIO, offset: int, size: int, tag_kind: int) -> str:
        """A tag is its kind, the time, and for some kinds a position."""
        need(self._path, size, offset + (24 if tag_kind == 0x4142 else 8), "the tag of an element")
        if offset < 26:
            return ""
        file.seek(offset + 4)
        return utc(struct.unpack("<i", file.read(4))[0])

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        head = self._heads[image]
        with self._path.open("rb") as file:
            file.seek(self._data[image] + _ELEMENT.size)
            content = file.read(head.nbytes)
        need(self._path, len(content), head.nbytes, "the image")
        return finished(self._path, np.frombuffer(content, head.dtype).reshape(head.height, head.width)[::-1])

    def acquisition(self, image: int) -> Acquisition:
        image_in_range(self._path, image, self.probe.images)
        head = self._heads[image]
        reciprocal = min(abs(head.step_y_m), abs(head.step_x_m)) > _NO_LENGTH_M
        return Acquisition(
            pixel_size_nm=pixel_size_nm((head.step_y_m, "m"), (head.step_x_m, "m")),
            acquired_utc=self._times[image],
            no_projection=f"a diffraction pattern: its pixels of {head.step_x_m:.3g} cannot be in metres, but in 1/m" if reciprocal else "",
            reader="ser",
        )


open_source = Ser
