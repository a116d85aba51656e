"""The trigger's turn: lease events from the hub's outbox, act upon them, acknowledge.

Every sink has a lane of its own, so that a reconstruction of an hour holds up no webhook; within a lane there is one delivery at a time.
The trigger never holds anything that another could not do again: if it dies, the hub's lease runs out and the event is leased anew, under
the same id.
"""

from __future__ import annotations

import logging
import time

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.messages import Event, EventDone, EventOff, EventPlease
from aet_stream.status import TriggerStatus, in_words
from aet_stream.transport import HubLink
from aet_stream.trigger.sinks import Begin, configured
from aet_stream.work import Outcome, Work

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 0.2
TURN_S = 0.1


class Trigger:
    """Acts upon events, one at a time for each sink."""

    name = "trigger"

    def __init__(self, config: Config, sinks: dict[str, Begin] | None = None) -> None:
        """`sinks`: how to begin a delivery; None: as configured."""
        self._config = config
        self._sinks = configured(config) if sinks is None else sinks
        self._link: HubLink | None = None
        self._working: dict[str, tuple[Event, Work]] = {}
        self._asked_at = 0.0
        self._finished = 0
        self._failed = 0

    def start(self) -> None:
        """Look for the hub."""
        self._link = HubLink(self._config.output_root, name=self.name)

    def step(self) -> None:
        if self._link is None:
            return
        free = tuple(sink for sink in self._sinks if sink not in self._working)
        if free and time.monotonic() - self._asked_at > ASK_AGAIN_S:
            self._asked_at = time.monotonic()
            self._link.send(EventPlease(sinks=free))
        for message, _ in self._link.receive(TURN_S):
            if isinstance(message, Event) and message.sink in free and message.sink not in self._working:
                self._begin(message, self._sinks[message.sink])
            elif isinstance(message, EventOff):
                self._call_off(message)
        for sink, (event, work) in list(self._working.items()):
            outcome = work.outcome()
            if outcome is not None:
                del self._working[sink]
                self._end(event, outcome)

    def _begin(self, event: Event, begin: Begin) -> None:
        logger.info("series=%s %s -> %s, try %d", event.series, event.event, event.sink, event.attempt)
        failpoints.reach("event.heard")
        self._working[event.sink] = (event, begin(event))
        failpoints.reach("event.begun")
        self.beat()  # the lease is ours from now on

    def _end(self, event: Event, outcome: Outcome) -> None:
        failpoints.reach("event.acted")
        self._finished += outcome.ok
        self._failed += not outcome.ok and not outcome.again_s
        self._asked_at = 0.0
        if self._link is not None:
            answer = EventDone(event_id=event.event_id, sink=event.sink, ok=outcome.ok, detail=outcome.detail, again_s=outcome.again_s)
            self._link.send(answer)
            failpoints.reach("event.told")

    def _call_off(self, message: EventOff) -> None:
        event, work = self._working.get(message.sink, (None, None))
        if event is not None and work is not None and event.event_id == message.event_id:
            logger.info("series=%s %s -> %s: not needed any more, stopped", event.series, event.event, event.sink)
            del self._working[message.sink]
            work.stop()

    def beat(self) -> str:
        deliveries = tuple((event.event_id, sink) for sink, (event, _) in self._working.items())
        doing = ", ".join(f"{event.event} of {event.series} -> {sink}" for sink, (event, _) in self._working.items())
        series = {sink: event.series for sink, (event, _) in self._working.items()}
        said = TriggerStatus(deliveries=deliveries, doing=doing, series=series, finished=self._finished, failed=self._failed)
        if self._link is not None:
            self._link.beat(said)
        return in_words(said)

    def close(self) -> None:
        for _, work in self._working.values():
            work.stop()
        if self._link is not None:
            self._link.close()
