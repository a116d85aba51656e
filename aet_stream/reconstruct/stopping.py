"""When to stop: the rule that chooses the number of iterations, which is the solver's regularisation.

With noise, an iterated volume gets better and then worse. Where the turn lies depends on dose, particle and tilts, but can be found without
the truth: reconstruct a few slices (the pilot), project them, add noise of the strength that the projections show, reconstruct again, and
count after how many iterations the known pilot is met best (a parametric bootstrap: Efron, SIAM CBMS-NSF 38 (1982)). Without noise nothing
turns, and the answer is `most`.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve, gaussian_filter

from aet_stream.projection import Array
from aet_stream.reconstruct.projector import Pieces
from aet_stream.reconstruct.solver import as_rays, check, limit_bytes, plan, steps

PILOT_ITERATIONS = 30
MOST_ITERATIONS = 100
SAMPLE = 16
"""Slices that are looked at; fewer where half of the memory would not hold their pilot."""
_LAPLACIANS = np.outer([1, -2, 1], [1, -2, 1])
_OVER = 1.5
"""A pilot up to this factor beyond the turn is a fair stand-in for the truth; one before the turn is smoother than that."""
_PATIENCE = 1.25
"""Go on this much beyond the best so far before believing in it."""


def noise_variance(projections: Array) -> Array:
    """(tilts, y, x) float32: the noise of each pixel, from what is finer than any particle.

    Immerkaer, Comput. Vis. Image Underst. 64 (1996) 300. Right to a per cent for white noise on features of two pixels' width and more;
    a filtered image has no such noise and gives about 0, and so do frames of fewer than 3 px, where it cannot be told.
    """
    if min(projections.shape[1:]) < 3:
        return np.zeros(projections.shape, np.float32)
    fine = np.stack([convolve(view, _LAPLACIANS)[1:-1, 1:-1] for view in projections.astype(np.float32)])
    squares = np.pad(fine * fine / np.float32(36), ((0, 0), (1, 1), (1, 1)), mode="edge")
    return np.stack([gaussian_filter(square, 8.0) for square in squares])


def choose_iterations(
    projections: Array,
    tilts_deg: Array,
    *,
    axis_px: float | None = None,
    most: int = MOST_ITERATIONS,
    residual: float = 0.0,
    seed: int = 0,
    memory_mib: int = 0,
    weights: Array | None = None,
) -> int:
    """How many iterations of the built-in solver are best for these projections.

    Parameters
    ----------
    projections : (tilts, height, width) float32
    residual : not 0: stop instead where the residual, relative to the projections, has fallen to this
    weights : as for the solver

    Raises
    ------
    ReconstructionError : projections that give no volume
    """
    check(projections, tilts_deg, most, axis_px)
    limit, per_slice = limit_bytes(memory_mib), 4 * PILOT_ITERATIONS * projections.shape[2] ** 2
    sample = _brightest(projections, min(SAMPLE, max(1, limit // 2 // per_slice)))
    _, tilts_at_once = plan((len(projections), len(sample), projections.shape[2]), 1, limit - per_slice * len(sample), held=len(sample))
    pieces = Pieces(np.asarray(tilts_deg), projections.shape[2], axis_px, tilts_at_once=tilts_at_once, weights=weights)
    measured = as_rays(projections[:, sample])
    if residual > 0:
        return _where_residual(pieces, measured, most, residual)
    sigma = np.sqrt(as_rays(np.stack([noise_variance(view[None])[0, sample] for view in projections])))
    noise = sigma * np.random.default_rng(seed).standard_normal(sigma.shape, dtype=np.float32)
    path = [voxels for voxels, _ in steps(pieces, measured, min(PILOT_ITERATIONS, most))]
    length = len(path)
    while True:
        best = _turn(pieces, path[length - 1], noise, most)
        if length <= _OVER * best or length == 1:
            return best
        length = max(1, int(_OVER * best))  # the pilot itself was far beyond the turn, and noisy: take an earlier one


def _turn(pieces: Pieces, pilot: Array, noise: Array, most: int) -> int:
    """After how many iterations a known volume is met best through this noise."""
    again = np.concatenate([piece.forward @ pilot for _, piece in pieces]) + noise
    best, least = most, np.inf
    for step, (voxels, _) in enumerate(steps(pieces, again, most), start=1):
        error = float(np.linalg.norm(voxels - pilot))
        if error < least:
            best, least = step, error
        elif step > _PATIENCE * best + 2:
            break
    return best


def _where_residual(pieces: Pieces, measured: Array, most: int, residual: float) -> int:
    own = float(np.sum(np.square(measured, dtype=np.float64)))
    for step, (_, squared) in enumerate(steps(pieces, measured, most)):
        if squared <= residual**2 * own:
            return max(1, step)
    return most


def _brightest(projections: Array, most: int) -> Array:
    """At most so many slices across the particle: evenly among those with at least half of the most signal."""
    signal = np.abs(projections.sum(axis=(0, 2)))
    there = np.flatnonzero(signal >= 0.5 * signal.max())
    chosen: Array = there[np.unique(np.linspace(0, len(there) - 1, most).round().astype(int))]
    return chosen
