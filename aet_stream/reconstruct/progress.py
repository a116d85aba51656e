"""How far a solve has come, as log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SAY_EVERY_S = 5.0
_ENOUGH = 0.05
"""Before this share is done, nobody knows how long the rest takes: the first steps share their time with getting ready."""


class ProgressLog:
    """A line every few seconds. The time left is that of the steps since the first: what came before belongs to something else."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done = self._first = 0
        self._began_at = self._said_at = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if done <= self._done or not self._done:  # another solve than before
            self._first, self._began_at, self._said_at = done, now, now
        self._done = done
        if now - self._said_at > SAY_EVERY_S or done == total:
            self._said_at = now
            logger.info("%d %%%s", 100 * done // total, self._left(done, total, now))

    def _left(self, done: int, total: int, now: float) -> str:
        since = done - self._first
        if since < _ENOUGH * total and done < total:
            return ""
        return f", about {(now - self._began_at) * (total - done) / max(1, since):.0f} s left"
