"""Gatan DigitalMicrograph DM3 and DM4: single images and stacks (the stack axis comes first).

Written from public descriptions of the tag tree: a root header, then groups of named tags; integers of the tree are big-endian, values
little-endian. Bounded: depth, number of tags and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import datetime
import io
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, need, pixel_size_nm

_MAX_DEPTH = 32
_MAX_TAGS = 200_000
_MAX_TEXT = 1 << 16
_SIMPLE = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "?", 9: "b", 10: "B", 11: "q", 12: "Q"}
_STRUCT, _STRING, _ARRAY = 15, 18, 20
#: DM's number for a pixel type -> NumPy's. Complex, RGB and packed ones are no projections.
_PIXELS = {1: "<i2", 2: "<f4", 6: "|u1", 7: "<i4", 9: "|i1", 10: "<u2", 11: "<u4", 12: "<f8"}
_FILETIME_EPOCH = datetime.datetime(1601, 1, 1, tzinfo=datetime.UTC)

Tags = dict[str, Any]


class _Pixels:
    """Where an array lies in the file."""

    def __init__(self, offset: int, count: int, code: str) -> None:
        self.offset, self.count, self.code = offset, count, code


class _Tree:
    """The tag tree; groups without names are numbered."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self._size = path, file, size
        head = self._read(4)
        self.version = struct.unpack(">I", head)[0]
        if self.version not in (3, 4):
            raise SourceError(f"{path.name}: not a DM3 or DM4 file")
        self._wide = self.version == 4
        root_bytes = self._number()
        little = struct.unpack(">I", self._read(4))[0]
        need(path, size, root_bytes + (24 if self._wide else 16), "the tag tree")
        if little != 1:
            raise SourceError(f"{path.name}: big-endian DigitalMicrograph files are not supported")
        self._tags = 0

    def _read(self, count: int) -> bytes:
        content = self._file.read(count)
        need(self.path, len(content), count, "a tag")
        return content

    def _number(self) -> int:
        """A count or length: 4 bytes in DM3, 8 in DM4."""
        return int(struct.unpack(">Q" if self._wide else ">I", self._read(8 if self._wide else 4))[0])

    def group(self, depth: int = 0) -> Tags:
        if depth > _MAX_DEPTH:
            raise SourceError(f"{self.path.name}: tags nested deeper than {_MAX_DEPTH}")
        self._read(2)  # sorted, open
        tags: Tags = {}
        for index in range(self._bounded(self._number())):
            kind = self._read(1)[0]
            name = self._read(struct.unpack(">H", self._read(2))[0]).decode("latin-1") or str(index)
            if self._wide:
                self._read(8)  # length of what follows
            if kind == 20:
                tags[name] = self.group(depth + 1)
            elif kind == 21:
                tags[name] = self._value()
            else:
                raise SourceError(f"{self.path.name}: a tag of kind {kind}")
        return tags

    def _bounded(self, count: int) -> int:
        self._tags += count
        if self._tags > _MAX_TAGS:
            raise SourceError(f"{self.path.name}: more than {_MAX_TAGS} tags")
        return count

    def _value(self) -> Any:
        if self._read(4) != b"%%%%":
            raise SourceError(f"{self.path.name}: a damaged tag")
        words = self._number()
        if not 1 <= words <= 1024:
            raise SourceError(f"{self.path.name}: a tag described by {words} words")
        info = [self._number() for _ in range(words)]
        if info[0] in _SIMPLE and words == 1:
            return self._simple(info[0])
        if info[0] == _STRUCT:
            return [self._simple(kind) for kind in info[4::2]]
        if info[0] == _STRING and words == 2:
            return self._skip_or_text(info[1], "H")
        if info[0] == _ARRAY and info[1] in _SIMPLE:
            return self._skip_or_text(info[2], _SIMPLE[info[1]])
        if info[0] == _ARRAY and info[1] == _STRUCT:
            each = sum(struct.calcsize(f"<{_SIMPLE[kind]}") for kind in info[5:-1:2])
            return self._array(info[-1], each, "")
        raise SourceError(f"{self.path.name}: a tag of type {info[0]}")

    def _simple(self, kind: int) -> Any:
        code = _SIMPLE.get(kind)
        if code is None:
            raise SourceError(f"{self.path.name}: a value of type {kind}")
        return struct.unpack(f"<{code}", self._read(struct.calcsize(f"<{code}")))[0]

    def _skip_or_text(self, count: int, code: str) -> Any:
        """Short arrays of 16-bit numbers are text; everything else is remembered by its place."""
        if code != "H" or count * 2 > _MAX_TEXT:
            return self._array(count, struct.calcsize(f"<{code}"), code)
        offset = self._file.tell()
        text = self._read(count * 2).decode("utf-16-le", "replace")
        return _Text(text, _Pixels(offset, count, code))

    def _array(self, count: int, each: int, code: str) -> _Pixels:
        found = _Pixels(self._file.tell(), count, code)
        need(self.path, self._size, found.offset + count * each, "an array of tags")
        self._file.seek(count * each, 1)
        return found


class _Text(str):
    """Text that may as well be a short array of pixels."""

    pixels: _Pixels

    def __new__(cls, text: str, pixels: _Pixels) -> _Text:
        made = super().__new__(cls, text)
        made.pixels = pixels
        return made


class _Image:
    """The one image of a file that is no thumbnail."""

    def __init__(self, path: Path, tree: Tags) -> None:
        images = [entry for entry in _children(tree, "ImageList") if isinstance(entry.get("ImageData"), dict)]
        if not images:
            raise SourceError(f"{path.name}: holds no image")
        thumbnails = {entry.get("ImageIndex") for entry in _children(tree, "Thumbnails")}
        real = [image for index, image in enumerate(images) if index not in thumbnails] or images
        fitting = [image for image in real if image["ImageData"].get("DataType") in _PIXELS]
        if len(fitting) > 1:
            raise SourceError(f"{path.name}: holds {len(fitting)} images and says of none that it is meant: save each as a file of its own")
        self.tags: Tags = (fitting or real)[0]
        data = self.tags["ImageData"]
        self.dimensions = [int(value) for value in data.get("Dimensions", {}).values()]
        kind = data.get("DataType")
        if kind not in _PIXELS:
            raise SourceError(f"{path.name}: DigitalMicrograph pixels of type {kind} are no projection")
        self.dtype = np.dtype(_PIXELS[kind])
        place = data.get("Data")
        self.pixels = place.pixels if isinstance(place, _Text) else place
        if not isinstance(self.pixels, _Pixels) or len(self.dimensions) not in (2, 3):
            raise SourceError(f"{path.name}: an image of {len(self.dimensions)} dimensions is no projection")
        stored = self.pixels.count * struct.calcsize(f"<{self.pixels.code}") if self.pixels.code else 0
        if stored < self.images * self.height * self.width * self.dtype.itemsize:
            raise SourceError(f"{path.name}: {stored} bytes of pixels for {self.dimensions} of {self.dtype}")

    @property
    def width(self) -> int:
        return self.dimensions[0]

    @property
    def height(self) -> int:
        return self.dimensions[1]

    @property
    def images(self) -> int:
        return self.dimensions[2] if len(self.dimensions) == 3 else 1

    def axis(self, index: int) -> tuple[float, float, str]:
        """(scale, origin, unit) of one axis, x first."""
        axes = _children(self.tags["ImageData"].get("Calibrations", {}), "Dimension")
        if index >= len(axes):
            return 0.0, 0.0, ""
        axis = axes[index]
        return float(axis.get("Scale", 0)), float(axis.get("Origin", 0)), str(axis.get("Units", "")).strip("\0")

    def find(self, *names: str) -> Any:
        value: Any = self.tags.get("ImageTags", {})
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def _children(tags: Tags, name: str) -> list[Tags]:
    group = tags.get(name, {})
    return [entry for entry in group.values() if isinstance(entry, dict)] if isinstance(group, dict) else []


class Dm:
    """The largest image or stack of a file. Its tags stand behind the pixels too, so a file that parses is whole."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with path.open("rb") as file:
            self._image = image = _Image(path, _Tree(path, file, size).group())
        self.probe = checked_probe(path, "dm", image.images, image.height, image.width, image.dtype.str, sealed=True)

    def frames(self, image: int) -> Array:
        found = self._image
        image_in_range(self._path, image, found.images)
        count = found.height * found.width
        with self._path.open("rb") as file:
            file.seek(found.pixels.offset + image * count * found.dtype.itemsize)
            content = file.read(count * found.dtype.itemsize)
        need(self._path, len(content), count * found.dtype.itemsize, "the image")
        return finished(self._path, np.frombuffer(content, found.dtype).reshape(found.height, found.width))

    def acquisition(self, image: int) -> Acquisition:
        return _acquisition(self._image, image)


def tags_of(path: Path, content: bytes) -> Tags:
    """The tag tree in a TIFF that DigitalMicrograph wrote."""
    return _Tree(path, io.BytesIO(content), len(content)).group()


def _acquisition(image: _Image, index: int) -> Acquisition:
    tilt, said = _tilt(image, index)
    (scale_x, _, unit_x), (scale_y, _, unit_y) = image.axis(0), image.axis(1)
    dwell_us = number_of(image.find("DigiScan", "Sample Time"))
    return Acquisition(
        tilt_deg=tilt,
        tilt_raw=said,
        tilt_beta_deg=number_of(image.find("Microscope Info", "Stage Position", "Stage Beta")),
        pixel_size_nm=pixel_size_nm((scale_y, unit_y), (scale_x, unit_x)),
        acquired_utc=utc_of(image.find("DataBar", "Acquisition Time (OS)")) if image.images == 1 else "",  # a stack's is its last image's
        dwell_time_s=None if dwell_us is None else dwell_us * 1e-6,
        detector=str(image.find("DataBar", "Signal Name") or image.find("DataBar", "Device Name") or ""),
        microscope=str(image.find("Microscope Info", "Microscope") or ""),
        reader="dm",
    )


def _tilt(image: _Image, index: int) -> tuple[float | None, str]:
    """The stack axis if it is calibrated in degrees; for a single image the stage's alpha. A stack's stage tag is only its last one."""
    if image.images > 1:
        scale, origin, unit = image.axis(2)
        if unit.lower().rstrip(".") in ("deg", "degree", "degrees", "°") and scale:
            # DigitalMicrograph gives the origin in channels: value = (index - origin) * scale
            return (index - origin) * scale, f"stack axis: ({index} - {origin:g}) * {scale:g} {unit}"
        return None, ""
    alpha = image.find("Microscope Info", "Stage Position", "Stage Alpha")
    return number_of(alpha), "" if number_of(alpha) is None else f"Stage Alpha {alpha!r} deg"


def number_of(value: Any) -> float | None:
    """A tag's number, whole ones too; None for text, groups and what is not there."""
    return float(value) if isinstance(value, (int, float)) else None


def utc_of(filetime: Any) -> str:
    """Windows FILETIME (100 ns since 1601, UTC) as ISO 8601."""
    if not isinstance(filetime, (int, float)) or not 0 < filetime < 1 << 62:
        return ""
    try:
        return (_FILETIME_EPOCH + datetime.timedelta(microseconds=int(filetime) // 10)).isoformat(timespec="milliseconds")
    except OverflowError:
        return ""


open_source = Dm
