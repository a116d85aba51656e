"""What becomes of an image that has been read: one set of rules, by which the hub stores and `check` foretells.

An image is judged by what watch says of it (`messages.Acquired`), by its pixels, and by the rows that its series has so far.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from aet_stream.config import Config, Series
from aet_stream.messages import Acquired
from aet_stream.naming import detector_in_name, is_left_out, shown
from aet_stream.projection import Array, Candidate
from aet_stream.reasons import Reason, why
from aet_stream.tilts import EQUAL_TILT_DEG

_T = TypeVar("_T")
SAME_SIZE = 0.01
"""Pixel sizes that differ by no more than this share are one magnification."""

State = Literal["stored", "same", "duplicate", "other", "held"]


class Site(NamedTuple):
    """What of the settings decides about images."""

    rules: Series
    turn: str
    """How pixels are turned: `config.Orientation.letters`."""
    watch_root: str
    """The watched folder, links resolved, as it can be shown."""

    @classmethod
    def of(cls, config: Config) -> Site:
        return cls(config.series, config.orientation.letters, shown(os.path.realpath(config.watch_root)))


class Verdict(NamedTuple):
    """`same`: the file was touched, its pixels were not. `other`: recorded, not stored. `held`: a person has to say something."""

    state: State
    reason: Reason | None = None
    tilt_deg: float = float("nan")
    """NaN: it was not compared with the rows of its series, for something else had ended it before"""
    tilt_source: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One stored projection, as far as it decides about images that come after it."""

    number: int
    path: str
    image: int
    sha256: str
    tilt_deg: float
    tilt_source: str
    tilt_candidates: str
    """JSON: every statement about the tilt that was found."""
    shape: tuple[int, ...]
    """(height, width) in pixels."""
    dtype: str
    pixel_size_nm: float | None = None
    detector: str = ""
    orientation: str = ""
    watch_root: str = ""
    members: tuple[tuple[str, int], ...] = ()
    """(path, image) of each image that went into it, when there are several."""

    @classmethod
    def of(cls, acquired: Acquired, raw: Array, verdict: Verdict, site: Site, number: int) -> Row:
        """The row that an image becomes when it is stored."""
        return cls(
            number=number,
            path=acquired.visit.path,
            image=acquired.visit.image,
            sha256=acquired.sha256,
            tilt_deg=verdict.tilt_deg,
            tilt_source=verdict.tilt_source,
            tilt_candidates=candidates_json(acquired.candidates),
            shape=raw.shape,
            dtype=raw.dtype.str,
            pixel_size_nm=acquired.acquisition.pixel_size_nm,
            detector=acquired.acquisition.detector,
            orientation=site.turn,
            watch_root=site.watch_root,
            members=acquired.members,
        )

    @property
    def key(self) -> tuple[str, int]:
        return self.path, self.image


@dataclass
class Rows:
    """The rows of one series, in the order in which they were stored."""

    _rows: list[Row] = field(default_factory=list)
    _by_pixels: dict[str, list[Row]] = field(default_factory=dict)
    _newest: dict[tuple[str, int], Row] = field(default_factory=dict)
    """(path, image) -> what was last stored of it, alone or within a mean."""
    _roots: dict[str, None] = field(default_factory=dict)
    _with_size: list[Row] = field(default_factory=list)
    _with_detector: list[Row] = field(default_factory=list)
    _with_detector_name: list[Row] = field(default_factory=list)
    _aside: Collection[int] = frozenset()
    _restored: Collection[int] = frozenset()

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, row: Row) -> None:
        self._rows.append(row)
        self._by_pixels.setdefault(row.sha256, []).append(row)
        self._newest |= dict.fromkeys(row.members or (row.key,), row)
        if row.watch_root:
            self._roots[row.watch_root] = None
        if row.pixel_size_nm is not None:
            self._with_size.append(row)
        if row.detector:
            self._with_detector.append(row)
        if detector_in_name(row.path):
            self._with_detector_name.append(row)

    def decided(self, aside: Collection[int], restored: Collection[int] = ()) -> None:
        """Which numbers are set aside, and which were and count again: the former bind nobody, the latter where no other does."""
        self._aside, self._restored = frozenset(aside), frozenset(restored)

    def lone(self) -> Row | None:
        """The only row that counts, if there is but one, and nobody has ever said that it counts."""
        counting = list(islice((row for row in self._binding(self._rows) if self._newest[row.key] is row), 2))
        said = len(counting) == 1 and (counting[0].number in self._restored or counting[0].tilt_source == "person")
        return counting[0] if len(counting) == 1 and not said else None

    def same_pixels(self, sha256: str) -> list[Row]:
        """What is stored with exactly these pixels, and was not superseded by others."""
        return [row for row in self._by_pixels.get(sha256, []) if self._newest[row.key].sha256 == sha256]

    def first(self) -> Row | None:
        """Of those that are not set aside."""
        return next(self._binding(self._rows), None)

    def _binding(self, rows: list[Row]) -> Iterator[Row]:
        """Those that are not set aside; any that was once comes last."""
        never = (row for row in rows if row.number not in self._aside and row.number not in self._restored)
        return chain(never, (row for row in rows if row.number in self._restored) if self._restored else ())

    def bind(self, source: tuple[str, int], reason: Reason) -> bool:
        """Do the rows still say what an image (path, image) was held for (`is_bound`)?"""
        match reason.code:
            case "other_shape":
                first = self.first()
                return first is not None and reason.values | _shape(first.shape, first.dtype, "its_") == reason.values
            case "other_pixel_size":
                return self.pixel_size_nm(source) == reason.values["used_nm"]
            case _:
                return reason.values["used"] in (self.detector(source), self.detector_name(source))

    def roots(self) -> list[str]:
        """Watched folders that rows came from, where known."""
        return list(self._roots)

    def pixel_size_nm(self, but: tuple[str, int]) -> float | None:
        """Of the series: that of the first row that knows it, was not superseded, and is not of the image `but`."""
        return next((row.pixel_size_nm for row in self._current(self._with_size, but)), None)

    def detector(self, but: tuple[str, int]) -> str:
        """The same of the detector that the files themselves name."""
        return next((row.detector for row in self._current(self._with_detector, but)), "")

    def detector_name(self, but: tuple[str, int]) -> str:
        """The same of the detector that stands in the files' names."""
        return next((detector_in_name(row.path) for row in self._current(self._with_detector_name, but)), "")

    def _current(self, rows: list[Row], but: tuple[str, int]) -> Iterator[Row]:
        return (row for row in self._binding(rows) if self._newest[row.key] is row and row.key != but)

    def learns(self, acquired: Acquired) -> bool:
        """Would this image, as a row, decide about others in a way that no row does yet?"""
        said, nobody = acquired.acquisition, ("", -1)
        return (
            self.first() is None
            or self.lone() is not None  # which one after it that fits keeps from being set aside
            or (said.pixel_size_nm is not None and self.pixel_size_nm(nobody) is None)
            or bool(said.detector and not self.detector(nobody))
            or bool(detector_in_name(acquired.visit.path) and not self.detector_name(nobody))
        )


class Held(NamedTuple):
    """What was held because it is not like the rows of its series."""

    reason: Reason
    tilt_deg: float
    sha256: str


def is_bound(reason: Reason) -> bool:
    """Would an image that is held for this reason perhaps be stored if other rows were there?"""
    return reason.code in _SAYS


class Odd(NamedTuple):
    """A survey at another magnification, or of another detector, that came first: the only row that counts is set aside."""

    row: Row
    reason: Reason
    against: Reason
    """For which the two were held that agree with each other."""

    def in_turn(self, held: Iterable[tuple[_T, Reason]]) -> list[_T]:
        """What was held, in the order in which it is judged again: those that agree with the two are what the series is made of."""
        return [each for each, _ in sorted(held, key=lambda one: not _agree(one[1], self.against))]


def odd(rows: Rows, held: Iterable[Held]) -> Odd | None:
    """The only row that counts, if two at other tilts that are held because of it agree with each other."""
    row = rows.lone()
    if row is None:
        return None
    for one, other in combinations([each for each in held if is_bound(each.reason)], 2):
        if one.sha256 != other.sha256 and abs(one.tilt_deg - other.tilt_deg) > EQUAL_TILT_DEG and _agree(one.reason, other.reason):
            its, theirs = (text.format_map(one.reason.values) for text in _SAYS[one.reason.code])
            other_size = "put a copy of it into a folder of its own; or say that it shall not count"
            remedy = (
                other_size if one.reason.code == "other_shape" else "restore it if it should count all the same; or say that it shall not"
            )
            return Odd(row, why("odd", its=its, theirs=theirs, remedy=remedy), one.reason)
    return None


_SAYS = {
    "other_shape": ("{its_height} x {its_width} px of {its_dtype}", "{height} x {width} px of {dtype}"),
    "other_pixel_size": ("{used_nm:.4g} nm/px", "{pixel_size_nm:.4g} nm/px"),
    "other_detector": ("detector {used}", "detector {detector}"),
}
"""Code of a reason by which a row binds others -> what that row is like, and what the others are."""


def _agree(one: Reason, other: Reason) -> bool:
    """Are two that are held because of one row like each other?"""
    if one.code != other.code:
        return False
    if one.code == "other_pixel_size":
        nm, its_nm = float(one.values["pixel_size_nm"]), float(other.values["pixel_size_nm"])
        return abs(its_nm - nm) <= SAME_SIZE * nm
    theirs = _SAYS[one.code][1]
    return theirs.format_map(one.values).lower() == theirs.format_map(other.values).lower()


def judge(acquired: Acquired, raw: Array, rows: Rows, site: Site, person_deg: float | None = None) -> Verdict:
    """What becomes of an image.

    Parameters
    ----------
    raw : (height, width) its pixels as they would be stored
    rows : of its series, so far
    person_deg : the tilt that a person gave it, which answers every question but that for another setting or folder
    """
    if aside := _left_out(acquired, site.rules) or (_no_projection(acquired) if person_deg is None else None):
        return Verdict("other", aside)
    if person_deg is not None:
        tilt_deg, source = person_deg, "person"
    elif row := _judged_before(acquired, rows):
        return Verdict("same", why("untouched", number=row.number))
    elif acquired.hold or not acquired.candidates:
        return Verdict("held", acquired.hold or why("no_tilt", because=""))
    else:
        tilt_deg, source = acquired.candidates[0].tilt_deg, acquired.candidates[0].source
    image = _Image(acquired, raw, tilt_deg, by_person=person_deg is not None)
    state, reason = next(filter(None, (rule(image, rows, site) for rule in _RULES)), _STORED)
    return Verdict(state, reason, tilt_deg, source)


def candidates_json(candidates: tuple[Candidate, ...]) -> str:
    """Statements about a tilt as a record keeps them."""
    return json.dumps([{"source": c.source, "raw": c.raw, "tilt_deg": c.tilt_deg, "unit": c.unit} for c in candidates])


def parted(planes: Array, acquired: Acquired) -> tuple[Array, dict[str, Array]]:
    """The image, and what travelled behind it: the variance over its frames, or the frames in their own type."""
    if planes.ndim == 2:
        return planes, {}
    image = planes[0].astype("<f4")  # a mean is single precision, whatever its frames needed on the way
    if acquired.extras == "frames":
        return image, {"frames": planes[1:].astype(acquired.extras_dtype)}
    return image, {"variance": planes[1].astype("<f4")}


# -- recorded, not stored -----------------------------------------------------------------------------------------------------------------


def _left_out(acquired: Acquired, rules: Series) -> Reason | None:
    said = acquired.acquisition
    if not is_left_out(said, acquired.visit.path, rules):
        return None
    detector = f"{said.detector} {said.segment}".strip() or f"{detector_in_name(acquired.visit.path)} (by its name)"
    return why("left_out", detector=detector, used=rules.detector)


def _no_projection(acquired: Acquired) -> Reason | None:
    because = acquired.acquisition.no_projection
    return why("no_projection", because=because) if because else None


def _judged_before(acquired: Acquired, rows: Rows) -> Row | None:
    """What is stored of this image with these pixels, at the tilt that a person gave it when its sources said the same as now."""
    said = candidates_json(acquired.candidates)
    stored = [row for row in rows.same_pixels(acquired.sha256) if row.key == acquired.visit.source]
    return next((row for row in stored if row.tilt_source == "person" and row.tilt_candidates == said), None)


# -- rules in the order in which they are asked -------------------------------------------------------------------------------------------


class _Image(NamedTuple):
    acquired: Acquired
    raw: Array
    tilt_deg: float
    by_person: bool

    @property
    def key(self) -> tuple[str, int]:
        return self.acquired.visit.source


Ruling = tuple[State, Reason] | None
_STORED: tuple[State, None] = "stored", None


def _other_detector(image: _Image, rows: Rows, site: Site) -> Ruling:
    """Of several detectors one is used. What files say of theirs is compared with what files say, and names with names."""
    if site.rules.detector:
        return None
    said, name = image.acquired.acquisition.detector, detector_in_name(image.acquired.visit.path)
    for found, used, by in ((said, rows.detector(image.key), ""), (name, rows.detector_name(image.key), " (by its name)")):
        if found and used and found.lower() != used.lower():
            return "held", why("other_detector", detector=f"{found}{by}", used=used)
    return None


def _known_pixels(image: _Image, rows: Rows, site: Site) -> Ruling:
    for row in rows.same_pixels(image.acquired.sha256):
        same_image, same_tilt = row.key == image.key, abs(row.tilt_deg - image.tilt_deg) <= EQUAL_TILT_DEG
        if same_image and same_tilt:
            return "same", why("untouched", number=row.number)
        if same_image and not image.by_person:
            return "held", why("tilt_changed", number=row.number, stored_deg=row.tilt_deg, tilt_deg=image.tilt_deg)
        if same_tilt:
            return "duplicate", why("copy", path=row.path, image=row.image, number=row.number)
    return None


def _doubted(image: _Image, rows: Rows, site: Site) -> Ruling:
    return ("held", image.acquired.doubt) if image.acquired.doubt and not image.by_person else None


def _other_shape(image: _Image, rows: Rows, site: Site) -> Ruling:
    """No person's word makes a row of what a file cannot hold beside the others."""
    first, raw = rows.first(), image.raw
    if first is None or (raw.shape, raw.dtype.str) == (first.shape, first.dtype):
        return None
    return "held", why("other_shape", **_shape(raw.shape, raw.dtype.str), **_shape(first.shape, first.dtype, "its_"))


def _shape(shape: tuple[int, ...], dtype: str, prefix: str = "") -> dict[str, int | str]:
    """Values of `other_shape`."""
    return {f"{prefix}height": shape[0], f"{prefix}width": shape[1], f"{prefix}dtype": str(np.dtype(dtype))}


def _other_size(image: _Image, rows: Rows, site: Site) -> Ruling:
    """An image at another magnification among the others takes its voxel size from the volume."""
    its_nm, nm = image.acquired.acquisition.pixel_size_nm, rows.pixel_size_nm(image.key)
    if image.by_person or its_nm is None or nm is None or abs(its_nm - nm) <= SAME_SIZE * nm:
        return None
    return "held", why("other_pixel_size", pixel_size_nm=its_nm, used_nm=nm)


def _other_site(image: _Image, rows: Rows, site: Site) -> Ruling:
    """The settings were changed between two starts, in the middle of a series."""
    first, roots = rows.first(), rows.roots()
    if first is not None and first.orientation != site.turn:
        return "held", why("other_orientation", turn=repr(site.turn), used=repr(first.orientation))
    if roots and site.watch_root not in roots and not image.by_person:
        return "held", why("other_root", used=roots[-1], root=site.watch_root)
    return None


_RULES: tuple[Callable[[_Image, Rows, Site], Ruling], ...] = (
    _other_detector, _known_pixels, _doubted, _other_shape, _other_size, _other_site,
)  # fmt: skip
