"""`make gpu-bench`: what a GPU makes of it, in one script; a short table comes last. On a machine without one it says so.

`--train DIR` also trains the published recipe to its end and judges it (minutes on a large GPU); `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from aet_stream.denoise.denoiser import Denoiser
from aet_stream.reconstruct.solver import Solution, solve
from aet_stream.training import evaluate, train
from tests.bench import frame

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
    name = torch.cuda.get_device_name() if chosen.device != "cpu" else "CPU"
    repeats = _REPEATS if chosen.device != "cpu" else 2
    lines = [f"{name}, torch {torch.__version__}"]
    if chosen.train:
        began = time.perf_counter()
        weights = train.run("dncnn-2019", chosen.train)
        lines.append(f"dncnn-2019 trained to its end in {(time.perf_counter() - began) / 60:.0f} min: {weights}")
        lines.append(evaluate.table(evaluate.evaluate([str(weights)], only=["published"], trust_frames=0)))
    tflops, tbs = limits(chosen.device)
    lines.append(f"measured limits: {tflops:.0f} TFLOP/s bfloat16, {tbs:.2f} TB/s")
    lines.append("model        px    ms a frame  of the arithmetic  of the bandwidth")
    for model in ("default", "dncnn-2019"):
        denoiser = Denoiser(model=model, device=chosen.device)
        for size_px in (1024, 2048) if chosen.device != "cpu" else (128, 256):
            image = frame(0, size_px)
            ms = median_ms(lambda image=image, denoiser=denoiser: denoiser.subtract(image), chosen.device, repeats)
            flop, moved = dncnn_cost(size_px)
            share = f"{flop / (ms / 1000) / tflops:>16.0%}  {moved / (ms / 1000) / tbs:>16.0%}" if model != "default" else ""
            lines.append(f"{model:<11}{size_px:>5}{ms:>12.1f}  {share}")
    size_px = 256 if chosen.device != "cpu" else 64
    tilts_deg = np.linspace(-70, 70, 60)
    views = np.stack([frame(index, size_px) for index in range(len(tilts_deg))]).astype(np.float32)
    here, there = (_timed(partial(solve, views, tilts_deg, iterations=50, device=device)) for device in ("cpu", chosen.device))
    apart = float(np.abs(there[1].volume - here[1].volume).max() / here[1].volume.max())
    lines.append(f"nesterov-sirt, {size_px}^3 of 60 tilts, 50 steps: {there[0]:.1f} s, CPU {here[0]:.1f} s, volumes apart by {apart:.0e}")
    print("\n".join(lines))
    return 0


def _timed(work: Callable[[], Solution]) -> tuple[float, Solution]:
    began = time.perf_counter()
    solution = work()
    return time.perf_counter() - began, solution


if __name__ == "__main__":
    sys.exit(main())
