"""Projections in register on the particle: a specimen that has moved between two exposures has moved with its film.

Where the centre of mass is off the law of a turning object (consistency.py), the specimen has moved, or the background is wrong. Which of
the two is told by how far each projection's background may be off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aet_stream.consistency import fit_law
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

_LEVER = 0.3
"""By how much of the particle's radius its centre of mass is off, when all of its total is"""
_NORMAL = 0.455
"""Median of the square of what is normally distributed, in variances"""


@dataclass(frozen=True, slots=True)
class Mass:
    """Of each projection, by its first edition."""

    along: Array
    """(n,) points from the frame's middle, the tilt axis upright; NaN: not known"""
    across: Array
    doubt: Array
    """(n,) error to expect of its total, as a share of it"""


def shifts(series: Sequence[Seen], mass: Mass) -> Array:
    """(n, 2) along and across, points: how far the specimen lies from where it turns about the middle."""
    tilts = np.array([seen.tilt_deg for seen in series])
    found = np.zeros((len(series), 2))
    law = fit_law(tilts, mass.across, mass.along)
    if law is None:
        return found
    radius = np.sqrt(np.median([seen.hidden.sum() for seen in series]) / np.pi)
    doubt = _LEVER * radius * np.clip(np.nan_to_num(mass.doubt, nan=1.0), 0, 1)
    foretold = np.array([law.x_px(tilt) for tilt in tilts])
    found[:, 0] = _believed(mass.along - law.y_px, doubt)
    found[:, 1] = _believed(mass.across - foretold, doubt)
    few = np.isfinite(mass.across).sum()
    for column, offset in ((0, law.y_px), (1, law.offset_px)):
        unsure = np.median(doubt) * 3 / np.sqrt(few)
        found[:, column] += offset**3 / (offset**2 + unsure**2) if offset else 0.0
    return found


def _believed(off: Array, doubt: Array) -> Array:
    """What of each residual is a move: the share of its variance that no doubt explains."""
    known = np.isfinite(off)
    if not known.any():
        return np.zeros_like(off)
    moved = max(float(np.median(np.square(off[known])) / _NORMAL - np.median(np.square(doubt[known]))), 0.0)
    return np.where(known, np.nan_to_num(off) * moved / (moved + np.square(doubt) + 1e-12), 0.0)


def moved(seen: Seen, shift: Array) -> Seen:
    """The same, from where the specimen turns."""
    along, across = shift
    return replace(
        seen, along=seen.along - along, across=seen.across - across, centres=seen.centres - np.array([along, across])[:, None, None]
    )
