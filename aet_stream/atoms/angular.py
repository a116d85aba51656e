"""Whether the specimen turned about one axis only: angular refinement, kept where it explains projections that it has not seen.

More unknowns always explain more of what they were fitted to. So a fifth of the projections is held out: atoms are refined against the
others, with and without turns. How a held-out projection lies is then fitted to every other row of it, and judged by the rows between,
whose noise is another.
"""

from __future__ import annotations

import numpy as np

from aet_stream.atoms.model import Model, Stage
from aet_stream.atoms.refine import Prior, refine, turn_curvature
from aet_stream.projection import Array

EVERY = 5
NOTABLE = 2.0
"""Of the slope's square over the curvature, 1 where turns are nothing but noise: below, nothing more is tried."""
SIGMAS = 4.0
"""By so many standard deviations held-out projections have to be explained better."""
_STEPS = 15


def turns_help(stage: Stage, model: Model, prior: Prior) -> bool:
    """Do projections that were held out speak for turns? Of a model that is refined without."""
    _, slope = stage.misfit(model)
    curvature = turn_curvature(stage, model)
    seen = ~stage.views.left_out
    notable = float(np.mean(slope.turns[seen] ** 2 / curvature[seen]))
    return notable > NOTABLE and _gain_sigmas(stage, model, prior) > SIGMAS


def _gain_sigmas(stage: Stage, model: Model, prior: Prior) -> float:
    """By how much better held-out projections are explained with turns: chi squared that is gained, over its own standard deviation.

    Where two models are right by halves, y - m1 and y - m2 differ from the noise by half of d = m1 - m2 to either side: the gain has the
    mean zero and the variance 4 sum w d^2.
    """
    views = stage.views
    held = (np.arange(views.count) % EVERY == EVERY // 2) & ~views.left_out
    even = np.arange(views.images.shape[1])[:, None] % 2 == 0
    told: list[Array] = []
    try:
        for turns in (False, True):
            stage.views = views.without(held)
            trained = refine(stage, model, prior, steps=_STEPS, turns=turns)
            stage.views = views.only(held, even)
            told.append(stage.explained(refine(stage, trained, prior, steps=_STEPS, atoms=False, turns=turns)))
    finally:
        stage.views = views
    judged = views.only(held, ~even)
    gain = variance = 0.0
    for image, weights, fixed, turned in zip(judged.images, judged.weights, *told, strict=True):
        apart = turned - fixed
        gain += float(np.vdot(weights * apart, 2 * image - turned - fixed))
        variance += 4 * float(np.vdot(weights * apart, apart))
    return gain / float(np.sqrt(max(variance, 1e-30)))
