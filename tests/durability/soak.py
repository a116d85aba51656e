"""A long time at full speed: memory, descriptors and threads of every role must stay where they are. And what safety costs."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.harness import put, running

SIZE_PX = 64


def figures(pid: int) -> dict[str, float]:
    """Resident MiB, open descriptors, threads."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        "rss_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def run(folder: Path, *, seconds: float) -> dict[str, Any]:
    """Files as fast as they are taken, a new series every 60; each role is looked at all the while."""
    samples: dict[str, list[dict[str, float]]] = {}
    with running(folder, denoise__model="constant", series__expected=60, output__fold_rows=16) as daemon:
        began, index = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            stored = daemon.status()["totals"]["stored"]
            while index < stored + 40:
                put(daemon.root / f"s{index // 60:04d}", index, round(-80 + 0.01 * (index % 16000), 2), kind="npy", size_px=SIZE_PX)
                index += 1
            for name, pid in daemon.role_pids().items():
                samples.setdefault(name, []).append(figures(pid))
            time.sleep(1.0)
        stored = daemon.status()["totals"]["stored"]
    thirds = {name: (found[len(found) // 3 : 2 * len(found) // 3], found[2 * len(found) // 3 :]) for name, found in samples.items()}
    return {
        "seconds": round(time.monotonic() - began),
        "stored": stored,
        "roles": {
            name: {key: [max(s[key] for s in middle), max(s[key] for s in last)] for key in ("rss_mib", "descriptors", "threads")}
            for name, (middle, last) in thirds.items()
            if middle and last
        },
    }


def cost_of_safety(folder: Path) -> dict[str, Any]:
    """Milliseconds for commit and master with and without fsync, alternating within one run (medians)."""
    from tests.test_store import ABOUT, made, opened

    times: dict[str, list[float]] = {"commit": [], "commit, no fsync": [], "master": [], "master, no fsync": []}
    disk = Path(os.environ.get("AET_STREAM_BENCH_DISK", ".")).resolve() / "durability-bench"
    store = opened(disk)
    try:
        for number in range(60):
            for suffix in ("", ", no fsync") if number % 2 else (", no fsync", ""):
                place = store.next_number
                draft = made(number, place, size_px=1024, stamp=str(place))
                with mock.patch.object(os, "fsync") if suffix else mock.patch.object(os, "nothing", 0, create=True):
                    began = time.perf_counter()
                    store.commit([draft])
                    times["commit" + suffix].append(time.perf_counter() - began)
                    began = time.perf_counter()
                    store.write_master(ABOUT)
                    times["master" + suffix].append(time.perf_counter() - began)
    finally:
        shutil.rmtree(disk, ignore_errors=True)
    return {"medians_ms": {name: round(1000 * sorted(values)[len(values) // 2], 1) for name, values in times.items()}, "frames": 60}
