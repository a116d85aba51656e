"""What one frame could tell of its background at best: kriging that is told where the particle is, and how the background varies.

The mask is the true one, to the block; the covariance is the stationary one that makes the true background, seen everywhere and without
noise, most likely: squared exponentials of four lengths and a nugget, the lengths across the tilt axis shorter by a factor of its own. So
it knows more than any estimator of single frames can; where one is better, the background is not stationary.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.ndimage import binary_dilation
from scipy.optimize import minimize

from aet_stream.denoise import grid
from aet_stream.denoise.features import BLOCKS, describe
from aet_stream.denoise.gaussian_process.dense import thinned
from aet_stream.projection import Array

_LENGTHS = (2.5, 5.5, 12.5, 32.0)
"""Blocks of features.BLOCKS: 10, 22, 50 and 130 px of 256"""
_CHOOSING, _OBSERVED = 240, 1200
_PARTICLE = 2e-3
"""Of the brightest pixel: what reaches this is particle."""


def background(raw: Array, clean: Array, truth: Array) -> Array:
    """(height, width) float32 from a frame, its particle and its true background, all in units of the brightest pixel."""
    blocks = describe(raw.astype(np.float32))
    block = blocks.block_px
    means, real = (grid.means(grid.in_blocks(frame.astype(np.float64), block)) for frame in (raw, truth))
    hidden = grid.in_blocks(np.abs(clean), block).max((1, 3)) > _PARTICLE
    noise = np.square(blocks.statistics[4].astype(np.float64) * blocks.span / block)
    everywhere = np.argwhere(np.ones_like(hidden)).astype(np.float64)
    shape = _most_likely(everywhere[few := thinned(everywhere, _CHOOSING)], real.ravel()[few])
    seen = np.flatnonzero(~hidden.ravel())
    near = _rim(hidden).ravel()[seen]
    kept = np.unique(np.concatenate([seen[near], seen[~near][thinned(everywhere[seen[~near]], _OBSERVED)]]))
    if not len(kept):
        return np.full(raw.shape, np.median(means), np.float32)
    level = means.ravel()[kept].mean()
    covariance = _covariance(everywhere[kept], everywhere[kept], shape)
    covariance[np.diag_indices(len(kept))] += noise.ravel()[kept] + np.exp(shape[-2])
    weights = cho_solve(cho_factor(covariance, lower=True), means.ravel()[kept] - level)
    surface = (_covariance(everywhere, everywhere[kept], shape) @ weights + level).reshape(means.shape)
    return grid.draw_means(surface, block, (raw.shape[0], raw.shape[1]))


def _rim(hidden: Array) -> Array:
    """(rows, columns) bool: within two blocks of what is hidden."""
    rim: Array = binary_dilation(hidden, iterations=2) & ~hidden
    return rim


def _covariance(one: Array, other: Array, shape: Array) -> Array:
    """(n, m); `shape`: log variances of the lengths, of the nugget, log factor across."""
    y2 = np.square(one[:, 0, None] - other[:, 0])
    x2 = np.square(one[:, 1, None] - other[:, 1]) * np.exp(2 * shape[-1])
    total = sum(np.exp(log - (y2 + x2) / (2 * length**2)) for log, length in zip(shape, _LENGTHS, strict=False))
    covariance: Array = total + 100 * np.exp(shape[: len(_LENGTHS)]).sum()  # of an unknown level
    return covariance


def _most_likely(at: Array, values: Array) -> Array:
    """Log variances of the lengths and the nugget, log factor across."""
    values = values - values.mean()
    scale = np.log(max(float(values.var()), 1e-12))
    span = np.log(BLOCKS / 8)

    def surprise(shape: Array) -> float:
        covariance = _covariance(at, at, shape)
        covariance[np.diag_indices(len(at))] += np.exp(shape[-2]) + 1e-9 * np.exp(scale)
        try:
            factor = np.linalg.cholesky(covariance)
        except LinAlgError:
            return 1e10
        white = np.linalg.solve(factor, values)
        return float(white @ white / 2 + np.log(np.diag(factor)).sum())

    start = np.array([*np.full(len(_LENGTHS), scale - 1), scale - 8, 0.0])
    bounds = [(scale - 12, scale + 3)] * len(_LENGTHS) + [(scale - 16, scale), (-span, span)]
    found = minimize(surprise, start, method="Powell", bounds=bounds, options={"maxiter": 2, "ftol": 1e-3})
    shape: Array = found.x
    return shape
