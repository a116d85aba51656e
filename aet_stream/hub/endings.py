"""How visits leave the hub's memory without a row: ended with a reason, or tried again, or tried once too often."""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from aet_stream import failpoints
from aet_stream.config import Queue
from aet_stream.errors import AetError
from aet_stream.hub import quarantine
from aet_stream.hub.in_flight import InFlight, Offered, State, read_of
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.timing import Timing
from aet_stream.projection import VisitKey
from aet_stream.reasons import Reason, why

logger = logging.getLogger(__name__)

_UNKNOWN_NBYTES = 1 << 20


class Endings:
    """Writes what became of visits without a row of their own."""

    def __init__(
        self, rules: Queue, ledger: Ledger, outbox: Outbox, in_flight: InFlight, folder: Path, outgoing: Outgoing, timing: Timing
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._outbox = outbox
        self._in_flight = in_flight
        self.folder = folder
        """Of the quarantine records."""
        self._outgoing = outgoing
        self._timing = timing
        self.doubtful: set[str] = set()
        """Series of which something was held, or about whose rows something was decided, since anybody looked."""

    def end(self, visit: State, state: str, reason: Reason) -> None:
        """It is `held`, `quarantined`, `gone`, a `duplicate`, the `same`, an `other` detector's, or `dropped`: its file changed."""
        key, visit_id, read = visit.key, visit.visit_id, read_of(visit)
        if state == "quarantined":
            row = self._ledger.visit(visit_id)
            quarantine.write(
                self.folder, key, visit_id=visit_id, series=visit.series, reason=reason, attempts=row["attempts"] if row else 0
            )
        sha256 = None if read is None else read.acquired.sha256
        tilt_deg = None if read is None or math.isnan(read.tilt_deg) else read.tilt_deg
        with self._ledger.transaction():
            self._ledger.end(visit_id, state, reason=reason, sha256=sha256, tilt_deg=tilt_deg)
            if state in ("held", "quarantined"):
                data = {"id": visit_id, "path": key.path, "image": key.image, "reason": str(reason), "code": reason.code}
                self._outbox.announce(state, visit.series, f"{key.path}|{key.image}|{key.stamp}|{reason}", data)
            if state != "dropped":
                self._ledger.settle_older(visit_id)
            failpoints.reach("end.commit")
        failpoints.reach("end.committed")
        if state not in ("quarantined", "dropped"):
            quarantine.remove(self.folder, *key.source)  # an earlier state of the file was there
        self._in_flight.leave(visit)
        if state == "held":
            self.doubtful.add(visit.series)
        if state not in ("same", "dropped"):
            level = logging.INFO if state in ("duplicate", "other") else logging.WARNING
            logger.log(level, "%s: %s image %d: %s", state, key.path, key.image, reason)
            self._outgoing.tell(f"projection.{state}", {"id": visit_id, "series": visit.series, "path": key.path, "reason": str(reason)})

    def charge(self, visit: State, reason: Reason) -> None:
        """A reader or worker died over this visit while we lived: once too often, and it is put aside."""
        with self._ledger.transaction():
            attempts = self._ledger.charge(visit.visit_id)
        logger.warning("%s image %d: %s (try %d)", visit.key.path, visit.key.image, reason, attempts)
        if attempts > self._rules.attempts:
            self.end(visit, "quarantined", why("too_often", because=str(reason), attempts=attempts))
        else:
            self.again(visit, attempts=attempts)

    def again(self, visit: State, *, attempts: int = 0) -> None:
        """Ask for it once more."""
        self._in_flight.leave(visit)
        self._queue(visit.wanted.offered, attempts)

    def take_up(self, row: sqlite3.Row, attempts: int | None = None) -> None:
        """Ask for a visit that no offer has named since the hub started, or that a person wants read again."""
        self._queue(self._offered(row), row["attempts"] if attempts is None else attempts)

    def _offered(self, row: sqlite3.Row) -> Offered:
        now = self._timing.unix_s()
        return Offered(VisitKey(row["path"], row["image"], row["stamp"]), _UNKNOWN_NBYTES, now, now)

    def _queue(self, offered: Offered, attempts: int) -> None:
        alone_from_s = self._timing.now_s() + self._rules.alone_pause_s if attempts >= self._rules.attempts else None
        self._in_flight.offer_again(replace(offered, alone_from_s=alone_from_s))

    def waiting(self, visit_id: int) -> sqlite3.Row:
        """The visit of this number, if a person may have it read again.

        Raises
        ------
        AetError : it waits for nobody
        """
        row = self._ledger.visit(visit_id)
        if row is None or row["state"] not in ("held", "quarantined", "other", "ready", "discarded"):
            state = "unknown" if row is None else row["state"]
            raise AetError(f"visit {visit_id} is {state}: only held, quarantined, discarded and other detectors' ones can be read again")
        return row

    def discard(self, row: sqlite3.Row, text: str) -> None:
        """A person does not want this held visit."""
        reason = why("discarded", text=text)
        with self._ledger.transaction():
            self._ledger.discard(row["id"], reason)
            data = {"id": row["id"], "path": row["path"], "image": row["image"], "reason": str(reason)}
            key = f"{row['path']}|{row['image']}|{row['stamp']}|{row['ended_at']!r}"  # of this time that it was held
            self._outbox.announce("projection.discarded", row["series"], key, data)
            failpoints.reach("discard.commit")
        failpoints.reach("discard.committed")
        logger.info("discarded: %s image %d: %s", row["path"], row["image"], text)
        self._outgoing.tell("projection.discarded", {"series": row["series"], **data})

    def read_again(self, rows: Collection[sqlite3.Row], tilt_deg: float | None = None) -> None:
        """These visits once more, all or none; perhaps at a tilt that a person says."""
        self._release(rows, tilt_deg)
        for row in rows:
            self.take_up(row, attempts=0)

    def read_first(self, series: str, rows: Collection[sqlite3.Row]) -> None:
        """These visits of a series once more, all or none, in this order, and before what of it comes after them."""
        self._release(rows, None)
        self._in_flight.offer_first(series, [self._offered(row) for row in rows])

    def _release(self, rows: Collection[sqlite3.Row], tilt_deg: float | None) -> None:
        with self._ledger.transaction():
            for row in rows:
                self._ledger.released(row["id"], tilt_deg)
            failpoints.reach("again.commit")
        failpoints.reach("again.committed")
        for row in rows:
            quarantine.remove(self.folder, row["path"], row["image"])
