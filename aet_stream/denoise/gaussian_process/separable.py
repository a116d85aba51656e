"""Squared exponentials between points of a grid: each is a product of one along y and one along x, and those take few values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np

from aet_stream.denoise.lanes import in_lanes
from aet_stream.projection import Array

_WORTH = 1e5
"""Covariances from which on two lanes put them down."""
_CACHED = 40_000
"""Covariances that a core's cache holds: they are put down in pieces of so many."""


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


@dataclass(frozen=True, slots=True)
class _Field:
    """What lies in the windows, see `Pairs.gaussian`."""

    square_length: float
    stretch: tuple[float, float]
    variance: float
    level: float


class Pairs:
    """Pairs of points."""

    def __init__(self, one: Points, other: Points) -> None:
        self._one, self._other = one, other
        self._squares = [
            np.square(values[:, None] - others).astype(np.float64) for (values, _), (others, _) in zip(one.axes, other.axes, strict=True)
        ]

    def gaussian(self, square_length: float, stretch: tuple[float, float], variance: float, level: float) -> Array:
        """(n, m) covariances of a field of this variance and length around a level of that variance, seen in the windows, distances along
        y and x stretched so."""
        covariance = np.empty((len(self._one), len(self._other)))
        field = _Field(square_length, stretch, variance, level)
        in_lanes([partial(self._put, covariance, field, *part) for part in self._parts()])
        return covariance

    def _put(self, covariance: Array, field: _Field, rows: slice, columns: slice, wide: float) -> None:
        """One part of it."""
        broader = field.square_length + wide
        along_y, along_x = (np.exp(squares * (-(by**2) / (2 * broader))) for squares, by in zip(self._squares, field.stretch, strict=True))
        along_y *= field.variance * field.square_length / broader
        (y, along_y), (x, along_x) = (
            (places, along.take(others[columns], 1))
            for (_, places), (_, others), along in zip(self._one.axes, self._other.axes, (along_y, along_x), strict=True)
        )
        step = max(1, _CACHED // along_y.shape[1])
        for begin in range(rows.start, rows.stop, step):
            some = slice(begin, min(begin + step, rows.stop))
            part = covariance[some, columns]
            np.multiply(along_y.take(y[some], 0, mode="clip"), along_x.take(x[some], 0, mode="clip"), out=part)
            part += field.level

    def _parts(self) -> Iterator[tuple[slice, slice, float]]:
        """(rows, columns, variance of both windows together) that are alike, large ones in halves: for two lanes."""
        for rows, wide in self._one.runs:
            for columns, other_wide in self._other.runs:
                size, middle = (rows.stop - rows.start) * (columns.stop - columns.start), (rows.start + rows.stop) // 2
                for part in [rows] if size < _WORTH else [slice(rows.start, middle), slice(middle, rows.stop)]:
                    yield part, columns, wide + other_wide
