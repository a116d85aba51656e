"""Vacuum that the other projections do not foretell counts for less.

Where the network tears the particle's support, particle passes for vacuum; and what is steep shows the film too foreshortened for its
nodes. Both are rare and many times larger than their stated noise, and bend the films under every particle. So the ring of vacuum around
each particle is held back and foretold: by how much the middle of its errors exceeds what is stated is added to the noise of the whole
projection, and windows that are off by more yet have that of Student's t distribution (Lange, Little & Taylor, J. Am. Stat. Assoc. 84
(1989) 881).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cho_solve, cholesky

from aet_stream.denoise.cokriging.posterior import Posterior
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

_MUCH = 1.5
"""Error over what is stated from which on a projection is doubted: below, it may be that the nodes are too far apart"""
_FREEDOM = 4.0
"""Of Student's t"""
_MEDIAN = 0.6745
"""Of the absolute value of a normal variable"""


def doubted(posterior: Posterior, series: Sequence[Seen], thinned: int) -> list[Seen]:
    """The same with more noise where the others do not foretell it.

    Parameters
    ----------
    posterior : of these, each `thinned` by so much, as their noise was so far
    """
    return [seen if seen.lost else _doubted(posterior, seen, seen.thinned(thinned)) for seen in series]


def _doubted(posterior: Posterior, seen: Seen, few: Seen) -> Seen:
    errors, variances = held_back(posterior, few)
    if not len(errors):
        return seen
    measured = variances - few.noise[few.ring_from :] + few.measured[few.ring_from :]
    error, stated = float(np.median(np.abs(errors))) / _MEDIAN, float(np.sqrt(np.median(measured)))
    excess = max(error**2 - (_MUCH * stated) ** 2, 0.0)
    expected = measured + excess
    wider = np.maximum((_FREEDOM + np.square(errors) / expected) / (_FREEDOM + 1) - 1, 0.0) * expected
    noise = seen.measured + excess
    noise[seen.ring_from :] += wider
    return replace(seen, noise=noise, doubt=float(np.sqrt(excess)), off=error / stated)


def held_back(posterior: Posterior, seen: Seen) -> tuple[Array, Array]:
    """(errors, variances) of the windows around the particle, all of them held back at once, of a projection that was added.

    From the precision of all that was added (Rasmussen & Williams 5.4.2).
    """
    ring = np.arange(seen.ring_from, len(seen.mean))
    sees = posterior.sees(seen, seen.windows)
    asked = np.zeros((len(seen.mean), 1 + len(ring)))
    asked[:, 0] = seen.mean - sees @ posterior.nodes_mean
    asked[ring, 1 + np.arange(len(ring))] = 1
    factor = cholesky(posterior.own(seen), lower=True, overwrite_a=True, check_finite=False), True
    weighed = cho_solve(factor, asked, overwrite_b=True, check_finite=False)
    pull = posterior.spread(weighed[:, 1:].T @ sees)
    covariance = np.linalg.inv(weighed[ring, 1:] - pull.T @ pull)
    return covariance @ weighed[ring, 0], np.diag(covariance)
