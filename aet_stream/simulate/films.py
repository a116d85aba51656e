"""How thick a support film is, from place to place: maps on the film's own coordinates, y along the tilt axis and u across it.

Two physics of films. `clouds` are smooth fields with bent soft edges, round holes and Gaussian halos: networks learn from them. `flakes`
are stacked flakes, droplets and folds with straight ramps, polygonal holes and halos with long tails: kept for judging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import map_coordinates, spline_filter

from aet_stream.projection import Array

Physics = Literal["clouds", "flakes"]
PHYSICS: tuple[Physics, ...] = ("clouds", "flakes")


@dataclass(frozen=True, slots=True)
class Extent:
    """Which part of a film is mapped, in px of the frame; its middle is where the tilt axis passes."""

    frame_px: int
    half_u_px: float

    @property
    def step_px(self) -> float:
        return self.frame_px / 128

    def axes(self) -> tuple[Array, Array]:
        """((rows, 1) y, (1, columns) u) float64"""
        y = np.arange(-self._half(0.62 * self.frame_px), self._half(0.62 * self.frame_px) + 1) * self.step_px
        u = np.arange(-self._half(self.half_u_px), self._half(self.half_u_px) + 1) * self.step_px
        return y[:, None], u[None, :]

    def _half(self, px: float) -> int:
        return int(np.ceil(px / self.step_px))


class ThicknessMap:
    """Values on the nodes of an extent, splines of an order between them, the last ones beyond."""

    def __init__(self, values: Array, extent: Extent, order: int = 3) -> None:
        self.values, self.extent, self._order = values, extent, order
        self._spline = spline_filter(values.astype(np.float64), order=order, mode="nearest") if order > 1 else values
        self._middle = [(n - 1) / 2 for n in values.shape]

    def __call__(self, y_px: Array, u_px: Array) -> Array:
        """Values at places, all of one shape."""
        step = self.extent.step_px
        at = [y_px / step + self._middle[0], u_px / step + self._middle[1]]
        values: Array = map_coordinates(self._spline, at, order=self._order, mode="nearest", prefilter=False)
        return values


def normalised(values: Array, extent: Extent) -> Array:
    """So that the range of values in the frame at tilt 0 is 1 and its least 0."""
    _, u = extent.axes()
    near = values[:, np.abs(u[0]) < extent.frame_px / 2]
    scaled: Array = (values - near.min()) / max(float(np.ptp(near)), 1e-9)
    return scaled


# ---------------------------------------------------------------- what a film is made of


def clouds(rng: np.random.Generator, extent: Extent) -> Array:
    """Three smooth random fields, features of 1/30 to 2/5 of the frame."""
    scales = np.exp(rng.uniform(np.log(0.035), np.log(0.4), 3))
    fields: Array = np.sum([_field(rng, extent, scale) * rng.uniform(0.4, 1) for scale in scales], axis=0)
    return fields


def flakes(rng: np.random.Generator, extent: Extent) -> Array:
    """Flakes lying on each other, droplets of contamination, folds."""
    y, u = extent.axes()
    frame, wide = extent.frame_px, extent.half_u_px
    values = np.zeros((y.size, u.size))
    for _ in range(rng.poisson(10 * wide / frame)):
        size = frame * float(np.exp(rng.uniform(np.log(0.15), np.log(0.7))))
        values += rng.uniform(0.2, 1) * _polygon(rng, y, u, _anywhere(rng, extent), size, ramp_px=frame * rng.uniform(0.01, 0.06))
    for _ in range(rng.poisson(6 * wide / frame)):
        radius = frame * float(np.exp(rng.uniform(np.log(0.03), np.log(0.12))))
        at = _anywhere(rng, extent)
        values += rng.uniform(0.3, 1) * np.sqrt(np.maximum(1 - (np.square(y - at[0]) + np.square(u - at[1])) / radius**2, 0))
    for _ in range(rng.integers(0, 4)):
        values += rng.uniform(0.2, 0.8) * _fold(rng, y, u, extent)
    return values


def soft_edge(rng: np.random.Generator, extent: Extent, at_px: float, turn: float) -> Array:
    """1 beyond a bent line, 0 before it, a step over 1/60 to 1/20 of the frame."""
    y, u = extent.axes()
    width = extent.frame_px * float(np.exp(rng.uniform(np.log(1 / 60), np.log(1 / 20))))
    bent = extent.frame_px * rng.uniform(0, 0.04) * _field(rng, extent, rng.uniform(0.1, 0.3))
    distance = u * np.cos(turn) + y * np.sin(turn) - at_px + bent
    step: Array = 1 / (1 + np.exp(-np.clip(distance / width, -30, 30)))
    return step


def straight_edge(rng: np.random.Generator, extent: Extent, at_px: float, turn: float) -> Array:
    """1 beyond a line of straight pieces, 0 before it, a linear ramp of 1/60 to 1/12 of the frame."""
    y, u = extent.axes()
    along, across = y * np.cos(turn) - u * np.sin(turn), u * np.cos(turn) + y * np.sin(turn)
    knots = np.linspace(-1.5, 1.5, 13) * extent.half_u_px
    bent = np.interp(along, knots, extent.frame_px * rng.normal(0, 0.06, knots.size))
    width = extent.frame_px * float(np.exp(rng.uniform(np.log(1 / 60), np.log(1 / 12))))
    step: Array = np.clip((across - at_px - bent) / width + 0.5, 0, 1)
    return step


def round_hole(rng: np.random.Generator, extent: Extent, at_px: tuple[float, float], radius_px: float) -> Array:
    """0 in a round hole, 1 around it."""
    y, u = extent.axes()
    width = extent.frame_px * rng.uniform(0.015, 0.05)
    step: Array = 0.5 + 0.5 * np.tanh((np.hypot(y - at_px[0], u - at_px[1]) - radius_px) / width)
    return step


def polygonal_hole(rng: np.random.Generator, extent: Extent, at_px: tuple[float, float], radius_px: float) -> Array:
    """0 in a polygon, 1 around it, a ramp between."""
    y, u = extent.axes()
    return 1 - _polygon(rng, y, u, at_px, 2 * radius_px, ramp_px=extent.frame_px * rng.uniform(0.02, 0.06))


def gaussian_halo(rng: np.random.Generator, extent: Extent, at_px: tuple[float, float], width_px: float) -> Array:
    """What a beam has grown around a place: a Gaussian, up to 1.4 times as long as wide."""
    y, u = extent.axes()
    long = width_px * rng.uniform(1, 1.4)
    grown: Array = np.exp(-np.square((y - at_px[0]) / width_px) / 2 - np.square((u - at_px[1]) / long) / 2)
    return grown


def tailed_halo(rng: np.random.Generator, extent: Extent, at_px: tuple[float, float], width_px: float) -> Array:
    """The same with long tails and a flat top."""
    y, u = extent.axes()
    radius = np.hypot(y - at_px[0], (u - at_px[1]) / rng.uniform(1, 1.4)) / width_px
    grown: Array = 1 / (1 + (radius / 1.2) ** rng.uniform(2.5, 4))
    return grown


@dataclass(frozen=True, slots=True)
class Film:
    """The parts of one physics."""

    surface: Callable[[np.random.Generator, Extent], Array]
    edge: Callable[[np.random.Generator, Extent, float, float], Array]
    hole: Callable[[np.random.Generator, Extent, tuple[float, float], float], Array]
    halo: Callable[[np.random.Generator, Extent, tuple[float, float], float], Array]
    carbon_density: tuple[float, float]
    """Of its amorphous carbon, g/cm3"""


FILMS: dict[Physics, Film] = {
    "clouds": Film(clouds, soft_edge, round_hole, gaussian_halo, (1.7, 2.1)),
    "flakes": Film(flakes, straight_edge, polygonal_hole, tailed_halo, (2.4, 3.2)),
}


def _field(rng: np.random.Generator, extent: Extent, scale: float) -> Array:
    """Smooth noise of standard deviation 1 with features of `scale` frame widths."""
    y, u = extent.axes()
    shape = tuple(next_fast_len(n + round(3 * 128 * scale), real=True) for n in (y.size, u.size))
    rows, columns = (
        np.exp(-2 * np.square(np.pi * scale * 128 * f)).astype(np.float32) for f in (np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]))
    )
    noise = rfft2(rng.standard_normal(shape, dtype=np.float32))
    noise *= rows[:, None]
    noise *= columns
    whole = irfft2(noise, shape)
    smooth: Array = whole[: y.size, : u.size].astype(np.float64) / max(float(whole.std()), 1e-9)
    return smooth


def _anywhere(rng: np.random.Generator, extent: Extent) -> tuple[float, float]:
    return float(rng.uniform(-0.7, 0.7) * extent.frame_px), float(rng.uniform(-1, 1) * extent.half_u_px)


def _polygon(rng: np.random.Generator, y: Array, u: Array, at_px: tuple[float, float], size_px: float, ramp_px: float) -> Array:
    """1 in a convex polygon about as wide as `size_px`, with a linear ramp around it."""
    inside = np.full((y.size, u.size), np.inf)
    turn = rng.uniform(0, 2 * np.pi)
    for side in range(sides := int(rng.integers(4, 8))):
        angle = turn + 2 * np.pi * (side + rng.uniform(-0.3, 0.3)) / sides
        line = size_px / 2 * rng.uniform(0.7, 1) - (u - at_px[1]) * np.cos(angle) - (y - at_px[0]) * np.sin(angle)
        np.minimum(inside, line, out=inside)
    ramp: Array = np.clip(inside / ramp_px + 0.5, 0, 1)
    return ramp


def _fold(rng: np.random.Generator, y: Array, u: Array, extent: Extent) -> Array:
    """A ridge along a bent line."""
    turn, frame = rng.uniform(0, np.pi), extent.frame_px
    along, across = y * np.cos(turn) - u * np.sin(turn), u * np.cos(turn) + y * np.sin(turn)
    middle = rng.uniform(-0.5, 0.5) * frame + frame * rng.uniform(0, 0.1) * np.sin(along / frame * rng.uniform(2, 6))
    ridge: Array = np.exp(-(np.abs((across - middle) / (frame * rng.uniform(0.01, 0.04))) ** 1.5))
    return ridge
