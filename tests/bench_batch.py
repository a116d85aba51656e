"""`python -m tests.bench_batch [SERIES [PROJECTIONS]]`: how many series an hour, one process of this computer against two, in turn.

One process takes both cores for a frame, where they are free; so it is also run with one thread. What two processes could be at most, a
bare loop of the same estimator says: one copy of it against two at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.archives import archive, done

ROUNDS = 3
ONE, ALONE, TWO = "1 process", "1 process of 1 thread", "2 processes"
KINDS = {ONE: ("--workers", "1"), ALONE: ("--workers", "1", "--set", "denoise.threads=1"), TWO: ("--workers", "2")}
FRAMES = 150
"""Of a bare loop."""
LOOP = """
import sys, time
from aet_stream.denoise.denoiser import Denoiser
from tests.harness import known_image
frames, denoiser = [known_image(index) for index in range(int(sys.argv[1]))], Denoiser(model="default", threads=1)
denoiser.warm_up()
print(flush=True)
sys.stdin.readline()
began = time.monotonic()
for frame in frames:
    denoiser.subtract(frame)
print(len(frames) / (time.monotonic() - began), flush=True)
"""


def rates(series: int, tilts: int, model: str) -> dict[str, list[float]]:
    """Kind -> series per hour of each round, start of the command to its end."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive(folder / "in", series, tilts)
        for number in range(ROUNDS):
            for place, kind in enumerate(found if number % 2 else reversed(found)):
                began = time.monotonic()
                done(folder / f"out{number}-{place}", folder / "in", *KINDS[kind], model=model, limit_s=3600)
                found[kind].append(3600 * series / (time.monotonic() - began))
    return found


def bare(copies: int) -> float:
    """Frames a second of so many loops at once, all together."""
    one = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    loops = [
        subprocess.Popen([sys.executable, "-c", LOOP, str(FRAMES)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=one)
        for _ in range(copies)
    ]
    for loop in loops:
        assert loop.stdout is not None
        loop.stdout.readline()
    for loop in loops:
        assert loop.stdin is not None
        print(file=loop.stdin, flush=True)
    return sum(float(loop.communicate()[0]) for loop in loops)


def main(words: list[str]) -> dict[str, float]:
    """Prints, and returns seconds per series by figure."""
    series, tilts = (int(word) for word in (*words, *("16", "60")[len(words) :]))
    found = {kind: float(np.median(each)) for kind, each in rates(series, tilts, "default").items()}
    words_of = "  ".join(f"{kind} {rate:.0f} series/h" for kind, rate in found.items())
    print(f"{series} series of {tilts} projections, 64 px, default model: {words_of}", flush=True)
    ceiling = float(np.median([bare(2) / bare(1) for _ in range(ROUNDS)]))
    print(f"2 processes are {found[TWO] / found[ONE]:.2f} times one, {found[TWO] / found[ALONE]:.2f} times one of one thread", flush=True)
    print(f"2 bare loops of the estimator are {ceiling:.2f} times one", flush=True)
    return {f"batch, a series, {workers} processes": 3600 / found[kind] for workers, kind in ((1, ONE), (2, TWO))}


if __name__ == "__main__":
    main(sys.argv[1:])
