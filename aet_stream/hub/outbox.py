"""Events on disk that somebody still has to act upon, in the ledger's file and within its transactions.

An event is what happened; a delivery is one event on its way to one sink:

    pending -> leased -> done | pending (again, after a pause) | failed (tried too often: resent by a person) | superseded
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from aet_stream.config import Sink
from aet_stream.status import DeadDelivery, Deliveries

OUTBOX_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, series TEXT NOT NULL, data TEXT NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS delivery (
    seq INTEGER NOT NULL REFERENCES event, sink TEXT NOT NULL, series TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'pending',
    attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '', ended_at REAL,
    UNIQUE (sink, seq)
) STRICT;
CREATE INDEX IF NOT EXISTS delivery_waiting ON delivery (sink, series, seq) WHERE state IN ('pending', 'leased');
CREATE INDEX IF NOT EXISTS delivery_state ON delivery (state);
"""
_JOINED = (
    "SELECT event_id, event, event.series, data, at, sink, state, attempts, next_at, detail, ended_at FROM delivery JOIN event USING (seq)"
)


def event_id(event: str, series: str, key: str) -> str:
    """The same happening has the same name, however often it is told, and after the ledger was lost."""
    return hashlib.sha256(f"{event}|{series}|{key}".encode()).hexdigest()[:32]


class Outbox:
    """Every method that writes belongs into a transaction of the ledger."""

    def __init__(self, db: sqlite3.Connection, sinks: Mapping[str, Sink] | None = None, *, unix_s: Callable[[], float] = time.time) -> None:
        """`sinks`: who acts upon events, and upon which."""
        self._db = db
        self._sinks = sinks or {}
        self._unix_s = unix_s

    def announce(self, event: str, series: str, key: str, data: dict[str, Any]) -> str | None:
        """Something happened. Returns the event's id, or None if it has been announced before."""
        name, now = event_id(event, series, key), self._unix_s()
        row = self._db.execute(
            "INSERT OR IGNORE INTO event (event_id, event, series, data, at) VALUES (?, ?, ?, ?, ?) RETURNING seq",
            (name, event, series, json.dumps(data), now),
        ).fetchone()
        if row is None:
            return None
        wanted = [(row["seq"], sink, series) for sink, rules in self._sinks.items() if event in rules.given]
        self._db.executemany("INSERT INTO delivery (seq, sink, series) VALUES (?, ?, ?)", wanted)
        return name

    def lease(self, sink: str) -> sqlite3.Row | None:
        """The next delivery of a sink: per series in order, so an earlier one that waits for its next try holds up its own series."""
        growing, before = (self._sinks[sink].only_while_growing, self._sinks[sink].after) if sink in self._sinks else ((), ())
        if growing:
            latest = "SELECT max(seq) FROM delivery AS later WHERE later.sink = ?2 AND later.series = delivery.series"
            self._db.execute(
                "UPDATE delivery SET state = 'superseded', ended_at = ?1 WHERE sink = ?2 AND state = 'pending'"
                f" AND seq < ({latest} AND later.state IN ('pending', 'leased'))"
                f" AND seq IN (SELECT seq FROM event WHERE event IN ({_marks(growing)}))",
                (self._unix_s(), sink, *growing),
            )
        others = (
            "SELECT 1 FROM delivery AS other WHERE other.seq = delivery.seq AND other.state IN ('pending', 'leased')"
            f" AND other.sink IN ({_marks(before)})"
        )
        row = self._db.execute(
            "UPDATE delivery SET state = 'leased', attempts = attempts + 1 WHERE (sink, seq) = (SELECT sink, seq FROM (SELECT sink,"
            " min(seq) AS seq FROM delivery WHERE sink = ? AND state IN ('pending', 'leased') GROUP BY series) JOIN delivery"
            f" USING (sink, seq) WHERE state = 'pending' AND next_at <= ? AND NOT EXISTS ({others}) ORDER BY seq LIMIT 1) RETURNING seq",
            (sink, self._unix_s(), *before),
        ).fetchone()
        if row is None:
            return None
        leased: sqlite3.Row = self._db.execute(f"{_JOINED} WHERE sink = ? AND seq = ?", (sink, row["seq"])).fetchone()
        return leased

    def anything_for(self, sinks: tuple[str, ...]) -> list[str]:
        """Those of the sinks that something is due for; a cheap look before a transaction."""
        rows = self._db.execute("SELECT DISTINCT sink FROM delivery WHERE state = 'pending' AND next_at <= ?", (self._unix_s(),))
        return [row["sink"] for row in rows if row["sink"] in sinks]

    def waiting(self, series: str) -> list[str]:
        """Sinks that something of a series is still to be done by."""
        query = "SELECT DISTINCT sink FROM delivery WHERE series = ? AND state IN ('pending', 'leased') ORDER BY sink"
        return [row["sink"] for row in self._db.execute(query, (series,))]

    def delivery(self, name: str, sink: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(f"{_JOINED} WHERE event_id = ? AND sink = ?", (name, sink)).fetchone()
        return row

    def end(self, name: str, sink: str, state: str, detail: str, *, pause_s: float = 0.0, charged: bool = True) -> None:
        """A try has ended; `charged=False` forgets that it was one: the delivery is put off, with a time to try it, and never ended."""
        now = self._unix_s()
        self._db.execute(
            "UPDATE delivery SET state = ?, detail = ?, next_at = ?, ended_at = ?, attempts = max(0, attempts - ?)"
            " WHERE sink = ? AND seq = (SELECT seq FROM event WHERE event_id = ?)",
            (state, detail, now + pause_s, now if charged else None, 0 if charged else 1, sink, name),
        )

    def keep_leased(self, name: str, sink: str) -> None:
        """A trigger that outlived the hub is still at it."""
        self._db.execute(
            "UPDATE delivery SET state = 'leased', attempts = attempts + 1 WHERE state = 'pending' AND sink = ?"
            " AND seq = (SELECT seq FROM event WHERE event_id = ?)",
            (sink, name),
        )

    def end_growing(self, series: str) -> list[tuple[str, str]]:
        """A series is closed: what is of use only while it grows is not wanted any more.

        Returns (event, sink) of those that were being worked upon.
        """
        rows = []
        for sink, rules in self._sinks.items():
            rows += self._db.execute(
                "SELECT event_id, sink, state FROM delivery JOIN event USING (seq) WHERE delivery.series = ?"
                f" AND state IN ('pending', 'leased') AND sink = ? AND event IN ({_marks(rules.only_while_growing)})",
                (series, sink, *rules.only_while_growing),
            ).fetchall()
        for row in rows:
            self.end(row["event_id"], row["sink"], "superseded", "the series was closed")
        return [(row["event_id"], row["sink"]) for row in rows if row["state"] == "leased"]

    def start(self) -> None:
        """After a start nobody is known to work on anything; being interrupted is no failed try. Sinks may have been taken away."""
        self._db.execute("UPDATE delivery SET state = 'pending', attempts = max(0, attempts - 1) WHERE state = 'leased'")
        self.end_pauses()
        self._db.execute(
            f"UPDATE delivery SET state = 'superseded', detail = 'this sink is no longer configured' WHERE state = 'pending'"
            f" AND sink NOT IN ({_marks(tuple(self._sinks))})",
            tuple(self._sinks),
        )

    def end_pauses(self) -> None:
        """Whatever waits for its next try is tried now: the clock that measured the pauses may have been set back since."""
        self._db.execute("UPDATE delivery SET next_at = 0 WHERE state = 'pending' AND next_at > 0")

    def resend(self, names: list[str] | None) -> int:
        """Try failed deliveries anew: of these events, or all (None). Returns how many."""
        failed = self.listed("failed", -1)
        chosen = [row for row in failed if names is None or row["event_id"] in names]
        for row in chosen:
            self._db.execute(
                "UPDATE delivery SET state = 'pending', attempts = 0, next_at = 0, ended_at = NULL WHERE sink = ?"
                " AND seq = (SELECT seq FROM event WHERE event_id = ?)",
                (row["sink"], row["event_id"]),
            )
        return len(chosen)

    def listed(self, state: str | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        """Deliveries, the latest event first; `limit` -1: all."""
        where, values = ("", ()) if state is None else (" WHERE state = ?", (state,))
        return [dict(row) for row in self._db.execute(f"{_JOINED}{where} ORDER BY seq DESC LIMIT ?", (*values, limit))]

    def put_off(self) -> int:
        """How many deliveries wait only because their receiver said "again later", or because an earlier one of their series does."""
        row = self._db.execute(
            "SELECT count(*) AS n FROM delivery WHERE state = 'pending' AND EXISTS (SELECT 1 FROM delivery AS first"
            " WHERE first.sink = delivery.sink AND first.series = delivery.series AND first.seq <= delivery.seq"
            " AND first.state = 'pending' AND first.next_at > 0 AND first.ended_at IS NULL)"
        ).fetchone()
        return int(row["n"])

    def figures(self) -> Deliveries:
        """How many deliveries wait or failed, and the failed ones."""
        counts = {row["state"]: row["n"] for row in self._db.execute("SELECT state, count(*) AS n FROM delivery GROUP BY state")}
        dead = tuple(DeadDelivery(**{key: row[key] for key in DeadDelivery.__struct_fields__}) for row in self.listed("failed", 50))
        return Deliveries(pending=counts.get("pending", 0) + counts.get("leased", 0), failed=counts.get("failed", 0), dead=dead)


def _marks(values: Collection[str]) -> str:
    """One question mark for each value."""
    return ",".join("?" * len(values))
