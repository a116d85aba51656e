"""Velox (Thermo Fisher) `.emd`, HDF5: `/Data/Image/<id>/Data` (y, x, frame), and one JSON text per frame in `Metadata`; angles in radians.

One id per signal: a detector, a segment of one, or an image that Velox made of others (an element map, a DPC image, a sum of frames).
Which is which stands in `/Operations` (until Velox 3.10): each operation names the dataset it writes, input operations are detectors. Later
versions have only the displays' labels and groups. No published description; learned from files, and from what its makers have said
(hyperspy pull request 1662: element maps name the detector SuperX; an empty detector's name means the only one in `Detectors`).
"""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import MAX_IMAGES, checked_probe, finished, image_in_range, no_space, pixel_size_nm, utc
from aet_stream.readers.hdf5 import known, member, numbers, opened
from aet_stream.tilts import EQUAL_TILT_DEG

_MAX_JSON_BYTES = 1 << 22
_MAX_OBJECTS = 2000
"""Operations and displays that are looked at; a file has dozens."""
_CAMERAS = re.compile(r"ceta|falcon|eagle|flucam|oneview|empad", re.IGNORECASE)
_X_RAYS = re.compile(r"(super|dual|ultra)-?x|x?ed[sx]", re.IGNORECASE)
_COMPUTED_LABELS = re.compile(r"[id]?dpc\b|fft\b|icom\b", re.IGNORECASE)
_INPUT, _SUM, _SUM_LABEL = "InputOperation", "IntegrationOperation", re.compile(r"dcfi\b", re.IGNORECASE)
_DIFFRACTION = "1"
"""Optics.ProjectorMode of the microscope's scripting interface; 2 is imaging. Scanned images are taken in diffraction, too."""


class _Frame(NamedTuple):
    said: dict[str, Any]
    remark: str


class _Made(NamedTuple):
    """What the file says of how a dataset came about."""

    operation: str = ""
    """Kind of the operation that wrote it."""
    detector: str = ""
    segments: str = ""
    label: str = ""
    group: str = ""
    """Of the display it is shown in: Stem, Tem, EDS."""


class _Signal(NamedTuple):
    key: str
    name: str
    shape: tuple[int, int, int]
    dtype: str
    frames: list[_Frame]
    made: _Made

    @property
    def detector(self) -> str:
        said = self.frames[0].said
        name = str(at(said, "BinaryResult", "Detector") or "")
        others = [str(at(entry, "DetectorName") or "") for entry in _values(at(said, "Detectors"))]
        return name or self.made.detector or (others[0] if len(others) == 1 else "")

    @property
    def kind(self) -> str:
        """ScanningDetector, ImagingDetector or AnalyticalDetector; empty where the file does not say."""
        entries = _values(at(self.frames[0].said, "Detectors"))
        return next((str(at(entry, "DetectorType")) for entry in entries if at(entry, "DetectorName") == self.detector), "")

    @property
    def segment(self) -> str:
        return self.made.segments or (self.made.label if self.made.label.lower() != self.detector.lower() else "")


class Velox:
    """Every signal's images. Frames at one and the same tilt are frames of one image; otherwise each is an image of its own."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._images: list[tuple[_Signal, int, int, str]] = []
        """(signal, first frame, frames, why it is no projection)"""
        signals, self._remark = _signals(path, file)
        for signal in signals:
            tilts = [_tilt(frame.said)[0] for frame in signal.frames]
            known_tilts = [tilt for tilt in tilts if tilt is not None]
            one = not known_tilts or (len(known_tilts) == len(tilts) and max(known_tilts) - min(known_tilts) <= EQUAL_TILT_DEG)
            why = _no_projection(signal, signals)
            self._images += [(signal, 0, len(tilts), why)] if one else [(signal, frame, 1, why) for frame in range(len(tilts))]
        largest = max(signals, key=lambda s: s.shape[0] * s.shape[1])
        frames = max(count for _, _, count, _ in self._images)
        self.probe = checked_probe(path, "velox", len(self._images), *largest.shape[:2], largest.dtype, frames=frames)

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        signal, first, count, _ = self._images[image]
        with opened(self._path) as file:
            pixels = numbers(self._path, member(self._path, file, signal.name))[:, :, first : first + count]
        return finished(self._path, np.moveaxis(pixels, 2, 0))

    def acquisition(self, image: int) -> Acquisition:
        signal, first, _, why = self._images[image]
        said, remark = signal.frames[first]
        tilt, raw = _tilt(said)
        started = number(at(said, "Acquisition", "AcquisitionStartDatetime", "DateTime")) or 0.0
        rotation = number(at(said, "Scan", "ScanRotation"))
        return Acquisition(
            tilt_deg=tilt,
            tilt_raw=raw,
            tilt_unit="rad",
            tilt_beta_deg=_tilt(said, "BetaTilt")[0],
            pixel_size_nm=pixel_size_nm(*_steps(said)),
            acquired_utc=utc(started),
            dwell_time_s=number(at(said, "Scan", "DwellTime")),
            frame_time_s=number(at(said, "Scan", "FrameTime")),
            scan_rotation_deg=() if rotation is None else (math.degrees(rotation),),
            detector=signal.detector,
            dataset=signal.key,
            segment=signal.segment,
            no_projection=why,
            microscope=str(at(said, "Instrument", "InstrumentModel") or ""),
            reader="velox",
            remark="; ".join(filter(None, (remark, self._remark))),
        )


# -- what there is ------------------------------------------------------------------------------------------------------------------------


def _signals(path: Path, file: Any) -> tuple[list[_Signal], str]:
    """Every dataset that is an image, and which could not be read, in words.

    Raises
    ------
    SourceNotReady : none is there yet, or one is not written to its end
    SourceError : of those there are none can be read
    """
    group, made = member(path, file, "Data/Image"), _made(path, file)
    found: list[_Signal] = []
    refused: list[SourceError] = []
    for key in group:
        try:
            signal = _signal(path, group, key, made.get(key, _Made()))
        except SourceError as error:
            refused.append(error)
            continue
        found += [] if signal is None else [signal]
    if not found and refused:
        raise refused[0]
    if not found:
        raise SourceNotReady(f"{path.name}: no image is written yet")
    return found, "; ".join(str(error) for error in refused)


def _signal(path: Path, group: Any, key: str, made: _Made) -> _Signal | None:
    item = member(path, group, f"{key}/Data")
    if item is None or getattr(item, "dtype", np.dtype("V1")).kind in "Vc" or group[key].get("Metadata", getlink=True) is None:
        return None  # a live Fourier transform or the like, beside the detectors' images
    data = numbers(path, item)
    if data.ndim != 3 or data.shape[2] < 1:
        raise SourceError(f"{path.name}: {data.name} has shape {data.shape}, not (y, x, frames)")
    frames = [_frame(path, group, key, frame) for frame in range(min(data.shape[2], MAX_IMAGES))]
    return _Signal(key, data.name, data.shape, data.dtype.str, frames, made)


def _frame(path: Path, group: Any, key: str, frame: int) -> _Frame:
    """What is said of one frame; what cannot be understood is said to be so.

    Raises
    ------
    SourceNotReady : it is not written yet
    """
    item = known(path, group, f"{key}/Metadata")
    if getattr(item, "ndim", 0) not in (1, 2) or item.dtype != np.uint8 or not 0 < item.shape[0] <= _MAX_JSON_BYTES:
        return _Frame({}, "its metadata are no text, and not known")
    try:
        metadata = numbers(path, item)
    except SourceError as error:
        return _Frame({}, f"its metadata are not known: {error}")
    texts = 1 if metadata.ndim == 1 else metadata.shape[1]
    if 1 < texts <= frame or not texts:
        raise SourceNotReady(f"{path.name}: {texts} metadata are there; frame {frame} has none yet")
    content = (metadata[()] if metadata.ndim == 1 else metadata[:, min(frame, texts - 1)]).tobytes().split(b"\0", 1)[0]
    if not content.strip():
        raise SourceNotReady(f"{path.name}: the metadata of frame {frame} are not written yet")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        return _Frame({}, f"damaged metadata of frame {frame}, which are not known: {str(error)[:100]}")
    return _Frame(said, "") if isinstance(said, dict) else _Frame({}, f"the metadata of frame {frame} are no JSON object, and not known")


def _made(path: Path, file: Any) -> dict[str, _Made]:
    """Of each dataset: which operation wrote it, and how it is shown."""
    made: dict[str, _Made] = {}
    for kind in sorted(_keys(known(path, file, "Operations")), key=lambda name: name.endswith(_INPUT)):  # a detector has the last word
        for said in _texts(path, file, f"Operations/{kind}"):
            detector = _text(at(said, "detector")) or _text(at(said, "cameraName"))
            made[_key(at(said, "dataPath"))] = _Made(kind, detector, _text(at(said, "detectorInfo", "segments")))
    groups = {_text(at(said, "display")): _text(at(said, "groupType")) for said in _texts(path, file, "SharedProperties/DisplayGroupItem")}
    for place in ("Presentation/Displays/ImageDisplay", "Displays/ImageDisplay"):
        for name in _keys(known(path, file, place)):
            said = _json(path, file, f"{place}/{name}")
            shown = _json(path, file, _text(at(said, "data"))) if at(said, "data") else said
            key, label = _key(at(shown, "dataPath")), at(said, "display", "label") or at(said, "id") or at(said, "title")
            made[key] = made.get(key, _Made())._replace(label=urllib.parse.unquote(_text(label)), group=groups.get(f"/{place}/{name}", ""))
    return made


def _no_projection(signal: _Signal, signals: list[_Signal]) -> str:
    """Why an image is none of a detector, or not of the specimen; empty: nothing says so."""
    if signal.kind == "AnalyticalDetector" or signal.made.group.upper() == "EDS" or _X_RAYS.match(signal.detector):
        return f"an element map computed from spectra ({signal.made.label or signal.detector}), not an image that a detector acquired"
    by = "" if signal.made.operation.endswith(_INPUT) else _computed_by(signal, [other for other in signals if other is not signal])
    if by:
        return f"computed by Velox ({by}), not acquired by a detector"
    said = signal.frames[0].said
    camera = signal.kind == "ImagingDetector" or (not signal.kind and _CAMERAS.search(signal.detector))
    mode = str(at(said, "Optics", "ProjectorMode")) == _DIFFRACTION or _text(at(said, "Optics", "TemOperatingSubMode")) == "Diffraction"
    if camera and mode:
        return f"a diffraction pattern: the camera {signal.detector} looked at the diffraction plane (ProjectorMode, TemOperatingSubMode)"
    return no_space(*(unit for _, unit in _steps(said)))


def _computed_by(signal: _Signal, others: list[_Signal]) -> str:
    """What a signal was computed by, in words; empty: nothing says that it was. A sum of frames stands for them where they are not kept."""
    made, same = signal.made, [other for other in others if other.detector == signal.detector]
    a_sum = made.operation == _SUM or _SUM_LABEL.match(made.label)
    if a_sum and not same and not any(other.detector and other.detector in made.label for other in others):
        return ""
    if made.operation or a_sum or _COMPUTED_LABELS.match(made.label):
        return made.operation or made.label
    real = np.dtype(signal.dtype).kind == "f" and any(np.dtype(other.dtype).kind != "f" for other in same)
    return f"pixels of type {np.dtype(signal.dtype)} beside the counts of {signal.detector or 'the same detector'}" if real else ""


# -- JSON ---------------------------------------------------------------------------------------------------------------------------------


def _steps(said: dict[str, Any]) -> tuple[tuple[float, str], tuple[float, str]]:
    """(pixel size, unit) along y and x."""
    along_y, along_x = (
        (number(at(said, "BinaryResult", "PixelSize", edge)) or 0.0, _text(at(said, "BinaryResult", f"PixelUnit{axis}")))
        for edge, axis in (("height", "Y"), ("width", "X"))
    )
    return along_y, along_x


def _tilt(said: dict[str, Any], name: str = "AlphaTilt") -> tuple[float | None, str]:
    radians = number(at(said, "Stage", name))
    return (None, "") if radians is None else (math.degrees(radians), f"Stage.{name} {radians!r} rad")


def at(tree: Any, *names: str) -> Any:
    """A value deep in the JSON; an empty dict stands for what is not there, whatever stands in its place."""
    for name in names:
        tree = tree.get(name, {}) if isinstance(tree, dict) else {}
    return tree


def number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _values(tree: Any) -> list[Any]:
    return list(tree.values()) if isinstance(tree, dict) else []


def _key(data_path: Any) -> str:
    """The last part of `/Data/Image/<id>`."""
    return _text(data_path).rsplit("/", 1)[-1]


def _keys(group: Any) -> list[str]:
    import h5py

    return list(group)[:_MAX_OBJECTS] if isinstance(group, h5py.Group) else []


def _texts(path: Path, file: Any, place: str) -> Iterator[Any]:
    """The JSON texts of a group."""
    for name in _keys(known(path, file, place)):
        yield _json(path, file, f"{place}/{name}")


def _json(path: Path, file: Any, place: str) -> Any:
    """A JSON text of one element; an empty dict where there is none that can be understood."""
    item = known(path, file, place)
    try:
        content = item[0] if getattr(item, "shape", ()) == (1,) else b""
        return json.loads(content) if 0 < len(content) <= _MAX_JSON_BYTES else {}
    except (ValueError, TypeError, OSError, RuntimeError):
        return {}
