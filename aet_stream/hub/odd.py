"""A survey that came first does not bind its series: once two after it agree with each other against it, it is set aside.

decisions.json (the row does not count) -> one ledger transaction (what was held because of it waits to be read again). After a kill between
the two, or a disk that fails, images are found that are held because of what no row says any more; other rows may be there by then.
"""

from __future__ import annotations

import logging

from aet_stream import failpoints
from aet_stream.hub.archive import Archive
from aet_stream.hub.endings import Endings
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.storing import for_each
from aet_stream.judging import Held, is_bound, odd

logger = logging.getLogger(__name__)

_NEWEST = 50
"""Held images of one series that are compared with each other."""


class Odd:
    """Sets odd rows aside, and has what nothing binds any more read again."""

    def __init__(self, ledger: Ledger, archive: Archive, endings: Endings) -> None:
        self._ledger = ledger
        self._archive = archive
        self._endings = endings
        self._endings.doubtful.update(ledger.series_held())

    def look(self) -> None:
        """At every series of which something was held or decided since."""
        for_each(sorted(self._endings.doubtful), self._look_once)

    def _look_once(self, name: str) -> None:
        self._look(name)
        self._endings.doubtful.discard(name)

    def _look(self, name: str) -> None:
        held = [(row, reason) for row, reason in self._ledger.held(name) if is_bound(reason)]
        if not held or not (self._archive.at_hand(name) or self._ledger.tilts(name) <= 1):
            return
        rows = self._archive.store(name).rows
        bound = [(row, reason) for row, reason in held if rows.bind((row["path"], row["image"]), reason)]
        newest = [Held(reason, row["tilt_deg"], row["sha256"]) for row, reason in bound[:_NEWEST] if row["tilt_deg"] is not None]
        if found := odd(rows, newest):
            logger.warning("series=%s projection=%d is set aside: %s", name, found.row.number, found.reason.with_remedy())
            self._archive.exclude(name, [found.row.number], found.reason)
            failpoints.reach("odd.decided", self._archive.root / name)
        free = [(row, reason) for row, reason in held if not rows.bind((row["path"], row["image"]), reason)]
        free.sort(key=lambda each: int(each[0]["id"]))  # as they came; they may have been held in another order
        if free:
            self._endings.read_first(name, found.in_turn(free) if found else [row for row, _ in free])
