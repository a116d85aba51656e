"""Gaussian processes by Cholesky factors, and the covariance that the observations themselves make most likely.

Rasmussen & Williams, Gaussian Processes for Machine Learning (2006): posterior 2.2, evidence 5.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from aet_stream.denoise.gaussian_process import lapack
from aet_stream.denoise.lanes import in_lanes
from aet_stream.projection import Array

T = TypeVar("T")
_WORTH = 3e7
"""Multiplications from which on columns are solved for in two lanes."""


@dataclass(frozen=True, slots=True)
class Conditioned:
    """A positive matrix M = L L^T, and observations seen through it."""

    factor: Array
    """(n, n) L in the lower triangle, column by column; what stands above it means nothing"""
    white: Array
    """(n,) L^-1 observations: each in standard deviations beyond what those before it foretell"""

    @property
    def log_root_determinant(self) -> float:
        """Half the logarithm of the determinant of M."""
        return float(np.log(np.diagonal(self.factor)).sum())

    @property
    def evidence(self) -> float:
        """Logarithm of the likelihood of observations of covariance M, but for a constant."""
        return -float(self.white @ self.white) / 2 - self.log_root_determinant

    @property
    def weights(self) -> Array:
        """(n,) M^-1 observations"""
        return self.whitened(self.white, transposed=True)

    def whitened(self, columns: Array, *, transposed: bool = False, overwrite: bool = False) -> Array:
        """L^-1 columns (L^-T if transposed), row by row; `overwrite`: in their place, where each row must stand in one piece."""
        white = columns if overwrite else np.array(columns, np.float64, order="C")
        half = white.shape[-1] // 2
        parts = [white] if white.ndim == 1 or white.size * len(white) < _WORTH else [white[:, :half], white[:, half:]]
        in_lanes([partial(lapack.solve, self.factor, part, transposed=transposed) for part in parts])
        return white

    def first(self, count: int) -> Conditioned:
        """The same of the first observations alone."""
        return Conditioned(self.factor[:count, :count], self.white[:count])

    def extended(self, larger: Array, observations: Array) -> Conditioned | None:
        """The same of more observations; None: the matrix of all is not positive.

        Parameters
        ----------
        larger : (n + m, n + m) float64, row by row: in its first n rows and columns this one was factored, right of that and below stands
            the rest of the matrix of all; it is overwritten
        observations : (m,)
        """
        n = len(self.white)
        pull, own = self.whitened(larger[:n, n:], overwrite=True), larger[n:, n:]
        lapack.subtract_square(own.T, pull)
        if not lapack.factor(own.T):
            return None
        white = observations - pull.T @ self.white
        lapack.solve(own.T, white)
        return Conditioned(larger.T, np.concatenate([self.white, white]))


def condition(matrix: Array, observations: Array) -> Conditioned | None:
    """Factor a symmetric (n, n) float64 matrix, row by row, in its place; None: it is not positive."""
    if not lapack.factor(matrix.T):
        return None
    white = np.array(observations, np.float64)
    lapack.solve(matrix.T, white)
    return Conditioned(matrix.T, white)


def most_evident(best: tuple[float, T], candidates: Iterable[tuple[float, T]]) -> tuple[float, T]:
    """The (evidence, candidate) of highest evidence, the first of several; `best` unless one is better."""
    for evidence, candidate in candidates:
        if evidence > best[0]:  # one that is no number is not
            best = evidence, candidate
    return best


def thinned(at: Array, most: int) -> Array:
    """Indices of at most so many of (n, 2) points: at random, near ones among them, but always the same, rows and columns alike."""
    y, x = at[:, 0].astype(np.int64), at[:, 1].astype(np.int64)
    mixed = ((y + x) * 7919 + y * x * 104729) * 2654435761 % 2**32
    return np.sort(np.argsort(mixed, kind="stable")[:most])


def squared_distances(one: Array, other: Array) -> Array:
    """(n, m) float64 between (n, 2) and (m, 2) points."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    squares: Array = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T  # whole numbers: exact
    return squares
