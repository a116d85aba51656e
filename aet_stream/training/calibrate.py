"""The rule for the expected error (denoise/trust.py), fitted on simulated frames whose truth is known."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.denoise import trust
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.weights_file import load_card, load_tensors, parts, write_card
from aet_stream.errors import ModelError
from aet_stream.projection import Array
from aet_stream.training.dataset import Frame, Mixer, Recipe

logger = logging.getLogger(__name__)

_SEED = 3_000_000
_RIDGE = 1e-2
_RECIPES = (
    (3 / 8, Recipe(backgrounds=("film", "gaussian", "slab", "slab"), amplify=12, noise=0.65)),
    (5 / 8, Recipe(backgrounds=("film",), noise=0.5, plain=True, sizes_px=(256,))),
)
"""(share of the frames, what they are): of all kinds, and hard ones."""


def calibrate(weights: Path, *, frames: int) -> dict[str, float]:
    """Fit the rule of a network, and of the same without fusion, and write them into its card.

    Raises
    ------
    ModelError : the rule is not finite, as that of a network whose answers are no numbers
    """
    logger.info("calibrating its expected error on %d frames", frames)
    rule, alone = fit(Denoiser(model=str(weights)), frames), {}
    if parts(load_tensors(weights))[1]:
        alone = fit(Denoiser(model=str(weights), fusion=False), frames)
    if not np.isfinite([*rule.values(), *alone.values()]).all():
        raise ModelError(f"{weights}: the rule for its expected error is not finite; train again with a smaller learning_rate")
    write_card(weights, msgspec.structs.replace(load_card(weights), trust=rule, trust_alone=alone))
    return rule


def fit(denoiser: Denoiser, frames: int) -> dict[str, float]:
    """Coefficients of the linear rule: logarithm of the error's share of the range, from the features of the evidence."""
    rows: list[dict[str, float]] = []
    errors: list[float] = []
    for number, (share, recipe) in enumerate(_RECIPES):
        count = max(1, round(frames * share))
        mixer = Mixer(recipe, seed=_SEED + number, particles=max(2, count // 6), views=3)
        for index in range(count):
            frame = mixer.sample(np.random.default_rng([_SEED + number, index]))
            if np.ptp(frame.raw) == 0:
                continue
            evidence, error = judged(denoiser, frame)
            rows.append(evidence.features())
            errors.append(float(np.log10(max(error / max(evidence.range, 1e-12), 1e-5))))
    return linear_rule(rows, errors)


def linear_rule(rows: Sequence[Mapping[str, float]], errors: Sequence[float]) -> dict[str, float]:
    """The linear rule for the logarithms `errors`, from the features of as many frames."""
    names = [name for name in sorted(rows[0]) if all(name in row for row in rows)]
    matrix = np.array([[row[name] for name in names] for row in rows])
    mean, scale = matrix.mean(0), np.maximum(matrix.std(0), 1e-6)
    weights = _ridge((matrix - mean) / scale, np.array(errors)) / scale
    intercept = float(np.mean(errors) - weights @ mean)
    return {"intercept": round(intercept, 5), **{name: round(float(w), 5) for name, w in zip(names, weights, strict=True)}}


def judged(denoiser: Denoiser, frame: Frame) -> tuple[trust.Evidence, float]:
    """Evidence of one subtraction, and its true root mean square error."""
    estimate, image = denoiser.estimate(frame.raw)
    return trust.gather(image, estimate), float(np.sqrt(np.mean((estimate.background - frame.background) ** 2)))


def _ridge(matrix: Array, values: Array) -> Array:
    centred = values - values.mean()
    weights: Array = np.linalg.solve(matrix.T @ matrix + _RIDGE * len(values) * np.eye(matrix.shape[1]), matrix.T @ centred)
    return weights
