"""What a network learns from and how its answers are judged, by what denoise/architectures.py says that its kind learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from aet_stream.denoise.architectures import architecture
from aet_stream.training.batches import CoarseBatches, PatchBatches, coarse_batch
from aet_stream.training.dataset import Frame, Mixer
from aet_stream.training.losses import block_errors, coarse_loss, frame_errors, patch_loss
from aet_stream.training.preset import Preset

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Task:
    """One way to show frames to a network."""

    batches: Callable[[Preset, Mixer, int, int], Dataset[Any]]
    """(preset, mixer, seed, frames or patches in a batch) -> one batch per step"""
    loss: Loss
    """(model, batch) -> scalar"""
    made_ready: Callable[[Sequence[Frame]], Any]
    """Judging frames, once for all"""
    errors: Callable[[nn.Module, Any, torch.device], Tensor]
    """(model, what was made ready, device) -> (n,) mean square errors in units of the signal"""
    alike: bool = False
    """In shape: on a GPU a step is then recorded once and played"""


TASKS = {
    "blocks": Task(lambda _, mixer, seed, batch: CoarseBatches(mixer, seed=seed, batch=batch), coarse_loss, coarse_batch, block_errors),
    "patches": Task(
        lambda preset, mixer, seed, batch: PatchBatches(
            mixer, seed=seed, batch=batch, patch_px=preset.patch_px, per_frame=preset.patches_per_frame
        ),
        patch_loss, list, frame_errors, alike=True,
    ),
}  # fmt: skip


def task_of(preset: Preset) -> Task:
    """Of the network that a preset names."""
    return TASKS[architecture(preset.network).learns_from]
