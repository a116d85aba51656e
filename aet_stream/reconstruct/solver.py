"""The built-in solver `nesterov-sirt`: SIRT with positivity inside a cylinder, accelerated by Nesterov momentum, on a sparse projector.

SIRT: Gilbert, J. Theor. Biol. 36 (1972) 105. Momentum: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009) 183. With noise it gets better and
then worse again: when to stop is the regularisation (stopping.py). Geometry: projector.py.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from aet_stream.errors import ReconstructionError, TooFewProjections
from aet_stream.projection import Array
from aet_stream.reconstruct.memory import machine_bytes
from aet_stream.reconstruct.projector import Pieces, circle

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
class Slab:
    """Some slices of a volume, in their final state."""

    slices: slice
    volume: Array
    """(slice y, row, column) float32"""
    squares: Array
    """(iterations,) summed squared difference to the projections before each iteration"""


def solve(
    projections: Array,
    tilts_deg: Array,
    *,
    iterations: int = 50,
    axis_px: float | None = None,
    start: Array | None = None,
    threads: int = 0,
    memory_mib: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    pitches: Array | None = None,
    weights: Array | None = None,
) -> Solution:
    """Reconstruct.

    Parameters
    ----------
    projections : (tilts, height, width) float32, background-free, in any order of tilts
    tilts_deg : (tilts,)
    axis_px : detector column of the tilt axis, may lie between columns; None: (width - 1) / 2
    start : (slice y, row, column) float32, an earlier volume to go on from; None: nothing
    threads : 0 takes all cores
    memory_mib : bound on what is allocated, the volume included; 0: four fifths of what this process may have. Where the projector does not
        fit, it is made anew in every iteration, which takes about twice as long. With a GPU: bound on its memory, 0: four fifths of
        what it has free.
    device : cpu, or a torch device: cuda, cuda:0, ...
    progress : called from any thread with (steps done, steps in all)
    pitches : (tilts,) how far the axis was tilted towards who looks (turns.py): slices see each other then, and are solved together, on a
        CPU, in two to three times the time; None: not at all
    weights : (tilts,) 0 to 1: how much of what is smooth counts in each projection (weights.py); None: all

    Raises
    ------
    ReconstructionError : too few projections, shapes that do not fit, values that are not finite, too little memory, no such device
    """
    check(projections, tilts_deg, iterations, axis_px)
    _, height, width = projections.shape
    workers = _workers(threads, device)
    if pitches is None:
        depth, tilts_at_once = plan(projections.shape, workers, limit_bytes(memory_mib, device), held=height if device == "cpu" else 0)
    else:
        depth, tilts_at_once = height, len(tilts_deg)
        _refuse_together(projections.shape, limit_bytes(memory_mib), device)
    pieces = Pieces(np.asarray(tilts_deg), width, axis_px, tilts_at_once=tilts_at_once, pitches=pitches, weights=weights)
    volume, squares = np.zeros((height, width, width), np.float32), np.zeros(iterations)
    for slices, voxels, missed in _solved(
        pieces, projections, range(0, height, depth), iterations, start=start, workers=workers, device=device, progress=progress
    ):
        volume[slices, pieces.inside] = voxels.T
        squares += missed
    return Solution(volume, residuals(squares, projections))


def solve_by_slabs(
    projections: Array,
    tilts_deg: Array,
    *,
    iterations: int,
    first: int = 0,
    threads: int = 0,
    memory_mib: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    weights: Array | None = None,
) -> Iterator[Slab]:
    """The same volume as `solve` makes, to the last bit, some slices at a time and in order: it is never in memory as a whole.

    Parameters
    ----------
    first : slice to begin with
    others : as for `solve`

    Raises
    ------
    ReconstructionError : as `solve`
    """
    check(projections, tilts_deg, iterations)
    _, height, width = projections.shape
    workers = _workers(threads, device)
    shape = (len(projections), height - first, width)
    depth, tilts_at_once = plan(shape, workers, limit_bytes(memory_mib, device), held=min(_SLAB, height) if device == "cpu" else 0)
    pieces = Pieces(np.asarray(tilts_deg), width, None, tilts_at_once=tilts_at_once, weights=weights)
    for slices, voxels, missed in _solved(
        pieces, projections, range(first, height, depth), iterations, workers=workers, device=device, progress=progress
    ):
        volume = np.zeros((voxels.shape[1], width, width), np.float32)
        volume[:, pieces.inside] = voxels.T
        yield Slab(slices, volume, missed)


def residuals(squares: Array, projections: Array) -> Array:
    """(iterations,) root mean square difference relative to the projections' own, of summed squares."""
    own = sum(float(np.sum(np.square(view, dtype=np.float64))) for view in projections)
    relative: Array = np.sqrt(squares / max(own, 1e-30))
    return relative


def _workers(threads: int, device: str) -> int:
    return 1 if device != "cpu" else threads or len(os.sched_getaffinity(0))


def _solved(
    pieces: Pieces,
    projections: Array,
    slabs: range,
    iterations: int,
    *,
    workers: int,
    device: str,
    progress: Progress | None,
    start: Array | None = None,
) -> Iterator[tuple[slice, Array, Array]]:
    """(slices, their (voxels, slices), squares before each iteration) of all slabs, in order."""
    count = _Count(len(slabs) * iterations, progress)
    finish = _on(device, pieces)

    def one_slab(first: int) -> tuple[slice, Array, Array]:
        slices = slice(first, min(first + slabs.step, projections.shape[1]))
        begin = None if start is None else start[slices, pieces.inside].T
        with count:
            return slices, *finish(as_rays(projections[:, slices]), iterations, begin, count.add_one)

    with ThreadPoolExecutor(workers) as pool, count:  # sparse products release the interpreter's lock
        waiting = deque[Future[tuple[slice, Array, Array]]]()
        for first in slabs:
            waiting.append(pool.submit(one_slab, first))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


Solve = Callable[..., Solution]
"""`solve`, with what every call has in common filled in."""


def as_rays(views: Array) -> Array:
    """(tilts, slices, width) -> (tilts * width, slices) float32, in a row"""
    return np.ascontiguousarray(views.transpose(0, 2, 1).reshape(-1, views.shape[1]), dtype=np.float32)


def steps(pieces: Pieces, measured: Array, iterations: int, *, start: Array | None = None) -> Iterator[tuple[Array, float]]:
    """(voxels, slices) after each iteration, and the squared residual before it, for one slab of (tilts * width, slices)."""
    weigh_rays, weigh_voxels = _inverse(pieces.ray_sums), _inverse(pieces.voxel_sums)
    now = np.zeros((len(weigh_voxels), measured.shape[1]), np.float32) if start is None else np.ascontiguousarray(start, np.float32)
    ahead, momentum = now, 1.0
    for _ in range(iterations):
        after, squared = None, 0.0
        for rays, piece in pieces:
            missing = measured[rays] - piece.forward @ ahead
            squared += float(np.sum(np.square(missing, dtype=np.float64)))
            if pieces.weighing:
                pieces.weighing.weigh(missing, rays)
            missing *= weigh_rays[rays]
            back: Array = piece.backward @ missing
            after = back if after is None else np.add(after, back, out=after)
        assert after is not None
        after *= weigh_voxels
        after += ahead
        np.maximum(after, 0, out=after)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + np.float32((momentum - 1) / following) * (after - now)
        now, momentum = after, following
        yield now, squared


Finish = Callable[[Array, int, Array | None, Callable[[], None]], tuple[Array, Array]]
"""(rays, iterations, start, told after each) -> (voxels, slices) in the end, and the squared residual before each iteration"""


def _on(device: str, pieces: Pieces) -> Finish:
    if device != "cpu":
        from aet_stream.reconstruct.gpu import OnDevice

        return OnDevice(pieces, device).finish

    def finish(measured: Array, iterations: int, start: Array | None, told: Callable[[], None]) -> tuple[Array, Array]:
        squares = []
        for now, squared in steps(pieces, measured, iterations, start=start):
            voxels = now
            squares.append(squared)
            told()
        return voxels, np.array(squares)

    return finish


class _Count:
    """Steps done by all threads together. The first error in one of them, or Ctrl-C, ends all at their next step."""

    def __init__(self, total: int, told: Progress | None) -> None:
        self._done, self._total, self._told = 0, total, told
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._error = self._error or error

    def add_one(self) -> None:
        if self._error is not None:
            raise self._error
        with self._lock:
            self._done += 1
            if self._told is not None:
                self._told(self._done, self._total)


def limit_bytes(memory_mib: int = 0, device: str = "cpu") -> int:
    """Bytes that may be used.

    Raises
    ------
    ReconstructionError : there is no such device
    """
    if device == "cpu":
        return memory_mib * _MIB or int(0.8 * machine_bytes())
    from aet_stream.reconstruct.gpu import free_mib

    free = free_mib(device)
    return (memory_mib or int(0.8 * free)) * _MIB


def plan(shape: tuple[int, int, int], workers: int, limit: int, *, held: int) -> tuple[int, int]:
    """How many slices a thread may work on at once, and for how many tilts the projector is made at once.

    `held`: slices of the volume that lie in the same memory.
    """
    tilts, height, width = shape
    voxels = int(circle(width).sum())
    volume = 4 * held * width**2
    per_tilt = 2 * 8 * 2 * voxels  # two matrices of 8 bytes an entry, two entries a voxel and tilt
    per_slice = 4 * (7 * voxels + 3 * tilts * width)  # six at work, one of a slab that is done and waits for its turn
    making = 6 * 8 * voxels  # on top, while one is made
    whole = (limit - volume - tilts * per_tilt - making) // (workers * per_slice)
    if whole >= 1:
        return int(min(_SLAB, -(-height // workers), whole)), tilts
    for tilts_at_once in range(max(1, tilts // 2), 0, -1):
        depth = (limit - volume - workers * (tilts_at_once * per_tilt + making)) // (workers * per_slice)
        if depth >= min(_SLAB, height) or (tilts_at_once == 1 and depth >= 1):
            return int(min(_SLAB, -(-height // workers), depth)), tilts_at_once
    needed_mib, limit_mib = (volume + workers * (per_tilt + making + per_slice)) // _MIB + 1, limit // _MIB
    raise ReconstructionError(
        f"a volume of {height} x {width} x {width} from {tilts} tilts needs {needed_mib} MiB of memory, {limit_mib} may be used:"
        " allow more (--memory, reconstruct.memory_mib), bin the projections, or take a larger machine"
    )


def _refuse_together(shape: tuple[int, int, int], limit: int, device: str) -> None:
    tilts, height, width = shape
    voxels = int(circle(width).sum())
    needed = 4 * height * (width**2 + 6 * voxels + 4 * tilts * width) + 2 * 4 * 8 * 2 * voxels * tilts
    if device != "cpu":
        raise ReconstructionError(f"turned projections are not solved on {device}: take the CPU (--device cpu)")
    if needed > limit:
        raise ReconstructionError(
            f"a volume of {height} x {width} x {width} from {tilts} turned projections needs {needed // _MIB + 1} MiB of memory,"
            f" {limit // _MIB} may be used: allow more (--memory, reconstruct.memory_mib), or leave out --atoms"
        )


def _inverse(sums: Array) -> Array:
    """(n, 1) float32: 1 / sum, and 0 where nothing is seen."""
    sums = sums.reshape(-1, 1)
    return np.divide(1, sums, out=np.zeros_like(sums), where=sums > 1e-6)


def check(projections: Array, tilts_deg: Array, iterations: int, axis_px: float | None = None) -> None:
    """Refuse what cannot give a volume.

    Raises
    ------
    ReconstructionError : names the row or the number that is wrong
    """
    if projections.ndim != 3 or np.shape(tilts_deg) != (len(projections),):
        raise ReconstructionError(f"{projections.shape} projections for {np.shape(tilts_deg)} tilts: (tilts, y, x) and (tilts,) are needed")
    if len(projections) < 3:
        raise TooFewProjections(f"{len(projections)} projections: at least 3 are needed for a volume")
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
