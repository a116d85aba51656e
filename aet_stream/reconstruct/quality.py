"""How far to trust a volume: what its own halves agree upon, and how well it explains each projection."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import fft

from aet_stream.coverage import largest_gap_deg
from aet_stream.projection import Array
from aet_stream.reconstruct.projector import reproject
from aet_stream.reconstruct.slabs import SlabFiles, Volume, parts

SUSPECT_SIGMAS = 5.0
"""A projection whose residual lies this many (robust) standard deviations above the others' points at something wrong with it."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures about one volume."""

    residual_per_tilt: Array
    """(tilts,) root mean square difference between projection and re-projection, relative to the projection"""
    suspects: Array
    """Which projections fit much worse than the others, the worst first."""
    missing_wedge_deg: float
    fsc_per_px: Array = field(default_factory=lambda: np.zeros(0))
    """(shells,) spatial frequencies, 1 / voxel"""
    fsc: Array = field(default_factory=lambda: np.zeros(0))
    """(shells,) Fourier shell correlation of two volumes from every other projection each; empty where none was made"""
    fsc_slices: tuple[int, int] = (0, 0)
    """The slices y that were correlated: the first, and the one behind the last."""
    resolution_px: float = float("nan")
    """Period where the correlation first falls below 0.5, in voxels; NaN where it does not."""
    remark: str = ""
    """Why there is no correlation, or of which slices only; a sentence."""


def judge(volume: Volume, projections: Array, tilts_deg: Array, pitches: Array | None = None) -> Quality:
    """How well it explains each projection. Slices that see each other (`pitches`) are of a volume in memory."""
    missed, own = np.zeros((2, len(tilts_deg)))
    together = parts(volume) if pitches is None or isinstance(volume, SlabFiles) else [(slice(None), volume)]
    for slices, voxels in together:
        missed += _squares(reproject(voxels, tilts_deg, pitches=pitches) - projections[:, slices])
        own += _squares(projections[:, slices])
    residual: Array = np.sqrt(missed / np.maximum(own, 1e-30))
    return Quality(residual, suspects(residual), largest_gap_deg(tilts_deg))


def judge_by_halves(so_far: Quality, one: Array, other: Array, slices: slice) -> Quality:
    """The same with the correlation of two volumes of these slices, made from every other projection each."""
    frequency, correlation = shell_correlation(one, other)
    return replace(
        so_far,
        fsc_per_px=frequency,
        fsc=correlation,
        fsc_slices=(slices.start, slices.stop),
        resolution_px=_resolution_px(frequency, correlation),
    )


def _squares(views: Array) -> Array:
    """(tilts,) summed"""
    sums: Array = np.square(views, dtype=np.float64).sum(axis=(1, 2))
    return sums


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
    """(frequency, correlation) of two volumes on spherical shells one Fourier voxel thick; takes the memory of two more.

    Harauz and van Heel, Optik 73 (1986) 146.
    """
    edge = min(one.shape)
    last = edge // 2 + 1
    in_plane = np.fft.fftfreq(one.shape[1])[:, None] ** 2 + np.fft.rfftfreq(one.shape[2]) ** 2
    both, left, right = sums = np.zeros((3, last))
    for along, first, second in zip(np.fft.fftfreq(one.shape[0]), _spectrum(one), _spectrum(other), strict=True):
        shell = np.rint(np.sqrt(along**2 + in_plane) * edge).astype(np.int32).ravel()
        for total, product in zip(sums, (first * second.conj(), first * first.conj(), second * second.conj()), strict=True):
            total += np.bincount(shell, product.real.ravel(), minlength=last)[:last]
    return np.arange(last) / edge, both / np.maximum(np.sqrt(left * right), 1e-30)


def _spectrum(volume: Array) -> Array:
    """(y, row, column / 2 + 1) complex64, plane by plane; a soft mask at the frame keeps its edge from correlating."""
    along, down, across = (
        np.clip((0.5 * length - np.abs(np.arange(length) - (length - 1) / 2)) / max(1.0, 0.08 * length), 0, 1).astype(np.float32)
        for length in volume.shape
    )
    mask = np.outer(down, across)
    spectrum = np.empty((*volume.shape[:2], volume.shape[2] // 2 + 1), np.complex64)
    for plane, weight, found in zip(volume, along, spectrum, strict=True):
        found[:] = fft.rfft2(plane * (weight * mask))
    for row in range(volume.shape[1]):
        spectrum[:, row] = fft.fft(spectrum[:, row], axis=0)
    return spectrum


def _resolution_px(frequency: Array, correlation: Array) -> float:
    below = np.flatnonzero(correlation[1:] < 0.5) + 1 if correlation.size else np.zeros(0, int)
    return float(1 / frequency[below[0]]) if below.size else float("nan")
