"""A second core for a single frame: work that need not wait is begun by a thread beside this one.

Arithmetic lets go of the interpreter's lock, so two threads take little more than half the time of one, as long as there is a core for
each. What is computed does not depend on who computes it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """A result that is on its way."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._taken = threading.Lock()
        self._done = False
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
        self._done = True
        _LANES.tell()

    def __call__(self) -> T:
        """The result: who asks for what nobody has begun does it, and who has to wait does what else there is to do."""
        self.do()
        while other := _LANES.next_until(lambda: self._done):
            other.do()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class _Lanes:
    """Work that waits, and a thread that does it."""

    def __init__(self) -> None:
        self.count = 1
        self.renew()

    def renew(self) -> None:
        """Nothing waits, nobody helps: a fork has none of its parent's threads."""
        self._waiting: deque[Later[Any]] = deque()
        self._changed = threading.Condition()
        self._helper: threading.Thread | None = None

    def put(self, later: Later[Any]) -> None:
        if self._helper is None:
            self._helper = threading.Thread(target=self._help, name="second lane", daemon=True)
            self._helper.start()
        with self._changed:
            self._waiting.append(later)
            self._changed.notify_all()

    def tell(self) -> None:
        """Something is done."""
        with self._changed:
            self._changed.notify_all()

    def next_until(self, done: Callable[[], bool]) -> Later[Any] | None:
        """What waits longest, as soon as something waits; None: that is done."""
        with self._changed:
            self._changed.wait_for(lambda: done() or self._waiting)
            return None if done() else self._waiting.popleft()

    def _help(self) -> None:
        while later := self.next_until(lambda: False):
            later.do()


_LANES = _Lanes()
os.register_at_fork(after_in_child=_LANES.renew)


def take_lanes(lanes: int) -> None:
    """How many threads this process takes for one frame, 1 or 2: not more than it has cores, and one if OpenBLAS has threads of its own,
    as it has outside our commands: they and ours would wait for each other, spinning."""
    alone = "1" in (os.environ.get("OPENBLAS_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS"))
    _LANES.count = max(1, min(lanes, len(os.sched_getaffinity(0)), 2)) if alone else 1


def aside(work: Callable[[], T]) -> Later[T]:
    """Have work done beside what comes next; without a second lane, when its result is asked for."""
    later = Later(work)
    if _LANES.count > 1:
        _LANES.put(later)
    return later


def in_lanes(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of them gives."""
    others = [aside(work) for work in works[1:]]
    return [works[0](), *(other() for other in others)]
