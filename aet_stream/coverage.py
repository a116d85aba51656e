"""How much of the half circle of directions a series has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aet_stream.projection import Array

REACH_DEG = 1.0
"""A direction counts as covered within this angle of a tilt."""


def covered_deg(tilts_deg: Sequence[float]) -> float:
    """Of 180 degrees, those within REACH_DEG of a tilt; grows with every new tilt, in whatever order they come."""
    return 180.0 - float(np.maximum(_gaps(_directions(tilts_deg)) - 2 * REACH_DEG, 0).sum()) if len(tilts_deg) else 0.0


def largest_gap_deg(tilts_deg: Sequence[float] | Array) -> float:
    """The widest angle without a tilt, which is the missing wedge; degrees."""
    low, high = largest_gap(tilts_deg)
    return high - low


def largest_gap(tilts_deg: Sequence[float] | Array) -> tuple[float, float]:
    """(from, to) of the widest angle without a tilt, degrees; the first of several, from 0 upwards."""
    if not len(tilts_deg):
        return 0.0, 180.0
    directions = _directions(tilts_deg)
    gaps = _gaps(directions)
    widest = int(gaps.argmax())
    return float(directions[widest]), float(directions[widest] + gaps[widest])


def _directions(tilts_deg: Sequence[float] | Array) -> Array:
    """Ascending, 0 to 180; a projection at tilt + 180 sees the same direction from behind."""
    return np.unique(np.mod(np.asarray(tilts_deg, dtype=np.float64), 180.0))


def _gaps(directions: Array) -> Array:
    """From each direction to the next, the last one's to the first."""
    return np.diff(directions, append=directions[0] + 180.0)
