"""What choosing another edition of a closed series costs, and whether an open series beside it feels it.

    python -m tests.bench_editions [--rows 60] [--size 1024] [--pairs 20]

A closed series of so many square projections is made with a second edition. A daemon then shows the one and the other in turn, and one file
after the other comes into an open series: one while nothing else happens, the next while the closed series is written anew. Printed are the
seconds until readers see the other edition (the first time edition 1 gets a file of its own, too), the hub's peak of memory above what it
had before, and the latencies of both kinds from the close of a file to its row in series.h5.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np

from aet_stream import edition, layout
from aet_stream.edition import Maker
from aet_stream.hub.archive import Archive, Arrival, open_ledger
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.store import Draft
from aet_stream.projection import Quality, sha256_of
from aet_stream.series import Series
from aet_stream.simulate.writers import tiff
from aet_stream.transport import ask
from tests.bench import frame
from tests.harness import Daemon, running, wait_for

PAUSE_S = 0.5
"""Before each file: a microscope takes longer to tilt, and files that come back to back wait for one another."""
MAKER = Maker("bench", "another", "9" * 64)


def closed_series(root: Path, rows: int, size_px: int, name: str = "old") -> None:
    """A closed series."""
    root.mkdir(parents=True, exist_ok=True)
    ledger, _ = open_ledger(root)
    archive = Archive(root, ledger, Outbox(ledger.db, {}), CrashGuard(root), fold_rows=256, expected=0, config="{}")
    archive.recover()
    rng = np.random.default_rng(1)
    base = rng.poisson(200, (size_px, size_px)).astype(np.uint16)
    for number in range(rows):
        raw = np.roll(base, number, axis=0)
        clean = raw.astype("<f4") - 100
        facts = dict(
            number=number, series=name, path=f"{name}/{number}.tif", image=0, stamp="1", sha256=sha256_of(raw), raw_crc32=layout.crc32(raw),
            clean_crc32=layout.crc32(clean), tilt_deg=float(number), tilt_source="filename", tilt_candidates="[]", model="first",
            model_sha256="1" * 64, settle_s=0.0, read_s=0.0, queue_s=0.0, network_s=0.0, closed_at=1e9,
        )  # fmt: skip
        draft = Draft(layout.nested(facts), {"raw": raw, "clean": clean})
        with ledger.transaction():
            visit_id = ledger.want(name, draft.record.visit)
        archive.commit(name, [Arrival(visit_id, draft, dict.fromkeys(("settle", "read", "queue", "network"), 0.0), time.time())])
    archive.publish(name)
    archive.begin_close(name)
    while archive.working_on():
        archive.work(1.0)
    ledger.close()


def make(root: Path, rows: int, size_px: int, name: str = "old", *, another: bool = True) -> None:
    """A closed series, and unless it is to have no other an edition of it that waits for the hub."""
    closed_series(root, rows, size_px, name)
    if not another:
        return
    with (
        Series(root / name / layout.SERIES_FILE) as series,
        edition.writing(root / name, name, MAKER, edition.covered(series), series.shape) as draft_of,
    ):
        for row in range(rows):
            draft_of.row(series.raw(row).astype("<f4") - 101, Quality("another", "9" * 64))


def peak_mib(pid: int, *, reset: bool = False) -> float:
    """Of the memory of a process since it was reset."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def stored(daemon: Daemon, index: int, size_px: int, name: str = "new") -> float:
    """Seconds from the close of one more file of an open series to its row."""
    content = tiff(frame(index, size_px), float(index % 140 - 70), 0.05)
    (daemon.root / name / f"p_{index:03d}_{index % 140 - 70:+.2f}deg.tif").write_bytes(content)
    closed_at = time.time()

    def there() -> bool:
        try:
            with h5py.File(daemon.out / name / "series.h5", "r", locking=False) as file:
                return len(file["/exchange/theta"]) > index
        except OSError:
            return False

    wait_for(there, limit_s=300)
    return time.time() - closed_at


def chosen(daemon: Daemon, number: int) -> float:
    """Seconds until readers see this edition."""
    return chosen_of(daemon, "old", number)


def chosen_of(daemon: Daemon, name: str, number: int) -> float:
    began = time.time()
    while ask(daemon.out, "use", {"series": name, "edition": number})["state"] != "done":
        time.sleep(0.05)
    return time.time() - began


def run(folder: Path, rows: int, size_px: int, pairs: int) -> None:
    daemon = Daemon(folder)
    make(daemon.out, rows, size_px)
    with running(folder, denoise__model="constant") as daemon:
        (daemon.root / "new").mkdir()
        wait_for(lambda: layout.edition_files(daemon.out / "old").keys() >= {2}, limit_s=600)
        hub = daemon.pid("hub")
        before = peak_mib(hub, reset=True)
        first_s, then_s = chosen(daemon, 2), chosen(daemon, 1)
        more_mib = peak_mib(hub) - before
        print(f"{rows} x {size_px}^2: {first_s:.1f} s the first time, {then_s:.1f} s then; peak {more_mib:+.0f} MiB over {before:.0f}")
        quiet, busy = [], []
        for pair in range(pairs):
            time.sleep(PAUSE_S)
            quiet.append(stored(daemon, 2 * pair, 512))
            work = threading.Thread(target=chosen, args=(daemon, 2 - pair % 2))
            work.start()
            time.sleep(PAUSE_S)
            busy.append(stored(daemon, 2 * pair + 1, 512))
            work.join()
        for name, times in (("alone", quiet), ("beside it", busy)):
            print(f"{name:>10}: median {statistics.median(times):.3f} s, 99 % {np.quantile(times, 0.99):.3f} s of {len(times)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=20)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="aet_editions_"))
    try:
        run(folder, given.rows, given.size, given.pairs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
