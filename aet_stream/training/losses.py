"""What a network is told about its answer: losses to learn from, errors to be judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise.coarse import Coarse, StageOutput
from aet_stream.denoise.features import normalisation
from aet_stream.denoise.fusion.gate import CHANNELS, Gate
from aet_stream.denoise.hardware import has_bfloat16
from aet_stream.training.batches import CoarseBatch, PatchBatch, on_device
from aet_stream.training.dataset import Frame

_FLOOR = 3e-7
"""Mean square error, in units of the signal, below which nothing more is to be gained: 65 dB."""
_FIRST_STAGE = 0.4
TRUTH = ("background", "particle", "span")
"""What follows the channels of the gate in a sample: true background, share of blocks with particle, span of the frame."""
_MUCH = 0.2
"""Share of particle from which a point lies under it."""


def coarse_loss(model: Coarse, batch: CoarseBatch) -> Tensor:
    """Scalar: decibels first, the worst frames by their root mean square beside them, and what else a stage puts out."""
    total = torch.zeros((), device=batch.span.device)
    stages = model(batch.statistics, batch.valid)
    for output, share in zip(stages, [_FIRST_STAGE] * (len(stages) - 1) + [1.0], strict=True):
        total = total + share * _stage_loss(output, batch)
    return total


def _stage_loss(output: StageOutput, batch: CoarseBatch) -> Tensor:
    inside = batch.particle * batch.known
    everywhere = mean_square_error(output.background, batch, batch.known)
    under = mean_square_error(output.background, batch, inside)
    loss = 0.5 * (everywhere + _FLOOR).log() + 6 * (everywhere + _FLOOR).sqrt()
    loss = loss + 0.25 * (under + _FLOOR).log() + 3 * (under + _FLOOR).sqrt()
    loss = loss + 0.5 * (mean_square_error(output.before_solve, batch, inside) + 1e-5).sqrt()
    support = functional.binary_cross_entropy_with_logits(output.support, batch.particle, batch.known, reduction="none").mean((1, 2))
    squares = (output.background - batch.background).detach().square()
    calibration = (functional.smooth_l1_loss(output.log_error, (squares + 1e-7).log(), reduction="none") * batch.known).mean((1, 2))
    return (loss + 0.2 * support + 0.02 * calibration).mean()


def mean_square_error(background: Tensor, batch: CoarseBatch, where: Tensor) -> Tensor:
    """(n,) in units of the signal, over the blocks named by `where`; 0 where there are none."""
    squares = (background - batch.background).square() * where
    return squares.sum((1, 2)) / where.sum((1, 2)).clamp(min=1) * batch.span.square()


def gate_loss(model: Gate, samples: Tensor) -> Tensor:
    """Scalar: decibels and the worst frames as in `coarse_loss`, and how well the gate knows what error is left."""
    mixture = model(samples[:, : len(CHANNELS)])
    valid = samples[:, CHANNELS.index("valid")]
    particle = (samples[:, len(CHANNELS) + TRUTH.index("particle")] > _MUCH) * valid
    everywhere, under = (fused_error(samples, mixture.correction, where) for where in (valid, particle))
    loss = 0.5 * (everywhere + _FLOOR).log() + 6 * (everywhere + _FLOOR).sqrt()
    loss = loss + 0.25 * (under + _FLOOR).log() + 3 * (under + _FLOOR).sqrt()
    squares = _left(samples, mixture.correction).detach().square()
    calibration = (functional.smooth_l1_loss(mixture.log_error, (squares + 1e-7).log(), reduction="none") * valid).mean((1, 2))
    whole = ((squares * valid).sum((1, 2)) / valid.sum((1, 2))).clamp(min=1e-9).log() / 2
    total: Tensor = (loss + 0.02 * calibration + 0.1 * (mixture.frame_log_error - whole).square()).mean()
    return total


def fused_error(samples: Tensor, correction: Tensor, where: Tensor) -> Tensor:
    """(n,) mean square error of a corrected background in units of the signal, over the points named by `where`; 0 where there are none."""
    squares = _left(samples, correction).square() * where
    span = samples[:, len(CHANNELS) + TRUTH.index("span")].amax((1, 2))
    return squares.sum((1, 2)) / where.sum((1, 2)).clamp(min=1) * span.square()


def _left(samples: Tensor, correction: Tensor) -> Tensor:
    return samples[:, CHANNELS.index("network")] + correction - samples[:, len(CHANNELS) + TRUTH.index("background")]


def patch_loss(model: nn.Module, batch: PatchBatch) -> Tensor:
    """Mean square error, as published."""
    with torch.autocast(batch.raw.device.type, torch.bfloat16, enabled=has_bfloat16(batch.raw.device.type)):
        predicted: Tensor = model(batch.raw.contiguous(memory_format=torch.channels_last)).float()
    return functional.mse_loss(predicted, batch.background)


def block_errors(model: nn.Module, batch: CoarseBatch, device: torch.device) -> Tensor:
    """(n,) mean square errors of a network on blocks, in units of the signal."""
    batch = on_device(batch, device)
    return mean_square_error(model(batch.statistics, batch.valid)[-1].background, batch, batch.known)


def frame_errors(model: nn.Module, frames: Sequence[Frame], device: torch.device) -> Tensor:
    """(n,) mean square errors of a network at full resolution, in units of the signal."""
    errors = []
    for frame in frames:
        low, span = normalisation(frame.raw)
        raw = torch.from_numpy((frame.raw - low) / span)[None, None].to(device, memory_format=torch.channels_last)
        background = model(raw)[0, 0].cpu().numpy() * span + low
        errors.append(float(np.mean((background - frame.background) ** 2)))
    return torch.tensor(errors)
