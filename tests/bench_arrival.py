"""How soon a new file is noticed, and what watching costs when nothing happens: `python -m tests.bench_arrival [FILES] [IDLE_SECONDS]`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from aet_stream.simulate.writers import npy
from tests.behaviour.test_bursts import burst
from tests.harness import known_image
from tests.watching import WatchProcess

NOTICED = 40


def main(files: int, idle_s: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        for events in (True, False):
            kind = "events" if events else "polling"
            with WatchProcess(Path(name) / kind, f"watch.events={str(events).lower()}", "watch.scan_s=2", "watch.settle_s=1") as watch:
                burst(watch.root, files, 100)
                took_s = watch.until(lambda watch=watch: len(watch.paths) >= files and not watch.status.moving, limit_s=600)
                began, used = time.monotonic(), watch.cpu_s()
                watch.until(lambda began=began: time.monotonic() - began > idle_s, limit_s=idle_s + 60)
                share = (watch.cpu_s() - used) / (time.monotonic() - began)
                times_ms = [1000 * _noticed_s(watch, files, index) for index in range(NOTICED)]
                print(f"{kind}: {files} files, all offered {took_s:.1f} s after the last was written", flush=True)
                print(f"{kind}: {idle_s:g} s without news take {100 * share:.2f} % of a core", flush=True)
                print(f"{kind}: from close to offer {np.median(times_ms):.0f} ms, worst of {NOTICED}: {max(times_ms):.0f} ms", flush=True)


def _noticed_s(watch: WatchProcess, files: int, index: int) -> float:
    """Seconds from the close of one more file to its offer; they come at odd moments of the scan."""
    began = time.monotonic()
    watch.until(lambda: time.monotonic() - began > 0.3 + 0.17 * (index % 7))
    path = watch.root / "s0000" / f"new_{index:03d}_+1.00deg.npy"
    path.write_bytes(npy(known_image(files + index, 16), 1.0, 0.1))
    return watch.until(lambda: path.relative_to(watch.root).as_posix() in watch.paths)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
