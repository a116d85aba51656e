"""What a whole series says about each of its projections, without any ground truth.

Of one isolated particle, every projection holds the same total intensity, and its centre of mass moves along the law of a turning object:
across the tilt axis x = offset + a cos(tilt) + b sin(tilt), along it not at all. What does not fit has been cut off, has drifted, has a
wrong tilt or a wrong background. Strong channelling near a zone axis breaks the first rule: a warning, not a verdict.
"""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array

_LEAST = 5
"""Projections below this have no law."""
_OUTLIER = 4.0
"""Points this many median deviations away do not pull at the law."""


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
    tilts = np.radians(np.asarray(tilts_deg, np.float64))
    x, y = np.asarray(x_px, np.float64), np.asarray(y_px, np.float64)
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(tilts)
    if good.sum() < _LEAST:
        return np.full(tilts.shape, np.nan)
    terms = np.stack([np.ones_like(tilts), np.cos(tilts), np.sin(tilts)], axis=1)
    near = good
    for _ in range(3):
        law = terms @ np.linalg.lstsq(terms[near], x[near], rcond=None)[0]
        distance = np.hypot(x - law, y - np.median(y[near]))
        limit = _OUTLIER * np.median(distance[near]) + 1e-6
        closer = good & (distance <= limit)
        if closer.sum() < _LEAST:
            break
        near = closer
    residual: Array = distance
    return residual
