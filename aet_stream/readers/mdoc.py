"""SerialEM's `.mdoc` (and `.idoc`): text in sections, and which section speaks of which image of which file.

A section of a stack, `[ZValue = 3]`, speaks of its image 3. One of single files, `[Image = a.tif]`, and one of the frames of one exposure,
`[FrameSet = 0]` or any with `SubFramePath`, speak of the file that they name. Who cleans a stack may forget the text beside it: then
numbers prove nothing, and sections are believed only where they and the images correspond one to one, or where their `MinMaxMean`, which
SerialEM writes of the pixels, tells them apart. Format: SerialEM's help, "Image Metadata Files".
"""

from __future__ import annotations

import datetime
import functools
import re
from typing import NamedTuple

import msgspec
import numpy as np

from aet_stream.errors import SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import pixel_size_nm
from aet_stream.readers.beside import MONTHS, Asked, Beside, Stack, candidate, number

_SECTION = re.compile(r"^\[(\w+)\s*=\s*(.*?)\]\s*$")
_PAIR = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$")
_TILT_AXIS = re.compile(r"Tilt axis angle\s*=\s*([+-]?[\d.]+)", re.IGNORECASE)
"""In a title: `[T =     Tilt axis angle = 85.3, binning = 4  spot = 8  camera = 2]`."""
_PRINTED = 1e-5
"""MinMaxMean is printed with six digits."""


class Section(NamedTuple):
    """`[kind = name]` and the values below it."""

    kind: str
    name: str
    said: dict[str, str]

    @property
    def tilt(self) -> str:
        return self.said.get("TiltAngle", "")

    @property
    def file(self) -> str:
        """Name of the file that it speaks of, in small letters, without folder; empty for an image of a stack."""
        return base_name(self.name if self.kind == "Image" else self.said.get("SubFramePath", ""))


class Mdoc(NamedTuple):
    """A whole text."""

    start: dict[str, str]
    titles: str
    sections: tuple[Section, ...]

    def of(self, kind: str) -> list[Section]:
        return [section for section in self.sections if section.kind == kind]


def base_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].strip().lower()


@functools.lru_cache(maxsize=4)
def parse_mdoc(text: str) -> Mdoc:
    """Sections in their order; keys may come in any."""
    start: dict[str, str] = {}
    titles, sections, here = [], [], start
    for line in text.splitlines():
        section, pair = _SECTION.match(line), _PAIR.match(line)
        if section and section[1] == "T":
            titles.append(section[2])
        elif section:
            here = {}
            sections.append(Section(section[1], section[2], here))
        elif pair and pair[1] == "T":
            titles.append(pair[2])
        elif pair:
            here[pair[1]] = pair[2]
    return Mdoc(start, " ".join(titles), tuple(sections))


def from_mdoc(text: str, ask: Asked) -> Beside | None:
    """What an mdoc says of one image; None if it speaks of other files.

    Raises
    ------
    SourceNotReady : the section of an image is not written yet
    """
    mdoc, mine = parse_mdoc(text), ask.path.name.lower()
    named = [section for section in mdoc.sections if section.file == mine]
    if ask.is_own and not named and len(mdoc.of("FrameSet")) == 1:  # its file has got another name since
        named = mdoc.of("FrameSet")
    if named:
        return _of_file(mdoc, named, ask)
    if not ask.is_own and base_name(mdoc.start.get("ImageFile", "")) != mine:
        return None
    if mdoc.of("FrameSet"):
        return Beside(remark=f"{ask.sidecar.name} holds frame sets of other files") if ask.is_own else None
    if text not in ask.stack.kept:
        ask.stack.kept[text] = _paired(mdoc.of("ZValue"), ask.stack)
    pairing: _Pairing = ask.stack.kept[text]
    if pairing.late and ask.fresh:
        raise SourceNotReady(f"{ask.sidecar.name} {pairing.doubt} so far")
    if ask.image in pairing.sections:
        return _stated(mdoc, pairing.sections[ask.image], ask)
    return Beside(remark=f"{ask.sidecar.name} {pairing.doubt}")


def _stated(mdoc: Mdoc, sections: list[Section], ask: Asked) -> Beside:
    """What the sections of one image or file say."""
    name = ask.sidecar.name
    if not all(section.tilt for section in sections):
        missing = f"{name}: the section of image {ask.image} has no TiltAngle"
        if ask.fresh and sections[-1] is mdoc.sections[-1]:
            raise SourceNotReady(f"{missing} yet")
        return Beside(remark=missing)
    said = {section.tilt: f"{name}: TiltAngle = {section.tilt}{_where(section, ask.image)}" for section in sections}
    return Beside(tuple(candidate(tilt, words) for tilt, words in said.items()), _known(sections[0], mdoc))


def _where(section: Section, image: int) -> str:
    return f" in section {section.name}" if section.kind == "ZValue" and section.name not in ("", str(image)) else ""


# -- files ------------------------------------------------------------------------------------------------------------------------------


def _of_file(mdoc: Mdoc, named: list[Section], ask: Asked) -> Beside:
    """Sections that name the file: of its only image, or of all its images, if they are frames."""
    name, images = ask.sidecar.name, ask.stack.promised
    exposures = [section for section in mdoc.sections if "FrameTSStartEndFrames" in section.said]
    frames = {section.said.get("NumSubFrames", str(images)) for section in named}
    if images > 1 and any(section.kind == "Image" for section in named):
        return Beside(remark=f"{name} names the file as one image, but it has {images}")
    if images > 1 and exposures:
        return Beside(remark=f"{name}: its frames are of {len(exposures)} exposures (FrameTSStartEndFrames): save each by itself")
    if images > 1 and frames != {str(images)}:
        return Beside(remark=f"{name} says NumSubFrames = {', '.join(sorted(frames))}, but the file has {images} images")
    return msgspec.structs.replace(_stated(mdoc, named, ask), frames=images if images > 1 else 0)


# -- stacks -----------------------------------------------------------------------------------------------------------------------------


class _Pairing(NamedTuple):
    sections: dict[int, list[Section]] = {}  # noqa: RUF012
    """Of each image; several where they contradict each other."""
    doubt: str = ""
    """Why none can be told to belong to the other images."""
    late: bool = False
    """What is missing may still be written."""


def _paired(sections: list[Section], stack: Stack) -> _Pairing:
    """The sections of a stack and its images."""
    counted = _by_number(sections, stack)
    if not any("MinMaxMean" in section.said for section in sections):
        return counted
    fits = _fits(sections, stack)
    crossed = [
        (image, sections[int(fits[image].argmax())].name)
        for image in range(len(fits))
        if fits[image].any() and not any(sections[k] in counted.sections.get(image, ()) for k in np.flatnonzero(fits[image]))
    ]
    if counted.sections and not crossed:
        return counted
    seen = _by_pixels(sections, fits, stack)
    if seen is not None or not counted.sections:
        return seen or counted
    image, name = crossed[0]
    return _Pairing(doubt=f"is not of these images: the pixels of image {image} are those of section {name} by its MinMaxMean")


def _by_number(sections: list[Section], stack: Stack) -> _Pairing:
    """Section i belongs to image i, if there is one for each."""
    images = stack.promised
    found: dict[int, list[Section]] = {}
    for section in sections:
        found.setdefault(int(section.name) if section.name.isdecimal() else -1, []).append(section)
    alone, in_order = images == len(found) == 1, found.keys() == set(range(len(found)))
    if alone or (in_order and stack.counts(len(found))):
        pairs = dict(enumerate(found.values())) if alone else found
        twice = next((z for z, several in pairs.items() if len({section.tilt for section in several}) > 1), None)
        if twice is None:
            return _Pairing(pairs, f"has {len(found)} section(s) for {images} image(s)")
        return _Pairing(doubt=f"has section {twice} twice, at {' and '.join(section.tilt for section in pairs[twice])} deg")
    mend = "which is of which? Take out those whose image is gone, and number the others from 0 as the images are"
    if len(found) == images:
        return _Pairing(doubt=f"numbers its {images} sections {_listed(sorted(found))}: {mend}")
    late = stack.grows and in_order and stack.counts(len(found) + 1)
    return _Pairing(doubt=f"has {len(found)} section(s) for {images} image(s){'' if late else f': {mend}'}", late=late)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + " ..." * (len(numbers) > 8)


def _fits(sections: list[Section], stack: Stack) -> Array:
    """(images, sections) bool: have these pixels the smallest, largest and mean value that this section states?"""
    figures = np.array(stack.figures(), dtype=np.float64).reshape(-1, 3)
    stated = np.full((len(sections), 3), np.nan)
    for row, section in zip(stated, sections, strict=True):
        words = [number(word) for word in section.said.get("MinMaxMean", "").split()]
        if len(words) == 3 and None not in words:
            row[:] = words
    apart = np.abs(figures[:, None] - stated[None])
    return np.asarray((apart <= _PRINTED * np.maximum(1.0, np.abs(figures[:, None]))).all(axis=2))


def _by_pixels(sections: list[Section], fits: Array, stack: Stack) -> _Pairing | None:
    """Images and the sections with their MinMaxMean; None where two could be meant."""
    matched = {image: [sections[k] for k in np.flatnonzero(row)] for image, row in enumerate(fits) if row.any()}
    unique = all(len({section.tilt for section in several}) == 1 for several in matched.values())
    if not matched or not unique or (fits.sum(axis=0) > 1).any():
        return None
    alone = [image for image in range(stack.promised) if image not in matched]
    late = stack.grows and alone == [stack.promised - 1] and bool(fits.any(axis=0).all())
    missing = f"has no section with the pixels of image(s) {_listed(alone)} by its MinMaxMean" if alone else ""
    return _Pairing(matched, missing, late)


# -- values -----------------------------------------------------------------------------------------------------------------------------


def _known(section: Section, mdoc: Mdoc) -> Acquisition:
    spacing = number(section.said.get("PixelSpacing") or mdoc.start.get("PixelSpacing"))
    axis = _TILT_AXIS.search(mdoc.titles)
    return Acquisition(
        pixel_size_nm=pixel_size_nm((spacing, "A"), (spacing, "A")) if spacing else None,
        acquired_local=_serialem_time(section.said.get("DateTime", "")),
        detector=section.said.get("ChannelName", ""),
        frame_time_s=number(section.said.get("ExposureTime")),
        tilt_axis_deg=number(axis[1]) if axis else None,
    )


def _serialem_time(text: str) -> str:
    """`31-Mar-23  16:24:15` or with four digits, in any language's English; ISO without zone."""
    found = re.fullmatch(r"\s*(\d{1,2})-(\w{3})-(\d{2}|\d{4})\s+(\d{1,2}):(\d{2}):(\d{2}).*", text)
    if not found or found[2].title() not in MONTHS:
        return ""
    year = int(found[3]) + (2000 if len(found[3]) == 2 else 0)
    try:
        day = datetime.datetime(year, MONTHS.index(found[2].title()) + 1, int(found[1]), int(found[4]), int(found[5]), int(found[6]))
    except ValueError:
        return ""
    return day.isoformat()
