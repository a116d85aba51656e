"""When a series ends: full, silent for long enough, ended by its folder's sentinel, or asked for by a person."""

from __future__ import annotations

import logging

from aet_stream import layout
from aet_stream.config import Config
from aet_stream.hub.archive import Archive
from aet_stream.hub.events import Events
from aet_stream.hub.in_flight import InFlight
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.timing import Timing
from aet_stream.messages import SeriesEnd
from aet_stream.naming import top_folder

logger = logging.getLogger(__name__)

_SHARE = 4
"""While projections are in flight, one part in so many of the time goes into closing."""


class Closing:
    """Has the archive close what is due, and says what was closed."""

    def __init__(
        self, config: Config, ledger: Ledger, archive: Archive, in_flight: InFlight, events: Events, outgoing: Outgoing, timing: Timing
    ) -> None:
        self._rules = config.series
        self._ledger = ledger
        self._archive = archive
        self._in_flight = in_flight
        self._events = events
        self._outgoing = outgoing
        self._timing = timing
        self._looked_at_s = self._rests_until_s = -1e9
        self._active_at_s: dict[str, float] = {}
        """Series -> monotonic time of its last projection: a clock that is set must not close a series."""
        self._asked: set[str] = set()
        """Series that a person wants closed."""
        self._watch = b""
        self._sentinels: set[str] = set()
        """Where one lies, a series that something late opens again ends again."""

    def ask(self, name: str) -> None:
        """A person wants it closed, as soon as nothing is on its way to it."""
        self._asked.add(name)

    def note_activity(self, name: str) -> None:
        """Something of this series was stored just now."""
        self._active_at_s[name] = self._timing.now_s()

    def close_series(self) -> None:
        """Begin to close what is due; go on with what has begun, a part of the time while projections are in flight: they go first."""
        now_s = self._timing.now_s()
        if now_s - self._looked_at_s > self._timing.look_for_closing_s:
            self._looked_at_s = now_s
            for name in self.due():
                self._archive.begin_close(name)
        if self._in_flight and now_s < self._rests_until_s:
            return
        for closed in self._archive.work(0.0 if self._in_flight else self._timing.close_budget_s):
            if closed.what != "shown":
                self._asked.discard(closed.name)
            for event_id, sink in closed.called_off:
                self._events.call_off(event_id, sink)
            path = self._archive.root / closed.name / layout.SERIES_FILE
            what = "shown as it is decided" if closed.what == "shown" else f"{closed.what}: one verified file"
            logger.info("series=%s %s, %s", closed.name, what, path)
            self._outgoing.tell(f"series.{closed.what}", {"series": closed.name, "path": str(path)})
        ended_s = self._timing.now_s()
        self._rests_until_s = ended_s + (_SHARE - 1) * (ended_s - now_s)

    def hear_end(self, end: SeriesEnd) -> None:
        """A sentinel file ends the series of its folder, as a person would."""
        if end.there:
            logger.info("%s says that the series of its folder has ended", end.path)
            self._sentinels.add(end.path)
        else:
            logger.info("%s was taken away: later projections do not end the series of its folder", end.path)
            self._sentinels.discard(end.path)

    def hear_watch(self, peer: bytes) -> None:
        """Another watch than before tells anew of the sentinels that are there."""
        if peer != self._watch:
            self._watch = peer
            self._sentinels.clear()

    def coming(self) -> set[str]:
        """Series that something is on its way to."""
        return self._in_flight.series() | self._archive.unpublished()

    def due(self) -> list[str]:
        """Open series that are full, silent for long enough, or asked for; never one that something is still coming for."""
        coming, rules, due = self.coming(), self._rules, list[str]()
        by_path = rules.by in ("leaf", "path_pattern")
        ended_folders = set[str]() if by_path else {top_folder(path) for path in self._sentinels}
        ended_series = {self._in_flight.series_of(path) for path in self._sentinels} if by_path else set[str]()
        for series in self._ledger.series(state="open"):
            name, stored = series["name"], series["stored"]
            if not stored or name in coming:
                continue
            full = rules.expected and stored >= rules.expected and len(self._archive.tilts_deg(name)) >= rules.expected
            silent = rules.idle_close_s and self._silent_s(name, series["last_at"]) > rules.idle_close_s
            ended = name in ended_series or (ended_folders and ended_folders & self._ledger.folders(name))
            if name in self._asked or ended or full or silent:
                due.append(name)
        return due

    def _silent_s(self, name: str, last_at: float) -> float:
        """Seconds since the last projection; the wall clock counts only for the time before this start."""
        now_s = self._timing.now_s()
        return now_s - self._active_at_s.setdefault(name, now_s - max(0.0, self._timing.unix_s() - last_at))
