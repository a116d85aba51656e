"""Profiles along the tilt axis, and what is measured of them and of views."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from aet_stream.projection import Array

LARGEST_SHIFT_SHARE = 0.25
"""Of a frame's edge: beyond it a shift is a mistake."""
BAND = (0.015, 0.25)
"""Spatial frequencies (1 / px) that speak for a position: below is left-over background, above is noise."""


_STEP_PX = 0.25


def tapered(projections: Array) -> Array:
    """Faded out towards the frame's edge, which must not be taken for a feature."""
    height, width = projections.shape[1:]
    ramps = [np.clip((length / 2 - np.abs(np.arange(length) - (length - 1) / 2)) / (0.1 * length), 0, 1) for length in (height, width)]
    return projections * np.float32(ramps[0][:, None] * ramps[1])


def smoothed(view: Array) -> tuple[Array, float]:
    """A view in which only what is wide stands out, and how bright its brightest places are."""
    smooth: Array = gaussian_filter(view, max(2.0, view.shape[1] / 64))
    return smooth, float(np.percentile(smooth, 99.5))


def isolated(projections: Array) -> tuple[Array, Array]:
    """(tilts, y, x) what stands out and a rim around it, the rest 0; (tilts,) the noise in it: its pixels times their variance."""
    width = projections.shape[2]
    views, noise = np.zeros_like(projections), np.zeros(len(projections))
    for row, view in enumerate(projections):
        smooth, top = smoothed(view)
        inside = binary_dilation(smooth > 0.1 * top, iterations=max(1, width // 32))
        vacuum = ~inside
        level = np.median(view[vacuum]) if vacuum.any() else 0.0
        views[row] = np.where(inside, view - level, 0)
        beside = vacuum[:, 1:] & vacuum[:, :-1]
        if beside.any():
            noise[row] = inside.sum() * np.mean(np.square(np.diff(view, axis=1)[beside])) / 2
    return views, noise


def in_band(frequency: Array) -> Array:
    """Which of these frequencies (1 / px) are listened to."""
    inside: Array = (frequency > BAND[0]) & (frequency < BAND[1])
    return inside


def align_profiles(profiles: Array, bins: Array, length_px: int) -> Array:
    """(n,) px, a quarter of the length at most, by which each of n profiles has to be moved to lie on their common mean.

    Parameters
    ----------
    profiles : (n, len(bins)) complex, of the spectra (rfft) of profiles of this length some bins
    bins : which, whole numbers
    """
    reach = int(LARGEST_SHIFT_SHARE * length_px / _STEP_PX)
    places = np.arange(-reach, reach + 1)  # of the correlation on a grid that is finer than the pixels
    fine_px = round(length_px / _STEP_PX)
    spectra, shifts = np.zeros((len(profiles), fine_px // 2 + 1), complex), np.zeros(len(profiles))
    mean = profiles[len(profiles) // 2]
    for _ in range(4):
        spectra[:, bins] = mean * profiles.conj()
        match = np.fft.irfft(spectra, fine_px)[:, places]
        at = np.clip(match.argmax(axis=1), 1, len(places) - 2)
        shifts = _STEP_PX * (places[at] + peak(np.take_along_axis(match, at[:, None] + (-1, 0, 1), axis=1)))
        mean = (profiles * np.exp(-2j * np.pi / length_px * bins * shifts[:, None])).mean(axis=0)
    return shifts


def peak(three: Array) -> Array:
    """(...) float64: where a parabola through (..., 3) three neighbours has its peak, from the middle one, in steps."""
    low, mid, high = np.moveaxis(three.astype(float), -1, 0)
    bend = low - 2 * mid + high
    place: Array = np.where(bend < 0, np.clip(0.5 * (low - high) / np.where(bend < 0, bend, -1), -1, 1), 0.0)
    return place
