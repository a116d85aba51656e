"""Gatan DigitalMicrograph DM3 and DM4: single images and stacks (the stack axis comes first).

Written from public descriptions of the tag tree: a root header, then groups of named tags; integers of the tree are big-endian, values
little-endian. Bounded: depth, number of tags and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import datetime
import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, need, no_space, pixel_size_nm

_MAX_DEPTH = 32
_MAX_TAGS, _MAX_TAGS_IN_ALL = 50_000, 400_000
_UPPERMOST = 3
"""Depth down to which each group may have as many tags: ImageList, an image of it, its ImageTags, a group of those."""
_GROUP, _TAG = 20, 21
_ZEROS_BYTES = 32
_MAX_TEXT = 1 << 16
_SIMPLE = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "?", 9: "b", 10: "B", 11: "q", 12: "Q"}
_STRUCT, _STRING, _ARRAY = 15, 18, 20
#: DM's number for a pixel type -> NumPy's. Complex, RGB and packed ones are no projections.
_PIXELS = {1: "<i2", 2: "<f4", 6: "|u1", 7: "<i4", 9: "|i1", 10: "<u2", 11: "<u4", 12: "<f8"}
_STAGE_ALPHA = ("Microscope Info", "Stage Position", "Stage Alpha")
_SAME_DEG = 0.5
"""Nominal and read-back tilts differ by less."""
_FILETIME_EPOCH = datetime.datetime(1601, 1, 1, tzinfo=datetime.UTC)

Tags = dict[str, Any]


class Pixels:
    """Where an array lies in the file."""

    def __init__(self, offset: int, count: int, code: str) -> None:
        self.offset, self.count, self.code = offset, count, code


class _Lost(Exception):
    """Where the next tag stands is not known: this one is of a kind nobody has described, or damaged."""


class _Tree:
    """The tag tree; groups without names are numbered.

    A tag that cannot be understood is left out and remarked upon: DM4 says how long each entry is; in DM3 all that follows is lost with it.
    The tree itself says where it ends. The length in the header, which programs count in different ways, says only whether an end that
    comes too early is that of a file which is still being written.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self._size = path, file, size
        head = self._read(4)
        self.version = struct.unpack(">I", head)[0]
        if self.version not in (3, 4):
            raise SourceError(f"{path.name}: not a DM3 or DM4 file")
        self._wide = self.version == 4
        self._wanted = self._number() + (24 if self._wide else 16)
        little = struct.unpack(">I", self._read(4))[0]
        if little != 1:
            raise SourceError(f"{path.name}: big-endian DigitalMicrograph files are not supported")
        self._tags, self._left = 0, _MAX_TAGS_IN_ALL
        self._skipped: list[str] = []
        self.broken_off = ""
        """Why the tree could not be followed to its end."""
        self.unwritten = False
        """There are zeros, or nothing, where a tag should go on."""

    def read(self) -> Tags:
        """The whole tree, or as much of it as can be understood.

        Raises
        ------
        SourceNotReady : it is not written to its end yet
        """
        tags: Tags = {}
        try:
            self._group(tags, 0)
        except SourceNotReady as error:
            need(self.path, self._size, self._wanted, "the tag tree")
            self.broken_off, self.unwritten = str(error), True
        except _Lost as error:
            need(self.path, self._size, self._wanted, "the tag tree")
            self.broken_off = f"{self.path.name}: {error}"
        return tags

    @property
    def remark(self) -> str:
        what = [f"{self.broken_off}; what follows is not known"] if self.broken_off else []
        if self._skipped:
            what.append(f"{len(self._skipped)} tag(s) cannot be understood, and are not known: {', '.join(self._skipped[:3])}")
        return "; ".join(what)

    def _read(self, count: int) -> bytes:
        content = self._file.read(count)
        need(self.path, len(content), count, "a tag")
        return content

    def _number(self) -> int:
        """A count or length: 4 bytes in DM3, 8 in DM4."""
        return int(struct.unpack(">Q" if self._wide else ">I", self._read(8 if self._wide else 4))[0])

    def _group(self, tags: Tags, depth: int) -> None:
        """Fill `tags`: what was understood of a group stays, even when the rest is lost."""
        if depth > _MAX_DEPTH:
            raise _Lost(f"tags nested deeper than {_MAX_DEPTH}")
        self._read(2)  # sorted, open
        for index in range(self._number()):
            self._entry(tags, index, depth)

    def _entry(self, tags: Tags, index: int, depth: int) -> None:
        kind = self._read(1)[0]
        name = self._read(struct.unpack(">H", self._read(2))[0]).decode("latin-1")
        length = self._number() if self._wide else 0
        if not (kind or name or length):
            raise SourceNotReady(f"{self.path.name}: zeros where a tag should be")
        end = self._file.tell() + length
        try:
            self._count()
            self._understand(kind, name or str(index), tags, depth)
        except (_Lost, SourceNotReady) as error:
            if not length or end > self._size or self._left < 0 or self._tags > _MAX_TAGS_IN_ALL:
                raise  # nothing says where to go on, or the group that this tag is in has too many
            self.unwritten |= isinstance(error, SourceNotReady)
            self._skipped.append(f"{name or index} ({error})")
            self._file.seek(end)

    def _count(self) -> None:
        self._tags += 1
        self._left -= 1
        if self._left < 0 or self._tags > _MAX_TAGS_IN_ALL:
            raise _Lost(f"more than {_MAX_TAGS if self._left < 0 else _MAX_TAGS_IN_ALL} tags")

    def _understand(self, kind: int, name: str, tags: Tags, depth: int) -> None:
        if kind == _GROUP:
            tags[name] = inner = Tags()
            left, own = self._left, depth <= _UPPERMOST
            self._left = _MAX_TAGS if own and self._wide else left
            try:
                self._group(inner, depth + 1)
            finally:
                self._left = left if own else self._left
        elif kind == _TAG:
            tags[name] = self._value()
        else:
            raise _Lost(f"a tag of kind {kind}")

    def _value(self) -> Any:
        if self._read(4) != b"%%%%":
            raise _Lost("a damaged tag")
        words = self._number()
        if not 1 <= words <= 1024:
            raise _Lost(f"a tag described by {words} words")
        info = [self._number() for _ in range(words)]
        if info[0] in _SIMPLE and words == 1:
            return self._simple(info[0])
        if info[0] == _STRUCT:
            return [self._simple(kind) for kind in info[4::2]]
        if info[0] == _STRING and words == 2:
            return self._skip_or_text(info[1], "H")
        if info[0] == _ARRAY and words > 2 and info[1] in _SIMPLE:
            return self._skip_or_text(info[2], _SIMPLE[info[1]])
        if info[0] == _ARRAY and words > 2 and info[1] == _STRUCT and all(kind in _SIMPLE for kind in info[5:-1:2]):
            each = sum(struct.calcsize(f"<{_SIMPLE[kind]}") for kind in info[5:-1:2])
            return self._array(info[-1], each, "")
        raise _Lost(f"a tag of type {info[0]}")

    def _simple(self, kind: int) -> Any:
        code = _SIMPLE.get(kind)
        if code is None:
            raise _Lost(f"a value of type {kind}")
        return struct.unpack(f"<{code}", self._read(struct.calcsize(f"<{code}")))[0]

    def _skip_or_text(self, count: int, code: str) -> Any:
        """Short arrays of 16-bit numbers are text; everything else is remembered by its place."""
        if code != "H" or count * 2 > _MAX_TEXT:
            return self._array(count, struct.calcsize(f"<{code}"), code)
        offset = self._file.tell()
        text = self._read(count * 2).decode("utf-16-le", "replace")
        return _Text(text, Pixels(offset, count, code))

    def _array(self, count: int, each: int, code: str) -> Pixels:
        found = Pixels(self._file.tell(), count, code)
        need(self.path, self._size, found.offset + count * each, "an array of tags")
        self._file.seek(count * each, 1)
        return found


class _Text(str):
    """Text that may as well be a short array of pixels."""

    pixels: Pixels

    def __new__(cls, text: str, pixels: Pixels) -> _Text:
        made = super().__new__(cls, text)
        made.pixels = pixels
        return made


class Image:
    """The one image of a file that is no thumbnail."""

    def __init__(self, path: Path, tree: Tags) -> None:
        entries = dict(enumerate(_children(tree, "ImageList")))
        images = {index: entry for index, entry in entries.items() if isinstance(entry.get("ImageData"), dict)}
        if not images:
            raise SourceError(f"{path.name}: holds no image")
        thumbnails = {entry.get("ImageIndex") for entry in _children(tree, "Thumbnails")}
        real = {index: image for index, image in images.items() if index not in thumbnails} or images
        fitting = {index: image for index, image in real.items() if image["ImageData"].get("DataType") in _PIXELS} or real
        shown = {entry.get("ImageRef") for entry in _children(tree, "ImageSourceList")}
        meant = list(fitting.values()) if len(fitting) == 1 else [image for index, image in fitting.items() if index in shown]
        if len(meant) != 1:
            raise SourceError(f"{path.name}: holds {len(fitting)} images and says of none that it is meant: save each as a file of its own")
        self.tags: Tags = meant[0]
        data = self.tags["ImageData"]
        self.dimensions = [int(value) for value in data.get("Dimensions", {}).values()]
        kind = data.get("DataType")
        if kind not in _PIXELS:
            raise SourceError(f"{path.name}: DigitalMicrograph pixels of type {kind} are no projection")
        self.dtype = np.dtype(_PIXELS[kind])
        place = data.get("Data")
        self.pixels = place.pixels if isinstance(place, _Text) else place
        if not isinstance(self.pixels, Pixels) or len(self.dimensions) not in (2, 3):
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
        scale, origin = (number_of(axes[index].get(name)) or 0.0 for name in ("Scale", "Origin"))
        return scale, origin, str(axes[index].get("Units", "")).strip("\0")

    def find(self, *names: str) -> Any:
        value: Any = self.tags.get("ImageTags", {})
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def _children(tags: Tags, name: str) -> list[Tags]:
    group = tags.get(name, {})
    return [entry for entry in group.values() if isinstance(entry, dict)] if isinstance(group, dict) else []


class Dm:
    """The image or stack of a file. Its tags stand behind the pixels too, so a file that parses to its end is whole."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with path.open("rb") as file:
            tree = _Tree(path, file, size)
            tags = tree.read()
        try:
            self._image = image = Image(path, tags)
        except SourceError as error:
            kind = SourceNotReady if tree.unwritten or _ends_in_zeros(path, size) else SourceError
            raise kind(f"{error} ({tree.remark})" if tree.remark else str(error)) from error
        self._remark, whole = tree.remark, not (tree.broken_off or tree.unwritten)
        self.probe = checked_probe(path, "dm", image.images, image.height, image.width, image.dtype.str, sealed=whole)

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
        return acquisition_of(self._image, image, self._remark)


def _ends_in_zeros(path: Path, size: int) -> bool:
    """More of them than programs put behind the tree: a file that was laid out and is not written to its end."""
    with path.open("rb") as file:
        file.seek(max(0, size - _ZEROS_BYTES))
        return not any(file.read())


def tags_of(path: Path, content: bytes) -> tuple[Tags, str]:
    """The tag tree in a TIFF that DigitalMicrograph wrote, and what of it cannot be understood."""
    tree = _Tree(path, io.BytesIO(content), len(content))
    return tree.read(), tree.remark


def acquisition_of(image: Image, index: int, remark: str) -> Acquisition:
    tilt, said, doubt = _tilt(image, index)
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
        no_projection=_no_projection(image),
        microscope=str(image.find("Microscope Info", "Microscope") or ""),
        reader="dm",
        remark="; ".join(filter(None, (remark, doubt))),
    )


def _no_projection(image: Image) -> str:
    """Why the tags say that it is none; empty where they do not."""
    units = [image.axis(index)[2] for index in range(len(image.dimensions))]
    return no_image(image.find("Meta Data", "Format")) or no_space(*units[:2], others=units[2:]) or _diffraction(image)


def no_image(kind: Any) -> str:
    """Why data of this `Meta Data.Format` are no projection; empty for images, and where there is none."""
    text = str(kind or "").strip("\0 ")
    return f"Meta Data.Format is {text!r}" if re.search(r"spectr|diffraction", text, re.IGNORECASE) else ""


def _diffraction(image: Image) -> str:
    """A camera's image in diffraction mode, unless it has lengths. Scanned images are always taken in diffraction mode."""
    mode, operation, illumination = (
        str(image.find("Microscope Info", name) or "").upper() for name in ("Imaging Mode", "Operation Mode", "Illumination Mode")
    )
    scanned = operation == "SCANNING" or illumination.startswith("STEM") or image.find("DigiScan") is not None
    (scale_x, _, unit_x), (scale_y, _, unit_y) = image.axis(0), image.axis(1)
    if "DIFFRACTION" not in (mode, operation) or scanned or pixel_size_nm((scale_y, unit_y), (scale_x, unit_x)):
        return ""
    return "a diffraction pattern: the mode in Microscope Info is 'DIFFRACTION'"


def _tilt(image: Image, index: int) -> tuple[float | None, str, str]:
    """(degrees, as found, what is in doubt). Of a single image the stage's alpha; a stack's is only that of its last image."""
    if image.images == 1:
        alpha = image.find(*_STAGE_ALPHA)
        return number_of(alpha), "" if number_of(alpha) is None else f"Stage Alpha {alpha!r} deg", ""
    found = list(_of_plane(image, index))
    apart = max((tilt for tilt, _ in found), default=0.0) - min((tilt for tilt, _ in found), default=0.0)
    if apart > _SAME_DEG:
        return None, "", f"of image {index} the tags say different tilts: {', '.join(said for _, said in found)}"
    return (*found[0], "") if found else (None, "", "")


def _of_plane(image: Image, index: int) -> Iterator[tuple[float, str]]:
    """All that is said of the tilt of one image of a stack, (degrees, as found)."""
    alpha = image.find("plane info", str(index), "source tags", *_STAGE_ALPHA)  # of the Stack Builder: the tags each image had
    if number_of(alpha) is not None:
        yield float(alpha), f"plane info {index}: Stage Alpha {alpha!r} deg"
    label = str(image.find("Meta Data", "Dimension info", "2", "Label") or "")
    value = image.find("Meta Data", "Dimension info", "2", "Data", str(index))
    if number_of(value) is not None and re.search(r"tilt.*\b(deg|°)", label, re.IGNORECASE):
        yield float(value), f"{label} {value!r}"
    scale, origin, unit = image.axis(2)
    if unit.lower().rstrip(".") in ("deg", "degree", "degrees", "°") and scale:
        # DigitalMicrograph gives the origin in channels: value = (index - origin) * scale
        yield (index - origin) * scale, f"stack axis: ({index} - {origin:g}) * {scale:g} {unit}"


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
