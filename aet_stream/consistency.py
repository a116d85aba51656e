"""What a whole series says about each of its projections, without any ground truth.

Of one isolated particle, every projection holds the same total intensity, and its centre of mass moves along the law of a turning object:
across the tilt axis x = offset + a cos(tilt) + b sin(tilt), along it not at all. What does not fit has been cut off, has drifted, has a
wrong tilt or a wrong background. Strong channelling near a zone axis breaks the first rule: a warning, not a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array

ENOUGH = 5
"""Projections below this have no law."""
_NEAR_PX = 0.05
"""Points closer to the law than this all pull alike; those farther away the less, the farther they are."""
_UNTOLD = 1e-3
"""A term that the tilts determine this much worse than the others is left out: a narrow range cannot tell offset from cosine."""


@dataclass(frozen=True, slots=True)
class Law:
    """Where the centre of mass of a turning object is seen: x = offset + cosine cos(tilt) + sine sin(tilt), y = const."""

    offset_px: float
    cosine_px: float
    sine_px: float
    y_px: float

    def x_px(self, tilt_deg: float) -> float:
        tilt = math.radians(tilt_deg)
        return self.offset_px + self.cosine_px * math.cos(tilt) + self.sine_px * math.sin(tilt)

    def distance_px(self, tilt_deg: float, x_px: float, y_px: float) -> float:
        """From the centre of mass of one projection; NaN where it is not known."""
        return math.hypot(x_px - self.x_px(tilt_deg), y_px - self.y_px)


def fit_law(tilts_deg: Array, x_px: Array, y_px: Array) -> Law | None:
    """The law that fits best, without letting outliers pull (least absolute deviations, by reweighting).

    Parameters
    ----------
    tilts_deg, x_px, y_px : (n,) degrees and px; NaN where it is not known. None with fewer than five known.
    """
    tilts, x, y = (np.asarray(values, np.float64) for values in (tilts_deg, x_px, y_px))
    known = np.isfinite(tilts) & np.isfinite(x) & np.isfinite(y)
    if known.sum() < ENOUGH:
        return None
    tilts, x, y = np.radians(tilts[known]), x[known], y[known]
    terms = np.stack([np.ones_like(tilts), np.cos(tilts), np.sin(tilts)], axis=1)
    root = np.ones_like(x)
    for _ in range(12):
        found = np.linalg.lstsq(terms * root[:, None], x * root, rcond=_UNTOLD)[0]
        root = 1 / np.sqrt(np.maximum(np.abs(x - terms @ found), _NEAR_PX))
    return Law(float(found[0]), float(found[1]), float(found[2]), float(np.median(y)))


def intensity_ratio(totals: Array) -> Array:
    """(n,) float64: total intensity of each projection over the median of all; NaN where it is not known."""
    totals = np.asarray(totals, np.float64)
    known = totals[np.isfinite(totals)]
    if not known.size or np.median(known) == 0:
        return np.full(totals.shape, np.nan)
    ratio: Array = totals / np.median(known)
    return ratio


def mass_residual_px(tilts_deg: Array, x_px: Array, y_px: Array) -> Array:
    """(n,) float64: distance of each centre of mass from the law fitted to all; NaN where it is not known, or with fewer than five."""
    law = fit_law(tilts_deg, x_px, y_px)
    if law is None:
        return np.full(np.shape(tilts_deg), np.nan)
    return np.array([law.distance_px(*one) for one in zip(tilts_deg, x_px, y_px, strict=True)], np.float64)
