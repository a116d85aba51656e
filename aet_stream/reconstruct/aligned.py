"""Projections in register for other programs: turned and moved as a volume of ours has them, cropped, binned, of one total.

The tilt axis comes to lie along y in the middle, at (N - 1)/2. How each image got there stands in an `.xf` as IMOD has it (its man pages of
newstack and xfproduct), one line for each image of the stack that `export series.h5` writes: A11 A12 A21 A22 DX DY. A point (X, Y) from the
middle of that image, in pixels and Y upwards, comes to (A11 X + A12 Y + DX, A21 X + A22 Y + DY) from the middle of the new one, before it
is binned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct.input import Input
from aet_stream.reconstruct.registered import Alignment, apply, binned
from aet_stream.reconstruct.turns import alignment_of, orientations, poses, turned_alignment


@dataclass(frozen=True, slots=True)
class Aligned:
    """What is wanted."""

    volume: Path
    """The reconstruction.h5 that holds the alignment."""
    bin: int = 1
    """Pixels of the series that become one, along each edge."""
    crop_px: tuple[int, int] = (0, 0)
    """(width, height) in pixels of the series, around the axis; 0: all."""
    normalised: bool = False
    """Every projection scaled to the mean total: the total of an isolated specimen does not depend on the tilt."""
    atoms: Path | None = None
    """The atoms.h5 that says how the specimen was turned. None: that beside the volume, if it is of this volume."""
    turned: bool = True
    """False: as the volume was made, whatever its atoms found."""


@dataclass(frozen=True, slots=True)
class InRegister:
    """What an export writes, in the order of the series."""

    given: Input
    """The projections in register; tilts about the one axis."""
    xf: list[str]
    """Their lines of the `.xf`."""
    orientations: Array
    """(tilts, 3, 3): [along the axis, to the right, towards who looks] in each, of a place [along the axis, X, Z]"""
    pitch_deg: float
    """The largest that tilts about one axis cannot say."""


def in_register(given: Input, wanted: Aligned, off_px: tuple[float, float] = (0.0, 0.0)) -> InRegister:
    """
    Parameters
    ----------
    off_px : (y, x) by which the axis is to lie off the middle of images whose height, or width, is even: not everybody's middle is ours

    Raises
    ------
    ReconstructionError : no such volume, one of other projections, nothing left to show, or a projection without a total
    """
    found, digest = turned_alignment(wanted.volume, wanted.atoms) if wanted.turned else alignment_of(wanted.volume)[:2]
    if digest != given.digest:
        raise ReconstructionError(
            f"{wanted.volume} was made from other projections than the series holds now: `aet-stream reconstruct` it again"
        )
    shape = _shape(found.shape(given.projections.shape), wanted)
    turns = np.zeros((len(given.tilts_deg), 3)) if found.turns is None else found.turns
    posed = poses(given.tilts_deg, turns, stretched=False)
    rolls = None if found.turns is None else posed.rolls
    is_even = np.array([edge // wanted.bin % 2 == 0 for edge in shape])
    off = posed.rolls @ (np.array(off_px) * is_even * wanted.bin)
    found = replace(found, shifts_px=found.shifts_px + off)
    views = binned(apply(given.projections, found, shape, rolls=rolls), wanted.bin)
    if wanted.normalised:
        views = _of_one_total(views, given.tilts_deg)
    size_nm, tilts_deg = given.pixel_size_nm * wanted.bin, given.tilts_deg if found.turns is None else posed.tilts_deg
    back = orientations(given.tilts_deg, turns)
    back[:, :2] = posed.rolls.transpose(0, 2, 1) @ back[:, :2]
    made = replace(given, projections=views, pixel_size_nm=size_nm, axis_deg=0.0, tilts_deg=tilts_deg)
    return InRegister(made, _xf(found, posed.rolls), back, posed.largest_pitch_deg)


def _shape(whole: tuple[int, int], wanted: Aligned) -> tuple[int, int]:
    """(height, width) before binning, whole numbers of new pixels, so that the middle stays the middle."""
    height, width = (min(edge, crop or edge) // wanted.bin * wanted.bin for edge, crop in zip(whole, wanted.crop_px[::-1], strict=True))
    if not (height and width):
        raise ReconstructionError(f"nothing is left of {whole[1]} x {whole[0]} px when {wanted.bin} become one: take a smaller --bin")
    return height, width


def _of_one_total(views: Array, tilts_deg: Array) -> Array:
    totals = views.sum(axis=(1, 2), dtype=np.float64)
    if (totals <= 0).any():
        tilt_deg = tilts_deg[int(totals.argmin())]
        raise ReconstructionError(f"the projection at {tilt_deg:+.2f} deg has no positive total to scale: leave out --normalise")
    scaled: Array = views * (totals.mean() / totals)[:, None, None].astype(np.float32)
    return scaled


def _xf(alignment: Alignment, rolls: Array) -> list[str]:
    lines = []
    for roll, shift_px in zip(rolls.transpose(0, 2, 1), alignment.shifts_px, strict=True):
        ((yy, yx), (xy, xx)), (y_px, x_px) = roll @ alignment.matrix.T, roll @ shift_px
        lines.append(f"{xx:12.7f}{-xy:12.7f}{-yx:12.7f}{yy:12.7f}{x_px:12.3f}{-y_px:12.3f}\n")
    return lines
