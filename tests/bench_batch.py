"""`python -m tests.bench_batch`: how many series an hour, one process of this computer against two, in turn."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.archives import archive, done

ROUNDS = 3


def rates(series: int, tilts: int, model: str) -> dict[int, list[float]]:
    """Processes -> series per hour of each round, start of the command to its end."""
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive(folder / "in", series, tilts)
        for number in range(ROUNDS):
            for workers in found if number % 2 else reversed(found):
                began = time.monotonic()
                done(folder / f"out{number}-{workers}", folder / "in", "--workers", str(workers), model=model, limit_s=3600)
                found[workers].append(3600 * series / (time.monotonic() - began))
    return found


def main(words: list[str]) -> dict[str, float]:
    """Prints, and returns seconds per series by figure."""
    series, tilts = (int(word) for word in (*words, *("16", "60")[len(words) :]))
    found = {workers: float(np.median(each)) for workers, each in rates(series, tilts, "default").items()}
    words_of = "  ".join(f"{workers} processes {rate:.0f} series/h" for workers, rate in found.items())
    print(f"{series} series of {tilts} projections, 64 px, default model: {words_of}   ratio {found[2] / found[1]:.2f}", flush=True)
    return {f"batch, a series, {workers} processes": 3600 / rate for workers, rate in found.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
