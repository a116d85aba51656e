"""Where the particle can be, as all tilts have it together.

At steep tilts a film is thick and foreshortened, and a network takes much of it for particle, or particle for film. But what is particle is
seen as such at every tilt: what is left of space when each tilt has carved away its vacuum holds the particle (the visual hull:
Laurentini, IEEE Trans. Pattern Anal. Mach. Intell. 16 (1994) 150), and its shadow at a tilt is where that tilt may show some of it.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

from aet_stream.consistency import ENOUGH
from aet_stream.projection import Array

_MOST = 0.8
"""Of the tilts that see particle at a place of the hull: single supports are torn"""
_TOO_MUCH, _TOO_LITTLE = 0.05, 0.7
"""Share of a support beyond the hull, and share of the hull that it covers against what is usual, from which on it is not believed"""
_AGREE = 0.02
"""Share of most supports that may lie beyond the hull; more: what is seen is no one thing that turns, or lies where nobody knows"""


def carved(supports: Array, tilts_deg: Array, axes_deg: Array, lies: Array, usable: Array) -> Array | None:
    """(n, rows, columns) bool: the supports, but where one is far from what the others leave of it, that; None where nothing is to be said.

    A support with more than that loses what is beyond; one with less is all of it.

    Parameters
    ----------
    supports : (n, rows, columns) bool, of blocks
    axes_deg : (n,) where the tilt axis lies, from +y towards -x
    lies : (n, 2) along and across the axis, blocks: how far the specimen lies from where it turns about the middle
    usable : (n,) bool: which have found the particle, and all of it
    """
    whole = usable & ~_at_side(supports)
    if whole.sum() < max(ENOUGH, len(supports) / 2):
        return None
    shadows = _shadows(supports, tilts_deg, axes_deg, lies, whole)
    covered = (supports & shadows).sum((1, 2)) / np.maximum(shadows.sum((1, 2)), 1)
    shadows = np.array([binary_dilation(shadow) for shadow in shadows])
    beyond = (supports & ~shadows).sum((1, 2)) / np.maximum(supports.sum((1, 2)), 1)
    if np.median(beyond[whole]) > _AGREE:
        return None
    found = supports.copy()
    found[beyond > _TOO_MUCH] &= shadows[beyond > _TOO_MUCH]
    torn = covered < _TOO_LITTLE * np.median(covered[whole])
    found[torn] = shadows[torn]
    return found


def _at_side(supports: Array) -> Array:
    """(n,) bool: cut off by the frame."""
    rims = np.concatenate([supports[:, 0], supports[:, -1], supports[:, :, 0], supports[:, :, -1]], axis=1)
    found: Array = np.asarray(rims.any(1))
    return found


def _shadows(supports: Array, tilts_deg: Array, axes_deg: Array, lies: Array, whole: Array) -> Array:
    """(n, rows, columns) bool, of the hull of those that are `whole`; space is as deep as the frame is wide."""
    edge = max(supports.shape[1:])
    middle = np.arange(edge) - (edge - 1) / 2
    depth, width = np.meshgrid(middle, middle, indexing="ij")
    votes, asked = np.zeros((edge, edge, edge)), np.zeros((edge, edge, edge))
    for number in np.flatnonzero(whole).tolist():
        places, inside = _upright(supports.shape[1:], edge, float(axes_deg[number]), lies[number])
        seen = np.where(inside, supports[number][tuple(places)], False)
        at, within = _columns(width, depth, float(tilts_deg[number]), edge)
        votes += seen[:, at] & within
        asked += inside[:, at] & within
    hull = (votes >= _MOST * asked) & (asked > whole.sum() / 2)
    found = np.zeros(supports.shape, bool)
    for number, tilt_deg in enumerate(tilts_deg.tolist()):
        at, within = _columns(width, depth, tilt_deg, edge)
        shadow = np.zeros((edge, edge), bool)
        slices, *place = np.nonzero(hull & within)
        shadow[slices, at[tuple(place)]] = True
        places, inside = _upright(supports.shape[1:], edge, float(axes_deg[number]), lies[number])
        there = shadow & inside
        found[number][tuple(index[there] for index in places)] = True
    return found


def _columns(width: Array, depth: Array, tilt_deg: float, edge: int) -> tuple[Array, Array]:
    """Which column across the axis a place of a slice is seen in, and whether that is in the frame."""
    angle = np.radians(tilt_deg)
    at = np.rint(width * np.cos(angle) + depth * np.sin(angle) + (edge - 1) / 2).astype(np.int64)
    return np.clip(at, 0, edge - 1), (at >= 0) & (at < edge)


def _upright(shape: tuple[int, ...], edge: int, axis_deg: float, lies: Array) -> tuple[Array, Array]:
    """(2, edge, edge) row and column of the block at each place along and across the axis, and whether there is one."""
    middle = np.arange(edge) - (edge - 1) / 2
    along, across = np.meshgrid(middle + lies[0], middle + lies[1], indexing="ij")
    turn = np.radians(axis_deg)
    rows = along * np.cos(turn) + across * np.sin(turn) + (shape[0] - 1) / 2
    columns = across * np.cos(turn) - along * np.sin(turn) + (shape[1] - 1) / 2
    places = np.rint(np.stack([rows, columns])).astype(np.int64)
    limits = np.array(shape)[:, None, None] - 1
    return np.clip(places, 0, limits), ((places >= 0) & (places <= limits)).all(0)
