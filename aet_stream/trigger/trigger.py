"""The trigger's turn: lease an event, run its reconstruction in a child process, acknowledge.

It never holds anything that another could not do again: if it dies, the hub's lease runs out and the event is leased anew; a
reconstruction that is already there for the same projections is recognised by its digest and not computed twice.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable

from aet_stream.config import Config
from aet_stream.layout import SERIES_FILE
from aet_stream.messages import Event, EventDone, EventPlease
from aet_stream.transport import HubLink

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 0.5
NICENESS = 10
KILL_AFTER_S = 5.0


class Trigger:
    """One event at a time, at low priority, in a child of its own."""

    name = "trigger"

    def __init__(self, config: Config, command: Callable[[Event], list[str]] | None = None) -> None:
        self._config = config
        self._command = command or self._reconstruct
        self._link: HubLink | None = None
        self._event: Event | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._began_at = 0.0
        self._asked_at = 0.0
        self._finished = 0

    def start(self) -> None:
        self._link = HubLink(self._config.output_root, role="trigger", name=self.name)

    def step(self) -> None:
        if self._link is None:
            return
        if self._event is None and time.monotonic() - self._asked_at > ASK_AGAIN_S:
            self._asked_at = time.monotonic()
            self._link.send(EventPlease())
        for message, _ in self._link.receive(0.2):
            if isinstance(message, Event) and self._event is None:
                self._begin(message)
        if self._child is not None:
            self._look_after(self._child)

    def _reconstruct(self, event: Event) -> list[str]:
        settings = self._config.reconstruct
        series = self._config.output_root / event.series / SERIES_FILE
        return [sys.executable, "-m", "aet_stream", "reconstruct", str(series), "--method", settings.method,
                "--iterations", str(settings.iterations), "--supervised"]  # fmt: skip

    def _begin(self, event: Event) -> None:
        command = self._command(event)
        logger.info("series=%s %s, try %d: %s", event.series, event.event, event.attempt, " ".join(command[1:]))
        # The child ends when its standard input does: it never outlives this process.
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, preexec_fn=_lower_priority)
        self._event, self._began_at = event, time.monotonic()

    def _look_after(self, child: subprocess.Popen[bytes]) -> None:
        code = child.poll()
        took_s = time.monotonic() - self._began_at
        if code is None and took_s > self._config.reconstruct.timeout_s:
            self._kill(child)
            self._end(False, f"stopped after {took_s:.0f} s (reconstruct.timeout_s)")
        elif code is not None:
            self._end(code == 0, f"done in {took_s:.1f} s" if code == 0 else f"the reconstruction ended with exit code {code}")

    def _end(self, ok: bool, detail: str) -> None:
        if self._event is not None and self._link is not None:
            self._finished += ok
            self._link.send(EventDone(event_id=self._event.event_id, ok=ok, detail=detail))
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._event, self._child, self._asked_at = None, None, 0.0

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        """Ask, wait, kill, wait."""
        child.terminate()
        try:
            child.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def beat(self) -> None:
        if self._link is not None:
            now_doing = "" if self._event is None else f"{self._event.event} of {self._event.series}"
            events = [] if self._event is None else [self._event.event_id]
            self._link.beat({"events": events, "doing": now_doing, "finished": self._finished})

    def close(self) -> None:
        if self._child is not None:
            self._kill(self._child)
        if self._link is not None:
            self._link.close()


def _lower_priority() -> None:
    os.nice(NICENESS)
