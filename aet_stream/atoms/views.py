"""The projections as atoms see them: as they were stored, never resampled, each with how a place in the specimen comes to a pixel of it.

Places are [along the axis, X, Z] in voxels from the middle of the volume: along the axis = slice - middle, X = column - middle,
Z = middle - row. At a tilt of theta a place is seen, in an upright image, at [along, X cos(theta) + Z sin(theta)] from its middle
(reconstruct/projector.py); where that lies in the image as it is, the alignment says (reconstruct/registered.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.atoms.kernels import Window, margin_px
from aet_stream.projection import Array
from aet_stream.reconstruct.registered import Alignment
from aet_stream.reconstruct.stopping import noise_variance
from aet_stream.reconstruct.turns import rotation

_LEAST_VARIANCE = 0.1
"""Of the median over the particle: vacuum without a count has no variance of its own, but weighs no more than this."""


_LEAST_OF_NOISE, _LEAST_OF_LOCAL = 0.5, 0.3
"""A pixel never counts more than by so small a share of the least variance that the projections show, or of that around it."""
_AROUND_PX = 8.0


@dataclass(frozen=True, slots=True)
class Views:
    """What is to be explained."""

    images: Array
    """(tilts, height + 2 margin, width + 2 margin) float32, 0 in the margin"""
    weights: Array
    """The same shape: what a squared difference counts, 1 / variance; 0 in the margin"""
    noise_weights: Array
    """The same shape: 1 / variance of the noise, as the projections by themselves show it"""
    matrices: Array
    """(tilts, 2, 3) float64: a place p is seen at matrix p + offset, in pixels [v, u] of `images`"""
    offsets: Array
    """(tilts, 2) float64"""
    tilts_deg: Array

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        """Of one image that is not left out, without its margin."""
        return int(max(np.count_nonzero(weights) for weights in self.weights))

    @property
    def left_out(self) -> Array:
        """(tilts,) bool: those that weigh nothing."""
        return np.array([not weights.any() for weights in self.weights])

    def without(self, left_out: Array) -> Views:
        """The same; some of them weigh nothing."""
        return self.only(~left_out)

    def only(self, kept: Array, rows: Array | bool = True) -> Views:
        """The same; only (tilts,) `kept` weigh something, and of those only (height, 1) `rows`."""
        these = kept[:, None, None] & rows
        return replace(self, weights=self.weights * these, noise_weights=self.noise_weights * these)

    def levelled_by(self, drawn: Array) -> Views:
        """The same, less what lies smoothly over it when (tilts, height, width) is drawn on it with an offset and a gain, as far as that is
        more than noise: what is left of a film, which no atom explains.

        It varies over `_AROUND_PX`; an atom is so much narrower that hardly any of it is taken off. How strong it is in a projection, and
        so how much of it is noise, the projection says by itself.
        """
        images = self.images.copy()
        for image, weights, atoms in zip(images, self.weights, drawn, strict=True):
            if not (there := weights > 0).any():
                continue
            columns = np.stack([np.ones_like(atoms), atoms]).reshape(2, -1)
            weighed = columns * weights.ravel()
            known = np.linalg.lstsq(weighed @ columns.T, weighed @ image.ravel(), rcond=None)[0] @ columns
            total = np.maximum(_smooth(weights), np.float32(1e-6) * weights.max())
            noise = 1 / (4 * np.pi * _AROUND_PX**2 * total)
            left = _smooth((image - known.reshape(image.shape)) * weights) / total
            power = max(0.0, float(np.mean((np.square(left) - noise)[there])))
            image -= left * (power / (power + noise)) * there
        return replace(self, images=images)

    def weighed_by(self, explained: Array) -> Views:
        """The same, each pixel over the variance of what is left over around it when (tilts, height, width) is explained.

        As counts vary by as much as they are, it is larger on atoms than between them; by how much, a regression tells. What the model does
        not know (films, detectors, atoms that are no Gaussians) is in it as it is in the differences.
        """
        floor = _LEAST_OF_NOISE / float(self.noise_weights.max())
        above = below = 0.0
        parts = []
        for image, there, known in zip(self.images, self.noise_weights > 0, explained, strict=True):
            share = np.maximum(_smooth(there.astype(np.float32)), np.float32(1e-6))
            square, shown = np.square(image - known) * there, known * there
            local = np.maximum(_smooth(square) / share, np.float32(floor))
            structure = (shown - _smooth(shown) / share) * there
            relative = structure / local
            above += float(np.vdot(relative, square / local - 1))
            below += float(np.vdot(relative, relative))
            parts.append((there, local, structure))
        slope = np.float32(max(0.0, above / max(below, 1e-30)))
        variances = [np.maximum(local + slope * structure, np.float32(_LEAST_OF_LOCAL) * local) for _, local, structure in parts]
        return replace(self, weights=np.stack([there / variance for (there, *_), variance in zip(parts, variances, strict=True)]))


def _smooth(image: Array) -> Array:
    smooth: Array = gaussian_filter(image, _AROUND_PX, mode="constant", truncate=3.0)
    return smooth


def make_views(projections: Array, tilts_deg: Array, alignment: Alignment, window: Window) -> Views:
    """Of (tilts, y, x) float32 projections as stored, and what brings them into register."""
    margin, variance = margin_px(window), noise_variance(projections)
    bright = projections > 0.2 * np.percentile(projections, 99.5)
    floor = _LEAST_VARIANCE * float(np.median(variance[bright])) if bright.any() else 0.0
    weights = 1 / np.maximum(variance, max(floor, 1e-12))
    around = ((0, 0), (margin, margin), (margin, margin))
    weights = np.pad(weights.astype(np.float32), around)
    middle = (np.array(projections.shape[1:]) - 1) / 2 + margin
    theta, none = np.radians(tilts_deg), np.zeros(len(tilts_deg))
    upright = np.stack([np.stack([none + 1, none, none], -1), np.stack([none, np.cos(theta), np.sin(theta)], -1)], 1)
    if alignment.turns is not None:
        upright = upright @ np.stack([rotation(turn) for turn in alignment.turns])
    return Views(
        np.pad(projections.astype(np.float32), around),
        weights,
        weights,
        alignment.matrix @ upright,
        middle - alignment.shifts_px @ alignment.matrix.T,
        np.asarray(tilts_deg, np.float64),
    )


def to_places(voxels: Array, shape: tuple[int, ...]) -> Array:
    """(n, 3) places from (n, 3) voxel indices [slice, row, column] of a volume of this shape."""
    middle = (np.array(shape) - 1) / 2
    from_middle = voxels - middle
    return np.stack([from_middle[:, 0], from_middle[:, 2], -from_middle[:, 1]], axis=1)


def to_voxels(places: Array, shape: tuple[int, ...]) -> Array:
    """The other way round."""
    middle = (np.array(shape) - 1) / 2
    return np.stack([places[:, 0], -places[:, 2], places[:, 1]], axis=1) + middle


def to_angstrom(places: Array, pixel_angstrom: float) -> Array:
    """(n, 3) x to the right, y upwards, z towards who looks along the beam at no tilt: right-handed, from the middle of the volume."""
    return np.stack([places[:, 1], -places[:, 0], places[:, 2]], axis=1) * pixel_angstrom
