"""A file looked at as a whole: what is odd about its images together, though each by itself is in order."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from aet_stream.config import Config
from aet_stream.naming import is_left_out
from aet_stream.projection import Acquisition
from aet_stream.reasons import Reason, why
from aet_stream.tilts import EQUAL_TILT_DEG
from aet_stream.watch.visits import Frame

FEWEST, FEWEST_WHILE_GROWING = 2, 3
"""Images that make a stack. One that grows may begin with a second image at its first tilt, to watch for damage."""


@dataclass(frozen=True, slots=True)
class Image:
    """One of a file's, with all that is said of it."""

    frame: Frame
    said: Acquisition

    @property
    def number(self) -> int:
        return self.frame.image

    @property
    def tilt_deg(self) -> float | None:
        return self.frame.tilt_deg


def doubts(images: Sequence[Image], config: Config, *, growing: bool) -> dict[int, Reason]:
    """Image -> why a person should look at it, for all images of a file that would be stored.

    Parameters
    ----------
    growing : the instrument appends to such files
    """
    used = [image for image in images if not (image.said.no_projection or is_left_out(image.said, image.frame.path, config.series))]
    found: dict[int, Reason] = {}
    for group in _grouped(
        used, lambda image: (image.said.detector.lower(), image.said.acquired_utc, image.said.acquired_local, image.tilt_deg)
    ):
        if len({image.said.dataset for image in group}) > 1:
            found |= dict.fromkeys((image.number for image in group), _which(group))
    named = sorted({image.said.detector for image in images if image.said.detector and not image.said.no_projection})
    for image in used if named else ():
        if image.said.dataset and not image.said.detector:
            found.setdefault(image.number, _of_which(image, named))
    fewest = FEWEST_WHILE_GROWING if growing else FEWEST
    for group in _grouped(used, lambda image: (image.said.detector.lower(), image.said.dataset)):
        tilts_deg = [image.tilt_deg for image in group if image.tilt_deg is not None]
        if len(tilts_deg) >= fewest and max(tilts_deg) - min(tilts_deg) <= EQUAL_TILT_DEG and not _one_visit(group, config):
            found |= {image.number: found.get(image.number) or _all_the_same(tilts_deg[0]) for image in group}
    return found


def _grouped(images: Sequence[Image], key: Callable[[Image], Hashable]) -> list[list[Image]]:
    groups: dict[Hashable, list[Image]] = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return [group for group in groups.values() if len(group) > 1]


def _which(group: list[Image]) -> Reason:
    said, tilt_deg = group[0].said, group[0].tilt_deg
    images = ", ".join(str(image.number) for image in group)
    of = f"of detector {said.detector}" if said.detector else "of one detector"
    names = sorted({f"{image.said.detector} {image.said.segment}" for image in group if image.said.detector and image.said.segment})
    choice = f"set series.detector to one of {', '.join(names)}, or " if len(names) == len(group) else ""
    return why("which_image", images=images, of=of, choice=choice, tilt="DEG" if tilt_deg is None else f"{tilt_deg:g}")


def _of_which(image: Image, named: list[str]) -> Reason:
    """Among signals of named detectors it may be one more of theirs, or of no detector at all."""
    return why("no_detector", others=", ".join(named), tilt="DEG" if image.tilt_deg is None else f"{image.tilt_deg:g}")


def _all_the_same(tilt_deg: float) -> Reason:
    """Says nothing of how many there are: a stack that grows would be read anew with every image."""
    return why("one_tilt", tilt_deg=tilt_deg)


def _one_visit(group: list[Image], config: Config) -> bool:
    """Are they frames of one visit, by frames.group?"""
    rules, times = config.frames, sorted(image.frame.taken_at for image in group)
    close = all(later - earlier <= rules.window_s for earlier, later in itertools.pairwise(times))
    return rules.group == "window" and close and not 0 < rules.expected < len(group)
