"""Nion Swift: `.ndata` (a ZIP file with `data.npy` and `metadata.json`), its `.h5` (`/data`, its properties as JSON text), and `.nhdf`.

The JSON says which axes are images, their calibrations, and what the instrument said. Where a stage has a tilt, and what it counts in, is a
matter of the instrument; `StageOutA` is where Nion's own have it. A tilt of each image there is only as the calibration of an axis.
Learned from Nion Swift's own writer (nion-software/nionswift), which writes the ZIP directory last.
"""

from __future__ import annotations

import datetime
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import Source, checked_probe, finished, image_in_range, no_space, pixel_size_nm, understood
from aet_stream.readers.hdf5 import attribute, known, member, numbers, opened
from aet_stream.readers.npy import npy_header
from aet_stream.readers.velox import at, number

_STAGE = ("ImageScanned", "ImageRonchigram")
_MAX_BYTES = 8 << 30
_MAX_JSON_BYTES = 16 << 20
_Tilt = tuple[float | None, str, str]
_NO_TILT: _Tilt = (None, "", "deg")


class _Images:
    """What the JSON says, of data of this shape."""

    def __init__(self, path: Path, said: dict[str, Any], shape: tuple[int, ...], dtype: str, remark: str, *, sealed: bool) -> None:
        self._path, self._remarks = path, [remark] if remark else []
        collection, datum = (number(said.get(f"{what}_dimension_count")) for what in ("collection", "datum"))
        axes_said = len(shape) if collection is None or datum is None else int(collection + datum) + bool(said.get("is_sequence"))
        if len(shape) not in (2, 3) or datum not in (2, None) or axes_said != len(shape):
            raise SourceError(f"{path.name}: data of shape {shape}, of which {datum or 2:g} axes are one datum, are no images")
        self._said, self._stack = said, len(shape) == 3
        self.probe = checked_probe(path, "nion", shape[0] if self._stack else 1, shape[-2], shape[-1], dtype, sealed=sealed)
        axes = said.get("dimensional_calibrations")
        self._axes = axes if isinstance(axes, list) and len(axes) == len(shape) else [{}] * len(shape)

    def acquisition(self, image: int) -> Acquisition:
        image_in_range(self._path, image, self.probe.images)
        remarks = list(self._remarks)
        tilt, raw, unit = understood(remarks, "the tilt", lambda: self._tilt(image), _NO_TILT)
        if tilt is None and self._stack:
            remarks.append(f"a sequence of {self.probe.images} images, and not said whether of one tilt or of many")
        y, x = (_step(axis) for axis in self._axes[-2:])
        dwell_us = number(at(self._metadata, "scan", "scan_device_parameters", "pixel_time_us"))
        rotation = number(at(self._metadata, "scan", "rotation_deg"))
        return Acquisition(
            tilt_deg=tilt,
            tilt_raw=raw,
            tilt_unit=unit,
            pixel_size_nm=pixel_size_nm(y, x),
            acquired_utc="" if self._stack else _utc(self._said.get("created")),
            dwell_time_s=None if dwell_us is None else dwell_us * 1e-6,
            scan_rotation_deg=() if rotation is None else (rotation,),
            detector=str(at(self._metadata, "hardware_source", "channel_name") or ""),
            no_projection=no_space(y[1], x[1], others=[_step(axis)[1] for axis in self._axes[:-2]]),
            reader="nion",
            remark="; ".join(remarks),
        )

    @property
    def _metadata(self) -> dict[str, Any]:
        found = self._said.get("metadata")
        return found if isinstance(found, dict) else {}

    def _tilt(self, image: int) -> _Tilt:
        """(degrees, as found, unit): of an axis that counts angles; of a single image the stage's, in an unknown unit."""
        if self._stack:
            scale, unit = _step(self._axes[0])
            value = (number(self._axes[0].get("offset")) or 0.0) + image * scale
            radians = unit.lower() in ("rad", "radian", "radians")
            if not radians and unit.lower() not in ("deg", "degree", "degrees", "°"):
                return _NO_TILT
            return math.degrees(value) if radians else value, f"first axis: {value!r} {unit}", "rad" if radians else "deg"
        for place in [("instrument", name) for name in _STAGE] + [("hardware_source", "autostem", name) for name in _STAGE]:
            alpha = number(at(self._metadata, *place, "StageOutA"))
            if alpha is not None:
                return alpha, f"{'.'.join(place)}.StageOutA {alpha!r}", "?"
        return _NO_TILT


class Ndata(_Images):
    """A ZIP file; unpacked once and kept. Its checksums say that it is whole."""

    def __init__(self, path: Path, size: int) -> None:
        with path.open("rb") as file:
            if file.read(4) != b"PK\3\4":
                raise SourceError(f"{path.name}: not a ZIP file, as .ndata is")
        with _unzipped(path) as archive:
            names = archive.namelist()
            if "data.npy" not in names:
                raise SourceError(f"{path.name}: holds no data.npy, but {', '.join(names[:4]) or 'nothing'}")
            packed = archive.getinfo("data.npy").file_size
            with archive.open("data.npy") as file:
                shape, _, dtype, offset = npy_header(path, file)
            if dtype.hasobject or offset + math.prod(shape) * dtype.itemsize != packed or packed > _MAX_BYTES:
                raise SourceError(f"{path.name}: data.npy of {packed} bytes is no array of shape {shape} and type {dtype}")
            remarks: list[str] = []
            said = understood(remarks, "metadata.json", lambda: _properties(_small(archive, "metadata.json")), dict[str, Any]())
        super().__init__(path, said, shape, dtype.str, "; ".join(remarks), sealed=True)
        self._values: Array | None = None

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        if self._values is None:
            with _unzipped(self._path) as archive, archive.open("data.npy") as file:
                shape, fortran, dtype, _ = npy_header(self._path, file)
                self._values = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
        return finished(self._path, self._values[image] if self._stack else self._values)


class NionHdf5(_Images):
    """One dataset with its properties."""

    def __init__(self, path: Path, item: Any) -> None:
        data, remarks = numbers(path, item), list[str]()
        said = understood(remarks, "its properties", lambda: _properties(attribute(item, "properties")), dict[str, Any]())
        self._name = data.name
        super().__init__(path, said, data.shape, data.dtype.str, "; ".join(remarks), sealed=False)

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        with opened(self._path) as file:
            data = numbers(self._path, member(self._path, file, self._name))
            return finished(self._path, data[image] if self._stack else data[()])


def fits(path: Path, file: Any) -> bool:
    return bool(_items(path, file))


def open_hdf5(path: Path, file: Any) -> Source:
    items = _items(path, file)
    if len(items) > 1:
        raise SourceError(f"{path.name}: holds {len(items)} data items: export each as a file of its own")
    return NionHdf5(path, items[0])


def _items(path: Path, file: Any) -> list[Any]:
    """Datasets with properties: `/data`, or those in the group of this name (`.nhdf`)."""
    data = known(path, file, "data")
    found = [data] if hasattr(data, "shape") else [known(path, data, key) for key in list(data or ())[:1000]]
    return [item for item in found if attribute(item, "properties") is not None and hasattr(item, "shape")]


def _unzipped(path: Path) -> zipfile.ZipFile:
    """Raises
    ------
    SourceNotReady : its directory, which is written last, is not there
    """
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise SourceNotReady(f"{path.name}: its directory, which stands at its end, is not written yet ({error})") from error


def _small(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MAX_JSON_BYTES:
        raise ValueError(f"of {archive.getinfo(name).file_size} bytes")
    return archive.read(name)


def _properties(text: str | bytes) -> dict[str, Any]:
    """What is said of the data; older versions have it one level deeper."""
    said = json.loads(text)
    if not isinstance(said, dict):
        raise ValueError("no table of properties")
    sources = said.get("data_sources")
    inner = said.get("data_source", sources[0] if isinstance(sources, list) and sources else None)
    return {**said, **inner} if isinstance(inner, dict) else said


def _step(axis: Any) -> tuple[float, str]:
    """(scale, unit) of a calibration."""
    return number(at(axis, "scale")) or 0.0, str(at(axis, "units") or "")


def _utc(text: Any) -> str:
    """`2026-11-29T13:42:24.757855`, UTC without saying so."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return ""
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).isoformat()


open_source = Ndata
