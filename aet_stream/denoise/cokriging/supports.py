"""Where the particle is, as the series has it.

At steep tilts a film is as bright as the particle: the network takes it for particle, or the particle for film. The other projections know
better. They say where in space the particle is (its visual hull: Laurentini, IEEE Trans. Pattern Anal. Mach. Intell. 16 (1994) 150), by a
majority, for some of them are wrong; and what they say of the films tells particle from film. So what lies beside the hull is vacuum, and
what lies within and is brighter than the films and the projection's own vacuum foretell is particle. A hull is believed if most silhouettes
lie in it, and only a good part of a silhouette is added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.ndimage import binary_dilation, uniform_filter

from aet_stream.denoise.cokriging.model import Windows, own_covariance
from aet_stream.denoise.cokriging.posterior import Posterior
from aet_stream.denoise.cokriging.seen import Seen, in_blocks
from aet_stream.denoise.fusion.kriging import SPACING
from aet_stream.projection import Array

_ALL, _SURELY, _PERHAPS = 0.9, 0.8, 0.7
"""Of the projections that see a place, shares that have the particle there: where it may be at all, where it is, and to try the hull by"""
_WELL_FOUNDED = 0.9
"""Share of a silhouette that lies in the hull, in the median of the projections"""
_STEP = 0.35
"""Points between places in space: less than the edge of a block, so that their shadow has no gaps"""
_MUCH, _BESIDE = 0.1, 0.02
"""Of a silhouette: parts that are not missed, and that need not lie in the hull"""
_BRIGHTER, _BRIGHT = 4.0, 0.03
"""Standard deviations, and share of the particle's range, above what is foretold: particle"""
_OUTLIER = 3.0
"""Standard deviations above what the others foretell, beyond which a window is no vacuum"""
_ROUNDS = 4
_EVERY = 2
"""Of the points, one in so many along either side is asked for its spread; those next to it have the same."""


def supported(posterior: Posterior, series: Sequence[Seen]) -> list[Seen]:
    """The same, but where the network has taken a good part of the particle for film, or a film for particle. One that was `lost` and
    whose silhouette misses nothing is lost no more: its vacuum is vacuum.

    Parameters
    ----------
    posterior : of these
    """
    hull = Hull.of(series)
    return [_supported(posterior, seen, hull) for seen in series] if hull is not None else list(series)


def _supported(posterior: Posterior, seen: Seen, hull: Hull) -> Seen:
    size = np.count_nonzero(seen.particle)
    much, particle = _MUCH * size, seen.particle & hull.shadow(seen, _ALL)
    if size - np.count_nonzero(particle) <= _BESIDE * size:
        particle = seen.particle
    whole = True
    inside = hull.shadow(seen, _SURELY) & ~particle
    if np.count_nonzero(inside) > much:
        hiding = seen.hiding(particle)
        missed = inside & in_blocks(_above(posterior, hiding) > _BRIGHT / 2)  # to know that surely costs much more
        if np.count_nonzero(missed) > much:
            missed = inside & in_blocks(_bright(posterior, hiding))
        whole = bool(np.count_nonzero(missed) <= much)
        if not whole:  # with its rim, which is too faint
            particle = particle | (inside & binary_dilation(missed, iterations=SPACING))
    return seen if particle is seen.particle and not (seen.lost and whole) else seen.hiding(particle)


def found_elsewhere(before: Seen, after: Seen) -> bool:
    """Is a good part of the particle where it was not?"""
    return bool(np.count_nonzero(before.particle ^ after.particle) > _MUCH * np.count_nonzero(before.particle))


@dataclass(frozen=True, slots=True)
class Hull:
    """Where in space the particle is."""

    along: Array
    """(n,) points along the axis"""
    places: Array
    """(m,) points across it, and towards the viewer"""
    votes: Array
    """(n, m, m) share of the projections that have the particle there, of those that see it"""

    @classmethod
    def of(cls, series: Sequence[Seen]) -> Hull | None:
        """From those that have not lost the particle; None where they do not agree."""
        counting = [seen for seen in series if not seen.lost and seen.particle.any()]
        half = max(series[0].hidden.shape) / 2
        along, places = np.arange(-half + 0.5 / SPACING, half, 1 / SPACING), np.arange(-half, half + _STEP, _STEP)
        shape = (len(along), len(places), len(places))
        votes, asked = np.zeros(shape), np.zeros(shape)
        for seen in counting:
            across = np.broadcast_to(_across(places, seen.tilt_deg), shape).ravel()
            inside, at = seen.block_places(np.repeat(along, len(places) ** 2), across)
            voted = np.zeros(votes.size)
            voted[inside] = seen.particle[at]
            votes += voted.reshape(shape)
            asked += inside.reshape(shape)
        hull = cls(along, places, votes / np.maximum(asked, 1))
        within = [np.mean(hull.shadow(seen, _PERHAPS)[seen.particle]) for seen in counting]
        return hull if within and np.median(within) > _WELL_FOUNDED else None

    def shadow(self, seen: Seen, share: float) -> Array:
        """Bool: blocks of a projection where places of so many votes are seen, and those next to them."""
        y, x, z = np.nonzero(self.votes >= share)
        _, at = seen.block_places(self.along[y], _across(self.places, seen.tilt_deg)[x, z])
        shadow = np.zeros(seen.particle.shape, bool)
        shadow[at] = True
        wider: Array = binary_dilation(shadow)
        return wider


def _across(places: Array, tilt_deg: float) -> Array:
    """(m, m): of places across the axis and towards the viewer, where they are seen."""
    angle = np.radians(tilt_deg)
    across: Array = places[:, None] * np.cos(angle) + places * np.sin(angle)
    return across


def _above(posterior: Posterior, seen: Seen) -> Array:
    """(rows, columns) points less the films, and less what most of the vacuum is more than they."""
    off = seen.mean - posterior.sees(seen, seen.windows) @ posterior.nodes_mean
    films = posterior.sees(seen, _points(seen)) @ posterior.nodes_mean
    above: Array = seen.means - films.reshape(seen.means.shape) - np.median(off)
    return above


def _points(seen: Seen) -> Windows:
    """All of a projection, the hidden ones as well."""
    return Windows(seen.centres[0].ravel(), seen.centres[1].ravel(), np.ones(seen.hidden.size))


def _bright(posterior: Posterior, seen: Seen) -> Array:
    """(rows, columns) bool: points brighter than the films foretell, and the own part of a projection by what of its vacuum agrees with
    them."""
    shape, windows = seen.hidden.shape, seen.windows
    every = _points(seen)
    below = posterior.sees(seen, every)
    asked = below[np.arange(seen.hidden.size).reshape(shape)[::_EVERY, ::_EVERY].ravel()]
    variances = np.square(posterior.spread(asked.toarray())).sum(0).reshape(-(-shape[0] // _EVERY), -1)
    films = np.kron(variances, np.ones((_EVERY, _EVERY)))[: shape[0], : shape[1]].ravel()
    _, near = seen.places(windows.along, windows.across)
    at = np.ravel_multi_index(near, shape)
    noise = seen.measured + posterior.model.nugget**2 + films[at]
    off = seen.mean - posterior.sees(seen, windows) @ posterior.nodes_mean
    covariance, known = own_covariance(posterior.model, windows, windows), own_covariance(posterior.model, every, windows)
    before = own_covariance(posterior.model, every[:1], every[:1])[0, 0]
    own, left = np.full(len(films), np.median(off)), np.full(len(films), before)
    vacuum = np.zeros(len(off), bool)
    for _ in range(_ROUNDS):
        agrees = off - own[at] < _OUTLIER * np.sqrt(left[at] + noise)
        if (agrees == vacuum).all() or not agrees.any():
            break
        vacuum = agrees
        factor = cholesky(covariance[np.ix_(vacuum, vacuum)] + np.diag(noise[vacuum]), lower=True, check_finite=False), True
        weighed = cho_solve(factor, np.column_stack([off[vacuum], known[:, vacuum].T]), check_finite=False)
        own = known[:, vacuum] @ weighed[:, 0]
        left = np.maximum(before - np.einsum("ij,ji->i", known[:, vacuum], weighed[:, 1:]), 0.0)
    above = seen.means.ravel() - below @ posterior.nodes_mean - own
    enough = np.fmax(_BRIGHTER * np.sqrt(films + left + seen.blocks.points_noise.ravel()), _BRIGHT)
    bright = (above > enough).reshape(shape)
    crowded: Array = bright & (uniform_filter(bright.astype(np.float64), 3, mode="constant") > 0.5)
    return crowded
