"""What `make bench` found before, one JSON line a run in docs/bench.jsonl, and what has become slower since.

Seconds of different days do not compare: computers differ, and are busy. So each run measures a piece of work that never changes, and
what is kept is how many times as long everything else took.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

HISTORY = Path(__file__).parent.parent / "docs" / "bench.jsonl"
BEFORE = 5
"""Runs on computers of the same kind that one is compared with: the median of so many, at most."""
SLOWER = 1.15
"""Times as long as before: less is the noise of a quiet computer."""
_REPEATS = 5


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line."""

    commit: str
    """What was measured; `+` at its end: with changes that are in no commit"""
    date: str
    machine: str
    """Kind of processor and number of cores: what ratios are compared within"""
    reference_s: float
    ratios: dict[str, float]
    """Name of a figure -> how many times the reference it took"""


def reference_s() -> float:
    """Median seconds of a piece of work that never changes: a product, a transform, a sort and a loop, on one core."""
    values = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)

    def work() -> float:
        began = time.perf_counter()
        for _ in range(4):
            np.fft.rfft2(values @ values)
            np.sort(values, axis=None)
        sum(index * index for index in range(200_000))
        return time.perf_counter() - began

    return float(np.median([work() for _ in range(_REPEATS + 1)][1:]))


def this_run(seconds: dict[str, float], reference: float) -> Run:
    """A line of these figures."""
    ratios = {name: round(value / reference, 4) for name, value in seconds.items()}
    return Run(_commit(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), _machine(), round(reference, 5), ratios)


def read(path: Path = HISTORY) -> list[Run]:
    """All runs, the oldest first."""
    return [msgspec.json.decode(line, type=Run) for line in path.read_bytes().splitlines()] if path.exists() else []


def add(run: Run, path: Path = HISTORY) -> None:
    """One more line."""
    with path.open("a") as file:
        file.write(json.dumps(msgspec.structs.asdict(run)) + "\n")


def slower(run: Run, before: Sequence[Run]) -> list[str]:
    """A line for each figure that takes longer than it did on computers of this kind."""
    alike = [other for other in before if other.machine == run.machine]
    found = []
    for name, ratio in run.ratios.items():
        known = [other.ratios[name] for other in alike if name in other.ratios][-BEFORE:]
        if known and ratio > SLOWER * float(np.median(known)):
            found.append(f"{name}: {ratio / float(np.median(known)):.2f} times as long as before ({len(known)} runs)")
    return found


def _machine() -> str:
    kinds = {line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")}
    return f"{', '.join(sorted(kinds)) or platform.machine()}, {os.cpu_count()} cores"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _commit() -> str:
    def git(*words: str) -> Any:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=HISTORY.parent).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../aet_stream")
    return f"{git('rev-parse', '--short=8', 'HEAD')}{'+' if changed else ''}"
