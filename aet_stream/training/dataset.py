"""Frames to learn from: projections of simulated particles, laid on simulated backgrounds, endlessly mixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array
from aet_stream.simulate.backgrounds import background
from aet_stream.simulate.formation import fitting_pixel_size_nm, project
from aet_stream.simulate.particle import Particle, make_particle

FRAME_PX = 256


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame and its truth; the brightest pixel of the particle is about 1."""

    raw: Array
    background: Array
    clean: Array


class Mixer:
    """A pool of projections and one of backgrounds; every sample is a new combination of both."""

    def __init__(self, *, seed: int, particles: int, views: int, backgrounds: list[str], background_count: int, noise: bool) -> None:
        rng = np.random.default_rng(seed)
        self._noise = noise
        self._cleans = [view for _ in range(particles) for view in _views(rng, views)]
        self._backgrounds = [
            (kind, background(rng, kind, FRAME_PX).astype(np.float16)) for kind, _ in _cycle(backgrounds, background_count)
        ]

    def sample(self, rng: np.random.Generator) -> Frame:
        """One frame of FRAME_PX."""
        clean = self._clean(rng)
        kind, stored = self._backgrounds[rng.integers(len(self._backgrounds))]
        below = _turned(rng, stored)
        if kind == "gaussian" and self._noise and rng.random() < 0.5:
            below *= np.float32(np.exp(rng.uniform(0, np.log(12))))  # the published strength, and up to 12 times as much
        if kind == "film" and rng.random() < 0.7:  # so that no background is met twice
            share = np.float32(rng.random())
            below = (1 - share) * below + share * _turned(rng, self._backgrounds[rng.integers(len(self._backgrounds))][1])
        raw = clean + below
        return Frame(_noisy(rng, raw) if self._noise and rng.random() < 0.7 else raw, below.astype(np.float32), clean)

    def _clean(self, rng: np.random.Generator) -> Array:
        if rng.random() < 0.03:
            return np.zeros((FRAME_PX, FRAME_PX), np.float32)
        clean = _turned(rng, self._cleans[rng.integers(len(self._cleans))])
        if rng.random() < 0.08:  # a neighbour
            other = np.roll(_turned(rng, self._cleans[rng.integers(len(self._cleans))]), rng.integers(-90, 90, 2), (0, 1))
            clean = np.maximum(clean, other * np.float32(rng.uniform(0.4, 1)))
        return clean


def _cycle(kinds: list[str], count: int) -> list[tuple[str, int]]:
    return [(kinds[i % len(kinds)], i) for i in range(count)]


def _views(rng: np.random.Generator, views: int) -> list[Array]:
    """One particle at one magnification and several tilts, scaled to its brightest pixel."""
    particle = make_particle(rng)
    fill = rng.uniform(0.3, 0.85) if rng.random() < 0.85 else rng.uniform(0.85, 1.3)
    pixel_size_nm = fitting_pixel_size_nm(particle, FRAME_PX, fill)
    shift = rng.uniform(-0.5, 0.5, 2) * max(0.1, 1.1 - fill) * FRAME_PX * pixel_size_nm
    moved = Particle(particle.positions_nm + np.array([0, shift[1], 0], np.float32), particle.atomic_number, particle.kind)
    sigma_nm = 0.06 * rng.uniform(0.8, 1.5)
    images = [
        project(moved, tilt, size_px=FRAME_PX, pixel_size_nm=pixel_size_nm, sigma_nm=sigma_nm) for tilt in rng.uniform(-75, 75, views)
    ]
    brightest = max(max(float(image.max()) for image in images), 1e-6)
    across = round(shift[0] / pixel_size_nm)
    return [(np.roll(image, across, 1) / brightest).astype(np.float16) for image in images]


def _turned(rng: np.random.Generator, image: Array) -> Array:
    """Flips and quarter turns."""
    image = np.rot90(image, int(rng.integers(4)))
    return (image[::-1] if rng.random() < 0.5 else image).astype(np.float32)


def _noisy(rng: np.random.Generator, frame: Array) -> Array:
    """Poisson noise (as Gaussian of the same variance) at 30 to 3,000 counts, and the detector's own."""
    dose = np.exp(rng.uniform(np.log(30), np.log(3000)))
    counts = np.maximum(frame - min(float(frame.min()), 0.0) + 0.02, 0)
    noise = rng.standard_normal(frame.shape, dtype=np.float32)
    noisy: Array = frame + noise * np.sqrt(counts / dose + rng.uniform(0, 0.02) ** 2).astype(np.float32)
    return noisy
