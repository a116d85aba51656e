"""What the monitor itself sees in a projection: figures that the record does not hold, and a small picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from aet_stream.monitor.frames import reduced
from aet_stream.projection import Array

SMALL_PX = 96


@dataclass(frozen=True, slots=True)
class FrameMetrics:
    """What is measured of one projection for viewers, beside its record."""

    figures: dict[str, float]
    """See `measure`."""
    small: Array = field(repr=False)
    """Clean, at most 96 px wide and high (more if very flat), float32."""


def measured(raw: Array, clean: Array) -> FrameMetrics:
    """Measure one projection. Both (height, width), counts."""
    return FrameMetrics(measure(raw, clean), reduced(clean, SMALL_PX))


def measure(raw: Array, clean: Array) -> dict[str, float]:
    """Figures of one projection; NaN where nothing can be said.

    clipped : share of the raw pixels that sit at the highest value
    row_jump : largest difference of two neighbouring rows over what is usual in its neighbourhood; 1 is even
    """
    return {"clipped": clipped(raw), "row_jump": row_jump(clean)}


def clipped(raw: Array) -> float:
    """Share of the pixels at the highest value. A detector that is not full has one or a few of these."""
    highest = raw.max()
    return float(np.count_nonzero(raw == highest)) / raw.size if highest > raw.min() else 0.0


def row_jump(clean: Array) -> float:
    """How far the worst step from row to row stands out of its neighbourhood; NaN for small frames.

    A beam that jumps during the scan displaces all rows that follow: the step between the two rows is larger than those before and after.
    """
    if clean.shape[0] < 48:
        return float("nan")
    across = max(1, clean.shape[1] // 128)
    narrow = clean[:, : clean.shape[1] // across * across].reshape(clean.shape[0], -1, across).mean(2)
    steps = np.abs(np.diff(narrow, axis=0)).mean(1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(steps, 10, mode="reflect"), 21)
    usual = np.maximum(np.median(windows, axis=1), 1e-12 * steps.max())
    return float(np.divide(steps, usual, out=np.zeros_like(steps), where=usual > 0).max())


def likeness(a: Array, b: Array) -> float:
    """Largest correlation (-1..1) of two small pictures over all displacements; 1 for the same picture, moved or not."""
    if a.shape != b.shape:
        return float("nan")
    one, other = (image - image.mean() for image in (a, b))
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    if norm <= 0:
        return float("nan")
    return float(np.fft.irfft2(np.fft.rfft2(one) * np.conj(np.fft.rfft2(other)), s=a.shape).max()) / norm
