"""At a real cadence: is intake slower while previews are made and events delivered, and how old are the slices when they appear?

    python -m tests.bench_cadence [--tilts 40] [--cadence 5] [--size 512] [--cores 2] [--every 15] [--atoms] [--pairs 1]

The same series twice, one file every few seconds, through a daemon of the default settings on so many cores: without previews and sinks,
and with previews and with every event to a webhook and a command. Printed are the latencies from the close of a file to its row in
series.h5, and, for every preview, how long its newest projection had been there. `--atoms`: what comes beside it is not previews, but the
atoms of another series, found again and again at the priority that the daemon gives that step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aet_stream.reconstruct.run import Options as VolumeOptions
from aet_stream.reconstruct.run import reconstruct
from aet_stream.simulate.writers import tiff
from aet_stream.work import lower_priority
from tests.atom_series import series_of
from tests.atom_truth import simulated
from tests.bench import frame
from tests.harness import running, wait_for
from tests.receivers import http_receiver

ALL = ["projection.stored", "coverage.milestone", "series.closed", "reconstruction.done", "held", "quarantined"]


def expose(folder: Path, tilts: int, cadence_s: float, size_px: int, **settings: Any) -> tuple[list[float], list[float]]:
    """(seconds from close to stored of each projection, seconds of each preview behind its newest projection)."""
    with running(folder, denoise__model="default", monitor__enabled=True, monitor__port=0, **settings) as daemon:
        target, preview = daemon.root / "s", daemon.out / "s" / "preview.h5"
        target.mkdir()
        wait_for(lambda: daemon.status()["roles"].get("worker-0"), limit_s=300, what="the worker")
        closed: list[float] = []
        delays: list[float] = []
        ages: dict[int, float] = {}
        began = time.time()
        for index, tilt in enumerate(np.linspace(-70, 70, tilts)):
            content = tiff(frame(index, size_px), float(tilt), 0.05)
            while time.time() < began + index * cadence_s:
                _look(preview, closed, ages)
                time.sleep(0.02)
            (target / f"p_{index:03d}_{tilt:+.2f}deg.tif").write_bytes(content)
            closed.append(time.time())
            wait_for(lambda index=index: _rows(daemon.out / "s" / "series.h5") > index, limit_s=120)
            delays.append(time.time() - closed[-1])
        until = time.time() + 4 * cadence_s
        while time.time() < until:
            _look(preview, closed, ages)
            time.sleep(0.02)
    return delays, [ages[key] for key in sorted(ages)]


def _rows(series: Path) -> int:
    try:
        with h5py.File(series, "r", locking=False) as file:
            return len(file["/exchange/theta"])
    except OSError:
        return 0


def _look(preview: Path, closed: list[float], ages: dict[int, float]) -> None:
    try:
        with h5py.File(preview, "r", locking=False) as file:
            tilts = int(file.attrs["tilts"])
            ages.setdefault(tilts, preview.stat().st_mtime - closed[tilts - 1])
    except (OSError, KeyError, IndexError):
        pass  # none yet


@contextmanager
def atoms_found(folder: Path) -> Iterator[None]:
    """Of a particle of some 6,500 atoms, again and again, as long as this lasts."""
    folder.mkdir(parents=True)
    truth = simulated("fcc", (79,), 5000, 1, "70")
    volume = reconstruct(
        series_of(folder / "series.h5", truth.images, truth.tilts_deg, truth.pixel_angstrom), VolumeOptions(iterations=50, quality=False)
    )
    command = [sys.executable, "-m", "aet_stream", "atoms", str(volume), "--overwrite", "--out", str(folder / "found.h5")]
    over, rounds = threading.Event(), 0

    def again() -> None:
        nonlocal rounds
        while not over.is_set():
            (folder / "found.h5").unlink(missing_ok=True)
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
                lower_priority(child.pid)
                while child.poll() is None and not over.wait(0.05):
                    pass
                child.kill()
            rounds += 1

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print(f"  atoms of {len(truth.places):,} found {rounds - 1} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tilts", type=int, default=40)
    parser.add_argument("--cadence", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--every", type=float, default=15.0, help="degrees of new coverage per preview")
    parser.add_argument("--atoms", action="store_true")
    parser.add_argument("--pairs", type=int, default=1)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    found: dict[str, list[float]] = {"without": [], "with": []}
    what = "atoms" if given.atoms else "previews and sinks"
    with tempfile.TemporaryDirectory() as name, http_receiver() as web:
        loud = {
            "preview__enabled": True,
            "preview__every_deg": given.every,
            "webhook__url": web.address,
            "webhook__events": ALL,
            "command__argv": ["/bin/true"],
            "command__events": ALL,
        }
        for pair, title in itertools.product(range(given.pairs), found):
            folder, beside = Path(name) / f"{title}{pair}", title == "with"
            with atoms_found(folder / "atoms") if beside and given.atoms else nullcontext():
                settings = loud if beside and not given.atoms else {}
                delays, ages = expose(folder / "daemon", given.tilts, given.cadence, given.size, **settings)
            found[title] += delays
            p50, p99 = statistics.median(delays), float(np.quantile(delays, 0.99))
            print(f"{title} {what}: p50 {1000 * p50:.0f} ms  p99 {1000 * p99:.0f} ms  most {1000 * max(delays):.0f} ms", flush=True)
            if ages:
                words = f"median {statistics.median(ages):.1f} s, most {max(ages):.1f} s"
                print(f"{len(ages)} previews, {len(web.effects)} events told; age of the newest projection: {words}", flush=True)
    ratio = float(np.quantile(found["with"], 0.99) / np.quantile(found["without"], 0.99))
    print(f"p99 with / without: {ratio:.3f}")


if __name__ == "__main__":
    main()
