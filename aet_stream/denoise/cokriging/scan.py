"""Where a film lies: its slopes have to agree between tilts.

cos^2(tilt + turn) times the slope of the background across the axis is the film's own slope at (u, along), whatever pedestals there are.
For every height, turn and slope of a grid it is compared between all tilts that see the same place; the share that they do not agree
about says how wrong the geometry is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

REACH_DEG = 62.0
"""Steeper tilts show the film too foreshortened to compare slopes."""
_HEIGHTS = np.arange(-20.0, 20.1, 0.8)
_TURNS_DEG = np.arange(-9.0, 9.1, 1.5)
_SLOPES = np.arange(-0.15, 0.151, 0.01)
_PLACES = np.arange(-26.0, 26.1, 0.75)
_ROUNDING = 1e-9
_UNSEEN = 0.1
"""Score where a height lies beyond the grid."""
_SHOWN = 0.999
"""Of a mean between points, so much at least is of vacuum."""
_LEAST_SHARE = 0.55
"""Of a row that is vacuum, for the row to be used of a projection"""
_OFTEN, _LEAST_OFTEN = 0.9, 0.6
"""Of the projections, in so many, for it to be used at all; where particles reach most rows, those rows that most projections show, but of
three in five at least"""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a film lies best."""

    score: float
    """Logarithm of the share of its slopes that the tilts do not agree about: 0 for no film, -2 and less for a clear one"""
    height: float
    turn_deg: float
    slope: float


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan has found."""

    best: Geometry
    level: Geometry
    """Of films that are neither turned nor slope"""
    often: bool
    """Were there rows of vacuum in nearly all projections?"""


def scan(series: Sequence[Seen]) -> Scanned | None:
    """None: too few tilts, or no row of vacuum through three in five of them."""
    flat = [seen for seen in series if abs(seen.tilt_deg) < REACH_DEG and not seen.lost]
    if len(flat) < 3:
        return None
    along, across, values = _upright(flat)
    finite = np.isfinite(values)
    vacuum = (finite.mean(2) > _LEAST_SHARE).mean(0)
    if vacuum.max() < _LEAST_OFTEN:
        return None
    often = bool(vacuum.max() > _OFTEN)
    rows = np.flatnonzero(vacuum > (_OFTEN if often else vacuum.max() - 0.1))
    slopes = np.diff(values[:, rows], axis=2) / (across[1] - across[0])
    tilts = np.array([seen.tilt_deg for seen in flat])
    start = np.array([(across[0] + across[1]) / 2 for _ in flat])
    scores = np.array([[_score(slopes, start, across[1] - across[0], tilts + turn, height) for height in _HEIGHTS] for turn in _TURNS_DEG])
    best = level = Geometry(np.inf, 0.0, 0.0, 0.0)
    for slope in _SLOPES:
        shifted = np.zeros(scores.shape[:2])
        for row in range(len(rows)):
            at = _HEIGHTS + slope * along[rows[row]]
            for which in range(len(_TURNS_DEG)):
                shifted[which] += np.interp(at, _HEIGHTS, scores[which, :, row], left=_UNSEEN, right=_UNSEEN)
        shifted /= len(rows)
        turn, height = np.unravel_index(shifted.argmin(), shifted.shape)
        if shifted[turn, height] < best.score:
            best = Geometry(float(shifted[turn, height]), float(_HEIGHTS[height]), float(_TURNS_DEG[turn]), float(slope))
        if abs(slope) < _ROUNDING:
            straight = shifted[np.abs(_TURNS_DEG).argmin()]
            level = Geometry(float(straight.min()), float(_HEIGHTS[straight.argmin()]), 0.0, 0.0)
    return Scanned(best, level, often)


def _upright(series: Sequence[Seen]) -> tuple[Array, Array, Array]:
    """((rows,) along, (columns,) across, (n, rows, columns) means in units of each span; NaN where hidden), the axis along the rows' order.

    Bilinear between points; as they are where the axis is upright and nothing has to be shifted.
    """
    rows, columns = series[0].means.shape
    edge = max(rows, columns)
    along, across = (np.arange(n) - (n - 1) / 2 for n in (edge, edge))
    values = np.empty((len(series), edge, edge))
    for out, seen in zip(values, series, strict=True):
        # The centres are an affine map of the indices: it is turned round.
        origin = np.array([seen.centres[i, 0, 0] for i in (0, 1)])
        steps = np.array([[seen.centres[i, 1, 0] - origin[i], seen.centres[i, 0, 1] - origin[i]] for i in (0, 1)])
        wanted = np.stack(np.meshgrid(along, across, indexing="ij")).reshape(2, -1) - origin[:, None]
        at = np.round(np.linalg.solve(steps, wanted), 6)
        shown = map_coordinates((~seen.hidden).astype(np.float64), at, order=1)
        means = map_coordinates(np.where(seen.hidden, 0.0, seen.means), at, order=1)
        out[:] = np.where(shown > _SHOWN, means, np.nan).reshape(edge, edge)
    return along, across, values


def _score(slopes: Array, start: Array, step: float, angles_deg: Array, height: float) -> Array:
    """(rows,): of each row, were the film there."""
    angles = np.radians(angles_deg)
    cos, sin = np.cos(angles), np.sin(angles)
    at = (_PLACES * cos[:, None] + height * sin[:, None] - start[:, None]) / step
    last = slopes.shape[2] - 1
    inside = (at >= 0) & (at < last)
    low = np.clip(at.astype(np.int64), 0, last - 1)
    part = (at - low)[:, None]
    which = np.arange(len(slopes))[:, None]
    seen = slopes[which, :, low].transpose(0, 2, 1) * (1 - part) + slopes[which, :, low + 1].transpose(0, 2, 1) * part
    seen = np.where(inside[:, None], seen, np.nan) * np.square(cos)[:, None, None]
    there = np.isfinite(seen)
    seen = np.where(there, seen, 0.0)
    weight = there / cos[:, None, None] ** 4
    count = there.sum(0)
    mean = (weight * seen).sum(0) / np.maximum(weight.sum(0), 1e-12)
    several = count >= 2
    apart = np.where(several, (weight * np.square(seen - mean)).sum(0), 0).sum(1)
    whole = np.where(several, (weight * np.square(seen)).sum(0), 0).sum(1)
    freedom = np.where(several, count, 0).sum(1) / np.maximum(np.where(several, count - 1, 0).sum(1), 1)
    score: Array = np.log(np.maximum(apart * freedom, 1e-30) / np.maximum(whole, 1e-30))
    return score
