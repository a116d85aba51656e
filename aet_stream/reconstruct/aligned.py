"""Projections in register for other programs: turned and moved as a volume of ours has them, cropped, binned, of one total.

The tilt axis comes to lie along y in the middle, at (N - 1)/2. How each image got there stands in an `.xf` as IMOD has it (its man pages of
newstack and xfproduct), one line for each image of the stack that `export series.h5` writes: A11 A12 A21 A22 DX DY. A point (X, Y) from the
middle of that image, in pixels and Y upwards, comes to (A11 X + A12 Y + DX, A21 X + A22 Y + DY) from the middle of the new one, before it
is binned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from aet_stream.errors import ReconstructionError
from aet_stream.layout import unreadable
from aet_stream.projection import Array
from aet_stream.reconstruct.input import Input
from aet_stream.reconstruct.registered import Alignment, apply, binned


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


def in_register(given: Input, wanted: Aligned, off_px: tuple[float, float] = (0.0, 0.0)) -> tuple[Input, list[str]]:
    """(the projections in register, their lines of the `.xf`), in the order of `given`.

    Parameters
    ----------
    off_px : (y, x) by which the axis is to lie off the middle of images whose height, or width, is even: not everybody's middle is ours

    Raises
    ------
    ReconstructionError : no such volume, one of other projections, nothing left to show, or a projection without a total
    """
    found = _alignment(given, wanted.volume)
    shape = _shape(found.shape(given.projections.shape), wanted)
    is_even = [edge // wanted.bin % 2 == 0 for edge in shape]
    found = replace(found, shifts_px=found.shifts_px + np.multiply(off_px, is_even) * wanted.bin)
    views = binned(apply(given.projections, found, shape), wanted.bin)
    if wanted.normalised:
        views = _of_one_total(views, given.tilts_deg)
    size_nm = given.pixel_size_nm * wanted.bin
    return replace(given, projections=views, pixel_size_nm=size_nm, axis_deg=0.0), _xf(found)


def _alignment(given: Input, path: Path) -> Alignment:
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = file["reconstruction"]
            found = Alignment(group["shifts_px"][()], float(group.attrs["axis_deg"]))
            digest = str(group.attrs["series_digest"])
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{path}: cannot be read as a volume with its alignment: {unreadable(error)}") from error
    if digest != given.digest:
        raise ReconstructionError(f"{path} was made from other projections than the series holds now: `aet-stream reconstruct` it again")
    return found


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


def _xf(alignment: Alignment) -> list[str]:
    (cosine, sine), _ = alignment.matrix
    turn = f"{cosine:12.7f}{-sine:12.7f}{sine:12.7f}{cosine:12.7f}"
    return [f"{turn}{x_px:12.3f}{-y_px:12.3f}\n" for y_px, x_px in alignment.shifts_px]
