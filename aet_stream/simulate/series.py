"""A tilt series with its truth: one particle over its tilts, each frame on a background that changes slowly from tilt to tilt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aet_stream.projection import Array
from aet_stream.simulate.backgrounds import background
from aet_stream.simulate.formation import fitting_pixel_size_nm, project_series, volume
from aet_stream.simulate.particle import Particle, make_particle

_DOSE = 2000.0
LARGEST_VOLUME_PX = 512
"""One of 1024 px takes some 30 GiB to make."""


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
    volume: Array | None
    """(slice y, row, column) float32 counts per voxel; its line integrals are `clean`. None: the frames are larger than 512 px"""


def simulate_series(
    *,
    seed: int,
    tilts_deg: Array,
    size_px: int = 256,
    particle: str = "random",
    atoms: int = 0,
    kind: str = "film",
    dose: float | None = None,
    read_noise: float = 3.0,
    pedestal: float = 100.0,
    multislice: Path | None = None,
) -> SimulatedSeries:
    """One particle over its tilts, each frame on a background that changes slowly from tilt to tilt.

    Parameters
    ----------
    dose : counts in the brightest pixel of the particle; None: 2000
    read_noise : standard deviation of the detector's own noise, counts
    pedestal : the detector's offset, counts; part of the background
    multislice : images by multislice theory instead of the linear model, kept in this folder; the volume is then only proportional
    """
    rng, dose = np.random.default_rng(seed), dose or _DOSE
    subject: Particle = make_particle(rng, kind=particle, atoms=atoms)
    pixel_size_nm = fitting_pixel_size_nm(subject, size_px, rng.uniform(0.5, 0.7))
    if multislice is None:
        clean = project_series(subject, tilts_deg, size_px=size_px, pixel_size_nm=pixel_size_nm)
    else:
        from aet_stream.simulate import multislice as theory

        clean = theory.project_series(subject, tilts_deg, size_px=size_px, pixel_size_nm=pixel_size_nm, folder=multislice)
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
        volume=volume(subject, size_px=size_px, pixel_size_nm=pixel_size_nm) * scale if size_px <= LARGEST_VOLUME_PX else None,
    )
