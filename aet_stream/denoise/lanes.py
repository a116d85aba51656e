"""A second core for a single frame: work that need not wait is begun by a thread beside this one.

Arithmetic lets go of the interpreter's lock, so two threads take little more than half the time of one, as long as there is a core for
each. What is computed does not depend on who computes it.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """A result that is on its way."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._taken, self._done = threading.Lock(), threading.Event()
        self._value: T | None = None
        self._error: Exception | None = None

    def do(self) -> None:
        """Do the work, unless somebody has begun it."""
        if not self._taken.acquire(blocking=False):
            return
        try:
            self._value = self._work()
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error
        finally:
            self._done.set()

    def __call__(self) -> T:
        """The result: who asks for what nobody has begun does it, and who has to wait does what else there is to do."""
        self.do()
        while not self._done.is_set():
            try:
                _WAITING.get_nowait().do()
            except queue.Empty:
                self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


_WAITING: queue.SimpleQueue[Later[Any]] = queue.SimpleQueue()
_LANES = [1]
"""How many threads there are; they begin with the second one that is needed."""
_HELPERS: dict[int, threading.Thread] = {}
"""By process: a fork has none of its parent's."""


def take_lanes(lanes: int) -> None:
    """How many threads this process takes for one frame, 1 or 2; not more than it has cores."""
    _LANES[0] = max(1, min(lanes, len(os.sched_getaffinity(0)), 2))
    if _LANES[0] > 1 and os.getpid() not in _HELPERS:
        helper = threading.Thread(target=_help, name="second lane", daemon=True)
        _HELPERS[os.getpid()] = helper
        helper.start()


def aside(work: Callable[[], T]) -> Later[T]:
    """Have work done beside what comes next; without a second lane, when its result is asked for."""
    later = Later(work)
    if _LANES[0] > 1:
        _WAITING.put(later)
    return later


def in_lanes(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of them gives."""
    others = [aside(work) for work in works[1:]]
    return [works[0](), *(other() for other in others)]


def _help() -> None:
    while True:
        _WAITING.get().do()
