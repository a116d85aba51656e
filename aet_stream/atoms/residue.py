"""What the model leaves over, seen in the specimen: where one more atom would explain it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

from aet_stream.atoms.kernels import gather, profiles, spread
from aet_stream.atoms.maxima import tops
from aet_stream.atoms.model import Model, Stage
from aet_stream.projection import Array

_NOTABLE = 0.9
"""Share of the voxels around atoms that are below every candidate: a bound on how many maxima are looked at."""
_STEP = 1.4
"""Widths of an atom between the voxels that are looked at: what is looked for is as wide as two atoms' Gaussians folded, 1.4 widths."""
_AROUND = 3.0
"""Width of what is called around, in widths of an atom."""
_KEPT = 1 - 2 / (1 + _AROUND**2)
"""Of an atom, what is left when what is around has been taken out of it; and how much less is known of its weight then."""
_NOISE = np.sqrt(1 + 1 / _AROUND**2 - 4 / (1 + _AROUND**2)) / _KEPT


@dataclass(frozen=True, slots=True)
class Candidates:
    """Places for atoms, the heaviest first."""

    places: Array
    """(n, 3)"""
    weights: Array
    """(n,) that an atom would have there, the others staying as they are"""
    errors: Array
    """(n,) standard deviation of that"""

    def of(self, which: Array) -> Candidates:
        """Some of them."""
        return Candidates(self.places[which], self.weights[which], self.errors[which])

    def heavier_than_noise(self, decoys: Candidates, false_share: float) -> Array:
        """(n,) bool: so heavy that of all as heavy at most this share is there by chance, as decoys, which are all by chance, tell.

        Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995) 289, with decoys for the distribution of what is false (as Elias and Gygi,
        Nat. Methods 4 (2007) 207).
        """
        as_heavy = np.arange(1, len(self.weights) + 1)
        false = np.searchsorted(-decoys.weights, -self.weights, side="right")
        share = np.minimum.accumulate((false / as_heavy)[::-1])[::-1]
        sure: Array = share <= false_share
        return sure


def candidates(stage: Stage, model: Model, *, voxel_angstrom: float, near_px: float, apart_px: float) -> tuple[Candidates, Candidates]:
    """Places where one more atom would explain most; and places where one less would, though there is none: what noise alone comes to.

    Parameters
    ----------
    near_px : no farther from the atoms there are, along every axis
    apart_px : no nearer to them, nor to each other
    """
    width = float(np.median(model.widths_px))
    missing = _missing(stage, model, width)
    smooth = np.stack([gaussian_filter(image, width, mode="constant", truncate=3.0) for image in missing])
    step = max(1, round(_STEP * width))
    begin, inside = _around(model.places, near_px, step)
    field = np.zeros(inside.shape, np.float32)
    edges = np.linspace(0, len(field), 4 * stage.threads + 1).astype(int)

    def slab(first: int, last: int) -> None:
        at = begin + np.array([step * first, 0, 0])
        for tilt, image in enumerate(smooth):
            matrix, offset = model.matrix(stage.views, tilt), model.offset(stage.views, tilt)
            spread(image, matrix, offset, at, step, inside[first:last], field[first:last])

    stage.each(slab, edges[:-1], edges[1:])

    def of(sign: int) -> Candidates:
        np.multiply(field, np.float32(sign), out=field)
        found, _ = tops(field, step * voxel_angstrom, max(0.0, float(np.quantile(field[inside], _NOTABLE))))
        places = begin + step * np.stack([found[:, 0], found[:, 2], -found[:, 1]], axis=1)
        places = places[cKDTree(model.places).query(places)[0] > apart_px] if len(places) else places
        weights, errors = _weights_there(stage, model, missing, places, width)
        order = np.argsort(-sign * weights)
        kept = order[_apart(places[order], apart_px)]
        return Candidates(places[kept], sign * weights[kept], errors[kept])

    return of(1), of(-1)


def _missing(stage: Stage, model: Model, width_px: float) -> Array:
    """(tilts, height, width) float32: projection minus model, as far as it stands out from around it, over the variance of the noise.

    What is missing everywhere (atoms that have not been found yet, the tails of those that have) lies like a haze over the particle, and is
    no atom anywhere.
    """
    images = stage.explained(model)
    np.subtract(stage.views.images, images, out=images)
    for image, weights in zip(images, stage.views.weights, strict=True):
        image *= weights > 0
        image -= gaussian_filter(image, _AROUND * width_px, mode="constant", truncate=3.0)
        image *= weights
    return images


def _weights_there(stage: Stage, model: Model, missing: Array, places: Array, width_px: float) -> tuple[Array, Array]:
    """(n,) the weight that explains most of what is missing, for one more atom at each place, and (n,) its standard deviation."""
    kinds, widths = np.zeros(len(places), np.int64), np.array([width_px])
    narrow = widths / np.sqrt(2)
    table, narrower = profiles(widths, stage.window), profiles(narrow, stage.window)
    above, below, through = np.zeros(len(places)), np.zeros(len(places)), np.empty(len(places))
    for tilt, (image, weights) in enumerate(zip(missing, stage.views.weights, strict=True)):
        matrix, offset = model.matrix(stage.views, tilt), model.offset(stage.views, tilt)
        gather(places, matrix, offset, kinds, widths, table, stage.window, image, through)
        above += model.gains[tilt] * through
        gather(places, matrix, offset, kinds, narrow, narrower, stage.window, weights, through)
        below += model.gains[tilt] ** 2 * through / (4 * np.pi * width_px**2)
    below = np.maximum(below, 1e-12)
    return above / (_KEPT * below), _NOISE / np.sqrt(below)


def _around(places: Array, near_px: float, step: int) -> tuple[Array, Array]:
    """(where voxel [0, 0, 0] of a box around all atoms lies, which of its voxels, every `step` pixels, are near one)"""
    margin = near_px + 2 * step
    low, high = np.floor(places.min(axis=0) - margin), np.ceil(places.max(axis=0) + margin)
    begin, edges = np.array([low[0], low[1], high[2]]), ((high - low) // step).astype(int) + 1
    inside = np.zeros(edges[[0, 2, 1]], np.uint8)
    at = np.rint(np.stack([places[:, 0] - begin[0], begin[2] - places[:, 2], places[:, 1] - begin[1]], axis=1) / step).astype(int)
    inside[tuple(at.T)] = 1
    return begin, maximum_filter(inside, size=2 * int(np.ceil(near_px / step)) + 1, mode="constant").astype(bool)


def _apart(places: Array, apart_px: float) -> Array:
    """(n,) bool: those that have no earlier one near."""
    kept = np.ones(len(places), bool)
    if len(places) > 1:
        for one, other in sorted(map(tuple, cKDTree(places).query_pairs(apart_px, output_type="ndarray").tolist())):
            if kept[one]:
                kept[other] = False
    return kept
