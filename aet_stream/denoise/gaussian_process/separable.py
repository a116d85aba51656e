"""Squared exponentials between points of a grid: each is a product of one along y and one along x, and those take few values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from aet_stream.projection import Array


class Pairs:
    """Pairs of points, which share a few values of y and of x; each point is the centre of a Gaussian window."""

    def __init__(self, one: Array, other: Array, wide: Array | float, other_wide: Array | float) -> None:
        """
        Parameters
        ----------
        one, other : (n, 2), (m, 2) points
        wide, other_wide : (n,), (m,) variances of their windows; one of all of them. Alike ones beside each other take less time
        """
        self._squares: list[Array] = []
        self._places: list[tuple[Array, Array]] = []
        for axis in range(2):
            values, places = np.unique(one[:, axis], return_inverse=True)
            others, other_places = np.unique(other[:, axis], return_inverse=True)
            self._squares.append(np.square(values[:, None] - others).astype(np.float64))
            self._places.append((places, other_places))
        self._shape = len(one), len(other)
        self._parts = [
            (rows, columns, both + each) for rows, both in _alike(wide, len(one)) for columns, each in _alike(other_wide, len(other))
        ]

    def gaussian(self, square_length: float, stretch: tuple[float, float]) -> Array:
        """(n, m) covariances of a field of variance 1 and this length, seen in the windows, distances along y and x stretched so."""
        covariance = np.empty(self._shape)
        for rows, columns, wide in self._parts:
            broader = square_length + wide
            along_y, along_x = (np.exp(squares * (-(by**2) / (2 * broader))) for squares, by in zip(self._squares, stretch, strict=True))
            along_y *= square_length / broader
            (y, other_y), (x, other_x) = ((places[rows], others[columns]) for places, others in self._places)
            covariance[rows, columns] = along_y.take(other_y, 1).take(y, 0, mode="clip")
            covariance[rows, columns] *= along_x.take(other_x, 1).take(x, 0, mode="clip")
        return covariance


def _alike(wide: Array | float, count: int) -> Iterator[tuple[slice, float]]:
    """Runs of points whose windows are alike, and their variance."""
    if isinstance(wide, float):
        yield slice(0, count), wide
        return
    ends = [0, *(np.flatnonzero(np.diff(wide)) + 1).tolist(), count]
    for begin, end in pairwise(ends):
        if end > begin:
            yield slice(begin, end), float(wide[begin])
