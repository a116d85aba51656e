"""What one projection shows of its background: means of blocks of its vacuum, up to the particle's rim.

Places are counted in points, one thirty-second of the frame's longer edge: two blocks of features.Blocks. The axis of places is the tilt
axis: `across` it and `along` it, from the middle of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import binary_dilation

from aet_stream.denoise import features
from aet_stream.denoise.cokriging.model import Windows
from aet_stream.denoise.fusion.kriging import SPACING
from aet_stream.projection import Array

_RIM = 0.0
"""Logit of the support up to which single blocks at the particle's rim count as vacuum."""
_MARGIN = 2
"""Blocks around the support that are not asked either, where it is doubted"""
_SPILT = 0.015
"""Particle in the mean of such a block (standard deviation, normalised), by its odds to hold any; see fusion/kriging.py."""
_UNSURE = 3.0
"""Logit beyond which the odds do not matter any more."""
_ROUNDING = 1e-5
"""Noise that every mean has at least, as a share of the frame's range."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """All of one projection, particle and vacuum: blocks of features.Blocks, as many as fill points."""

    means: Array
    """(rows, columns)"""
    noise: Array
    """(rows, columns) variances of the means, as their pixels have it"""
    logit: Array
    """(rows, columns) of the particle's support, by the network"""
    centres: Array
    """(2, rows, columns): along and across of every block, points"""
    span: float
    """Range of all the frame's block means"""

    @property
    def points_noise(self) -> Array:
        """(rows, columns) variances of the means over points."""
        noise: Array = pooled(self.noise) / SPACING**2
        return noise


@dataclass(frozen=True, slots=True)
class Seen:
    """The background of one projection, where it is seen. Values in counts."""

    blocks: Blocks
    particle: Array
    """(rows, columns) bool: blocks in which the particle is"""

    tilt_deg: float
    time: float
    """0..1 from the first projection of the series to the last"""
    along: Array
    """(n,) points, centres of windows; those of the ring around the particle come last"""
    across: Array
    """(n,) points"""
    edge: Array
    """(n,) edges of the windows, points: 1, or a half at the rim"""
    mean: Array
    """(n,) means over the windows"""
    noise: Array
    """(n,) their variances, with what makes them doubtful (doubted.py)"""
    measured: Array
    """(n,) their variances as their pixels have it"""
    means: Array
    """(rows, columns) of every point, particle and all"""
    hidden: Array
    """(rows, columns) bool: where the particle is, with its rim"""
    centres: Array
    """(2, rows, columns): along and across of every point"""
    ring_from: int
    """Windows from here on lie next to the particle, all of its rim among them: a test holds them back"""
    shift: tuple[float, float] = (0.0, 0.0)
    """Along and across, points: how far the specimen lies from where it turns about the middle; taken off all places"""
    gain: float = 1.0
    """Of the beam: how bright the film is, to what it is in the others"""
    doubt: float = 0.0
    """By how much the others foretell its vacuum worse than they state (doubted.py); it is in `noise`"""
    lost: bool = False
    """Its particle passes for background: it says nothing of the films"""
    off: float = float("nan")
    """Error of the ring around the particle, over what is stated, before it was doubted; NaN: there is none, or it was not tried"""

    @property
    def windows(self) -> Windows:
        return Windows(self.along, self.across, self.edge)

    @property
    def span(self) -> float:
        """Range of the frame's block means"""
        return self.blocks.span

    def shows(self, along: Array, across: Array) -> Array:
        """(n,) bool: is there vacuum at these places?"""
        inside, at = self.places(along, across)
        shown = np.zeros(along.shape, bool)
        shown[inside] = ~self.hidden[at]
        return shown

    def places(self, along: Array, across: Array) -> tuple[Array, tuple[Array, Array]]:
        """((n,) bool: do these lie in the frame?, the rows and columns of the points nearest to those that do)."""
        return _nearest(self.centres, along, across)

    def block_places(self, along: Array, across: Array) -> tuple[Array, tuple[Array, Array]]:
        """The same of the nearest blocks."""
        return _nearest(self.blocks.centres, along, across)

    def hiding(self, particle: Array) -> Seen:
        """With the particle in other blocks; what was doubted of its vacuum is forgotten."""
        fresh = _chosen(self.blocks, particle, self.tilt_deg, self.time)
        return replace(fresh, shift=self.shift, gain=self.gain)

    def wary(self) -> Seen:
        """With a margin around the particle."""
        return self.hiding(binary_dilation(self.particle, iterations=_MARGIN))

    def thinned(self, every: int) -> Seen:
        """With one window in so many, but all of the ring."""
        kept = np.r_[0 : self.ring_from : every, self.ring_from : len(self.mean)]
        return replace(
            self, along=self.along[kept], across=self.across[kept], edge=self.edge[kept], mean=self.mean[kept], noise=self.noise[kept],
            measured=self.measured[kept], ring_from=-(-self.ring_from // every),
        )  # fmt: skip


_RING = 2
"""Points around the particle that belong to the ring."""


def look(pixels: Array, logit: Array, tilt_deg: float, *, time: float = 0.0, level: float = 0.0, axis_deg: float = 0.0) -> Seen:
    """Observe the vacuum of one projection.

    Parameters
    ----------
    pixels : (height, width) counts
    logit : (rows, columns) of the particle's support on the grid of features.Blocks
    time : 0..1 from the first projection of the series to the last
    level : counts that are taken off everything first
    axis_deg : where the tilt axis lies, from +y towards -x
    """
    blocks = features.describe((pixels - level).astype(np.float32))
    block = blocks.block_px
    rows, columns = (edge // (block * SPACING) for edge in pixels.shape)
    means, differences = (_whole(surface, rows, columns) * blocks.span for surface in (blocks.statistics[0], blocks.statistics[4]))
    logit = _whole(logit, rows, columns)
    centres = np.stack(_places(logit.shape, pixels.shape, block, axis_deg))
    seen = Blocks(means + blocks.low, np.square(differences / block), logit, centres, blocks.span)
    return _chosen(seen, logit > _RIM, tilt_deg, time)


def _nearest(centres: Array, along: Array, across: Array) -> tuple[Array, tuple[Array, Array]]:
    origin = centres[:, 0, 0]
    steps = np.stack([centres[:, 1, 0] - origin, centres[:, 0, 1] - origin], axis=1)
    at = np.round(np.linalg.solve(steps, np.stack([along, across]) - origin[:, None])).astype(np.int64)
    inside = np.logical_and.reduce((at >= 0) & (at < np.array(centres.shape[1:])[:, None]))
    return inside, (at[0, inside], at[1, inside])


def _chosen(blocks: Blocks, particle: Array, tilt_deg: float, time: float) -> Seen:
    """Whole points of vacuum, and single blocks of it next to the particle."""
    safe = ~binary_dilation(particle)
    seen: Array = np.all(in_points(safe), axis=(1, 3))
    spilt = np.square(_SPILT * np.exp(np.minimum(blocks.logit, _UNSURE)) * blocks.span)
    rim = in_blocks(~seen) & ~particle
    coarse = np.stack([pooled(places) for places in blocks.centres])
    means = pooled(blocks.means)
    far = seen & ~binary_dilation(~seen, iterations=_RING)
    parts = [
        (coarse, means, blocks.points_noise, far),
        (coarse, means, blocks.points_noise, seen & ~far),
        (blocks.centres, blocks.means, blocks.noise + spilt, rim),
    ]
    along, across, mean, variance = (
        np.concatenate([surface[which] for surface, which in each])
        for each in zip(*([(at[0], which), (at[1], which), (m, which), (v, which)] for at, m, v, which in parts), strict=True)
    )
    variance = variance + np.square(_ROUNDING * blocks.span)
    return Seen(
        blocks=blocks,
        particle=particle,
        tilt_deg=tilt_deg,
        time=time,
        along=along,
        across=across,
        edge=np.repeat([1.0, 1 / SPACING], [seen.sum(), rim.sum()]),
        mean=mean,
        noise=variance,
        measured=variance,
        means=means,
        hidden=~seen,
        centres=coarse,
        ring_from=int(far.sum()),
    )


def in_points(blocks: Array) -> Array:
    """(rows, SPACING, columns, SPACING): the blocks of each point."""
    return blocks.reshape(blocks.shape[0] // SPACING, SPACING, -1, SPACING)


def pooled(blocks: Array) -> Array:
    """(rows, columns): means over points, of those over blocks."""
    means: Array = in_points(blocks).mean((1, 3))
    return means


def in_blocks(points: Array) -> Array:
    """The blocks of each point, with its value."""
    blocks: Array = np.kron(points, np.ones((SPACING, SPACING), points.dtype))
    return blocks


def point_px(shape: tuple[int, int]) -> int:
    """Edge of a point of a frame of this shape, px."""
    return SPACING * features.block_px(shape)


def _whole(surface: Array, rows: int, columns: int) -> Array:
    """Only blocks that lie in the frame with all of their point."""
    kept: Array = surface[: rows * SPACING, : columns * SPACING].astype(np.float64)
    return kept


def _places(shape: tuple[int, ...], frame: tuple[int, ...], block: int, axis_deg: float) -> tuple[Array, Array]:
    """(rows, columns) each: along and across the axis, points, of the blocks' centres."""
    point = block * SPACING
    y, x = (((np.arange(n) + 0.5) * block - edge / 2) / point for n, edge in zip(shape, frame, strict=True))
    turn = np.radians(axis_deg)
    return y[:, None] * np.cos(turn) - x * np.sin(turn), x * np.cos(turn) + y[:, None] * np.sin(turn)
