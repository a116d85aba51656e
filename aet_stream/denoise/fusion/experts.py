"""Second opinions on what lies under the particle, from what the frame itself shows; the referee weighs them against the network's word.

Once a network has found the particle, two classical estimates have the good mask that they lack on their own:

- the vacuum's: kriging (vacuum_field.py);
- the lattice's: the same, with the amplitudes of a crystal's fringes as covariates (lattice.py): the mean of the particle is a smooth
  function of them, whatever function it is; what it has beyond is background.

All on a grid of every second block, in the normalised units of features.Blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, solve_triangular
from scipy.ndimage import binary_dilation

from aet_stream.denoise import grid
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.fusion import fringes as lattice
from aet_stream.denoise.fusion.kriging import SPACING, SPREAD, Field, Told, distances, observe, pooled, solved, thinned
from aet_stream.projection import Array

_LEAST_VACUUM, _LEAST_INSIDE = 40, 40
"""Points without which there is no opinion."""
_WITNESSES = 80
"""Points at which the lattice is asked: so few that what no fringe explains is different at each."""
_BENT, _BEND = 0.3, 0.25
"""How far the particle's mean may be from proportional to a fringe's amplitude (variance), and over which share of the strongest amplitude
that may change."""
_MISFITS = np.geomspace(0.02, 20, 10)
"""Standard deviations to choose from of what no fringe explains, as multiples of the field's."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """Of one witness."""

    background: Array
    """(rows, columns); the network's own where the witness says nothing"""
    spread: Array
    """(rows, columns): standard deviation, by the witness itself; 0 where it says nothing"""


@dataclass(frozen=True, slots=True)
class Opinions:
    """What is said of a frame."""

    seen: Array
    """(rows, columns) bool: vacuum"""
    field: Field | None = None
    vacuum: Opinion | None = None
    crystal: Crystal | None = None
    lattice: Opinion | None = None


def ask(frame: Array, blocks: Blocks, background: Array, drawn: Array, logit: Array) -> Opinions:
    """What vacuum and lattice say of a frame.

    Parameters
    ----------
    frame, drawn : (height, width) the projection, and its background as found so far, counts
    background, logit : (rows, columns) the same background, normalised, and the logit of the particle's support, in blocks
    """
    support = logit > 0
    seen: Array = np.logical_not(grid.in_blocks(binary_dilation(support), SPACING).any((1, 3)))
    if seen.sum() < _LEAST_VACUUM or seen.all():
        return Opinions(seen)
    own = pooled(background.astype(np.float64))
    try:
        field = Field(*observe(blocks, logit.astype(np.float64), seen))
    except LinAlgError:
        return Opinions(seen)
    hidden = field.at(np.argwhere(~seen))
    vacuum = _opinion(hidden.mean, hidden.variance, seen, own)
    inside = np.argwhere(~seen & (pooled(support.astype(np.float64)) > 0.5))
    if len(inside) < _LEAST_INSIDE:
        return Opinions(seen, field, vacuum)
    particle = (frame - drawn) / np.float32(blocks.span)
    fringes = lattice.find(particle, blocks.block_px)
    if fringes is None:
        return Opinions(seen, field, vacuum)
    spacing_px = SPACING * blocks.block_px
    amplitude = lattice.amplitudes(particle, fringes, spacing_px)
    amplitude /= np.maximum(np.quantile(amplitude[:, inside[:, 0], inside[:, 1]], 0.995, axis=1), 1e-9)[:, None, None]
    level = lattice.levels((frame - np.float32(blocks.low)) / np.float32(blocks.span), fringes.window_px, spacing_px)
    try:
        crystal = Crystal(field, amplitude, level.astype(np.float64), fringes.window_px / spacing_px, inside)
    except LinAlgError:
        return Opinions(seen, field, vacuum)
    return Opinions(seen, field, vacuum, crystal, _opinion(*crystal.tells(hidden), seen, own))


def _opinion(mean: Array, variance: Array, seen: Array, own: Array) -> Opinion:
    """Values of the hidden points, in their order, laid out."""
    background, spread = own.copy(), np.zeros_like(own)
    background[~seen], spread[~seen] = mean, np.sqrt(variance)
    return Opinion(background, spread)


class Crystal:
    """Fringes as covariates: mean of the particle = smooth function of their amplitudes + background + misfit."""

    def __init__(self, field: Field, amplitude: Array, level: Array, window: float, inside: Array) -> None:
        """`amplitude` (fringes, rows, columns), 1 where strongest; `level` (rows, columns): means in windows; `inside` (n, 2): particle."""
        self.amplitude, self._window, self._field = amplitude, window, field
        below, few = field.at(inside, window**2), thinned(inside, _WITNESSES)
        self._at, self._tied = inside[few], below.tied[:, few]
        values = amplitude[:, inside[:, 0], inside[:, 1]]
        surplus = level[inside[:, 0], inside[:, 1]] - below.mean
        shared = field.covariance(inside, self._at, 2 * window**2) - below.tied.T @ self._tied + 1.0
        for each in values:
            shared += np.outer(each, each[few]) + _BENT * np.exp(-((each[:, None] - each[few]) ** 2) / (2 * _BEND**2))
        unlike = np.exp(-distances(self._at, self._at) / (4 * window**2)) + 0.1 * np.eye(len(few))
        best = -np.inf
        for misfit in _MISFITS * field.strength + 1e-6:
            solution = solved(shared[few] + misfit**2 * unlike, surplus[few])
            if solution is None:
                continue
            factor, white = solution
            evidence = -float(white @ white) / 2 - float(np.log(np.diag(factor)).sum())
            if evidence > best:
                best, self.misfit, self._factor, self._white = evidence, float(misfit), factor, white
        if best == -np.inf:
            raise LinAlgError("no misfit makes the covariance positive")
        self.left_over = np.zeros(level.shape)
        """(rows, columns): what neither the fringes nor a background explain"""
        explained = shared @ solve_triangular(self._factor, self._white, lower=True, trans="T", check_finite=False)
        self.left_over[inside[:, 0], inside[:, 1]] = surplus - explained

    def tells(self, hidden: Told) -> tuple[Array, Array]:
        """((n,) mean, (n,) variance) of the background at points, given vacuum and fringes."""
        joint = self._field.covariance(self._at, hidden.at, self._window**2 + SPREAD) - self._tied.T @ hidden.tied
        told = solve_triangular(self._factor, joint, lower=True, overwrite_b=True, check_finite=False)
        return hidden.mean + told.T @ self._white, np.maximum(hidden.variance - np.square(told).sum(0), 1e-14)
