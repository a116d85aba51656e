"""When to scan: a scan is the truth about what is there, an event only a hint; but while events tell of everything, few are needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SHARE, BUSY_SHARE = 0.01, 0.2
"""Of a core: what scans may take while events tell of everything and nothing happens, and at any other time."""
LONGEST_S = 60.0
EASING = 0.5
"""A pause is this share of the time since the last event, so scans grow rare step by step."""
DISTRUST_S = 60.0
"""After a file of which no event told, scans come as often as configured for so long."""


class Rhythm:
    """Times are seconds of `time.monotonic`; `asked_s` is `watch.scan_s`, the pause between scans where events do not tell."""

    def __init__(self, asked_s: float) -> None:
        self.listening = False
        """Events should tell of everything."""
        self.scans = 0
        self.cost_s = 0.0
        """Of the last scan, in seconds of work: on a busy machine or a slow share scans are no rarer."""
        self.due_at = self._scanned_at = 0.0
        self._asked_s = asked_s
        self._called = True
        self._event_at = time.monotonic()
        self.missed_at = -DISTRUST_S
        """When a scan last found what no event had told of."""

    def now(self) -> None:
        """Something is not what it was taken for: scan in the next turn."""
        self._called, self.due_at = True, 0.0

    def call(self) -> None:
        """An event, or the loss of some, asks for a scan: at once, or soon after the last one (a burst of new folders asks for many)."""
        self._called, self.due_at = True, min(self.due_at, self._scanned_at + self._shortest_s())

    def event(self, now: float) -> None:
        self._event_at = now

    def missed(self, now: float) -> None:
        """No event told of what a scan has found."""
        self.missed_at = now

    @contextmanager
    def scan(self, now: float) -> Iterator[bool]:
        """Around a scan; True when it was called for, so what it finds need not have an event of its own."""
        called, self._called = self._called, False
        began = time.thread_time()
        yield called
        self.cost_s = time.thread_time() - began
        self.scans += 1
        self._scanned_at, self.due_at = now, now + self.pause_s(now)

    def pause_s(self, now: float) -> float:
        """From a scan at `now` to the next, if nothing happens."""
        pause_s = max(self._asked_s, self._shortest_s())
        if not self.listening or now - self.missed_at < DISTRUST_S:
            return pause_s
        return max(pause_s, min(LONGEST_S, self.cost_s / QUIET_SHARE, EASING * (now - self._event_at)))

    def _shortest_s(self) -> float:
        return self.cost_s * (1 / BUSY_SHARE - 1)
