"""What pruning a closed series frees and costs, and whether an open series beside it feels it.

    python -m tests.bench_pruning [--rows 60] [--size 1024] [--series 4] [--files 8] [--films]

So many closed series of so many square projections are made, with `--films` each with a second edition that is shown. A daemon then prunes
one after the other, while files come into an open series one by one; in between, so many come while nothing else happens. Printed are the
bytes before and after, the seconds, the hub's peak of memory above what it had before, and the latencies of both kinds from the close of a
file to its row in series.h5. At last one more projection comes to a pruned series: how long until it is shown.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from aet_stream import layout
from aet_stream.series import Series
from aet_stream.transport import ask
from tests.bench_editions import chosen_of, make, peak_mib, stored
from tests.harness import Daemon, running, wait_for


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.h5"))


def pruned(daemon: Daemon, name: str) -> None:
    while ask(daemon.out, "prune", {"series": name, "now": True})["state"] != "done":
        time.sleep(0.02)


def run(folder: Path, rows: int, size_px: int, series: int, files: int, *, films: bool) -> None:
    daemon = Daemon(folder)
    names = [f"old{number}" for number in range(series)]
    for name in names:
        make(daemon.out, rows, size_px, name, another=films)
    quiet, busy, took_s, index = [], [], [], 0
    with running(folder, denoise__model="constant") as daemon:
        (daemon.root / "new").mkdir()
        hub = daemon.pid("hub")
        if films:
            wait_for(lambda: all(layout.edition_files(daemon.out / name).keys() >= {2} for name in names), limit_s=600)
            for name in names:
                chosen_of(daemon, name, 2)
        peaks_mib = []
        for name in names:
            for _ in range(files):
                quiet.append(stored(daemon, index, 512))
                index += 1
            before_bytes, before_mib = size_bytes(daemon.out / name), peak_mib(hub, reset=True)
            work, began = threading.Thread(target=pruned, args=(daemon, name)), time.monotonic()
            work.start()
            while work.is_alive():
                busy.append(stored(daemon, index, 512))
                index += 1
            work.join()
            took_s.append(time.monotonic() - began)
            peaks_mib.append(peak_mib(hub) - before_mib)
            after_bytes = size_bytes(daemon.out / name)
        print(f"{rows} x {size_px}^2: {before_bytes / 1e6:.0f} MB before, {after_bytes / 1e6:.0f} MB after; peak {max(peaks_mib):+.0f} MiB")
        print(f"  beside files that come {statistics.median(took_s):.1f} s (until the last of them was shown)")
        for name, times in (("alone", quiet), ("beside it", busy)):
            print(f"{name:>10}: median {statistics.median(times):.3f} s, 99 % {np.quantile(times, 0.99):.3f} s of {len(times)}")
        with Series(daemon.out / names[0] / layout.SERIES_FILE) as left:
            print(f"  {len(list(left.doubts()))} doubts of verify")
        (daemon.root / names[0]).mkdir()
        print(f"  a late projection of a pruned series: shown after {stored(daemon, rows, size_px, names[0]):.1f} s")


def alone(folder: Path, rows: int, size_px: int, *, films: bool) -> None:
    """The same while nothing else comes."""
    daemon = Daemon(folder)
    make(daemon.out, rows, size_px, "old0", another=films)
    with running(folder, denoise__model="constant") as daemon:
        daemon.pid("hub")
        if films:
            wait_for(lambda: layout.edition_files(daemon.out / "old0").keys() >= {2}, limit_s=600)
            chosen_of(daemon, "old0", 2)
        began = time.monotonic()
        pruned(daemon, "old0")
        print(f"  alone {time.monotonic() - began:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--series", type=int, default=4)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--films", action="store_true")
    given = parser.parse_args()
    for work in (
        lambda folder: run(folder, given.rows, given.size, given.series, given.files, films=given.films),
        lambda folder: alone(folder, given.rows, given.size, films=given.films),
    ):
        folder = Path(tempfile.mkdtemp(prefix="aet_pruning_"))
        try:
            work(folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
