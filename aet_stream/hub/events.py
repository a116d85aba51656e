"""The side that looks at the trigger: deliveries from the durable outbox, leased, acknowledged, tried again."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping

from aet_stream import failpoints
from aet_stream.config import Config, Sink
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.timing import Timing
from aet_stream.messages import Event, EventDone, EventOff

logger = logging.getLogger(__name__)


class Events:
    """Every event reaches every sink at least once; its id stays the same, so acting twice does no harm."""

    def __init__(
        self, config: Config, sinks: Mapping[str, Sink], ledger: Ledger, outbox: Outbox, outgoing: Outgoing, timing: Timing
    ) -> None:
        self._rules = config.trigger
        self._root = config.output_root
        self._sinks = sinks
        self._lease_s = config.queue.lease_s
        self._ledger = ledger
        self._outbox = outbox
        self._outgoing = outgoing
        self._timing = timing
        self._trigger = b""
        self._leased: dict[tuple[str, str], float] = {}
        """(event, sink) -> when the trigger last said that it works on it."""
        self._clock_s = self._wall_clock_s()

    def lease(self, peer: bytes, sinks: tuple[str, ...]) -> None:
        """Hand the next delivery of each of these sinks to the trigger."""
        self._meet(peer)
        busy = {sink for _, sink in self._leased}
        for sink in self._outbox.anything_for(tuple(sink for sink in sinks if sink not in busy)):
            with self._ledger.transaction():
                row = self._outbox.lease(sink)
            if row is not None:
                self._leased[row["event_id"], sink] = self._timing.now_s()
                what = {key: row[key] for key in ("event_id", "event", "series", "at", "sink")}
                failpoints.reach("event.leased")
                self._outgoing.send(peer, Event(**what, data=json.loads(row["data"]), attempt=row["attempts"]))

    def _meet(self, peer: bytes) -> None:
        """Another trigger than before: its predecessor is dead, and what that one worked on is to be done again."""
        if peer != self._trigger:
            self._trigger = peer
            self._leased = dict.fromkeys(self._leased, -math.inf)

    def hear_trigger(self, peer: bytes, working_on: Iterable[tuple[str, str]]) -> None:
        """The trigger lives, and this is all that it works on: whatever else was leased got lost, on the way or with its predecessor."""
        self._meet(peer)
        now, at_work = self._timing.now_s(), set(working_on)
        for key, since in list(self._leased.items()):
            if key not in at_work and now - since > self._timing.forgotten_s:
                self._leased[key] = -math.inf
        for event_id, sink in at_work:
            if (event_id, sink) not in self._leased:
                with self._ledger.transaction():
                    self._outbox.keep_leased(event_id, sink)
            self._leased[event_id, sink] = now

    def expire(self) -> None:
        """The trigger has died over these: to be acted upon again. And a clock that was set back by a year makes no pause of a year."""
        before, self._clock_s = self._clock_s, self._wall_clock_s()
        if self._clock_s < before - 1:
            with self._ledger.transaction():
                self._outbox.end_pauses()
        for (event_id, sink), since in list(self._leased.items()):
            if self._timing.now_s() - since > self._lease_s:
                row = self._outbox.delivery(event_id, sink)
                if row is not None and row["state"] == "leased":
                    self._failed(event_id, sink, row["attempts"], "the trigger was silent")
                del self._leased[event_id, sink]

    def hear_done(self, done: EventDone) -> None:
        row = self._outbox.delivery(done.event_id, done.sink)
        if row is None or row["state"] not in ("leased", "pending"):
            self._leased.pop((done.event_id, done.sink), None)
            return
        failpoints.reach("event.done")
        words = f"series={row['series']} {row['event']} -> {done.sink}: {done.detail}"
        if done.ok:
            with self._ledger.transaction():
                self._outbox.end(done.event_id, done.sink, "done", done.detail)
                self._announce_product(done.event_id, done.sink, row["event"], row["series"])
            logger.info("%s", words)
            self._outgoing.tell(f"{done.sink}.done", {"series": row["series"], "event_id": done.event_id, "detail": done.detail})
        elif done.again_s:
            with self._ledger.transaction():
                self._outbox.end(done.event_id, done.sink, "pending", done.detail, pause_s=done.again_s, charged=False)
            logger.info("%s; again in %.0f s", words, done.again_s)
        else:
            self._failed(done.event_id, done.sink, row["attempts"], done.detail)
            logger.error("%s", words)
        self._leased.pop((done.event_id, done.sink), None)
        failpoints.reach("event.ended")

    def _announce_product(self, event_id: str, sink: str, event: str, series: str) -> None:
        rules = self._sinks.get(sink)
        product = rules.product if rules and event not in rules.only_while_growing else None
        if product and (path := self._root / series / product.file).exists():  # of one or two projections there is no volume
            self._outbox.announce(product.event, series, event_id, {product.name: str(path)})

    def _failed(self, event_id: str, sink: str, attempts: int, detail: str) -> None:
        """Again after a pause, or put aside for a person."""
        usual = self._rules.attempts
        last = attempts >= (self._sinks[sink].tries(usual) if sink in self._sinks else usual)
        pause_s = min(self._rules.longest_pause_s, 2.0 ** min(attempts - 1, 30))
        with self._ledger.transaction():
            self._outbox.end(event_id, sink, "failed" if last else "pending", detail, pause_s=pause_s)
        if last:
            logger.error("%s -> %s failed %d times and is put aside: `aet-stream events`, `aet-stream resend`", event_id, sink, attempts)

    def call_off(self, event_id: str, sink: str) -> None:
        """Tell the trigger that nobody needs this any more."""
        self._leased.pop((event_id, sink), None)
        if self._trigger:
            self._outgoing.send(self._trigger, EventOff(event_id=event_id, sink=sink))

    def _wall_clock_s(self) -> float:
        """Becomes less when the clock is set back."""
        return self._timing.unix_s() - self._timing.now_s()
