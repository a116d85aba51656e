"""The training loop: simulated frames in, a safetensors file and its card out. Read from top to bottom.

Any preset (training/presets/*.toml) runs on a CPU or one GPU; a stopped run goes on exactly where it was.
"""

from __future__ import annotations

import copy
import csv
import datetime
import io
import json
import logging
import math
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from aet_stream import __version__, durable
from aet_stream.denoise import grid
from aet_stream.denoise.classical import find_vacuum
from aet_stream.denoise.dncnn import DnCNN
from aet_stream.denoise.features import LAPLACE_CHANNEL, coarse_inputs, normalisation
from aet_stream.denoise.weights_file import Card, save_weights
from aet_stream.errors import ConfigError
from aet_stream.projection import Array
from aet_stream.training.dataset import FRAME_PX, Mixer

logger = logging.getLogger(__name__)

VALIDATION_FRAMES = 128
VALIDATE_EVERY = 250
SAY_EVERY_S = 20.0


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained, on what, and how long."""

    name: str
    grid_blocks: int
    """Blocks along the longer edge of a frame; 0: full resolution, in patches."""
    in_channels: int
    backgrounds: list[str]
    noise: bool
    particles: int
    views: int
    background_count: int
    batch: int
    steps: int
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    loss: Literal["mse", "rms"]
    bfloat16: bool
    """May inference use bfloat16?"""
    patch_px: int = 0
    patches_per_frame: int = 1


def load_preset(name: str) -> Preset:
    """A shipped preset by name, or one from a TOML file.

    Raises
    ------
    ConfigError : there is none, or it is wrong
    """
    folder = Path(__file__).parent / "presets"
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Preset)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise ConfigError(f"no preset {name!r}: choose {known}, or give a .toml file") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


def learning_rate(step: int, done: float, preset: Preset) -> float:
    """The rate at a step, `done` being the part of the run behind it (0..1)."""
    if preset.schedule == "constant":
        return preset.learning_rate
    return preset.learning_rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs (n, channels, y, x), background to predict (n, 1, y, x), both normalised, and the range of each frame (n,)."""


def draw_batch(mixer: Mixer, rng: np.random.Generator, preset: Preset, count: int) -> Batch:
    """`count` samples: whole frames on the coarse grid, or patches at full resolution."""
    inputs: list[Array] = []
    targets: list[Array] = []
    ranges: list[float] = []
    while len(inputs) < count:
        frame = mixer.sample(rng)
        low, span = normalisation(frame.raw)
        raw, below = (frame.raw - low) / span, (frame.background - low) / span
        if preset.grid_blocks:
            vacuum = find_vacuum(frame.raw)
            inputs.append(coarse_inputs(frame.raw, vacuum, low, span))
            targets.append(grid.at_centres(below, vacuum.block_px)[None])
            ranges.append(span)
            continue
        for _ in range(min(preset.patches_per_frame, count - len(inputs))):
            y, x = rng.integers(0, FRAME_PX - preset.patch_px, 2)
            window = np.s_[y : y + preset.patch_px, x : x + preset.patch_px]
            inputs.append(raw[window][None])
            targets.append(below[window][None])
            ranges.append(span)
    stacked = [torch.from_numpy(np.stack(part).astype(np.float32)) for part in (inputs, targets)]
    return stacked[0].contiguous(memory_format=torch.channels_last), stacked[1], torch.tensor(ranges)


def mean_square_errors(model: nn.Module, batch: Batch, device: torch.device, *, coarse: bool) -> Tensor:
    """(n,) mean square error of each predicted background, in normalised units; a coarse network corrects the Laplace estimate."""
    inputs, targets, _ = (part.to(device) for part in batch)
    with torch.autocast(device.type, torch.bfloat16):
        predicted: Tensor = model(inputs).float()  # (n, 1, y, x)
    if coarse:
        predicted = predicted + inputs[:, LAPLACE_CHANNEL : LAPLACE_CHANNEL + 1]
    return (predicted - targets).square().mean((1, 2, 3))


class Training:
    """Everything that a checkpoint has to hold."""

    def __init__(self, preset: Preset, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.preset, self.seed, self.device = preset, seed, device
        self.coarse = preset.grid_blocks > 0
        self.model = DnCNN(in_channels=preset.in_channels).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model)
        """Running mean of the weights: it generalises better than any single step."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=preset.learning_rate)
        self.step = 0
        self.minutes = 0.0
        self.rng = np.random.default_rng(seed)

    def one_step(self, mixer: Mixer, done: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, done, self.preset)
        self.model.train()
        errors = mean_square_errors(
            self.model, draw_batch(mixer, self.rng, self.preset, self.preset.batch), self.device, coarse=self.coarse
        )
        loss = torch.sqrt(errors + 1e-7).mean() if self.preset.loss == "rms" else errors.mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(0.998, self.step / (self.step + 10))
        for mean, now in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.mul_(keep).add_(now, alpha=1 - keep)
            else:
                mean.copy_(now)

    @torch.no_grad()
    def psnr_db(self, validation: Batch) -> tuple[float, float]:
        """(mean, worst) over fixed frames of particles that are never trained on; 0 dB = the brightest particle pixel."""
        errors = mean_square_errors(self.average.eval(), validation, self.device, coarse=self.coarse).cpu() * validation[2] ** 2
        figures = -10 * torch.log10(errors + 1e-12)
        return float(figures.mean()), float(figures.min())

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "optimizer": self.optimizer.state_dict()}
        facts = {"step": self.step, "minutes": self.minutes, "rng": json.dumps(self.rng.bit_generator.state), "preset": self.preset.name}
        buffer = io.BytesIO()
        torch.save({**state, **facts}, buffer)
        durable.replace(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        if state["preset"] != self.preset.name:
            raise ConfigError(f"{path} belongs to preset {state['preset']!r}, not {self.preset.name!r}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.minutes = state["step"], state["minutes"]
        self.rng.bit_generator.state = json.loads(state["rng"])


def run(preset_name: str, out: Path, *, minutes: float = 0.0, seed: int = 0, threads: int = 0, resume: bool = False) -> Path:
    """Train, and write `<name>.safetensors` with its card to `out`; returns the path of the weights.

    Parameters
    ----------
    minutes : stop after this long, the schedule fitted to it; 0: after the preset's steps
    """
    if threads:
        torch.set_num_threads(threads)
    preset = load_preset(preset_name)
    out.mkdir(parents=True, exist_ok=True)
    training = Training(preset, seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    checkpoint = out / "checkpoint.pt"
    if resume and checkpoint.exists():
        training.load(checkpoint)
    logger.info("%s: making particles and backgrounds", preset.name)
    pool = {"views": preset.views, "backgrounds": preset.backgrounds, "noise": preset.noise}
    mixer = Mixer(seed=2 * seed + 1, particles=preset.particles, background_count=preset.background_count, **pool)  # type: ignore[arg-type]
    unseen = Mixer(seed=2 * seed + 2, particles=16, background_count=60, **pool)  # type: ignore[arg-type]
    validation = draw_batch(unseen, np.random.default_rng(99), preset, VALIDATION_FRAMES)
    _loop(training, mixer, validation, minutes, out)
    mean_db, worst_db = training.psnr_db(validation)
    return save_weights(out / f"{preset.name}.safetensors", training.average, _card(training, mean_db, worst_db))


def _loop(training: Training, mixer: Mixer, validation: Batch, minutes: float, out: Path) -> None:
    started, before, said_at = time.monotonic(), training.minutes, 0.0
    done: Callable[[], float] = lambda: training.minutes / minutes if minutes else training.step / training.preset.steps  # noqa: E731
    while done() < 1:
        loss = training.one_step(mixer, done())
        training.minutes = before + (time.monotonic() - started) / 60
        if time.monotonic() - said_at > SAY_EVERY_S:
            said_at = time.monotonic()
            left = training.minutes * (1 / max(done(), 1e-6) - 1)
            logger.info("step %d, loss %.3f, %.0f %%, about %.0f min left", training.step, loss, 100 * done(), left)
        if training.step % VALIDATE_EVERY == 0 or done() >= 1:
            mean_db, worst_db = training.psnr_db(validation)
            logger.info("step %d: unseen particles %.2f dB, worst %.2f dB", training.step, mean_db, worst_db)
            _log_row(out / "log.csv", [training.step, round(training.minutes, 2), round(loss, 4), round(mean_db, 3), round(worst_db, 3)])
            training.save(out / "checkpoint.pt")


def _log_row(path: Path, row: list[float]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "minutes", "loss", "validation_mean_db", "validation_worst_db"])
        writer.writerow(row)


def _card(training: Training, mean_db: float, worst_db: float) -> Card:
    preset = training.preset
    return Card(
        name=preset.name,
        in_channels=preset.in_channels,
        grid_blocks=preset.grid_blocks,
        bfloat16=preset.bfloat16,
        data_seed=training.seed,
        trained={
            "preset": msgspec.structs.asdict(preset),
            "steps": training.step,
            "minutes": round(training.minutes, 1),
            "part_of_preset": round(training.step / preset.steps, 4),
            "device": training.device.type,
            "software": f"aet_stream {__version__}, torch {torch.__version__}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
        figures={
            "validation_mean_db": round(mean_db, 2),
            "validation_worst_db": round(worst_db, 2),
            "validation_frames": VALIDATION_FRAMES,
        },
    )
