"""Refining a model against the projections: places, weights, offsets, gains and shifts together, by L-BFGS; widths by Gauss-Newton.

L-BFGS: Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16 (1995) 1190. Every unknown is counted in units of its own standard deviation, so
that the misfit is about as steep along each. What the projections cannot tell alone comes from priors: atoms of a kind have about its mean
weight, no two come closer than the least distance, gains are near 1 and shifts are small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from aet_stream.atoms.model import Model, Slope, Stage
from aet_stream.projection import Array
from aet_stream.reconstruct.turns import cross

GAIN_SIGMA = 0.05
SHIFT_SIGMA_PX = 0.3
TURN_SIGMA = np.radians(1.0)
_WIDTH_STEP = 0.02
_MEMORY = 8
"""Steps that L-BFGS remembers."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known before the projections are asked."""

    mean_weights: Array
    """(kinds,)"""
    weight_sigmas: Array
    """(kinds,): standard deviation of an atom's weight about the mean of its kind"""
    least_distance_px: float
    push: float
    """Of two atoms that are too close: misfit is half of this times the square of what is missing, in units of the least distance"""


def refine(stage: Stage, model: Model, prior: Prior, *, steps: int, atoms: bool = True, turns: bool = False) -> Model:
    """The model after at most so many steps of L-BFGS.

    Parameters
    ----------
    atoms : False: atoms stay as they are
    turns : False: the specimen lay in each projection as the model says
    """
    scale = _scales(stage, model, prior)
    if not atoms:
        scale = replace(scale, places=np.zeros_like(scale.places), weights=np.zeros_like(scale.weights))
    if not turns:
        scale = replace(scale, turns=np.zeros_like(scale.turns))
    return _descended(stage, model, prior, scale, steps)


def refine_some(stage: Stage, model: Model, which: Array, prior: Prior, *, steps: int) -> Model:
    """The model after at most so many steps for some of its atoms; all else stays as it is. The fewer they are, the less time it takes."""
    some, others = model.of(which), model.of(~which)
    scale = _scales(stage, some, prior)
    still = {name: np.zeros_like(getattr(scale, name)) for name in ("offsets", "gains", "shifts_px", "turns")}
    some = _descended(stage, some, prior, replace(scale, **still), steps, others)
    places, weights = model.places.copy(), model.weights.copy()
    places[which], weights[which] = some.places, some.weights
    return replace(model, places=places, weights=weights)


def _descended(stage: Stage, model: Model, prior: Prior, scale: Slope, steps: int, others: Model | None = None) -> Model:
    """By L-BFGS, each unknown in units of its scale; beside others, which stay."""
    beneath = None if others is None else stage.draw(others)
    around = model.places[:0] if others is None else others.places

    def cost(unknowns: Array) -> tuple[float, Array]:
        at = _moved(model, unknowns, scale)
        value, slope = stage.misfit(at, beneath)
        extra, slope = _with_prior(at, slope, prior, around)
        return value + extra, _flat(slope, scale)

    found = minimize(cost, np.zeros(_size(model)), jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": _MEMORY})
    return _moved(model, found.x, scale)


def _scales(stage: Stage, model: Model, prior: Prior) -> Slope:
    """Standard deviation of each unknown by itself."""
    by_place, by_weight = stage.curvature(model)
    own = np.einsum("nii->ni", by_place)
    least = 1e-3 * np.median(own) + 1e-12
    total, seen = _seen(stage, model)
    by_shift = seen / (2 * np.median(model.widths_px) ** 2)
    return Slope(
        1 / np.sqrt(own + least),
        1 / np.sqrt(by_weight + 1 / prior.weight_sigmas[model.kinds] ** 2),
        1 / np.sqrt(total + 1e-9 * total.max()),
        1 / np.sqrt(seen + 1 / GAIN_SIGMA**2),
        np.repeat(1 / np.sqrt(by_shift + 1 / SHIFT_SIGMA_PX**2)[:, None], 2, axis=1),
        1 / np.sqrt(turn_curvature(stage, model) + 1 / TURN_SIGMA**2),
    )


def _seen(stage: Stage, model: Model) -> tuple[Array, Array]:
    """(tilts,) each: second derivative of the misfit by each projection's offset and by its gain, as if no two atoms were in line."""
    total = stage.views.weights.sum(axis=(1, 2), dtype=np.float64)
    atoms = np.sum(model.weights) * np.median(model.weights) / (4 * np.pi * np.median(model.widths_px) ** 2)
    return total, atoms * total / stage.views.pixels


def turn_curvature(stage: Stage, model: Model) -> Array:
    """(tilts, 3): second derivative of the misfit by each projection's turns: by its shift, times the mean square of how far atoms move."""
    _, seen = _seen(stage, model)
    moments = model.places.T @ model.places / len(model.places)
    arms = np.empty((stage.views.count, 3))
    for tilt in range(stage.views.count):
        for axis, about in enumerate(np.eye(3)):
            moved = model.matrix(stage.views, tilt) @ cross(about)
            arms[tilt, axis] = np.trace(moved @ moments @ moved.T)
    curvature: Array = arms * (seen / (2 * np.median(model.widths_px) ** 2))[:, None]
    return curvature


def _parts(slope: Slope | Model) -> tuple[Array, ...]:
    return slope.places, slope.weights, slope.offsets, slope.gains, slope.shifts_px, slope.turns


def _size(model: Model) -> int:
    return sum(part.size for part in _parts(model))


def _flat(slope: Slope, scale: Slope) -> Array:
    return np.concatenate([(part * unit).ravel() for part, unit in zip(_parts(slope), _parts(scale), strict=True)])


def _moved(model: Model, unknowns: Array, scale: Slope) -> Model:
    parts, at = [], 0
    for part, unit in zip(_parts(model), _parts(scale), strict=True):
        parts.append(part + unknowns[at : at + part.size].reshape(part.shape) * unit)
        at += part.size
    places, weights, offsets, gains, shifts, turns = parts
    return replace(model, places=places, weights=weights, offsets=offsets, gains=gains, shifts_px=shifts, turns=turns)


def _with_prior(model: Model, slope: Slope, prior: Prior, around: Array) -> tuple[float, Slope]:
    """What the prior adds to the misfit, and the slope with it; `around` are places of other atoms, which stay."""
    precision = 1 / prior.weight_sigmas[model.kinds] ** 2
    away = model.weights - prior.mean_weights[model.kinds]
    gain, shift = model.gains - 1, model.shifts_px
    squares = np.sum(gain**2) / GAIN_SIGMA**2 + np.sum(shift**2) / SHIFT_SIGMA_PX**2 + np.sum(model.turns**2) / TURN_SIGMA**2
    value = 0.5 * float(np.sum(precision * away**2) + squares)
    pressed, places = _pressure(np.concatenate([model.places, around]), prior)
    slope = replace(
        slope,
        places=slope.places + places[: len(model.places)],
        weights=slope.weights + precision * away,
        gains=slope.gains + gain / GAIN_SIGMA**2,
        shifts_px=slope.shifts_px + shift / SHIFT_SIGMA_PX**2,
        turns=slope.turns + model.turns / TURN_SIGMA**2,
    )
    return value + pressed, slope


def _pressure(places: Array, prior: Prior) -> tuple[float, Array]:
    """Of atoms that are too close to each other."""
    slope, least = np.zeros_like(places), prior.least_distance_px
    pairs = cKDTree(places).query_pairs(least, output_type="ndarray") if least and np.isfinite(places).all() else np.zeros((0, 2), int)
    one, other = pairs.T
    apart = places[one] - places[other]
    distance = np.linalg.norm(apart, axis=1) + 1e-9
    missing = 1 - distance / least if least else distance
    force = (prior.push * missing / (least * distance) if least else distance)[:, None] * apart
    for axis in range(3):
        slope[:, axis] += np.bincount(other, force[:, axis], len(places)) - np.bincount(one, force[:, axis], len(places))
    return 0.5 * prior.push * float(np.sum(missing**2)), slope


def scaled(stage: Stage, model: Model) -> Model:
    """The model with weights of the right size, and the best offset for each projection: linear, so in one step."""
    views, drawn = stage.views, stage.draw(model)
    offsets, gains, sums = np.zeros(views.count), np.zeros(views.count), np.zeros(views.count)
    for tilt, (image, view, weight) in enumerate(zip(drawn, views.images, views.weights, strict=True)):
        total, mean, mean_view = float(weight.sum()), float(np.vdot(weight, image)), float(np.vdot(weight, view))
        if not total:
            continue
        sums[tilt] = float(np.vdot(weight * image, image)) - mean**2 / total
        gains[tilt] = (float(np.vdot(weight * image, view)) - mean * mean_view / total) / sums[tilt]
        offsets[tilt] = (mean_view - gains[tilt] * mean) / total
    gain = float(np.average(gains, weights=sums))
    return replace(model, weights=model.weights * gain, offsets=offsets, gains=np.ones(views.count))


def with_widths(stage: Stage, model: Model, least_px: float, most_px: float) -> Model:
    """The model with better widths, offset and gain of each projection going along: one step of Gauss-Newton."""
    views, kinds = stage.views, len(model.widths_px)
    steps = _WIDTH_STEP * model.widths_px
    drawn = [stage.draw(model.of(model.kinds == kind)) for kind in range(kinds)]
    wider = [stage.draw(replace(model, widths_px=model.widths_px + steps).of(model.kinds == kind)) for kind in range(kinds)]
    normal, right = np.zeros((kinds, kinds)), np.zeros(kinds)
    for tilt, (view, weight) in enumerate(zip(views.images, views.weights, strict=True)):
        if not weight.any():
            continue
        image, gain = np.sum([kind[tilt] for kind in drawn], axis=0), np.float32(model.gains[tilt])
        changes = [gain * (after[tilt] - before[tilt]) / np.float32(step) for before, after, step in zip(drawn, wider, steps, strict=True)]
        missing = view - gain * image - np.float32(model.offsets[tilt])
        columns = np.stack([np.ones_like(image), image, *changes, missing]).reshape(kinds + 3, -1)
        gram = ((columns * weight.ravel()) @ columns.T).astype(np.float64)
        rest = gram[2:, 2:] - gram[2:, :2] @ np.linalg.solve(gram[:2, :2], gram[:2, 2:])
        normal += rest[:-1, :-1]
        right += rest[:-1, -1]
    change = np.linalg.lstsq(normal, right, rcond=None)[0]
    return replace(model, widths_px=np.clip(model.widths_px + np.clip(change, -0.3, 0.3), least_px, most_px))
