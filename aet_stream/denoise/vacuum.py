"""Where a frame shows nothing but background: an automatic mask on a coarse grid, which every classical estimate works under."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, label

from aet_stream.denoise import grid
from aet_stream.projection import Array

BLOCKS = 32
"""Along the longer edge of a frame."""
_GROW_BLOCKS = 1
_TEXTURED = 1.5
"""Blocks whose texture differs by less than this factor are all alike: there is nothing to split."""
_OTSU = 0.8
"""Of Otsu's threshold: what is missed harms more than what is masked for nothing."""


@dataclass(frozen=True, slots=True)
class Vacuum:
    """Where nothing but background is seen, on a coarse grid."""

    statistics: Array
    """(4, rows, columns): mean, minimum, maximum, standard deviation of every block"""
    mask: Array
    """(rows, columns) bool: True where the particle may be"""
    block_px: int

    @property
    def means(self) -> Array:
        """(rows, columns) block means"""
        means: Array = self.statistics[0]
        return means

    @property
    def fraction(self) -> float:
        """Share of the frame that is vacuum, 0..1."""
        return float(1 - self.mask.mean())


def find_vacuum(frame: Array) -> Vacuum:
    """Split a frame into particle and vacuum: Otsu's threshold on texture and on brightness above the surroundings, then grown.

    Parameters
    ----------
    frame : (height, width) float32
    """
    block = grid.block_px((frame.shape[0], frame.shape[1]), BLOCKS)
    statistics = grid.statistics(frame, block)
    means, _, _, texture = statistics
    mask = above_otsu(np.maximum(means - _surroundings(means), 0), _OTSU)
    if texture.max() > _TEXTURED * texture.min():
        mask |= above_otsu(texture, _OTSU)
    mask = without_specks(mask)
    return Vacuum(statistics, binary_dilation(mask, iterations=_GROW_BLOCKS), block)


def _surroundings(means: Array) -> Array:
    """(rows, columns): the median over windows half as high as the frame. As scipy's filter has it, in two thirds of the time."""
    size = max(3, means.shape[0] // 2) | 1
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(means, size // 2, mode="edge"), (size, size)).reshape(*means.shape, -1)
    medians: Array = np.partition(windows, size * size // 2, axis=-1)[..., size * size // 2]
    return medians


def above_otsu(values: Array, share: float) -> Array:
    """Above this share of the threshold that splits the histogram best (Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62)."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high - low <= 1e-12:
        return np.zeros(values.shape, bool)
    counts, edges = np.histogram(np.clip(values, low, high), bins=128, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = ((counts * centres).sum() - np.cumsum(counts * centres)) / np.maximum(total - below, 1)
    between = below * (total - below) * (mean_below - mean_above) ** 2
    chosen: Array = values > centres[int(np.argmax(between))] * share
    return chosen


def without_specks(mask: Array) -> Array:
    """Only what is at least a twentieth of the largest piece: noise makes specks, particles do not."""
    pieces, count = label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept: Array = np.isin(pieces, np.flatnonzero(sizes >= max(2, sizes.max() / 20)))
    return kept
