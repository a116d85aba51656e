"""The training loop: simulated frames in, a safetensors file and its card out. Read from top to bottom.

Any preset (training/presets/*.toml) runs on a CPU, one GPU, or several by `torchrun`. Step i of a run sees the same frames whatever
happened before it, so a stopped run goes on exactly where it was.
"""

from __future__ import annotations

import copy
import csv
import ctypes
import datetime
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from aet_stream import __version__, durable
from aet_stream.denoise.coarse import Coarse
from aet_stream.denoise.dncnn import DnCNN
from aet_stream.denoise.weights_file import Card, save_weights
from aet_stream.errors import ConfigError
from aet_stream.training.batches import CoarseBatches, PatchBatches, coarse_batch
from aet_stream.training.calibrate import calibrate
from aet_stream.training.dataset import LEARNT, Mixer, Recipe
from aet_stream.training.losses import coarse_loss, mean_square_error, patch_loss
from aet_stream.training.preset import Preset, learning_rate, load_preset

logger = logging.getLogger(__name__)

VALIDATE_EVERY = 250
SAY_EVERY_S = 20.0
SAVE_EVERY_S = 300.0
_UNSEEN = 1_000_003
"""Added to the seed of a run for the particles and frames that judge it."""


def run(preset_name: str, out: Path, *, steps: int = 0, seed: int | None = None, threads: int = 0, resume: bool = False) -> Path:
    """Train, and write `<name>.safetensors` with its card, `log.csv` and `loss.png` to `out`; returns the path of the weights.

    Parameters
    ----------
    steps, seed : instead of the preset's; steps 0 and seed None: as it says
    threads : for the network's arithmetic; 0: the cores that making batches leaves
    """
    rank, ranks = _join()
    makers = max(1, _cores() // (2 * ranks))
    torch.set_num_threads(threads or max(1, _cores() // ranks - makers))
    _keep_memory()
    preset = load_preset(preset_name)
    preset = msgspec.structs.replace(preset, steps=steps or preset.steps, seed=preset.seed if seed is None else seed)
    out.mkdir(parents=True, exist_ok=True)
    training = Training(preset, _device(rank))
    if resume and (out / "checkpoint.pt").exists():
        training.load(out / "checkpoint.pt")
    logger.info("%s: making %d particles, %d views of each", preset.name, preset.particles, preset.views)
    mixer = Mixer(preset.recipe, seed=preset.seed, particles=preset.particles, views=preset.views)
    if preset.held_out:
        mixer.pool.keep(slice(0, -preset.held_out))
    judge = Judge(preset)
    loop(training, _batches(preset, mixer, training.step, rank, ranks, makers), judge, out if rank == 0 else None)
    path = out / f"{preset.name}.safetensors"
    if rank == 0:
        save_weights(path, training.average, _card(training, judge(training.average, training.device)))
        calibrate(path, frames=preset.calibration_frames)
    if ranks > 1:
        torch.distributed.destroy_process_group()
    return path


def _keep_memory() -> None:
    """Let glibc keep what it is given back: otherwise a third of every step goes into clearing pages for the same arrays again."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # another C library
    for parameter, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
        mallopt(parameter, value)


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def _join() -> tuple[int, int]:
    """(rank, number of ranks) as torchrun says; alone without it."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return int(os.environ.get("RANK", "0")), ranks


def _device(rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())


def _batches(preset: Preset, mixer: Mixer, first: int, rank: int, ranks: int, makers: int) -> Iterator[Any]:
    """One batch per step, made in processes beside this one; every rank makes its share."""
    seed, share = preset.seed + 7919 * (rank + 1), -(-preset.batch // ranks)
    if preset.network == "coarse":
        made: Any = CoarseBatches(mixer, seed=seed, batch=share)
    else:
        made = PatchBatches(mixer, seed=seed, batch=share, patch_px=preset.patch_px, per_frame=preset.patches_per_frame)
    return iter(DataLoader(made, batch_size=None, sampler=range(first, preset.steps), num_workers=makers, prefetch_factor=4))


class Training:
    """Everything that a checkpoint has to hold."""

    def __init__(self, preset: Preset, device: torch.device) -> None:
        torch.manual_seed(preset.seed)
        self.preset, self.device = preset, device
        self.model: nn.Module = Coarse() if preset.network == "coarse" else DnCNN()
        self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model)
        """Running mean of the weights: it generalises better than any single step."""
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=preset.learning_rate, weight_decay=preset.weight_decay, betas=(0.9, 0.99)
        )
        self._loss: Callable[[Any, Any], Tensor] = coarse_loss if preset.network == "coarse" else patch_loss
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._parallel: nn.Module = DistributedDataParallel(self.model) if several else self.model
        self.step = 0
        self.minutes = 0.0

    def one_step(self, batch: Any) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.preset)
        self._parallel.train()
        loss = self._loss(self._parallel, type(batch)(*(part.to(self.device) for part in batch)))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.step += 1
        if not torch.isfinite(norm):
            logger.warning("step %d: the gradient is not finite (loss %s); left out", self.step, float(loss.detach()))
            return float("nan")
        self.optimizer.step()
        self._update_average()
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.preset.average, self.step / (self.step + 10))
        for mean, now in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.mul_(keep).add_(now, alpha=1 - keep)
            else:
                mean.copy_(now)

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "optimizer": self.optimizer.state_dict()}
        buffer = io.BytesIO()
        torch.save({**state, "step": self.step, "minutes": self.minutes, "preset": self.preset.name, "seed": self.preset.seed}, buffer)
        durable.replace(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ConfigError : it belongs to another preset or seed
        """
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        if (state["preset"], state["seed"]) != (self.preset.name, self.preset.seed):
            raise ConfigError(f"{path} belongs to {state['preset']!r} with seed {state['seed']}: say so, or choose another --out")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.minutes = state["step"], state["minutes"]


class Judge:
    """Fixed frames of particles that are never trained on, in the published setting and a hard one; for the published recipe also new
    frames of the particle it trains on, as published."""

    def __init__(self, preset: Preset) -> None:
        self._coarse = preset.network == "coarse"
        recipes = {
            "published": Recipe(backgrounds=("gaussian",), noise=0.0, plain=True, sizes_px=(256,)),
            "hard": Recipe(backgrounds=("film",), noise=0.5, plain=True, kinds=LEARNT, sizes_px=(256,)),
        }
        mixers = {name: Mixer(recipe, seed=preset.seed + _UNSEEN, particles=8, views=3) for name, recipe in recipes.items()}
        if preset.held_out:
            mixers["own"] = Mixer(preset.recipe, seed=preset.seed, particles=preset.particles, views=preset.views)
            mixers["own"].pool.keep(slice(-preset.held_out, None))
        self._sets = {}
        for name, mixer in mixers.items():
            samples = [mixer.sample(np.random.default_rng([preset.seed + _UNSEEN, i])) for i in range(preset.judging_frames)]
            self._sets[name] = coarse_batch(samples) if self._coarse else samples

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean and worst PSNR of every set in dB; 0 dB is the brightest particle pixel."""
        model.eval()
        figures: dict[str, float] = {}
        for name, samples in self._sets.items():
            errors = self._coarse_errors(model, samples, device) if self._coarse else _full_errors(model, samples, device)
            decibels = -10 * torch.log10(errors.cpu() + 1e-12)
            figures |= {f"{name}_mean_db": round(float(decibels.mean()), 2), f"{name}_worst_db": round(float(decibels.min()), 2)}
        return figures

    @staticmethod
    def _coarse_errors(model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        batch = type(batch)(*(part.to(device) for part in batch))
        found = model(batch.statistics, batch.valid)[-1].background
        return mean_square_error(found, batch, batch.known)


def _full_errors(model: nn.Module, samples: Any, device: torch.device) -> Tensor:
    from aet_stream.denoise.features import normalisation

    errors = []
    for frame in samples:
        low, span = normalisation(frame.raw)
        raw = torch.from_numpy((frame.raw - low) / span)[None, None].to(device, memory_format=torch.channels_last)
        found = model(raw)[0, 0].cpu().numpy() * span + low
        errors.append(float(np.mean((found - frame.background) ** 2)))
    return torch.tensor(errors)


def loop(training: Training, batches: Iterator[Any], judge: Judge, out: Path | None) -> None:
    """Step by step to the end; `out` None: another rank keeps the books."""
    started, before, said_at, first = time.monotonic(), training.minutes, 0.0, training.step
    saved_at = started
    losses: list[float] = []
    for batch in batches:
        losses.append(training.one_step(batch))
        training.minutes = before + (time.monotonic() - started) / 60
        done = training.step == training.preset.steps
        if out is None:
            continue
        if time.monotonic() - said_at > SAY_EVERY_S:
            said_at = time.monotonic()
            left = (training.minutes - before) / (training.step - first) * (training.preset.steps - training.step)
            logger.info("step %d of %d, loss %.3f, about %.0f min left", training.step, training.preset.steps, losses[-1], left)
        if training.step % VALIDATE_EVERY == 0 or done:
            figures = judge(training.average, training.device)
            logger.info("step %d: %s", training.step, ", ".join(f"{name} {value}" for name, value in figures.items()))
            row = {"step": training.step, "minutes": round(training.minutes, 2), "loss": round(float(np.nanmean(losses)), 4), **figures}
            losses.clear()
            _log_row(out / "log.csv", row)
            _plot(out / "log.csv", out / "loss.png")
        if training.step % VALIDATE_EVERY == 0 or done or time.monotonic() - saved_at > SAVE_EVERY_S:
            saved_at = time.monotonic()
            training.save(out / "checkpoint.pt")


def _log_row(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _plot(log: Path, picture: Path) -> None:
    """Loss and figures over steps."""
    from matplotlib.figure import Figure

    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(8, 5), layout="constrained")
    loss, decibel = figure.subplots(2, 1, sharex=True)
    loss.plot(steps, [float(row["loss"]) for row in rows])
    loss.set_ylabel("training loss")
    for name in rows[0]:
        if name.endswith("_db"):
            label = name.removesuffix("_db").replace("_", ", ")
            decibel.plot(steps, [float(row[name]) for row in rows], "--" if "worst" in name else "-", label=label)
    decibel.set(xlabel="step", ylabel="unseen particles, dB")
    decibel.legend(fontsize="small")
    figure.savefig(picture, dpi=110)


def _card(training: Training, figures: dict[str, float]) -> Card:
    preset = training.preset
    return Card(
        name=preset.name,
        architecture="Coarse" if preset.network == "coarse" else "DnCNN",
        bfloat16=preset.bfloat16,
        data_seed=preset.seed,
        trained={
            "preset": msgspec.structs.asdict(preset),
            "steps": training.step,
            "minutes": round(training.minutes, 1),
            "device": training.device.type,
            "software": f"aet_stream {__version__}, torch {torch.__version__}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
        figures={**figures, "frames": preset.judging_frames},
    )
