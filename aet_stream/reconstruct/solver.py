"""The built-in solver `nesterov-sirt`: SIRT with positivity, accelerated by Nesterov momentum, on a sparse projector.

Geometry: the tilt axis runs along image rows (y); every image row is one slice of its own. A voxel at X (right) and Y (up) of a slice is
seen at detector column c + X cos(tilt) + Y sin(tilt), where c is the axis. Slices are arrays [row, column] with row = (N - 1)/2 - Y and
column = (N - 1)/2 + X, as tomopy's iterative algorithms and ASTRA have them.

SIRT: Gilbert, J. Theor. Biol. 36 (1972) 105. Momentum: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009) 183.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array

Progress = Callable[[int, int], None]
_SLAB = 32
"""Slices that one thread works on at once: fewer make the sparse products slower, more do not make them faster."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Solution:
    """A volume and how well it explains the projections."""

    volume: Array
    """(slice y, row, column) float32"""
    residuals: Array
    """(iterations,) root mean square difference to the projections before each iteration, relative to their own"""


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
    axis_px : detector column of the tilt axis, may lie between columns; None: (width - 1) / 2
    """
    middle = (width - 1) / 2
    axis = middle if axis_px is None else axis_px
    inside = _circle(width)
    row, column = np.nonzero(inside)
    x, y = column - middle, middle - row
    # Every voxel has two entries per tilt, so the transpose can be filled in place, already sorted.
    rays = np.empty((x.size, len(tilts_deg), 2), np.int32)
    weights = np.empty(rays.shape, np.float32)
    for index, tilt in enumerate(np.radians(tilts_deg)):
        place = axis + x * np.cos(tilt) + y * np.sin(tilt)
        left = np.floor(place).astype(np.int32)
        share = place - left
        for side, weight in enumerate((1 - share, share)):
            at = left + side
            weights[:, index, side] = np.where((at >= 0) & (at < width), weight, 0)  # what leaves the detector is not seen
            rays[:, index, side] = index * width + np.clip(at, 0, width - 1)
    starts = np.arange(x.size + 1, dtype=np.int64) * (2 * len(tilts_deg))
    backward = csr_array((weights.ravel(), rays.ravel(), starts), shape=(x.size, len(tilts_deg) * width))
    return Projector(csr_array(backward.T), backward, inside)


def solve(
    projections: Array,
    tilts_deg: Array,
    *,
    iterations: int = 50,
    axis_px: float | None = None,
    threads: int = 0,
    memory_mib: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Reconstruct.

    Parameters
    ----------
    projections : (tilts, height, width) float32, background-free, in any order of tilts
    tilts_deg : (tilts,)
    axis_px : detector column of the tilt axis, may lie between columns; None: (width - 1) / 2
    threads : 0 takes all cores
    memory_mib : bound on what is allocated, the volume included; 0: four fifths of the machine's memory
    progress : called from any thread with (steps done, steps in all)

    Raises
    ------
    ReconstructionError : too few projections, shapes that do not fit, values that are not finite, too little memory
    """
    _check(projections, tilts_deg, iterations, axis_px)
    tilts, height, width = projections.shape
    workers = threads or len(os.sched_getaffinity(0))
    depth = _slab(projections.shape, workers, memory_mib)
    slabs = range(0, height, depth)
    projector = make_projector(tilts_deg, width, axis_px)
    weigh_rays, weigh_voxels = (_inverse(matrix.sum(axis=1)) for matrix in (projector.forward, projector.backward))
    volume = np.zeros((height, width, width), np.float32)
    count = _Count(len(slabs) * iterations, progress)

    def one_slab(first: int) -> Array:
        views = projections[:, first : first + depth].transpose(0, 2, 1).reshape(tilts * width, -1)
        measured = np.ascontiguousarray(views, dtype=np.float32)
        voxels, errors = _nesterov_sirt(projector, measured, weigh_rays, weigh_voxels, iterations, count)
        volume[first : first + depth, projector.inside] = voxels.T
        return errors

    with ThreadPoolExecutor(workers) as pool:  # sparse products release the interpreter's lock
        squares = np.sum(list(pool.map(one_slab, slabs)), axis=0)
    own = float(np.sum(np.square(projections, dtype=np.float64)))
    return Solution(volume, np.sqrt(squares / max(own, 1e-30)))


def _nesterov_sirt(
    projector: Projector, measured: Array, weigh_rays: Array, weigh_voxels: Array, iterations: int, count: _Count
) -> tuple[Array, Array]:
    """(voxels, slices) and the squared residual before each step, for one slab (tilts * width, slices)."""
    now = np.zeros((projector.backward.shape[0], measured.shape[1]), np.float32)
    ahead, momentum = now, 1.0
    errors = np.zeros(iterations)
    for step in range(iterations):
        missing = measured - projector.forward @ ahead
        errors[step] = float(np.sum(np.square(missing, dtype=np.float64)))
        missing *= weigh_rays
        after: Array = projector.backward @ missing
        after *= weigh_voxels
        after += ahead
        np.maximum(after, 0, out=after)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + np.float32((momentum - 1) / following) * (after - now)
        now, momentum = after, following
        count.add_one()
    return now, errors


class _Count:
    """Steps done by all threads together."""

    def __init__(self, total: int, told: Progress | None) -> None:
        self._done, self._total, self._told = 0, total, told
        self._lock = threading.Lock()

    def add_one(self) -> None:
        with self._lock:
            self._done += 1
            if self._told is not None:
                self._told(self._done, self._total)


def _circle(width: int) -> Array:
    from_middle = np.arange(width) - (width - 1) / 2
    inside: Array = np.add.outer(from_middle**2, from_middle**2) <= (width / 2) ** 2
    return inside


def _slab(shape: tuple[int, int, int], workers: int, memory_mib: int) -> int:
    """How many slices a thread may work on at once."""
    tilts, height, width = shape
    voxels = int(_circle(width).sum())
    limit = memory_mib * _MIB or int(0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    fixed = 4 * height * width**2 + 2 * 8 * 2 * tilts * voxels  # volume; two matrices of 8 bytes an entry, two entries a voxel and tilt
    per_slice = 4 * (5 * voxels + 3 * tilts * width)
    fitting = (limit - fixed) // (workers * per_slice)
    if fitting < 1:
        needed_mib, limit_mib = (fixed + workers * per_slice) // _MIB + 1, limit // _MIB
        raise ReconstructionError(
            f"a volume of {height} x {width} x {width} from {tilts} tilts needs {needed_mib} MiB of memory, {limit_mib} may be used:"
            " bin the projections, or reconstruct on a larger machine"
        )
    return int(min(_SLAB, -(-height // workers), fitting))


def _inverse(sums: Array) -> Array:
    """(n, 1) float32: 1 / sum, and 0 where nothing is seen."""
    sums = np.asarray(sums, dtype=np.float32).reshape(-1, 1)
    return np.divide(1, sums, out=np.zeros_like(sums), where=sums > 1e-6)


def _check(projections: Array, tilts_deg: Array, iterations: int, axis_px: float | None) -> None:
    if projections.ndim != 3 or np.shape(tilts_deg) != (len(projections),):
        raise ReconstructionError(f"{projections.shape} projections for {np.shape(tilts_deg)} tilts: (tilts, y, x) and (tilts,) are needed")
    if len(projections) < 3:
        raise ReconstructionError(f"{len(projections)} projections: at least 3 are needed for a volume")
    if min(projections.shape) < 2:
        raise ReconstructionError(f"projections of {projections.shape[1]} x {projections.shape[2]} px: at least 2 x 2 are needed")
    if iterations < 1:
        raise ReconstructionError(f"{iterations} iterations: at least 1 is needed")
    if axis_px is not None and not 0 <= axis_px <= projections.shape[2] - 1:
        raise ReconstructionError(f"axis at column {axis_px}: it must lie within the {projections.shape[2]} columns of the projections")
    if not np.isfinite(tilts_deg).all():
        row = int(np.flatnonzero(~np.isfinite(tilts_deg))[0])
        raise ReconstructionError(f"row {row}: its tilt is {tilts_deg[row]}, not a number of degrees")
    for row, projection in enumerate(projections):
        if not np.isfinite(projection).all():
            bad = int(projection.size - np.isfinite(projection).sum())
            raise ReconstructionError(f"row {row}: {bad} pixels are not finite (NaN or infinite)")
