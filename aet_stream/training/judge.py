"""How a training run is judged on its way: by frames that never change, of particles that it never sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aet_stream.denoise.features import normalisation
from aet_stream.training.batches import coarse_batch, on_device
from aet_stream.training.dataset import LEARNT, Frame, Mixer, Recipe
from aet_stream.training.losses import mean_square_error
from aet_stream.training.preset import Preset

_UNSEEN = 1_000_003
"""Added to the seed of a run for the particles and frames that judge it."""


def judging(preset: Preset) -> dict[str, list[Frame]]:
    """The frames of every set: published setting, a hard one; for the published recipe also new frames of the particle it trains on."""
    recipes = {
        "published": Recipe(backgrounds=("gaussian",), noise=0.0, plain=True, sizes_px=(256,)),
        "hard": Recipe(backgrounds=("film",), noise=0.5, plain=True, kinds=LEARNT, sizes_px=(256,)),
    }
    mixers = {name: Mixer(recipe, seed=preset.seed + _UNSEEN, particles=8, views=3) for name, recipe in recipes.items()}
    if preset.held_out:
        mixers["own"] = Mixer(preset.recipe, seed=preset.seed, particles=preset.particles, views=preset.views)
        mixers["own"].pool.keep(slice(-preset.held_out, None))
    seed = preset.seed + _UNSEEN
    return {name: [mixer.sample(np.random.default_rng([seed, i])) for i in range(preset.judging_frames)] for name, mixer in mixers.items()}


class Judge:
    """PSNR of a network on the judging frames."""

    def __init__(self, preset: Preset) -> None:
        self._coarse = preset.network == "coarse"
        self._sets = {name: coarse_batch(frames) if self._coarse else frames for name, frames in judging(preset).items()}

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean and worst PSNR of every set in dB; 0 dB is the brightest particle pixel."""
        model.eval()
        found: dict[str, float] = {}
        for name, samples in self._sets.items():
            errors = self._coarse_errors(model, samples, device) if self._coarse else _full_errors(model, samples, device)
            found |= figures(name, errors)
        return found

    @staticmethod
    def _coarse_errors(model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        batch = on_device(batch, device)
        found = model(batch.statistics, batch.valid)[-1].background
        return mean_square_error(found, batch, batch.known)


def figures(name: str, errors: Tensor) -> dict[str, float]:
    """Mean and worst PSNR of a set in dB, from (n,) mean square errors in units of the signal."""
    decibels = -10 * torch.log10(errors.cpu() + 1e-12)
    return {f"{name}_mean_db": round(float(decibels.mean()), 2), f"{name}_worst_db": round(float(decibels.min()), 2)}


def _full_errors(model: nn.Module, samples: Any, device: torch.device) -> Tensor:
    errors = []
    for frame in samples:
        low, span = normalisation(frame.raw)
        raw = torch.from_numpy((frame.raw - low) / span)[None, None].to(device, memory_format=torch.channels_last)
        found = model(raw)[0, 0].cpu().numpy() * span + low
        errors.append(float(np.mean((found - frame.background) ** 2)))
    return torch.tensor(errors)
