"""What else is known of the background under the particle: experts that the gate weighs against the network, from what the frame shows.

Once a network has found the particle, two classical estimates have the good mask that they lack on their own:

- `kriging`: the vacuum, continued under the particle (kriging.py);
- `fringes`: the same, with the amplitudes of a crystal's fringes as covariates (fringes.py): the mean of the particle is a smooth function
  of them, whatever function it is; what it has beyond is background.

Each gives a posterior mean and its standard deviation, on a grid of every second block, in the normalised units of features.Blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError
from scipy.ndimage import binary_dilation

from aet_stream.denoise import grid
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.fusion import fringes
from aet_stream.denoise.fusion.kriging import SPACING, SPREAD, Kriging, Prediction, observe, pooled
from aet_stream.denoise.gaussian_process.dense import Conditioned, condition, most_evident, squared_distances, thinned
from aet_stream.denoise.gaussian_process.separable import Points
from aet_stream.denoise.lanes import aside
from aet_stream.projection import Array

_LEAST_VACUUM, _LEAST_INSIDE = 40, 40
"""Points without which an expert has nothing to say."""
_POINTS = 80
"""Where the covariates are compared: so few that what no fringe explains is different at each."""
_BENT, _BEND = 0.3, 0.25
"""How far the particle's mean may be from proportional to a fringe's amplitude (variance), and over which share of the strongest amplitude
that may change."""
_MISFITS = np.geomspace(0.02, 20, 10)
"""Standard deviations to choose from of what no fringe explains, as multiples of the background's."""


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """What the network on the coarse grid makes of a frame, (rows, columns) of blocks each and normalised."""

    background: Array
    support: Array
    """Logit: particle in this block?"""
    log_error: Array
    """Logarithm of the variance that it expects of its error"""
    views_apart: Array
    """How far its two views differ"""
    before_solve: Array
    """The background that its last U-Net would draw alone"""
    misled: bool = False
    """A film at the side of the frame was taken for particle (beside.py): what is said of the background there, and near it, is void"""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Of one expert."""

    mean: Array
    """(rows, columns) background; the network's own where the expert says nothing"""
    sd: Array
    """(rows, columns) its standard deviation; 0 where the expert says nothing"""


@dataclass(frozen=True, slots=True)
class Experts:
    """All but the network; None where there is too little to go by."""

    seen: Array
    """(rows, columns) bool: vacuum"""
    vacuum: Kriging | None = None
    kriging: Posterior | None = None
    turned: Posterior | None = None
    """Kriging of a background that the tilt has foreshortened; None: it is about as fine along both axes"""
    crystal: FringeKriging | None = None
    fringes: Posterior | None = None


@dataclass(frozen=True, slots=True)
class Continued:
    """The vacuum, continued under the particle."""

    seen: Array
    """(rows, columns) bool: vacuum"""
    vacuum: Kriging
    hidden: Prediction
    """Of every point that is not seen"""
    turned: Callable[[], Prediction | None]
    """The same of a background that the tilt has foreshortened; None: it is about as fine along both axes"""


def continued(blocks: Blocks, support: Array) -> Array | Continued:
    """What the vacuum says of the background under the particle, or only where it is seen: there is too little of it.

    Parameters
    ----------
    support : (rows, columns) logit
    """
    seen: Array = np.logical_not(grid.in_blocks(binary_dilation(support > 0), SPACING).any((1, 3)))
    if seen.sum() < _LEAST_VACUUM or seen.all():
        return seen
    hidden = Points(np.argwhere(~seen), SPREAD)
    try:
        observed = observe(blocks, support.astype(np.float64), seen)
        vacuum = Kriging(*observed)
    except LinAlgError:
        return seen
    turned = aside(lambda: vacuum.foreshortened(*observed, hidden))
    return Continued(seen, vacuum, vacuum.at(hidden), turned)


def consult(
    frame: Array, blocks: Blocks, network: NetworkOutput, drawn: Array, begun: Callable[[], Array | Continued] | None = None
) -> Experts:
    """What the vacuum and the fringes of a frame say.

    Parameters
    ----------
    frame, drawn : (height, width) the projection, and the background that the network has drawn, counts
    begun : gives `continued` of them, if that has been begun
    """
    lattice = _lattice(frame, blocks, drawn)
    by_vacuum = begun() if begun else continued(blocks, network.support)
    if not isinstance(by_vacuum, Continued):
        return Experts(by_vacuum)
    seen, vacuum, hidden = by_vacuum.seen, by_vacuum.vacuum, by_vacuum.hidden
    own = pooled(network.background.astype(np.float64))
    kriging = _posterior(hidden.mean, hidden.variance, seen, own)
    inside = np.argwhere(~seen & (pooled((network.support > 0).astype(np.float64)) > 0.5))
    crystal = _crystal(lattice, vacuum, inside) if lattice and len(inside) >= _LEAST_INSIDE else None
    by_fringes = _posterior(*crystal.at(hidden), seen, own) if crystal else None
    try:
        turned = by_vacuum.turned()
    except LinAlgError:
        return Experts(seen)
    two_lengths = _posterior(turned.mean, turned.variance, seen, own) if turned else None
    return Experts(seen, vacuum, kriging, two_lengths, crystal, by_fringes)


@dataclass(frozen=True, slots=True)
class Lattice:
    """The fringes that stand out of a frame, on the grid of the experts."""

    amplitude: Array
    """(fringes, rows, columns)"""
    level: Array
    """(rows, columns) means in the same windows"""
    window: float
    """Standard deviation of these, in points of the grid"""


def _lattice(frame: Array, blocks: Blocks, drawn: Array) -> Lattice | None:
    """None: no fringes stand out."""
    particle = (frame - drawn) / np.float32(blocks.span)
    strongest = fringes.find(particle, blocks.block_px)
    if strongest is None:
        return None
    spacing_px = SPACING * blocks.block_px
    amplitude = fringes.amplitudes(particle, strongest, spacing_px)
    level = fringes.levels((frame - np.float32(blocks.low)) / np.float32(blocks.span), strongest.window_px, spacing_px)
    return Lattice(amplitude, level.astype(np.float64), strongest.window_px / spacing_px)


def _crystal(lattice: Lattice, vacuum: Kriging, inside: Array) -> FringeKriging | None:
    """None: the fringes explain nothing."""
    strongest = np.quantile(lattice.amplitude[:, inside[:, 0], inside[:, 1]], 0.995, axis=1)
    amplitude = lattice.amplitude / np.maximum(strongest, 1e-9)[:, None, None]
    try:
        return FringeKriging(vacuum, amplitude, lattice.level, lattice.window, inside)
    except LinAlgError:
        return None


def _posterior(mean: Array, variance: Array, seen: Array, own: Array) -> Posterior:
    """Values of the hidden points, in their order, laid out."""
    whole, sd = own.copy(), np.zeros_like(own)
    whole[~seen], sd[~seen] = mean, np.sqrt(variance)
    return Posterior(whole, sd)


class FringeKriging:
    """Kriging with fringes as covariates: mean of the particle = smooth function of their amplitudes + background + misfit."""

    def __init__(self, vacuum: Kriging, amplitude: Array, level: Array, window: float, inside: Array) -> None:
        """`amplitude` (fringes, rows, columns), 1 where strongest; `level` (rows, columns): means in windows; `inside` (n, 2): particle."""
        self.amplitude, self._window, self._vacuum = amplitude, window, vacuum
        points, few = Points(inside, window**2), thinned(inside, _POINTS)
        self._points = points[few]
        seen, alike = vacuum.seen_from(points), vacuum.covariance(points, self._points) + 1.0
        self._white_covariance = vacuum.whitened(seen.take(few, 1))
        surplus = level[inside[:, 0], inside[:, 1]] - vacuum.mean(seen)
        for each in amplitude[:, inside[:, 0], inside[:, 1]]:
            alike += np.outer(each, each[few]) + _BENT * np.exp(-((each[:, None] - each[few]) ** 2) / (2 * _BEND**2))
        shared = alike[few] - self._white_covariance.T @ self._white_covariance
        _, (self.misfit, fit) = most_evident((-np.inf, (0.0, None)), self._fits(shared, surplus[few]))
        if fit is None:
            raise LinAlgError("no misfit makes the covariance positive")
        self._fit = fit
        self.unexplained = np.zeros(level.shape)
        """(rows, columns): what neither the fringes nor a background explain"""
        weights = fit.weights
        explained = alike @ weights - vacuum.foretold(seen, self._white_covariance @ weights)
        self.unexplained[inside[:, 0], inside[:, 1]] = surplus - explained

    def _fits(self, shared: Array, surplus: Array) -> Iterator[tuple[float, tuple[float, Conditioned | None]]]:
        """(evidence, (misfit, fit)) of every standard deviation that the misfit may have."""
        unlike = np.exp(-squared_distances(self._points.at, self._points.at) / (4 * self._window**2)) + 0.1 * np.eye(len(surplus))
        for misfit in _MISFITS * self._vacuum.strength + 1e-6:
            fit = condition(shared + misfit**2 * unlike, surplus)
            if fit is not None:
                yield fit.evidence, (float(misfit), fit)

    def at(self, hidden: Prediction) -> tuple[Array, Array]:
        """((n,) mean, (n,) variance) of the background at points that kriging has predicted, given the fringes as well."""
        joint = self._vacuum.covariance(self._points, hidden.points)
        joint -= self._white_covariance.T @ hidden.white_covariance
        white = self._fit.whitened(joint, overwrite=True)
        return hidden.mean + white.T @ self._fit.white, np.maximum(hidden.variance - np.square(white).sum(0), 1e-14)
