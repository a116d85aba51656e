"""What turns in front of a microscope beside the particle, and how each exposure sees it: films, carbon, contamination.

Geometry, as in formation.py: the tilt axis runs along y through the middle of the columns. A film lies at a height z0 above the axis,
turned by phi about it and sloping by psi along it. What lies at (u, y) of the film, w above its middle, is seen at tilt a at

    x' = u cos(a + phi) + (z0 + psi y + w) sin(a + phi),

through a path that is longer by 1 / cos(a + phi). Lengths in px of the frame, intensities in units of the brightest pixel of the particle
in the series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array
from aet_stream.simulate import noise
from aet_stream.simulate.films import ThicknessMap
from aet_stream.simulate.formation import splat
from aet_stream.simulate.hard_core import carbon_layer

CARBON_Z = 6
CARBON_SIGMA_NM = 0.07
"""Width of an atom of it."""
STEEPEST_DEG = 85.0
"""Beyond, a film is taken to lie as here: no farther than stages and films that are turned on them go together."""


@dataclass(frozen=True, slots=True)
class View:
    """One exposure."""

    tilt_deg: float
    """Of the specimen: the stage's error is in it."""
    time: float
    """0 at the first exposure of the series, 1 at the last"""
    size_px: int
    pixel_size_nm: float
    shift_px: tuple[float, float] = (0.0, 0.0)
    """By which the specimen has moved, (y, x)"""
    line_px: Array | float = 0.0
    """(size, 1): how much farther along x each line begins"""

    def places(self) -> tuple[Array, Array]:
        """((size, size) y, x') px in the specimen's frame, of every pixel."""
        at = np.arange(self.size_px) - (self.size_px - 1) / 2
        y, x = np.meshgrid(at - self.shift_px[0], at - self.shift_px[1], indexing="ij")
        x += self.line_px
        return y, x

    def drawn(self, y_px: Array, x_px: Array, weights: Array, sigma_px: float) -> Array:
        """(size, size): points at (y, x') in the specimen's frame, each a Gaussian that sums to its weight."""
        middle = (self.size_px - 1) / 2
        places = np.stack([y_px + middle + self.shift_px[0], x_px + middle + self.shift_px[1]])
        image = gaussian_filter(splat(places, weights, (self.size_px, self.size_px)), max(sigma_px, 0.5), mode="constant")
        return image if isinstance(self.line_px, float) else noise.moved_lines(image, self.line_px)


class Part(Protocol):
    """Of the specimen, without the particle."""

    def seen(self, view: View) -> Array:
        """(size, size) float64"""


@dataclass(frozen=True, slots=True)
class Lie:
    """How a film lies."""

    height_px: float
    offset_deg: float = 0.0
    slope: float = 0.0

    def turned(self, view: View) -> tuple[float, float]:
        """(cosine, sine) of its tilt."""
        angle = np.radians(np.clip(view.tilt_deg + self.offset_deg, -STEEPEST_DEG, STEEPEST_DEG))
        return float(np.cos(angle)), float(np.sin(angle))

    def on_film(self, view: View, above_px: float = 0.0) -> tuple[Array, Array]:
        """((size, size) y, u) of what each pixel shows of the film, so much above its middle."""
        y, x = view.places()
        cosine, sine = self.turned(view)
        return y, (x - (self.height_px + self.slope * y + above_px) * sine) / cosine


@dataclass(frozen=True, slots=True)
class Slab:
    """A film of a thickness map; `layers`: at heights of their own, a thick one."""

    thickness: ThicknessMap
    lie: Lie
    layers_px: tuple[float, ...] = (0.0,)

    def seen(self, view: View) -> Array:
        cosine, _ = self.lie.turned(view)
        paths: Array = np.mean([self.thickness(*self.lie.on_film(view, above)) for above in self.layers_px], axis=0) / cosine
        return paths


@dataclass(frozen=True, slots=True)
class Carbon:
    """Amorphous carbon, atom by atom, where the film is."""

    lie: Lie
    density: float
    """g/cm3"""
    thickness_nm: float
    atom: float
    """Intensity of an atom, summed over its pixels"""
    seed: int
    extent: ThicknessMap | None = None
    """Chance that there is film, 0..1; None: everywhere"""

    def seen(self, view: View) -> Array:
        nm, half = view.pixel_size_nm, (view.size_px / 2 + 8) * view.pixel_size_nm
        cosine, sine = self.lie.turned(view)
        lift = self.lie.height_px * nm * sine
        reach = (half + abs(self.lie.slope) * half + self.thickness_nm / 2 * abs(sine)) / cosine
        atoms = carbon_layer(self.density, self.thickness_nm, (-half, half), (-reach - lift / cosine, reach - lift / cosine), self.seed)
        y, u, w = atoms.T / nm
        if self.extent is not None:
            there = np.random.default_rng(self.seed).random(len(u)) < self.extent(y, u)
            y, u, w = y[there], u[there], w[there]
        x = u * cosine + (self.lie.height_px + self.lie.slope * y + w) * sine
        return view.drawn(y, x, np.full(len(x), self.atom), CARBON_SIGMA_NM / nm).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Blob:
    """An ellipsoidal Gaussian fixed to the specimen."""

    peak: float
    """At tilt 0"""
    at_px: tuple[float, float, float]
    """(x, y, z)"""
    sigma_px: tuple[float, float, float]

    def seen(self, view: View) -> Array:
        y, x = view.places()
        c, s = np.cos(np.radians(view.tilt_deg)), np.sin(np.radians(view.tilt_deg))
        across = np.hypot(self.sigma_px[0] * c, self.sigma_px[2] * s)
        squares = np.square((x - self.at_px[0] * c - self.at_px[2] * s) / across) + np.square((y - self.at_px[1]) / self.sigma_px[1])
        seen: Array = self.peak * self.sigma_px[0] / across * np.exp(-squares / 2)
        return seen


@dataclass(frozen=True, slots=True)
class Shell:
    """Contamination around the particle: points a little off its surface, each a wide Gaussian."""

    points_px: Array
    """(n, 3) x, y, z"""
    weight: float
    sigma_px: float

    def seen(self, view: View) -> Array:
        x, y, z = self.points_px.T
        c, s = np.cos(np.radians(view.tilt_deg)), np.sin(np.radians(view.tilt_deg))
        return view.drawn(y, x * c + z * s, np.full(len(x), self.weight), self.sigma_px).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Growing:
    """A part that is not there at first, and wholly at the end."""

    part: Part

    def seen(self, view: View) -> Array:
        return view.time * self.part.seen(view)
