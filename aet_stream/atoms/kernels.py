"""The loops over atoms and pixels, compiled: the one door to numba. They run without the interpreter's lock, one projection each.

An atom is a Gaussian of unit sum, exp(-(dv^2 + du^2) / 2 s^2) / (2 pi s^2), within a window of pixels around its centre; a place p is seen
at matrix p + offset, [v, u]. Its profile along either axis comes from a table of profiles that lie a fraction of a pixel apart, between
which it is interpolated. Images carry a margin (`margin_px`) around what was seen, so that no window has to be cut; what lies farther out
is not drawn. `window` is a tuple of zeros: its length, the edge of the window, is known to the compiler, which then unrolls the inner loops
(twice as fast). Atoms that lie near each other in images should do so in arrays: what is near is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from aet_stream.projection import Array

Window = tuple[int, ...]
F = TypeVar("F", bound=Callable[..., Any])
_REACH_WIDTHS = 3.2
"""How far from its centre an atom is drawn; beyond, it is less than a hundredth of its peak."""
PARTS = 64
"""Of a pixel: linear interpolation between profiles so near is good to 2e-5 of the peak."""


def window_for(width_px: float) -> Window:
    """Of atoms of this width."""
    return (0,) * (2 * int(np.ceil(_REACH_WIDTHS * width_px)))


def margin_px(window: Window) -> int:
    """That images need on each side."""
    return len(window)


def profiles(widths_px: Array, window: Window) -> Array:
    """(widths, PARTS + 1, len(window)) float32: exp(-(k - middle - part)^2 / 2 width^2), middle = len(window) / 2 - 1, part from 0 to 1."""
    from_middle = np.arange(len(window)) - (len(window) // 2 - 1)
    away = from_middle - np.linspace(0, 1, PARTS + 1)[:, None]
    table: Array = np.exp(-(away**2) / (2 * np.asarray(widths_px)[:, None, None] ** 2)).astype(np.float32)
    return table


def _compiled(function: F) -> F:
    """Compiled when first called, and kept on disk where there is a place for it."""
    try:
        made: Any = numba.njit(nogil=True, fastmath=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor in a home may anything be written
        made = numba.njit(nogil=True, fastmath=True)(function)
    return cast(F, made)


@_compiled
def _profile(part: float, table: Array, out: Array) -> None:
    """`out`: what stands in the table of one width for 0 <= part < 1."""
    at = part * PARTS
    row = int(at)
    share, one, other = np.float32(at - row), table[row], table[row + 1]
    for k in range(len(out)):
        out[k] = one[k] + share * (other[k] - one[k])


@_compiled
def _window_at(place: Array, matrix: Array, offset: Array, before: int) -> tuple[float, float, int, int]:
    """Where a place is seen, [v, u], and the first row and column of the window around it."""
    at_v = offset[0] + matrix[0, 0] * place[0] + matrix[0, 1] * place[1] + matrix[0, 2] * place[2]
    at_u = offset[1] + matrix[1, 0] * place[0] + matrix[1, 1] * place[1] + matrix[1, 2] * place[2]
    return at_v, at_u, int(np.floor(at_v)) - before, int(np.floor(at_u)) - before


@_compiled
def draw(
    places: Array, matrix: Array, offset: Array, heights: Array, kinds: Array, widths_px: Array, table: Array, window: Window, image: Array
) -> None:
    """Add atoms to an image.

    Parameters
    ----------
    places : (atoms, 3) float64
    matrix, offset : (2, 3) and (2,) float64
    heights : (atoms,) float64, what each adds up to
    kinds : (atoms,) int, which of the widths each has
    table : `profiles` of the widths
    image : (height, width) float32, C-contiguous
    """
    size, (rows, columns) = len(window), image.shape
    before = size // 2 - 1
    down, across = np.empty(size, np.float32), np.empty(size, np.float32)
    flat = image.ravel()
    for atom in range(len(places)):
        at_v, at_u, top, left = _window_at(places[atom], matrix, offset, before)
        if top < 0 or left < 0 or top + size > rows or left + size > columns:
            continue
        kind = kinds[atom]
        width = widths_px[kind]
        _profile(at_v - (top + before), table[kind], down)
        _profile(at_u - (left + before), table[kind], across)
        height = np.float32(heights[atom] / (2 * np.pi * width * width))
        for i in range(size):
            start = (top + i) * columns + left
            line = flat[start : start + size]
            value = height * down[i]
            for j in range(size):
                line[j] += value * across[j]


@_compiled
def compare(image: Array, view: Array, weights: Array, gain: float, offset: float, weighed: Array) -> tuple[float, float, float]:
    """`weighed` = weights d, of d = gain image + offset - view; returns the sums of weights d^2 / 2, weights d, and weights d image."""
    drawn, seen, counts, out = image.ravel(), view.ravel(), weights.ravel(), weighed.ravel()
    slope, level = np.float32(gain), np.float32(offset)
    squares = total = along = np.float64(0)
    for first in range(0, len(drawn), 256):  # sums of float32 stay short
        last = min(first + 256, len(drawn))
        for pixel in range(first, last):
            out[pixel] = counts[pixel] * (slope * drawn[pixel] + level - seen[pixel])
        some_squares, some, some_along = np.float32(0), np.float32(0), np.float32(0)
        for pixel in range(first, last):  # apart from where is written: else how it is summed up would depend on where arrays lie
            some_squares += out[pixel] * (slope * drawn[pixel] + level - seen[pixel])
            some += out[pixel]
            some_along += out[pixel] * drawn[pixel]
        squares += some_squares
        total += some
        along += some_along
    return squares / 2, total, along


@_compiled
def slopes(
    places: Array,
    matrix: Array,
    offset: Array,
    heights: Array,
    kinds: Array,
    widths_px: Array,
    table: Array,
    window: Window,
    weighed: Array,
    gain: float,
    by_place: Array,
    by_height: Array,
) -> Array:
    """Add to `by_place` (atoms, 3) and `by_height` (atoms,) the derivatives of what `compare` returns first.

    Returns (2, 4) sums over atoms of the derivatives by where they are seen, [v, u], times their places, and those themselves.
    """
    size, (rows, columns) = len(window), weighed.shape
    before = size // 2 - 1
    down, across, tilted = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    flat, moments = weighed.ravel(), np.zeros((2, 4))
    for atom in range(len(places)):
        at_v, at_u, top, left = _window_at(places[atom], matrix, offset, before)
        if top < 0 or left < 0 or top + size > rows or left + size > columns:
            continue
        kind = kinds[atom]
        width = widths_px[kind]
        _profile(at_v - (top + before), table[kind], down)
        _profile(at_u - (left + before), table[kind], across)
        from_v, from_u = np.float32(top - at_v), np.float32(left - at_u)
        for j in range(size):
            tilted[j] = across[j] * (from_u + np.float32(j))
        total = along_v = along_u = np.float32(0)
        for i in range(size):
            start = (top + i) * columns + left
            line = flat[start : start + size]
            zero = one = np.float32(0)
            for j in range(size):
                zero += line[j] * across[j]
                one += line[j] * tilted[j]
            total += down[i] * zero
            along_v += down[i] * (from_v + np.float32(i)) * zero
            along_u += down[i] * one
        scale = gain / (2 * np.pi * width * width)
        by_height[atom] += scale * total
        push = scale * heights[atom] / (width * width)
        by_v, by_u = push * along_v, push * along_u
        by_place[atom, 0] += by_v * matrix[0, 0] + by_u * matrix[1, 0]
        by_place[atom, 1] += by_v * matrix[0, 1] + by_u * matrix[1, 1]
        by_place[atom, 2] += by_v * matrix[0, 2] + by_u * matrix[1, 2]
        for k in range(3):
            moments[0, k] += by_v * places[atom, k]
            moments[1, k] += by_u * places[atom, k]
        moments[0, 3] += by_v
        moments[1, 3] += by_u
    return moments


@_compiled
def gather(
    places: Array, matrix: Array, offset: Array, kinds: Array, widths_px: Array, table: Array, window: Window, image: Array, out: Array
) -> None:
    """An image as seen through each atom: `out` (atoms,) float64 = sums of image * atom; 0 of those that lie outside."""
    size, (rows, columns) = len(window), image.shape
    before = size // 2 - 1
    down, across = np.empty(size, np.float32), np.empty(size, np.float32)
    flat = image.ravel()
    for atom in range(len(places)):
        at_v, at_u, top, left = _window_at(places[atom], matrix, offset, before)
        out[atom] = 0
        if top < 0 or left < 0 or top + size > rows or left + size > columns:
            continue
        kind = kinds[atom]
        width = widths_px[kind]
        _profile(at_v - (top + before), table[kind], down)
        _profile(at_u - (left + before), table[kind], across)
        total = np.float32(0)
        for i in range(size):
            start = (top + i) * columns + left
            line = flat[start : start + size]
            zero = np.float32(0)
            for j in range(size):
                zero += line[j] * across[j]
            total += down[i] * zero
        out[atom] = total / (2 * np.pi * width * width)


@_compiled
def spread(image: Array, matrix: Array, offset: Array, begin: Array, step: int, inside: Array, out: Array) -> None:
    """Add to every voxel what an image shows where the voxel is seen, by linear interpolation.

    Parameters
    ----------
    image : (height, width) float32
    matrix, offset : (2, 3) and (2,) float64; a voxel at p is seen at matrix p + offset, [v, u]
    begin, step : (3,) float64, where voxel [0, 0, 0] lies; voxel [a, b, c] at begin + step [a, c, -b]
    inside : like out, bool
    out : (n0, n1, n2) float32
    """
    rows, columns = image.shape
    for a in range(out.shape[0]):
        for b in range(out.shape[1]):
            p0, p2 = begin[0] + step * a, begin[2] - step * b
            v0 = offset[0] + matrix[0, 0] * p0 + matrix[0, 2] * p2
            u0 = offset[1] + matrix[1, 0] * p0 + matrix[1, 2] * p2
            for c in range(out.shape[2]):
                if inside[a, b, c]:
                    p1 = begin[1] + step * c
                    v, u = v0 + matrix[0, 1] * p1, u0 + matrix[1, 1] * p1
                    i, j = int(np.floor(v)), int(np.floor(u))
                    if 0 <= i < rows - 1 and 0 <= j < columns - 1:
                        y, x = np.float32(v - i), np.float32(u - j)
                        upper = (1 - x) * image[i, j] + x * image[i, j + 1]
                        lower = (1 - x) * image[i + 1, j] + x * image[i + 1, j + 1]
                        out[a, b, c] += (1 - y) * upper + y * lower
