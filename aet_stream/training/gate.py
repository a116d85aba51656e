"""The gate's training: frames go once through the finished network and the other experts, then are learned from many times.

Making a sample of a frame (network, kriging, fringes) takes a hundred times as long as learning from it. Samples are cached in one file in
the folder of the run: all that the gate is given of a frame, and the truth. A stopped run goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from aet_stream import durable
from aet_stream.config import Denoise
from aet_stream.denoise.architectures import load_network
from aet_stream.denoise.coarse_grid import CoarseGrid
from aet_stream.denoise.features import describe
from aet_stream.denoise.fusion.experts import consult
from aet_stream.denoise.fusion.gate import CHANNELS, gate_inputs
from aet_stream.denoise.fusion.kriging import EDGE, pooled
from aet_stream.projection import Array
from aet_stream.training.batches import cropped, in_blocks
from aet_stream.training.dataset import Frame, Mixer
from aet_stream.training.losses import TRUTH, fused_error
from aet_stream.training.preset import GatePreset, Preset

logger = logging.getLogger(__name__)

SAMPLES_FILE = "samples.npy"
_SAY_EVERY_S = 20.0
_OTHERS = 500_009
"""Added to the seed of a run for the particles and frames of the samples."""


def as_preset(preset: Preset, gate: GatePreset) -> Preset:
    """The run of the gate as if it were one of its own."""
    alike = {name: getattr(gate, name) for name in ("batch", "steps", "learning_rate", "weight_decay", "average", "particles", "views")}
    return msgspec.structs.replace(preset, name=f"{preset.name}-gate", gate=None, held_out=0, warm_up=100, decay=0.5, **alike)


def origin(network_sha256: str, preset: Preset, gate: GatePreset) -> str:
    """SHA-256 of all that decides the samples: the network, and the frames that it sees."""
    frames = (preset.seed, preset.recipe, gate.particles, gate.views, gate.frames, gate.plain)
    return hashlib.sha256(msgspec.json.encode((network_sha256, frames))).hexdigest()


def keep_only_own(out: Path, origin: str, *, resume: bool) -> None:
    """Make the gate's folder, or throw out of it what another network or other samples have left (without `resume`: all of it)."""
    note = out / "origin.txt"
    out.mkdir(exist_ok=True)
    if resume and note.is_file() and note.read_text(encoding="utf-8") == origin:
        return
    for path in (out / "checkpoint.pt", out / SAMPLES_FILE):
        if path.exists():
            logger.info("%s: not of this network and its samples, thrown away; the gate starts anew", path)
            path.unlink()
    durable.replace(note, origin.encode())


class Samples(Dataset[Array]):
    """(len(CHANNELS) + len(TRUTH), EDGE, EDGE) float32 of one frame each: what the gate is given, and the truth."""

    def __init__(self, weights: Path, preset: Preset, gate: GatePreset) -> None:
        self._network = cast(CoarseGrid, load_network(weights, Denoise(device="cpu", threads=1, fusion=False)))
        self._seed, self._plain = preset.seed + _OTHERS + 2, gate.plain
        simple = msgspec.structs.replace(preset, plain=True, amplify=1.0).recipe
        self._of_all, self._of_plain = (
            Mixer(recipe, seed=preset.seed + _OTHERS + number, particles=gate.particles, views=gate.views)
            for number, recipe in ((0, preset.recipe), (1, simple))
        )

    def __getitem__(self, index: int) -> Array:
        torch.set_num_threads(1)
        rng = np.random.default_rng([self._seed, index])
        if rng.random() < self._plain:
            return self.sample(self._of_plain.sample(rng))
        return self.sample(cropped(rng, self._of_all.sample(rng)))

    def sample(self, frame: Frame) -> Array:
        """Of one frame."""
        blocks = describe(frame.raw)
        output, drawn = self._network.alone(blocks, (frame.raw.shape[0], frame.raw.shape[1]))
        inputs = gate_inputs(blocks, output, consult(frame.raw, blocks, output, drawn))
        truth, particle = (pooled(part.astype(np.float64)) for part in in_blocks(frame, blocks))
        rows, columns = truth.shape
        known = np.zeros((len(TRUTH), EDGE, EDGE), np.float32)
        known[:, :rows, :columns] = np.stack([truth, particle, np.full_like(truth, blocks.span)])
        return np.concatenate([inputs, known])

    def of(self, frames: Sequence[Frame]) -> Tensor:
        """(n, ...) the samples of some frames."""
        return torch.from_numpy(np.stack([self.sample(frame) for frame in frames]))


def cached(samples: Samples, count: int, path: Path, makers: int) -> Array:
    """Make `count` samples, in processes beside this one; returns (count, channels, rows, columns), which stay on disk.

    Raises
    ------
    OutputFull : the disk has no room for them
    """
    shape = (count, len(CHANNELS) + len(TRUTH), EDGE, EDGE)
    if path.exists():
        stored = np.lib.format.open_memmap(path, "r+")
    if not path.exists() or stored.shape != shape:
        with durable.disk_errors(path):
            stored = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            _take_room(path)
    missing = [index for index in range(count) if not stored[index, -1, 0, 0]]
    began = said_at = time.monotonic()
    made = DataLoader(samples, None, sampler=missing, num_workers=makers)
    for done, (index, sample) in enumerate(zip(missing, made, strict=True), 1):
        stored[index] = sample
        if time.monotonic() - said_at > _SAY_EVERY_S:
            said_at = time.monotonic()
            left = (said_at - began) / done * (len(missing) - done) / 60
            logger.info("%d of %d samples, about %.0f min left", count - len(missing) + done, count, left)
    return stored


def _take_room(path: Path) -> None:
    """Have the disk set aside a whole new file now: a write to its mapped memory later, when the disk is full, would kill the process."""
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return  # this file system cannot
            path.unlink()
            raise


class GateBatches(Dataset[Tensor]):
    """One batch per step of a run: samples at random, each batch in one of eight turns and flips."""

    def __init__(self, stored: Array, *, seed: int, batch: int) -> None:
        self._stored, self._seed, self._batch = stored, seed, batch

    def __getitem__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self._seed, step])
        chosen = np.sort(rng.integers(len(self._stored), size=self._batch))
        batch = torch.from_numpy(self._stored[chosen])
        turned = [axis for axis in (2, 3) if rng.random() < 0.5]
        batch = batch.flip(turned) if turned else batch
        return batch.transpose(2, 3) if rng.random() < 0.5 else batch


def gate_errors(model: nn.Module, samples: Tensor, device: torch.device) -> Tensor:
    """(n,) mean square errors of samples, fused as the gate of both views has it."""
    batch = samples.to(device)
    views = [model(view[:, : len(CHANNELS)]).correction for view in (batch, batch.transpose(2, 3))]
    return fused_error(batch, (views[0] + views[1].transpose(1, 2)) / 2, batch[:, CHANNELS.index("valid")])
