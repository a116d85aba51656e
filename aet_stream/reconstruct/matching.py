"""Matching: each projection is moved onto the re-projection of the volume so far (Dengler, Ultramicroscopy 30 (1989) 337)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.profiles import BAND
from aet_stream.reconstruct.projector import reproject
from aet_stream.reconstruct.registered import QUICK_PX, Alignment, apply_binned, bin_factor, binned_axis_px, brightest_rows

MATCHING = ((128, 128, 5, 2), (128, 128, 20, 6), (256, 64, 20, 4))
"""Stages of projection matching: largest width and height in px, iterations, most rounds."""
SETTLED_PX = 0.03
TRUE_SHARE = 0.3
"""Of the variance of all moves, at least: else they are noise."""


def match(projections: Array, tilts_deg: Array, so_far: Alignment, *, solve: solver.Solve = solver.solve) -> Alignment:
    """Reconstruct, re-project, move each projection onto its re-projection; coarse first, until nothing moves any more."""
    shifts = so_far.shifts_px.copy()
    for width_px, height_px, iterations, rounds in MATCHING:
        factor = bin_factor(projections, width_px)
        if width_px > QUICK_PX and factor == bin_factor(projections, QUICK_PX):
            break  # small frames: nothing finer is left
        axis_px = binned_axis_px(projections.shape[2], factor)
        for _ in range(rounds):
            views = apply_binned(projections, replace(so_far, shifts_px=shifts), factor)
            views = views[:, brightest_rows(views, height_px)]
            volume = solve(views, tilts_deg, iterations=iterations, axis_px=axis_px).volume
            again = reproject(volume, tilts_deg, axis_px)
            rows = [slice(None), slice(0, views.shape[1] // 2), slice(views.shape[1] // 2, None)]
            whole, *halves = (_without_drift(factor * _moves(views[:, part], again[:, part], 4.0), tilts_deg) for part in rows)
            moves = whole * (1.0, _are_true(*halves))
            shifts += moves
            if np.abs(moves).max() < SETTLED_PX * factor:
                break
    return replace(so_far, shifts_px=shifts)


def _moves(views: Array, references: Array, largest_px: float) -> Array:
    """(tilts, 2) px, [y, x], by which each view has to be moved to match its reference."""
    return np.clip([_shift_between(view, other) for view, other in zip(views, references, strict=True)], -largest_px, largest_px)


def _are_true(one: Array, other: Array) -> bool:
    """Whether the moves across the axis are more than noise, by two estimates of them whose noise has nothing in common.

    Moves that are all noise would misalign what is aligned. Along the axis, matching is several times as sure.
    """
    common = np.mean(one[:, 1] * other[:, 1])
    varied = np.mean(one[:, 1] ** 2 + other[:, 1] ** 2) / 2
    return bool(2 * common > TRUE_SHARE * (varied + common))  # Spearman-Brown: the share of the whole's variance that is true


def _without_drift(moves: Array, tilts_deg: Array) -> Array:
    """A common move along the axis, or one that follows a sine of the tilt, moves the whole volume: it says nothing about alignment."""
    tilts = np.radians(tilts_deg)
    basis = np.stack([np.cos(tilts), np.sin(tilts)], axis=1)
    drift, *_ = np.linalg.lstsq(basis, moves[:, 1], rcond=None)
    free: Array = np.stack([moves[:, 0] - moves[:, 0].mean(), moves[:, 1] - basis @ drift], axis=1)
    return free


def _shift_between(view: Array, reference: Array, upsampling: int = 50) -> Array:
    """[y, x] px by which `view` has to be moved to match best: peak of the cross-correlation, refined by a small inverse DFT.

    Guizar-Sicairos, Thurman and Fienup, Optics Letters 33 (2008) 156.
    """
    fy, fx = np.fft.fftfreq(view.shape[0]), np.fft.fftfreq(view.shape[1])
    radius = np.hypot(fy[:, None], fx)
    cross = np.fft.fft2(reference) * np.fft.fft2(view).conj() * ((radius > BAND[0]) & (radius < BAND[1]))
    match = np.fft.ifft2(cross).real
    coarse = np.array(np.unravel_index(match.argmax(), match.shape), dtype=np.float64)
    coarse = np.where(coarse > np.array(view.shape) / 2, coarse - view.shape, coarse)
    near = np.arange(-upsampling, upsampling + 1) / upsampling
    down = np.exp(2j * np.pi * (coarse[0] + near)[:, None] * fy)
    along = np.exp(2j * np.pi * fx[:, None] * (coarse[1] + near))
    fine = np.unravel_index((down @ cross @ along).real.argmax(), (len(near), len(near)))
    return coarse + near[list(fine)]
