"""Classical backgrounds, without a network: a constant, a cubic surface, Laplace's equation, a Gaussian process on the vacuum.

All work on a coarse grid of block means (grid.py) under an automatic mask (vacuum.py), which is why they are fast enough for every frame.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_array, eye_array, kron
from scipy.sparse.linalg import spsolve

from aet_stream.denoise.gaussian_process import cosines
from aet_stream.denoise.vacuum import Vacuum
from aet_stream.projection import Array

_MIN_VACUUM = 0.05
_LENGTHS = (1.5, 2.5, 4.0, 6.0, 10.0, 16.0)
"""Correlation lengths that the Gaussian process may choose from, in blocks."""
_FINEST = 2 * cosines.FINEST


def constant(vacuum: Vacuum) -> Array:
    """(rows, columns) float32 at block centres: the median of the vacuum, or of the frame's rim where no vacuum is seen."""
    means, seen = vacuum.means, ~vacuum.mask
    rim = np.concatenate([means[0], means[-1], means[:, 0], means[:, -1]])
    level = np.median(means[seen] if vacuum.fraction >= _MIN_VACUUM else rim)
    return np.full(means.shape, level, np.float32)


def polynomial(vacuum: Vacuum) -> Array:
    """(rows, columns) float32: the cubic surface nearest to the vacuum."""
    if vacuum.fraction < _MIN_VACUUM:
        return constant(vacuum)
    rows, columns = vacuum.means.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    terms = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1)
    seen = ~vacuum.mask
    surface: Array = terms @ np.linalg.lstsq(terms[seen], vacuum.means[seen].astype(np.float64), rcond=None)[0]
    return surface.astype(np.float32)


def laplace(vacuum: Vacuum) -> Array:
    """(rows, columns) float32: vacuum as it is, and under the particle the solution of Laplace's equation with the vacuum as its rim."""
    if vacuum.fraction < _MIN_VACUUM:
        return constant(vacuum)
    means, mask = vacuum.means, vacuum.mask
    if not mask.any():
        return means
    inside, filled = mask.ravel(), np.where(mask, 0.0, means).ravel()
    laplacian = _laplacian(*mask.shape)[inside]
    filled[inside] = spsolve(laplacian[:, inside], -(laplacian @ filled))
    return filled.reshape(mask.shape).astype(np.float32)


def gaussian_process(vacuum: Vacuum) -> Array:
    """(rows, columns) float32: the mean of a Gaussian process given the vacuum, its length chosen by the evidence.

    Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eq. 2.30; the noise is taken from how neighbouring blocks differ.
    """
    if vacuum.fraction < _MIN_VACUUM:
        return constant(vacuum)
    means, seen = vacuum.means.astype(np.float64), ~vacuum.mask
    level = means[seen].mean()
    values = np.where(seen, means - level, 0.0)
    amplitude = max(float(np.mean(values[seen] ** 2)), 1e-30)
    share = uniform_filter(seen.astype(float), 3)
    rough = (values - uniform_filter(values, 3) / np.maximum(share, 1e-9))[seen & (share > 0.99)]
    noise = max(float(np.mean(rough**2)) if rough.size else 0.0, 1e-6 * amplitude)
    basis = cosines.basis(*means.shape, finest=_FINEST, margin=cosines.MARGIN // 2)
    surface: Array = (cosines.posterior_mean(basis, values, seen / noise, amplitude, _LENGTHS) + level).astype(np.float32)
    return surface


@lru_cache(maxsize=16)
def _laplacian(rows: int, columns: int) -> csr_array:
    """(rows * columns, rows * columns) of a grid, nothing flowing over its sides."""
    return csr_array(kron(eye_array(rows), _second_difference(columns)) + kron(_second_difference(rows), eye_array(columns)))


def _second_difference(n: int) -> csr_array:
    ends = np.full(n, -2.0)
    ends[[0, -1]] = -1.0
    return csr_array(np.diag(ends) + np.eye(n, k=1) + np.eye(n, k=-1))
