"""`make gpu-bench`: what a GPU makes of it, in one script; a short table comes last. On a machine without one it says so.

`--train DIR` also trains the published recipe to its end and judges it (minutes on a large GPU); `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does, before numpy is there

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aet_stream.denoise.denoiser import Denoiser
from aet_stream.reconstruct.solver import Solution, solve
from aet_stream.training import evaluate, train
from aet_stream.training.batches import on_device
from aet_stream.training.dataset import Mixer
from aet_stream.training.learning import Training
from aet_stream.training.preset import load_preset
from aet_stream.training.tasks import task_of
from tests.bench import frame, latency, recorded

_LAYERS, _WIDTH, _KERNEL = 17, 64, 9
_REPEATS = 30


def median_ms(work: Callable[[], object], device: str, repeats: int) -> float:
    """Of one call, the device waited for."""
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times[3:])[repeats // 2]


def limits(device: str) -> tuple[float, float]:
    """(TFLOP/s of a large bfloat16 product, TB/s of a copy), measured here and now."""
    n = 8192 if device != "cpu" else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    product_ms = median_ms(lambda: a @ a, device, 10)
    big = torch.empty(2**28 if device != "cpu" else 2**22, device=device, dtype=torch.float32)
    copy_ms = median_ms(lambda: big.clone(), device, 10)
    return 2 * n**3 / product_ms / 1e9, 2 * big.numel() * 4 / copy_ms / 1e9


def dncnn_cost(size_px: int) -> tuple[float, float]:
    """(TFLOP, TB moved by unfused bfloat16 layers) of one frame through DnCNN-17x64."""
    pixels = size_px**2
    flop = 2 * pixels * _KERNEL * (_WIDTH + (_LAYERS - 2) * _WIDTH**2 + _WIDTH)
    return flop / 1e12, pixels * 2 * (2 * (_LAYERS - 1) * _WIDTH + 2) / 1e12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--train", type=Path, metavar="DIR")
    chosen = parser.parse_args()
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    say(f"{torch.cuda.get_device_name() if chosen.device != 'cpu' else 'CPU'}, torch {torch.__version__}")
    frames(chosen.device)
    training_steps(chosen.device)
    with tempfile.TemporaryDirectory() as folder:
        latency(Path(folder) / "daemon", *((1024, 60) if chosen.device != "cpu" else (128, 10)))
    volumes(chosen.device)
    if chosen.train:
        began = time.perf_counter()
        weights = train.run("dncnn-2019", chosen.train)
        say(f"dncnn-2019 trained to its end in {(time.perf_counter() - began) / 60:.0f} min: {weights}")
        say(evaluate.table(evaluate.evaluate([str(weights)], only=["published"], trust_frames=0)))
    return 0


def say(line: str) -> None:
    print(line, flush=True)


def frames(device: str) -> None:
    """ms a frame, and of the published network how near that is to what the device can do."""
    tflops, tbs = limits(device)
    say(f"measured limits: {tflops:.0f} TFLOP/s bfloat16, {tbs:.2f} TB/s")
    say("model        px    ms a frame    network alone  of the arithmetic  of the bandwidth")
    for model in ("default", "dncnn-2019"):
        denoiser = Denoiser(model=model, device=device)
        for size_px in (1024, 2048) if device != "cpu" else (128, 256):
            image = recorded(1, size_px)[0]
            repeats = _REPEATS if device != "cpu" else 2
            ms = median_ms(lambda image=image, denoiser=denoiser: denoiser.subtract(image), device, repeats)
            line = f"{model:<11}{size_px:>5}{ms:>12.1f}"
            if model != "default":
                alone = network_ms(denoiser, size_px, device, repeats)
                flop, moved = dncnn_cost(size_px)
                line += f"{alone:>17.2f}{flop / (alone / 1000) / tflops:>18.0%}{moved / (alone / 1000) / tbs:>18.0%}"
            say(line)


def network_ms(denoiser: Denoiser, size_px: int, device: str, repeats: int) -> float:
    """The layers alone, of a frame that is on the device."""
    tiles: Any = denoiser.estimator
    there = torch.rand(1, 1, size_px, size_px, device=device, dtype=tiles.dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return median_ms(lambda: tiles.layers(there), device, repeats)


def training_steps(device: str) -> None:
    """ms a step of both presets, of batches that are there already."""
    for name, steps in (("dncnn-2019", 50), ("default", 10)):
        preset = load_preset(name)
        mixer = Mixer(preset.recipe, seed=0, particles=2, views=3)
        training = Training(preset, torch.device(device))
        batch = on_device(task_of(preset).batches(preset, mixer, 1, preset.batch)[0], training.device)
        ways = {"": training.one_step, " not recorded": training.learn_once} if name != "default" else {"": training.one_step}
        for way, step in ways.items():
            many = steps if device != "cpu" else 1
            ms = median_ms(lambda step=step, batch=batch, many=many: [step(batch) for _ in range(many)], device, 3) / many
            say(f"training {name}{way}: {ms:.2f} ms a step of {preset.batch}, batches ready")


def volumes(device: str) -> None:
    """The same volume by CPU and GPU, and larger ones by the GPU alone."""
    sizes = ((128, ("cpu", device)), (256, (device,)), (512, (device,))) if device != "cpu" else ((64, ("cpu", "cpu")),)
    for size_px, devices in sizes:
        tilts_deg = np.linspace(-70, 70, 60)
        views = np.stack([frame(index, size_px) for index in range(len(tilts_deg))]).astype(np.float32)
        solve(views[:, :64, :64], tilts_deg, iterations=2, device=device)  # the device is ready
        found = [_timed(partial(solve, views, tilts_deg, iterations=50, device=where)) for where in devices]
        words = ", ".join(f"{where} {seconds:.1f} s" for where, (seconds, _) in zip(devices, found, strict=True))
        if len(found) > 1:
            one, other = (solution.volume for _, solution in found)
            words += f", apart by {float(np.abs(other - one).max() / one.max()):.0e}"
        say(f"nesterov-sirt, {size_px}^3 of 60 tilts, 50 steps: {words}")


def _timed(work: Callable[[], Solution]) -> tuple[float, Solution]:
    began = time.perf_counter()
    solution = work()
    return time.perf_counter() - began, solution


if __name__ == "__main__":
    sys.exit(main())
