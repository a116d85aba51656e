"""What the vacuum still shows once a network has found the background: detail too fine for its solve, or that it did not believe.

A second, stationary Gaussian process through the residual of the vacuum's blocks. Its covariance is read off the residual itself: the
autocovariance over pairs of vacuum blocks, as a sum of Gaussians without negative parts (Cressie, Statistics for Spatial Data (1993), 2.4).
Noise stays in the projection: how much of it is in the mean of a block is known from how neighbouring pixels differ.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.optimize import nnls

from aet_stream.denoise.gaussian_process import periodic
from aet_stream.projection import Array

_LENGTHS = (0.7, 1.2, 2.0, 3.5, 6.0)
"""Correlation lengths of the Gaussians, in blocks."""
_FARTHEST = 10
"""Pairs of blocks as far apart as this are compared."""
_MARGIN = 24
"""Blocks added at two sides, so that the transforms' period joins nothing: four of the longest correlation lengths."""
_LEAST_PAIRS = 50
_LEAST_BLOCKS = 64
"""Fewer vacuum blocks teach no covariance."""
_LEAST_NOISE = 1e-3
"""Share of the variance of what is sought that counts as noise at least: without any, the solve takes hundreds of steps."""


def of_vacuum(residual: Array, vacuum: Array, noise: Array) -> Array:
    """The smooth part of a residual, as far as the vacuum shows it; it fades out under the particle.

    Parameters
    ----------
    residual : (rows, columns) observed block means less the background found so far
    vacuum : (rows, columns) bool: where there is nothing but background
    noise : (rows, columns) variance of each block's mean by noise alone, in the residual's units squared

    Returns
    -------
    (rows, columns) float32, to be added to the background; 0 where the vacuum says nothing, or the residual is no number
    """
    rows, columns = residual.shape
    if vacuum.sum() < _LEAST_BLOCKS or not np.isfinite(residual).all():
        return np.zeros((rows, columns), np.float32)
    shape = (rows + _MARGIN, columns + _MARGIN)
    seen, values = np.zeros(shape), np.zeros(shape)
    seen[:rows, :columns] = vacuum
    values[:rows, :columns] = np.where(vacuum, residual, 0)
    kernel = _covariance(values, seen)
    if not kernel.any():
        return np.zeros((rows, columns), np.float32)
    variance = np.full(shape, 1.0)
    variance[:rows, :columns] = noise
    variance = np.maximum(variance, _LEAST_NOISE * kernel[0, 0])
    return periodic.posterior_mean(values, seen, variance, kernel)[:rows, :columns]


def _covariance(values: Array, seen: Array) -> Array:
    """(rows, columns): covariance of two blocks by how far apart they are, around the period; all 0 where there is nothing but noise."""
    shape = (values.shape[0], values.shape[1])
    near, gaussians, weights = _lags(shape)
    products, pairs = (irfft2(np.abs(rfft2(part)) ** 2, shape)[near] for part in (values, seen))
    enough = pairs > _LEAST_PAIRS
    weight = np.where(enough, weights, 0)
    observed = products / np.where(enough, pairs, 1)
    share, _ = nnls(gaussians[:, near].T * weight[:, None], observed * weight)
    kernel: Array = np.tensordot(share[:-1], gaussians[:-1], 1)  # the last is what no two blocks share: noise
    return kernel


@lru_cache(maxsize=4)
def _lags(shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    """((rows, columns) bool: compared; (lengths + 1, rows, columns) Gaussians and a block with itself; (compared,) weights)."""
    y, x = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    distance = np.hypot(y[:, None], x[None])
    near = distance <= _FARTHEST
    gaussians = np.stack([*(np.exp(-((distance / length) ** 2) / 2) for length in _LENGTHS), (distance == 0).astype(float)])
    return near, gaussians, 1 / (1 + distance[near])
