"""Shifts of whole projections: along the axis by what is summed across it, across the axis by where the particle lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.profiles import align_profiles, in_band, smoothed, tapered
from aet_stream.reconstruct.registered import Alignment, one_by_one

LEAST_OFFSET_PX, CERTAIN_SIGMAS = 0.05, 3.0
"""An axis this far off the middle, by so many standard errors, is worth a shift; turned by so many, a turn."""


def common_line(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Move the sums across the axis onto their mean."""
    sums = np.concatenate([tapered(view).sum(axis=2) for view in one_by_one(projections, so_far)])
    profiles, height = np.fft.rfft(sums, axis=1), sums.shape[1]
    bins = np.flatnonzero(in_band(np.fft.rfftfreq(height)))
    moves = align_profiles(profiles[:, bins], bins, height)
    shifts = so_far.shifts_px.copy()
    shifts[:, 0] += moves - np.median(moves)
    return replace(so_far, shifts_px=shifts)


def centre_of_mass(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Each projection on the middle column."""
    shifts = so_far.shifts_px.copy()
    shifts[:, 1] += np.nan_to_num(_off_middle(projections, so_far))
    return replace(so_far, shifts_px=shifts)


def axis_offset(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """All by the same: over the tilts a centre of mass moves as a cosine and a sine about the axis, wherever the particle lies."""
    off = _off_middle(projections, so_far)
    seen = np.isfinite(off)
    tilts = np.radians(tilts_deg[seen])
    basis = np.stack([np.ones_like(tilts), np.cos(tilts), np.sin(tilts)], axis=1)
    if len(basis) <= 3 or np.linalg.matrix_rank(basis) < 3:
        return so_far
    law, *_ = np.linalg.lstsq(basis, off[seen], rcond=None)
    variance = np.sum((off[seen] - basis @ law) ** 2) / (len(basis) - 3)
    error = np.sqrt(variance * np.linalg.inv(basis.T @ basis)[0, 0])
    if abs(law[0]) < max(LEAST_OFFSET_PX, CERTAIN_SIGMAS * error):
        return so_far
    return replace(so_far, shifts_px=so_far.shifts_px + np.array([0.0, law[0]]))


def _off_middle(projections: Array, so_far: Alignment) -> Array:
    """(tilts,) px from what stands out clearly (the rest may be left-over background) to the middle column. NaN: nothing stands out."""
    width = projections.shape[2]
    off = np.full(len(projections), np.nan)
    for row, (view,) in enumerate(one_by_one(projections, so_far)):
        smooth, top = smoothed(view)
        weight = np.maximum(smooth - 0.2 * top, 0)
        total = float(weight.sum())
        if total > 0:
            off[row] = (width - 1) / 2 - float((weight.sum(axis=0) @ np.arange(width)) / total)
    return off
