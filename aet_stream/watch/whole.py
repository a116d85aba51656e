"""A file looked at as a whole: what is odd about its images together, though each by itself is in order."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from aet_stream.config import Config
from aet_stream.naming import is_left_out
from aet_stream.reasons import Reason, why
from aet_stream.tilts import EQUAL_TILT_DEG
from aet_stream.watch.visits import Frame

FEWEST, FEWEST_WHILE_GROWING = 2, 3
"""Images that make a stack. One that grows may begin with a second image at its first tilt, to watch for damage."""


def doubts(frames: Sequence[Frame], config: Config, *, growing: bool) -> dict[int, Reason]:
    """Image -> why a person should look at it, for all images of a file that would be stored.

    Parameters
    ----------
    growing : the instrument appends to such files
    """
    used = [frame for frame in frames if not (frame.said.no_projection or is_left_out(frame.said, frame.path, config.series))]
    found: dict[int, Reason] = {}
    for group in _grouped(
        used, lambda frame: (frame.said.detector.lower(), frame.said.acquired_utc, frame.said.acquired_local, frame.tilt_deg)
    ):
        if len({frame.said.dataset for frame in group}) > 1:
            found |= dict.fromkeys((frame.unit.image for frame in group), _which(group))
    named = sorted({frame.said.detector for frame in frames if frame.said.detector and not frame.said.no_projection})
    for frame in used if named else ():
        if frame.said.dataset and not frame.said.detector:
            found.setdefault(frame.unit.image, _of_which(frame, named))
    fewest = FEWEST_WHILE_GROWING if growing else FEWEST
    for group in _grouped(used, lambda frame: (frame.said.detector.lower(), frame.said.dataset)):
        tilts_deg = [frame.tilt_deg for frame in group if frame.tilt_deg is not None]
        if len(tilts_deg) >= fewest and max(tilts_deg) - min(tilts_deg) <= EQUAL_TILT_DEG and not _one_visit(group, config):
            found |= {frame.unit.image: found.get(frame.unit.image) or _all_the_same(tilts_deg[0]) for frame in group}
    return found


def _grouped(frames: Sequence[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return [group for group in groups.values() if len(group) > 1]


def _which(group: list[Frame]) -> Reason:
    said, tilt_deg = group[0].said, group[0].tilt_deg
    images = ", ".join(str(frame.unit.image) for frame in group)
    of = f"of detector {said.detector}" if said.detector else "of one detector"
    names = sorted({f"{frame.said.detector} {frame.said.segment}" for frame in group if frame.said.detector and frame.said.segment})
    choice = f"set series.detector to one of {', '.join(names)}, or " if len(names) == len(group) else ""
    return why("which_image", images=images, of=of, choice=choice, tilt="DEG" if tilt_deg is None else f"{tilt_deg:g}")


def _of_which(frame: Frame, named: list[str]) -> Reason:
    """Among signals of named detectors it may be one more of theirs, or of no detector at all."""
    return why("no_detector", others=", ".join(named), tilt="DEG" if frame.tilt_deg is None else f"{frame.tilt_deg:g}")


def _all_the_same(tilt_deg: float) -> Reason:
    """Says nothing of how many there are: a stack that grows would be read anew with every image."""
    return why("one_tilt", tilt_deg=tilt_deg)


def _one_visit(group: list[Frame], config: Config) -> bool:
    """Are they frames of one visit, by frames.group?"""
    rules, times = config.frames, sorted(frame.taken_at for frame in group)
    close = all(later - earlier <= rules.window_s for earlier, later in itertools.pairwise(times))
    return rules.group == "window" and close and not 0 < rules.expected < len(group)
