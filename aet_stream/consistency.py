"""What a whole series says about each of its projections, without any ground truth.

Of one isolated particle, every projection holds the same total intensity, and its centre of mass moves along the law of a turning object:
across the tilt axis x = offset + a cos(tilt) + b sin(tilt), along it not at all. What does not fit has been cut off, has drifted, has a
wrong tilt or a wrong background. Strong channelling near a zone axis breaks the first rule, by more or less in every specimen: how much
is learnt from the series itself, and a total is believed only as far as totals are steady.
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
_LEVEL = 0.5
"""Of an error as it is expected, the mean under the particle: median of 450 simulated frames (0.54)."""
_WITH_LEVEL = 1.25
"""An error is this many times its mean under the particle; 1 if it were the same everywhere there. Fitted on the same frames."""
_MEDIAN_OF_NORMAL = 0.6745
"""Half of what is normally distributed is nearer to its mean than this many standard deviations."""
_CUT = 0.02
"""A particle that touches this share of the rim is cut off."""
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


def about_axis(x_px: Array, y_px: Array, axis_deg: Array) -> tuple[Array, Array]:
    """(across, along) the tilt axis, px: columns and rows seen with the axis upright; axis_deg from +y towards -x, NaN: along y."""
    turn = np.radians(np.nan_to_num(axis_deg))
    return x_px * np.cos(turn) + y_px * np.sin(turn), y_px * np.cos(turn) - x_px * np.sin(turn)


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


def error_in_series(expected: Array, totals: Array, vacuum_fraction: Array, edge_contact: Array, size_px: int) -> Array:
    """Expected errors of the background, given what the whole series says of each: background left under a particle adds to its total.

    An error has a normal distribution of its expected size, and a total strays by that and by a spread that all of the series share.
    What is expected of a mean error, given how far its total strays from the others', takes the place of what was expected without.

    Parameters
    ----------
    expected : (n,) root mean square error of each background as its own frame foretells it, counts
    totals : (n,) sum of the clean frame over the particle, counts
    vacuum_fraction, edge_contact : (n,) shares of the frame that is vacuum and of its rim that the particle touches; of a particle that is
        cut off the total says nothing
    size_px : pixels of a frame

    Returns
    -------
    (n,) float64, counts; as it was where something is not known, or fewer than five are
    """
    expected, totals = np.array(expected, np.float64), np.asarray(totals, np.float64)
    # What a mean error under the particle adds to the total, over what it adds to the root mean square error of the frame.
    lever = size_px * np.sqrt(np.clip(1 - np.asarray(vacuum_fraction, np.float64), 0, 1))
    known = (expected > 0) & np.isfinite(expected) & np.isfinite(totals) & (lever > 0) & (np.asarray(edge_contact) < _CUT)
    if known.sum() < ENOUGH:
        return expected
    error, total, lever = expected[known], totals[known], lever[known]
    foretold = _LEVEL * error * lever
    spread = 0.0
    for _ in range(3):
        away = np.abs(total - _weighted_median(total, 1 / np.hypot(foretold, spread)))
        spread = float(np.sqrt(max(np.median(np.square(away / _MEDIAN_OF_NORMAL) - np.square(foretold)), 0.0)))
    heard = np.square(foretold) / (np.square(foretold) + spread**2)
    news = heard * (heard * np.square(away) - np.square(foretold))
    expected[known] = np.sqrt(np.square(error) + np.square(_WITH_LEVEL / lever) * news)
    return expected


def trust_in_series(trust: Array, expected: Array, in_series: Array) -> Array:
    """(n,) float64, 0..1: the same scale as `trust`, for expected errors that the series has changed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = 1 / (1 + (1 / np.asarray(trust, np.float64) - 1) * np.square(np.asarray(in_series) / np.asarray(expected)))
    return found


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])
