"""The side that looks at workers: leases, results, and deaths."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from aet_stream import failpoints
from aet_stream.hub.flights import Flight, Flights
from aet_stream.hub.outcomes import Outcomes
from aet_stream.messages import WIRE_VERSION, AnyMessage, Done, Failed, Job, Ready, Working
from aet_stream.projection import Array

logger = logging.getLogger(__name__)

CROSSING_S = 3.0
"""A worker may ask for work while our job is on its way to it; after this long it does not know of the job.
One that has said nothing for as long is dead if another of its name asks."""


class Workers:
    """Hands projections to workers that ask, and takes their results."""

    def __init__(self, hub_id: str, flights: Flights, outcomes: Outcomes, send: Callable[[bytes, AnyMessage, Array | None], bool]) -> None:
        self._hub_id = hub_id
        self._flights = flights
        self._outcomes = outcomes
        self._send = send
        self._idle: dict[bytes, str] = {}
        self._peers: dict[str, bytes] = {}
        self._models: dict[str, str] = {}
        self._refused: set[bytes] = set()
        self._heard_at: dict[bytes, float] = {}
        self._rivals: dict[bytes, float] = {}
        """Workers of a name that another one has -> since when they ask."""
        self.done: list[Flight] = []
        """Subtracted and not yet stored."""

    def hear_ready(self, peer: bytes, ready: Ready) -> None:
        if ready.wire != WIRE_VERSION:
            if peer not in self._refused:
                self._refused.add(peer)
                logger.error("%s speaks version %d of the queue, this hub %d: it gets no work", ready.name, ready.wire, WIRE_VERSION)
            return
        if self._models.get(ready.name) != ready.model_sha256:
            if {*self._models.values()} - {ready.model_sha256}:
                logger.warning("%s has another model (%s) than was used so far", ready.name, ready.model_sha256[:12])
            self._models[ready.name] = ready.model_sha256
        if not self._succeeds(peer, ready.name):
            return
        self._heard_at[peer] = time.monotonic()
        for flight in self._flights.held_by(peer):
            if time.monotonic() - flight.deadline + self._flights.lease_s < CROSSING_S:
                return
            logger.warning("%s does not know of %s any more: handed out again", ready.name, flight.path)
            self._flights.unlease(flight)
        self._idle[peer] = ready.name

    def _succeeds(self, peer: bytes, name: str) -> bool:
        """Is `peer` the only worker of its name, the one before it being dead, which means silent?"""
        before, now = self._peers.setdefault(name, peer), time.monotonic()
        if before == peer:
            return True
        since = self._rivals.setdefault(peer, now)
        if now - self._heard_at[before] < CROSSING_S:
            if now - since > CROSSING_S and peer not in self._refused:
                self._refused.add(peer)
                logger.error("two workers are called %s: the second gets no work; start it with another --name", name)
            return False
        self._lose(before, f"{name} died over it")
        self._peers[name] = peer
        del self._heard_at[before], self._rivals[peer]
        return True

    def hear_working(self, working: Working) -> None:
        flight = self._flights.find_job(working.job_id)
        if flight is not None:
            self._heard_at[flight.worker] = time.monotonic()
            flight.deadline = self._heard_at[flight.worker] + self._flights.lease_s

    def hear_done(self, done: Done, clean: Array) -> None:
        flight = self._flights.find_job(done.job_id)
        if flight is None or flight.raw is None:
            return  # late or double: its lease had run out
        self._heard_at[flight.worker] = time.monotonic()
        if clean.shape != flight.raw.shape or clean.dtype != np.dtype("<f4"):
            self._outcomes.charge(flight, f"the worker answered with {clean.shape} of {clean.dtype} for {flight.raw.shape}")
            return
        if not np.isfinite(clean).all():
            self._outcomes.charge(flight, "the worker answered with pixels that are not finite")
            return
        failpoints.reach("done.heard")
        flight.state, flight.done, flight.clean, flight.done_at = "done", done, clean, time.time()
        self.done.append(flight)

    def hear_failed(self, failed: Failed) -> None:
        flight = self._flights.find_job(failed.job_id)
        if flight is not None:
            self._outcomes.charge(flight, f"the worker failed: {failed.reason}")

    def _lose(self, peer: bytes, reason: str) -> None:
        self._idle.pop(peer, None)
        for flight in self._flights.held_by(peer):
            self._outcomes.charge(flight, reason)

    def expire(self) -> None:
        """Leases that nobody has renewed."""
        now = time.monotonic()
        for flight in self._flights:
            if flight.state == "working" and now > flight.deadline:
                self._lose(flight.worker, f"the worker was silent for {self._flights.lease_s:g} s")

    def assign(self) -> None:
        """Give waiting projections to workers that asked."""
        while self._idle and (flight := self._flights.waiting()):
            peer = next(iter(self._idle))
            del self._idle[peer]
            self._flights.lease(flight, peer, self._hub_id, now=time.monotonic(), unix_now=time.time())
            failpoints.reach("lease.send")
            job = Job(job_id=flight.job_id, series=flight.series, path=flight.path, image=flight.image)
            if not self._send(peer, job, flight.raw):
                self._flights.unlease(flight)  # the worker has left; nobody died over the unit
            failpoints.reach("lease.sent")
