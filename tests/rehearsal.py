"""A whole daemon in this process, without sockets: a real watch, a real core, and a worker that subtracts nothing."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from aet_stream.batch.local_hub import PAUSE_S, LocalHub, settings_of
from aet_stream.config_file import load
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.messages import Beat, Ready, ToHub
from aet_stream.projection import Array, Quality, Subtracted
from aet_stream.readers.child import ReaderChild
from aet_stream.reasons import reason_of
from aet_stream.watch.watch import Watch
from aet_stream.worker import Worker

QUICK = (
    "watch.settle_s=0",
    "watch.scan_s=0.01",
    "watch.events=false",
    "watch.incomplete_s=0",
    "watch.zero_grace_s=3600",
    "output.group_s=0",
)
LONG_ENOUGH_S = 0.06
"""For some scans of a small folder."""


def _whole(kept: str) -> str:
    """A reason of the ledger as `check` says it."""
    reason = reason_of(kept)
    return "" if reason is None else reason.with_remedy()


class Ending(NamedTuple):
    """What became of an image."""

    state: str
    reason: str
    tilt_deg: float | None


class Nothing:
    """What the worker subtracts."""

    name, sha256, device = "none", "0", "cpu"

    def subtract(self, pixels: Array, **_: object) -> Subtracted:
        return Subtracted(pixels.astype("<f4"), Quality(self.name, self.sha256))


def taken_in(folder: Path, model: str) -> Path:
    """Have all that lies in `folder`/in subtracted by a model and stored, series by series closed; returns the output folder."""
    root, out = folder / "in", folder / "out"
    out.mkdir()
    config = settings_of(load(None, [f"watch.root={root}", f"output.root={out}", f"denoise.model={model}", "denoise.threads=1"]))
    paths = frozenset(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    with closing(ReaderChild.of(config)) as reader, LocalHub(config) as hub:
        hub.take_in(paths, reader, Denoiser(config.denoise))
        for row in hub.core.ledger.series():
            hub.until_done("close", series=row["name"])
    return out


class Rehearsal(LocalHub):
    """One life of the daemon over a folder `in`, its output in `out`. The reader goes on: it is the test's."""

    def __init__(self, folder: Path, reader: ReaderChild, *settings: str) -> None:
        self.root, self.out = folder / "in", folder / "out"
        self.root.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(exist_ok=True)
        super().__init__(load(None, [*QUICK, f"watch.root={self.root}", f"output.root={self.out}", *settings]))
        self.watch = Watch(self.config, reader, self.link("watch"))
        self.worker = Worker(self.config, name="worker", denoiser=Nothing(), link=self.link("worker"))  # type: ignore[arg-type]
        self.moved = False
        """Something was said in this turn."""
        self.watch.start()

    def say(self, peer: bytes, message: ToHub, pixels: Array | None = None) -> None:
        self.moved |= not isinstance(message, Beat | Ready)
        super().say(peer, message, pixels)

    def run(self, at_once: int = 1) -> Rehearsal:
        """Until nothing moves any more: what is left waits for its writer.

        Parameters
        ----------
        at_once : images that watch hands over, at most, before the core has a turn
        """
        still, scanned_at = 0, time.monotonic() + LONG_ENOUGH_S
        while still < 3 or time.monotonic() < scanned_at:
            self.moved = False
            self.watch.beat()
            for _ in range(at_once):
                self.watch.step()
            self.worker.step()
            self.turn()
            said = self.watch.status()
            rests = (
                self.watch.rhythm.scans
                and not (self.moved or self.core.in_hand() or said.visits_waiting)
                and all(said.waiting_for.values())
            )
            still = still + 1 if rests else 0
            if still:
                time.sleep(PAUSE_S)
        return self

    @property
    def endings(self) -> dict[tuple[str, int], Ending]:
        """What became of every image that is known, by its latest state; of a file that waits, its first image says why."""
        rows = self.core.ledger.db.execute(
            "SELECT path, image, CASE WHEN excluded.reason IS NULL THEN state ELSE 'odd' END AS ending,"
            " coalesce(excluded.reason, visit.reason) AS why, tilt_deg"
            " FROM visit LEFT JOIN excluded ON excluded.series = visit.series AND excluded.number = visit.number ORDER BY id"
        )
        found = {(row["path"], row["image"]): Ending(row["ending"], _whole(row["why"]), row["tilt_deg"]) for row in rows}
        return {(path, -1): Ending("waiting", why, None) for path, why in self.watch.status().waiting_for.items()} | found

    def close(self) -> None:
        self.watch.close()
        super().close()
