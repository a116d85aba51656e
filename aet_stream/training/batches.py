"""Batches: what a network is shown and what it should answer. Step i of a run always sees the same batch, whoever makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from aet_stream.denoise import grid
from aet_stream.denoise.coarse import MULTIPLE
from aet_stream.denoise.features import Blocks, describe, normalisation
from aet_stream.projection import Array
from aet_stream.training.dataset import Frame, Mixer

IN_PARTICLE = 0.01
"""A block belongs to the particle where it reaches this share of the brightest pixel."""


class CoarseBatch(NamedTuple):
    """Frames in blocks, see denoise/features.py; everything normalised as there."""

    statistics: Tensor
    """(n, 5, rows, columns)"""
    valid: Tensor
    """(n, rows, columns): 1 in the frame, 0 where it was padded"""
    known: Tensor
    """(n, rows, columns): 1 where the truth is known; of simulated frames everywhere in the frame"""
    background: Tensor
    """(n, rows, columns): what is to be found"""
    particle: Tensor
    """(n, rows, columns): 1 where the particle is"""
    span: Tensor
    """(n,): a normalised error times this is one in units of the signal"""


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch of any kind, there; from pinned memory without waiting for it."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(*(part.to(device, non_blocking=True) for part in batch))


def coarse_batch(frames: Sequence[Frame], known: Sequence[Array] | None = None) -> CoarseBatch:
    """Frames of up to 64 x 64 blocks, padded to the same number; `known`: in which blocks of each the truth is known, default in all."""
    return stacked([_coarse(frame, known[i] if known else None) for i, frame in enumerate(frames)])


def stacked(parts: Sequence[CoarseBatch]) -> CoarseBatch:
    """Several batches as one."""
    shape = [-(-max(part.valid.shape[axis] for part in parts) // MULTIPLE) * MULTIPLE for axis in (-2, -1)]
    fields = []
    for name in CoarseBatch._fields:
        arrays = [getattr(part, name) for part in parts]
        if name != "span":
            arrays = [_padded(array, shape, 0.0 if name in ("valid", "known") else None) for array in arrays]
        fields.append(torch.cat(arrays))
    return CoarseBatch(*fields)


def _coarse(frame: Frame, known: Array | None) -> CoarseBatch:
    blocks = describe(frame.raw)
    truth, particle = in_blocks(frame, blocks)
    valid = np.ones(truth.shape)
    parts = (blocks.statistics, valid, valid if known is None else known, truth, particle, np.array(blocks.span))
    return CoarseBatch(*(torch.from_numpy(np.asarray(part, np.float32))[None] for part in parts))


def in_blocks(frame: Frame, blocks: Blocks) -> tuple[Array, Array]:
    """((rows, columns) true background, normalised; bool: where the particle is)."""
    truth = grid.means(grid.in_blocks(frame.background, blocks.block_px))
    particle: Array = grid.in_blocks(frame.clean, blocks.block_px).max((1, 3)) > IN_PARTICLE
    return (truth - blocks.low) / blocks.span, particle


def _padded(array: Tensor, shape: Sequence[int], value: float | None) -> Tensor:
    """(..., rows, columns) grown at the end of its last two axes, by a value or by its last rows and columns."""
    width = (0, shape[1] - array.shape[-1], 0, shape[0] - array.shape[-2])
    if value is not None or not any(width):
        return functional.pad(array, width, value=value or 0.0)
    spread = array if array.ndim == 4 else array[None]
    grown = functional.pad(spread, width, "replicate")
    return grown if array.ndim == 4 else grown[0]


class CoarseBatches(Dataset[CoarseBatch]):
    """One batch per step of a run."""

    def __init__(self, mixer: Mixer, *, seed: int, batch: int) -> None:
        self._mixer, self._seed, self._batch = mixer, seed, batch

    def __getitem__(self, step: int) -> CoarseBatch:
        rng = np.random.default_rng([self._seed, step])
        return coarse_batch([cropped(rng, self._mixer.sample(rng)) for _ in range(self._batch)])


def cropped(rng: np.random.Generator, frame: Frame) -> Frame:
    """One frame in six loses some rows and columns, so that all shapes are known."""
    if rng.random() > 1 / 6:
        return frame
    size_px = len(frame.raw)
    least = size_px * 5 // 8
    y, x = rng.integers(0, size_px - least, 2)
    window = np.s_[y : y + rng.integers(least, size_px - y + 1), x : x + rng.integers(least, size_px - x + 1)]
    return Frame(frame.raw[window], frame.background[window], frame.clean[window], frame.particle)


class PatchBatch(NamedTuple):
    """Patches at full resolution, for the published network."""

    raw: Tensor
    """(n, 1, y, x) normalised"""
    background: Tensor
    """(n, 1, y, x)"""


class PatchBatches(Dataset[PatchBatch]):
    """One batch of patches per step."""

    def __init__(self, mixer: Mixer, *, seed: int, batch: int, patch_px: int, per_frame: int) -> None:
        self._mixer, self._seed, self._batch, self._patch_px, self._per_frame = mixer, seed, batch, patch_px, per_frame

    def __getitem__(self, step: int) -> PatchBatch:
        rng = np.random.default_rng([self._seed, step])
        raws: list[Array] = []
        truths: list[Array] = []
        while len(raws) < self._batch:
            frame = self._mixer.sample(rng)
            low, span = normalisation(frame.raw)
            for _ in range(min(self._per_frame, self._batch - len(raws))):
                y, x = rng.integers(0, len(frame.raw) - self._patch_px + 1, 2)
                window = np.s_[y : y + self._patch_px, x : x + self._patch_px]
                raws.append((frame.raw[window] - low) / span)
                truths.append((frame.background[window] - low) / span)
        return PatchBatch(*(torch.from_numpy(np.stack(part)[:, None].astype(np.float32)) for part in (raws, truths)))
