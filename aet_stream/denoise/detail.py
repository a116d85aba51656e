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
_STEPS = 150
_TOLERANCE = 1e-6
"""Of the squared residual, where the solve ends: after 10 to 30 steps where there is noise."""
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
    (rows, columns) float64, to be added to the background; 0 where the vacuum says nothing, or the residual is no number
    """
    rows, columns = residual.shape
    if vacuum.sum() < _LEAST_BLOCKS or not np.isfinite(residual).all():
        return np.zeros((rows, columns))
    shape = (rows + _MARGIN, columns + _MARGIN)
    seen, values = np.zeros(shape), np.zeros(shape)
    seen[:rows, :columns] = vacuum
    values[:rows, :columns] = np.where(vacuum, residual, 0)
    kernel = _covariance(values, seen)
    if not kernel.any():
        return np.zeros((rows, columns))
    variance = np.full(shape, 1.0)
    variance[:rows, :columns] = noise
    found: Array = _posterior_mean(values, seen, np.maximum(variance, _LEAST_NOISE * kernel[0, 0]), kernel)[:rows, :columns]
    return found


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


def _posterior_mean(values: Array, seen: Array, variance: Array, kernel: Array) -> Array:
    """K (S K S + N)^-1 values by conjugate gradients, K applied by Fourier transforms.

    They also invert it exactly for vacuum and the same noise everywhere: a good guess where most of the frame is vacuum.
    """
    shape = (values.shape[0], values.shape[1])
    spectrum = np.maximum(rfft2(kernel).real, 0)
    inverse = 1 / (spectrum + np.median(variance[seen > 0]))

    def times(factor: Array, surface: Array) -> Array:
        product: Array = irfft2(factor * rfft2(surface), shape)
        return product

    weights, left = np.zeros(shape), values.copy()
    towards = scaled = seen * times(inverse, left)
    size = first = float((left * scaled).sum())
    for _ in range(_STEPS):
        if size <= _TOLERANCE * first:
            break
        across = seen * times(spectrum, towards) + variance * towards
        step = size / float((towards * across).sum())
        weights, left = weights + step * towards, left - step * across
        scaled = seen * times(inverse, left)
        before, size = size, float((left * scaled).sum())
        towards = scaled + size / before * towards
    return times(spectrum, weights)
