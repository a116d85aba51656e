"""What a network sees of a frame; the same in training and in use."""

from __future__ import annotations

import numpy as np

from aet_stream.denoise.classical import Vacuum, laplace_blocks
from aet_stream.projection import Array

#: Channels of a network on the coarse grid, every one per block.
CHANNELS = ("mean", "minimum", "maximum", "standard deviation", "Laplace estimate", "particle mask")
LAPLACE_CHANNEL = CHANNELS.index("Laplace estimate")
"""The network corrects this one: without vacuum to go by it knows better, with vacuum it has little to add."""


def normalisation(frame: Array) -> tuple[float, float]:
    """(offset, range) by the 0.5 and 99.5 percentiles; a network sees (frame - offset) / range, so units and offsets do not matter."""
    step = max(1, min(frame.shape) // 128)
    low, high = np.percentile(frame[::step, ::step], (0.5, 99.5))
    return float(low), max(float(high - low), 1e-6)


def coarse_inputs(frame: Array, vacuum: Vacuum, low: float, span: float) -> Array:
    """(channels, rows, columns) float32, normalised: see CHANNELS."""
    mean, minimum, maximum, deviation = vacuum.statistics
    levels = np.stack([mean, minimum, maximum, laplace_blocks(frame, vacuum)])
    levels = (levels - np.float32(low)) / np.float32(span)
    return np.stack([*levels[:3], deviation / np.float32(span), levels[3], vacuum.mask.astype(np.float32)])
