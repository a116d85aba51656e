"""Projections in register: a specimen that has moved between two exposures has moved with its film, and a brighter beam makes its film
thicker.

First roughly, by the particle's centre of mass, where that makes the film's slopes agree better between the tilts; where its neighbours
lie, if the films of all others are seen from there rather; then by the film itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cho_solve, cholesky

from aet_stream.consistency import fit_law
from aet_stream.denoise.cokriging.model import Windows
from aet_stream.denoise.cokriging.posterior import Posterior
from aet_stream.denoise.cokriging.scan import Scanned, scan
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

_SHIFT, _GAIN = 0.25, 0.02
"""Standard deviations of what is left to be found, points and share"""
_THINNED = 3
"""One window in so many is enough for three figures"""
_STEP = 0.1
"""Points over which the film's slope is taken"""
_FARTHEST = 0.6
"""Points: beyond, the film is not as even as its slope says"""
_MOVED, _BETTER = 0.1, 0.1
"""Points below which nothing has moved; by how much the score of a scan has to be better for it to be believed"""
_ASTRAY, _NEIGHBOURS = 0.5, 6
"""Points from where so many neighbours lie, beyond which a projection is asked whether it lies there, too"""


def by_mass(tilts_deg: Array, along: Array, across: Array) -> Array | None:
    """(n, 2) along and across, points: how far each particle lies from where a turning one would (consistency.py), and where the axis lies.

    Parameters
    ----------
    along, across : (n,) of the centre of mass from the frame's middle, points; NaN: not known
    """
    law = fit_law(tilts_deg, across, along)
    if law is None:
        return None
    turning = np.array([law.x_px(tilt) - law.offset_px for tilt in tilts_deg])
    return np.stack([np.nan_to_num(along, nan=law.y_px), np.where(np.isfinite(across), across - turning, law.offset_px)], axis=1)


def moved(seen: Seen, along: float, across: float, gain: float = 1.0) -> Seen:
    """The same, counted from where the specimen turns; `gain`: of the beam, on top of what it was."""
    away = np.array([along, across])
    return replace(
        seen,
        blocks=replace(seen.blocks, centres=seen.blocks.centres - away[:, None, None]),
        along=seen.along - along,
        across=seen.across - across,
        centres=seen.centres - away[:, None, None],
        shift=(seen.shift[0] + along, seen.shift[1] + across),
        gain=seen.gain * gain,
    )


def placed(series: list[Seen], lies: Array) -> list[tuple[list[Seen], Scanned]]:
    """From where to fit: projections as they are, or moved as the particle has it, all alike or each, wherever a scan finds that the film's
    slopes agree best. Two, if that is judged by rows that fewer projections show than there are elsewhere; none without any row.

    Parameters
    ----------
    lies : (n, 2) along and across, points: how far each lies from where it would turn about the middle, by its particle
    """
    tried = [(series, scan(series))]
    for moves in (np.broadcast_to(np.median(lies, axis=0), lies.shape), lies):
        if np.abs(moves).max() >= _MOVED:
            there = [moved(seen, float(along), float(across)) for seen, (along, across) in zip(series, moves, strict=True)]
            tried.append((there, scan(there)))
    known = [(there, found) for there, found in tried if found is not None]
    starts = [_best(each) for each in (known, [one for one in known if one[1].often]) if each]
    return starts[:1] if starts and starts[0] is starts[-1] else starts


def _best(tried: Sequence[tuple[list[Seen], Scanned]]) -> tuple[list[Seen], Scanned]:
    """The first whose score no later one betters by enough."""
    best = tried[0]
    for each in tried[1:]:
        if each[1].best.score < best[1].best.score - _BETTER:
            best = each
    return best


def by_film(posterior: Posterior, series: Sequence[Seen]) -> list[Seen]:
    """Each projection moved and weighed as the films say that all of them together have shown."""
    found = np.array([_off(posterior, seen.thinned(_THINNED)) for seen in series])
    gains = 1 + found[:, 2]
    found[:, 2] = gains / np.median(gains)  # how bright all of them are, the films' own amplitudes say
    return [moved(seen, float(along), float(across), float(gain)) for seen, (along, across, gain) in zip(series, found, strict=True)]


def astray(series: Sequence[Seen]) -> Array:
    """(n, 2) along and across, points: how far those lie from their neighbours in time that lie far from them; 0 for all others."""
    shifts, times = np.array([seen.shift for seen in series]), np.array([seen.time for seen in series])
    apart = np.abs(times[:, None] - times)
    np.fill_diagonal(apart, np.inf)
    near = np.argsort(apart, axis=1, kind="stable")[:, :_NEIGHBOURS]
    away = np.median(shifts[near], axis=1) - shifts
    return np.where(np.abs(away).max(axis=1, keepdims=True) > _ASTRAY, away, 0.0)


def brought_back(others: Posterior, series: Sequence[Seen], away: Array) -> list[Seen]:
    """Those that are `astray` moved back, where the films that the others have shown are seen from there rather than from where they are:
    a centre of mass is of no use where it is not the particle's.

    Parameters
    ----------
    others : of the projections that are not astray
    """
    there = [moved(seen, *map(float, at)) if at.any() else seen for seen, at in zip(series, away, strict=True)]
    return [
        back if back is not seen and others.surprise(back) < others.surprise(seen) else seen
        for seen, back in zip(series, there, strict=True)
    ]


def _off(posterior: Posterior, seen: Seen) -> Array:
    """(along, across, gain) by least squares, with what is expected of them beforehand."""
    at = seen.windows

    def film(along: float, across: float) -> Array:
        return posterior.film(seen, Windows(at.along - along, at.across - across, at.edge))

    here = film(0, 0)
    slopes = [(film(_STEP, 0) - film(-_STEP, 0)) / (2 * _STEP), (film(0, _STEP) - film(0, -_STEP)) / (2 * _STEP), here]
    change = np.stack(slopes, axis=1)
    off = seen.mean - posterior.sees(seen, at) @ posterior.nodes_mean
    factor = cholesky(posterior.own(seen), lower=True, overwrite_a=True, check_finite=False), True
    weighed = cho_solve(factor, np.column_stack([change, off]), check_finite=False)
    before = np.diag(1 / np.square([_SHIFT, _SHIFT, _GAIN]))
    found = np.linalg.solve(change.T @ weighed[:, :3] + before, change.T @ weighed[:, 3])
    limits = np.array([_FARTHEST, _FARTHEST, 3 * _GAIN])
    return np.clip(found, -limits, limits)
