"""What lies under the particle of one projection, given the series; and how well the series, and the projection alone, foretell what is
seen around the particle when it is held back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky

from aet_stream.denoise.cokriging.model import Windows, alone_covariance, own_covariance
from aet_stream.denoise.cokriging.posterior import Posterior
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

_EVERY = 3
"""Of the hidden points, one in so many is asked for its spread; the others have that of the nearest."""


@dataclass(frozen=True, slots=True)
class Held:
    """Whole points around the particle that were held back: what was foretold of them."""

    error: float
    """Root mean square of what was seen less what was foretold"""
    stated: float
    """The same as the model states it"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Of one projection."""

    background: Array
    """(rows, columns) means over points; where the vacuum is seen, what is seen"""
    sd: Array
    """(rows, columns) as the model states it; 0 where the vacuum is seen"""
    by_series: Held
    alone: Held


def draw(posterior: Posterior, seen: Seen) -> Drawn:
    """The background of one of the projections that were added."""
    hidden = np.flatnonzero(seen.hidden)
    asked = hidden[::_EVERY]
    under = Windows(seen.centres[0].ravel()[hidden], seen.centres[1].ravel()[hidden], np.ones(len(hidden)))
    sees = posterior.sees(seen, seen.windows)
    own = posterior.own(seen)
    factor = cholesky(own, lower=True, check_finite=False), True
    inverse = cho_solve(factor, np.eye(len(own)), check_finite=False)
    left = inverse @ (seen.mean - sees @ posterior.nodes_mean)
    across = own_covariance(posterior.model, under, seen.windows)
    below = posterior.sees(seen, under)
    background = seen.means.copy()
    background.ravel()[hidden] = below @ posterior.nodes_mean + across @ left
    few = across[::_EVERY]
    apart = below[::_EVERY].toarray() - (few @ inverse) @ sees
    variance = np.square(posterior.spread(apart)).sum(0) + own_covariance(posterior.model, under[:1], under[:1])[0, 0]
    variance -= ((few @ inverse) * few).sum(1)
    sd = np.zeros(seen.hidden.shape)
    if len(hidden):
        rows, columns = np.unravel_index(hidden, seen.hidden.shape)
        near = (np.square(rows[:, None] - rows[::_EVERY]) + np.square(columns[:, None] - columns[::_EVERY])).argmin(1)
        sd.ravel()[hidden] = np.sqrt(np.maximum(variance, 1e-12))[near]
    return Drawn(background, sd, *_held_back(posterior, seen, sees, own, inverse, left))


def _held_back(posterior: Posterior, seen: Seen, sees: Array, own: Array, inverse: Array, left: Array) -> tuple[Held, Held]:
    """Of the ring around the particle: by the series without it, and by the projection alone without it.

    What is left of observations when they are held back follows from the precision of all (Rasmussen & Williams 5.4.2).
    """
    ring = np.flatnonzero(seen.ring)
    whole = seen.edge[ring] == 1
    pull = posterior.spread(inverse[ring] @ sees)
    by_series = _left_out(inverse[np.ix_(ring, ring)] - pull.T @ pull, left[ring], whole)
    everything = own + alone_covariance(posterior.model, seen.tilt_deg, seen.windows)
    factor = cholesky(everything, lower=True, overwrite_a=True, check_finite=False), True
    rest = cho_solve(factor, np.eye(len(inverse)), check_finite=False)
    return by_series, _left_out(rest[np.ix_(ring, ring)], (rest @ seen.mean)[ring], whole)


def _left_out(precision: Array, weighted: Array, which: Array) -> Held:
    if not which.any():
        return Held(float("nan"), float("nan"))
    covariance = np.linalg.inv(precision)
    error = (covariance @ weighted)[which]
    return Held(float(np.sqrt(np.mean(np.square(error)))), float(np.sqrt(np.mean(np.diag(covariance)[which]))))
