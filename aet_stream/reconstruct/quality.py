"""How far to trust a volume: what its own halves agree upon, and how well it explains each projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.coverage import largest_gap_deg
from aet_stream.projection import Array
from aet_stream.reconstruct.projector import reproject

SUSPECT_SIGMAS = 5.0
"""A projection whose residual lies this many (robust) standard deviations above the others' points at something wrong with it."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures about one volume."""

    residual_per_tilt: Array
    """(tilts,) root mean square difference between projection and re-projection, relative to the projection"""
    suspects: Array
    """Which projections fit much worse than the others, the worst first."""
    fsc_per_px: Array
    """(shells,) spatial frequencies, 1 / voxel"""
    fsc: Array
    """(shells,) Fourier shell correlation of two volumes from every other projection each; empty where none was made"""
    resolution_px: float
    """Period where the correlation first falls below 0.5, in voxels; NaN where it does not."""
    missing_wedge_deg: float


def judge(volume: Array, projections: Array, tilts_deg: Array, halves: tuple[Array, Array] | None, axis_px: float | None = None) -> Quality:
    """All figures. `halves`: the same volume from every other projection each."""
    views = reproject(volume, tilts_deg, axis_px)
    own = np.sqrt(np.mean(np.square(projections, dtype=np.float64), axis=(1, 2)))
    residual = np.sqrt(np.mean(np.square(views - projections, dtype=np.float64), axis=(1, 2))) / np.maximum(own, 1e-30)
    frequency, correlation = (np.zeros(0), np.zeros(0)) if halves is None else shell_correlation(*halves)
    return Quality(residual, suspects(residual), frequency, correlation, _resolution_px(frequency, correlation), largest_gap_deg(tilts_deg))


def suspects(residual: Array) -> Array:
    """Rows that stand out upwards, by the median and its absolute deviation, the worst first."""
    middle = np.median(residual)
    spread = 1.4826 * np.median(np.abs(residual - middle))
    order = np.argsort(-residual, kind="stable")
    rows: Array = order[residual[order] > middle + SUSPECT_SIGMAS * max(float(spread), 0.02 * float(middle))]
    return rows


def split(tilts_deg: Array) -> tuple[Array, Array]:
    """Every other projection in the order of tilts."""
    order = np.argsort(tilts_deg, kind="stable")
    return np.sort(order[::2]), np.sort(order[1::2])


def shell_correlation(one: Array, other: Array) -> tuple[Array, Array]:
    """(frequency, correlation) of two volumes on spherical shells one Fourier voxel thick.

    Harauz and van Heel, Optik 73 (1986) 146. A soft mask at the frame keeps its edge from correlating.
    """
    window = np.ones((1, 1, 1), np.float32)
    for axis, length in enumerate(one.shape):
        ramp = np.clip((0.5 * length - np.abs(np.arange(length) - (length - 1) / 2)) / max(1.0, 0.08 * length), 0, 1)
        window = window * ramp.astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
    edge = min(one.shape)
    radius = np.sqrt(
        np.fft.fftfreq(one.shape[0])[:, None, None] ** 2
        + np.fft.fftfreq(one.shape[1])[None, :, None] ** 2
        + np.fft.rfftfreq(one.shape[2])[None, None, :] ** 2
    ).astype(np.float32)
    shell = np.rint(radius * edge).astype(np.int32).ravel()
    first, second = (np.fft.rfftn(half * window).astype(np.complex64).ravel() for half in (one, other))
    both, left, right = (
        np.bincount(shell, weights)
        for weights in ((first * second.conj()).real, np.abs(first).astype(np.float64) ** 2, np.abs(second).astype(np.float64) ** 2)
    )
    last = edge // 2 + 1
    return np.arange(last) / edge, (both / np.maximum(np.sqrt(left * right), 1e-30))[:last]


def _resolution_px(frequency: Array, correlation: Array) -> float:
    below = np.flatnonzero(correlation[1:] < 0.5) + 1 if correlation.size else np.zeros(0, int)
    return float(1 / frequency[below[0]]) if below.size else float("nan")
