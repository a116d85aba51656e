"""The side that looks at workers: leases, results, and deaths."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from aet_stream import failpoints
from aet_stream.hub.endings import Endings
from aet_stream.hub.in_flight import InFlight, Leased
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.timing import Timing
from aet_stream.layout import SUBTRACTED, Planes
from aet_stream.messages import WIRE_VERSION, Done, Failed, Job, Ready, Working
from aet_stream.projection import Array, VisitKey
from aet_stream.reasons import Reason, why
from aet_stream.status import WorkerTally

logger = logging.getLogger(__name__)

LOST_LINKS = 3
"""So often a visit is forgiven that the link to its worker was lost: it may be what kills them."""


@dataclass(slots=True)
class Tally:
    """What one worker has done since the hub started."""

    host: str
    done: int = 0
    lost: int = 0
    """Projections given to another because the link to it was lost."""
    took_s: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=100))
    """(with the way there and back, computing alone) of the latest."""

    def told(self) -> WorkerTally:
        turn_s, compute_s = (median(column) for column in zip(*self.took_s, strict=True)) if self.took_s else (None, None)
        return WorkerTally(host=self.host, done=self.done, lost=self.lost, turn_s=turn_s, compute_s=compute_s)


class Workers:
    """Hands projections to workers that ask, and takes their results."""

    def __init__(self, in_flight: InFlight, endings: Endings, outgoing: Outgoing, timing: Timing) -> None:
        self._in_flight = in_flight
        self._endings = endings
        self._outgoing = outgoing
        self._timing = timing
        self._asking: dict[bytes, str] = {}
        """Who is to get the next projection, some of them while they are at one."""
        self._peers: dict[str, bytes] = {}
        self._models: dict[str, str] = {}
        self._refused: set[bytes] = set()
        self._heard_at_s: dict[bytes, float] = {}
        self._names: dict[bytes, str] = {}
        self._lost_links: Counter[VisitKey] = Counter()
        """How often a visit's worker was lost with the link to it."""
        self.tallies: dict[str, Tally] = {}
        """By name of the worker."""
        self._rivals: dict[bytes, float] = {}
        """Workers of a name that another one has -> since when they ask."""

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
        self._names[peer] = ready.name
        self.tallies.setdefault(ready.name, Tally(ready.host))
        now_s = self._heard_at_s[peer] = self._timing.now_s()
        begun = self._in_flight.find_job(ready.at)
        if begun is not None:
            self._in_flight.begin(begun)
        elif ready.at:
            return  # that lease has ended: whatever it were given now would wait behind a job of nobody's
        for leased in self._in_flight.held_by(peer):
            if leased.job_id == ready.at:
                continue
            if now_s - leased.deadline_s + self._in_flight.lease_s < self._timing.crossing_s:
                return
            logger.warning("%s does not know of %s any more: handed out again", ready.name, leased.key.path)
            self._in_flight.unlease(leased)
        self._asking[peer] = ready.name

    def _succeeds(self, peer: bytes, name: str) -> bool:
        """Is `peer` the only worker of its name, the one before it being dead, which means silent?"""
        before, now_s = self._peers.setdefault(name, peer), self._timing.now_s()
        if before == peer:
            return True
        since_s = self._rivals.setdefault(peer, now_s)
        if now_s - self._heard_at_s[before] < self._timing.crossing_s:
            if now_s - since_s > self._timing.crossing_s and peer not in self._refused:
                self._refused.add(peer)
                logger.error("two workers are called %s: the second gets no work; start it with another --name", name)
            return False
        self._lose(before, why("worker_died", worker=name))
        self._peers[name] = peer
        del self._heard_at_s[before], self._rivals[peer]
        return True

    def hear_working(self, working: Working) -> None:
        leased = self._in_flight.find_job(working.job_id)
        if leased is not None:
            self._in_flight.begin(leased)
            self._lives(leased.worker)

    def _lives(self, worker: bytes) -> None:
        now_s = self._heard_at_s[worker] = self._timing.now_s()
        self._in_flight.renew(worker, now_s)

    def _answered(self, worker: bytes) -> None:
        self._lives(worker)
        self._in_flight.next_for(worker, self._timing.unix_s())

    def hear_done(self, done: Done, pixels: Array) -> None:
        leased = self._in_flight.find_job(done.job_id)
        if leased is None:
            return  # late or double: its lease had run out
        self._answered(leased.worker)
        answer = dict(zip(done.planes, pixels if pixels.ndim == 3 else [pixels], strict=False))
        if wrong := _wrong(answer, leased.read.raw):
            self._endings.charge(leased, why("worker_wrong", answer=wrong))
            return
        failpoints.reach("done.heard")
        name, done_at = self._names.get(leased.worker, ""), self._timing.unix_s()
        self._lost_links.pop(leased.key, None)
        if tally := self.tallies.get(name):
            tally.done += 1
            tally.took_s.append((done_at - leased.leased_at, done.network_s))
        self._in_flight.finish(leased, done.quality, answer, done_at, worker=name)

    def hear_failed(self, failed: Failed) -> None:
        leased = self._in_flight.find_job(failed.job_id)
        if leased is not None:
            self._answered(leased.worker)
            self._endings.charge(leased, why("worker_failed", error=failed.reason))

    def hear_gone(self, peer: bytes) -> None:
        """The relay has lost the link to it: its name is free for the next."""
        name = self._names.get(peer, "")
        self._lose(peer, why("worker_lost", worker=name))
        self._names.pop(peer, None)
        if self._peers.get(name) == peer:
            del self._peers[name], self._heard_at_s[peer]

    def _lose(self, peer: bytes, reason: Reason) -> None:
        """Whatever it had is to be done anew. A lost link is nobody's death, unless it is lost over the same visit again and again;
        what only waited for it has no part in it."""
        self._asking.pop(peer, None)
        tally = self.tallies.get(self._names.get(peer, ""))
        for leased in self._in_flight.held_by(peer):
            if leased.waits:
                self._in_flight.unlease(leased)
                continue
            if tally is None or not tally.host:
                self._endings.charge(leased, reason)
                continue
            tally.lost += 1
            self._lost_links[leased.key] += 1
            if self._lost_links[leased.key] > LOST_LINKS:
                self._endings.charge(leased, reason)
            else:
                logger.warning("%s image %d: %s; handed to the next, and not counted against it", leased.key.path, leased.key.image, reason)
                self._in_flight.unlease(leased)

    def expire(self) -> None:
        """Leases that nobody has renewed."""
        now_s = self._timing.now_s()
        for leased in self._in_flight.all(Leased):
            if now_s > leased.deadline_s:
                self._lose(leased.worker, why("worker_silent", silent_s=self._in_flight.lease_s))

    def assign(self) -> None:
        """Give waiting projections to workers that asked."""
        while (read := self._in_flight.next_read()) and (peer := self._next()):
            del self._asking[peer]
            leased = self._in_flight.lease(read, peer, now_s=self._timing.now_s(), unix_s=self._timing.unix_s())
            self._outgoing.send(peer, Job(job_id=leased.job_id, series=leased.series, visit=leased.key), read.raw)

    def _next(self) -> bytes | None:
        """A worker that asks: one that is free, else one of this computer that is at another projection and has none waiting."""
        busy = {leased.worker for leased in self._in_flight.all(Leased)}
        free = (peer for peer in self._asking if peer not in busy)
        return next(free, None) or next((peer for peer, name in self._asking.items() if not self.tallies[name].host), None)

    def left(self, job: Job) -> None:
        """The worker has gone before its job came: nobody died over the visit."""
        leased = self._in_flight.find_job(job.job_id)
        if leased is not None:
            self._in_flight.unlease(leased)


def _wrong(answer: Planes, raw: Array) -> str:
    """What a worker's pixels are, where they are not one finite frame of each plane, like the raw one; empty: as they should be."""
    if tuple(answer) != tuple(plane.name for plane in SUBTRACTED):
        return f"the planes {', '.join(answer)}"
    for name, pixels in answer.items():
        if pixels.shape != raw.shape or pixels.dtype != np.dtype("<f4"):
            return f"{name} of {pixels.shape} of {pixels.dtype} for {raw.shape}"
        if not np.isfinite(pixels).all():
            return f"{name} pixels that are not finite"
    return ""
