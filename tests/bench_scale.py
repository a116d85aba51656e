"""What a daemon costs as its work grows: `python -m tests.bench_scale [ledger] [waiting] [length]`; of all three docs/scale.png is drawn.

ledger : start and status over 10,000 to 1,000,000 stored projections, in closed series of 60
waiting : the first row of a daemon that finds 1 to 100,000 files, and the memory of watch and hub
length : rows a second of the hub alone while one series grows to 5,000 projections
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py

from aet_stream.hub.archive import open_ledger
from aet_stream.layout import SERIES_FILE
from tests.behaviour.test_bursts import burst
from tests.bench import hub_ceiling, peak_mib
from tests.bench_editions import closed_series
from tests.harness import Daemon, wait_for

ROWS = 60
PROJECTIONS = (10_000, 100_000, 1_000_000)
WAITING = (1, 1_000, 10_000, 100_000)
LENGTHS = (500, 1_000, 2_000, 5_000)
ASKED = 20
AXES = {"ledger": "stored projections", "waiting": "files that wait", "length": "projections of one series"}
PICTURE = Path(__file__).parent.parent / "docs" / "scale.png"
_MANY = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO series (name, state, opened_at, last_at, closed_at)
    SELECT printf('s%06d', i), 'closed', opened_at, last_at, closed_at FROM n, series WHERE name = 'old';
"""
_VISITS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO visit (series, path, image, stamp, state, sha256, number, tilt_deg, trust, first_at, ended_at, total_s)
    SELECT printf('s%06d', i), path, image, 'n' || i, state, sha256, number, tilt_deg, trust, first_at, ended_at, total_s FROM n, visit
    WHERE series = 'old';
"""


def ledger(folder: Path, projections: int) -> dict[str, float]:
    """An output folder of so many, all closed: seconds until a hub answers, then of an answer."""
    daemon = Daemon(folder)
    closed_series(daemon.out, ROWS, 16)
    made = open_ledger(daemon.out)[0]
    count = projections // ROWS
    with made.transaction():
        made.db.execute(_MANY, (count,))
        made.db.execute(_VISITS, (count,))
    made.close()
    for number in range(1, count + 1):
        own = daemon.out / f"s{number:06d}"
        own.mkdir()
        os.link(daemon.out / "old" / SERIES_FILE, own / SERIES_FILE)
    starts_s, answers_s = [], list[float]()
    for _ in range(3):
        began = time.monotonic()
        with daemon.log.open("a") as log:
            hub = subprocess.Popen(daemon.command("hub", *daemon.set), stderr=log)
        wait_for(lambda: daemon.status()["totals"]["stored"] >= projections - ROWS, limit_s=900, what="the hub")
        starts_s.append(time.monotonic() - began)
        for _ in range(ASKED):
            began = time.monotonic()
            daemon.status()
            answers_s.append(time.monotonic() - began)
        peak = peak_mib(hub.pid)
        hub.terminate()
        hub.wait(60)
    size_mib = (daemon.out / "ledger.sqlite").stat().st_size / 2**20
    print(
        f"{projections:>9,} projections, {count:,} series: start {starts_s[0]:.2f} s, then {starts_s[1]:.2f} and {starts_s[2]:.2f} s;"
        f" status {1000 * statistics.median(answers_s):.1f} ms; hub's peak {peak} MiB, ledger {size_mib:.0f} MiB",
        flush=True,
    )
    return {"first start": starts_s[0], "start": starts_s[-1], "status": statistics.median(answers_s)}


def waiting(folder: Path, files: int) -> dict[str, float]:
    """Seconds from the start of a daemon to its first row, with so many files there; and what watch and hub hold then."""
    daemon = Daemon(folder, denoise__model="constant")
    burst(daemon.root, files, 100)
    began = time.monotonic()
    daemon.start()
    wait_for(lambda: any(map(_has_rows, daemon.out.glob(f"*/{SERIES_FILE}"))), limit_s=900, what="the first row")
    first_s = time.monotonic() - began
    wait_for(lambda: daemon.status()["totals"]["stored"] >= min(files, 300), limit_s=300, what="some more")
    pids = daemon.role_pids()
    watch_mib, hub_mib = peak_mib(pids["watch"]), peak_mib(pids["hub"])
    print(f"{files:>9,} files: first row after {first_s:.2f} s; watch {watch_mib} MiB, hub {hub_mib} MiB", flush=True)
    daemon.stop()
    return {"first row": first_s}


def _has_rows(path: Path) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return len(file["/exchange/theta"]) > 0
    except OSError:
        return False


def length(folder: Path, rows: int) -> dict[str, float]:
    """One series that grows to so many projections of 64 px: what the hub alone does a second."""
    folder.mkdir()
    return {"a row": 1 / hub_ceiling(folder, 64, rows)}


def draw(found: dict[str, dict[int, dict[str, float]]]) -> None:
    """docs/scale.png: seconds against size, a panel each."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for panel, (name, by_size) in zip(panels, found.items(), strict=True):
        for line in next(iter(by_size.values())):
            panel.loglog([*by_size], [each[line] for each in by_size.values()], "o-", label=line)
        panel.set(xlabel=AXES[name], ylabel="seconds")
        panel.legend()
    figure.savefig(PICTURE, dpi=100)


def main(parts: list[str]) -> None:
    found: dict[str, dict[int, dict[str, float]]] = {}
    for work, sizes in ((ledger, PROJECTIONS), (waiting, WAITING), (length, LENGTHS)):
        if not parts or work.__name__ in parts:
            print(work.__doc__, flush=True)
            for size in sizes:
                with tempfile.TemporaryDirectory() as name:
                    found.setdefault(work.__name__, {})[size] = work(Path(name) / "scale", size)
    if len(found) == len(AXES):
        draw(found)


if __name__ == "__main__":
    main(sys.argv[1:])
