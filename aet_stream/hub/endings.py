"""How units leave the hub's memory: ended with a reason, or tried again, or tried once too often."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream import failpoints
from aet_stream.config import Queue
from aet_stream.errors import AetError
from aet_stream.hub import quarantine
from aet_stream.hub.flights import Flight, Flights, Pending
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox

logger = logging.getLogger(__name__)

Tell = Callable[[str, dict[str, Any]], None]
_UNKNOWN_NBYTES = 1 << 20


class Outcomes:
    """Writes what became of units without a row of their own."""

    def __init__(self, rules: Queue, ledger: Ledger, outbox: Outbox, flights: Flights, folder: Path, tell: Tell) -> None:
        self._rules = rules
        self._ledger = ledger
        self._outbox = outbox
        self._flights = flights
        self.folder = folder
        """Of the quarantine records."""
        self._tell = tell

    def end(self, flight: Flight, state: str, reason: str) -> None:
        """The unit is `held`, `quarantined`, `gone`, a `duplicate`, the `same`, an `other` detector's, or `dropped`: its file changed."""
        if state == "quarantined":
            row = self._ledger.unit(flight.unit_id)
            attempts = 0 if row is None else row["attempts"]
            who = {"unit_id": flight.unit_id, "series": flight.series, "path": flight.path, "image": flight.image}
            quarantine.write(self.folder, **who, reason=reason, attempts=attempts)  # type: ignore[arg-type]
        sha256 = flight.acquired.sha256 if flight.acquired else None
        tilt = flight.tilt_deg if np.isfinite(flight.tilt_deg) else None
        with self._ledger.transaction():
            self._ledger.end(flight.unit_id, state, reason=reason, sha256=sha256, tilt_deg=tilt)
            if state in ("held", "quarantined"):
                data = {"id": flight.unit_id, "path": flight.path, "image": flight.image, "reason": reason}
                self._outbox.announce(state, flight.series, f"{flight.path}|{flight.image}|{flight.stamp}|{reason}", data)
            if state != "dropped":
                self._ledger.settle_older(flight.unit_id)
            failpoints.reach("end.commit")
        failpoints.reach("end.committed")
        if state not in ("quarantined", "dropped"):
            quarantine.remove(self.folder, flight.path, flight.image)  # an earlier state of the file was there
        self._flights.land(flight)
        if state not in ("same", "dropped"):
            level = logging.INFO if state in ("duplicate", "other") else logging.WARNING
            logger.log(level, "%s: %s image %d: %s", state, flight.path, flight.image, reason)
            self._tell(f"projection.{state}", {"id": flight.unit_id, "series": flight.series, "path": flight.path, "reason": reason})

    def charge(self, flight: Flight, reason: str) -> None:
        """A reader or worker died over this unit while we lived: once too often, and it is put aside."""
        with self._ledger.transaction():
            attempts = self._ledger.charge(flight.unit_id)
        logger.warning("%s image %d: %s (try %d)", flight.path, flight.image, reason, attempts)
        if attempts > self._rules.attempts:
            self.end(flight, "quarantined", f"{reason}; tried {attempts} times, the last time alone")
        else:
            self.again(flight, attempts=attempts)

    def again(self, flight: Flight, *, attempts: int = 0) -> None:
        """Ask for the unit once more."""
        self._flights.land(flight)
        self._queue(Pending(flight.path, flight.image, flight.stamp, flight.nbytes, flight.closed_at, flight.offered_at), attempts)

    def take_up(self, path: str, image: int, stamp: str, attempts: int) -> None:
        """Ask for a unit that no offer has named since the hub started, or that a person wants read again."""
        now = time.time()
        self._queue(Pending(path, image, stamp, _UNKNOWN_NBYTES, now, now), attempts)

    def _queue(self, pending: Pending, attempts: int) -> None:
        if attempts >= self._rules.attempts:
            pending.alone, pending.not_before = True, time.monotonic() + self._rules.alone_pause_s
        self._flights.offer_again(pending)

    def waiting(self, unit_id: int) -> sqlite3.Row:
        """The unit of this number, if a person may have it read again.

        Raises
        ------
        AetError : it waits for nobody
        """
        row = self._ledger.unit(unit_id)
        if row is None or row["state"] not in ("held", "quarantined", "other", "ready"):
            state = "unknown" if row is None else row["state"]
            raise AetError(f"unit {unit_id} is {state}: only held, quarantined and other detectors' ones can be read again")
        return row

    def read_again(self, row: sqlite3.Row, tilt_deg: float | None) -> None:
        """A person wants this unit once more, perhaps at a tilt of their own."""
        with self._ledger.transaction():
            self._ledger.released(row["id"], tilt_deg)
        quarantine.remove(self.folder, row["path"], row["image"])
        self.take_up(row["path"], row["image"], row["stamp"], attempts=0)
