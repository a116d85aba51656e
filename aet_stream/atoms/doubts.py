"""What no atoms can be had from, and what stands beside them as a doubt: a model that looks sure is worse than none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import fft

from aet_stream.coverage import largest_gap_deg
from aet_stream.errors import NoAtoms
from aet_stream.projection import Array

LARGEST_PIXEL_ANGSTROM = 0.8
"""Atoms are 2.3 to 3 angstrom apart: of larger pixels there are fewer than three between neighbours."""
FEWEST_TILTS = 15
LARGEST_GAP_DEG = 90.0
FEWEST_ATOMS = 10
LEAST_CONTRAST = 1.25
"""Of the gaps around the distance of neighbours (maxima.py): noise, smooth bodies and lattices lost in noise stay below 1.05; of a glass at
+-70 degrees of whose atoms 0.89 are seen among a sixth that are none, it was 1.44."""
FILTERED, RESAMPLED = 0.1, 0.5
"""Of the finest detail relative to what is a little coarser (`whiteness`): less was filtered, or moved by half a pixel; a mean of frames
that were moved onto each other has about 0.6, counts as recorded have 1."""
LARGEST_SIGMA_ANGSTROM = 0.5
WORST_MISFIT = 2.0
_SAME_DIRECTION_DEG = 0.1


def refuse_geometry(tilts_deg: Array, pixel_angstrom: float) -> None:
    """
    Raises
    ------
    NoAtoms : too few directions, or pixels too large
    """
    if pixel_angstrom > LARGEST_PIXEL_ANGSTROM:
        raise NoAtoms(
            f"a pixel measures {pixel_angstrom:.3g} angstrom: atoms are not resolved by pixels of more than {LARGEST_PIXEL_ANGSTROM}"
        )
    directions = len(np.unique(np.round(np.mod(tilts_deg, 180) / _SAME_DIRECTION_DEG)))
    if directions < FEWEST_TILTS:
        raise NoAtoms(f"{directions} directions: at least {FEWEST_TILTS} are needed to tell atoms behind each other apart")
    gap = largest_gap_deg(tilts_deg)
    if gap > LARGEST_GAP_DEG:
        raise NoAtoms(f"no projection in {gap:.0f} of 180 degrees: atoms cannot be told apart along the beam")


def about_noise(projections: Array) -> Iterator[str]:
    """Doubts about their noise, one sentence each.

    Raises
    ------
    NoAtoms : it was taken out or smoothed, and with it what tells how sure an atom is
    """
    share = whiteness(projections)
    if share < FILTERED:
        raise NoAtoms(
            f"the projections were filtered: their noise has {share:.2f} times as much of the finest detail as of a little coarser, as"
            " recorded it has as much; that hides how sure anything in them is: give them as they were recorded"
        )
    if share < RESAMPLED:
        yield (
            f"The noise of the projections has {share:.2f} times as much of the finest detail as of a little coarser: they were resampled"
            " or filtered a little, so that standard deviations are too small."
        )


def whiteness(projections: Array) -> float:
    """Power near the largest frequency along both axes, relative to that half way to it, where atoms have none left either; median of all.

    About 1 for counts as recorded; 0 for what was filtered.
    """
    _, height, width = projections.shape
    down, across = np.abs(fft.fftfreq(height))[:, None], fft.rfftfreq(width)[None]
    finest = (down > 0.4) & (across > 0.4)
    coarser = (np.hypot(down, across) > 0.36) & (np.hypot(down, across) < 0.44)
    shares = []
    for view in projections:
        power = np.abs(fft.rfft2(view - view.mean())) ** 2
        shares.append(float(np.median(power[finest]) / max(float(np.median(power[coarser])), 1e-30)))
    return float(np.median(shares))


def refuse_maxima(count: int, contrast: float) -> None:
    """
    Raises
    ------
    NoAtoms : the maxima of the volume do not keep the distance from each other that atoms keep
    """
    if count < FEWEST_ATOMS:
        raise NoAtoms(f"{count} maxima in the volume: no particle made of atoms is seen in it")
    if contrast < LEAST_CONTRAST:
        raise NoAtoms(
            f"maxima of the volume do not keep the distance from each other that atoms keep ({contrast:.2f}, atoms have more than"
            f" {LEAST_CONTRAST:g}): no atoms are resolved in it"
        )


def broken_frames(projections: Array) -> Array:
    """(tilts,) bool: a tenth or more of the rows, or of the columns, has one and the same value: a scan that was broken off."""
    flat_rows = (projections == projections[:, :, :1]).all(axis=2).mean(axis=1)
    flat_columns = (projections == projections[:, :1, :]).all(axis=1).mean(axis=1)
    broken: Array = np.maximum(flat_rows, flat_columns) >= 0.1
    return broken


def after(sigmas_angstrom: Array, misfit: float, left_out: int, tilts: int) -> Iterator[str]:
    """Doubts about atoms that were found, one sentence each.

    Raises
    ------
    NoAtoms : they are not where they are said to be
    """
    typical = float(np.median(sigmas_angstrom))
    if typical > LARGEST_SIGMA_ANGSTROM:
        raise NoAtoms(f"atoms are known to {typical:.2f} angstrom only, along the axis they are known worst: not resolved")
    if misfit > WORST_MISFIT:
        yield f"The model explains the projections badly: chi squared per pixel is {misfit:.2f}, of counts as recorded it is about 1."
    if left_out > 0.2 * tilts:
        raise NoAtoms(f"{left_out} of {tilts} projections contradict the others: look at them first")
    if left_out:
        yield f"{left_out} projections contradict the others and were left out."
