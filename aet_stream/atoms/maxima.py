"""Where to begin: local maxima of a volume, and how far apart atoms are."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

from aet_stream.projection import Array

SMOOTH_ANGSTROM = 0.4
APART_ANGSTROM = 0.8
"""Of two maxima that are nearer than this along every axis, the higher one counts."""
_LOWEST = 0.05
"""Of the highest maximum: lower ones are noise in the vacuum."""
_FEWEST = 10
_FAR_ANGSTROM = 6.0
_BIN_ANGSTROM = 0.1
_NEIGHBOURS_ANGSTROM = (1.9, 4.2)
"""Atoms of metals, oxides and semiconductors that are seen one by one have their first neighbours between these."""


def maxima(volume: Array, voxel_angstrom: float) -> tuple[Array, Array]:
    """(n, 3) voxel coordinates [slice, row, column] of local maxima, refined by a parabola along each axis, and their (n,) heights.

    Those that stand out from the rest by Otsu's threshold.
    """
    smooth = gaussian_filter(volume, SMOOTH_ANGSTROM / voxel_angstrom, mode="constant")
    places, heights = tops(smooth, voxel_angstrom, _LOWEST * float(smooth.max()))
    above = heights > otsu(heights) if len(heights) > 1 else np.ones(len(heights), bool)
    return places[above], heights[above]


def tops(field: Array, voxel_angstrom: float, least: float) -> tuple[Array, Array]:
    """The same of a field that is smooth already, all that are higher than `least`."""
    size = 2 * max(1, round(APART_ANGSTROM / voxel_angstrom)) + 1
    is_top = (field == maximum_filter(field, size=size)) & (field > least)
    for axis in range(3):
        edge = np.moveaxis(is_top, axis, 0)
        edge[[0, -1]] = False
    places = np.argwhere(is_top)
    heights = field[tuple(places.T)]
    fine = places.astype(np.float64)
    for axis, step in enumerate(np.eye(3, dtype=int)):
        low, middle, high = (field[tuple((places + k * step).T)] for k in (-1, 0, 1))
        bend = low - 2 * middle + high
        fine[:, axis] += np.where(bend < 0, np.clip(0.5 * (low - high) / np.where(bend < 0, bend, -1), -0.5, 0.5), 0)
    return fine, heights


def otsu(values: Array) -> float:
    """The threshold between two groups. Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62."""
    edges = np.quantile(values, np.linspace(0.02, 0.98, 97))
    scores = []
    for edge in edges:
        low = values < edge
        share = float(low.mean())
        scores.append(share * (1 - share) * (values[low].mean() - values[~low].mean()) ** 2 if 0 < share < 1 else 0.0)
    return float(edges[int(np.argmax(scores))])


def pair_distribution(angstrom: Array) -> tuple[Array, Array]:
    """(distances in angstrom, g): how many pairs are so far apart, relative to as many points spread evenly over the same density.

    The density is that of neighbours within 6 angstrom; surfaces are not corrected for.
    """
    edges = np.arange(0, _FAR_ANGSTROM + _BIN_ANGSTROM / 2, _BIN_ANGSTROM)
    tree = cKDTree(angstrom)
    counts = np.diff(tree.count_neighbors(tree, edges)).astype(np.float64)
    shells = np.diff(edges**3)
    expected = counts[1:].sum() * shells / shells[1:].sum()
    return (edges[1:] + edges[:-1]) / 2, counts / np.maximum(expected, 1e-12)


def neighbour_distance(angstrom: Array) -> tuple[float, float]:
    """(distance of first neighbours in angstrom, how much emptier it is on both sides of it); NaN and 0 where there are too few points.

    Atoms keep their distance: hardly any pair is nearer than six tenths of it, and there are fewer half as far again before the second
    neighbours come. Maxima of noise do neither. The figure is the density of pairs at the distance over that in the fuller of both gaps,
    each two standard errors of its count to the worse side.
    """
    if len(angstrom) < _FEWEST:
        return float("nan"), 0.0
    distance, g = pair_distribution(angstrom)
    smooth = gaussian_filter(g, 1.0)
    first = float(distance[_first_peak(smooth, (distance >= _NEIGHBOURS_ANGSTROM[0]) & (distance <= _NEIGHBOURS_ANGSTROM[1]))])
    tree = cKDTree(angstrom)

    def density(low: float, high: float, side: int) -> float:
        pairs = float(np.diff(tree.count_neighbors(tree, np.array([low, high]) * first))[0]) / 2
        return max(0.0, pairs + side * 2 * float(np.sqrt(pairs + 1))) / (high**3 - low**3)

    nearer = density(0.5, 0.7, 1)
    farther = min(density(low, low + 0.15, 1) for low in np.arange(1.1, 1.4, 0.05))
    contrast: float = density(0.92, 1.08, -1) / max(nearer, farther)
    return first, contrast


def _first_peak(values: Array, within: Array) -> int:
    """The first local maximum that is at least four fifths of the highest there."""
    inner = np.zeros_like(within)
    inner[1:-1] = (values[1:-1] >= values[:-2]) & (values[1:-1] >= values[2:])
    high = within & (values >= 0.8 * values[within].max())
    peaks = np.flatnonzero(inner & high)
    return int(peaks[0]) if peaks.size else int(np.flatnonzero(within)[values[within].argmax()])
