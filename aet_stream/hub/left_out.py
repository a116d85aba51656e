"""What of the watched folder is not taken, and why: files that no reader knows, and those that are older than wanted.

A file is older than wanted if it was written before `watch.newer_than` *and* was there when its folder was first seen, which is remembered
here: what comes later, or was brought while the daemon was down, is never left out, whatever its time says.
"""

from __future__ import annotations

import logging
import math
import os
import time

from aet_stream.config import Config
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.timing import Timing
from aet_stream.messages import NoReader, Older, Taken
from aet_stream.naming import lines_without_reader, shown
from aet_stream.newer_than import limit_s

logger = logging.getLogger(__name__)

TICK_S = 0.02
"""The times of files lag behind the clock by as much."""
_LOUDER = 10
"""Said again in the log when there are so many times as many."""


class LeftOut:
    """Remembers it in the ledger."""

    def __init__(self, config: Config, ledger: Ledger, outgoing: Outgoing, timing: Timing) -> None:
        self._ledger = ledger
        self._outgoing = outgoing
        self._root = shown(os.path.realpath(config.watch_root))
        self._counted = False
        """It has been said how many are left out."""
        self._said: dict[tuple[str, str], int] = {}
        started_before = ledger.db.execute("SELECT min(opened_at) FROM series").fetchone()[0] or self._when("start")
        with ledger.transaction():
            now_s = timing.unix_s() - TICK_S
            self.first_start_s = self._first("start", min(now_s, started_before or now_s))
            self._note("older", 0)
        self.limit_s = limit_s(config.watch.newer_than, self.first_start_s)
        self._since_s = self.first_start_s if started_before else math.inf
        """What took its place on its disk later was not there from the first; at the very first start, everything was."""
        self._rule = f'watch.newer_than = "{config.watch.newer_than}", that is {time.ctime(self.limit_s)}'

    def _when(self, what: str) -> float | None:
        """When something was first so, if it ever was."""
        row = self._ledger.db.execute("SELECT value FROM note WHERE what = ?", (what,)).fetchone()
        return None if row is None else float(row["value"])

    def _first(self, what: str, at: float) -> float:
        """The same; at this time, if it never was before."""
        if (before := self._when(what)) is not None:
            return before
        self._note(what, at)
        return at

    def _note(self, what: str, value: float) -> None:
        self._ledger.db.execute("INSERT OR REPLACE INTO note (what, value) VALUES (?, ?)", (what, value))

    def hear_no_reader(self, message: NoReader) -> None:
        """All files of formats that nobody reads, by folder."""
        new = {row[0] for row in message.folders if row[:2] not in self._said or row[2] >= _LOUDER * self._said[row[:2]]}
        rows = [row for row in message.folders if row[0] in new]
        self._said |= {row[:2]: row[2] for row in rows}
        for line in lines_without_reader(rows).values():
            logger.warning("%s", line)
        with self._ledger.transaction():
            self._ledger.db.execute("DELETE FROM no_reader")
            self._ledger.db.executemany("INSERT OR REPLACE INTO no_reader (folder, kind, files) VALUES (?, ?, ?)", message.folders)

    def hear_older(self, peer: bytes, message: Older) -> None:
        """Files that were written before the limit: those that were there from the first are left out, the others are to be taken."""
        db, sight = self._ledger.db, f"sight {self._root}"
        first_sight = self._when(sight) is None
        with self._ledger.transaction():
            if first_sight:
                old = [file for file in message.files if file.changed_at < self._since_s]
                rows = [(self._root, file.path, file.stamp, file.written_at) for file in old]
                db.executemany("INSERT OR REPLACE INTO older (root, path, stamp, written_at) VALUES (?, ?, ?, ?)", rows)
            if message.last:
                self._first(sight, self.first_start_s)
                self._count()
        fresh = tuple(file.path for file in message.files if not self._is_left_out(file.path, file.stamp))
        if fresh:
            self._outgoing.send(peer, Taken(paths=fresh))

    def _count(self) -> None:
        """How many there are that were never looked into: for the status, and once for the log."""
        never_seen = "NOT EXISTS (SELECT 1 FROM visit WHERE visit.path = older.path)"
        query = f"SELECT count(*) FROM older WHERE root = ? AND written_at < ? AND {never_seen}"
        (count,) = self._ledger.db.execute(query, (self._root, self.limit_s)).fetchone()
        self._note("older", count)
        if count and not self._counted:
            logger.warning("%d files are older than wanted, and left out (%s)", count, self._rule)
        self._counted = True

    def _is_left_out(self, path: str, stamp: str) -> bool:
        query = "SELECT 1 FROM older WHERE root = ? AND path = ? AND stamp = ?"
        return self._ledger.db.execute(query, (self._root, path, stamp)).fetchone() is not None
