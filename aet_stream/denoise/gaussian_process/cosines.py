"""Smooth surfaces as sums of cosines, fitted to weighted observations: the estimator `gaussian-process`, and in torch (learned.py) the
solve inside the default network.

A background b on a grid of blocks is modelled as Phi c: cosines on a domain a little wider than the frame (so that nothing is assumed at
its edges), with independent coefficients of variance S(frequency). Observations y of precision W then give

    c = (S^-1 + Phi^T W Phi)^-1 Phi^T W y,

the posterior mean of a stationary Gaussian process of spectrum S (Solin & Sarkka, Stat. Comput. 30 (2020) 419). Phi is separable, so the
matrix of some 330 unknowns costs a few million operations to build, whatever the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aet_stream.denoise.gaussian_process.dense import Conditioned, condition, most_evident
from aet_stream.projection import Array

FINEST = 0.125
"""Highest frequency, in cycles per block of features.BLOCKS: 32 px of a frame of 256 px."""
MARGIN = 8
"""Blocks by which the domain is wider than the frame, on every side."""
_NOTHING = 1e-9
"""Variance of a coefficient, in those of what is seen of it, that is not told from 0."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Cosines of a grid of (rows, columns)."""

    rows: Array
    """(rows, k) float64: one-dimensional cosines along y"""
    columns: Array
    """(columns, l) float64"""
    chosen: Array
    """(modes,) int: which of the k * l products are used: those whose frequency is at most FINEST, the slowest first"""
    frequency: Array
    """(modes,) float64, cycles per block"""
    row_products: Array
    """(rows, k * (k + 1) / 2): products of two cosines, for the normal matrix"""
    column_products: Array
    pairs: Array
    """(modes * modes,) int: where the normal matrix stands among the products of row products and column products"""


@lru_cache(maxsize=16)
def basis(rows: int, columns: int, *, finest: float = FINEST, margin: int = MARGIN) -> Basis:
    """The cosines of a grid, up to a frequency and on a domain wider by `margin`."""
    (y, fy), (x, fx) = _cosines(rows, finest, margin), _cosines(columns, finest, margin)
    frequency = np.hypot(fy[:, None], fx[None]).ravel()
    chosen = np.argsort(frequency, kind="stable")[: np.count_nonzero(frequency <= finest)]
    (row_products, row_places), (column_products, column_places) = _products(y), _products(x)
    k, m = chosen // x.shape[1], chosen % x.shape[1]
    pairs = (row_places[k[:, None], k] * column_products.shape[1] + column_places[m[:, None], m]).ravel()
    return Basis(y, x, chosen, frequency[chosen], row_products, column_products, pairs)


def _products(cosines: Array) -> tuple[Array, Array]:
    """((n, k * (k + 1) / 2) products of any two of (n, k), (k, k) which of them is that of these two)."""
    one, other = np.triu_indices(cosines.shape[1])
    places = np.empty(2 * cosines.shape[1:], np.int64)
    places[one, other] = places[other, one] = np.arange(len(one))
    return np.ascontiguousarray(cosines[:, one] * cosines[:, other]), places


def _cosines(count: int, finest: float, margin: int) -> tuple[Array, Array]:
    """((count, k) cosines of unit mean square, (k,) cycles per block)."""
    domain = count + 2 * margin
    k = np.arange(int(finest * 2 * domain) + 1)
    at = (np.arange(count) + 0.5 + margin) / domain
    return np.cos(np.pi * k[None] * at[:, None]) * np.where(k == 0, 1, np.sqrt(2)), k / (2 * domain)


def posterior_mean(basis: Basis, values: Array, precision: Array, amplitude: float, lengths: Sequence[float]) -> Array:
    """(rows, columns) the smooth surface through observations, its correlation length the one of highest evidence.

    Parameters
    ----------
    values, precision : (rows, columns) what was observed, and 1 / its variance; 0 where nothing was
    amplitude : variance of the surface
    lengths : correlation lengths to choose from, in blocks
    """
    normal = (basis.row_products.T @ precision @ basis.column_products).ravel()[basis.pairs].reshape(2 * (len(basis.chosen),))
    right = (basis.rows.T @ (values * precision) @ basis.columns).ravel()[basis.chosen]
    _, best = most_evident((-np.inf, None), _fits(basis, normal, right, amplitude, lengths))
    full = np.zeros(basis.rows.shape[1] * basis.columns.shape[1])
    if best is not None:
        fit, scale = best
        full[basis.chosen[: len(scale)]] = fit.weights * scale
    surface: Array = basis.rows @ full.reshape(basis.rows.shape[1], -1) @ basis.columns.T
    return surface


def _fits(
    basis: Basis, normal: Array, right: Array, amplitude: float, lengths: Sequence[float]
) -> Iterator[tuple[float, tuple[Conditioned, Array] | None]]:
    """(evidence, (fit, standard deviations of the coefficients)) of every length, up to the last that is not next to 0."""
    seen = np.diagonal(normal)
    for length in lengths:
        spectrum = np.exp(-2 * (np.pi * length * basis.frequency) ** 2)
        scale = np.sqrt(amplitude * spectrum / spectrum.sum())
        scale = scale[: 1 + np.flatnonzero(np.square(scale) * seen > _NOTHING).max(initial=0)]
        count = len(scale)
        matrix = normal[:count, :count] * scale[:, None] * scale
        matrix.reshape(-1)[:: count + 1] += 1
        fit = condition(matrix, right[:count] * scale)
        if fit is not None:  # of coefficients, unlike of observations, a longer white vector is more evident
            yield float(fit.white @ fit.white) / 2 - fit.log_root_determinant, (fit, scale)
