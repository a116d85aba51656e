"""How a training run is judged on its way: by frames that never change, of particles that it never sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aet_stream.training.dataset import Frame, Mixer
from aet_stream.training.preset import Preset
from aet_stream.training.sets import HARD, PUBLISHED
from aet_stream.training.tasks import task_of

_UNSEEN = 1_000_003
"""Added to the seed of a run for the particles and frames that judge it."""


def judging(preset: Preset) -> dict[str, list[Frame]]:
    """The frames of every set: published setting, a hard one; for the published recipe also new frames of the particle it trains on."""
    recipes = {"published": PUBLISHED, "hard": HARD}
    mixers = {
        name: Mixer(recipe, seed=preset.seed + _UNSEEN, particles=min(8, preset.judging_frames), views=3)
        for name, recipe in recipes.items()
    }
    if preset.held_out:
        mixers["own"] = Mixer(preset.recipe, seed=preset.seed, particles=preset.particles, views=preset.views)
        mixers["own"].pool.keep(slice(-preset.held_out, None))
    seed = preset.seed + _UNSEEN
    return {name: [mixer.sample(np.random.default_rng([seed, i])) for i in range(preset.judging_frames)] for name, mixer in mixers.items()}


class Judge:
    """PSNR of a network on frames that are made ready, set by set; `errors` as in tasks.Task."""

    def __init__(self, sets: Mapping[str, Any], errors: Callable[[nn.Module, Any, torch.device], Tensor]) -> None:
        self._sets, self._errors = sets, errors

    @classmethod
    def of(cls, preset: Preset) -> Judge:
        """On the judging frames."""
        task = task_of(preset)
        return cls({name: task.made_ready(frames) for name, frames in judging(preset).items()}, task.errors)

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean and worst PSNR of every set in dB; 0 dB is the brightest particle pixel."""
        model.eval()
        marks: dict[str, float] = {}
        for name, samples in self._sets.items():
            marks |= figures(name, self._errors(model, samples, device))
        return marks


def figures(name: str, errors: Tensor) -> dict[str, float]:
    """Mean and worst PSNR of a set in dB, from (n,) mean square errors in units of the signal."""
    decibels = -10 * torch.log10(errors.cpu() + 1e-12)
    return {f"{name}_mean_db": round(float(decibels.mean()), 2), f"{name}_worst_db": round(float(decibels.min()), 2)}
