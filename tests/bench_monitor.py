"""What the monitor costs and how late it shows: `python -m tests.bench_monitor painted viewers day`. Needs a Chromium.

painted: from the close of a file to its pixels on a page's screen, by stage. viewers: what eight viewers cost the rest of the daemon.
day: 20,000 projections in 200 series through one monitor and one page; memory of both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from aet_stream.messages import WIRE_VERSION, Acquired, Done, FileOffer, Job, Offer, Ready, Want
from aet_stream.projection import Acquisition, Candidate, Quality, sha256_of
from aet_stream.simulate.writers import tiff
from aet_stream.status import WatchStatus
from aet_stream.transport import HubLink
from tests.bench import MODEL, frame
from tests.browser import Page, chromium
from tests.harness import Daemon, running, wait_for
from tests.test_monitor import address

SIZE_PX = 1024
VIEWERS = 8
DAY, PER_SERIES = 20_000, 100


# -- painted ------------------------------------------------------------------------------------------------------------------------------


def quantiles(values: list[float]) -> str:
    return f"{1000 * np.percentile(values, 50):.0f}/{1000 * np.percentile(values, 99):.0f}"


def painted(folder: Path, files: int = 60) -> None:
    """One file at a time, closed by its writer, while a page of 1440 x 900 is looked at."""
    with (
        running(folder / "painted", denoise__model=MODEL, monitor__enabled=True, monitor__port=0) as daemon,
        chromium(folder / "p") as browser,
    ):
        target = daemon.root / "np"
        target.mkdir()
        wait_for(lambda: daemon.status()["roles"].get("worker-0"), limit_s=120, what="the worker")
        page = browser.page()
        page.size(1440, 900)
        page.open(address(daemon))
        page.wait("window.aet?.seq > 0", what="the page")
        for index in range(files + 3):
            content = tiff(frame(index, SIZE_PX), 0.0, 0.05)
            (target / f"one_{index:03d}_{index - 30:+d}deg.tif").write_bytes(content)
            page.wait(f"aet.times.at(-1)?.number === {index} || aet.number === {index} && {index} < 1", limit_s=60, what=f"number {index}")
        times = page.run("aet.times")[-files:]
        stages = daemon.status()["latency"]["stages"]
        assert not page.errors
    words = "  ".join(f"{name} {1000 * f['p50_s']:.0f}/{1000 * f['p99_s']:.0f}" for name, f in stages.items())
    print(f"{SIZE_PX} px, {len(times)} files, one page, p50/p99 ms since the file was closed")
    print(f"  the hub says, by stage: {words}")
    for key, name in (("heard_s", "the page has heard of it"), ("fetched_s", "three images are fetched"), ("painted_s", "painted")):
        print(f"  {name:<26} {quantiles([row[key] for row in times])}")


# -- viewers ------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def watching(url: str, count: int) -> Iterator[None]:
    viewers = subprocess.Popen([sys.executable, "-m", "tests.viewers", url, str(count)])
    try:
        yield
    finally:
        viewers.kill()
        viewers.wait()


def cpu_s(pid: int, without: int) -> float:
    """CPU seconds of a process and all below it, but one."""
    if pid == without:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    below = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return (int(fields[11]) + int(fields[12])) / 100 + sum(cpu_s(child, without) for child in below)


def viewers(folder: Path, pairs: int = 12, each: int = 10, cadence_s: float = 0.6) -> None:
    """The same number of projections at the same cadence without and with viewers, in turn: ABBA."""
    with running(folder / "viewers", denoise__model=MODEL, denoise__threads=1, monitor__enabled=True, monitor__port=0) as daemon:
        (daemon.root / "np").mkdir()
        wait_for(lambda: daemon.status()["roles"].get("worker-0"), limit_s=120, what="the worker")
        url, monitor = address(daemon), daemon.pid("monitor")
        assert daemon.process is not None
        top, done = daemon.process.pid, 0
        per_projection: dict[int, list[float]] = {0: [], VIEWERS: []}
        of_monitor: dict[int, list[float]] = {0: [], VIEWERS: []}

        def block(count: int) -> None:
            nonlocal done
            contents = [tiff(frame(done + index, SIZE_PX), 0.0, 0.05) for index in range(each)]
            with watching(url, count):
                wait_for(lambda: daemon.status()["roles"]["monitor"]["status"].get("viewers") == count, what="the viewers")
                before, mine, began = cpu_s(top, monitor), cpu_s(monitor, 0), time.monotonic()
                for index, content in enumerate(contents):
                    (daemon.root / "np" / f"{done + index:05d}_{(done + index) % 140 - 70:+d}deg.tif").write_bytes(content)
                    time.sleep(max(0.0, began + (index + 1) * cadence_s - time.monotonic()))
                done += each
                # Nobody asks for the status meanwhile: that costs too.
                time.sleep(max(0.0, began + (each + 3) * cadence_s - time.monotonic()))
                per_projection[count].append((cpu_s(top, monitor) - before) / each)
                of_monitor[count].append((cpu_s(monitor, 0) - mine) / each)
                if daemon.status()["totals"]["stored"] != done:
                    raise SystemExit("the machine is too slow for this cadence: figures would mean nothing")

        block(0)
        per_projection[0].clear()
        of_monitor[0].clear()
        for pair in range(pairs):
            for count in (0, VIEWERS) if pair % 2 == 0 else (VIEWERS, 0):
                block(count)
    without, with_ = (np.array(per_projection[count]) for count in (0, VIEWERS))
    change = (with_ - without) / np.median(without)
    low, middle, high = np.percentile(change, (25, 50, 75))
    print(f"{SIZE_PX} px, {pairs} pairs of {each} projections, one every {cadence_s} s: CPU seconds per projection outside the monitor")
    print(f"  without viewers {np.median(without):.4f}, with {VIEWERS} {np.median(with_):.4f}")
    print(f"  paired change: median {100 * middle:+.2f} % (quartiles {100 * low:+.2f}, {100 * high:+.2f})")
    print(f"  the monitor itself: {np.median(of_monitor[0]):.4f} without, {np.median(of_monitor[VIEWERS]):.4f} with {VIEWERS}")


# -- a day --------------------------------------------------------------------------------------------------------------------------------


class Instrument:
    """Watch and worker in one: announces, reads and subtracts without doing anything of it; 64 px."""

    def __init__(self, root: Path) -> None:
        self._watch, self._worker = (HubLink(root, name=role) for role in ("watch", "worker"))
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:64, :64] - 32.0
        self._base = (2000 * np.exp(-(x * x + y * y) / 120) + rng.normal(100, 5, (64, 64))).astype("<u2")
        self._clean = (self._base - np.float32(100)).astype("<f4")
        self._beaten = 0.0

    def expose(self, first: int, count: int, series: str) -> None:
        """Bring projections `first`.. of a series to the hub and wait until it has asked for all and got all."""
        paths = [f"{series}/{first + index:06d}.tif" for index in range(count)]
        now, nbytes = time.time(), self._base.nbytes
        self._watch.send(Offer(files=tuple(FileOffer(path, ((0, "1"),), nbytes, now) for path in paths)))
        self._ready()
        done = 0
        while done < count:
            for message, _ in self._watch.receive(0.001):
                if isinstance(message, Want):
                    self._give(message)
            for message, _ in self._worker.receive(0.001):
                if isinstance(message, Job):
                    figures = Quality("none", "0", background_mean=100.0 + done % 7, vacuum_noise=5.0, trust=0.9)
                    self._worker.send(Done(job_id=message.job_id, quality=figures, network_s=0.0), self._clean)
                    self._ready()
                    done += 1
            if time.monotonic() - self._beaten > 0.5:
                self._beaten = time.monotonic()
                self._watch.beat(WatchStatus(asked=tuple((path, 0) for path in paths)))
                self._ready()

    def _give(self, want: Want) -> None:
        number = int(want.visit.path.split("/")[1][:6])
        image = self._base.copy()
        image[0, :2] = number % 65536, number // 65536
        tilt_deg = (number % PER_SERIES) * 1.4 - 70
        said = (Candidate("filename", "", tilt_deg),)
        self._watch.send(Acquired(visit=want.visit, sha256=sha256_of(image), acquisition=Acquisition(), candidates=said), image)

    def _ready(self) -> None:
        self._worker.send(Ready(name="worker", model_sha256="0", wire=WIRE_VERSION))

    def close(self) -> None:
        self._watch.close()
        self._worker.close()


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def sample(page: Page, monitor: int, stored: int) -> tuple[int, float, float, int]:
    """(projections, MiB of the monitor, MiB of the page's heap after a collection, elements of the page)."""
    return stored, rss_mib(monitor), page.heap_bytes() / 2**20, int(page.run("document.querySelectorAll('*').length"))


def day(folder: Path, projections: int = DAY) -> None:
    """Hub, monitor and page are real; a worker that does nothing and a watch that reads nothing feed them as fast as the hub takes it."""
    daemon = Daemon(folder / "day", monitor__enabled=True, monitor__port=0, series__expected=PER_SERIES, queue__credit=64)
    log = (folder / "log.txt").open("w")
    roles = [subprocess.Popen(daemon.command(role, *daemon.set), stderr=log, stdout=log) for role in ("hub", "monitor")]
    monitor = roles[1].pid
    samples = []
    try:
        with chromium(folder / "d") as browser:
            url = wait_for(lambda: daemon.status()["roles"].get("monitor", {}).get("status", {}).get("url"), what="the monitor")
            instrument = Instrument(daemon.out)
            page = browser.page()
            page.size(1440, 900)
            page.open(url)
            page.wait("window.aet?.seq > 0", what="the page")
            began = time.monotonic()
            for first in range(0, projections, PER_SERIES):
                instrument.expose(first, PER_SERIES, f"series_{first // PER_SERIES:04d}")
                if (first + PER_SERIES) % max(PER_SERIES, projections // 20) == 0:
                    samples.append(sample(page, monitor, first + PER_SERIES))
                    print("    after {:>6}: monitor {:6.1f} MiB, page {:5.1f} MiB, {} elements".format(*samples[-1]), flush=True)
            seconds = time.monotonic() - began
            wait_for(lambda: daemon.status()["totals"]["stored"] == projections, limit_s=60, what="all")
            page.wait(f"aet.times.length > 0 && aet.series === {json.dumps(page.run('aet.series'))}", what="the last one")
            painted_ones = page.run("aet.painted")
            assert not page.errors
            instrument.close()
    finally:
        for role in roles:
            role.terminate()
        for role in roles:
            role.wait(20)
        log.close()
    later = np.array(samples[len(samples) // 4 :], dtype=float)
    slopes = [float(np.polyfit(later[:, 0], later[:, column], 1)[0]) * 10_000 for column in (1, 2)]
    print(f"{projections} projections in {projections // PER_SERIES} series in {seconds:.0f} s, {painted_ones} painted")
    print(f"  growth over the last three quarters, MiB per 10,000: monitor {slopes[0]:+.1f}, page {slopes[1]:+.2f}")


def main(parts: list[str]) -> None:
    known = {"painted": painted, "viewers": viewers, "day": day}
    for name in parts or known:
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            known[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
