"""Figures of merit, each a plain function of a truth and an estimate of it. PSNR with the brightest particle pixel as 1."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from aet_stream.projection import Array

INSIDE = 0.01
"""Where a clean frame reaches this, the particle is."""
FINEST_PX = 8
"""A background has no content of shorter wavelength, but at the edges of films."""


def psnr_db(truth: Array, estimate: Array) -> float:
    """Peak signal-to-noise ratio for a data range of 1."""
    return float(-10 * np.log10(np.mean(np.square(truth - estimate, dtype=np.float64)) + 1e-12))


def ssim(truth: Array, estimate: Array, window: int = 7) -> float:
    """Structural similarity for a data range of 1, uniform window (Wang et al., IEEE Trans. Image Process. 13 (2004) 600)."""
    c1, c2 = 0.01**2, 0.03**2
    a, b = truth.astype(np.float64), estimate.astype(np.float64)
    mean_a, mean_b = uniform_filter(a, window), uniform_filter(b, window)
    n = window * window
    sample = n / (n - 1)
    var_a = sample * (uniform_filter(a * a, window) - mean_a**2)
    var_b = sample * (uniform_filter(b * b, window) - mean_b**2)
    cov = sample * (uniform_filter(a * b, window) - mean_a * mean_b)
    values = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    edge = window // 2
    return float(values[edge:-edge, edge:-edge].mean())


def fine_share(background: Array, where: Array) -> float:
    """Share of a background's energy in wavelengths below FINEST_PX, over the pixels of a mask; NaN without pixels."""
    if not where.any():
        return float("nan")
    height, width = background.shape
    level = background - background.mean()
    mirrored = np.concatenate([level, level[::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, ::-1]], axis=1)  # no step at the seam
    f = np.hypot(np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)[None])
    fine = np.fft.irfft2(np.fft.rfft2(mirrored) * (f > 1 / FINEST_PX), s=mirrored.shape)[:height, :width]
    return float(np.square(fine[where]).sum() / max(float(np.square(level[where]).sum()), 1e-30))


def r_squared(estimate: Array, predicted: Array, where: Array) -> float:
    """Share of the variance of `estimate` that `predicted` explains inside a mask, gain and offset fitted."""
    return float(np.corrcoef(estimate[where], predicted[where])[0, 1] ** 2)


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    """From 1; equal values share theirs. scipy.stats has it too, and takes half a second to be imported."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(times) - (times - 1) / 2)[place]
    return ranks


def caught(warning: Array, error: Array, *, worst: float = 0.1, false_alarms: float = 0.1) -> float:
    """Share of the worst frames with a warning above the level that this share of the others exceeds."""
    bad = error >= np.quantile(error, 1 - worst)
    level = np.quantile(warning[~bad], 1 - false_alarms)
    return float((warning[bad] > level).mean())
