"""Kinds of atoms by their weights: a mixture of normal distributions, each wide by its own spread and by each atom's own error.

Expectation maximisation: Dempster, Laird and Rubin, J. R. Stat. Soc. B 39 (1977) 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array

_SPREAD = (0.03, 0.15)
"""Standard deviation of weights within a kind, relative to its mean, beyond what errors explain: least and most."""
LEAST_RATIO = 1.8
"""Kinds whose mean weights are nearer than this are not told apart without being asked to."""
LEAST_SHARE = 0.05
LEAST_APART = 3.0
_SURE = 5.0
_DOUBT, _NOTHING = 0.15, 0.25
"""Standard deviation of what is measured, relative to the (lightest) mean, where there is an atom and where there is none: as the model is
not exact, something is found where nothing is, too."""
_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Species:
    """What kinds there are, the heaviest first."""

    means: Array
    """(kinds,)"""
    spreads: Array
    """(kinds,): standard deviation within a kind"""
    shares: Array
    """(kinds,): of all atoms"""

    def chances(self, weights: Array, errors: Array) -> Array:
        """(atoms, kinds): how probable each kind is for each atom."""
        logs = _log_densities(self, weights, errors)
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        chances: Array = odds / odds.sum(axis=1, keepdims=True)
        return chances

    def presence(self, weights: Array, errors: Array) -> Array:
        """(atoms,) how probable it is that there is an atom, of any kind, rather than none; beforehand both are as probable."""
        there = Species(self.means, np.maximum(self.spreads, _DOUBT * self.means), self.shares)
        nothing = Species(np.zeros(1), np.array([_NOTHING * self.means[-1]]), np.ones(1))
        gain = _total(_log_densities(there, weights, errors)) - _total(_log_densities(nothing, weights, errors))
        probable: Array = 1 / (1 + np.exp(-np.clip(gain, -500, 500)))
        return probable


def tell_apart(weights: Array, errors: Array, before: Species) -> Species:
    """The kinds that explain (atoms,) weights, each known up to its error: as many as there were before."""
    species, likelihood = before, -np.inf
    for _ in range(_ROUNDS):
        logs = _log_densities(species, weights, errors)
        now = float(_total(logs).sum())
        if now - likelihood < 1e-6 * abs(now):
            break
        likelihood = now
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        species = _maximise(odds / odds.sum(axis=1, keepdims=True), species, weights, errors)
    order = np.argsort(-species.means)
    return Species(species.means[order], species.spreads[order], species.shares[order])


def split(weights: Array, errors: Array, one: Species) -> Species:
    """Two kinds where the weights speak for them, else the one.

    By the criterion of Schwarz, Ann. Stat. 6 (1978) 461, and only two that stand apart from each other, by that of Ashman, Bird and Zepf,
    Astron. J. 108 (1994) 2348: what is no atom has low weights, too, but down to none.
    """
    both = np.quantile(weights, (0.8, 0.2))
    start = Species(np.maximum(both, 1e-3 * one.means), _SPREAD[1] * both, np.array([0.5, 0.5]))
    two = tell_apart(weights, errors, start)
    gained = float(_total(_log_densities(two, weights, errors)).sum() - _total(_log_densities(one, weights, errors)).sum())
    width = np.sqrt(np.sum(two.spreads**2 + np.median(errors) ** 2))
    apart = np.sqrt(2) * (two.means[0] - two.means[1]) / width
    distinct = apart > LEAST_APART and two.means[0] >= LEAST_RATIO * two.means[1] and two.shares.min() >= LEAST_SHARE
    return two if distinct and gained > 1.5 * np.log(len(weights)) + _SURE else one


def _total(logs: Array) -> Array:
    top = logs.max(axis=1)
    total: Array = top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
    return total


def _maximise(chances: Array, species: Species, weights: Array, errors: Array) -> Species:
    precision = chances / (species.spreads**2 + errors[:, None] ** 2)
    means = np.maximum((precision * weights[:, None]).sum(axis=0) / np.maximum(precision.sum(axis=0), 1e-30), 1e-6 * species.means.max())
    excess = (weights[:, None] - means) ** 2 - errors[:, None] ** 2
    trust = precision**2 / np.maximum(chances, 1e-12)
    variance = (trust * excess).sum(axis=0) / np.maximum(trust.sum(axis=0), 1e-30)
    spreads = np.sqrt(np.clip(variance, (_SPREAD[0] * means) ** 2, (_SPREAD[1] * means) ** 2))
    return Species(means, spreads, np.maximum(chances.mean(axis=0), 1e-6))


def _log_densities(species: Species, weights: Array, errors: Array) -> Array:
    variance = species.spreads**2 + errors[:, None] ** 2
    logs: Array = np.log(species.shares) - 0.5 * ((weights[:, None] - species.means) ** 2 / variance + np.log(2 * np.pi * variance))
    return logs
