"""The two kinds of `.emd`: Velox (Thermo Fisher) and Berkeley (NCEM), both HDF5.

Velox: `/Data/Image/<id>/Data` (y, x, frame) and one JSON text per frame in `Metadata`; angles in radians, as text; one id per detector.
Berkeley: groups with `emd_group_type` = 1. Single images take their tilt from `/stage` (x, y, z, alpha, gamma). STEMTomo appends to
`/data/raw/data` (tilt, repeat, y, x), with `tiltangles` beside it: a container that grows by one tilt at a time.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import MAX_IMAGES, Source, checked_probe, finished, image_in_range, pixel_size_nm, utc
from aet_stream.readers.hdf5 import attribute, member, numbers, opened

_SAME_TILT_DEG = 0.01
_MAX_GROUPS = 2000


def open_source(path: Path, size: int) -> Source:
    with opened(path) as file:
        if member(path, file, "Data/Image") is not None:
            return Velox(path, file)
        raw = member(path, file, "data/raw")
        if raw is not None and member(path, raw, "tiltangles") is not None:
            return StemTomo(path, file)
        return Berkeley(path, file)


# -- Velox ------------------------------------------------------------------------------------------------------------------------------


class Velox:
    """Every detector's images. Frames at one and the same tilt are frames of one image; otherwise each is an image of its own."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._images: list[tuple[str, int, int]] = []
        """(dataset, first frame, frames)"""
        self._said: list[dict[str, Any]] = []
        shapes = []
        group = member(path, file, "Data/Image")
        for key in group:
            item = member(path, group, f"{key}/Data")
            if item is None or item.dtype.kind in "Vc" or member(path, group, f"{key}/Metadata") is None:
                continue  # a live Fourier transform or the like, beside the detectors' images
            data = numbers(path, item)
            if data.ndim != 3 or data.shape[2] < 1:
                raise SourceError(f"{path.name}: {data.name} has shape {data.shape}, not (y, x, frames)")
            said = [_velox_json(path, group, key, frame) for frame in range(min(data.shape[2], MAX_IMAGES))]
            tilts = [_velox_tilt(text)[0] for text in said]
            known = [tilt for tilt in tilts if tilt is not None]
            one = not known or (len(known) == len(tilts) and max(known) - min(known) <= _SAME_TILT_DEG)
            self._images += [(data.name, 0, len(said))] if one else [(data.name, frame, 1) for frame in range(len(said))]
            self._said += said[:1] if one else said
            shapes.append((data.shape, data.dtype.str, len(said) if one else 1))
        if not shapes:
            raise SourceNotReady(f"{path.name}: no image is written yet")
        (height, width, _), dtype, _ = max(shapes, key=lambda s: s[0][0] * s[0][1])
        frames = max(frames for _, _, frames in shapes)
        self.probe = checked_probe(path, "velox", len(self._images), height, width, dtype, frames=frames)

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        name, first, count = self._images[image]
        with opened(self._path) as file:
            pixels = numbers(self._path, member(self._path, file, name))[:, :, first : first + count]
        return finished(self._path, np.moveaxis(pixels, 2, 0))

    def acquisition(self, image: int) -> Acquisition:
        said = self._said[image]
        tilt, raw = _velox_tilt(said)
        beta, _ = _velox_tilt(said, "BetaTilt")
        along_y, along_x = (
            (_number(_at(said, "BinaryResult", "PixelSize", edge)) or 0.0, str(_at(said, "BinaryResult", f"PixelUnit{axis}") or ""))
            for edge, axis in (("height", "Y"), ("width", "X"))
        )
        started = _number(_at(said, "Acquisition", "AcquisitionStartDatetime", "DateTime")) or 0.0
        rotation = _number(_at(said, "Scan", "ScanRotation"))
        return Acquisition(
            tilt_deg=tilt,
            tilt_raw=raw,
            tilt_unit="rad",
            tilt_beta_deg=beta,
            pixel_size_nm=pixel_size_nm(along_y, along_x),
            acquired_utc=utc(started),
            dwell_time_s=_number(_at(said, "Scan", "DwellTime")),
            frame_time_s=_number(_at(said, "Scan", "FrameTime")),
            scan_rotation_deg=() if rotation is None else (math.degrees(rotation),),
            detector=str(_at(said, "BinaryResult", "Detector") or ""),
            microscope=str(_at(said, "Instrument", "InstrumentModel") or ""),
            reader="velox",
        )


def _velox_json(path: Path, group: Any, key: str, frame: int) -> dict[str, Any]:
    metadata = numbers(path, member(path, group, f"{key}/Metadata"))
    if metadata.ndim != 2 or metadata.dtype != np.uint8 or metadata.shape[0] > 1 << 22:
        raise SourceError(f"{path.name}: metadata of shape {metadata.shape}")
    if 1 < metadata.shape[1] <= frame:
        raise SourceNotReady(f"{path.name}: {metadata.shape[1]} metadata are there; frame {frame} has none yet")
    content = metadata[:, min(frame, metadata.shape[1] - 1)].tobytes().split(b"\0", 1)[0]
    if not content.strip():
        raise SourceNotReady(f"{path.name}: the metadata of frame {frame} are not written yet")
    try:
        said = json.loads(content)
    except ValueError as error:
        raise SourceError(f"{path.name}: damaged metadata of frame {frame}: {error}") from error
    return said if isinstance(said, dict) else {}


def _velox_tilt(said: dict[str, Any], name: str = "AlphaTilt") -> tuple[float | None, str]:
    radians = _number(_at(said, "Stage", name))
    return (None, "") if radians is None else (math.degrees(radians), f"Stage.{name} {radians!r} rad")


def _at(tree: Any, *names: str) -> Any:
    """A value deep in the JSON; an empty dict stands for what is not there, whatever stands in its place."""
    for name in names:
        tree = tree.get(name, {}) if isinstance(tree, dict) else {}
    return tree


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


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
        self._sets = _table(path, file, "imageSetParameters")
        calibration = _table(path, file, "imageParameters")
        self._size = None
        if calibration is not None and calibration.shape[0] >= 5 and calibration.shape[1]:
            self._size = pixel_size_nm((float(calibration[4, 0]), "m"), (float(calibration[3, 0]), "m"))
        self._size = self._size or _axis_size(path, file, "data/raw", 3, 4)
        microscope, raw = member(path, file, "microscope"), member(path, file, "data/raw")
        self._microscope, self._dwell = str(attribute(microscope, "name") or ""), _number(attribute(raw, "dwell time"))
        # The compustage's scripting interface counts radians; the program writes its numbers down as "degrees".
        self._unit = "?" if "compu" in str(attribute(microscope, "stage type")).lower() else "deg"
        axis = member(path, file, "data/raw/dim2")
        self._rotations: tuple[float, ...] = ()
        if axis is not None and (attribute(raw, "rotSetting") or "rot" in str(attribute(axis, "name")).lower()):
            self._rotations = tuple(float(value) for value in np.ravel(axis[()])[: data.shape[1]])

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
            microscope=self._microscope,
            reader="stemtomo",
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


class Berkeley:
    """A single image, or a stack whose first axis is in degrees."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        found = [name for name in _emd_groups(path, file) if member(path, file, f"{name}/data") is not None]
        if not found:
            raise SourceError(f"{path.name}: an EMD file without images (no Velox image, no group with emd_group_type 1)")
        if len(found) > 1:
            raise SourceError(f"{path.name}: {len(found)} data groups ({', '.join(found[:4])}); one is needed")
        self._group = found[0]
        data = numbers(path, member(path, file, f"{self._group}/data"))
        if data.ndim not in (2, 3):
            raise SourceError(f"{path.name}: {data.name} has shape {data.shape}; (y, x) or (images, y, x) are projections")
        images, height, width = (1, *data.shape) if data.ndim == 2 else data.shape
        self.probe = checked_probe(path, "emd", images, height, width, data.dtype.str)
        self._size = _axis_size(path, file, self._group, data.ndim - 1, data.ndim)
        self._tilts = _axis_tilts(path, file, self._group, images) if data.ndim == 3 else _stage_tilt(path, file)
        times = member(path, file, f"{self._group}/acquisition times")
        self._times = [] if times is None else [float(value) for value in np.ravel(times[()])]
        stage = member(path, file, "microscope")
        self._microscope, self._dwell = str(attribute(stage, "name") or ""), _number(attribute(stage, "dwell time"))

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
            microscope=self._microscope,
            reader="emd",
        )


def _emd_groups(path: Path, group: Any, name: str = "", depth: int = 0, left: list[int] | None = None) -> list[str]:
    """Names of the groups that hold data; bounded, because a damaged file may contain itself."""
    import h5py

    left = [_MAX_GROUPS] if left is None else left
    found = []
    for key in group if depth < 6 else ():
        left[0] -= 1
        if left[0] < 0:
            raise SourceError(f"{path.name}: more than {_MAX_GROUPS} groups and datasets")
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.SoftLink):
            continue  # tomviz gives its data a second name by one; what is in the file is found by its first
        if not isinstance(link, h5py.HardLink):
            raise SourceError(f"{path.name}: {name}/{key} is a link; only data inside the file are read")
        item = group[key]
        if isinstance(item, h5py.Group):
            where = f"{name}/{key}".strip("/")
            found += [where] if attribute(item, "emd_group_type") == 1 else []
            found += _emd_groups(path, item, where, depth + 1, left)
    return found


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
