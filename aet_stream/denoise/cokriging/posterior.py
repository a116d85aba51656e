"""The films of a series, given all of its vacuum: one more projection is one more term.

A film is known by its values at nodes, closer together near the particle, and is cubic between them (Keys, IEEE Trans. Acoust. Speech
Signal Process. 29 (1981) 1153). With A what a projection's windows see of the nodes and C the covariance of its own part and noise, it
adds A^T C^-1 A to the information about the nodes and A^T C^-1 y to what it says (Rue & Held, Gaussian Markov Random Fields (2005), 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.linalg import blas, cho_solve, cholesky, solve_triangular
from scipy.ndimage import distance_transform_edt

from aet_stream.denoise.cokriging.model import FILM_LENGTHS, LEVEL, Film, Model, Turned, Windows, own_covariance
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

_SPACING = 1.4
"""Points between nodes"""
_EVEN = 20.0
"""Points from the middle as far as which they are evenly spaced across the axis; beyond, their spacing grows with the distance."""
_MARGIN = 2.0
"""Points beyond the frame along the axis"""
_FARTHEST = 112.0
"""Points; what lies beyond is not seen"""
_SQUARES = 6
"""So many matrices of all nodes by all nodes are held at once."""
_JITTER = 1e-5
"""Variance that neighbouring nodes do not share, so that their covariance can be factored"""
_UP, _RIGHT = (places.ravel() for places in np.meshgrid((-0.25, 0.25), (-0.375, -0.125, 0.125, 0.375), indexing="ij"))
"""Where in a window it is seen: eight places, edges from its middle"""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Where a film is known."""

    along: Array
    across: Array
    spacing: float

    @classmethod
    def covering(cls, series: Sequence[Seen], model: Model, memory_bytes: int = 1 << 30, *, coarser: float = 1.0) -> Nodes:
        """Wherever the projections look; farther apart where memory does not allow more, or where they may be `coarser`."""
        along = max(float(np.abs(seen.along).max()) for seen in series) + _MARGIN
        places = [
            Turned.of(seen.tilt_deg, seen.along, seen.across, film.height, model.turn_deg, model.slope).u
            for seen in series
            for film in model.films
        ]
        far = min(max(float(np.abs(u).max()) for u in places) + 1, _FARTHEST)
        spacing = _SPACING * coarser
        while True:
            nodes = cls._spaced(along, far, spacing)
            if _SQUARES * 8 * (nodes.size * len(model.films)) ** 2 <= memory_bytes or spacing > 2 * _SPACING * coarser:
                return nodes
            spacing *= 1.1

    @classmethod
    def _spaced(cls, along: float, far: float, spacing: float) -> Nodes:
        positive = [0.0]
        while positive[-1] < far:
            positive.append(positive[-1] + max(spacing, spacing * positive[-1] / _EVEN))
        across = np.array([*positive, positive[-1] * (1 + spacing / _EVEN)])
        count = int(np.ceil(along / spacing))
        return cls(np.arange(-count, count + 1) * spacing, np.concatenate([-across[:0:-1], across]), spacing)

    @property
    def size(self) -> int:
        return len(self.along) * len(self.across)

    def covariance(self, film: Film) -> Array:
        """(size, size) float64, before anything is seen."""
        along2, across2 = (np.square(places[:, None] - places) for places in (self.along, self.across))
        covariance = np.zeros((self.size, self.size))
        for length, sd in zip(FILM_LENGTHS, film.amplitudes, strict=True):
            covariance += sd**2 * np.kron(np.exp(along2 / (-2 * length**2)), np.exp(across2 / (-2 * length**2)))
        covariance[np.diag_indices(self.size)] *= 1 + _JITTER
        covariance[np.diag_indices(self.size)] += 1e-12
        return covariance

    def taps(self, along: Array, u: Array) -> tuple[Array, Array]:
        """((n, 16) nodes, (n, 16) weights) that make the film's value at each place."""
        rows, by_row = _cubic((along - self.along[0]) / self.spacing)
        columns, by_column = _cubic(np.interp(u, self.across, np.arange(len(self.across))))
        rows, columns = rows.clip(0, len(self.along) - 1), columns.clip(0, len(self.across) - 1)
        nodes = rows[:, :, None] * len(self.across) + columns[:, None, :]
        weights = by_row[:, :, None] * by_column[:, None, :]
        return nodes.reshape(len(along), 16), weights.reshape(len(along), 16)


def _cubic(at: Array) -> tuple[Array, Array]:
    low = np.floor(at).astype(np.int64)
    t = at - low
    weights = [-t / 2 + t**2 - t**3 / 2, 1 - 2.5 * t**2 + 1.5 * t**3, t / 2 + 2 * t**2 - 1.5 * t**3, -(t**2) / 2 + t**3 / 2]
    return low[:, None] + np.arange(-1, 3), np.stack(weights, -1)


class Posterior:
    """Of all films of a model. `add` every projection, `solve`, then ask."""

    def __init__(self, model: Model, nodes: Nodes) -> None:
        self.model, self.nodes = model, nodes
        self._films = len(model.films) * nodes.size
        size = self._films + len(model.films) + 1  # the films' means, and the common pedestal
        self._shown = np.zeros((len(model.films), nodes.size), bool)
        self._information = np.zeros((size, size))
        self._said = np.zeros(size)

    def sees(self, seen: Seen, windows: Windows) -> sparse.csr_array:
        """(n, size): what each window sees of the nodes, the films' means and the pedestal. Its window is eight places."""
        model, size = self.model, len(self._said)
        edge, count = windows.edge[:, None], len(windows.edge)
        y, x = windows.along[:, None] + _UP * edge, windows.across[:, None] + _RIGHT * edge
        nodes: list[Array] = []
        weights: list[Array] = []
        for which, film in enumerate(model.films):
            places = Turned.of(seen.tilt_deg, y, x, film.height, model.turn_deg, model.slope)
            u = places.u.clip(self.nodes.across[1], self.nodes.across[-2])
            there, by = (each.reshape(count, -1) for each in self.nodes.taps(y.ravel(), u.ravel()))
            nodes.append(there + which * self.nodes.size)
            weights.append(by / y.shape[1] / places.cos * film.weight(seen.time) * seen.gain)
        thick = 1 / np.cos(np.radians(seen.tilt_deg + model.turn_deg))
        levels = [*(thick * film.weight(seen.time) * seen.gain for film in model.films), 1.0]
        nodes.append(np.broadcast_to(self._films + np.arange(len(levels)), (count, len(levels))))
        weights.append(np.broadcast_to(levels, (count, len(levels))))
        columns, values = np.concatenate(nodes, 1), np.concatenate(weights, 1)
        pointers = np.arange(count + 1) * columns.shape[1]
        matrix = sparse.csr_array((values.ravel(), columns.ravel(), pointers), shape=(count, size))
        matrix.sum_duplicates()
        return matrix

    def film(self, seen: Seen, windows: Windows) -> Array:
        """(n,) what the films are there, without the pedestal."""
        sees = self.sees(seen, windows)
        mean: Array = sees[:, :-1] @ self.nodes_mean[:-1]
        return mean

    def guessed(self, sees: sparse.csr_array) -> Array:
        """(n,) what windows see of the films where no projection shows them, less what those are at the nearest places that one shows."""
        shape, away = (len(self.nodes.along), len(self.nodes.across)), np.zeros(len(self._said))
        for which, shown in enumerate(self._shown):
            part = slice(which * self.nodes.size, (which + 1) * self.nodes.size)
            values = self.nodes_mean[part].reshape(shape)
            nearest = distance_transform_edt(~shown.reshape(shape), return_distances=False, return_indices=True)
            away[part] = (values - values[tuple(nearest)]).ravel() if shown.any() else values.ravel()
        guess: Array = sees @ away
        return guess

    def unseen(self, sees: sparse.csr_array) -> Array:
        """(n,) bool: windows through which the film that varies most is where no projection shows it."""
        which = max(range(len(self._shown)), key=lambda film: float(np.square(self.model.films[film].amplitudes).sum()))
        part = sees[:, which * self.nodes.size : (which + 1) * self.nodes.size]
        unseen: Array = part @ (~self._shown[which]).astype(np.float64) > 0.5 * part.sum(1)
        return unseen

    def own(self, seen: Seen) -> Array:
        """(n, n) C: of a projection's own part, noise and all."""
        covariance = own_covariance(self.model, seen.windows, seen.windows).astype(np.float64)
        covariance[np.diag_indices(len(covariance))] += seen.noise + self.model.nugget**2
        return covariance

    def add(self, seen: Seen) -> None:
        """One more projection."""
        sees = self.sees(seen, seen.windows)
        active = np.unique(sees.indices)
        dense = sees[:, active].toarray()
        factor = cholesky(self.own(seen), lower=True, overwrite_a=True, check_finite=False)
        white = solve_triangular(factor, dense, lower=True, overwrite_b=True, check_finite=False)
        said = cho_solve((factor, True), seen.mean, check_finite=False)
        self._information[np.ix_(active, active)] += white.T @ white
        self._said += sees.T @ said
        if seen.lost:
            return
        angle = np.radians(seen.tilt_deg + self.model.turn_deg)
        along, u = (at.ravel() for at in np.meshgrid(self.nodes.along, self.nodes.across, indexing="ij"))
        for shown, film in zip(self._shown, self.model.films, strict=True):
            shown |= seen.shows(along, u * np.cos(angle) + (film.height + self.model.slope * along) * np.sin(angle))

    @cached_property
    def _prior(self) -> list[Array]:
        """(size, size) lower factors of the nodes' covariance, of each film."""
        return [cholesky(self.nodes.covariance(film), lower=True, overwrite_a=True, check_finite=False) for film in self.model.films]

    def _through(self, columns: Array, *, turned: bool = True) -> Array:
        """The factor of the prior covariance, turned round or not, times (size, n) columns; overwrites them."""
        for which, factor in enumerate(self._prior):
            part = slice(which * self.nodes.size, (which + 1) * self.nodes.size)
            columns[part] = blas.dtrmm(1.0, factor, columns[part], lower=1, trans_a=int(turned))
        columns[self._films :] *= LEVEL
        return columns

    def solve(self, *, sure: bool = True) -> None:
        """Join what was added with the prior; `sure`: so that it also knows how sure it is."""
        inner = self._through(self._through(self._information.copy()).T.copy())
        inner[np.diag_indices(len(inner))] += 1
        factor = cholesky(inner, lower=True, overwrite_a=True, check_finite=False)
        said = cho_solve((factor, True), self._through(self._said[:, None].copy()), check_finite=False)
        self.nodes_mean = self._through(said, turned=False)[:, 0]
        if not sure:
            return
        root = np.zeros(inner.shape, np.float32)
        for which, prior in enumerate(self._prior):
            part = slice(which * self.nodes.size, (which + 1) * self.nodes.size)
            root[part, part] = prior.T
        np.fill_diagonal(root[self._films :, self._films :], LEVEL)
        self._white = solve_triangular(factor.astype(np.float32), root, lower=True, overwrite_b=True, check_finite=False)

    def spread(self, sees: Array) -> Array:
        """(size, n) float32 such that its square is the covariance of n sums of nodes, given all; `sees` (n, size) dense."""
        out: Array = self._white @ np.asarray(sees, np.float32).T
        return out

    def surprise(self, seen: Seen) -> float:
        """Of a projection that was not added: minus twice the logarithm of how likely all of its vacuum is (Rasmussen & Williams 2.30)."""
        sees = self.sees(seen, seen.windows)
        pull = self.spread(sees.toarray())
        factor = cholesky(self.own(seen) + pull.T @ pull, lower=True, overwrite_a=True, check_finite=False)
        white = solve_triangular(factor, seen.mean - sees @ self.nodes_mean, lower=True, check_finite=False)
        return float(2 * np.log(np.diag(factor)).sum() + white @ white)

    def map(self) -> tuple[Array, Array]:
        """Of every film, (films, along, across): its values at the nodes less their mean near the axis, and the standard deviations of
        that: how thick a film is altogether, nobody can tell from a pedestal."""
        size, shape = self.nodes.size, (len(self.nodes.along), len(self.nodes.across))
        near = np.broadcast_to(np.abs(self.nodes.across) <= self.nodes.along[-1], shape).ravel()
        values, spreads = [], []
        for which in range(len(self.model.films)):
            part = slice(which * size, (which + 1) * size)
            value, white = self.nodes_mean[part], self._white[:, part]
            value, white = value - value[near].mean(), white - white[:, near].mean(1)[:, None]
            values.append(value.reshape(shape))
            spreads.append(np.sqrt(np.einsum("ij,ij->j", white, white)).reshape(shape))
        return np.stack(values), np.stack(spreads)
