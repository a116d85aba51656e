"""The two kinds of `.emd`, both HDF5: Velox (velox.py) and Berkeley (NCEM).

Berkeley: groups with `emd_group_type` = 1, or, where none says so, those that hold `data` with axes. Single images take their tilt from
`/stage` (x, y, z, alpha, gamma). STEMTomo appends to `/data/raw/data` (tilt, repeat, y, x), with `tiltangles` beside it: a container that
grows by one tilt at a time. Links are not followed: what stands behind one is not known, and data behind one are refused.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import Source, checked_probe, finished, image_in_range, no_space, pixel_size_nm, understood, utc
from aet_stream.readers.hdf5 import attribute, known, member, numbers, opened
from aet_stream.readers.velox import Velox, number

_MAX_OBJECTS, _MAX_DEPTH = 20_000, 6


def open_source(path: Path, size: int) -> Source:
    with opened(path) as file:
        if known(path, file, "Data/Image") is not None:
            return Velox(path, file)
        if known(path, file, "data/raw/tiltangles") is not None:
            return StemTomo(path, file)
        return Berkeley(path, file)


# -- Berkeley ---------------------------------------------------------------------------------------------------------------------------


class StemTomo:
    """One growing file of the TEAM microscopes: (tilt, repeat, y, x). A tilt is there when all its repeats are.

    `nextset` is raised before the pixels are written, so the pixels themselves say what is there.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        data = numbers(path, member(path, file, "data/raw/data"), complete_chunks=False)
        tilts = numbers(path, member(path, file, "data/raw/tiltangles"), complete_chunks=False)
        if data.ndim != 4 or tilts.ndim != 1:
            raise SourceError(f"{path.name}: {data.name} has shape {data.shape}, not (tilt, repeat, y, x)")
        self._tilts = [float(value) for value in tilts[()]]
        ready = next((tilt for tilt in range(data.shape[0]) if tilt >= len(self._tilts) or not _written(data, tilt)), data.shape[0])
        if not ready:
            raise SourceNotReady(f"{path.name}: no tilt is complete yet ({data.shape[0]} announced)")
        self.probe = checked_probe(
            path, "stemtomo", ready, data.shape[2], data.shape[3], data.dtype.str,
            frames=data.shape[1], announced=data.shape[0], container=True,
        )  # fmt: skip
        self._remarks: list[str] = []
        self._sets = understood(self._remarks, "imageSetParameters", lambda: _table(path, file, "imageSetParameters"), None)
        self._size = understood(self._remarks, "the pixel size", lambda: _calibrated(path, file), None)
        self._no_projection = no_space(*_units(path, file, "data/raw", 3, 4))
        microscope, raw = known(path, file, "microscope"), known(path, file, "data/raw")
        self._microscope, self._dwell = str(attribute(microscope, "name") or ""), number(attribute(raw, "dwell time"))
        # The compustage's scripting interface counts radians; the program writes its numbers down as "degrees".
        self._unit = "?" if "compu" in str(attribute(microscope, "stage type")).lower() else "deg"
        self._rotations = understood(
            self._remarks, "the scan rotations", lambda: _rotations(path, file, raw, data.shape[1]), tuple[float, ...]()
        )

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        with opened(self._path) as file:
            data = numbers(self._path, member(self._path, file, "data/raw/data"), complete_chunks=False)
            return finished(self._path, data[image])

    def mark(self, image: int) -> str:
        """State of one tilt: a checksum over all its repeats and its angle."""
        return f"{zlib.crc32(self.frames(image).data, zlib.crc32(repr(self._tilts[image]).encode())):08x}"

    def acquisition(self, image: int) -> Acquisition:
        image_in_range(self._path, image, self.probe.images)
        tilt = self._tilts[image]
        sets = self._sets
        moment = utc(float(sets[5, image])) if sets is not None and sets.shape[0] > 5 and image < sets.shape[1] else ""
        return Acquisition(
            tilt_deg=tilt,
            tilt_raw=f"tiltangles[{image}] {tilt!r} {self._unit}",
            tilt_unit=self._unit,
            pixel_size_nm=self._size,
            acquired_utc=moment,
            dwell_time_s=self._dwell,
            scan_rotation_deg=self._rotations,
            no_projection=self._no_projection,
            microscope=self._microscope,
            reader="stemtomo",
            remark="; ".join(self._remarks),
        )


def _written(data: Any, tilt: int) -> bool:
    """Every repeat of a tilt lies in the file and holds something."""
    if data.chunks is not None:
        wanted = math.prod(-(-edge // chunk) for edge, chunk in zip(data.shape[1:], data.chunks[1:], strict=True))
        there = sum(
            data.id.get_chunk_info_by_coord((tilt, *(index * chunk for index, chunk in zip(at, data.chunks[1:], strict=True)))).byte_offset
            is not None
            for at in np.ndindex(*(-(-edge // chunk) for edge, chunk in zip(data.shape[1:], data.chunks[1:], strict=True)))
        )
        if there < wanted:
            return False
    return all(bool(data[tilt, repeat].any()) for repeat in range(data.shape[1]))


def _table(path: Path, file: Any, name: str) -> Array | None:
    """A small table of numbers, wherever the program put it."""
    for place in (name, f"data/raw/{name}", f"data/{name}"):
        item = member(path, file, place)
        if item is not None and item.ndim == 2 and item.size < 1 << 20:
            return np.asarray(numbers(path, item, complete_chunks=False)[()], dtype=np.float64)
    return None


def _calibrated(path: Path, file: Any) -> float | None:
    """The pixel size, nm, from what the program measured, or else from the axes."""
    table = _table(path, file, "imageParameters")
    measured = table is not None and table.shape[0] >= 5 and table.shape[1]
    size = pixel_size_nm((float(table[4, 0]), "m"), (float(table[3, 0]), "m")) if table is not None and measured else None
    return size or _axis_size(path, file, "data/raw", 3, 4)


def _rotations(path: Path, file: Any, raw: Any, repeats: int) -> tuple[float, ...]:
    """Scan rotation of each repeat in degrees, where they are what the second axis counts."""
    axis = member(path, file, "data/raw/dim2")
    if axis is None or not (attribute(raw, "rotSetting") or "rot" in str(attribute(axis, "name")).lower()):
        return ()
    return tuple(float(value) for value in np.ravel(axis[()])[:repeats])


class Berkeley:
    """A single image, or a stack whose first axis is in degrees."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._group = group = _data_group(path, file)
        data = numbers(path, member(path, file, f"{group}/data"))
        if data.ndim not in (2, 3):
            raise SourceError(f"{path.name}: {data.name} has shape {data.shape}; (y, x) or (images, y, x) are projections")
        images, height, width = (1, *data.shape) if data.ndim == 2 else data.shape
        self.probe = checked_probe(path, "emd", images, height, width, data.dtype.str)
        self._remarks: list[str] = []
        y, x = data.ndim - 1, data.ndim
        self._size = understood(self._remarks, "the pixel size", lambda: _axis_size(path, file, group, y, x), None)
        self._no_projection = no_space(*_units(path, file, group, y, x), others=_units(path, file, group, *range(1, y)))
        tilts = (lambda: _axis_tilts(path, file, group, images)) if data.ndim == 3 else (lambda: _stage_tilt(path, file))
        self._tilts = understood(self._remarks, "the tilt", tilts, list[tuple[float | None, str]]())
        self._times = understood(self._remarks, "the times", lambda: _times(path, file, group), list[float]())
        microscope = known(path, file, "microscope")
        self._microscope, self._dwell = str(attribute(microscope, "name") or ""), number(attribute(microscope, "dwell time"))

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        with opened(self._path) as file:
            data = numbers(self._path, member(self._path, file, f"{self._group}/data"))
            return finished(self._path, data[()] if data.ndim == 2 else data[image])

    def acquisition(self, image: int) -> Acquisition:
        image_in_range(self._path, image, self.probe.images)
        tilt, raw = self._tilts[image] if image < len(self._tilts) else (None, "")
        return Acquisition(
            tilt_deg=tilt,
            tilt_raw=raw,
            pixel_size_nm=self._size,
            acquired_utc=utc(self._times[image]) if image < len(self._times) else "",
            dwell_time_s=self._dwell,
            no_projection=self._no_projection,
            microscope=self._microscope,
            reader="emd",
            remark="; ".join(self._remarks),
        )


def _data_group(path: Path, file: Any) -> str:
    """Name of the one group of a file that holds data: one that says so, else one with axes, else any.

    Raises
    ------
    SourceError : there is none, or several
    """
    groups: dict[str, int] = {}
    links: list[str] = []
    _look_through(path, file, "", groups, links, [_MAX_OBJECTS])
    best = [name for name, rank in groups.items() if rank == max(groups.values())]
    if len(best) > 1:
        raise SourceError(f"{path.name}: {len(best)} data groups ({', '.join(best[:4])}); one is needed")
    if not best:
        behind = f"; {links[0]} is a link, and only data inside the file are read" if links else ""
        raise SourceError(f"{path.name}: an EMD file without images (no Velox image, no group with emd_group_type 1 or data{behind})")
    return best[0]


def _look_through(path: Path, group: Any, name: str, groups: dict[str, int], links: list[str], left: list[int], depth: int = 0) -> None:
    """Note every group with data and its rank, and every link. Bounded, because a damaged file may contain itself."""
    import h5py

    for key in group if depth < _MAX_DEPTH else ():
        left[0] -= 1
        if left[0] < 0:
            raise SourceError(f"{path.name}: more than {_MAX_OBJECTS} groups and datasets")
        where = f"{name}/{key}".strip("/")
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            links.append(where)
            continue
        item = known(path, group, key)
        if isinstance(item, h5py.Group):
            if getattr(known(path, item, "data"), "ndim", 0) >= 2:
                groups[where] = 2 if attribute(item, "emd_group_type") == 1 else int(known(path, item, "dim1") is not None)
            _look_through(path, item, where, groups, links, left, depth + 1)


def _units(path: Path, file: Any, group: str, *axes: int) -> list[str]:
    return [str(attribute(known(path, file, f"{group}/dim{axis}"), "units") or "") for axis in axes]


def _times(path: Path, file: Any, group: str) -> list[float]:
    """Unix seconds of each image, where the file has them."""
    times = member(path, file, f"{group}/acquisition times")
    return [] if times is None else [float(value) for value in np.ravel(times[()])]


def _axis_size(path: Path, file: Any, group: str, y: int, x: int) -> float | None:
    steps = []
    for axis in (y, x):
        item = member(path, file, f"{group}/dim{axis}")
        values = np.ravel(item[:2]) if item is not None and item.ndim == 1 and item.size > 1 else np.zeros(2)
        unit = str(attribute(item, "units") or "").strip("[] ")
        steps.append((float(values[1]) - float(values[0]), unit))
    return pixel_size_nm(steps[0], steps[1])


def _axis_tilts(path: Path, file: Any, group: str, images: int) -> list[tuple[float | None, str]]:
    item = member(path, file, f"{group}/dim1")
    unit = str(attribute(item, "units") or "").strip("[] ").lower()
    if item is None or unit not in ("deg", "degree", "degrees", "°") or item.shape != (images,):
        return []
    return [(float(value), f"dim1[{index}] {float(value)!r} {unit}") for index, value in enumerate(item[()])]


def _stage_tilt(path: Path, file: Any) -> list[tuple[float | None, str]]:
    """NCEM writes the stage as x, y, z, alpha, gamma; alpha in degrees, without a unit."""
    stage = member(path, file, "stage")
    position = attribute(stage, "position")
    if not isinstance(position, list) or len(position) < 4 or "TEAM" not in str(attribute(stage, "type")):
        return []
    return [(float(position[3]), f"stage position[3] {float(position[3])!r} deg")]
