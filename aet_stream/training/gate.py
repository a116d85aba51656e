"""The referee's training: frames are heard once by the finished network and the classical witnesses, then learned from many times.

Hearing a frame (network, vacuum, lattice) takes a hundred times as long as learning from it. What was said of each, and the truth, is
written to one file in the folder of the run; a stopped run goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from aet_stream import durable
from aet_stream.denoise.coarse_grid import OnBlocks, told
from aet_stream.denoise.features import describe
from aet_stream.denoise.fusion.gate import CHANNELS
from aet_stream.denoise.fusion.kriging import EDGE, pooled
from aet_stream.denoise.weights_file import load_card
from aet_stream.projection import Array
from aet_stream.training.batches import cropped, in_blocks
from aet_stream.training.dataset import Frame, Mixer
from aet_stream.training.judge import figures
from aet_stream.training.losses import TRUTH, heard_error
from aet_stream.training.preset import Preset, RefereePreset

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 20.0
_OTHERS = 500_009
"""Added to the seed of a run for the particles and frames that are heard."""


def as_preset(preset: Preset, referee: RefereePreset) -> Preset:
    """The run of the referee as if it were one of its own."""
    alike = {name: getattr(referee, name) for name in ("batch", "steps", "learning_rate", "weight_decay", "average", "particles", "views")}
    return msgspec.structs.replace(preset, name=f"{preset.name}-referee", referee=None, held_out=0, warm_up=100, decay=0.5, **alike)


def origin(network_sha256: str, preset: Preset, referee: RefereePreset) -> str:
    """SHA-256 of all that decides the hearings: the network, and the frames it hears."""
    frames = (preset.seed, preset.recipe, referee.particles, referee.views, referee.frames, referee.plain)
    return hashlib.sha256(msgspec.json.encode((network_sha256, frames))).hexdigest()


def keep_only_own(out: Path, origin: str, *, resume: bool) -> None:
    """Make the referee's folder, or throw out of it what another network or other hearings have left (without `resume`: all of it)."""
    note = out / "origin.txt"
    out.mkdir(exist_ok=True)
    if resume and note.is_file() and note.read_text(encoding="utf-8") == origin:
        return
    for path in (out / "checkpoint.pt", out / "hearings.npy"):
        if path.exists():
            logger.info("%s: not of this network and its hearings, thrown away; the referee starts anew", path)
            path.unlink()
    durable.replace(note, origin.encode())


class Hearings(Dataset[Array]):
    """(len(CHANNELS) + len(TRUTH), EDGE, EDGE) float32 of one frame each: what the referee is told, and the truth."""

    def __init__(self, weights: Path, preset: Preset, referee: RefereePreset) -> None:
        self._network = OnBlocks(weights, load_card(weights), device="cpu", threads=1)
        self._seed, self._plain = preset.seed + _OTHERS + 2, referee.plain
        simple = msgspec.structs.replace(preset, plain=True, amplify=1.0).recipe
        self._of_all, self._of_plain = (
            Mixer(recipe, seed=preset.seed + _OTHERS + number, particles=referee.particles, views=referee.views)
            for number, recipe in ((0, preset.recipe), (1, simple))
        )

    def __getitem__(self, index: int) -> Array:
        torch.set_num_threads(1)
        rng = np.random.default_rng([self._seed, index])
        if rng.random() < self._plain:
            return self.heard(self._of_plain.sample(rng))
        return self.heard(cropped(rng, self._of_all.sample(rng)))

    def heard(self, frame: Frame) -> Array:
        """The hearing of a frame."""
        blocks = describe(frame.raw)
        word, drawn, _ = self._network.word(frame.raw, blocks)
        statement = told(frame.raw, blocks, word, drawn)
        truth, particle = (pooled(part.astype(np.float64)) for part in in_blocks(frame, blocks))
        rows, columns = truth.shape
        known = np.zeros((len(TRUTH), EDGE, EDGE), np.float32)
        known[:, :rows, :columns] = np.stack([truth, particle, np.full_like(truth, blocks.span)])
        return np.concatenate([statement, known])

    def of(self, frames: Sequence[Frame]) -> Tensor:
        """(n, ...) the hearings of some frames."""
        return torch.from_numpy(np.stack([self.heard(frame) for frame in frames]))


def record(hearings: Hearings, count: int, path: Path, makers: int) -> Array:
    """Hear `count` frames, in processes beside this one; returns (count, channels, rows, columns), which stay on disk.

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
    for done, (index, heard) in enumerate(zip(missing, DataLoader(hearings, None, sampler=missing, num_workers=makers), strict=True), 1):
        stored[index] = heard
        if time.monotonic() - said_at > _SAY_EVERY_S:
            said_at = time.monotonic()
            left = (said_at - began) / done * (len(missing) - done) / 60
            logger.info("heard %d of %d frames, about %.0f min left", count - len(missing) + done, count, left)
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


class HearingBatches(Dataset[Tensor]):
    """One batch per step of a run: hearings at random, each batch in one of eight turns and flips."""

    def __init__(self, stored: Array, *, seed: int, batch: int) -> None:
        self._stored, self._seed, self._batch = stored, seed, batch

    def __getitem__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self._seed, step])
        chosen = np.sort(rng.integers(len(self._stored), size=self._batch))
        batch = torch.from_numpy(self._stored[chosen])
        turned = [axis for axis in (2, 3) if rng.random() < 0.5]
        batch = batch.flip(turned) if turned else batch
        return batch.transpose(2, 3) if rng.random() < 0.5 else batch


class RefereeJudge:
    """The fixed frames of judge.Judge, heard."""

    def __init__(self, sets: dict[str, Tensor]) -> None:
        self._sets = sets

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean and worst PSNR of every set in dB; 0 dB is the brightest particle pixel."""
        model.eval()
        found: dict[str, float] = {}
        for name, heard in self._sets.items():
            batch = heard.to(device)
            views = [model(view[:, : len(CHANNELS)]).correction for view in (batch, batch.transpose(2, 3))]
            errors = heard_error(batch, (views[0] + views[1].transpose(1, 2)) / 2, batch[:, CHANNELS.index("valid")])
            found |= figures(name, errors)
        return found
