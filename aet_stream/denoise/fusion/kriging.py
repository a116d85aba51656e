"""The vacuum as a witness: kriging, a Gaussian process seen up to the rim of the particle, whose length and roughness the vacuum itself
decides (Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), 2.2, 5.4).

All on a grid of every second block, in the normalised units of features.Blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from aet_stream.denoise import grid
from aet_stream.denoise.features import BLOCKS, Blocks
from aet_stream.projection import Array

SPACING = 2
"""Blocks from one point of the grid to the next."""
EDGE = BLOCKS // SPACING
"""Points along the longer edge of a frame, at most."""
_LENGTHS = np.geomspace(1.0, 16, 9)
"""Correlation lengths to choose from, in points of the grid; then between them, in steps that halve _FINER times."""
_FINER = 3
_ROUGHNESS = (1e-7, 1e-5, 1e-3, 3e-2)
"""Variance that neighbours do not share, as a share of what they do."""
_AGREEING = 2.0
"""Mean square of what all points are beyond what the others foretell, in standard deviations, from which the field is taken for rougher
than the few that chose its covariance would have it: a smooth one would amplify what contradicts it."""
_LATELY, _CONTRADICTING = 12, 8.0
"""So many blocks of the rim are no vacuum, nor what comes after them, if the mean square of what they are beyond what was foretold is more
than so many variances."""
SPREAD = 1 / 12
"""Variance of where in its square a pixel of one point lies, in points of the grid squared: a square counts as such a Gaussian window."""
_RIM = 3.0
"""Logit of the support up to which blocks at a particle's rim may show the vacuum."""
_SPILT = 0.015
"""Particle in the mean of such a block (standard deviation, normalised), by how likely it is to hold any (its odds). In simulated frames of
the published setting the root mean square is half of it, over four decades of odds."""
_CHOOSING = 200
"""Points that choose the covariance."""
_LEVEL = 100.0
"""Variance of the mean level, as a multiple of the field's: it is unknown."""


def pooled(surface: Array) -> Array:
    """(rows, columns) of blocks -> the grid of opinions: means of 2 x 2."""
    return grid.means(grid.in_blocks(surface, SPACING))


@dataclass(frozen=True, slots=True)
class Observed:
    """Means that show the vacuum."""

    at: Array
    """(n, 2) in points of the grid"""
    wide: Array
    """(n,) variances of their windows, points squared"""
    mean: Array
    """(n,)"""
    noise: Array
    """(n,) variances"""

    def parts(self) -> tuple[Array, ...]:
        """All of them, in this order."""
        return self.at, self.wide, self.mean, self.noise

    def __getitem__(self, which: Array) -> Observed:
        return Observed(*(part[which] for part in self.parts()))


def observe(blocks: Blocks, logit: Array, seen: Array) -> tuple[Observed, Observed]:
    """The vacuum of a frame. Under the particle a smooth field is known the better the nearer it is seen.

    Parameters
    ----------
    logit : (rows, columns) of the particle's support, in blocks
    seen : points of the grid that are vacuum for sure, bool

    Returns
    -------
    whole : these points
    rim : single blocks between them and the particle, the surest first
    """
    means = blocks.statistics[0].astype(np.float64)
    noise = np.square(blocks.statistics[4].astype(np.float64) / blocks.block_px)
    noise += np.square(_SPILT * np.exp(np.minimum(logit, _RIM)))
    whole = Observed(
        np.argwhere(seen).astype(np.float64), np.full(seen.sum(), SPREAD), pooled(means)[seen], pooled(noise)[seen] / SPACING**2
    )
    rows, columns = logit.shape
    rim = np.kron(~seen, np.ones((SPACING, SPACING), bool))[:rows, :columns] & (logit < _RIM)
    at = (np.argwhere(rim) - (SPACING - 1) / 2) / SPACING
    single = Observed(at, np.full(len(at), SPREAD / SPACING**2), means[rim], noise[rim])
    return whole, single[np.argsort(logit[rim], kind="stable")]


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

    def __init__(self, whole: Observed, rim: Observed) -> None:
        """`whole`: a few of it choose the covariance; `rim`: counts as long as it agrees with what comes before."""
        vacuum = Observed(*(np.concatenate(pair) for pair in zip(whole.parts(), rim.parts(), strict=True)))
        self._level = float(vacuum.mean.mean())
        values = vacuum.mean - self._level
        few = thinned(whole.at, _CHOOSING)
        self.length, self.roughness, self.strength = _chosen(vacuum[few], values[few])
        self.asked = vacuum.at[few].astype(np.int64)
        """(n, 2): where `surprise` was measured"""
        self.surprise = self._left_out(vacuum[few], values[few])
        """(n,): what these points are beyond what the others foretell, in standard deviations (Rasmussen & Williams, 5.12)"""
        sure = len(whole.at)
        solution = None
        for roughness in _ROUGHNESS[_ROUGHNESS.index(self.roughness) :]:
            self.roughness = roughness
            solution = solved(self._own_covariance(vacuum), values)
            if solution and np.mean(solution[1][:sure] ** 2) < _AGREEING:
                break
        if solution is None:
            raise LinAlgError("no roughness makes the covariance positive")
        factor, weights = solution
        heard = sure + _agreeing(weights[sure:])
        self._seen, self._factor, self._weights = vacuum[np.arange(heard)], factor[:heard, :heard], weights[:heard]

    def at(self, points: Array, wide: float = SPREAD) -> Told:
        """The field at (n, 2) points; `wide`: variance of the windows in which it is seen there."""
        across = self.covariance(self._seen.at, points, self._seen.wide[:, None] + wide)
        tied = solve_triangular(self._factor, across, lower=True, overwrite_b=True, check_finite=False)
        own = self.strength**2 * (_LEVEL + self.length**2 / (self.length**2 + 2 * wide))
        return Told(points, tied.T @ self._weights + self._level, np.maximum(own - np.square(tied).sum(0), 1e-14), tied)

    def _left_out(self, some: Observed, values: Array) -> Array:
        solution = solved(self._own_covariance(some), values)
        if solution is None:
            return np.zeros(len(values))
        inverse = solve_triangular(solution[0], np.eye(len(values)), lower=True, overwrite_b=True, check_finite=False)
        found: Array = inverse.T @ solution[1] / np.sqrt(np.square(inverse).sum(0))
        return found

    def _own_covariance(self, observed: Observed) -> Array:
        """(n, n) of observations, with what they do not share."""
        found = self.covariance(observed.at, observed.at, observed.wide[:, None] + observed.wide)
        found[np.diag_indices(len(found))] += self.roughness * self.strength**2 + observed.noise
        return found

    def covariance(self, one: Array, other: Array, wide: float | Array) -> Array:
        """(n, m) between points; `wide`: sum of the variances of the windows in which both are seen."""
        found = _shared(distances(one, other), self.length, wide)
        found *= self.strength**2
        return found


def _agreeing(surprises: Array) -> int:
    """How many observations are to be heard, given what each is beyond what those before it foretell, in standard deviations."""
    squares = np.append(0.0, np.cumsum(np.square(surprises)))
    lately = (squares[_LATELY:] - squares[:-_LATELY]) / _LATELY
    contradicting = np.flatnonzero(lately > _CONTRADICTING)
    return int(contradicting[0]) if contradicting.size else len(surprises)


def _shared(apart: Array, length: float, wide: float | Array) -> Array:
    """(n, m): covariance of a field of variance 1 between points at squared distances; overwrites them."""
    broader = length**2 + wide
    apart *= -1 / (2 * broader)
    np.exp(apart, out=apart)
    apart *= length**2 / broader
    apart += _LEVEL
    return apart


def _chosen(vacuum: Observed, values: Array) -> tuple[float, float, float]:
    """(length, roughness, strength) of highest evidence; the strength follows from the other two."""
    apart, wide = distances(vacuum.at, vacuum.at), vacuum.wide[:, None] + vacuum.wide
    variance = max(float(np.mean(values**2)), 1e-14)
    best, found = -np.inf, (float(_LENGTHS[-1]), _ROUGHNESS[-1], variance**0.5)

    def weigh(lengths: Iterable[float], roughnesses: Iterable[float]) -> None:
        nonlocal best, found
        for length in lengths:
            shared = _shared(apart.copy(), length, wide)
            for roughness in roughnesses:
                solution = solved(shared + np.diag(roughness + vacuum.noise / variance), values)
                if solution is None:
                    continue
                factor, white = solution
                square = max(float(np.mean(white**2)), 1e-20)
                evidence = -len(values) / 2 * np.log(square) - float(np.log(np.diag(factor)).sum())
                if evidence > best:
                    best, found = evidence, (float(length), roughness, square**0.5)

    weigh(_LENGTHS, _ROUGHNESS)
    step = float(_LENGTHS[1] / _LENGTHS[0])
    for _ in range(_FINER):
        step **= 0.5
        weigh((found[0] * step, found[0] / step), (found[1],))
    return found


def solved(matrix: Array, values: Array) -> tuple[Array, Array] | None:
    """(its Cholesky factor L, L^-1 values); None: the matrix is not positive."""
    try:
        factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    return factor, solve_triangular(factor, values, lower=True, check_finite=False)


def thinned(at: Array, most: int) -> Array:
    """Indices of at most so many points, at random (near ones among them) but always the same, rows and columns alike."""
    y, x = at[:, 0].astype(np.int64), at[:, 1].astype(np.int64)
    mixed = ((y + x) * 7919 + y * x * 104729) * 2654435761 % 2**32
    return np.sort(np.argsort(mixed, kind="stable")[:most])


def distances(one: Array, other: Array) -> Array:
    """(n, m) float64: squared distances."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    found: Array = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T  # whole numbers: exact
    return found
