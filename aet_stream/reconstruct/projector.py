"""The projections of a slice as a sparse matrix.

Geometry: the tilt axis runs along image rows (y); every image row is one slice of its own. A voxel at X (right) and Y (up) of a slice is
seen at detector column c + X cos(tilt) + Y sin(tilt), where c is the axis. Slices are arrays [row, column] with row = (N - 1)/2 - Y and
column = (N - 1)/2 + X, as tomopy's iterative algorithms and ASTRA have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from aet_stream.projection import Array
from aet_stream.reconstruct.weights import Weighing

_SLAB_BYTES = 2**27
"""Of a volume that is looked at from every side, what is rearranged at once."""


@dataclass(frozen=True, slots=True)
class Projector:
    """Some tilts of a slice; only voxels in the inscribed circle exist."""

    forward: csr_array | Pitched
    """(tilts * width, voxels) float32"""
    backward: csr_array | Pitched
    """Its transpose, stored row by row: several times faster than multiplying by forward.T"""
    inside: Array
    """(width, width) bool: the circle"""


class Pitched:
    """A matrix for all slices at once, which see each other: parts of it that shift what they see by so many slices, and add up."""

    def __init__(self, parts: dict[int, csr_array]) -> None:
        self._parts = parts

    def __matmul__(self, slices: Array) -> Array:
        height = slices.shape[1]
        out: Array | None = None
        for shift, part in self._parts.items():
            seen = np.asarray(part @ np.ascontiguousarray(slices[:, max(0, -shift) : height - max(0, shift)]))
            out = np.zeros((part.shape[0], height), np.float32) if out is None else out
            out[:, max(0, shift) : height + min(0, shift)] += seen
        assert out is not None
        return out

    def sum(self, axis: int) -> Array:
        """Far from the first and the last slice."""
        total: Array = np.sum([part.sum(axis=axis) for part in self._parts.values()], axis=0)
        return total


def make_projector(tilts_deg: Array, width: int, axis_px: float | None = None, pitches: Array | None = None) -> Projector:
    """Voxel-driven linear interpolation: each voxel is shared between the two detector columns it falls between.

    Parameters
    ----------
    axis_px : detector column of the tilt axis, may lie between columns; None: (width - 1) / 2
    pitches : (tilts,) slices that a voxel is seen farther along the axis for each pixel it is nearer to who looks; shared between the two
        slices it falls between. None: each slice is seen by itself
    """
    middle = (width - 1) / 2
    axis = middle if axis_px is None else axis_px
    inside = circle(width)
    row, column = np.nonzero(inside)
    x, y = column - middle, middle - row
    # Every voxel has two entries per tilt, so the transpose can be filled in place, already sorted.
    rays = np.empty((x.size, len(tilts_deg), 2), np.int32)
    weights = np.empty(rays.shape, np.float32)
    for index, tilt in enumerate(np.radians(tilts_deg)):
        place = axis + x * np.cos(tilt) + y * np.sin(tilt)
        left = np.floor(place).astype(np.int32)
        share = place - left
        for side, weight in enumerate((1 - share, share)):
            at = left + side
            weights[:, index, side] = np.where((at >= 0) & (at < width), weight, 0)  # what leaves the detector is not seen
            rays[:, index, side] = index * width + np.clip(at, 0, width - 1)
    counted = np.int32 if rays.size < 2**31 else np.int64  # the indices of a matrix become as wide as its widest
    starts = np.arange(0, rays.size + 1, 2 * len(tilts_deg), dtype=counted)
    if pitches is not None:
        theta = np.radians(tilts_deg)
        along = pitches * (np.multiply.outer(y, np.cos(theta)) - np.multiply.outer(x, np.sin(theta)))
        return _pitched(weights, rays, starts, along.astype(np.float32)[:, :, None], (x.size, len(tilts_deg) * width), inside)
    backward = csr_array((weights.ravel(), rays.ravel(), starts), shape=(x.size, len(tilts_deg) * width))
    return Projector(csr_array(backward.T), backward, inside)


def _pitched(weights: Array, rays: Array, starts: Array, along: Array, shape: tuple[int, int], inside: Array) -> Projector:
    backward = {}
    for shift in range(int(np.floor(along.min())), int(np.floor(along.max())) + 2):
        shared = weights * np.maximum(0, 1 - np.abs(along - np.float32(shift)))
        part = csr_array((shared.ravel(), rays.ravel().copy(), starts.copy()), shape=shape)
        part.eliminate_zeros()
        backward[shift] = part
    forward = {shift: csr_array(part.T) for shift, part in backward.items()}
    return Projector(Pitched(forward), Pitched({-shift: part for shift, part in backward.items()}), inside)


def circle(width: int) -> Array:
    """(width, width) bool: the voxels that stay in view when the slice turns."""
    from_middle = np.arange(width) - (width - 1) / 2
    inside: Array = np.add.outer(from_middle**2, from_middle**2) <= (width / 2) ** 2
    return inside


class Pieces:
    """All tilts, in pieces: one that is kept where memory allows it, else several, each made anew whenever it is needed."""

    def __init__(self, tilts_deg: Array, width: int, axis_px: float | None, *, tilts_at_once: int, pitches: Array | None = None,
        weights: Array | None = None,
    ) -> None:  # fmt: skip
        """`weights`: (tilts,) how much of each projection counts (weights.py); None: all. Others as for `make_projector`."""
        self._width, self._axis_px = width, axis_px
        starts = range(0, len(tilts_deg), tilts_at_once)
        self._tilts = [tilts_deg[start : start + tilts_at_once] for start in starts]
        self._kept = make_projector(tilts_deg, width, axis_px, pitches) if len(starts) == 1 else None
        self.whole = self._kept is not None
        self.inside = circle(width)
        self.weighing = None if weights is None else Weighing(weights, width)
        self.ray_sums, self.voxel_sums = self._sums()

    def __iter__(self) -> Iterator[tuple[slice, Projector]]:
        """(which rays, their part of the matrix)"""
        at = 0
        for tilts in self._tilts:
            rays = slice(at, at + len(tilts) * self._width)
            yield rays, self._kept or make_projector(tilts, self._width, self._axis_px)
            at = rays.stop

    def _sums(self) -> tuple[Array, Array]:
        """What each ray and each voxel adds up to."""
        rays, voxels = [], np.zeros(int(self.inside.sum()), np.float32)
        for _, piece in self:
            rays.append(np.asarray(piece.forward.sum(axis=1), np.float32))
            voxels += np.asarray(piece.backward.sum(axis=1), np.float32)
        return np.concatenate(rays), voxels


def reproject(volume: Array, tilts_deg: Array, axis_px: float | None = None, *, pitches: Array | None = None) -> Array:
    """(tilts, y, x) float32: what a volume (slice y, row, column) would look like; piece by piece, so that little memory is needed."""
    height, width = volume.shape[0], volume.shape[2]
    views, inside = np.empty((len(tilts_deg), height, width), np.float32), circle(width)
    depth = max(1, _SLAB_BYTES // (4 * int(inside.sum()))) if pitches is None else volume.shape[0]
    for first in range(0, height, depth):
        slices = slice(first, first + depth)
        voxels = np.ascontiguousarray(volume[slices, inside].T)
        for index, tilt in enumerate(tilts_deg):
            piece = make_projector(np.array([tilt]), width, axis_px, None if pitches is None else pitches[[index]])
            views[index, slices] = (piece.forward @ voxels).T
    return views
