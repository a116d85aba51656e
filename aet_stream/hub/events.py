"""The side that looks at the trigger: events from the durable outbox, leased, acknowledged, tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outcomes import Tell
from aet_stream.messages import AnyMessage, Event, EventDone

logger = logging.getLogger(__name__)


class Events:
    """Every event is acted upon at least once; its id stays the same, so acting twice does no harm."""

    def __init__(self, ledger: Ledger, *, attempts: int, lease_s: float, send: Callable[[bytes, AnyMessage], bool], tell: Tell) -> None:
        self._ledger = ledger
        self._attempts = attempts
        self._lease_s = lease_s
        self._send = send
        self._tell = tell
        self._leased: dict[str, float] = {}
        """Event -> when the trigger last said that it works on it."""

    def lease_next(self, peer: bytes) -> None:
        row = self._ledger.next_event()
        if row is None:
            return
        with self._ledger.transaction():
            attempt = self._ledger.lease_event(row["event_id"])
        self._leased[row["event_id"]] = time.monotonic()
        self._send(peer, Event(event_id=row["event_id"], event=row["event"], series=row["series"], attempt=attempt))

    def hear_trigger(self, working_on: Iterable[str]) -> None:
        for event_id in self._leased.keys() & set(working_on):
            self._leased[event_id] = time.monotonic()

    def expire(self) -> None:
        """The trigger has died over these: to be acted upon again."""
        for event_id, since in list(self._leased.items()):
            if time.monotonic() - since > self._lease_s:
                del self._leased[event_id]
                with self._ledger.transaction():
                    self._ledger.end_event(event_id, "pending", "the trigger was silent")

    def hear_done(self, message: EventDone) -> None:
        self._leased.pop(message.event_id, None)
        row = self._ledger.event(message.event_id)
        if row is None or row["state"] == "done":
            return
        state = "done" if message.ok else "failed" if row["attempts"] >= self._attempts else "pending"
        with self._ledger.transaction():
            self._ledger.end_event(message.event_id, state, message.detail, pause_s=0.0 if message.ok else 2.0 ** row["attempts"])
        logger.log(logging.INFO if message.ok else logging.ERROR, "series=%s %s: %s", row["series"], row["event"], message.detail)
        if message.ok:
            self._tell(f"{row['event']}.done", {"series": row["series"], "event_id": message.event_id, "detail": message.detail})
