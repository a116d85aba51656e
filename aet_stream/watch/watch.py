"""The watch's turn: take hints, scan, look into what has settled, tell of what is complete, read what the hub wants."""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import ExitStack, closing

from aet_stream.config import Config
from aet_stream.errors import SourceNotReady
from aet_stream.messages import Taken, ToHub, Want
from aet_stream.naming import shown
from aet_stream.projection import Array
from aet_stream.readers.child import ReaderChild
from aet_stream.status import WatchStatus, in_words
from aet_stream.transport import HubLink
from aet_stream.watch.answering import Answering
from aet_stream.watch.events import Hints
from aet_stream.watch.link import Link
from aet_stream.watch.looking import Looking
from aet_stream.watch.rhythm import Rhythm
from aet_stream.watch.settle import Settling
from aet_stream.watch.telling import Telling
from aet_stream.watch.visits import Visits
from aet_stream.watch.witness import Witness

logger = logging.getLogger(__name__)

SHOWN_MOVING = 20
_OF_A_FOLDER = ("folder", "leaf", "file")
"""Values of `series.by` with which a series lies in one folder directly under the watched one, or in that one itself."""
BEGIN_S = 2.0
"""So long at most the first scan of a large tree waits until the hub has had the first images that it asks for."""


class Watch:
    """The only one that looks at source files; it never changes, moves or locks one."""

    name = "watch"

    def __init__(
        self, config: Config, reader: ReaderChild | None = None, link: Link | None = None, *, only: frozenset[str] | None = None
    ) -> None:
        """
        Parameters
        ----------
        reader : by default the one that the settings ask for; who makes it closes it
        link : the way to the hub; by default the socket below `output.root`; the same
        only : paths of images, relative to the watched folder; by default all that there are

        Raises
        ------
        ConfigError : the tilt plan cannot be read
        """
        self._config = config
        self.root = config.watch_root
        self._own = ExitStack()
        """What was made here, and is closed with it."""
        self._reader = self._own.enter_context(closing(ReaderChild.of(config))) if reader is None else reader
        self._link = link
        self._hub_id = ""
        self._there = False
        self.hints = self._own.enter_context(closing(Hints()))
        self.rhythm = Rhythm(config.watch.scan_s)
        self.settling = Settling(
            self.root,
            exclude=config.watch.exclude,
            settle_s=config.watch.settle_s,
            suffixes=frozenset(),
            sentinel=config.series.sentinel,
            only=only,
        )
        self.visits = Visits(config.frames)
        parts = (config, self._reader, Witness(config), self.settling, self.visits, self.rhythm, self._send)
        self._looking, self._answering = Looking(*parts), Answering(*parts)
        self._telling = Telling(config, self.settling, self.visits, self._send)

    def start(self) -> None:
        self.settling.suffixes = self._reader.suffixes()
        if self._link is None:
            link = HubLink(self._config.output_root, name=self.name, wake_fd=self.hints.wake_fd)
            self._link = self._own.enter_context(closing(link))
        now = time.monotonic()
        if self._config.series.by in _OF_A_FOLDER and self.settling.begin(now):
            self.rhythm.due_at = now + BEGIN_S
            self._looking.say_merged(self.settling.candidates)
        else:
            self._scan(now)

    @property
    def link(self) -> Link:
        if self._link is None:
            raise SourceNotReady("watch has not been started")
        return self._link

    def _send(self, message: ToHub, pixels: Array | None = None) -> bool:
        return self.link.send(message, pixels)

    def _look_for_root(self) -> None:
        there = self.settling.root_is_there()
        if there and not self._there and self._config.watch.events:  # anew after an absence: events told of the folder that was
            self.rhythm.listening = self.hints.start(self.root)
        if there and not self._there and self.rhythm.scans:
            logger.info("watch.root %s is there again", self.root)
        if not there and (self._there or not self.rhythm.scans):
            logger.warning("watch.root %s is not there: waiting for it", self.root)
        self._there = there

    def _scan(self, now: float) -> None:
        """Look at every file."""
        first = not self.rhythm.scans
        self._look_for_root()
        if self.settling.untold:
            self.rhythm.missed(now)
        with self.rhythm.scan(now) as called:
            for path in self.settling.scan(now) if self._there else ():
                self.visits.forget(path)
        if called:
            self.settling.untold.clear()
        if first:
            self._looking.say_merged(self.settling.candidates)

    def step(self) -> None:
        self._hear()
        now = time.monotonic()
        self._take_hints(now)
        if now >= self.rhythm.due_at:
            self._scan(now)
        if self._hub_id:
            was_asked = bool(self._answering.asked)
            self._answering.turn()  # first: workers wait for it, while what is looked into may wait for credit
            if was_asked and not self._answering.asked and not self.rhythm.scans:
                self.rhythm.now()  # there is work for a while: the rest of a large tree
            if time.monotonic() - now < self._config.watch.reader_timeout_s:  # one timeout a step is enough
                self._looking.turn(time.monotonic(), briefly=bool(self._answering.asked))
            self._telling.turn(now, of_all=self.rhythm.scans > 0)

    def _hear(self) -> None:
        """What the hub says, until there is something else to do."""
        now = time.monotonic()
        soon = min(0.25, max(0.0, self.rhythm.due_at - now))
        if self._hub_id:
            soon = min(soon, self.settling.next_look_s(now))
        for message, _ in self.link.receive(0.0 if self._answering.asked else soon):
            if isinstance(message, Want):
                self._answering.asked.append(message)
            elif isinstance(message, Taken):
                for path in message.paths:
                    self.settling.take(path, time.monotonic())
        if self.link.hub_id != self._hub_id:
            self._greet(self.link.hub_id)

    def _greet(self, hub_id: str) -> None:
        """A new hub knows of nothing: show it everything, and look again at what could not be read."""
        self._hub_id = hub_id
        self.settling.leave_out(self.link.newer_than_s)
        self.visits.tell_again()
        unknown = [path for path in self.settling.seen if not self.visits.knows(path)]
        for path in unknown:
            self.settling.again(path)
        self._answering.forget()
        self._telling.forget()
        if unknown:
            self.rhythm.now()

    def _take_hints(self, now: float) -> None:
        hints = self.hints.take()
        if hints:
            self.rhythm.event(now)
        rescan = [self.settling.hint(path, now, closed=closed) for path, closed in hints]
        if self.hints.lost:
            self.hints.lost = False
            logger.warning("file system events were lost: scanning everything")
            self.rhythm.event(now)
            rescan = [True]
        if any(rescan):
            self.rhythm.call()

    def status(self) -> WatchStatus:
        """What it sees and waits for."""
        moving, asked, older_to_tell = self.settling.candidates, self._answering.asked, self._telling.older_to_tell()
        return WatchStatus(
            hub_id=self._hub_id,
            busy=bool(moving or self.visits.waiting or asked or not self.rhythm.scans or older_to_tell),
            asked=tuple(want.visit.source for want in asked),
            root=str(self.root),
            root_there=self._there or not self.rhythm.scans,
            events=self.rhythm.listening,
            scan_s=round(self.rhythm.cost_s, 4),
            scan_every_s=round(self.rhythm.pause_s(time.monotonic()), 2),
            files=len(self.settling.seen),
            moving=len(moving),
            visits_waiting=self.visits.waiting,
            waiting_for={path: candidate.complaint for path, candidate in itertools.islice(moving.items(), SHOWN_MOVING)},
            older=len(self.settling.older),
            unreadable=tuple(sorted(map(shown, self.settling.unreadable))[:20]),
        )

    def beat(self) -> str:
        status = self.status()
        self.link.beat(status)
        return in_words(status)

    def close(self) -> None:
        self._own.close()
