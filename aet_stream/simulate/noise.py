"""What the instrument adds: counting statistics, the amplifier's noise, unsteady scan lines, grain. Frames in units of the signal."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array


def counted(rng: np.random.Generator, frame: Array, dose: float) -> Array:
    """Poisson noise, `dose` counts in a pixel of value 1; above a few counts as a Gaussian of the same variance.

    Parameters
    ----------
    frame : (height, width) float32, not negative
    """
    expected = np.maximum(frame, 0) * np.float32(dose)
    if dose < 100:
        return (rng.poisson(expected) / dose).astype(np.float32)
    noise = rng.standard_normal(frame.shape, dtype=np.float32)
    noisy: Array = frame + noise * np.sqrt(expected) / np.float32(dose)
    return noisy


def read(rng: np.random.Generator, frame: Array, sigma: float) -> Array:
    """Additive noise of the amplifier."""
    noisy: Array = frame + np.float32(sigma) * rng.standard_normal(frame.shape, dtype=np.float32)
    return noisy


def scan_lines(rng: np.random.Generator, frame: Array, sigma_px: float) -> Array:
    """Every line begins a little early or late: (height, width), rows shifted by subpixel amounts."""
    return moved_lines(frame, np.float32(sigma_px) * rng.standard_normal((frame.shape[0], 1), dtype=np.float32))


def moved_lines(frame: Array, by_px: Array) -> Array:
    """(height, width): every line as it is seen `by_px` (height, 1) farther along x."""
    height, width = frame.shape
    at = np.arange(width, dtype=np.float32)[None] + by_px.astype(np.float32)
    left = np.clip(np.floor(at).astype(np.int64), 0, width - 2)
    part = np.clip(at - left, 0, 1)
    rows = np.arange(height)[:, None]
    shifted: Array = (1 - part) * frame[rows, left] + part * frame[rows, left + 1]
    return shifted


def grain(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> Array:
    """Noise of standard deviation 1 that neighbours share, as a slow amplifier, a resampled or a filtered image has it."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_px, mode="wrap", truncate=3)
    scaled: Array = noise / max(float(noise.std()), 1e-6)
    return scaled
