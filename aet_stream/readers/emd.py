"""The two kinds of `.emd`, both HDF5: Velox (velox.py) and Berkeley (NCEM).

Berkeley: groups with `emd_group_type` = 1, or, where none says so, those that hold `data` with axes. Single images take their tilt from
`/stage` (x, y, z, alpha, gamma). STEMTomo appends to `/data/raw/data` (tilt, repeat, y, x), with `tiltangles` beside it: a container that
grows by one tilt at a time. Links are not followed: what stands behind one is not known, and data behind one are refused.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import Source, checked_probe, finished, image_in_range, is_length, no_space, pixel_size_nm, understood, utc
from aet_stream.readers.angle_array import is_angle_name
from aet_stream.readers.hdf5 import attribute, known, member, numbers, opened
from aet_stream.readers.velox import Velox, number

_VELOX, _STEMTOMO = "Data/Image", "data/raw/tiltangles"
_MAX_OBJECTS, _MAX_DEPTH = 20_000, 6


def open_source(path: Path, size: int) -> Source:
    with opened(path) as file:
        return open_hdf5(path, file)


def fits(path: Path, file: Any) -> bool:
    """Is an HDF5 file of another name one of these?"""
    return attribute(file, "version_major") is not None or any(known(path, file, name) is not None for name in (_VELOX, _STEMTOMO))


def open_hdf5(path: Path, file: Any) -> Source:
    if known(path, file, _VELOX) is not None:
        return Velox(path, file)
    if known(path, file, _STEMTOMO) is not None:
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
        y, x = understood(self._remarks, "the axes", lambda: _axes(path, file, "data/raw", data.shape), [_Axis("")] * 4)[2:]
        self._size = understood(self._remarks, "imageParameters", lambda: _calibrated(path, file), None)
        self._size = self._size or pixel_size_nm((y.step, y.unit), (x.step, x.unit))
        self._no_projection = no_space(y.unit, x.unit)
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
    """The pixel size, nm, that the program measured."""
    table = _table(path, file, "imageParameters")
    if table is None or table.shape[0] < 5 or not table.shape[1]:
        return None
    return pixel_size_nm((float(table[4, 0]), "m"), (float(table[3, 0]), "m"))


def _rotations(path: Path, file: Any, raw: Any, repeats: int) -> tuple[float, ...]:
    """Scan rotation of each repeat in degrees, where they are what the second axis counts."""
    axis = member(path, file, "data/raw/dim2")
    if axis is None or not (attribute(raw, "rotSetting") or "rot" in str(attribute(axis, "name")).lower()):
        return ()
    return tuple(float(value) for value in np.ravel(axis[()])[:repeats])


class Berkeley:
    """A single image, or a stack with one axis in degrees or radians: the first (NCEM, tomviz), or another."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._group = group = _data_group(path, file)
        data = numbers(path, member(path, file, f"{group}/data"))
        if data.ndim not in (2, 3):
            raise SourceError(f"{path.name}: {data.name} has shape {data.shape}; (y, x) or (images, y, x) are projections")
        self._remarks: list[str] = []
        axes = understood(self._remarks, "the axes", lambda: _axes(path, file, group, data.shape), [_Axis("")] * data.ndim)
        self._stacked = _stacked(path, axes) if data.ndim == 3 else -1
        """Which axis counts images; -1 for a single one."""
        y, x = (axis for index, axis in enumerate(axes) if index != self._stacked)
        (height, width), images = (np.delete(data.shape, self._stacked), data.shape[self._stacked]) if data.ndim == 3 else (data.shape, 1)
        self.probe = checked_probe(path, "emd", images, int(height), int(width), data.dtype.str)
        others = [axes[self._stacked].unit] if data.ndim == 3 else []
        self._size = pixel_size_nm((y.step, y.unit), (x.step, x.unit))
        self._no_projection = no_space(y.unit, x.unit, others=others)
        stated = (lambda: _axis_tilts(axes[self._stacked], images)) if data.ndim == 3 else (lambda: _stage_tilt(path, file))
        self._tilts = understood(self._remarks, "the tilt", stated, _NO_TILTS)
        self._times = understood(self._remarks, "the times", lambda: _times(path, file, group), list[float]())
        microscope = known(path, file, "microscope")
        self._microscope, self._dwell = str(attribute(microscope, "name") or ""), number(attribute(microscope, "dwell time"))

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        with opened(self._path) as file:
            data = numbers(self._path, member(self._path, file, f"{self._group}/data"))
            return finished(self._path, data[()] if data.ndim == 2 else data[(slice(None),) * self._stacked + (image,)])

    def acquisition(self, image: int) -> Acquisition:
        image_in_range(self._path, image, self.probe.images)
        said = self._tilts
        return Acquisition(
            tilt_deg=said.tilts_deg[image] if image < len(said.tilts_deg) else None,
            tilt_raw=said.words[image] if image < len(said.words) else "",
            tilt_unit=said.unit,
            pixel_size_nm=self._size,
            acquired_utc=utc(self._times[image]) if image < len(self._times) else "",
            dwell_time_s=self._dwell,
            no_projection=self._no_projection,
            microscope=self._microscope,
            reader="emd",
            remark="; ".join(filter(None, (*self._remarks, said.remark))),
        )


class _Axis(NamedTuple):
    """`dim1` and so on: what an axis of the data counts."""

    key: str
    values: tuple[float, ...] = ()
    unit: str = ""
    name: str = ""
    lost: bool = False
    """It is there, and cannot be read."""

    @property
    def step(self) -> float:
        return self.values[1] - self.values[0] if len(self.values) > 1 else 0.0

    @property
    def angle_unit(self) -> str:
        """ "deg" or "rad"; "?" for one that is called an angle and has no unit; empty for what is no tilt."""
        unit = self.unit.lower()
        if unit in ("deg", "degree", "degrees", "°"):
            return "deg"
        if unit in ("rad", "radian", "radians"):
            return "rad"
        return "?" if not unit and is_angle_name(self.name.lower().replace(" ", "_")) else ""


class _Tilts(NamedTuple):
    """What a file says of the tilt of its images."""

    tilts_deg: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    unit: str = "deg"
    remark: str = ""


_NO_TILTS = _Tilts()


def _axes(path: Path, file: Any, group: str, shape: tuple[int, ...]) -> list[_Axis]:
    """The axes of the data, slowest first. EMD 1.0 counts them from 0, and keeps two values of one that is even."""
    first = 0 if known(path, file, f"{group}/dim0") is not None else 1
    found = []
    for index, length in enumerate(shape):
        key = f"dim{index + first}"
        item = known(path, file, f"{group}/{key}")
        values = np.ravel(item[()]).astype(np.float64) if item is not None and item.dtype.kind in "iuf" else np.zeros(0)
        if first == 0 and len(values) == 2 < length:
            values = values[0] + (values[1] - values[0]) * np.arange(length)
        unit, name = (str(attribute(item, word) or "").strip("[] ") for word in ("units", "name"))
        found.append(_Axis(key, tuple(values.tolist()), unit, name, item is None and key in file[group]))
    return found


def _stacked(path: Path, axes: list[_Axis]) -> int:
    """The axis that counts images: the only one in an angle, or the only one in no length, or else the first.

    Raises
    ------
    SourceError : that is a length, or the axes are there and nothing of them can be read
    """
    angles = [index for index, axis in enumerate(axes) if axis.angle_unit]
    others = [index for index, axis in enumerate(axes) if not is_length(axis.unit)]
    if len(angles) == 1 or len(others) == 1:
        return (angles if len(angles) == 1 else others)[0]
    if not others or others[0]:
        units = ", ".join(axis.unit or "?" for axis in axes)
        raise SourceError(
            f"{path.name}: a volume: its axes are in {units}; of projections the first, or the only one in no length, counts them"
        )
    if any(axis.lost for axis in axes) and not any(axis.values for axis in axes):
        raise SourceError(f"{path.name}: its axes cannot be read, and so not which of them counts images")
    return 0


def _axis_tilts(axis: _Axis, images: int) -> _Tilts:
    unit = axis.angle_unit
    if not unit:
        counts = axis.unit or axis.name
        return _Tilts(remark=f"{axis.key} counts {counts}, no angle" if counts else "")
    if len(axis.values) != images:
        return _Tilts(remark=f"{axis.key} holds {len(axis.values)} angles for {images} images")
    words = tuple(f"{axis.key}[{index}] {value!r} {unit}" for index, value in enumerate(axis.values))
    return _Tilts(tuple(map(math.degrees, axis.values)) if unit == "rad" else axis.values, words, unit)


def _stage_tilt(path: Path, file: Any) -> _Tilts:
    """NCEM writes the stage as x, y, z, alpha, gamma; alpha in degrees, without a unit."""
    stage = member(path, file, "stage")
    position = attribute(stage, "position")
    if not isinstance(position, list) or len(position) < 4 or "TEAM" not in str(attribute(stage, "type")):
        return _NO_TILTS
    return _Tilts((float(position[3]),), (f"stage position[3] {float(position[3])!r} deg",))


def _data_group(path: Path, file: Any) -> str:
    """Name of the one group of a file that holds data: one that says so, else one with axes, else any.

    Raises
    ------
    SourceError : there is none, or several
    """
    search = _Search(path)
    search.through(file)
    found = search.found.values()
    best = [name for rank, name in found if rank == max(rank for rank, _ in found)]
    if len(best) > 1:
        raise SourceError(f"{path.name}: {len(best)} data groups ({', '.join(best[:4])}); one is needed")
    if not best:
        behind = f"; {search.links[0]} is a link, and only data inside the file are read" if search.links else ""
        raise SourceError(f"{path.name}: an EMD file without images (no Velox image, no group with emd_group_type 1 or data{behind})")
    return best[0]


class _Search:
    """Goes through the groups of a file, each once, whatever names it has. Bounded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[int] = set()
        self._left = _MAX_OBJECTS
        self.found: dict[int, tuple[int, str]] = {}
        """By the place of its data: rank and name of a group with data."""
        self.links: list[str] = []

    def through(self, group: Any, name: str = "", depth: int = 0) -> None:
        import h5py

        for key in group if depth < _MAX_DEPTH else ():
            self._left -= 1
            if self._left < 0:
                raise SourceError(f"{self._path.name}: more than {_MAX_OBJECTS} groups and datasets")
            where = f"{name}/{key}".strip("/")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                self.links.append(where)
                continue
            item = known(self._path, group, key)
            if isinstance(item, h5py.Group) and _place(item) not in self._seen:
                self._seen.add(_place(item))
                self._note(item, where)
                self.through(item, where, depth + 1)

    def _note(self, group: Any, name: str) -> None:
        data = known(self._path, group, "data")
        if getattr(data, "ndim", 0) >= 2:
            rank = 2 if attribute(group, "emd_group_type") == 1 else int(known(self._path, group, "dim1") is not None)
            self.found[_place(data)] = max(self.found.get(_place(data), (-1, "")), (rank, name), key=lambda known: known[0])


def _place(item: Any) -> int:
    """Where in the file an object lies."""
    import h5py

    return int(h5py.h5o.get_info(item.id).addr)


def _times(path: Path, file: Any, group: str) -> list[float]:
    """Unix seconds of each image, where the file has them."""
    times = member(path, file, f"{group}/acquisition times")
    return [] if times is None else [float(value) for value in np.ravel(times[()])]
