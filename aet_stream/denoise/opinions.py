"""Second opinions on what lies under the particle, from what the frame itself shows; the referee weighs them against the network's word.

Once a network has found the particle, two classical estimates have the good mask that they lack on their own:

- the vacuum's: kriging, a Gaussian process whose length and roughness the vacuum itself decides (Rasmussen & Williams, Gaussian Processes
  for Machine Learning (2006), 2.2, 5.4);
- the lattice's: the same, with the amplitudes of a crystal's fringes as covariates (lattice.py): the mean of the particle is a smooth
  function of them, whatever function it is; what it has beyond is background.

All on a grid of every second block, in the normalised units of features.Blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.ndimage import binary_dilation

from aet_stream.denoise import grid, lattice
from aet_stream.denoise.features import BLOCKS, Blocks
from aet_stream.projection import Array

SPACING = 2
"""Blocks from one point of the grid to the next."""
EDGE = BLOCKS // SPACING
"""Points along the longer edge of a frame, at most."""
_LENGTHS = np.geomspace(1.2, 16, 12)
"""Correlation lengths to choose from, in points of the grid."""
_ROUGHNESS = (1e-5, 1e-3, 3e-2)
"""Variance that neighbours do not share, as a share of what they do."""
_LEAST_VACUUM, _LEAST_INSIDE = 40, 40
"""Points without which there is no opinion."""
_CHOOSING, _WITNESSES = 200, 80
"""Points that choose the covariance, and points at which the lattice is asked: so few that what no fringe explains is different at each."""
_LEVEL = 100.0
"""Variance of the mean level, as a multiple of the field's: it is unknown."""
_BENT, _BEND = 0.3, 0.25
"""How far the particle's mean may be from proportional to a fringe's amplitude (variance), and over which share of the strongest amplitude
that may change."""
_MISFITS = np.geomspace(0.02, 20, 10)
"""Standard deviations to choose from of what no fringe explains, as multiples of the field's."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """Of one witness."""

    background: Array
    """(rows, columns); the network's own where the witness says nothing"""
    spread: Array
    """(rows, columns): standard deviation, by the witness itself; 0 where it says nothing"""


@dataclass(frozen=True, slots=True)
class Opinions:
    """What is said of a frame."""

    seen: Array
    """(rows, columns) bool: vacuum"""
    field: Field | None = None
    vacuum: Opinion | None = None
    crystal: Crystal | None = None
    lattice: Opinion | None = None


def pooled(surface: Array) -> Array:
    """(rows, columns) of blocks -> the grid of opinions: means of 2 x 2."""
    found: Array = grid.in_blocks(surface, SPACING).mean((1, 3))
    return found


def ask(frame: Array, blocks: Blocks, background: Array, drawn: Array, support: Array) -> Opinions:
    """What vacuum and lattice say of a frame.

    Parameters
    ----------
    frame, drawn : (height, width) the projection, and its background as found so far, counts
    background, support : (rows, columns) the same background, normalised, and where the particle is (bool), in blocks
    """
    seen: Array = np.logical_not(grid.in_blocks(binary_dilation(support), SPACING).any((1, 3)))
    if seen.sum() < _LEAST_VACUUM or seen.all():
        return Opinions(seen)
    means, own = pooled(blocks.statistics[0].astype(np.float64)), pooled(background.astype(np.float64))
    try:
        field = Field(seen, means, pooled(np.square(blocks.statistics[4].astype(np.float64) / blocks.block_px)) / SPACING**2)
    except LinAlgError:
        return Opinions(seen)
    hidden = field.at(np.argwhere(~seen))
    vacuum = _opinion(hidden.mean, hidden.variance, seen, own)
    inside = np.argwhere(~seen & (pooled(support.astype(np.float64)) > 0.5))
    if len(inside) < _LEAST_INSIDE:
        return Opinions(seen, field, vacuum)
    particle = (frame - drawn) / np.float32(blocks.span)
    fringes = lattice.find(particle, blocks.block_px)
    if fringes is None:
        return Opinions(seen, field, vacuum)
    spacing_px = SPACING * blocks.block_px
    amplitude = lattice.amplitudes(particle, fringes, spacing_px)
    amplitude /= np.maximum(np.quantile(amplitude[:, inside[:, 0], inside[:, 1]], 0.995, axis=1), 1e-9)[:, None, None]
    level = lattice.windowed((frame - np.float32(blocks.low)) / np.float32(blocks.span), fringes.window_px, spacing_px).real
    try:
        crystal = Crystal(field, amplitude, level.astype(np.float64), fringes.window_px / spacing_px, inside)
    except LinAlgError:
        return Opinions(seen, field, vacuum)
    return Opinions(seen, field, vacuum, crystal, _opinion(*crystal.tells(hidden), seen, own))


def _opinion(mean: Array, variance: Array, seen: Array, own: Array) -> Opinion:
    """Values of the hidden points, in their order, laid out."""
    background, spread = own.copy(), np.zeros_like(own)
    background[~seen], spread[~seen] = mean, np.sqrt(variance)
    return Opinion(background, spread)


@dataclass(frozen=True, slots=True)
class Told:
    """What the vacuum says of some points."""

    at: Array
    """(n, 2)"""
    mean: Array
    """(n,)"""
    variance: Array
    tied: Array
    """(vacuum, n): L^-1 k, what ties them to the vacuum"""


class Field:
    """A stationary Gaussian process of unknown mean level, seen in the vacuum."""

    def __init__(self, seen: Array, means: Array, noise: Array) -> None:
        self._at = np.argwhere(seen)
        values, own = means[seen], noise[seen]
        self._level = float(values.mean())
        values = values - self._level
        few = _thinned(self._at, _CHOOSING)
        self.length, self.roughness, self.strength = _chosen(self._at[few], values[few], own[few])
        matrix = self.covariance(self._at, self._at)
        matrix[np.diag_indices(len(matrix))] += self.roughness * self.strength**2 + own
        self._factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        self._weights = solve_triangular(self._factor, values, lower=True, check_finite=False)

    def at(self, points: Array, window: float = 0.0) -> Told:
        """The field at (n, 2) points; `window`: standard deviation of the Gaussian windows in which it is seen there."""
        across = self.covariance(self._at, points, window**2)
        tied = solve_triangular(self._factor, across, lower=True, overwrite_b=True, check_finite=False)
        own = self.strength**2 * (_LEVEL + self.length**2 / (self.length**2 + 2 * window**2))
        return Told(points, tied.T @ self._weights + self._level, np.maximum(own - np.square(tied).sum(0), 1e-14), tied)

    def covariance(self, one: Array, other: Array, wider: float = 0.0) -> Array:
        """(n, m) between points; `wider`: sum of the variances of the windows in which both are seen."""
        length = self.length**2 + wider
        found = _distances(one, other)
        found *= -1 / (2 * length)
        np.exp(found, out=found)
        found *= self.strength**2 * self.length**2 / length
        found += self.strength**2 * _LEVEL
        return found


def _chosen(at: Array, values: Array, noise: Array) -> tuple[float, float, float]:
    """(length, roughness, strength) of highest evidence; the strength follows from the other two."""
    apart = _distances(at, at)
    variance = max(float(np.mean(values**2)), 1e-14)
    best, found = -np.inf, (float(_LENGTHS[-1]), _ROUGHNESS[-1], variance**0.5)
    for length in _LENGTHS:
        shared = np.exp(-apart / (2 * length**2)) + _LEVEL
        for roughness in _ROUGHNESS:
            solved = _solved(shared + np.diag(roughness + noise / variance), values)
            if solved is None:
                continue
            factor, white = solved
            square = max(float(np.mean(white**2)), 1e-20)
            evidence = -len(values) / 2 * np.log(square) - float(np.log(np.diag(factor)).sum())
            if evidence > best:
                best, found = evidence, (float(length), roughness, square**0.5)
    return found


class Crystal:
    """Fringes as covariates: mean of the particle = smooth function of their amplitudes + background + misfit."""

    def __init__(self, field: Field, amplitude: Array, level: Array, window: float, inside: Array) -> None:
        """`amplitude` (fringes, rows, columns), 1 where strongest; `level` (rows, columns): means in windows; `inside` (n, 2): particle."""
        self.amplitude, self._window, self._field = amplitude, window, field
        below, few = field.at(inside, window), _thinned(inside, _WITNESSES)
        self._at, self._tied = inside[few], below.tied[:, few]
        values = amplitude[:, inside[:, 0], inside[:, 1]]
        surplus = level[inside[:, 0], inside[:, 1]] - below.mean
        shared = field.covariance(inside, self._at, 2 * window**2) - below.tied.T @ self._tied + 1.0
        for each in values:
            shared += np.outer(each, each[few]) + _BENT * np.exp(-((each[:, None] - each[few]) ** 2) / (2 * _BEND**2))
        unlike = np.exp(-_distances(self._at, self._at) / (4 * window**2)) + 0.1 * np.eye(len(few))
        best = -np.inf
        for misfit in _MISFITS * field.strength + 1e-6:
            solved = _solved(shared[few] + misfit**2 * unlike, surplus[few])
            if solved is None:
                continue
            factor, white = solved
            evidence = -float(white @ white) / 2 - float(np.log(np.diag(factor)).sum())
            if evidence > best:
                best, self.misfit, self._factor, self._white = evidence, float(misfit), factor, white
        if best == -np.inf:
            raise LinAlgError("no misfit makes the covariance positive")
        self.left_over = np.zeros(level.shape)
        """(rows, columns): what neither the fringes nor a background explain"""
        explained = shared @ solve_triangular(self._factor, self._white, lower=True, trans="T", check_finite=False)
        self.left_over[inside[:, 0], inside[:, 1]] = surplus - explained

    def tells(self, hidden: Told) -> tuple[Array, Array]:
        """((n,) mean, (n,) variance) of the background at points, given vacuum and fringes."""
        joint = self._field.covariance(self._at, hidden.at, self._window**2) - self._tied.T @ hidden.tied
        told = solve_triangular(self._factor, joint, lower=True, overwrite_b=True, check_finite=False)
        return hidden.mean + told.T @ self._white, np.maximum(hidden.variance - np.square(told).sum(0), 1e-14)


def _solved(matrix: Array, values: Array) -> tuple[Array, Array] | None:
    """(its Cholesky factor L, L^-1 values); None: the matrix is not positive."""
    try:
        factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    return factor, solve_triangular(factor, values, lower=True, check_finite=False)


def _thinned(at: Array, most: int) -> Array:
    """Indices of at most so many points, at random (near ones among them) but always the same, rows and columns alike."""
    y, x = at[:, 0].astype(np.int64), at[:, 1].astype(np.int64)
    mixed = ((y + x) * 7919 + y * x * 104729) * 2654435761 % 2**32
    return np.sort(np.argsort(mixed, kind="stable")[:most])


def _distances(one: Array, other: Array) -> Array:
    """(n, m) float64: squared distances."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    found: Array = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T  # whole numbers: exact
    return found
