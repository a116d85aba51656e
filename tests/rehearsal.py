"""A whole daemon in this process, without sockets: a real watch, a real core, and a worker that subtracts nothing."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from aet_stream.config import Config
from aet_stream.config_file import load
from aet_stream.hub.core import Core
from aet_stream.hub.outgoing import Letter, News
from aet_stream.hub.timing import Timing
from aet_stream.messages import WIRE_VERSION, AnyMessage, Beat, Done, Job, Pulse, Ready, ToHub
from aet_stream.projection import Array, Quality
from aet_stream.readers.child import ReaderChild
from aet_stream.reasons import reason_of
from aet_stream.status import WatchStatus, heard
from aet_stream.watch.watch import Watch

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
WATCH, WORKER = b"watch", b"worker"


def _whole(kept: str) -> str:
    """A reason of the ledger as `check` says it."""
    reason = reason_of(kept)
    return "" if reason is None else reason.with_remedy()


class Ending(NamedTuple):
    """What became of an image."""

    state: str
    reason: str
    tilt_deg: float | None


class _Link:
    """Watch's end: what it says is heard at once."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.hub_id = ""
        self.newer_than_s = 0.0
        self.waiting: deque[tuple[AnyMessage, Array | None]] = deque()
        self._rehearsal = rehearsal

    def send(self, message: ToHub, pixels: Array | None = None) -> bool:
        self._rehearsal.moved |= not isinstance(message, Beat)
        self._rehearsal.post(self._rehearsal.core.hear(WATCH, message, pixels))
        return True

    def beat(self, status: WatchStatus) -> bool:
        self._rehearsal.said = status
        return self.send(Beat(name="watch", wire=WIRE_VERSION, said=heard(status, os.getpid())))

    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]:
        while self.waiting:
            message, pixels = self.waiting.popleft()
            if isinstance(message, Pulse):
                self.hub_id, self.newer_than_s = message.hub_id, message.newer_than_s
            else:
                yield message, pixels

    def close(self) -> None: ...


class Rehearsal:
    """One life of the daemon over a folder `in`, its output in `out`."""

    def __init__(self, folder: Path, reader: ReaderChild, *settings: str) -> None:
        self.root, self.out = folder / "in", folder / "out"
        self.root.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(exist_ok=True)
        self.config: Config = load(None, [*QUICK, f"watch.root={self.root}", f"output.root={self.out}", *settings])
        self.core = Core(self.config, timing=Timing(look_for_closing_s=0.0))
        self._link = _Link(self)
        self.watch = Watch(self.config, reader, self._link)
        self.said = WatchStatus()
        """What watch's last beat says."""
        self.moved = False
        """Something was said in this turn."""
        self.watch.start()

    def post(self, outgoing: Iterable[Letter | News]) -> None:
        for letter in outgoing:
            if isinstance(letter, News):
                continue
            self.moved |= not isinstance(letter.message, Pulse)
            if letter.peer == WATCH:
                self._link.waiting.append((letter.message, letter.pixels))
            elif isinstance(letter.message, Job) and letter.pixels is not None:
                done = Done(job_id=letter.message.job_id, quality=Quality("none", "0"), network_s=0.0)
                self.post(self.core.hear(WORKER, done, letter.pixels.astype("<f4")))

    def run(self) -> Rehearsal:
        """Until nothing moves any more: what is left waits for its writer."""
        still, scanned_at = 0, time.monotonic() + LONG_ENOUGH_S
        while still < 3 or time.monotonic() < scanned_at:
            self.moved = False
            self.watch.beat()
            self.watch.step()
            self.post(self.core.hear(WORKER, Ready(name="worker", model_sha256="0", wire=WIRE_VERSION)))
            self.post(self.core.turn())
            rests = not (self.moved or self.core.in_hand() or self.core.at_work) and all(self.said.waiting_for.values())
            still = still + 1 if rests and self.said.hub_id and not self.said.visits_waiting else 0
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
        return {(path, -1): Ending("waiting", why, None) for path, why in self.said.waiting_for.items()} | found

    def close(self) -> None:
        """The reader goes on: it is the test's."""
        self.core.close()

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
