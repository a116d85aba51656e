"""What the particle's totals say of a background: of one thing the total is the same in all projections (Helgason-Ludwig conditions of
order 0), so that what it strays is background that was left under the particle, or particle that was taken for background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.consistency import ENOUGH
from aet_stream.projection import Array

_LEAST, _MOST = 0.8, 1.25
"""Of the total in the middle of all projections: beyond, the network has lost a good part of the particle, or taken a film for it."""
_WITH_MEAN = 1.25
"""An error under a particle is so many times its mean there (consistency.py)."""
_OF_NORMAL = 1.4826
"""Standard deviation over the median of absolute values"""
_NEIGHBOURS_DEG = 8.0
"""Tilts whose errors are alike"""
_OUTLIER = 3.0
"""Standard deviations beyond which a total says no more of its neighbours"""


@dataclass(frozen=True, slots=True)
class Strayed:
    """Errors under the particle, root mean squares, as far as totals tell them."""

    first: Array
    """(n,) of the first edition; 0 where nothing is known"""
    series: Array
    """(n,) of the series' background"""
    missed: Array
    """(n,) of the series, what it leaves in all projections and the first edition takes: contamination that turns with the particle and
    never shows; 0 where it takes more"""


def lost(totals: Array) -> Array:
    """(n,) bool: where a good part of the particle passes for background, and its vacuum is not vacuum."""
    return totals < _LEAST * _middle(totals)


def off(totals: Array) -> Array:
    """(n,) bool: where it is not the particle that was found, or not all of it: nor is its centre of mass known."""
    middle = _middle(totals)
    return (totals < _LEAST * middle) | (totals > _MOST * middle)


def _middle(totals: Array) -> float:
    known = totals[np.isfinite(totals)]
    return float(np.median(known)) if known.size else float("nan")


def strayed(first: Array, series: Array, hidden: Array, tilts_deg: Array) -> Strayed:
    """How far totals stray from the middle of all of them, near each tilt and altogether: what all of a series have in common no total
    tells, but errors that differ from tilt to tilt by so much have hardly less in common. What both have in common is the beam and what
    the crystal does to it (channelling), not a background.

    Parameters
    ----------
    first, series : (n,) total of each particle with one background or the other taken off, sums over points; NaN: not known
    hidden : (n,) points that the particle hides
    """
    there = np.isfinite(first) & np.isfinite(series) & (hidden > 0)
    known = there & ~lost(first)
    if known.sum() < ENOUGH:
        nothing = np.zeros(len(first))
        return Strayed(nothing, nothing, nothing)
    each = there * _WITH_MEAN / np.where(known, np.maximum(hidden, 1), np.median(hidden[known]))
    near = np.exp(-np.square((tilts_deg[:, None] - tilts_deg) / _NEIGHBOURS_DEG) / 2) * known
    near /= np.maximum(near.sum(1, keepdims=True), 1e-12)
    away = [np.where(there, totals - np.median(totals[known]), 0.0) for totals in (first, series)]
    usual = [_OF_NORMAL * float(np.median(np.abs(one[known]))) for one in away]
    mild = [np.clip(one, -_OUTLIER * sd, _OUTLIER * sd) for one, sd in zip(away, usual, strict=True)]
    common = max(float(np.mean((mild[0] * mild[1])[known])), 0.0)

    def told(away: Array, mild: Array, usual: float) -> Array:
        own = np.maximum(np.maximum(np.square(away), near @ np.square(mild)) - common, 0.0)
        found: Array = each * np.sqrt(own + max(usual**2 - common, 0.0))
        return found

    of_first, of_series = (told(*columns) for columns in zip(away, mild, usual, strict=True))
    return Strayed(of_first, of_series, each * max(float(np.median((series - first)[known])), 0.0))


def beyond(totals: Array, hidden: Array, size: int) -> Array:
    """(n,) by how much more than usual each total strays from the middle of all, as a root mean square error over a frame of `size` points;
    0 where it is not known, or of too few.

    Parameters
    ----------
    totals : (n,) of each particle, sums over points; NaN: not known
    hidden : (n,) points that the particle hides
    """
    there = np.isfinite(totals) & (hidden > 0)
    known = there & ~lost(totals)
    if known.sum() < ENOUGH:
        return np.zeros(len(totals))
    away = np.abs(np.where(there, totals - np.median(totals[known]), 0.0))
    usual = _OF_NORMAL * float(np.median(away[known]))
    under = np.where(known, hidden, np.median(hidden[known]))
    found: Array = _WITH_MEAN * np.maximum(away - _OUTLIER * usual, 0.0) / np.sqrt(np.maximum(under, 1) * size)
    return found
