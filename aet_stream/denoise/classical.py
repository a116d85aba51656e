"""Classical backgrounds, without a network: one constant, and Laplace's equation under an automatic mask.

Both work on a coarse grid of block means (grid.py), which is why they are fast enough to be computed for every frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, label, median_filter
from scipy.sparse import csr_array, eye_array, kron
from scipy.sparse.linalg import spsolve

from aet_stream.denoise import grid
from aet_stream.projection import Array

NAMES = ("constant", "laplace")
BLOCKS = 32
"""Along the longer edge of a frame; the networks on coarse grids use the same ones."""
_GROW_BLOCKS = 1
_MIN_VACUUM = 0.05
_TEXTURED = 1.5
"""Blocks whose texture differs by less than this factor are all alike: there is nothing to split."""


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
        found: Array = self.statistics[0]
        return found

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
    surroundings = median_filter(means, size=max(3, means.shape[0] // 2) | 1, mode="nearest")
    mask = _above_otsu(np.maximum(means - surroundings, 0))
    if texture.max() > _TEXTURED * texture.min():
        mask |= _above_otsu(texture)
    mask = _without_specks(mask)
    return Vacuum(statistics, binary_dilation(mask, iterations=_GROW_BLOCKS), block)


def constant(frame: Array, vacuum: Vacuum | None = None) -> Array:
    """(height, width) float32: the median of the vacuum, or of the frame's border where no vacuum is seen."""
    vacuum = vacuum or find_vacuum(frame)
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    values = vacuum.means[~vacuum.mask] if vacuum.fraction >= _MIN_VACUUM else border
    return np.full(frame.shape, np.median(values), np.float32)


def laplace(frame: Array, vacuum: Vacuum | None = None) -> Array:
    """(height, width) float32: vacuum as it is, and under the particle the solution of Laplace's equation with the vacuum as its rim."""
    vacuum = vacuum or find_vacuum(frame)
    return grid.draw(laplace_blocks(frame, vacuum), vacuum.block_px, (frame.shape[0], frame.shape[1]))


def laplace_blocks(frame: Array, vacuum: Vacuum) -> Array:
    """(rows, columns) float32: the same at block centres; where next to no vacuum is seen, the constant."""
    if vacuum.fraction < _MIN_VACUUM:
        return np.full(vacuum.mask.shape, constant(frame, vacuum)[0, 0], np.float32)
    return _inpainted(vacuum.means, vacuum.mask)


def _inpainted(means: Array, mask: Array) -> Array:
    """Five-point Laplacian with free edges over the masked blocks, solved directly."""
    if not mask.any():
        return means
    rows, columns = mask.shape
    laplacian = csr_array(kron(eye_array(rows), _second_difference(columns)) + kron(_second_difference(rows), eye_array(columns)))
    inside, filled = mask.ravel(), means.astype(np.float64).ravel()
    right = -(laplacian[inside][:, ~inside] @ filled[~inside])
    filled[inside] = spsolve(laplacian[inside][:, inside].tocsc(), right)
    return filled.reshape(rows, columns).astype(np.float32)


def _second_difference(n: int) -> csr_array:
    ends = np.full(n, -2.0)
    ends[[0, -1]] = -1.0
    return csr_array(np.diag(ends) + np.eye(n, k=1) + np.eye(n, k=-1))


def _above_otsu(values: Array) -> Array:
    """Above the threshold that splits the histogram best (Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62)."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high - low <= 1e-12:
        return np.zeros(values.shape, bool)
    counts, edges = np.histogram(np.clip(values, low, high), bins=128, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = ((counts * centres).sum() - np.cumsum(counts * centres)) / np.maximum(total - below, 1)
    between = below * (total - below) * (mean_below - mean_above) ** 2
    chosen: Array = values > centres[int(np.argmax(between))] * 0.8
    return chosen


def _without_specks(mask: Array) -> Array:
    """Only what is at least a twentieth of the largest piece: noise makes specks, particles do not."""
    pieces, count = label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept: Array = np.isin(pieces, np.flatnonzero(sizes >= max(2, sizes.max() / 20)))
    return kept
