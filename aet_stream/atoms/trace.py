"""From maxima to atoms: rounds of refining, pruning, merging and adding.

The misfit is no judge of how many atoms there are: it falls with every one that is added, right or wrong. What decides is what an atom is:
it has about the weight of its kind, and keeps its distance. Rounds end when hardly any comes or goes; the last two only take away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from scipy.spatial import cKDTree

from aet_stream.atoms import residue
from aet_stream.atoms.angular import turns_help
from aet_stream.atoms.model import Model, Stage
from aet_stream.atoms.refine import Prior, refine, refine_some, scaled, with_widths
from aet_stream.atoms.species import Species, split, tell_apart
from aet_stream.atoms.sureness import OVERLAP
from aet_stream.projection import Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """When an atom is one. Distances in units of that between first neighbours, weights in units of the mean of the kind."""

    least_distance: float = 0.85
    """No two atoms stay nearer than about this."""
    push: float = 2000.0
    merge: float = 0.65
    """Two that are nearer than this are one."""
    apart: float = 0.6
    """A new one is no nearer to one that is there."""
    near: float = 1.4
    """Nor farther from it."""
    again: float = 0.4
    """Nor to where one was put in that has been pruned since: what has been tried is not tried again; lighter ones, and
    where there is room, not a third time, as they are lost while those around them still move."""
    add: float = 0.5
    """A new one is no lighter."""
    weight_sigma: float = 0.5
    """Spread of weights that is allowed for while atoms are still wrong."""
    last_weight_sigma: float = 0.2
    false_share: float = 0.3
    """Of those that are added, at most so many are there by chance: of each kind of place by itself, as chance makes its places hardly ever
    where atoms leave room for one."""
    enclosed: float = 0.55
    at_surface: float = 0.25
    """Share of the neighbours that atoms have (`around`, the upper quartile) that such a place has, inside and at a surface."""
    alone: float = 0.15
    """Atoms with fewer neighbours are none: noise beside a particle, not a part of it."""
    around: float = 1.3
    neighbours: int = 3
    false_share_of_light: float = 0.1
    share_of_light: float = 0.03
    """There is a lighter kind where so many, as a share of the atoms, stand out from chance that are too light, have so many `neighbours`
    within `around`, and keep the least distance: a crystal of one kind has no room for such."""
    lightest: float = 0.08
    """But none is lighter than this: what is left over of atoms that are no Gaussians looks like it."""
    sigmas_of_light: float = 3.3
    """And it is left alone where its atoms stand out by less than so many of their standard deviations: they cannot be told from noise."""
    pressed: float = 0.85
    pressed_weight: float = 0.9
    """Where few directions are seen, a row of atoms along the beam is explained nearly as well by one more of them, all lighter and closer.
    Of atoms that are nearer to another than `pressed` and lighter than `pressed_weight`, the lightest is taken out for a trial: if it was
    one, it is missing afterwards, and is added again."""
    on_trial: float = 1.5
    """No two are tried at once that are nearer than this."""
    presence: float = 0.5
    """An atom is kept if it is there with more than this probability."""
    contradicts: float = 1.5
    """A projection whose chi squared is so many times that of the others is left out."""
    turns: bool = True
    """Refined where they explain what was held out (angular.py)."""
    level: bool = True
    """What lies smoothly over a projection, beyond atoms that all weigh alike, is taken off before each round."""
    weighed: int = 2
    """After each of so many rounds pixels are weighed anew, by what the model leaves over."""
    rounds: int = 10
    """At most so many, before the last two."""
    whole: int = 2
    """So many rounds refine all atoms, at first and where there is a new kind or turns; others, until the last two, those that are nearer
    than `moved` to one that came or went."""
    moved: float = 1.6
    enough: float = 0.01
    """No more rounds when fewer than this share of the atoms has come or gone."""
    first_steps: int = 15
    steps: int = 7
    last_steps: int = 25


@dataclass(frozen=True, slots=True)
class Round:
    """What happened in one."""

    atoms: int
    added: int
    pruned: int
    merged: int
    tried: int
    """Taken out for a trial: added again in the next round, if they were atoms."""
    width_px: float
    misfit: float
    """chi squared per pixel; told, not judged by"""


@dataclass(frozen=True, slots=True)
class Traced:
    """The result."""

    model: Model
    species: Species
    prior: Prior
    """Of the last round."""
    starts: Array
    """(atoms, 3) where each was when it came in"""
    unseen: bool
    """There are lighter atoms than any of these, but each alone is lost in the noise."""
    born: Array
    """(atoms,) in which round: 0 for a maximum of the volume"""
    levelled: Array
    """(tilts,) root mean square of what was taken off each projection, counts"""
    rounds: tuple[Round, ...]


Told = Callable[[int, Model, Round], None]


def trace(
    stage: Stage,
    places: Array,
    heights: Array,
    *,
    pixel_angstrom: float,
    neighbour_angstrom: float,
    width_angstrom: float,
    kinds: int = 0,
    rules: Rules = Rules(),
    told: Told | None = None,
) -> Traced:
    """Atoms that explain the views.

    Parameters
    ----------
    places, heights : (n, 3) voxels (views.py) and (n,) of the maxima to begin with
    neighbour_angstrom : distance between first neighbours
    width_angstrom : standard deviation of an atom's image, about; refined
    kinds : how many species there are; 0: not known
    """
    unit = neighbour_angstrom / pixel_angstrom
    run = _Run(stage, rules, unit, pixel_angstrom, kinds)
    model = run.begin(places, heights, width_angstrom / pixel_angstrom)
    starts, born, rounds = model.places.copy(), np.zeros(len(model.places), np.int64), list[Round]()
    closing, whole, changed = 0, rules.whole, model.places
    for number in range(1, rules.rounds + 3):
        last = closing == 2
        kinds, turns = len(run.species.means), run.turns
        run.level(model)
        if number <= whole or closing:
            model = run.refined(model, rules.last_steps if last else rules.steps if rounds else rules.first_steps, last=last)
        else:
            model = run.refined_near(model, changed)
        before = model.places
        if number == 1:
            run.leave_out_what_contradicts(model)
        if number <= rules.weighed:
            stage.views = stage.views.weighed_by(stage.explained(model))
        keep, model = run.judge(model, closing=closing, last=last)
        run.rejected = np.concatenate([run.rejected, starts[~keep]])
        model, starts, born = model.of(keep), starts[keep], born[keep]
        pruned = int((~keep).sum())
        single, model = run.merged(model)
        changed = np.concatenate([before[~keep], model.places[~single]])
        model, starts, born = model.of(single), starts[single], born[single]
        merged, added = int((~single).sum()), 0
        if not closing:
            new, model = run.candidates(model)
            added = len(new)
            changed = np.concatenate([changed, new])
            model = run.joined(model, new)
            starts, born = np.concatenate([starts, new]), np.concatenate([born, np.full(added, number)])
        tried = run.on_trial(model) if number > 1 and not closing else np.zeros(len(model.places), bool)
        changed = np.concatenate([changed, model.places[tried]])
        model, starts, born = model.of(~tried), starts[~tried], born[~tried]
        rounds.append(run.told(model, added, pruned, merged, int(tried.sum())))
        if told is not None:
            told(number, model, rounds[-1])
        if last:
            break
        settled = added + pruned + merged + tried.sum() < rules.enough * len(model.places)
        if settled and not (closing or run.turns) and rules.turns and turns_help(stage, model, run.known(rules.weight_sigma)):
            model, settled = run.turned(model), False
        if run.turns > turns or len(run.species.means) > kinds:
            whole = number + rules.whole
        if closing or number >= rules.rounds or settled:
            if not closing and run.leaves_out:
                model = run.refined(model, rules.steps, last=False)  # rounds have refined but a part of it
                model = run.ask_again(model)
            closing += 1
    return Traced(model, run.species, run.prior, starts, run.unseen, born, run.levelled, tuple(rounds))


class _Run:
    """What all rounds share, and what is known of the kinds so far."""

    def __init__(self, stage: Stage, rules: Rules, unit_px: float, pixel_angstrom: float, kinds: int) -> None:
        self._all = stage.views
        self._stage, self._rules, self._unit_px, self._pixel_angstrom, self._kinds = stage, rules, unit_px, pixel_angstrom, kinds
        self._widths_px = 0.25 / pixel_angstrom, len(stage.window) / 6.0
        self.prior = Prior(np.ones(1), np.ones(1), rules.least_distance * unit_px, rules.push)
        self.species = Species(np.ones(1), np.ones(1), np.ones(1))
        self.unseen = False
        self.rejected = np.zeros((0, 3))
        self.turns = False
        self._tried = np.zeros((0, 3))

    def begin(self, places: Array, heights: Array, width_px: float) -> Model:
        tilts = self._stage.views.count
        weights = np.clip(heights / np.median(heights), 0.2, 5.0)
        kinds = np.zeros(len(places), np.int64)
        model = Model(
            places, weights, kinds, np.array([width_px]), np.zeros(tilts), np.ones(tilts), np.zeros((tilts, 2)), np.zeros((tilts, 3))
        )
        model = self._wide(scaled(self._stage, model))
        mean = float(np.median(model.weights))
        self.species = Species(np.array([mean]), np.array([0.1 * mean]), np.ones(1))
        return model

    def _wide(self, model: Model) -> Model:
        return with_widths(self._stage, model, *self._widths_px)

    def refined(self, model: Model, steps: int, *, last: bool) -> Model:
        self.prior = self.known(self._rules.last_weight_sigma if last else self._rules.weight_sigma)
        model = refine(self._stage, model, self.prior, steps=steps, turns=self.turns)
        return model if last else self._wide(model)

    def refined_near(self, model: Model, changed: Array) -> Model:
        """Only those atoms that are near to where one came or went."""
        near = cKDTree(model.places).query_ball_point(changed, self._rules.moved * self._unit_px)
        which = np.zeros(len(model.places), bool)
        which[np.fromiter(chain.from_iterable(near), np.int64)] = True
        self.prior = self.known(self._rules.weight_sigma)
        return refine_some(self._stage, model, which, self.prior, steps=self._rules.steps) if which.any() else model

    def known(self, weight_sigma: float) -> Prior:
        """Of the kinds as they are told apart now."""
        means = self.species.means
        return replace(self.prior, mean_weights=means, weight_sigmas=weight_sigma * means)

    def level(self, model: Model) -> None:
        """Take off what a film has left. Atoms of a kind weigh the same: the model's weights would have taken most of it in."""
        if self._rules.level:
            alike = self._stage.draw(replace(model, weights=self.species.means[model.kinds]))
            self._stage.views = replace(self._stage.views, images=self._all.images).levelled_by(alike)

    @property
    def levelled(self) -> Array:
        """(tilts,) root mean square of what was taken off, counts."""
        pairs = zip(self._all.images, self._stage.views.images, strict=True)
        rms: Array = np.sqrt([np.sum(np.square(given - now), dtype=np.float64) / self._all.pixels for given, now in pairs])
        return rms

    @property
    def leaves_out(self) -> bool:
        """Does any projection contradict the others?"""
        return bool((self._stage.views.left_out & ~self._all.left_out).any())

    def leave_out_what_contradicts(self, model: Model) -> None:
        """Projections that the others' atoms explain much worse than the others."""
        misfits, views = self._stage.misfit_per_tilt(model), self._stage.views
        usual = float(np.median(misfits[~views.left_out]))
        self._stage.views = views.without(misfits > self._rules.contradicts * usual)

    def turned(self, model: Model) -> Model:
        """With turns from now on. Who turned most contradicted the others for that: all are asked again, first how they lie."""
        rules, stage, prior = self._rules, self._stage, self.known(self._rules.weight_sigma)
        self.turns, stage.views = True, self._all
        model = refine(stage, model, prior, steps=rules.last_steps, atoms=False, turns=True)
        model = refine(stage, model, prior, steps=2 * rules.first_steps, turns=True)
        return self.ask_again(model)

    def ask_again(self, model: Model) -> Model:
        """Which projections contradict, now that atoms are where they are; the model with how each projection lies beneath them."""
        self._stage.views = self._all
        self.level(model)
        model = refine(self._stage, model, self.known(self._rules.weight_sigma), steps=self._rules.steps, atoms=False, turns=self.turns)
        self.leave_out_what_contradicts(model)
        self._stage.views = self._stage.views.weighed_by(self._stage.explained(model))
        return model

    def judge(self, model: Model, *, closing: int, last: bool) -> tuple[Array, Model]:
        """(which atoms are more probably there than not, the model with its kinds told apart; the last time there is no new one)"""
        weights, errors = measured_weights(self._stage, model, self.prior)
        self.species = tell_apart(weights, errors, self.species)
        if len(self.species.means) == 1 and self._kinds != 1 and not last:
            self.species = split(weights, errors, self.species)
            if len(self.species.means) > 1:
                model = replace(model, widths_px=np.repeat(model.widths_px, 2))
        kinds = self.species.chances(weights, errors).argmax(axis=1)
        widths = (
            model.widths_px if len(model.widths_px) == len(self.species.means) else np.full(len(self.species.means), model.widths_px[0])
        )
        keep = self.species.presence(weights, errors) > self._rules.presence
        if closing:
            keep &= self._neighbours(model.of(keep), model.places)[0] >= self._rules.alone
        return keep, replace(model, kinds=kinds, widths_px=widths)

    def merged(self, model: Model) -> tuple[Array, Model]:
        """(which atoms stay, the model with those that took in another in the middle of both)"""
        stay, places = np.ones(len(model.places), bool), model.places.copy()
        pairs = cKDTree(places).query_pairs(self._rules.merge * self._unit_px, output_type="ndarray")
        for one, other in sorted(map(tuple, pairs.tolist())):
            if stay[one] and stay[other]:
                places[one] = (places[one] + places[other]) / 2
                stay[other] = False
        return stay, replace(model, places=places)

    def candidates(self, model: Model) -> tuple[Array, Model]:
        """((n, 3) places of new atoms, the model; it has a kind more when these are of one that had not been seen before)"""
        rules, unit = self._rules, self._unit_px
        found, decoys = residue.candidates(
            self._stage, model, voxel_angstrom=self._pixel_angstrom, near_px=rules.near * unit, apart_px=rules.apart * unit
        )
        if not len(found.places):
            return found.places, model
        rooms, by_chance = self._room(model, found.places), self._room(model, decoys.places)
        sure = np.zeros(len(found.places), bool)
        for room in np.unique(rooms):
            these = rooms == room
            sure[these] = found.of(these).heavier_than_noise(decoys.of(by_chance == room), rules.false_share)
        free = cKDTree(model.places).query(found.places)[0] > rules.least_distance * unit
        new = sure & (found.weights > rules.add * self.species.means[0])
        if len(self._tried):
            missed = cKDTree(self._tried).query(found.places)[0] < rules.again * unit
            new |= missed & (found.weights > rules.add * self.species.means[-1])
        if self._lighter(model, found.of(found.heavier_than_noise(decoys, rules.false_share_of_light) & free)):
            model = replace(model, widths_px=np.append(model.widths_px, model.widths_px[-1]))
        light = np.zeros(len(new), bool)
        if len(self.species.means) > 1:
            light = sure & (found.weights > rules.add * self.species.means[-1])
        if len(self.rejected):
            often = cKDTree(self.rejected).query_ball_point(found.places, rules.again * unit, return_length=True)
            new &= often <= (rooms >= 2)
            light &= often <= 1
        new |= light
        return found.places[new], model

    def _room(self, model: Model, places: Array) -> Array:
        """(n,) what kind of place each is, by the atoms around it.

        0: hardly any; 1: as many as an atom has, but one too near; 2: room for one, at a surface; 3: room for one, all but enclosed.
        """
        rules, (share, free) = self._rules, self._neighbours(model, places)
        kind: Array = np.where(share < rules.at_surface, 0, 1 + free * (1 + (share >= rules.enclosed)))
        return kind

    def _neighbours(self, model: Model, places: Array) -> tuple[Array, Array]:
        """Of (n, 3) places: (how many atoms are around each, as a share of what atoms have around them; whether none is too near)."""
        tree, reach = cKDTree(model.places), self._rules.around * self._unit_px
        usual = np.quantile(tree.query_ball_point(model.places, reach, return_length=True) - 1, 0.75)
        distance = tree.query(places)[0]
        around = tree.query_ball_point(places, reach, return_length=True) - (distance == 0)
        return around / max(usual, 1), distance > self._rules.least_distance * self._unit_px

    def _lighter(self, model: Model, found: residue.Candidates) -> bool:
        """Is there a kind of lighter atoms, of which none has been taken so far? Then it is one of the species from now on."""
        rules, heavy = self._rules, self.species
        if len(heavy.means) > 1 or self._kinds == 1:
            return False
        around = cKDTree(model.places).query_ball_point(found.places, rules.around * self._unit_px, return_length=True)
        light = found.of((found.weights < rules.add * heavy.means[0]) & (around >= rules.neighbours))
        if len(light.places) < rules.share_of_light * len(model.places):
            return False
        mean, share = float(np.median(light.weights)), len(light.places) / (len(model.places) + len(light.places))
        if mean < rules.lightest * heavy.means[0]:
            return False
        self.unseen = float(np.median(light.weights / light.errors)) < OVERLAP * rules.sigmas_of_light
        if self.unseen:
            return False
        self.species = Species(
            np.append(heavy.means, mean), np.append(heavy.spreads, 0.1 * mean), np.append(heavy.shares * (1 - share), share)
        )
        return True

    def on_trial(self, model: Model) -> Array:
        """(atoms,) bool: those that are too light and too near to others, none of which is tried twice."""
        rules, unit = self._rules, self._unit_px
        tree = cKDTree(model.places)
        nearest = tree.query(model.places, k=2)[0][:, 1]
        shares = model.weights / self.species.means[model.kinds]
        doubtful = (nearest < rules.pressed * unit) & (shares < rules.pressed_weight)
        if len(self._tried):
            doubtful &= cKDTree(self._tried).query(model.places)[0] > rules.again * unit
        free, chosen = np.ones(len(model.places), bool), np.zeros(len(model.places), bool)
        for atom in np.flatnonzero(doubtful)[np.argsort(shares[doubtful])]:
            if free[atom]:
                chosen[atom] = True
                free[tree.query_ball_point(model.places[atom], rules.on_trial * unit)] = False
        self._tried = np.concatenate([self._tried, model.places[chosen]])
        return chosen

    def joined(self, model: Model, new: Array) -> Model:
        kind = len(self.species.means) - 1
        return replace(
            model,
            places=np.concatenate([model.places, new]),
            weights=np.concatenate([model.weights, np.full(len(new), self.species.means[kind])]),
            kinds=np.concatenate([model.kinds, np.full(len(new), kind)]),
        )

    def told(self, model: Model, added: int, pruned: int, merged: int, tried: int) -> Round:
        misfits = self._stage.misfit_per_tilt(model)[~self._stage.views.left_out]
        return Round(len(model.places), added, pruned, merged, tried, float(np.median(model.widths_px)), float(misfits.mean()))


def measured_weights(stage: Stage, model: Model, prior: Prior) -> tuple[Array, Array]:
    """(what the projections alone say of the weights, its standard deviation): the prior's part in a model's weights taken out again."""
    _, by_weight = stage.curvature(model)
    by_weight = np.maximum(by_weight, 1e-12)
    precision = 1 / prior.weight_sigmas[model.kinds] ** 2
    weights = model.weights + precision / by_weight * (model.weights - prior.mean_weights[model.kinds])
    return weights, OVERLAP / np.sqrt(by_weight)
