"""The background of one projection, under its particle as well, given the series; and how well the series, and the projection alone,
foretell what is seen around the particle when it is held back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from aet_stream.denoise.cokriging.model import Windows, film_covariance, own_covariance
from aet_stream.denoise.cokriging.posterior import Posterior
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.denoise.fusion.kriging import SPACING
from aet_stream.projection import Array

_JITTER = 1e-6
"""Share of their variance that windows do not share, for the sake of single precision"""
_DOUBTED = 0.4
"""Of what is guessed of the films because no projection shows it: what lies there, by the particle itself, need not be like the rest"""
_EVERY, _EVERY_OF_VACUUM = 3, 24
"""Of the hidden points, one in so many is asked for its spread; the others have that of the nearest. Of those of vacuum a few say it of
all."""


@dataclass(frozen=True, slots=True)
class Held:
    """Whole points around the particle that were held back: what was foretold of them."""

    error: float
    """Root mean square of what was seen less what was foretold"""
    stated: float
    """The same as the model states it"""

    @classmethod
    def of(cls, errors: Array, variances: Array) -> Held:
        return cls(float(np.sqrt(np.mean(np.square(errors)))), float(np.sqrt(np.mean(variances))))


UNKNOWN = Held(float("nan"), float("nan"))
"""There is no vacuum around the particle."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Of one projection."""

    background: Array
    """Means over blocks, of which a point has `SPACING` along either side: what is steep shows a film as much narrower, and points would be
    too coarse for it"""
    sd: Array
    """(rows, columns) as the model states it, with what is doubted of its guesses; 0 where the vacuum is seen"""
    by_series: Held
    alone: Held
    series_sd: float
    """Under the particle, as the model states it; root mean square"""
    alone_sd: float
    """The same of this projection alone"""
    vacuum_sd: float
    """Where the vacuum is seen, as the model states it; root mean square"""
    guessed: float
    """What is doubted because no projection shows it, under the particle; root mean square"""
    unseen: float
    """Share of what the particle hides that no projection shows, of the film that varies most"""
    film_sd: float
    """Of the films as this projection sees them"""

    @property
    def unseen_sd(self) -> float:
        """As much as films vary that no projection shows there: anything that they are elsewhere may lie there. By the square of the share
        that is unseen: a little of it is known from what lies beside."""
        return self.unseen**2 * self.film_sd


def draw(posterior: Posterior, seen: Seen) -> Drawn:
    """The background of one of the projections that were added."""
    hidden, blocks = np.flatnonzero(seen.hidden), seen.blocks.centres
    every = Windows(blocks[0].ravel(), blocks[1].ravel(), np.full(blocks[0].size, 1 / SPACING))
    few, vacuum = hidden[::_EVERY], np.flatnonzero(~seen.hidden)[::_EVERY_OF_VACUUM]
    asking = np.concatenate([few, vacuum])
    windows = Windows(seen.centres[0].ravel()[asking], seen.centres[1].ravel()[asking], np.ones(len(asking)))
    under = windows[: len(few)]
    ring = np.arange(seen.ring_from, len(seen.mean))
    sees, below = posterior.sees(seen, seen.windows), posterior.sees(seen, windows)
    own = posterior.own(seen)
    factor = cholesky(own, lower=True, check_finite=False)
    across = own_covariance(posterior.model, windows, seen.windows)
    asked = np.zeros((len(own), 1 + len(asking) + len(ring)))
    asked[:, 0] = seen.mean - sees @ posterior.nodes_mean
    asked[:, 1 : 1 + len(asking)] = across.T
    asked[ring, 1 + len(asking) + np.arange(len(ring))] = 1
    weighed = cho_solve((factor, True), asked, overwrite_b=True, check_finite=False)
    left, by_asking, by_ring = weighed[:, 0], weighed[:, 1 : 1 + len(asking)], weighed[:, 1 + len(asking) :]
    background = posterior.sees(seen, every) @ posterior.nodes_mean + own_covariance(posterior.model, every, seen.windows) @ left
    background = background.reshape(blocks[0].shape)
    sd = np.zeros(seen.hidden.shape)
    apart = below.toarray() - by_asking.T @ sees
    variance = np.square(posterior.spread(apart)).sum(0) + own_covariance(posterior.model, windows[:1], windows[:1])[0, 0]
    variance = np.maximum(variance - np.einsum("ij,ji->i", across, by_asking), 1e-12)
    vacuum_sd = float(np.sqrt(np.mean(variance[len(few) :]))) if len(vacuum) else 0.0
    if len(hidden):
        guessed = _DOUBTED * posterior.guessed(below[: len(few)])
        unseen = float(posterior.unseen(below[: len(few)]).mean())
        rows, columns = np.nonzero(seen.hidden)
        near = (np.square(rows[:, None] - rows[::_EVERY]) + np.square(columns[:, None] - columns[::_EVERY])).argmin(1)
        sd.ravel()[hidden] = np.sqrt(variance[: len(few)] + np.square(guessed))[near]
    film_sd = posterior.model.film_sd_at(seen.tilt_deg, seen.time)
    whole = seen.edge[ring] == 1
    if not whole.any() or not len(few):
        return Drawn(background, sd, UNKNOWN, UNKNOWN, float("nan"), float("nan"), vacuum_sd, 0.0, 0.0, film_sd)
    # What is left of observations that are held back follows from the precision of all (Rasmussen & Williams 5.4.2).
    pull = posterior.spread(by_ring.T @ sees)
    covariance = np.linalg.inv(by_ring[ring] - pull.T @ pull)
    by_series = Held.of((covariance @ left[ring])[whole], np.diag(covariance)[whole])
    own += film_covariance(posterior.model, seen.tilt_deg, seen.time, seen.windows, seen.windows)
    own[np.diag_indices(len(own))] *= 1 + _JITTER
    factor = cholesky(own, lower=True, overwrite_a=True, check_finite=False)
    white = solve_triangular(factor, seen.mean, lower=True, check_finite=False)
    last = factor[np.ix_(ring, ring)]  # they come last, so that this is the factor of their covariance, given the others
    known = across[: len(few)] + film_covariance(posterior.model, seen.tilt_deg, seen.time, under, seen.windows)
    own_under = np.diag(
        own_covariance(posterior.model, under, under) + film_covariance(posterior.model, seen.tilt_deg, seen.time, under, under)
    )
    left_open = own_under - np.square(solve_triangular(factor, known.T, lower=True, check_finite=False)).sum(0)
    series_sd, alone_sd = (float(np.sqrt(np.mean(np.maximum(each, 1e-12)))) for each in (variance[: len(few)], left_open))
    return Drawn(
        background,
        sd,
        by_series,
        Held.of((last @ white[ring])[whole], np.square(last).sum(1)[whole]),
        series_sd,
        alone_sd,
        vacuum_sd,
        float(np.sqrt(np.mean(np.square(guessed)))),
        unseen,
        film_sd,
    )
