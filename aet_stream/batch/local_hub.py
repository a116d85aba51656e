"""One series through the daemon's own parts in one process: watch, core and worker, with calls where the daemon has a socket."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import msgspec

from aet_stream.config import Config
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.errors import OutputFull
from aet_stream.hub.core import Core
from aet_stream.hub.decisions import parsed
from aet_stream.hub.outgoing import Letter, News
from aet_stream.hub.timing import Timing
from aet_stream.messages import WIRE_VERSION, AnyMessage, Beat, Job, Reply, ToHub
from aet_stream.projection import Array
from aet_stream.readers.child import ReaderChild
from aet_stream.status import PutAside, RoleStatus, Totals, heard
from aet_stream.watch.watch import Watch
from aet_stream.worker import Worker

PAUSE_S = 0.01


def settings_of(config: Config) -> Config:
    """The settings of a daemon, for files that nobody writes any more: what is not whole will not become so, and nothing is waited for."""
    watch = msgspec.structs.replace(config.watch, events=False, scan_s=3600.0, settle_s=0.0, incomplete_s=0.0, zero_grace_s=0.0)
    return msgspec.structs.replace(
        config,
        watch=watch,
        series=msgspec.structs.replace(config.series, idle_close_s=0.0, sentinel=""),
        queue=msgspec.structs.replace(config.queue, alone_pause_s=0.0),
    )


class LocalHub:
    """A core and whoever speaks with it; a context. Nobody else may write to the output folder meanwhile.

    Nobody acts upon its events: what follows a series are stages of their own.
    """

    def __init__(self, config: Config) -> None:
        """Take up what is on the disk; `config`: for a whole series at once, as `settings_of` makes it."""
        self.config = config
        self.core = Core(config, sinks={}, timing=Timing(look_for_closing_s=0.0, close_budget_s=1.0))
        self._links: dict[bytes, LocalLink] = {}

    def close(self) -> None:
        self.core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def link(self, name: str, before_work: Callable[[], None] = lambda: None) -> LocalLink:
        """Of a role called so: its way to the core."""
        made = self._links[name.encode()] = LocalLink(self, name, before_work)
        return made

    def say(self, peer: bytes, message: ToHub, pixels: Array | None = None) -> None:
        """A role says something to the core."""
        self._post(self.core.hear(peer, message, pixels))

    def _post(self, outgoing: Iterable[Letter | News]) -> None:
        for each in outgoing:
            if isinstance(each, Letter) and each.peer in self._links:
                self._links[each.peer].letters.append((each.message, each.pixels))

    def turn(self) -> None:
        """One turn of the core.

        Raises
        ------
        OutputFull : the disk does not take it, or has too little room
        """
        self._post(self.core.turn())
        if complaint := self.core.paused or self.core.room.complaint:
            raise OutputFull(complaint)

    def take_in(
        self, paths: frozenset[str], reader: ReaderChild, denoiser: Denoiser, *, before_work: Callable[[], None] = lambda: None
    ) -> None:
        """Read, subtract and store what is there of these images; `before_work`: called before the first is subtracted.

        Reader and denoiser are the caller's, who has the next series read and subtracted with them, too.

        Raises
        ------
        OutputFull : as `turn`
        """
        watch = Watch(self.config, reader, self.link("watch"), only=paths)
        worker = Worker(self.config, name="batch", denoiser=denoiser, link=self.link("batch", before_work))
        try:
            watch.start()
            while True:
                watch.step()
                watch.beat()
                worker.step()
                self.turn()
                if self.core.idle_for_s() > 0:
                    return
                if not any(link.letters for link in self._links.values()):
                    time.sleep(PAUSE_S)
        finally:
            worker.close()
            watch.close()

    def ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        """What a person may ask of the hub (`hub/commands.py`), and its answer.

        Raises
        ------
        AetError : it says no, and why
        """
        return self.core.commands.obey(name, arguments)[1]

    def until_done(self, name: str, **arguments: Any) -> dict[str, Any]:
        """The same, again and again until it is done and `series.h5` shows it."""
        while (answer := self.ask(name, **arguments))["state"] not in ("done", "closed"):
            self.turn()
        while self.core.archive.working_on():
            self.turn()
        return answer

    def state(self, series: str) -> str:
        """`open`, `closed`, or empty where nothing is stored."""
        row = next(iter(self.core.ledger.series(series)), None)
        return "" if row is None or not row["stored"] else str(row["state"])

    def shown(self, series: str) -> int:
        """Which edition `series.h5` shows; 0: not what has been decided."""
        archive, ledger = self.core.archive, self.core.ledger
        return parsed(ledger.decided(series)).edition if archive.settled(series) else 0

    def totals(self) -> Totals:
        """How many images ended how."""
        return self.core.ledger.totals()

    def put_aside(self) -> list[PutAside]:
        """The latest that were held or quarantined."""
        return [*self.core.ledger.in_state("held"), *self.core.ledger.in_state("quarantined")]


class LocalLink:
    """A role's way to the core, as transport.HubLink is to a hub in another process."""

    def __init__(self, hub: LocalHub, name: str, before_work: Callable[[], None]) -> None:
        self._hub, self._peer, self._name = hub, name.encode(), name
        self._before_work: Callable[[], None] | None = before_work
        self.hub_id = hub.core.hub_id
        self.newer_than_s = hub.core.left_out.limit_s
        self.letters: deque[tuple[AnyMessage, Array | None]] = deque()

    def send(self, message: ToHub, pixels: Array | None = None) -> bool:
        self._hub.say(self._peer, message, pixels)
        return True

    def beat(self, status: RoleStatus) -> bool:
        return self.send(Beat(name=self._name, wire=WIRE_VERSION, said=heard(status, os.getpid())))

    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]:
        while self.letters:
            message, pixels = self.letters.popleft()
            if isinstance(message, Job) and self._before_work is not None:
                self._before_work()
                self._before_work = None
            if not isinstance(message, Reply):
                yield message, pixels
