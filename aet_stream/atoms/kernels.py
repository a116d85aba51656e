"""The loops over atoms and pixels, compiled: the one door to numba. They run without the interpreter's lock, one projection each.

An atom is a Gaussian of unit sum, exp(-(dv^2 + du^2) / 2 s^2) / (2 pi s^2), within a window of pixels around its centre. Its profile along
either axis is made from two exponentials by products, not from one for every pixel. Images carry a margin (`margin_px`) around what was
seen, so that no window has to be cut; what lies farther out is not drawn. `window` is a tuple of zeros: its length, the edge of the window,
is known to the compiler, which then unrolls the inner loops (twice as fast).
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


def window_for(width_px: float) -> Window:
    """Of atoms of this width."""
    return (0,) * (2 * int(np.ceil(_REACH_WIDTHS * width_px)))


def margin_px(window: Window) -> int:
    """That images need on each side."""
    return len(window)


def bells(widths_px: Array, window: Window) -> Array:
    """(widths, len(window) / 2 + 1) float32: exp(-k^2 / 2 width^2)."""
    k = np.arange(len(window) // 2 + 1)
    table: Array = np.exp(-(k**2) / (2 * np.asarray(widths_px)[:, None] ** 2)).astype(np.float32)
    return table


def _compiled(function: F) -> F:
    """Compiled when first called, and kept on disk where there is a place for it."""
    try:
        made: Any = numba.njit(nogil=True, fastmath=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor in a home may anything be written
        made = numba.njit(nogil=True, fastmath=True)(function)
    return cast(F, made)


@_compiled
def _profile(part: float, bell: Array, width_px: float, out: Array) -> None:
    """`out`[k] = exp(-(k - middle - part)^2 / 2 width^2), with middle = len(out) / 2 - 1 and 0 <= part < 1."""
    half = len(out) // 2
    inverse = 1 / (width_px * width_px)
    step = np.exp(part * inverse)
    right = left = np.float32(np.exp(-part * part * inverse / 2))
    out[half - 1] = right
    up, down = np.float32(step), np.float32(1 / step)
    for k in range(1, half + 1):
        right *= up
        out[half - 1 + k] = right * bell[k]
    for k in range(1, half):
        left *= down
        out[half - 1 - k] = left * bell[k]


@_compiled
def draw(seen: Array, heights: Array, kinds: Array, widths_px: Array, table: Array, window: Window, image: Array) -> None:
    """Add atoms to an image.

    Parameters
    ----------
    seen : (atoms, 2) float64, [v, u] pixels of `image`
    heights : (atoms,) float64, what each adds up to
    kinds : (atoms,) int, which of the widths each has
    table : `bells` of the widths
    image : (height, width) float32, C-contiguous
    """
    size, (rows, columns) = len(window), image.shape
    before = size // 2 - 1
    down, across = np.empty(size, np.float32), np.empty(size, np.float32)
    flat = image.ravel()
    for atom in range(len(seen)):
        v, u = np.floor(seen[atom, 0]), np.floor(seen[atom, 1])
        top, left = int(v) - before, int(u) - before
        if top < 0 or left < 0 or top + size > rows or left + size > columns:
            continue
        kind = kinds[atom]
        width = widths_px[kind]
        _profile(seen[atom, 0] - v, table[kind], width, down)
        _profile(seen[atom, 1] - u, table[kind], width, across)
        height = np.float32(heights[atom] / (2 * np.pi * width * width))
        for i in range(size):
            start = (top + i) * columns + left
            line = flat[start : start + size]
            value = height * down[i]
            for j in range(size):
                line[j] += value * across[j]


@_compiled
def gather(seen: Array, kinds: Array, widths_px: Array, table: Array, window: Window, image: Array, out: Array) -> None:
    """An image as seen through each atom: `out` (atoms, 3) float64 = sums of image * atom * (1, v - centre, u - centre)."""
    size, (rows, columns) = len(window), image.shape
    before = size // 2 - 1
    down, across, tilted = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    flat = image.ravel()
    for atom in range(len(seen)):
        v, u = np.floor(seen[atom, 0]), np.floor(seen[atom, 1])
        top, left = int(v) - before, int(u) - before
        out[atom, 0] = out[atom, 1] = out[atom, 2] = 0
        if top < 0 or left < 0 or top + size > rows or left + size > columns:
            continue
        kind = kinds[atom]
        width = widths_px[kind]
        _profile(seen[atom, 0] - v, table[kind], width, down)
        _profile(seen[atom, 1] - u, table[kind], width, across)
        from_v, from_u = np.float32(top - seen[atom, 0]), np.float32(left - seen[atom, 1])
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
        scale = 1 / (2 * np.pi * width * width)
        out[atom, 0], out[atom, 1], out[atom, 2] = total * scale, along_v * scale, along_u * scale


@_compiled
def spread(image: Array, matrix: Array, offset: Array, begin: Array, inside: Array, out: Array) -> None:
    """Add to every voxel what an image shows where the voxel is seen, by linear interpolation.

    Parameters
    ----------
    image : (height, width) float32
    matrix, offset : (2, 3) and (2,) float64; a voxel at p is seen at matrix p + offset, [v, u]
    begin : (3,) float64, where voxel [0, 0, 0] lies; voxel [a, b, c] at [begin[0] + a, begin[1] + c, begin[2] - b]
    inside : like out, bool
    out : (n0, n1, n2) float32
    """
    rows, columns = image.shape
    for a in range(out.shape[0]):
        for b in range(out.shape[1]):
            p0, p2 = begin[0] + a, begin[2] - b
            v0 = offset[0] + matrix[0, 0] * p0 + matrix[0, 2] * p2
            u0 = offset[1] + matrix[1, 0] * p0 + matrix[1, 2] * p2
            for c in range(out.shape[2]):
                if inside[a, b, c]:
                    p1 = begin[1] + c
                    v, u = v0 + matrix[0, 1] * p1, u0 + matrix[1, 1] * p1
                    i, j = int(np.floor(v)), int(np.floor(u))
                    if 0 <= i < rows - 1 and 0 <= j < columns - 1:
                        y, x = np.float32(v - i), np.float32(u - j)
                        upper = (1 - x) * image[i, j] + x * image[i, j + 1]
                        lower = (1 - x) * image[i + 1, j] + x * image[i + 1, j + 1]
                        out[a, b, c] += (1 - y) * upper + y * lower
