"""Coarse grids: a background has no detail finer than its film, so blocks of pixels carry it, drawn smoothly between their centres."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from aet_stream.projection import Array


def block_px(shape: tuple[int, int], blocks: int) -> int:
    """Edge of a block so that the longer edge of a frame has about `blocks` of them."""
    return max(1, round(max(shape) / blocks))


def in_blocks(frame: Array, block: int) -> Array:
    """(rows, block, columns, block): the frame cut into blocks, its last rows and columns repeated where they do not fill one."""
    height, width = frame.shape
    if height % block or width % block:
        frame = np.pad(frame, ((0, -height % block), (0, -width % block)), mode="edge")
    return frame.reshape(frame.shape[0] // block, block, frame.shape[1] // block, block)


def statistics(frame: Array, block: int) -> Array:
    """(4, rows, columns) float32: mean, minimum, maximum and standard deviation of every block."""
    blocks = in_blocks(frame, block)
    mean, deviation = mean_and_deviation(blocks)
    return np.stack([mean, blocks.min(1).min(2), blocks.max(1).max(2), deviation]).astype(np.float32)


def mean_and_deviation(blocks: Array) -> tuple[Array, Array]:
    """(rows, columns) each: mean and standard deviation of each block."""
    mean, lines = means(blocks), blocks.reshape(*blocks.shape[:2], -1)
    apart = lines - np.repeat(mean, blocks.shape[3], axis=1)[:, None]  # whole rows at once: two thirds of the time
    return mean, np.sqrt(means(np.square(apart, out=apart).reshape(blocks.shape)))


def means(blocks: Array) -> Array:
    """(rows, columns): of each block. One axis after the other, whole rows first: both at once takes seven times as long."""
    mean: Array = blocks.mean(1).mean(2)
    return mean


def at_centres(frame: Array, block: int) -> Array:
    """(rows, columns) float32: the frame's values at block centres, the mean of the two or four nearest pixels."""
    blocks = in_blocks(frame, block)
    low, high = (block - 1) // 2, block // 2
    values: Array = blocks[:, low : high + 1, :, low : high + 1].mean((1, 3), dtype=np.float32)
    return values


def draw(coarse: Array, block: int, shape: tuple[int, int]) -> Array:
    """(height, width) float32: cubic splines through the values at block centres."""
    rows, columns = _splines(shape[0], block, coarse.shape[0]), _splines(shape[1], block, coarse.shape[1])
    full: Array = rows @ coarse.astype(np.float32) @ columns.T
    return full


def draw_means(means: Array, block: int, shape: tuple[int, int]) -> Array:
    """(height, width) float32: the cubic splines whose means over the blocks are these; through the centres they would be too flat."""
    rows, columns = _splines_of_means(shape[0], block, means.shape[0]), _splines_of_means(shape[1], block, means.shape[1])
    full: Array = rows @ means.astype(np.float32) @ columns.T
    return full


@lru_cache(maxsize=16)
def _splines_of_means(pixels: int, block: int, blocks: int) -> Array:
    """(pixels, blocks) float32: what the mean of each block contributes to each pixel of one axis."""
    splines = _splines(pixels, block, blocks).astype(np.float64)
    within = np.minimum(np.arange(blocks * block), pixels - 1)
    means = splines[within].reshape(blocks, block, blocks).mean(1)
    contributions: Array = np.linalg.solve(means.T, splines.T).T.astype(np.float32)
    return contributions


@lru_cache(maxsize=16)
def _splines(pixels: int, block: int, blocks: int) -> Array:
    """(pixels, blocks) float32: what each block centre contributes to each pixel of one axis."""
    if block == 1:
        return np.eye(pixels, blocks, dtype=np.float32)
    if blocks == 1:
        return np.ones((pixels, 1), np.float32)
    centres = np.arange(blocks, dtype=float)
    degree = min(3, blocks - 1)
    knots = np.pad(centres[2:-2], degree + 1, constant_values=(0, blocks - 1))  # none at the second centre and the last but one
    at = (np.arange(pixels) - (block - 1) / 2) / block
    return np.linalg.solve(_basis(centres, knots, degree).T, _basis(at, knots, degree).T).T.astype(np.float32)


def _basis(at: Array, knots: Array, degree: int) -> Array:
    """(len(at), functions) float64: the B-splines of these knots at these places; beyond the ends their outermost pieces go on.

    de Boor, A Practical Guide to Splines (1978), chapter X; scipy has them, too, and takes a quarter of a second to import.
    """
    piece = np.searchsorted(knots, at, side="right") - 1
    values = np.eye(len(knots) - 1)[np.clip(piece, degree, len(knots) - degree - 2)]
    for k in range(1, degree + 1):
        width = knots[k:] - knots[:-k]
        share = (at[:, None] - knots[:-k]) / np.where(width, width, 1.0)
        values = share[:, :-1] * values[:, :-1] + (1 - share[:, 1:]) * values[:, 1:]
    return values
