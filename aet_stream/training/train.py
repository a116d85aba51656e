"""The training loop: simulated frames in, a safetensors file and its card out. Read from top to bottom.

Any preset (training/presets/*.toml) runs on a CPU, one GPU, or several by `torchrun`. Step i of a run sees the same frames whatever
happened before it, so a stopped run goes on exactly where it was.
"""

from __future__ import annotations

import csv
import ctypes
import datetime
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
from torch.utils.data import DataLoader

from aet_stream import __version__, durable
from aet_stream.denoise.architectures import save_weights
from aet_stream.denoise.fusion.gate import Gate
from aet_stream.denoise.weights_file import Card, find_weights, load_card, load_tensors, parts
from aet_stream.errors import ConfigError
from aet_stream.training.calibrate import calibrate
from aet_stream.training.dataset import Mixer
from aet_stream.training.gate import SAMPLES_FILE, GateBatches, Samples, as_preset, cached, gate_errors, keep_only_own, origin
from aet_stream.training.judge import Judge, judging
from aet_stream.training.learning import Training
from aet_stream.training.losses import gate_loss
from aet_stream.training.preset import GatePreset, Preset, load_preset
from aet_stream.training.tasks import task_of

logger = logging.getLogger(__name__)

VALIDATE_EVERY = 250
"""Steps; in long runs more, so that there are about fifty times."""
SAY_EVERY_S = 20.0
SAVE_EVERY_S = 300.0
Judging = Callable[[nn.Module, torch.device], dict[str, float]]


def run(preset_name: str, out: Path, *, steps: int = 0, seed: int | None = None, threads: int = 0, resume: bool = False) -> Path:
    """Train, and write `<name>.safetensors` with its card, `log.csv` and `loss.png` to `out`; returns the path of the weights.

    Parameters
    ----------
    steps, seed : instead of the preset's; steps 0 and seed None: as it says
    threads : for the network's arithmetic; 0: the cores that making batches leaves
    resume : go on from the checkpoint in `out`, if there is one

    Raises
    ------
    ConfigError : the preset is wrong, or the checkpoint in `out` is not to be gone on from
    ModelError : the run has diverged
    """
    rank, ranks = _join()
    device = device_of(rank)
    makers = max(1, _cores() // (2 * ranks) if device.type == "cpu" else _cores() // ranks - 1)
    torch.set_num_threads(threads or max(1, _cores() // ranks - makers))
    _keep_memory()
    preset = load_preset(preset_name)
    preset = msgspec.structs.replace(preset, steps=steps or preset.steps, seed=preset.seed if seed is None else seed)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise ConfigError(f"--out {out} holds the checkpoint of another run: say --resume to go on with it, or choose another --out")
    training = Training(preset, device)
    if checkpoint.exists():
        training.load(checkpoint)
    elif preset.start:
        network, _ = _first_weights(preset.start)
        training.begin_with(network)
    logger.info("%s: making %d particles, %d views of each", preset.name, preset.particles, preset.views)
    mixer = Mixer(preset.recipe, seed=preset.seed, particles=preset.particles, views=preset.views)
    if preset.held_out:
        mixer.pool.keep(slice(0, -preset.held_out))
    judge = Judge.of(preset)
    loop(training, _batches(preset, mixer, training.step, rank, ranks, makers), judge, out if rank == 0 else None)
    if ranks > 1:
        torch.distributed.destroy_process_group()
    path = out / f"{preset.name}.safetensors"
    if rank == 0:
        save_weights(path, training.average.state_dict(), _card(training, judge(training.average, training.device)))
        if preset.gate:
            _train_gate(preset, preset.gate, training.device, path, threads=threads, resume=resume)
        calibrate(path, frames=preset.calibration_frames)
    return path


def _train_gate(preset: Preset, gate: GatePreset, device: torch.device, path: Path, *, threads: int, resume: bool) -> None:
    """Add a gate to the weights of a network. The first process alone: it takes a fraction of the time."""
    out = path.parent / "gate"
    training = Training(as_preset(preset, gate), device, Gate, gate_loss)
    keep_only_own(out, origin(load_card(path).sha256, preset, gate), resume=resume)
    if (out / "checkpoint.pt").exists():
        training.load(out / "checkpoint.pt")
    elif preset.start and (first := _first_weights(preset.start)[1]):
        training.begin_with(first)
    logger.info("its gate: making %d particles, %d views of each", gate.particles, gate.views)
    samples = Samples(path, preset, gate)
    judge = Judge({name: samples.of(frames) for name, frames in judging(preset).items()}, gate_errors)
    if training.step < gate.steps:
        stored = cached(samples, gate.frames, out / SAMPLES_FILE, _cores())
        torch.set_num_threads(threads or _cores())
        batches = DataLoader(GateBatches(stored, seed=preset.seed, batch=gate.batch), None, sampler=range(training.step, gate.steps))
        loop(training, iter(batches), judge, out)
    card = load_card(path)
    network, _ = parts(load_tensors(path))
    card = msgspec.structs.replace(card, figures=judge(training.average, device) | {"frames": preset.judging_frames})
    save_weights(path, network, card, training.average.state_dict())
    (out / SAMPLES_FILE).unlink(missing_ok=True)


def _first_weights(start: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(network, gate) of the file that a preset starts from.

    Raises
    ------
    ModelError : there is no such file
    """
    return parts(load_tensors(find_weights(start, setting="start")))


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


def device_of(rank: int) -> torch.device:
    """The GPU of this process, or the CPU.

    Raises
    ------
    ConfigError : there are more processes than GPUs
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    here, gpus = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
    if here >= gpus:
        raise ConfigError(f"torchrun --nproc-per-node: each process wants a GPU of its own, {gpus} found here: say at most {gpus}")
    return torch.device("cuda", here)


def _batches(preset: Preset, mixer: Mixer, first: int, rank: int, ranks: int, makers: int) -> Iterator[Any]:
    """One batch per step, made in processes beside this one; every rank makes its share."""
    seed, share = preset.seed + 7919 * (rank + 1), -(-preset.batch // ranks)
    made = task_of(preset).batches(preset, mixer, seed, share)
    steps, pinned = range(first, preset.steps), torch.cuda.is_available()
    return iter(DataLoader(made, batch_size=None, sampler=steps, num_workers=makers, prefetch_factor=4, pin_memory=pinned))


def loop(training: Training, batches: Iterator[Any], judge: Judging, out: Path | None) -> None:
    """Step by step to the end; `out` None: another rank keeps the books."""
    started, before, said_at, first = time.monotonic(), training.minutes, 0.0, training.step
    saved_at = started
    every = max(VALIDATE_EVERY, training.preset.steps // 50)
    losses: list[Tensor] = []
    if out and not training.step:
        (out / "log.csv").unlink(missing_ok=True)
    for batch in batches:
        loss = training.one_step(batch)
        training.minutes = before + (time.monotonic() - started) / 60
        done = training.step == training.preset.steps
        if out is None:
            continue
        losses.append(loss)
        if time.monotonic() - said_at > SAY_EVERY_S:
            said_at = time.monotonic()
            left = (training.minutes - before) / (training.step - first) * (training.preset.steps - training.step)
            logger.info("step %d of %d, loss %.4g, about %.0f min left", training.step, training.preset.steps, float(loss), left)
        judged = training.step % every == 0 or done
        figures: dict[str, float] = {}
        if judged:
            figures = judge(training.average, training.device)
            values = torch.stack(losses).cpu().numpy()
            losses.clear()
            if bad := np.count_nonzero(~np.isfinite(values)):
                logger.warning("%d of the last %d steps were left out: their gradients were not finite", bad, len(values))
        if judged or time.monotonic() - saved_at > SAVE_EVERY_S:
            saved_at = time.monotonic()
            training.refuse_divergence(figures)
            training.save(out / "checkpoint.pt")
        if judged:
            logger.info("step %d: %s", training.step, ", ".join(f"{name} {value}" for name, value in figures.items()))
            row = {"step": training.step, "minutes": round(training.minutes, 2), "loss": float(f"{np.nanmean(values):.4g}"), **figures}
            _log_row(out / "log.csv", row)
            _plot(out / "log.csv", out / "loss.png")


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
    losses = [float(row["loss"]) for row in rows]
    loss.plot(steps, losses)
    loss.set(ylabel="training loss", yscale="log" if min(losses) > 0 else "linear")
    for name in rows[0]:
        if name.endswith("_db"):
            label = name.removesuffix("_db").replace("_", ", ")
            decibel.plot(steps, [float(row[name]) for row in rows], "--" if "worst" in name else "-", label=label)
    decibel.set(xlabel="step", ylabel="PSNR of the judging frames, dB")
    decibel.legend(fontsize="small")
    with durable.replacing(picture) as draft:
        figure.savefig(draft, format="png", dpi=110)


def _card(training: Training, figures: dict[str, float]) -> Card:
    preset = training.preset
    return Card(
        name=preset.name,
        architecture=preset.network,
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
