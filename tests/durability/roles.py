"""The real hub and the real trigger, each in a process of its own that dies at a named place and is started again, for events' sake."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.hub.hub import Hub
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.service import Stop, serve, set_up_logging
from aet_stream.trigger.trigger import Trigger
from tests.durability.rig import context
from tests.harness import wait_for

#: Who passes which places of an event's way, in the order of passing them.
PLACES = {
    "event.leased": "hub", "event.sent": "hub", "event.heard": "trigger", "event.begun": "trigger",
    "event.acted": "trigger", "event.told": "trigger", "event.done": "hub", "event.ended": "hub",
}  # fmt: skip
ROLES = {"hub": Hub, "trigger": Trigger}


def run(name: str, tree: dict[str, Any], spec: str, log: Path) -> None:
    """In a process of its own: one role, until SIGTERM or the failpoint."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    set_up_logging(name)
    if spec:
        failpoints.arm(spec)
    os._exit(serve(ROLES[name](msgspec.convert(tree, Config)), Stop()))


class Roles:
    """Both; whichever dies is started anew, without the failpoint."""

    def __init__(self, folder: Path, place: str, ordinal: int = 1, **settings: dict[str, Any]) -> None:
        self._tree = {
            "watch": {"root": str(folder / "in")},
            "output": {"root": str(folder / "out")},
            "trigger": {"longest_pause_s": 0.1, "again_s": 0.1, "attempts": 5},
            "film": {"enabled": False},
            "reconstruct": {"on_close": False},
            "preview": {"enabled": False},
            "report": {"on_close": False},
            **settings,
        }
        self.config = msgspec.convert(self._tree, Config)
        self.log = folder / "log.txt"
        self.deaths: list[str] = []
        self._who, self._spec = PLACES[place], f"{place}@{ordinal}=kill"
        self._running: dict[str, BaseProcess] = {}

    def announce(self, event: str, series: str, count: int) -> list[str]:
        """Before anybody runs: the ids of new events, as the hub would write them."""
        self.config.output_root.mkdir(exist_ok=True)
        with closing(Ledger(self.config.output_root / "ledger.sqlite")) as ledger, ledger.transaction():
            outbox = Outbox(ledger.db, self.config.sinks)
            return [str(outbox.announce(event, series, str(n), {"n": n})) for n in range(count)]

    def until_settled(self, limit_s: float = 200.0) -> None:
        """Run until the failpoint has struck and no delivery waits."""
        try:
            for name in ROLES:
                self._start(name, self._spec if name == self._who else "")
            wait_for(lambda: self._look_after() and self.deaths and self._settled(), limit_s=limit_s, what=str(self))
        finally:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                process.join(10)
                process.kill()

    def _start(self, name: str, spec: str = "") -> None:
        self._running[name] = context.Process(target=run, args=(name, self._tree, spec, self.log))
        self._running[name].start()

    def _look_after(self) -> bool:
        for name, process in self._running.items():
            if process.exitcode is not None:
                self.deaths.append(f"{name} {process.exitcode}")
                self._start(name)
        return True

    def _settled(self) -> bool:
        return not any(state in ("pending", "leased") for _, _, state, _ in self.deliveries())

    def deliveries(self) -> list[tuple[str, str, str, str]]:
        """(event, sink, state, detail), the oldest first."""
        with closing(sqlite3.connect(f"file:{self.config.output_root / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute("SELECT event, sink, state, detail FROM delivery JOIN event USING (seq) ORDER BY seq").fetchall()

    def __str__(self) -> str:
        return f"{self.deliveries()}, deaths {self.deaths}\n{self.log.read_text()[-2000:] if self.log.exists() else ''}"
