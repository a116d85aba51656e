"""Kriging: the vacuum continued under the particle by a Gaussian process that is seen up to the particle's rim, and whose length and
roughness the vacuum itself decides. A tilted film is foreshortened across the axis: where the vacuum says so, there is a second field whose
length along the rows is another than that down them. Its distances are taken as if the frame were stretched until both are alike.

All on a grid of every second block, in the normalised units of features.Blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from scipy.linalg import LinAlgError

from aet_stream.denoise import grid
from aet_stream.denoise.features import BLOCKS, Blocks
from aet_stream.denoise.gaussian_process.dense import Conditioned, condition, most_evident, thinned
from aet_stream.denoise.gaussian_process.separable import Pairs, Points, joined
from aet_stream.denoise.lanes import in_lanes
from aet_stream.projection import Array

SPACING = 2
"""Blocks from one point of the grid to the next."""
EDGE = BLOCKS // SPACING
"""Points along the longer edge of a frame, at most."""
_LENGTHS = np.geomspace(1.0, 16, 9)
"""Correlation lengths to choose from, in points of the grid; then between them, in steps that halve _FINER times."""
_FINER = 3
_STRETCHES = (0.5, 0.5**0.5, 2**0.5, 2.0)
"""To choose from: how much longer the length down the rows is than the geometric mean of both, for it is 4 times the other under a film at
75 degrees; then between them, as the lengths."""
_WORTH = 3.0
"""Gain of evidence from which on there are two lengths."""
_FORESHORTENED = 1.4
"""Stretch, or its inverse, from which on a background is one that turns with the specimen: about twice as fine along one axis."""
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
    """(rows, columns) of blocks -> the grid of the experts: means of 2 x 2."""
    return grid.means(grid.in_blocks(surface, SPACING))


@dataclass(frozen=True, slots=True)
class Observations:
    """Means of windows that show the vacuum."""

    points: Points
    """n windows, in points of the grid"""
    mean: Array
    """(n,)"""
    noise: Array
    """(n,) variances"""

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, which: Array | slice) -> Observations:
        return Observations(self.points[which], self.mean[which], self.noise[which])


def observe(blocks: Blocks, logit: Array, seen: Array) -> tuple[Observations, Observations]:
    """The vacuum of a frame. Under the particle a smooth background is known the better the nearer it is seen.

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
    whole = Observations(Points(np.argwhere(seen).astype(np.float64), SPREAD), pooled(means)[seen], pooled(noise)[seen] / SPACING**2)
    rows, columns = logit.shape
    rim = np.kron(~seen, np.ones((SPACING, SPACING), bool))[:rows, :columns] & (logit < _RIM)
    at = (np.argwhere(rim) - (SPACING - 1) / 2) / SPACING
    single = Observations(Points(at, SPREAD / SPACING**2), means[rim], noise[rim])
    return whole, single[np.argsort(logit[rim], kind="stable")]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the vacuum says of some points."""

    points: Points
    """n windows"""
    mean: Array
    """(n,)"""
    variance: Array
    white_covariance: Array
    """(vacuum, n): L^-1 k, their covariance with the vacuum"""


class Kriging:
    """A stationary Gaussian process of unknown mean level, conditioned on the vacuum."""

    def __init__(self, whole: Observations, rim: Observations, shape: Shape | None = None) -> None:
        """`whole`: a few of it choose the covariance, if no `shape` is given; `rim`: counts as long as it agrees with what comes before."""
        self._level = float(np.concatenate([whole.mean, rim.mean]).mean())
        values = whole.mean - self._level
        few = thinned(whole.points.at, _CHOOSING)
        self._shape = shape or _chosen(whole[few], values[few])
        self.length, self.roughness, self.strength, self.stretch = self._shape
        self.left_out_at = whole.points.at[few].astype(np.int64)
        """(n, 2): where `left_out` was measured"""
        self.left_out = self._left_out(whole[few], values[few])
        """(n,): leave-one-out residuals, in standard deviations (Rasmussen & Williams, 5.12)"""
        fit = self._fit(whole, rim)
        used = _agreeing(fit.white[len(whole) :])
        self._vacuum = joined(whole.points, rim.points[:used])
        self._posterior = fit.first(len(self._vacuum))

    def foreshortened(self, whole: Observations, rim: Observations, points: Points) -> Prediction | None:
        """What it says of points with two lengths; None: the vacuum, given again, is about as fine along both axes.

        Raises
        ------
        LinAlgError : no roughness makes the covariance positive
        """
        few = thinned(whole.points.at, _CHOOSING)
        shape = _stretched(whole[few], whole.mean[few] - self._level, self._shape)
        return Kriging(whole, rim, shape).at(points) if max(shape[-1], 1 / shape[-1]) >= _FORESHORTENED else None

    def _fit(self, whole: Observations, rim: Observations) -> Conditioned:
        """Rougher than the few points would have it, if the whole ones contradict that.

        Raises
        ------
        LinAlgError : no roughness makes the covariance positive
        """
        shared, fit, n = self._between(whole), None, len(whole)
        matrix = np.empty(2 * (n + len(rim),))
        for roughness in _ROUGHNESS[_ROUGHNESS.index(self.roughness) :]:
            self.roughness = roughness
            of_whole = condition(self._with_own(shared, whole, matrix[:n, :n]), whole.mean - self._level)
            if of_whole is None:
                continue
            agree = np.mean(of_whole.white**2) < _AGREEING
            if agree or roughness == _ROUGHNESS[-1]:
                matrix[:n, n:] = self.covariance(whole.points, rim.points)
                self._with_own(self._between(rim), rim, matrix[n:, n:])
                fit = of_whole.extended(matrix, rim.mean - self._level)
            if fit and agree:
                break
        if fit is None:
            raise LinAlgError("no roughness makes the covariance positive")
        return fit

    def at(self, points: Points) -> Prediction:
        """The background at points whose windows are alike."""
        white = self.whitened(self.seen_from(points))
        wide = float(points.wide[0])
        own = self.strength**2 * (_LEVEL + self.length**2 / (self.length**2 + 2 * wide))
        variance = np.maximum(own - np.einsum("ij,ij->j", white, white), 1e-14)
        return Prediction(points, white.T @ self._posterior.white + self._level, variance, white)

    def seen_from(self, points: Points) -> Array:
        """(vacuum, n) covariance of points with the vacuum."""
        return self.covariance(self._vacuum, points)

    def whitened(self, columns: Array) -> Array:
        """(vacuum, n) L^-1 of such columns, which are overwritten."""
        return self._posterior.whitened(columns, overwrite=True)

    def foretold(self, seen: Array, white: Array) -> Array:
        """(n,) what L^-1 observations, (vacuum,), say of points of this (vacuum, n) covariance with the vacuum."""
        weights: Array = seen.T @ self._posterior.whitened(white, transposed=True)
        return weights

    def mean(self, seen: Array) -> Array:
        """(n,) of the background at points of this (vacuum, n) covariance with the vacuum."""
        return self.foretold(seen, self._posterior.white) + self._level

    def _left_out(self, some: Observations, values: Array) -> Array:
        shared = self._between(some)
        fit = condition(self._with_own(shared, some, shared), values)
        if fit is None:
            return np.zeros(len(values))
        inverse = fit.whitened(np.eye(len(values)), overwrite=True)
        residuals: Array = inverse.T @ fit.white / np.sqrt(np.square(inverse).sum(0))
        return residuals

    def _between(self, observed: Observations) -> Array:
        """(n, n): what observations share with one another."""
        return self.covariance(observed.points, observed.points)

    def _with_own(self, shared: Array, observed: Observations, room: Array) -> Array:
        """(n, n): the room, with that and what each has for itself."""
        return _raised(shared, self.roughness * self.strength**2 + observed.noise, room)

    def covariance(self, one: Points, other: Points) -> Array:
        """(n, m) between the means of windows."""
        return _shared(Pairs(one, other), self.length, self.stretch, self.strength**2)


def _agreeing(white: Array) -> int:
    """How many observations count, given what each is beyond what those before it foretell, in standard deviations."""
    squares = np.append(0.0, np.cumsum(np.square(white)))
    lately = (squares[_LATELY:] - squares[:-_LATELY]) / _LATELY
    contradicting = np.flatnonzero(lately > _CONTRADICTING)
    return int(contradicting[0]) if contradicting.size else len(white)


def _shared(pairs: Pairs, length: float, stretch: float, variance: float = 1.0) -> Array:
    """(n, m): covariance of a background of this variance, in a frame stretched along its rows by that, and narrowed down them."""
    return pairs.gaussian(length**2, (1 / stretch, stretch), variance, variance * _LEVEL)


def _raised(matrix: Array, by: Array, room: Array) -> Array:
    """(n, n): the room, where this is written, the diagonal larger by (n,)."""
    room[...] = matrix
    np.einsum("ii->i", room)[...] += by
    return room


Shape = tuple[float, float, float, float]
"""(length, roughness, strength, stretch) of a covariance"""


class _Few:
    """Of the vacuum, to choose a covariance by."""

    def __init__(self, vacuum: Observations, values: Array) -> None:
        self.noise, self.values = vacuum.noise, values
        self.pairs = Pairs(vacuum.points, vacuum.points)
        self.variance = max(float(np.mean(values**2)), 1e-14)


def _fits(few: _Few, lengths: Iterable[float], roughnesses: Sequence[float], stretch: float = 1.0) -> list[tuple[float, Shape]]:
    """(evidence, shape) of every length and roughness; the strength follows from them."""
    found: list[tuple[float, Shape]] = []
    for length in lengths:
        shared = _shared(few.pairs, length, stretch)
        matrix = np.empty_like(shared)
        for roughness in roughnesses:
            fit = condition(_raised(shared, roughness + few.noise / few.variance, matrix), few.values)
            if fit is not None:
                square = max(float(np.mean(fit.white**2)), 1e-20)
                evidence = -len(few.values) / 2 * float(np.log(square)) - fit.log_root_determinant
                found.append((evidence, (float(length), roughness, square**0.5, stretch)))
    return found


def _chosen(vacuum: Observations, values: Array) -> Shape:
    """Of highest evidence, both lengths alike."""
    few = _Few(vacuum, values)
    unknown = (float(_LENGTHS[-1]), _ROUGHNESS[-1], few.variance**0.5, 1.0)
    fits = in_lanes([partial(_fits, few, (length,), _ROUGHNESS) for length in _LENGTHS])
    best = most_evident((-np.inf, unknown), chain.from_iterable(fits))
    step = float(_LENGTHS[1] / _LENGTHS[0])
    for _ in range(_FINER):
        step **= 0.5
        length, roughness, *_ = best[1]
        best = most_evident(best, _fits(few, (length * step, length / step), (roughness,)))
    return best[1]


def _stretched(vacuum: Observations, values: Array, shape: Shape) -> Shape:
    """Of higher evidence than that one, the lengths unlike; that one if none is worth it."""
    few = _Few(vacuum, values)
    length, roughness, *_ = shape
    alike = most_evident((-np.inf, shape), _fits(few, (length,), (roughness,)))
    best = alike[0] + _WORTH, shape
    for stretch in _STRETCHES:
        best = most_evident(best, _fits(few, (length,), (roughness,), stretch))
    if best[1] == shape:
        return shape
    best = most_evident(best, _fits(few, (length,), _ROUGHNESS, best[1][-1]))
    step = float(_LENGTHS[1] / _LENGTHS[0])
    for _ in range(_FINER):
        step **= 0.5
        length, roughness, _, stretch = best[1]
        best = most_evident(best, _fits(few, (length * step, length / step), (roughness,), stretch))
        for other in (stretch * step, stretch / step):
            best = most_evident(best, _fits(few, (best[1][0],), (roughness,), other))
    return best[1]
