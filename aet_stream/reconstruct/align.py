"""Where each projection lies: shifts and the direction of the tilt axis, found from the projections themselves.

What is said of the axis comes first. Then four steps around it, each of which can be left out, and none kept that makes the projections
explain each other less well (by the residual of a quick reconstruction):

    common-line            shifts along the axis: what is summed across it does not depend on the tilt (shifts.py)
    center-of-mass         shifts across it: an isolated particle's centre of mass is put on the axis; where that does no good, all
                           projections are moved by how far the axis lies off the middle (shifts.py)
    axis-angle             the direction of the tilt axis: the one along which all projections have the same profile (tilt_axis.py)
    projection-matching    both, against re-projections of the volume so far (matching.py)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.matching import match
from aet_stream.reconstruct.registered import FEWEST_ROWS, QUICK_PX, Alignment, apply, apply_binned, bin_factor, binned_axis_px
from aet_stream.reconstruct.shifts import axis_offset, centre_of_mass, common_line
from aet_stream.reconstruct.tilt_axis import axis_angle

logger = logging.getLogger(__name__)

STEPS = ("common-line", "center-of-mass", "axis-angle", "projection-matching")
QUICK_ITERATIONS = 15
"""Effort of the reconstructions that only judge."""
SMOOTH_PX = 1.0
GAIN = 0.002
"""A step has to lower the residual by this share of it."""
Find = Callable[[Array, Array, Alignment], Alignment]
"""(projections, tilts, alignment so far) -> a better one, perhaps."""


def align(
    projections: Array,
    tilts_deg: Array,
    steps: tuple[str, ...] = STEPS,
    *,
    axis_deg: float = 0.0,
    axis_offset_px: float | None = None,
    threads: int = 0,
    memory_mib: int = 0,
) -> Alignment:
    """Find the alignment of (tilts, y, x) float32 projections; threads and memory are those of the solver.

    Steps that do not help are dropped, so projections that are in register already stay as they are.

    Parameters
    ----------
    axis_deg : where the axis is said to lie; the step `axis-angle` looks around it
    axis_offset_px : how far right of the middle it is said to lie, in upright images, and then no step looks for it; None: it is not said
    """
    said = Alignment(np.tile([0.0, -(axis_offset_px or 0.0)], (len(projections), 1)), axis_deg)
    if axis_offset_px is not None:
        steps = tuple(step for step in steps if step != "center-of-mass")
    if not steps:
        return said
    return said.then(_align(apply(projections, said), tilts_deg, steps, partial(solver.solve, threads=threads, memory_mib=memory_mib)))


def _align(projections: Array, tilts_deg: Array, steps: tuple[str, ...], solve: solver.Solve) -> Alignment:
    chosen = Alignment(np.zeros((len(projections), 2)))
    # Judged on smoothed images: moving one by a fraction of a pixel smooths its noise, which must not pass for a better fit.
    smooth = np.stack([gaussian_filter(view, SMOOTH_PX) for view in projections])
    best = _residual(solve, smooth, tilts_deg, chosen)
    chosen.residuals["start"] = best
    if projections.shape[1] < FEWEST_ROWS:
        steps = tuple(step for step in steps if step == "center-of-mass")
    for step in [step for step in STEPS if step in steps]:
        for find, gain in _ways(step, solve):
            found = find(projections, tilts_deg, chosen)
            if found is chosen:
                logger.info("alignment, %s: nothing certain, left out", step)
                continue
            now = _residual(solve, smooth, tilts_deg, found)
            kept = now < best * (1 - gain)
            logger.info("alignment, %s: residual %.4f -> %.4f%s", step, best, now, "" if kept else ", left out")
            if kept:
                best, chosen = min(now, best), replace(found, residuals={**chosen.residuals, step: now})
                break
    return chosen


def _ways(step: str, solve: solver.Solve) -> tuple[tuple[Find, float], ...]:
    """How a step may be done, and by which share each way has to lower the residual; where it fails, the next one is tried.

    What noise or size hides from the residual (matching, a common offset, a turn) is kept unless it does harm.
    """
    ways: dict[str, tuple[tuple[Find, float], ...]] = {
        "common-line": ((common_line, GAIN),),
        "center-of-mass": ((centre_of_mass, GAIN), (axis_offset, -GAIN)),
        "axis-angle": ((axis_angle, -GAIN),),
        "projection-matching": ((partial(match, solve=solve), -GAIN),),
    }
    return ways[step]


def _residual(solve: solver.Solve, projections: Array, tilts_deg: Array, alignment: Alignment) -> float:
    factor = bin_factor(projections, QUICK_PX)
    views, axis_px = apply_binned(projections, alignment, factor), binned_axis_px(projections.shape[2], factor)
    return float(solve(views, tilts_deg, iterations=QUICK_ITERATIONS, axis_px=axis_px).residuals[-1])
