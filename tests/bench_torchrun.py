"""The loss curve of two processes against one: `python -m tests.bench_torchrun [--steps 40] [--frames 4] [--processes 2]`.

torchrun starts processes on the CPU that learn from the same simulated frames, those of each step shared out between them; one process
learns from all of them. A sum of floating-point numbers depends on its order, and training makes such differences grow: how much so a third
run tells, again one process, in which only the order of the frames within each step is another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import torch

from aet_stream.training.batches import CoarseBatch, CoarseBatches
from aet_stream.training.dataset import Mixer
from aet_stream.training.learning import Training
from aet_stream.training.preset import Preset, load_preset
from tests.harness import ENVIRONMENT
from tests.sharing import share

SHOWN = 8
"""Rows of the table."""


def preset_of(steps: int, frames: int) -> Preset:
    """The recipe `still` from nothing, with a short warm-up."""
    return msgspec.structs.replace(load_preset("still"), steps=steps, batch=frames, warm_up=steps // 4, particles=4, views=2)


def learn(folder: Path, steps: int, frames: int, *, turned: bool) -> None:
    """What torchrun starts: learn from this process' share of `folder`/frames.pt; losses and weights go to `folder`/PROCESSES-RANK.pt."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    training = Training(preset_of(steps, frames), torch.device("cpu"))
    batches = [CoarseBatch(*parts) for parts in torch.load(folder / "frames.pt")]
    if turned:
        batches = [CoarseBatch(*(part.flip(0) for part in batch)) for batch in batches]
    losses = [float(training.one_step(share(batch, rank, processes))) for batch in batches]
    name = "turned" if turned else f"{processes}-{rank}"
    torch.save((losses, training.model.state_dict()), folder / f"{name}.pt")
    if processes > 1:
        torch.distributed.destroy_process_group()


def torchrun(folder: Path, processes: int, words: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", __spec__.name]
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--learn", str(folder), *words], env=environment, check=True)


def weights_apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """RMS difference of the weights, as a share of how far they have come."""
    apart, way = (sum(float((one[name] - than[name]).square().sum()) for name in start) for than in (other, start))
    return float(np.sqrt(apart / way))


def compare(processes: int, steps: int, frames: int) -> None:
    preset = preset_of(steps, frames)
    words = ["--steps", str(steps), "--frames", str(frames)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = CoarseBatches(Mixer(preset.recipe, seed=preset.seed, particles=preset.particles, views=preset.views), seed=1, batch=frames)
        torch.save([tuple(made[step]) for step in range(steps)], folder / "frames.pt")
        for count, more in ((1, []), (processes, []), (1, ["--turned"])):
            torchrun(folder, count, [*words, *more])
        one, turned = (torch.load(folder / f"{run}.pt") for run in ("1-0", "turned"))
        shares = [torch.load(folder / f"{processes}-{rank}.pt") for rank in range(processes)]
    several = np.mean([losses for losses, _ in shares], axis=0)
    print(f"step   one process   {processes} processes   difference   one process, frames in another order")
    for step in sorted({*np.linspace(0, steps - 1, SHOWN).astype(int)}):
        away = turned[0][step] - one[0][step]
        print(f"{step + 1:>4} {one[0][step]:>13.5f} {several[step]:>13.5f} {several[step] - one[0][step]:>12.1e} {away:>12.1e}")
    start = Training(preset, torch.device("cpu")).model.state_dict()
    for what, losses, weights in ((f"{processes} processes", several, shares[0][1]), ("another order", np.array(turned[0]), turned[1])):
        largest, apart = float(np.abs(losses - one[0]).max()), weights_apart(one[1], weights, start)
        print(f"{what} against one: loss apart by at most {largest:.1e}, weights by {apart:.1e} of their way")
    same = all(torch.equal(shares[0][1][name], weights[name]) for _, weights in shares for name in start)
    print(f"the processes hold the same weights: {'yes' if same else 'NO'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The loss curve of several processes against one.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--frames", type=int, default=4, help="of one step; a multiple of the processes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--learn", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--turned", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.learn:
        learn(words.learn, words.steps, words.frames, turned=words.turned)
    else:
        compare(words.processes, words.steps, words.frames)


if __name__ == "__main__":
    main()
