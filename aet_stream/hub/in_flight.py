"""The life of a visit between *offered* and *stored*: one type for each state, and every transition between them.

    Offered -> Wanted -> Read -> Leased -> Subtracted -> stored
                           ^-------'  the lease was lost
    from any of them: ended with a reason, or offered again

Everything here is memory, bounded by the credit; a lost hub loses none of it, because the pixels are still in the instrument's files.
Times `_at` are unix seconds; `deadline_s`, `since_s` and `alone_from_s` are on the monotonic clock.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from aet_stream.layout import Planes
from aet_stream.messages import Acquired
from aet_stream.projection import Array, Quality, VisitKey
from aet_stream.status import QueueDepth


@dataclass(frozen=True, slots=True)
class Offered:
    """Complete on the instrument's disk, and not yet asked for."""

    key: VisitKey
    nbytes: int
    closed_at: float
    offered_at: float
    alone_from_s: float | None = None
    """Something died over it so often that this is its last try: not before, and with nothing else in flight. None: not so."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Asked of watch; the ledger knows it as `visit_id`."""

    visit_id: int
    series: str
    offered: Offered
    since_s: float

    @property
    def wanted(self) -> Wanted:
        return self

    @property
    def key(self) -> VisitKey:
        return self.offered.key

    @property
    def nbytes(self) -> int:
        """What of the credit it takes up."""
        return self.offered.nbytes


class _After:
    """What every state after *wanted* knows from there."""

    __slots__ = ()
    wanted: Wanted

    @property
    def visit_id(self) -> int:
        return self.wanted.visit_id

    @property
    def series(self) -> str:
        return self.wanted.series

    @property
    def key(self) -> VisitKey:
        return self.wanted.key


@dataclass(frozen=True, slots=True)
class Read(_After):
    """Its pixels are here, and its tilt is agreed; it waits for a worker."""

    wanted: Wanted
    acquired: Acquired
    raw: Array
    extras: Planes
    """What is kept beside a mean of frames."""
    person_deg: float | None
    """The tilt that a person gave it."""
    acquired_at: float
    tilt_deg: float = float("nan")
    tilt_source: str = ""

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes + sum(extra.nbytes for extra in self.extras.values()) + self.raw.size * 4


@dataclass(frozen=True, slots=True)
class Leased(_After):
    """A worker has it, until the deadline."""

    read: Read
    job_id: str
    worker: bytes
    deadline_s: float
    leased_at: float
    """Since when nothing is before it."""
    waits: bool = False
    """In the worker's socket, behind the one that it is at."""

    @property
    def wanted(self) -> Wanted:  # type: ignore[override]
        return self.read.wanted

    @property
    def nbytes(self) -> int:
        return self.read.nbytes


@dataclass(frozen=True, slots=True)
class Subtracted(_After):
    """Its background is off; it waits to be stored."""

    leased: Leased
    quality: Quality
    answer: Planes
    """What the worker made of it."""
    done_at: float
    worker: str = ""
    """Its name."""

    @property
    def read(self) -> Read:
        return self.leased.read

    @property
    def wanted(self) -> Wanted:  # type: ignore[override]
        return self.leased.wanted

    @property
    def nbytes(self) -> int:
        return self.leased.nbytes

    @property
    def planes(self) -> Planes:
        """All its pixels."""
        return {"raw": self.read.raw, **self.answer}

    def stages_s(self) -> dict[str, float]:
        """Seconds spent in each stage before the commit."""
        offered = self.wanted.offered
        return {
            "settle": max(0.0, offered.offered_at - offered.closed_at),
            "read": self.read.acquired_at - offered.offered_at,
            "queue": self.leased.leased_at - self.read.acquired_at,
            "network": self.done_at - self.leased.leased_at,
        }


State: TypeAlias = Wanted | Read | Leased | Subtracted


def read_of(state: State) -> Read | None:
    """What is known of its pixels, once they are here."""
    if isinstance(state, Wanted):
        return None
    return state if isinstance(state, Read) else state.read


_NAMES = {Wanted: "wanted", Read: "waiting", Leased: "working", Subtracted: "done"}


def _name(state: State) -> str:
    """Where it is, for people."""
    return "waiting" if isinstance(state, Leased) and state.waits else _NAMES[type(state)]


_S = TypeVar("_S", Wanted, Read, Leased, Subtracted)


@dataclass(slots=True)
class InFlight:
    """All visits on their way, and those that wait for credit."""

    credit: int
    credit_bytes: int
    lease_s: float
    series_of: Callable[[str], str]
    """Path -> its series."""
    job_prefix: str = ""
    backlog: dict[tuple[str, int], Offered] = field(default_factory=dict)
    """By (path, image): of several states of a file the newest waits."""
    _states: dict[tuple[str, int], State] = field(default_factory=dict)
    """In the order in which they were asked for."""
    _job_ids: Iterator[int] = field(default_factory=itertools.count)

    def __len__(self) -> int:
        return len(self._states)

    def all(self, kind: type[_S]) -> list[_S]:
        """Those in one state, in the order in which they were asked for."""
        return [state for state in self._states.values() if isinstance(state, kind)]

    def find(self, key: VisitKey) -> Wanted | None:
        """Exactly this state of the file, while its pixels are awaited."""
        state = self._states.get(key.source)
        return state if isinstance(state, Wanted) and state.key == key else None

    def find_job(self, job_id: str) -> Leased | None:
        return next((leased for leased in self.all(Leased) if leased.job_id == job_id), None)

    def holds(self, source: tuple[str, int]) -> bool:
        """Whether this image, in whatever state, is on its way."""
        return source in self._states

    def follows(self, state: State) -> bool:
        """Was anything of its series that is on its way asked for before it?"""
        return next(each for each in self._states.values() if each.series == state.series).key != state.key

    def series(self) -> set[str]:
        """Those that something is on its way to, or offered for."""
        return {state.series for state in self._states.values()} | {self.series_of(path) for path, _ in self.backlog}

    # -- offered ------------------------------------------------------------------------------------------------------------------

    def offer(self, offered: Offered) -> None:
        """Note a visit; a later state of the same file takes the place of an earlier one. A last try stays lonely."""
        before = self.backlog.get(offered.key.source)
        if before is not None and before.alone_from_s is not None and before.key == offered.key:
            return
        state = self._states.get(offered.key.source)
        if state is None or state.key != offered.key:
            self.backlog[offered.key.source] = offered

    def offer_again(self, offered: Offered) -> None:
        """Note a visit once more. Another state of its file that has been offered since stays: watch has told of it, and will not again."""
        before = self.backlog.get(offered.key.source)
        if before is None or before.key == offered.key:
            self.offer(offered)

    def offer_first(self, series: str, offered: Sequence[Offered]) -> None:
        """Note visits of a series once more, before all that is offered; what of it is on its way is asked for again behind them."""
        flying = [state for state in self._states.values() if state.series == series]
        for state in flying:
            self.leave(state)
        first = {each.key.source: each for each in [*offered, *(state.wanted.offered for state in flying)]}
        self.backlog = first | self.backlog  # another state of a file that has been offered since stays

    def withdraw(self, offered: Offered) -> None:
        """It need not be asked for."""
        self.backlog.pop(offered.key.source, None)

    def grantable(self, now_s: float) -> list[Offered]:
        """What may be asked for now, within the credit, in order. The last try of a dangerous visit flies alone."""
        if any(state.wanted.offered.alone_from_s is not None for state in self._states.values()):
            return []
        chosen: list[Offered] = []
        used = self.nbytes()
        for offered in self.backlog.values():
            if self.holds(offered.key.source) or offered.alone_from_s is not None:
                continue
            room = used + offered.nbytes <= self.credit_bytes or (not chosen and not self._states)
            if len(self._states) + len(chosen) >= self.credit or not room:
                break
            chosen.append(offered)
            used += offered.nbytes
        if not chosen and not self._states:
            last_tries = (each for each in self.backlog.values() if each.alone_from_s is not None and now_s >= each.alone_from_s)
            return [*itertools.islice(last_tries, 1)]
        return chosen

    # -- transitions --------------------------------------------------------------------------------------------------------------

    def want(self, offered: Offered, visit_id: int, now_s: float) -> Wanted:
        """Offered -> Wanted: the ledger has a row for it."""
        self.withdraw(offered)
        return self._enter(Wanted(visit_id, self.series_of(offered.key.path), offered, now_s))

    def want_again(self, wanted: Wanted, now_s: float) -> None:
        """It was not heard: asked for once more, in its place."""
        self._enter(replace(wanted, since_s=now_s))

    def wait(self, read: Read) -> Read:
        """Wanted -> Read: it can become a row."""
        return self._enter(read)

    def lease(self, read: Read, worker: bytes, *, now_s: float, unix_s: float) -> Leased:
        """Read -> Leased; it waits behind what the worker has already."""
        job_id = f"{self.job_prefix}.{next(self._job_ids)}"
        return self._enter(Leased(read, job_id, worker, now_s + self.lease_s, unix_s, waits=bool(self.held_by(worker))))

    def next_for(self, worker: bytes, unix_s: float) -> None:
        """It has answered: nothing is before what waits for it."""
        for leased in self.held_by(worker):
            if leased.waits:
                self._enter(replace(leased, leased_at=unix_s))

    def begin(self, leased: Leased) -> Leased:
        """Its worker says that it is at it."""
        return self._enter(replace(leased, waits=False))

    def renew(self, worker: bytes, now_s: float) -> None:
        """It lives: whatever it has stays its own."""
        for leased in self.held_by(worker):
            self._enter(replace(leased, deadline_s=now_s + self.lease_s))

    def unlease(self, leased: Leased) -> Read:
        """Leased -> Read: nobody works on it any more."""
        return self._enter(leased.read)

    def finish(self, leased: Leased, quality: Quality, answer: Planes, unix_s: float, worker: str = "") -> Subtracted:
        """Leased -> Subtracted."""
        return self._enter(Subtracted(leased, quality, answer, unix_s, worker))

    def leave(self, state: State) -> None:
        """It is stored, has ended, or is offered again: it has left memory."""
        self._states.pop(state.key.source, None)

    def _enter(self, state: _S) -> _S:
        self._states[state.key.source] = state
        return state

    # -- looking ------------------------------------------------------------------------------------------------------------------

    def next_read(self) -> Read | None:
        """Who waits longest for a worker."""
        return next(iter(self.all(Read)), None)

    def held_by(self, worker: bytes) -> list[Leased]:
        return [leased for leased in self.all(Leased) if leased.worker == worker]

    def nbytes(self) -> int:
        """Pixels of all of them."""
        return sum(state.nbytes for state in self._states.values())

    def counts(self) -> QueueDepth:
        """How many visits are where, for the status."""
        return QueueDepth(offered=len(self.backlog), credit=self.credit, **Counter(_name(state) for state in self._states.values()))
