"""Lattice fringes: how much of a resolved crystal lies at a place shows in how strong its fringes are there, whatever lies below.

A smooth background has nothing at the frequencies of a lattice. The amplitude of a fringe grows with the thickness t of the crystal, at
first in proportion and in all as |sin(pi g_z t)| / (pi g_z), g_z being how far the wave is out of the image plane (kinematical: Williams &
Carter, Transmission Electron Microscopy (2009), 13.4). The mean grows with the thickness too; what it has beyond that is background
(experts.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array

_TILE_PX = 256
"""The power spectrum is a mean over tiles of this edge."""
_MOST = 4
"""Fringes that are followed."""
_STANDING_OUT = 8.0
"""A fringe's amplitude in the spectrum, against the median at the same frequency."""
_ROUNDING = 1e-5
"""Of the strongest amplitude: what lies below is made by arithmetic."""
_LONGEST = 3.0
"""Period, in blocks of features.BLOCKS: longer waves are the particle's shape."""
_FASTEST = 0.47
"""Cycles per pixel"""
_APART = 7
"""Points of the spectrum in which there is one maximum."""
_WIDE = 1.25
"""Least standard deviation of the windows in which an amplitude is measured, in blocks; else a period."""


@dataclass(frozen=True, slots=True)
class Fringes:
    """The strongest fringes of a frame, the strongest first."""

    waves: list[tuple[float, float]]
    """Cycles per pixel, (along y, along x)"""
    window_px: float
    """Standard deviation of the Gaussian windows in which they are measured: wide enough to tell one from the next"""


def find(frame: Array, block_px: int) -> Fringes | None:
    """Periods of a (height, width) frame without its background that stand out of its spectrum; None: there are none."""
    tile = min(_TILE_PX, *frame.shape)
    amplitude = _spectrum(frame, tile)
    high = (amplitude > _STANDING_OUT * _usual(amplitude)) & (amplitude > _ROUNDING * amplitude.max()) & _of_lattices(tile, block_px)
    rows, columns = _peaks(amplitude, *np.nonzero(high))
    if not rows.size:
        return None
    strongest = np.argsort(-amplitude[rows, columns], kind="stable")[:_MOST]
    along = np.fft.fftfreq(tile)
    waves = [(float(along[rows[i]]), float(along[columns[i]])) for i in strongest]
    return Fringes(waves, max(1 / min(float(np.hypot(*wave)) for wave in waves), _WIDE * block_px))


def _peaks(amplitude: Array, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Of (n,) points of a (tile, tile) spectrum those that nothing near exceeds."""
    near, tile = np.arange(-(_APART // 2), _APART // 2 + 1), len(amplitude)
    around = amplitude[(rows[:, None, None] + near[:, None]) % tile, (columns[:, None, None] + near) % tile]
    peak = amplitude[rows, columns] == around.max((1, 2))
    return rows[peak], columns[peak]


@lru_cache(maxsize=4)
def _of_lattices(tile: int, block_px: int) -> Array:
    """(tile, tile) bool: frequencies that a lattice may have; a wave has two, and one of them counts."""
    y, x = np.fft.fftfreq(tile)[:, None], np.fft.fftfreq(tile)[None]
    frequency = np.hypot(y, x)
    found: Array = (frequency > 1 / (_LONGEST * block_px)) & (frequency < _FASTEST) & ((y > 0) | ((y == 0) & (x > 0)))
    return found


def _usual(amplitude: Array) -> Array:
    """(tile, tile): the median over the ring of the same frequency."""
    order, ends, ring = _rings(len(amplitude))
    medians = np.array([_median(part) for part in np.split(amplitude.ravel()[order], ends)])
    usual: Array = medians[ring]
    return usual


def _median(values: Array) -> float:
    """As numpy's, which takes four times as long for few."""
    middle = (len(values) - 1) // 2, len(values) // 2
    values = np.partition(values, middle)
    return float(values[middle[0]] + values[middle[1]]) / 2


@lru_cache(maxsize=4)
def _rings(tile: int) -> tuple[Array, Array, Array]:
    """(points in the order of their rings, where each ring ends, (tile, tile) its number): frequencies alike within 4 / tile."""
    along = np.fft.fftfreq(tile)
    ring = np.rint(np.hypot(along[:, None], along[None]) * tile / 4).astype(int)
    order = np.argsort(ring, axis=None, kind="stable")
    return order, np.flatnonzero(np.diff(ring.ravel()[order])) + 1, ring


def _spectrum(frame: Array, tile: int) -> Array:
    """(tile, tile): root mean square amplitude over tiles that cover the frame (Welch, IEEE Trans. Audio Electroacoust. 15 (1967) 70)."""
    window = np.hanning(tile).astype(np.float32)
    window = window[:, None] * window
    down, right = (np.linspace(0, edge - tile, -(-edge // tile)).astype(int) for edge in frame.shape)
    power = np.zeros((tile, tile // 2 + 1))
    for y in down:
        for x in right:
            spectrum = torch.fft.rfft2(torch.from_numpy(frame[y : y + tile, x : x + tile] * window)).numpy()  # two thirds of scipy's time
            power += spectrum.real**2 + spectrum.imag**2
    at = np.arange(tile)
    power = np.concatenate([power, power[-at][:, (tile - 1) // 2 : 0 : -1]], axis=1)  # the other half of a real frame's is the same
    smooth: Array = np.sqrt(gaussian_filter(power, 1.0, mode="wrap"))
    return smooth


def amplitudes(frame: Array, fringes: Fringes, spacing_px: int) -> Array:
    """(fringes, rows, columns) float64: how strong each is around the centres of blocks of `spacing_px`."""
    down, right = (
        np.stack([_windows(edge, fringes.window_px, spacing_px, wave[axis]) for wave in fringes.waves])
        for axis, edge in enumerate(frame.shape)
    )
    rows = np.concatenate([down.real, down.imag]).reshape(-1, frame.shape[0]) @ frame  # one product of real numbers: a quarter of the time
    real, imaginary = rows.reshape(2, *down.shape[:2], -1)
    strength: Array = np.abs((real + 1j * imaginary) @ right.transpose(0, 2, 1)).astype(np.float64)
    return strength


def levels(frame: Array, window_px: float, spacing_px: int) -> Array:
    """(rows, columns) float32: means of a frame in the same windows."""
    down, right = (_windows(edge, window_px, spacing_px, 0.0).real for edge in frame.shape)
    means: Array = down @ frame @ right.T
    return means


def _windows(pixels: int, window_px: float, spacing_px: int, cycles: float) -> Array:
    """(blocks, pixels) complex64: Gaussian windows around the centres of blocks, times a wave; at an edge what there is of them."""
    at = np.arange(pixels)
    centres = np.arange(-(-pixels // spacing_px)) * spacing_px + (spacing_px - 1) / 2
    weights = np.exp(-(((at - centres[:, None]) / window_px) ** 2) / 2)
    weights /= weights.sum(1, keepdims=True)
    windows: Array = (weights * np.exp(-2j * np.pi * cycles * at)).astype(np.complex64)
    return windows
