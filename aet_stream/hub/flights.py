"""Units on their way: asked for, waiting with their pixels, leased to a worker, or subtracted and not yet stored.

Everything here is memory, bounded by the credit; a lost hub loses none of it, because the pixels are still in the instrument's files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from aet_stream.errors import StoreError
from aet_stream.messages import Acquired, Done
from aet_stream.projection import Array


@dataclass(slots=True)
class Flight:
    """One unit between *want* and *stored*. Times are unix seconds; `deadline` is on the monotonic clock."""

    unit_id: int
    series: str
    path: str
    image: int
    stamp: str
    nbytes: int
    closed_at: float
    offered_at: float
    asked_at: float
    alone: bool = False
    state: Literal["wanted", "waiting", "working", "done"] = "wanted"
    acquired: Acquired | None = None
    person_deg: float | None = None
    """The tilt that a person gave it."""
    tilt_deg: float = float("nan")
    tilt_source: str = ""
    raw: Array | None = None
    extras: dict[str, Array] = field(default_factory=dict)
    """What is kept beside a mean of frames."""
    acquired_at: float = 0.0
    job_id: str = ""
    worker: bytes = b""
    deadline: float = 0.0
    leased_at: float = 0.0
    done: Done | None = None
    clean: Array | None = None
    done_at: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        return self.path, self.image

    def pixels(self) -> tuple[Array, Array]:
        """Raw and clean of a unit that is done."""
        if self.raw is None or self.clean is None:
            raise StoreError(f"{self.path}: its pixels are not here")
        return self.raw, self.clean


@dataclass(slots=True)
class Pending:
    """A unit that is complete on the instrument's disk and not yet asked for."""

    path: str
    image: int
    stamp: str
    nbytes: int
    closed_at: float
    offered_at: float
    not_before: float = 0.0
    """Monotonic time of the last, lonely try."""
    alone: bool = False


@dataclass(slots=True)
class Flights:
    """All units on their way, and those that wait for credit."""

    credit: int
    credit_bytes: int
    lease_s: float
    backlog: dict[tuple[str, int], Pending] = field(default_factory=dict)
    _flying: dict[tuple[str, int], Flight] = field(default_factory=dict)
    _job_ids: Iterator[int] = field(default_factory=itertools.count)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flying.values()))

    def __len__(self) -> int:
        return len(self._flying)

    def find(self, path: str, image: int, stamp: str) -> Flight | None:
        """The flight of exactly this state of the file, while its pixels are awaited."""
        flight = self._flying.get((path, image))
        return flight if flight is not None and flight.stamp == stamp and flight.state == "wanted" else None

    def find_job(self, job_id: str) -> Flight | None:
        return next((flight for flight in self._flying.values() if flight.job_id == job_id and flight.state == "working"), None)

    def is_flying(self, pending: Pending) -> bool:
        """Whether this image, in whatever state, is on its way."""
        return (pending.path, pending.image) in self._flying

    def offer(self, pending: Pending) -> None:
        """Note a unit; a later state of the same file takes the place of an earlier one. A last try stays lonely."""
        before = self.backlog.get((pending.path, pending.image))
        if before is not None and before.alone and before.stamp == pending.stamp:
            return
        flight = self._flying.get((pending.path, pending.image))
        if flight is None or flight.stamp != pending.stamp:
            self.backlog[pending.path, pending.image] = pending

    def offer_again(self, pending: Pending) -> None:
        """Note a unit once more. Another state of its file that has been offered since stays: watch has told of it, and will not again."""
        before = self.backlog.get((pending.path, pending.image))
        if before is None or before.stamp == pending.stamp:
            self.offer(pending)

    def grantable(self, now: float) -> list[Pending]:
        """Units that may be asked for now, within the credit. The last try of a dangerous unit flies alone."""
        if any(flight.alone for flight in self._flying.values()):
            return []
        chosen: list[Pending] = []
        used = sum(flight.nbytes for flight in self._flying.values())
        for pending in self.backlog.values():
            if self.is_flying(pending) or pending.alone:
                continue
            room = used + pending.nbytes <= self.credit_bytes or (not chosen and not self._flying)
            if len(self._flying) + len(chosen) >= self.credit or not room:
                break
            chosen.append(pending)
            used += pending.nbytes
        if not chosen and not self._flying:
            lonely = next((pending for pending in self.backlog.values() if pending.alone and now >= pending.not_before), None)
            return [lonely] if lonely else []
        return chosen

    def launch(self, flight: Flight) -> None:
        del self.backlog[flight.key]
        self._flying[flight.key] = flight

    def land(self, flight: Flight) -> None:
        """The unit has left memory, one way or the other."""
        self._flying.pop(flight.key, None)

    def lease(self, flight: Flight, worker: bytes, hub_id: str, *, now: float, unix_now: float) -> None:
        flight.state, flight.worker = "working", worker
        flight.job_id = f"{hub_id}.{next(self._job_ids)}"
        flight.deadline, flight.leased_at = now + self.lease_s, unix_now

    def unlease(self, flight: Flight) -> None:
        flight.state, flight.worker, flight.job_id = "waiting", b"", ""

    def waiting(self) -> Flight | None:
        return next((flight for flight in self._flying.values() if flight.state == "waiting"), None)

    def held_by(self, worker: bytes) -> list[Flight]:
        return [flight for flight in self if flight.state == "working" and flight.worker == worker]

    def counts(self) -> dict[str, int]:
        """How many units are where, for the status."""
        counts = {"offered": len(self.backlog), "wanted": 0, "waiting": 0, "working": 0, "done": 0, "credit": self.credit}
        for flight in self._flying.values():
            counts[flight.state] += 1
        return counts
