"""Classical backgrounds, without a network: a constant, a cubic surface, Laplace's equation, a Gaussian process on the vacuum.

All work on a coarse grid of block means (grid.py) under an automatic mask, which is why they are fast enough for every frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import binary_dilation, label, median_filter, uniform_filter
from scipy.sparse import csr_array, eye_array, kron
from scipy.sparse.linalg import spsolve

from aet_stream.denoise import grid
from aet_stream.denoise.gaussian_process import cosines
from aet_stream.projection import Array

BLOCKS = 32
"""Along the longer edge of a frame."""
_GROW_BLOCKS = 1
_MIN_VACUUM = 0.05
_TEXTURED = 1.5
"""Blocks whose texture differs by less than this factor are all alike: there is nothing to split."""
_LENGTHS = (1.5, 2.5, 4.0, 6.0, 10.0, 16.0)
"""Correlation lengths that the Gaussian process may choose from, in blocks."""
_FINEST = 2 * cosines.FINEST


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
    rows, columns = mask.shape
    laplacian = csr_array(kron(eye_array(rows), _second_difference(columns)) + kron(_second_difference(rows), eye_array(columns)))
    inside, filled = mask.ravel(), means.astype(np.float64).ravel()
    right = -(laplacian[inside][:, ~inside] @ filled[~inside])
    filled[inside] = spsolve(laplacian[inside][:, inside].tocsc(), right)
    return filled.reshape(rows, columns).astype(np.float32)


def gaussian_process(vacuum: Vacuum) -> Array:
    """(rows, columns) float32: the mean of a Gaussian process given the vacuum, its length chosen by the evidence (cosines.py).

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
    normal = (basis.row_products.T @ (seen.astype(float) / noise) @ basis.column_products).ravel()[basis.pairs]
    matrix = normal.reshape(2 * (len(basis.chosen),))
    right = (basis.rows.T @ (values / noise) @ basis.columns).ravel()[basis.chosen]
    best, found = -np.inf, np.zeros(len(basis.chosen))
    for length in _LENGTHS:
        spectrum = np.exp(-2 * (np.pi * length * basis.frequency) ** 2)
        scale = np.sqrt(amplitude * spectrum / spectrum.sum())
        factor = cho_factor(matrix * scale[:, None] * scale + np.eye(len(scale)), lower=True, check_finite=False)
        solved = cho_solve(factor, right * scale, check_finite=False)
        evidence = float(right * scale @ solved) / 2 - float(np.log(np.diag(factor[0])).sum())
        if evidence > best:
            best, found = evidence, solved * scale
    full = np.zeros(basis.rows.shape[1] * basis.columns.shape[1])
    full[basis.chosen] = found
    surface: Array = basis.rows @ full.reshape(basis.rows.shape[1], -1) @ basis.columns.T + level
    return surface.astype(np.float32)


ESTIMATES: dict[str, Callable[[Vacuum], Array]] = {
    "constant": constant,
    "polynomial": polynomial,
    "laplace": laplace,
    "gaussian-process": gaussian_process,
}
"""By the names that `denoise.model` knows."""
NAMES = tuple(ESTIMATES)


def draw(coarse: Array, vacuum: Vacuum, shape: tuple[int, int]) -> Array:
    """(height, width) float32: a background at full resolution."""
    return grid.draw(coarse, vacuum.block_px, shape)


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
