"""The built-in solver `nesterov-sirt`: SIRT with positivity, accelerated by Nesterov momentum, on a sparse projector.

Geometry: the tilt axis runs along image rows (y); every image row is one slice of its own. A voxel at X (right) and Y (up) of a slice is
seen at detector column c + X cos(tilt) + Y sin(tilt), where c is the axis. Slices are arrays [row, column] with row = (N - 1)/2 - Y and
column = (N - 1)/2 + X, as tomopy's iterative algorithms and ASTRA have them.

SIRT: Gilbert, J. Theor. Biol. 36 (1972) 105. Momentum: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009) 183.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array

Progress = Callable[[int, int], None]
_SLAB = 16
"""Slices that one thread works on at once."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A volume and how well it explains the projections."""

    volume: Array
    """(slice y, row, column) float32"""
    residuals: Array
    """(iterations,) root mean square difference to the projections, relative to their own"""


@dataclass(frozen=True, slots=True)
class Projector:
    """A slice's projections as a sparse matrix; only voxels in the inscribed circle exist."""

    forward: csr_array
    """(tilts * width, voxels) float32"""
    backward: csr_array
    """Its transpose, stored row by row: several times faster than multiplying by forward.T"""
    inside: Array
    """(width, width) bool: the circle"""


def make_projector(tilts_deg: Array, width: int, axis_px: float | None = None) -> Projector:
    """Voxel-driven linear interpolation: each voxel is shared between the two detector columns it falls between.

    Parameters
    ----------
    axis_px : detector column of the tilt axis; None: (width - 1) / 2
    """
    middle = (width - 1) / 2
    axis = middle if axis_px is None else axis_px
    row, column = np.mgrid[:width, :width]
    x, y = column - middle, middle - row
    inside = x * x + y * y <= (width / 2) ** 2
    x, y = x[inside].astype(np.float32), y[inside].astype(np.float32)
    voxels = np.arange(x.size, dtype=np.int32)
    rows, columns, weights = [], [], []
    for index, tilt in enumerate(np.radians(tilts_deg)):
        place = axis + x * np.cos(tilt) + y * np.sin(tilt)
        left = np.floor(place).astype(np.int32)
        share = (place - left).astype(np.float32)
        for at, weight in ((left, 1 - share), (left + 1, share)):
            seen = (at >= 0) & (at < width) & (weight > 0)
            rows.append(index * width + at[seen])
            columns.append(voxels[seen])
            weights.append(weight[seen])
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    forward = csr_array(entries, shape=(len(tilts_deg) * width, x.size), dtype=np.float32)
    return Projector(forward, csr_array(forward.T), inside)


def solve(
    projections: Array,
    tilts_deg: Array,
    *,
    iterations: int = 50,
    axis_px: float | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Reconstruct.

    Parameters
    ----------
    projections : (tilts, height, width) float32, background-free, in any order of tilts
    tilts_deg : (tilts,)
    threads : 0 takes all cores
    progress : called with (slices done, slices in all)

    Raises
    ------
    ReconstructionError : too few projections, shapes that do not fit, values that are not finite
    """
    _check(projections, tilts_deg, iterations)
    tilts, height, width = projections.shape
    projector = make_projector(tilts_deg, width, axis_px)
    weigh_rows = _inverse(projector.forward.sum(axis=1))
    weigh_voxels = _inverse(projector.backward.sum(axis=1))
    volume = np.zeros((height, width, width), np.float32)
    squares = np.zeros(iterations)
    done = 0

    def one_slab(first: int) -> Array:
        slab = np.ascontiguousarray(projections[:, first : first + _SLAB].transpose(0, 2, 1).reshape(tilts * width, -1), dtype=np.float32)
        voxels, errors = _nesterov_sirt(projector, slab, weigh_rows, weigh_voxels, iterations)
        volume[first : first + _SLAB, projector.inside] = voxels.T
        return errors

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:  # sparse products release the interpreter's lock
        for errors in pool.map(one_slab, range(0, height, _SLAB)):
            squares += errors
            done = min(height, done + _SLAB)
            if progress is not None:
                progress(done, height)
    own = float(np.sum(np.square(projections, dtype=np.float64)))
    return Solution(volume, np.sqrt(squares / max(own, 1e-30)))


def _nesterov_sirt(projector: Projector, measured: Array, weigh_rows: Array, weigh_voxels: Array, iterations: int) -> tuple[Array, Array]:
    """(voxels, slices) and the squared residual before each step, for one slab (tilts * width, slices)."""
    now = np.zeros((projector.backward.shape[0], measured.shape[1]), np.float32)
    ahead, momentum = now, 1.0
    errors = np.zeros(iterations)
    for step in range(iterations):
        missing = measured - projector.forward @ ahead
        errors[step] = float(np.sum(np.square(missing, dtype=np.float64)))
        after = np.maximum(ahead + weigh_voxels * (projector.backward @ (weigh_rows * missing)), 0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + np.float32((momentum - 1) / following) * (after - now)
        now, momentum = after, following
    return now, errors


def _inverse(sums: Array) -> Array:
    """(n, 1) float32: 1 / sum, and 0 where nothing is seen."""
    sums = np.asarray(sums, dtype=np.float32).reshape(-1, 1)
    return np.divide(1, sums, out=np.zeros_like(sums), where=sums > 1e-6)


def _check(projections: Array, tilts_deg: Array, iterations: int) -> None:
    if projections.ndim != 3 or len(projections) != len(tilts_deg):
        raise ReconstructionError(f"{projections.shape} projections for {len(tilts_deg)} tilts: (tilts, y, x) and one tilt each are needed")
    if len(projections) < 3:
        raise ReconstructionError(f"{len(projections)} projections: at least 3 are needed for a volume")
    if iterations < 1:
        raise ReconstructionError(f"{iterations} iterations: at least 1 is needed")
    if not np.isfinite(tilts_deg).all():
        raise ReconstructionError(f"tilt {int(np.flatnonzero(~np.isfinite(tilts_deg))[0])} is not finite")
    for row, projection in enumerate(projections):
        if not np.isfinite(projection).all():
            raise ReconstructionError(f"projection {row} has values that are not finite")
