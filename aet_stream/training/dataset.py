"""Frames to learn from and to be judged by: projections of simulated particles, laid on simulated backgrounds, endlessly mixed.

A pool holds projections of particles; everything else (place, neighbours, background, noise) is drawn anew for every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array
from aet_stream.simulate import noise
from aet_stream.simulate.backgrounds import background
from aet_stream.simulate.formation import Beam, fitting_pixel_size_nm, project
from aet_stream.simulate.particle import Particle, make_particle

#: Kinds of particle to learn from. Icosahedra, like the backgrounds of kind "unseen", are kept for judging.
LEARNT = ("fcc", "hcp", "decahedron", "amorphous")
_SIZES_PX = (256, 256, 256, 256, 256, 256, 512, 512, 128)
_PIXEL_SIZES_NM = (0.013, 0.08)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame and its truth; the brightest pixel of the particle is about 1."""

    raw: Array
    background: Array
    clean: Array
    particle: int = 0
    """Which particle of its pool."""
    unit: float = 1.0
    offset: float = 0.0
    """raw = unit * (background + clean + noise) + offset"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How frames are drawn."""

    backgrounds: Sequence[str] = ("film",)
    """Kinds of background, equally often."""
    amplify: float = 1.0
    """Half of the backgrounds of kind "gaussian" are up to this many times as strong as published."""
    noise: float = 0.5
    """Share of frames with noise."""
    plain: bool = False
    """Nothing but counting noise, one particle wholly in the frame; as the published setting has it."""
    kinds: Sequence[str] = LEARNT
    atoms: int = 0
    """About how many in a particle; 0: 1,000 to 50,000."""
    sizes_px: Sequence[int] = _SIZES_PX
    fill: tuple[float, float] | None = None
    """How much of the frame's width the particle spans; None: 0.45 to 0.75 if plain, else 0.2 to 1.5."""
    pixel_size_nm: float = 0.0
    """0: as `fill` wants it."""
    room: float | None = None
    """How far from the middle the particle may lie, in frame widths; None: by `plain` and `fill`."""


class Pool:
    """Projections of particles, several of each, at all sizes, places and magnifications."""

    def __init__(self, recipe: Recipe, *, seed: int, particles: int, views: int) -> None:
        self.views: dict[int, list[tuple[int, Array]]] = {}
        """Frame size in px -> (particle, (size, size) float16, brightest pixel of the particle 1)"""
        for index in range(particles):
            rng = np.random.default_rng([seed, index])
            size_px = int(rng.choice(list(recipe.sizes_px)))
            self.views.setdefault(size_px, []).extend((index, view) for view in _views(rng, recipe, size_px, views))

    def keep(self, which: slice) -> None:
        """Only these of the views of every size."""
        self.views = {size_px: views[which] for size_px, views in self.views.items()}

    def draw(self, rng: np.random.Generator) -> tuple[int, Array]:
        """(particle, (size, size) float32): any of the views, turned and flipped; size by share."""
        counts = np.array([len(views) for views in self.views.values()])
        return self.like(rng, int(rng.choice(list(self.views), p=counts / counts.sum())))

    def like(self, rng: np.random.Generator, size_px: int) -> tuple[int, Array]:
        """The same, of a given size."""
        views = self.views[size_px]
        particle, view = views[rng.integers(len(views))]
        view = np.rot90(view, int(rng.integers(4)))
        return particle, (view[::-1] if rng.random() < 0.5 else view).astype(np.float32)


def _views(rng: np.random.Generator, recipe: Recipe, size_px: int, views: int) -> list[Array]:
    """One particle at one magnification and several tilts and places, scaled to its brightest pixel."""
    while True:
        particle = make_particle(rng, kinds=recipe.kinds, atoms=recipe.atoms)
        fill = rng.uniform(*_fill(rng, recipe))
        pixel_size_nm = recipe.pixel_size_nm or fitting_pixel_size_nm(particle, size_px, fill)
        if recipe.plain or _PIXEL_SIZES_NM[0] < pixel_size_nm < _PIXEL_SIZES_NM[1]:
            break
    beam = Beam(z_power=rng.uniform(1.4, 1.8), sigma_nm=0.06 * rng.uniform(0.8, 1.5))
    if not recipe.plain and rng.random() < 0.5:
        beam = replace(beam, tail=rng.uniform(0.05, 0.3), tail_sigma_nm=rng.uniform(0.12, 0.35))
    if not recipe.plain and rng.random() < 0.3:
        beam = replace(beam, saturation=rng.uniform(0.02, 0.2))
    room = recipe.room
    if room is None:
        room = 0.02 if recipe.plain else (max(0.0, 1 - fill) / 2 if rng.random() < 0.8 else 0.6)
    images = []
    for tilt in np.radians(rng.uniform(-75, 75, views)):
        c, s = np.cos(tilt), np.sin(tilt)
        shift = np.append(rng.uniform(-room, room, 2), 0) * size_px * pixel_size_nm
        turned = particle.positions_nm @ np.array([(c, 0, s), (0, 1, 0), (-s, 0, c)]).T + shift
        moved = Particle(turned.astype(np.float32), particle.atomic_number, particle.kind)
        images.append(project(moved, 0.0, size_px=size_px, pixel_size_nm=pixel_size_nm, beam=beam))
    brightest = max(max(float(image.max()) for image in images), 1e-6)
    return [(image / brightest).astype(np.float16) for image in images]


def _fill(rng: np.random.Generator, recipe: Recipe) -> tuple[float, float]:
    if recipe.fill is not None:
        return recipe.fill
    if recipe.plain:
        return 0.45, 0.75
    return (0.2, 0.85) if rng.random() < 0.85 else (0.85, 1.5)


class Mixer:
    """A pool and a recipe; every sample is a new combination."""

    def __init__(self, recipe: Recipe, *, seed: int, particles: int, views: int) -> None:
        self.recipe = recipe
        self.pool = Pool(recipe, seed=seed, particles=particles, views=views)

    def sample(self, rng: np.random.Generator) -> Frame:
        """One frame."""
        recipe = self.recipe
        particle, clean = self._clean(rng)
        size_px = len(clean)
        kind = str(rng.choice(list(recipe.backgrounds)))
        below = background(rng, kind, size_px)
        if kind == "gaussian" and recipe.amplify > 1 and rng.random() < 0.5:
            below *= np.float32(np.exp(rng.uniform(0, np.log(recipe.amplify))))
        if not recipe.plain and rng.random() < 0.05:
            below = np.zeros_like(below)  # what is clean already stays so
        raw = clean + below
        if rng.random() < recipe.noise:
            raw = _counted(rng, raw) if recipe.plain else _noisy(rng, raw)
        return Frame(raw.astype(np.float32), below.astype(np.float32), clean, particle)

    def _clean(self, rng: np.random.Generator) -> tuple[int, Array]:
        particle, clean = self.pool.draw(rng)
        if self.recipe.plain:
            return particle, clean
        if rng.random() < 0.04:
            return particle, np.zeros_like(clean)
        if rng.random() < 0.1:  # a neighbour
            other = self.pool.like(rng, len(clean))[1] * np.float32(rng.uniform(0.3, 1))
            rim = max(float(other[[0, -1]].max()), float(other[:, [0, -1]].max()))
            clean = clean + (np.roll(other, rng.integers(-len(clean) // 2, len(clean) // 2, 2), (0, 1)) if rim < 0.01 else other)
            clean /= max(float(clean.max()), 1e-6)
        if rng.random() < 0.3:  # dim against the background
            clean = clean * np.float32(rng.uniform(0.4, 1))
        return particle, clean


def _counted(rng: np.random.Generator, frame: Array) -> Array:
    floor = np.float32(min(float(frame.min()), 0.0))
    return noise.counted(rng, frame - floor, float(np.exp(rng.uniform(np.log(100), np.log(3000))))) + floor


def _noisy(rng: np.random.Generator, frame: Array) -> Array:
    """Poisson and read noise, now and then unsteady lines, grain, a filter, eight bits."""
    if rng.random() < 0.15:
        frame = noise.scan_lines(rng, frame, rng.uniform(0.1, 1.0))
    if rng.random() < 0.9:
        floor = np.float32(min(float(frame.min()), 0.0))
        frame = noise.counted(rng, frame - floor, float(np.exp(rng.uniform(np.log(30), np.log(5000))))) + floor
    if rng.random() < 0.5:
        frame = noise.read(rng, frame, rng.uniform(0, 0.03))
    if rng.random() < 0.15:
        grain = noise.grain(rng, (frame.shape[0], frame.shape[1]), rng.uniform(0.6, 2.0))
        frame = frame + np.float32(rng.uniform(0.002, 0.03)) * grain
    if rng.random() < 0.15:
        frame = gaussian_filter(frame, rng.uniform(0.4, 1.2))
    low, high = float(frame.min()), float(frame.max())
    if rng.random() < 0.1 and high > low:
        frame = np.rint((frame - low) / (high - low) * 255).astype(np.float32) / 255 * np.float32(high - low) + np.float32(low)
    return frame
