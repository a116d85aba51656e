"""The model, and how far it is from the projections: Gaussian atoms, and for each projection an offset, a gain and a small shift.

Its misfit is half of chi squared: squared differences over twice the variance of the noise. Gradients are analytic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from aet_stream.atoms.directions import by_turn
from aet_stream.atoms.kernels import Window, compare, draw, gather, profiles, slopes
from aet_stream.atoms.views import Views
from aet_stream.projection import Array
from aet_stream.reconstruct.turns import rotation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """What is thought to be there."""

    places: Array
    """(atoms, 3) float64, voxels: see views.py"""
    weights: Array
    """(atoms,) float64: counts that an atom adds to a projection"""
    kinds: Array
    """(atoms,) int64: which width, and which mean weight, it has"""
    widths_px: Array
    """(kinds,) float64: standard deviation of the Gaussian"""
    offsets: Array
    """(tilts,) float64, counts per pixel"""
    gains: Array
    """(tilts,) float64, about 1"""
    shifts_px: Array
    """(tilts, 2) float64, [v, u]: how far from where the alignment says"""
    turns: Array
    """(tilts, 3) float64, radians about the axes of places: how far the specimen was turned from where the volume says (turns.py)"""

    def of(self, which: Array) -> Model:
        """With some of the atoms."""
        return replace(self, places=self.places[which], weights=self.weights[which], kinds=self.kinds[which])

    def matrix(self, views: Views, tilt: int) -> Array:
        """(2, 3): a place p is seen at matrix p + offset."""
        matrix: Array = views.matrices[tilt] @ rotation(self.turns[tilt])
        return matrix

    def offset(self, views: Views, tilt: int) -> Array:
        """(2,)"""
        offset: Array = views.offsets[tilt] + self.shifts_px[tilt]
        return offset


@dataclass(frozen=True, slots=True)
class Slope:
    """The derivative of the misfit by everything in a model but its widths; same shapes."""

    places: Array
    weights: Array
    offsets: Array
    gains: Array
    shifts_px: Array
    turns: Array


class Stage:
    """A place where models are compared with views, on several threads; each has its share of the tilts, whatever the others do."""

    def __init__(self, views: Views, window: Window, threads: int) -> None:
        self.views, self.window, self.threads = views, window, threads
        self._shares = [range(first, views.count, threads) for first in range(min(threads, views.count))]
        self._pool = ThreadPoolExecutor(len(self._shares))

    def each(self, do: Callable[..., None], *arguments: Iterable[Any]) -> None:
        """Call it with one of each after the other, as many at once as there are threads."""
        list(self._pool.map(do, *arguments))

    def close(self) -> None:
        self._pool.shutdown()

    def draw(self, model: Model) -> Array:
        """(tilts, height, width) float32 with margin: atoms alone, without offset and gain."""
        images = np.zeros_like(self.views.images)
        table = profiles(model.widths_px, self.window)

        def some(share: range) -> None:
            for tilt in share:
                self._draw_one(model, tilt, table, images[tilt])

        self._all(some)
        return images

    def _draw_one(self, model: Model, tilt: int, table: Array, image: Array) -> None:
        matrix, offset = model.matrix(self.views, tilt), model.offset(self.views, tilt)
        draw(model.places, matrix, offset, model.weights, model.kinds, model.widths_px, table, self.window, image)

    def explained(self, model: Model) -> Array:
        """(tilts, height, width) float32 with margin: what a projection should show, its offset and gain included."""
        images = self.draw(model)
        images *= model.gains[:, None, None].astype(np.float32)
        images += model.offsets[:, None, None].astype(np.float32)
        return images

    def misfit(self, model: Model, beneath: Array | None = None) -> tuple[float, Slope]:
        """Half of chi squared, and its derivatives.

        Parameters
        ----------
        beneath : (tilts, height, width) float32 with margin, atoms that are there besides, as `draw` has them
        """
        views, atoms = self.views, len(model.places)
        table = profiles(model.widths_px, self.window)
        offsets, gains, shifts = np.zeros(views.count), np.zeros(views.count), np.zeros((views.count, 2))
        turns, values = np.zeros((views.count, 3)), np.zeros(views.count)

        def some(share: range) -> tuple[Array, Array]:
            image, weighed = np.empty_like(views.images[0]), np.empty_like(views.images[0])
            places, weights = np.zeros((atoms, 3)), np.zeros(atoms)
            for tilt in share:
                image[:] = 0 if beneath is None else beneath[tilt]
                self._draw_one(model, tilt, table, image)
                gain = float(model.gains[tilt])
                found = compare(image, views.images[tilt], views.weights[tilt], gain, float(model.offsets[tilt]), weighed)
                values[tilt], offsets[tilt], gains[tilt] = found
                matrix, offset = model.matrix(views, tilt), model.offset(views, tilt)
                moments = slopes(
                    model.places,
                    matrix,
                    offset,
                    model.weights,
                    model.kinds,
                    model.widths_px,
                    table,
                    self.window,
                    weighed,
                    gain,
                    places,
                    weights,
                )
                shifts[tilt] = moments[:, 3]
                turns[tilt] = by_turn(moments[:, :3], views.matrices[tilt], model.turns[tilt])
            return places, weights

        parts = self._all(some)
        places, weights = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
        return float(values.sum()), Slope(places, weights, offsets, gains, shifts, turns)

    def misfit_per_tilt(self, model: Model) -> Array:
        """(tilts,) chi squared per pixel of each projection, by the noise that it shows by itself; of those that weigh nothing 0."""
        found = np.zeros(self.views.count)
        parts = zip(self.explained(model), self.views.images, self.views.noise_weights, strict=True)
        for tilt, (image, view, weight) in enumerate(parts):
            difference = image - view
            found[tilt] = float(np.vdot(weight * difference, difference)) / max(1, int(np.count_nonzero(weight)))
        return found

    def curvature(self, model: Model) -> tuple[Array, Array]:
        """(atoms, 3, 3) and (atoms,): second derivatives of the misfit by each atom's own place, and by its own weight (Gauss-Newton).

        Of a Gaussian g of width s and slowly varying weights W: sum W g^2 = <W> / 4 pi s^2, sum W (dg/dv)^2 = <W> / 8 pi s^4, where <W> is
        the mean of W over g^2, itself a Gaussian of width s / sqrt 2.
        """
        views, atoms = self.views, len(model.places)
        narrow = model.widths_px / np.sqrt(2)
        table, squares = profiles(narrow, self.window), model.widths_px[model.kinds] ** 2

        def some(share: range) -> tuple[Array, Array]:
            through, directions = np.empty((len(share), atoms)), np.empty((len(share), 3, 3))
            for one, tilt in enumerate(share):
                matrix, offset = model.matrix(views, tilt), model.offset(views, tilt)
                gather(model.places, matrix, offset, model.kinds, narrow, table, self.window, views.weights[tilt], through[one])
                through[one] *= model.gains[tilt] ** 2
                directions[one] = matrix.T @ matrix
            return through.T @ directions.reshape(-1, 9), through.sum(axis=0)

        parts = self._all(some)
        places, weights = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
        weights /= 4 * np.pi * squares
        places *= (model.weights**2 / (8 * np.pi * squares**2))[:, None]
        return places.reshape(-1, 3, 3), weights

    def _all(self, some: Callable[[range], T]) -> list[T]:
        return list(self._pool.map(some, self._shares))
