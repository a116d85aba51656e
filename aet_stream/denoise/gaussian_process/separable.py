"""Squared exponentials between points of a grid: each is a product of one along y and one along x, and those take few values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from itertools import pairwise

import numpy as np

from aet_stream.denoise.lanes import in_lanes
from aet_stream.projection import Array

_WORTH = 1e5
"""Covariances from which on two lanes put them down."""


class Points:
    """Centres of Gaussian windows, which share a few values of y and of x."""

    def __init__(self, at: Array, wide: Array | float) -> None:
        """
        Parameters
        ----------
        at : (n, 2)
        wide : (n,) variances of the windows; one of all of them. Alike ones beside each other take less time
        """
        self.at = at
        self.wide = np.full(len(at), wide) if isinstance(wide, float) else wide

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, which: Array | slice) -> Points:
        return Points(self.at[which], self.wide[which])

    @cached_property
    def axes(self) -> list[tuple[Array, Array]]:
        """Of y and of x: (the values that there are, (n,) which of them each point has)."""
        return [np.unique(self.at[:, axis], return_inverse=True) for axis in range(2)]

    @cached_property
    def runs(self) -> list[tuple[slice, float]]:
        """Points whose windows are alike, and their variance."""
        ends = [0, *(np.flatnonzero(np.diff(self.wide)) + 1).tolist(), len(self)]
        return [(slice(begin, end), float(self.wide[begin])) for begin, end in pairwise(ends) if end > begin]


def joined(one: Points, other: Points) -> Points:
    """One after the other."""
    return Points(np.concatenate([one.at, other.at]), np.concatenate([one.wide, other.wide]))


class Pairs:
    """Pairs of points."""

    def __init__(self, one: Points, other: Points) -> None:
        self._one, self._other = one, other
        self._squares = [
            np.square(values[:, None] - others).astype(np.float64) for (values, _), (others, _) in zip(one.axes, other.axes, strict=True)
        ]

    def gaussian(self, square_length: float, stretch: tuple[float, float]) -> Array:
        """(n, m) covariances of a field of variance 1 and this length, seen in the windows, distances along y and x stretched so."""
        covariance = np.empty((len(self._one), len(self._other)))
        in_lanes([partial(self._put, covariance, square_length, stretch, *part) for part in self._parts()])
        return covariance

    def _put(self, covariance: Array, square_length: float, stretch: tuple[float, float], rows: slice, columns: slice, wide: float) -> None:
        """One part of it."""
        broader = square_length + wide
        along_y, along_x = (np.exp(squares * (-(by**2) / (2 * broader))) for squares, by in zip(self._squares, stretch, strict=True))
        along_y *= square_length / broader
        (y, other_y), (x, other_x) = (
            (places[rows], others[columns]) for (_, places), (_, others) in zip(self._one.axes, self._other.axes, strict=True)
        )
        covariance[rows, columns] = along_y.take(other_y, 1).take(y, 0, mode="clip")
        covariance[rows, columns] *= along_x.take(other_x, 1).take(x, 0, mode="clip")

    def _parts(self) -> Iterator[tuple[slice, slice, float]]:
        """(rows, columns, variance of both windows together) that are alike, large ones in halves: for two lanes."""
        for rows, wide in self._one.runs:
            for columns, other_wide in self._other.runs:
                size, middle = (rows.stop - rows.start) * (columns.stop - columns.start), (rows.start + rows.stop) // 2
                for part in [rows] if size < _WORTH else [slice(rows.start, middle), slice(middle, rows.stop)]:
                    yield part, columns, wide + other_wide
