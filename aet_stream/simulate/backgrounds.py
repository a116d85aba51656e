"""What lies under and around the particle, and the noise of counting. All in units of the brightest particle pixel of a series."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array
from aet_stream.simulate.formation import fitting_pixel_size_nm, project_series, volume
from aet_stream.simulate.particle import Particle, make_particle

KINDS = ("gaussian", "film")
_PUBLISHED_FRAME_PX = 256


def gaussian(rng: np.random.Generator, size_px: int) -> Array:
    """The published recipe to the letter: gaussian_filter(randn, sigma in 10..29), for 256 px frames; sigma grows with the frame."""
    sigma = int(rng.integers(10, 30)) * size_px / _PUBLISHED_FRAME_PX
    noise = rng.standard_normal((size_px, size_px)).astype(np.float32)
    smooth: Array = gaussian_filter(noise, sigma)
    return smooth * (size_px / _PUBLISHED_FRAME_PX)  # a wider filter averages more away: keep the published strength


def film(rng: np.random.Generator, size_px: int) -> Array:
    """A support film: uneven thickness, often its edge, a wedge, a contamination halo, a pedestal; peak 8-100 % of the particle."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) / size_px - 0.5
    b = np.zeros((size_px, size_px), np.float32)
    for _ in range(rng.integers(1, 4)):
        b += 0.15 * rng.uniform(0.2, 1) * _clouds(rng, size_px, float(np.exp(rng.uniform(np.log(0.03), np.log(0.35)))))
    if rng.random() < 0.5:
        turn = rng.uniform(0, 2 * np.pi)
        distance = x * np.cos(turn) + y * np.sin(turn) - rng.uniform(-0.4, 0.4) + rng.uniform(0, 0.03) * _clouds(rng, size_px, 0.1)
        b += rng.uniform(0.3, 1) / (1 + np.exp(-np.clip(distance * rng.uniform(15, 120), -30, 30)))
    if rng.random() < 0.6:
        turn = rng.uniform(0, 2 * np.pi)
        b += rng.uniform(0, 0.8) * (x * np.cos(turn) + y * np.sin(turn))
    if rng.random() < 0.5:
        cx, cy = rng.uniform(-0.25, 0.25, 2)
        b += rng.uniform(0.2, 0.8) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * rng.uniform(0.1, 0.4) ** 2))
    b -= b.min()
    pedestal = rng.uniform(0, 0.5) * (rng.random() < 0.5)
    scaled: Array = b / max(float(b.max()), 1e-6) * rng.uniform(0.08, 1.0) + np.float32(pedestal)
    return scaled


def _clouds(rng: np.random.Generator, size_px: int, scale: float) -> Array:
    """Smooth noise of standard deviation 1, with features of `scale` frame widths."""
    coarse = int(np.clip(round(8 / scale), 16, size_px))
    noise = gaussian_filter(rng.standard_normal((coarse, coarse)).astype(np.float32), scale * coarse, mode="wrap")
    b = np.kron(noise, np.ones((-(-size_px // coarse),) * 2, np.float32))[:size_px, :size_px]
    b = gaussian_filter(b, size_px / coarse)
    clouds: Array = b / max(float(b.std()), 1e-6)
    return clouds


def background(rng: np.random.Generator, kind: str, size_px: int) -> Array:
    """(size_px, size_px) float32 of one of KINDS.

    Raises
    ------
    ValueError : no such kind
    """
    if kind not in KINDS:
        raise ValueError(f"background {kind!r}: choose one of {', '.join(KINDS)}")
    return gaussian(rng, size_px) if kind == "gaussian" else film(rng, size_px)


@dataclass(frozen=True, slots=True)
class SimulatedSeries:
    """A tilt series with its truth; raw = counted(clean + background)."""

    raw: Array
    """(tilts, y, x) uint16 counts"""
    clean: Array
    """(tilts, y, x) float32 counts without noise"""
    background: Array
    """(tilts, y, x) float32 counts"""
    tilts_deg: Array
    pixel_size_nm: float
    volume: Array
    """(slice y, row, column) float32 counts per voxel; its line integrals are `clean`"""


def simulate_series(
    *,
    seed: int,
    tilts_deg: Array,
    size_px: int = 256,
    particle: str = "random",
    atoms: int = 0,
    kind: str = "film",
    dose: float = 2000.0,
    read_noise: float = 3.0,
    pedestal: float = 100.0,
) -> SimulatedSeries:
    """One particle over its tilts, each frame on a background that changes slowly from tilt to tilt.

    Parameters
    ----------
    dose : counts in the brightest pixel of the particle
    read_noise : standard deviation of the detector's own noise, counts
    pedestal : the detector's offset, counts; part of the background
    """
    rng = np.random.default_rng(seed)
    subject: Particle = make_particle(rng, kind=particle, atoms=atoms)
    pixel_size_nm = fitting_pixel_size_nm(subject, size_px, rng.uniform(0.5, 0.7))
    clean = project_series(subject, tilts_deg, size_px=size_px, pixel_size_nm=pixel_size_nm)
    scale = np.float32(dose / clean.max())
    ends = [background(rng, kind, size_px) for _ in range(2)]
    mix = np.linspace(0, 1, len(tilts_deg), dtype=np.float32)
    below = np.stack([(1 - m) * ends[0] + m * ends[1] for m in mix]) * np.float32(dose) + np.float32(pedestal)
    clean *= scale
    expected = np.maximum(clean + below, 0)
    counted = rng.poisson(expected) + rng.normal(0, read_noise, expected.shape)
    return SimulatedSeries(
        raw=np.clip(np.rint(counted), 0, 65535).astype("<u2"),
        clean=clean,
        background=below,
        tilts_deg=np.asarray(tilts_deg, dtype=np.float64),
        pixel_size_nm=pixel_size_nm,
        volume=volume(subject, size_px=size_px, pixel_size_nm=pixel_size_nm) * scale,
    )
