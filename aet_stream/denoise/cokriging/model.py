"""The model: films that turn with the specimen, and a smooth part of each projection's own.

    mean(tilt, across, along) = pedestal + own pedestal + sum over films of film(u, along) / cos(tilt + turn) + own part + noise
    u = (across - (height + slope along) sin(tilt + turn)) / cos(tilt + turn)

A film and an own part are Gaussian processes, sums of squared exponentials of fixed lengths whose amplitudes the vacuum decides. All
lengths are in points (seen.py), values in units of the series (its particle's range).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aet_stream.projection import Array

FILM_LENGTHS = np.array([1.25, 2.75, 6.25, 16.25])
OWN_LENGTHS = np.array([1.75, 5.0, 15.0])
LEVEL = 1.0
"""Standard deviation of a film's mean and of the common pedestal: both are unknown."""


@dataclass(frozen=True, slots=True)
class Film:
    """One thin film."""

    height: float
    """Of where it crosses the tilt axis' plane of view, points; towards the viewer is positive"""
    amplitudes: Array
    """(len(FILM_LENGTHS),) standard deviations"""
    growing: bool = False
    """It comes with time, from nothing at the first projection: contamination"""

    def weight(self, time: float | Array) -> float | Array:
        """How much of it there is at a time, 0..1 from the first projection to the last."""
        return time if self.growing else np.ones_like(time)


@dataclass(frozen=True, slots=True)
class Model:
    """Geometry and amplitudes."""

    films: tuple[Film, ...]
    turn_deg: float
    """By which the films are turned about the tilt axis where the stage says 0"""
    slope: float
    """Height by length along the tilt axis"""
    own: Array
    """(len(OWN_LENGTHS),) standard deviations of the own part"""
    offset: float
    """Standard deviation of the own pedestals"""
    nugget: float
    """Standard deviation of what no two windows share, beyond noise"""

    @property
    def film_sd(self) -> float:
        """Of all films together."""
        return float(np.sqrt(sum(np.square(film.amplitudes).sum() for film in self.films)))

    def film_sd_at(self, tilt_deg: float, time: float) -> float:
        """The same as a projection sees them."""
        thick = 1 / np.cos(np.radians(tilt_deg + self.turn_deg))
        return float(thick * np.sqrt(sum(film.weight(time) ** 2 * np.square(film.amplitudes).sum() for film in self.films)))

    @property
    def own_sd(self) -> float:
        return float(np.sqrt(np.square(self.own).sum()))

    @property
    def strongest(self) -> Model:
        """With the film alone that varies most, of those that stay."""
        staying = [film for film in self.films if not film.growing]
        return replace(self, films=(max(staying, key=lambda film: float(np.square(film.amplitudes).sum())),))

    def with_film(self, height: float, *, growing: bool = False) -> Model:
        """One more film, alike but fainter."""
        film = Film(height, self.films[0].amplitudes.max() * np.full(len(FILM_LENGTHS), 0.3), growing)
        return replace(self, films=(*self.films, film))


@dataclass(frozen=True, slots=True)
class Turned:
    """Places of one or more projections as a film has them."""

    cos: Array
    sin: Array
    u: Array
    """(n,) across the film, points"""

    @classmethod
    def of(cls, tilts_deg: Array | float, along: Array, across: Array, height: float, turn_deg: float, slope: float) -> Turned:
        angle = np.radians(np.asarray(tilts_deg) + turn_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        return cls(cos, sin, (across - (height + slope * along) * sin) / cos)


@dataclass(frozen=True, slots=True)
class Windows:
    """Squares in which a background is seen, or asked for."""

    along: Array
    """(n,) centres, points"""
    across: Array
    edge: Array
    """(n,) points"""

    def __getitem__(self, which: slice | Array) -> Windows:
        return Windows(self.along[which], self.across[which], self.edge[which])


def own_covariance(model: Model, one: Windows, other: Windows) -> Array:
    """(n, m) float32 between windows of one projection: of its own part and pedestal."""
    wide = _wide(one, other)
    apart = _apart(one.along, other.along) + _apart(one.across, other.across)
    covariance = np.full(apart.shape, model.offset**2, np.float32)
    for length, sd in zip(OWN_LENGTHS, model.own, strict=True):
        broader = 1 / (np.float32(length**2) + wide)
        covariance += np.exp(apart * broader * np.float32(-0.5)) * broader * np.float32(sd**2 * length**2)
    return covariance


def film_covariance(model: Model, tilt_deg: float, time: float, one: Windows, other: Windows) -> Array:
    """(n, m) float64 between windows of one projection: of its films and the common pedestal."""
    thick = 1 / np.cos(np.radians(tilt_deg + model.turn_deg))
    wide = _wide(one, other)
    along2 = _apart(one.along, other.along)
    covariance = np.zeros_like(along2)
    for film in model.films:
        u, v = (Turned.of(tilt_deg, at.along, at.across, film.height, model.turn_deg, model.slope).u for at in (one, other))
        across2 = _apart(u, v)
        for length, sd in zip(FILM_LENGTHS, film.amplitudes, strict=True):
            y, x = 1 / (np.float32(length**2) + wide), 1 / (np.float32(length**2) + wide * np.float32(thick**2))
            part = np.exp((along2 * y + across2 * x) * np.float32(-0.5)) * np.sqrt(y * x)
            covariance += part * np.float32((sd * length * thick * film.weight(time)) ** 2)
    weights = [film.weight(time) * thick for film in model.films]
    return covariance + np.float64(LEVEL**2 * (1 + np.square(weights).sum()))


def _apart(one: Array, other: Array) -> Array:
    """(n, m) float32 squared distances"""
    apart: Array = np.square(one.astype(np.float32)[:, None] - other.astype(np.float32))
    return apart


def _wide(one: Windows, other: Windows) -> Array:
    """(n, m) float32: variance of both windows"""
    wide: Array = (np.square(one.edge)[:, None] / 12 + np.square(other.edge) / 12).astype(np.float32)
    return wide
