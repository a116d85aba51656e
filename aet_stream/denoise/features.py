"""What a network on the coarse grid sees of a frame: statistics of its blocks, scaled so that units and offsets do not matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.denoise import grid
from aet_stream.projection import Array

BLOCKS = 64
"""At most so many along the longer edge of a frame of any size: blocks of 4 px for a frame of 256 px."""
_LEAST = 0.05
"""A particle of a few blocks lies above the percentiles: the range is at least this share of its height."""
_ROUNDING = 1e-5
"""What is left of a frame that is all the same is no signal."""
_SMALLEST_PX = 2
"""A background has no finer detail, however small the frame."""
CHANNELS = ("mean", "minimum", "maximum", "standard deviation", "difference of neighbours")


@dataclass(frozen=True, slots=True)
class Blocks:
    """A frame in blocks."""

    statistics: Array
    """(5, rows, columns) float32, see CHANNELS; normalised by `low` and `span`"""
    block_px: int
    low: float
    span: float
    """normalised = (counts - low) / span"""


def block_px(shape: tuple[int, int]) -> int:
    """Edge of the blocks of a frame of this shape."""
    return max(_SMALLEST_PX, -(-max(shape) // BLOCKS))


def describe(frame: Array) -> Blocks:
    """Statistics of the blocks of a (height, width) float32 frame, normalised by the 0.5 and 99.5 percentiles of the block means."""
    block = block_px((frame.shape[0], frame.shape[1]))
    statistics = grid.statistics(frame, block)
    steps = np.zeros(frame.shape, frame.dtype)
    if frame.shape[1] > 1:
        row_by_row, its_steps = frame.reshape(-1), steps.reshape(-1)
        np.subtract(row_by_row[1:], row_by_row[:-1], out=its_steps[:-1])  # in one piece: a fifth of the time
        steps[:, -1] = steps[:, -2]
    differences = np.sqrt(grid.means(grid.in_blocks(np.square(steps, out=steps), block)) / 2)
    low, high = (float(value) for value in np.percentile(statistics[0], (0.5, 99.5)))
    span = max(high - low, (float(statistics[0].max()) - low) * _LEAST, float(np.abs(statistics[0]).max()) * _ROUNDING, 1e-12)
    levels = (statistics[:3] - np.float32(low)) / np.float32(span)
    return Blocks(
        np.stack([*levels, statistics[3] / np.float32(span), differences / np.float32(span)]).astype(np.float32), block, low, span
    )


def normalisation(frame: Array) -> tuple[float, float]:
    """(offset, range) by the 0.5 and 99.5 percentiles of pixels, for networks at full resolution: they see (frame - offset) / range."""
    step = max(1, min(frame.shape) // 128)
    low, high = np.percentile(frame[::step, ::step], (0.5, 99.5))
    return float(low), max(float(high - low), 1e-9)
