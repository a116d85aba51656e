"""What a daemon costs as its work grows: `python -m tests.bench_scale [PART ...] [--to SIZE]`.

What is found becomes lines of docs/scale.jsonl, and docs/scale.png is drawn of the newest of each; the part `draw` measures nothing.

frame : one frame of 256 to 2,048 px alone and among many, default model
length : rows a second of the hub alone while one series grows to 5,000 projections
waiting : the first row of a daemon that finds 1 to 100,000 files, and the memory of watch and hub
ledger : start and status over 10,000 to 1,000,000 stored projections, in closed series of 60
workers : a frame of many with 1, 2 and 4 workers of one thread, default model, 256 px
viewers : what a projection of 256 px costs the daemon and its monitor while 0 to 32 pages look on
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import msgspec

from aet_stream.hub.archive import open_ledger
from aet_stream.layout import SERIES_FILE
from aet_stream.simulate.writers import tiff
from tests.behaviour.test_bursts import burst
from tests.bench import MODEL, SECONDS, hub_ceiling, latency, peak_mib, recorded
from tests.bench_editions import closed_series
from tests.bench_monitor import cpu_s, watching
from tests.harness import Daemon, running, wait_for
from tests.test_monitor import address

ROWS = 60
ASKED = 20
AT_ONCE = 16
"""Frames that workers share, and projections that viewers look on at."""
DOCS = Path(__file__).parent.parent / "docs"
FIGURES, PICTURE = DOCS / "scale.jsonl", DOCS / "scale.png"


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"source": "from"}):
    """One line: measured on this day under this load, or taken over from a table of an earlier run."""

    work: str
    size: int
    seconds: dict[str, float]
    """Name of a figure -> so long"""
    date: str
    load: float | None = None
    """Processes that wanted a core when it had been measured, this daemon's and others'"""
    source: str = ""
    """Where a line that has no load of its own was taken from"""


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
    os.sync()  # or its first commit waits until all of them are on the disk
    began = time.monotonic()
    daemon.start()
    wait_for(lambda: any(map(_has_rows, daemon.out.glob(f"*/{SERIES_FILE}"))), limit_s=900, what="the first row")
    first_s = time.monotonic() - began
    wait_for(lambda: daemon.status()["totals"]["stored"] >= min(files, 300), limit_s=300, what="some more")
    wait_for(lambda: {"watch", "hub"} <= daemon.role_pids().keys(), limit_s=60, what="both to have said who they are")
    pids = daemon.role_pids()
    watch_mib, hub_mib = peak_mib(pids["watch"]), peak_mib(pids["hub"])
    print(f"{files:>9,} files: first row after {first_s:.2f} s; watch {watch_mib} MiB, hub {hub_mib} MiB", flush=True)
    daemon.stop()
    return {"until the first row": first_s}


def _has_rows(path: Path) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return len(file["/exchange/theta"]) > 0
    except OSError:
        return False


def length(folder: Path, rows: int) -> dict[str, float]:
    """One series that grows to so many projections of 64 px: what the hub alone does a second."""
    folder.mkdir()
    return {"a row, hub alone": 1 / hub_ceiling(folder, 64, rows)}


def frame(folder: Path, size_px: int) -> dict[str, float]:
    """From the close of a file to readable, one at a time; then as many at once."""
    latency(folder, size_px, 8)
    return {name: SECONDS[f"{size_px} px, {name}"] for name in ("close to readable", "a frame of many")}


def workers(folder: Path, count: int) -> dict[str, float]:
    """Seconds a frame of many, with so many workers of one thread each."""
    contents = [tiff(pixels, 0.0, 0.05) for pixels in recorded(AT_ONCE + count, 256)]
    with running(folder, denoise__model=MODEL, denoise__workers=count, denoise__threads=1) as daemon:
        target = daemon.root / "np"
        target.mkdir()
        wait_for(lambda: "ready: watching" in daemon.log.read_text(), limit_s=300, what="all workers to be ready")

        def bring(first: int, frames: list[bytes]) -> float:
            began = time.monotonic()
            for index, content in enumerate(frames, first):
                (target / f"one_{index:03d}_{index:+d}deg.tif").write_bytes(content)
            daemon.wait_for_totals(limit_s=300, stored=first + len(frames))
            return time.monotonic() - began

        bring(0, contents[:count])
        assert daemon.process is not None
        used_s = cpu_s(daemon.process.pid, 0)
        each_s = bring(count, contents[count:]) / AT_ONCE
        used_s = (cpu_s(daemon.process.pid, 0) - used_s) / AT_ONCE
        memory_mib = sum(peak_mib(pid) for name, pid in daemon.role_pids().items() if name.startswith("worker"))
    print(f"{count:>9} workers: {1 / each_s:.2f} frames/s, {used_s:.3f} CPU s a frame; all workers' peak {memory_mib} MiB", flush=True)
    return {"a frame of many": each_s, "CPU a frame": used_s}


def viewers(folder: Path, count: int) -> dict[str, float]:
    """CPU seconds a projection of everything but the monitor, and of the monitor, while so many look on."""
    contents = [tiff(pixels, 0.0, 0.05) for pixels in recorded(AT_ONCE, 256)]
    settings = {"denoise__model": MODEL, "denoise__threads": 1, "monitor__enabled": True, "monitor__port": 0}
    with running(folder, **settings) as daemon:
        (daemon.root / "np").mkdir()
        wait_for(lambda: "ready: watching" in daemon.log.read_text(), limit_s=300, what="all roles to be ready")
        monitor = daemon.pid("monitor")
        assert daemon.process is not None
        with watching(address(daemon), count):
            wait_for(lambda: daemon.status()["roles"]["monitor"]["status"].get("viewers") == count, limit_s=120, what="the viewers")
            others_s, mine_s = cpu_s(daemon.process.pid, monitor), cpu_s(monitor, 0)
            for index, content in enumerate(contents):
                (daemon.root / "np" / f"one_{index:03d}_{index:+d}deg.tif").write_bytes(content)
                daemon.wait_for_totals(limit_s=120, stored=index + 1)
            others_s, mine_s = cpu_s(daemon.process.pid, monitor) - others_s, cpu_s(monitor, 0) - mine_s
    found = {"CPU a projection, all but the monitor": others_s / AT_ONCE, "CPU a projection, the monitor": mine_s / AT_ONCE}
    print(f"{count:>9} viewers: CPU s a projection: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    return found


Work = Callable[[Path, int], dict[str, float]]
WORKS: dict[str, tuple[Work, tuple[int, ...], str]] = {
    "frame": (frame, (256, 512, 1024, 2048), "frame size, px"),
    "length": (length, (500, 1_000, 2_000, 5_000), "projections of one series"),
    "waiting": (waiting, (1, 1_000, 10_000, 100_000), "files that wait"),
    "ledger": (ledger, (10_000, 100_000, 1_000_000), "stored projections"),
    "workers": (workers, (1, 2, 4), "workers"),
    "viewers": (viewers, (0, 2, 8, 32), "viewers"),
}
"""Name -> how it is measured, at which sizes, and what they are sizes of"""


def read(lines: Path = FIGURES) -> dict[str, dict[int, Point]]:
    """Work -> size -> the newest line."""
    found: dict[str, dict[int, Point]] = {name: {} for name in WORKS}
    for line in lines.read_bytes().splitlines():
        point = msgspec.json.decode(line, type=Point)
        found[point.work][point.size] = point
    return found


def draw(found: dict[str, dict[int, Point]], picture: Path = PICTURE) -> None:
    """Seconds against size, a panel each."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for panel, (name, by_size) in zip(panels.flat, found.items(), strict=True):
        sizes = sorted(by_size)
        for line in by_size[sizes[0]].seconds if sizes else ():
            (drawn,) = panel.plot(sizes, [by_size[size].seconds[line] for size in sizes], label=line)
            for size in sizes:
                inside = "white" if by_size[size].source else drawn.get_color()
                panel.plot(size, by_size[size].seconds[line], "o", color=drawn.get_color(), markerfacecolor=inside)
        panel.set_xscale("symlog" if 0 in sizes else "log")
        panel.set_xticks(sizes, [f"{size:,}".replace(",000,000", " M").replace(",000", " k") for size in sizes])
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.set_ylim(low := min(low, high / 20), high * 4)  # less than a factor of 20 would make noise look like a law
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 1000 else (1,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.minorticks_off()
        panel.set(xlabel=WORKS[name][2], ylabel="seconds")
        panel.legend(fontsize="small", loc="upper left")
        panel.grid(alpha=0.3)
    text = "filled: measured under the load that its line of scale.jsonl says; hollow: from the tables of an earlier run"
    figure.supxlabel(text, fontsize="small")
    figure.savefig(picture, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a daemon costs as its work grows.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(WORKS)}, or draw; default: all")
    parser.add_argument("--to", type=int, metavar="SIZE", default=10**9, help="leave out what is larger")
    words = parser.parse_args()
    for name in words.parts or WORKS:
        if name == "draw":
            continue
        work, sizes, _ = WORKS[name]
        print(work.__doc__, flush=True)
        for size in (size for size in sizes if size <= words.to):
            with tempfile.TemporaryDirectory() as folder:
                seconds = {figure: round(value, 4) for figure, value in work(Path(folder) / "scale", size).items()}
            point = Point(name, size, seconds, time.strftime("%Y-%m-%d", time.gmtime()), round(os.getloadavg()[0], 1))
            with FIGURES.open("a") as file:
                file.write(msgspec.json.encode(point).decode() + "\n")
    draw(read())


if __name__ == "__main__":
    main()
