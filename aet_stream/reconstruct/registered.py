"""Projections in register: how an alignment is written down, and how it is carried out.

The axis angle is how far the axis is turned from the image's y, in degrees, positive when it turns from +y towards -x; shifts are what a
projection, turned upright by that, has to be moved by, in pixels, [y, x]. Nothing of this is ever written into the series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import affine_transform

from aet_stream.projection import Array

QUICK_PX = 128
"""Width to which projections are binned where a reconstruction only judges."""
FEWEST_ROWS = 8
"""Fewer along the axis show nothing of what happens along it."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What brings the projections into register."""

    shifts_px: Array
    """(tilts, 2) float64, [y, x]"""
    axis_deg: float = 0.0
    turns: Array | None = None
    """(tilts, 3) float64 how the specimen was turned before it was tilted (turns.py); None: it was not"""
    residuals: dict[str, float] = field(default_factory=dict)
    """Relative residual of a quick reconstruction at the start and after each step that was kept."""

    @property
    def is_nothing(self) -> bool:
        return self.axis_deg == 0 and not self.shifts_px.any()

    @property
    def matrix(self) -> Array:
        """(2, 2), [y, x]: from a place in an upright image, counted from its middle, to that in the image as it is."""
        turn = np.radians(self.axis_deg)
        return np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])

    def then(self, following: Alignment) -> Alignment:
        """Both as one: this first, the following, with its residuals, found for what this makes of the projections."""
        shifts = self.shifts_px @ following.matrix + following.shifts_px
        return Alignment(shifts, self.axis_deg + following.axis_deg, residuals=following.residuals)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) of what `apply` makes: wide images with the axis along x become high ones."""
        height, width = shape[-2:]
        lies = abs(np.sin(np.radians(self.axis_deg))) > np.sqrt(0.5)
        return (width, height) if lies else (height, width)


@dataclass(frozen=True, slots=True)
class Registered:
    """Projections as the solver takes them."""

    projections: Array
    tilts_deg: Array
    alignment: Alignment
    pitches: Array | None = None
    """(tilts,) of turned ones (turns.py)"""
    weights: Array | None = None
    """(tilts,) how much of what is smooth in each counts (weights.py); None: all"""

    def some(self, rows: Array, slices: slice) -> Registered:
        """Of some rows, some slices."""
        pitches, weights = (None if each is None else each[rows] for each in (self.pitches, self.weights))
        return Registered(self.projections[rows, slices], self.tilts_deg[rows], self.alignment, pitches, weights)


def apply(projections: Array, alignment: Alignment, shape: tuple[int, int] | None = None, *, rolls: Array | None = None) -> Array:
    """(tilts, y, x) float32 in register, by cubic splines; the very same array where there is nothing to do.

    Parameters
    ----------
    shape : (height, width) that is wanted around the middle; None: as much as there is
    rolls : (tilts, 2, 2) where a place in what is made lies in an image that is upright and moved (turns.py); None: it lies there as it is
    """
    shape = shape or alignment.shape(projections.shape)
    if alignment.is_nothing and shape == projections.shape[1:] and rolls is None:
        return projections
    matrix = alignment.matrix
    middle, made = (np.array(projections.shape[1:]) - 1) / 2, (np.array(shape) - 1) / 2
    moved = np.empty((len(projections), *shape), projections.dtype)
    rolls = np.broadcast_to(np.eye(2), (len(projections), 2, 2)) if rolls is None else rolls
    for view, shift_px, roll, out in zip(projections, alignment.shifts_px, rolls, moved, strict=True):
        affine_transform(view, matrix @ roll, middle - matrix @ (roll @ made + shift_px), output=out, order=3, mode="nearest")
    return moved


def upright(projections: Array, axis_deg: float) -> Array:
    """(tilts, y, x) float32 with the tilt axis along y; NaN: it does already."""
    return apply(projections, Alignment(np.zeros((len(projections), 2)), float(np.nan_to_num(axis_deg))))


def binned(projections: Array, factor: int) -> Array:
    """(tilts, y / factor, x / factor) float32 means; what is left over is cut off around them."""
    if factor == 1:
        return projections
    tilts, height, width = projections.shape
    height, width = height // factor * factor, width // factor * factor
    top, left = (projections.shape[1] - height) // 2, (projections.shape[2] - width) // 2
    cut = projections[:, top : top + height, left : left + width]
    means: Array = cut.reshape(tilts, height // factor, factor, width // factor, factor).mean(axis=(2, 4), dtype=np.float32)
    return means


def one_by_one(projections: Array, alignment: Alignment) -> Iterator[Array]:
    """(1, y, x) float32 in register, each by itself: all together they take as much memory as what they are made of."""
    for row in range(len(projections)):
        yield apply(projections[row : row + 1], Alignment(alignment.shifts_px[row : row + 1], alignment.axis_deg))


def apply_binned(projections: Array, alignment: Alignment, factor: int) -> Array:
    """What `apply` and then `binned` make."""
    return np.concatenate([binned(view, factor) for view in one_by_one(projections, alignment)])


def binned_axis_px(width: int, factor: int) -> float:
    """Where the middle column lies after binning; off the middle where what was cut is not the same on both sides."""
    left = (width - width // factor * factor) // 2
    return ((width - 1) / 2 - left + 0.5) / factor - 0.5


def brightest_rows(projections: Array, height: int) -> slice:
    """The rows, at most so many together, that have most to see."""
    height = min(height, projections.shape[1])
    signal = np.convolve(np.abs(projections.sum(axis=(0, 2))), np.ones(height), mode="valid")
    first = int(signal.argmax())
    return slice(first, first + height)


def bin_factor(projections: Array, size_px: int) -> int:
    """How many pixels become one so that frames are at most so wide."""
    flat = max(1, projections.shape[1] // FEWEST_ROWS)  # very flat frames are hardly binned
    return int(min(flat, max(1, -(-projections.shape[2] // size_px))))
