"""Data Exchange (`/exchange/data`), the HDF5 layout of tomopy's users: (theta, y, x) with `theta` in degrees beside it.

Format: De Carlo et al., J. Synchrotron Rad. 21 (2014) 1224. White and dark fields are not applied: pixels are taken as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import Source, checked_probe, finished, image_in_range, understood
from aet_stream.readers.angle_array import tilts_deg
from aet_stream.readers.hdf5 import attribute, known, member, numbers, opened

_DATA, _THETA = "exchange/data", "exchange/theta"
_RADIANS = ("rad", "radian", "radians")


def fits(path: Path, file: Any) -> bool:
    return known(path, file, _DATA) is not None


def open_hdf5(path: Path, file: Any) -> Source:
    if known(path, file, "aet/raw") is not None:
        raise SourceError(f"{path.name}: a series that aet-stream wrote, whose background is subtracted already: no input")
    return DataExchange(path, file)


class DataExchange:
    """A single image, or a stack along the axis that `axes` calls theta: the first, where it says nothing."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        data = numbers(path, member(path, file, _DATA))
        if data.ndim not in (2, 3):
            raise SourceError(f"{path.name}: {data.name} has shape {data.shape}; (theta, y, x) are projections")
        names = str(attribute(data, "axes") or "").lower().split(":")
        self._stacked = -1 if data.ndim == 2 else names.index("theta") if len(names) == 3 and "theta" in names else 0
        height, width = (edge for axis, edge in enumerate(data.shape) if axis != self._stacked)
        images = 1 if self._stacked < 0 else data.shape[self._stacked]
        self.probe = checked_probe(path, "data-exchange", images, height, width, data.dtype.str)
        self._remarks: list[str] = []
        nothing: tuple[Array | None, str] = (None, "deg")
        self._tilts, self._unit = understood(self._remarks, "theta", lambda: self._theta(path, file, images), nothing)

    def _theta(self, path: Path, file: Any, images: int) -> tuple[Array | None, str]:
        item = member(path, file, _THETA)
        if item is None:
            return None, "deg"
        values, unit = np.asarray(numbers(path, item)[()], dtype=np.float64), str(attribute(item, "units") or "").strip("[] ").lower()
        if unit in _RADIANS:
            values = np.degrees(values)
        tilts, guess, remark = tilts_deg("/exchange/theta", values, images)
        self._remarks += [remark] if remark else []
        return tilts, "rad" if unit in _RADIANS else "deg" if unit else guess

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        with opened(self._path) as file:
            data = numbers(self._path, member(self._path, file, _DATA))
            return finished(self._path, data[()] if self._stacked < 0 else data[(slice(None),) * self._stacked + (image,)])

    def acquisition(self, image: int) -> Acquisition:
        remark = "; ".join(self._remarks)
        if self._tilts is None:
            return Acquisition(reader="data-exchange", remark=remark)
        tilt = float(self._tilts[image])
        raw = f"/exchange/theta[{image}] {tilt:g} deg"
        return Acquisition(tilt_deg=tilt, tilt_raw=raw, tilt_unit=self._unit, reader="data-exchange", remark=remark)
