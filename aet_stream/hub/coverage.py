"""How much of the half circle of directions a series has seen."""

from __future__ import annotations

import numpy as np

REACH_DEG = 1.0
"""A direction counts as covered within this angle of a tilt."""


def covered_deg(tilts_deg: list[float]) -> float:
    """Of 180 degrees, those within REACH_DEG of a tilt; grows with every new tilt, in whatever order they come."""
    return 180.0 - float(np.maximum(_gaps(tilts_deg) - 2 * REACH_DEG, 0).sum()) if tilts_deg else 0.0


def largest_gap_deg(tilts_deg: list[float]) -> float:
    """The widest angle without a tilt, the missing wedge included."""
    return float(_gaps(tilts_deg).max()) if tilts_deg else 180.0


def _gaps(tilts_deg: list[float]) -> np.ndarray:
    """Between neighbouring directions; a projection at tilt + 180 sees the same direction from behind."""
    directions = np.unique(np.mod(np.asarray(tilts_deg, dtype=np.float64), 180.0))
    return np.diff(directions, append=directions[0] + 180.0)
