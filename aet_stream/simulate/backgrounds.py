"""What lies under and around the particle. All in units of the brightest particle pixel of a series.

A background is a sum of parts, each drawn at random; `film` is the mixture to train on and to be judged by, `unseen` a family that is never
trained on: other parts, made in other ways.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from aet_stream.denoise import grid
from aet_stream.projection import Array
from aet_stream.simulate.films import FILMS, Extent, ThicknessMap, normalised
from aet_stream.simulate.parts import Blob, Lie, Slab, View

_PUBLISHED_FRAME_PX = 256
_COARSE = 64
"""Smooth parts are made on so many blocks and drawn by splines: they have no finer detail."""


def gaussian(rng: np.random.Generator, size_px: int) -> Array:
    """The published recipe to the letter: gaussian_filter(randn, sigma in 10..29), for 256 px frames; sigma grows with the frame."""
    sigma = int(rng.integers(10, 30)) * size_px / _PUBLISHED_FRAME_PX
    noise = rng.standard_normal((size_px, size_px)).astype(np.float32)
    smooth = _smoother(size_px, sigma) @ noise @ _smoother(size_px, sigma).T
    published: Array = smooth * np.float32(size_px / _PUBLISHED_FRAME_PX)  # a wider filter averages more away: keep the published strength
    return published


@lru_cache(maxsize=64)
def _smoother(size_px: int, sigma: float) -> Array:
    """(size_px, size_px) float32: scipy's gaussian_filter1d as a matrix, which is much faster for wide filters."""
    matrix: Array = gaussian_filter1d(np.eye(size_px), sigma, axis=0).astype(np.float32)
    return matrix


def film(rng: np.random.Generator, size_px: int) -> Array:
    """A support film: uneven thickness, speckle, wedge, its edge, contamination, a pedestal; peak 8-100 % of the particle."""
    b = np.zeros((size_px, size_px), np.float32)
    for part, chance in ((thickness, 1.0), (edge, 0.35), (wedge, 0.5), (halo, 0.5), (speckle, 0.3)):
        if rng.random() < chance:
            b += part(rng, size_px)
    b -= b.min()
    scaled: Array = b / max(float(b.max()), 1e-6) * np.float32(np.exp(rng.uniform(np.log(0.08), 0)))
    return scaled + pedestal(rng)


def thickness(rng: np.random.Generator, size_px: int) -> Array:
    """One to three layers of clouds, features of 1/30 to 1/2 of the frame."""
    b = np.zeros((size_px, size_px), np.float32)
    for _ in range(rng.integers(1, 4)):
        scale = float(np.exp(rng.uniform(np.log(0.03), np.log(0.5))))
        b += np.float32(0.15 * rng.uniform(0.2, 1)) * _clouds(rng, size_px, scale)
    return b


def speckle(rng: np.random.Generator, size_px: int) -> Array:
    """Amorphous carbon: the power of its texture falls with a power of frequency, down to details of 1/25 of the frame."""
    power = rng.uniform(1.0, 2.5)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(2 * _COARSE), np.fft.rfftfreq(2 * _COARSE), indexing="ij"))
    shape = np.exp(-((f * _COARSE / 25) ** 4)) / np.maximum(f, 1 / _COARSE) ** power
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((2 * _COARSE,) * 2)) * shape)[:_COARSE, :_COARSE]
    texture = _drawn((noise / noise.std()).astype(np.float32), size_px)
    return texture * np.float32(0.1 * rng.uniform(0.2, 1))


def edge(rng: np.random.Generator, size_px: int) -> Array:
    """Where the film ends: a step over 1/30 to 1/4 of the frame along a bent line."""
    y, x = _axes(size_px)
    turn, width = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(1 / 120), np.log(1 / 15)))
    distance = x * np.cos(turn) + y * np.sin(turn) - rng.uniform(-0.45, 0.45)
    distance = distance + np.float32(rng.uniform(0, 0.04)) * _clouds(rng, size_px, float(rng.uniform(0.08, 0.3)))
    step: Array = np.float32(rng.uniform(0.2, 1)) / (1 + np.exp(-np.clip(distance / np.float32(width), -30, 30)))
    return step


def wedge(rng: np.random.Generator, size_px: int) -> Array:
    """A film that gets thicker to one side."""
    y, x = _axes(size_px)
    turn = rng.uniform(0, 2 * np.pi)
    return np.float32(rng.uniform(0, 0.8)) * (x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn)))


def halo(rng: np.random.Generator, size_px: int) -> Array:
    """Contamination grown by the beam around what was looked at: a Gaussian of 0.12 to 0.45 frame widths, up to twice as long as wide."""
    y, x = _axes(size_px)
    cx, cy = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    long = np.exp(rng.uniform(np.log(0.12), np.log(0.45)))
    short = long * np.float32(rng.uniform(0.5, 1))
    turn = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = ((x - cx) * c + (y - cy) * s) / long, ((y - cy) * c - (x - cx) * s) / short
    grown: Array = np.float32(rng.uniform(0.2, 0.8)) * np.exp(-(u * u + v * v) / 2)
    return grown


def pedestal(rng: np.random.Generator) -> np.float32:
    """The detector's offset; in half of the frames there is none."""
    return np.float32(rng.uniform(0, 0.5) * (rng.random() < 0.5))


def unseen(rng: np.random.Generator, size_px: int) -> Array:
    """The family kept out of all training: a cubic surface, the ring a parked beam leaves, a round hole in the film, ripples."""
    y, x = _axes(size_px)
    b = np.zeros((size_px, size_px), np.float32)
    powers = [(i, j) for i in range(4) for j in range(4 - i) if i + j]
    for i, j in powers:
        b += np.float32(rng.normal(0, 0.5 ** (i + j) * 2)) * (2 * x) ** i * (2 * y) ** j * np.float32(0.3)
    radius = np.hypot(x - np.float32(rng.uniform(-0.3, 0.3)), y - np.float32(rng.uniform(-0.3, 0.3)))
    parts = rng.random(3) < 0.4
    parts[rng.integers(3)] = True
    if parts[0]:
        ring, width = rng.uniform(0.15, 0.45), rng.uniform(0.03, 0.1)
        b += np.float32(rng.uniform(0.1, 0.5)) / (1 + ((radius - np.float32(ring)) / np.float32(width)) ** 2)
    if parts[1]:
        hole, width = rng.uniform(0.3, 0.7), rng.uniform(0.01, 0.04)
        b += np.float32(rng.uniform(0.2, 0.6)) * np.tanh((radius - np.float32(hole)) / np.float32(width))
    if parts[2]:
        turn, waves = rng.uniform(0, np.pi), rng.uniform(1.5, 7)
        phase = 2 * np.pi * waves * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 2 * np.pi)
        b += np.float32(rng.uniform(0.03, 0.15)) * np.sin(phase).astype(np.float32)
    b -= b.min()
    scaled: Array = b / max(float(b.max()), 1e-6) * np.float32(np.exp(rng.uniform(np.log(0.08), 0)))
    return scaled + pedestal(rng)


def slab(rng: np.random.Generator, size_px: int) -> Array:
    """One view of films that turn with the specimen, at any tilt: foreshortened, thick, at an edge, contaminated; peak 3 to 300 %."""
    tilt_deg = float(rng.uniform(-78, 78))
    view = View(tilt_deg, 0.0, size_px, 1.0)
    b = np.zeros((size_px, size_px))
    for _ in range(1 if rng.random() < 0.8 else 2):
        b += _slab(rng, view)
    if rng.random() < 0.2:
        b += _blob(rng, size_px).seen(view)
    return b.astype(np.float32) + pedestal(rng)


def _slab(rng: np.random.Generator, view: View) -> Array:
    size_px, films = view.size_px, FILMS["clouds"]
    lie = Lie(rng.uniform(-0.5, 0.5) * size_px, rng.normal(0, 3), rng.normal(0, 0.04))
    cosine, sine = lie.turned(view)
    extent = Extent(size_px, size_px * (0.5 + 0.6 * abs(sine)) / cosine)
    values = normalised(films.surface(rng, extent), extent) * rng.uniform(0.1, 1)
    if rng.random() < 0.6:
        values = values + rng.uniform(0, 2)
    if rng.random() < 0.3:
        values = values + rng.uniform(0, 0.5) * extent.axes()[1] / size_px

    def somewhere() -> tuple[float, float]:
        """(y, u) of a place that is seen in the frame, rather in its middle."""
        y, x = np.clip(rng.normal(0, 0.22, 2), -0.5, 0.5) * size_px
        return float(y), float((x - (lie.height_px + lie.slope * y) * sine) / cosine)

    if rng.random() < 0.45:
        turn, (y, u) = rng.uniform(0, 2 * np.pi), somewhere()
        values = values * films.edge(rng, extent, u * np.cos(turn) + y * np.sin(turn), turn)
    if rng.random() < 0.1:
        values = values * films.hole(rng, extent, somewhere(), rng.uniform(0.12, 0.45) * size_px)
    if rng.random() < 0.4:
        values = values + rng.uniform(0.3, 2) * films.halo(rng, extent, somewhere(), rng.uniform(0.08, 0.25) * size_px)
    seen = Slab(ThicknessMap(values - values.min(), extent, order=1), lie).seen(view)
    strength = float(np.exp(rng.uniform(np.log(0.02), np.log(0.6)))) / cosine  # of what differs: more at high tilt
    scaled: Array = min(strength, 2.5) * seen / max(float(np.ptp(seen)), 1e-6)
    return scaled


def _blob(rng: np.random.Generator, size_px: int) -> Blob:
    """Contamination around a particle in the middle, as it turns with it."""
    wide = rng.uniform(0.08, 0.3, 3) * size_px
    at = rng.normal(0, 0.06, 3) * size_px
    return Blob(rng.uniform(0.02, 0.25), (float(at[0]), float(at[1]), float(at[2])), (float(wide[0]), float(wide[1]), float(wide[2])))


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {"gaussian": gaussian, "film": film, "slab": slab, "unseen": unseen}


def background(rng: np.random.Generator, kind: str, size_px: int) -> Array:
    """(size_px, size_px) float32 of one of KINDS.

    Raises
    ------
    ValueError : no such kind
    """
    if kind not in KINDS:
        raise ValueError(f"background {kind!r}: choose one of {', '.join(KINDS)}")
    return KINDS[kind](rng, size_px)


def _clouds(rng: np.random.Generator, size_px: int, scale: float) -> Array:
    """Smooth noise of standard deviation 1, with features of `scale` frame widths."""
    wide = 2 * _COARSE
    noise = gaussian_filter(rng.standard_normal((wide, wide)).astype(np.float32), scale * _COARSE, mode="wrap", truncate=3)
    return _drawn(noise[:_COARSE, :_COARSE] / max(float(noise.std()), 1e-6), size_px)


def _drawn(coarse: Array, size_px: int) -> Array:
    """(size_px, size_px) float32 by splines."""
    block = -(-size_px // _COARSE)
    return grid.draw(coarse, block, (size_px, size_px))


def _axes(size_px: int) -> tuple[Array, Array]:
    """Columns and rows of -0.5..0.5, float32."""
    at = np.arange(size_px, dtype=np.float32) / np.float32(size_px) - np.float32(0.5)
    return at[:, None], at[None, :]
