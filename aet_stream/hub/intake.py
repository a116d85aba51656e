"""The side that looks at watch: what it offers, what the hub wants of it, and what becomes of the answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.hub.archive import Archive
from aet_stream.hub.flights import Flight, Flights, Pending
from aet_stream.hub.ledger import AGAIN, SOURCE_GONE, Ledger
from aet_stream.hub.outcomes import Outcomes
from aet_stream.judging import Site, judge
from aet_stream.messages import Acquired, AnyMessage, NotAcquired, Offer, Want
from aet_stream.naming import series_of, shown
from aet_stream.projection import Array

FORGOTTEN_S = 3.0
"""A unit that watch does not name this long after it was asked for got lost on the way: ask again."""

Send = Callable[[bytes, AnyMessage], bool]


class Intake:
    """Knows which units there are; asks for as many as the credit allows."""

    def __init__(self, config: Config, ledger: Ledger, archive: Archive, flights: Flights, outcomes: Outcomes, send: Send) -> None:
        self._root_name = config.watch_root.name
        self.root = shown(os.path.realpath(config.watch_root))
        self._rules = config.series
        self._turn = config.orientation.letters
        self._ledger = ledger
        self._archive = archive
        self._flights = flights
        self._outcomes = outcomes
        self._send = send
        self._watch = b""

    def hear_watch(self, peer: bytes, asked: set[tuple[str, int]]) -> None:
        """Watch lives, and `asked` is all that it still means to answer. Nobody died over what it does not know of."""
        self._watch = peer
        for flight in self._flights:
            if flight.state == "wanted" and flight.key not in asked and time.monotonic() - flight.asked_at > FORGOTTEN_S:
                self._outcomes.again(flight)

    def hear_offer(self, offer: Offer) -> None:
        now = time.time()
        for file in offer.files:
            ended = self._ledger.ended(file.path)
            for image, stamp in file.units:
                if (image, stamp) not in ended:
                    self._flights.offer(Pending(file.path, image, stamp, file.nbytes, file.closed_at, now))

    def grant(self) -> None:
        """Ask for units; the ledger knows of it first, so that whatever dies over them is noticed."""
        chosen = [pending for pending in self._flights.grantable(time.monotonic()) if self._open(pending)] if self._watch else []
        if not chosen:
            return
        failpoints.reach("want.begin")
        with self._ledger.transaction():
            flights = [self._launch(pending) for pending in chosen]
            failpoints.reach("want.commit")
        failpoints.reach("want.send")
        for flight in flights:
            if not self._send(self._watch, Want(path=flight.path, stamp=flight.stamp, image=flight.image)):
                self._watch = b""  # gone; its successor will say so
                return

    def _open(self, pending: Pending) -> bool:
        """False, and off the list, if the unit has been stored since it was offered: the files know it before the ledger does."""
        series = series_of(pending.path, self._root_name, self._rules)
        if self._archive.store(series).holds(pending.path, pending.image, pending.stamp):
            del self._flights.backlog[pending.path, pending.image]
            return False
        return True

    def _launch(self, pending: Pending) -> Flight:
        series = series_of(pending.path, self._root_name, self._rules)
        flight = Flight(
            unit_id=self._ledger.want(series, pending.path, pending.image, pending.stamp),
            series=series,
            path=pending.path,
            image=pending.image,
            stamp=pending.stamp,
            nbytes=pending.nbytes,
            closed_at=pending.closed_at,
            offered_at=pending.offered_at,
            asked_at=time.monotonic(),
            alone=pending.alone,
        )
        self._flights.launch(flight)
        return flight

    def hear_acquired(self, acquired: Acquired, raw: Array) -> None:
        flight = self._flights.find(acquired.path, acquired.image, acquired.stamp)
        if flight is None:
            return  # an answer to a question that has been taken back
        failpoints.reach("acquired.heard")
        row = self._ledger.unit(flight.unit_id)
        flight.person_deg = None if row is None else row["person_tilt_deg"]
        flight.acquired, flight.acquired_at = acquired, time.time()
        flight.raw, flight.extras = _parted(raw, acquired)
        if not self.settled(flight):
            flight.state, flight.nbytes = "waiting", raw.nbytes + flight.raw.size * 4

    def settled(self, flight: Flight) -> bool:
        """End the flight if it cannot become a row, or is one already."""
        if flight.acquired is None or flight.raw is None:
            return False
        rows, site = self._archive.store(flight.series).rows, Site(self._rules, self._turn, self.root)
        verdict = judge(flight.acquired, flight.raw, rows, site, flight.person_deg)
        flight.tilt_deg, flight.tilt_source = verdict.tilt_deg, verdict.tilt_source
        if verdict.state != "stored":
            self._outcomes.end(flight, verdict.state, verdict.reason)
        return verdict.state != "stored"

    def hear_not_acquired(self, message: NotAcquired) -> None:
        flight = self._flights.find(message.path, message.image, message.stamp)
        if flight is None and message.why == "bad":
            flight = self._unasked(message)
        if flight is None:
            return
        match message.why:
            case "died":
                self._outcomes.charge(flight, message.reason)
            case "later":
                self._outcomes.end(flight, "dropped", message.reason)
            case "bad":
                self._outcomes.end(flight, "quarantined", message.reason)
            case "gone":
                row = self._ledger.unit(flight.unit_id)
                known = row is not None and row["reason"] == AGAIN  # it was dealt with once: nothing is lost unnoticed
                self._outcomes.end(flight, "gone" if known else "quarantined", f"{SOURCE_GONE}: {message.reason}")

    def _unasked(self, message: NotAcquired) -> Flight | None:
        """A file so broken that watch could not even offer it."""
        if (message.image, message.stamp) in self._ledger.ended(message.path):
            return None
        now = time.time()
        self._flights.offer(Pending(message.path, message.image, message.stamp, 0, now, now))
        pending = self._flights.backlog.get((message.path, message.image))
        if pending is None or self._flights.is_flying(pending):  # an earlier state is with a worker: this one is asked for after it
            return None
        with self._ledger.transaction():
            return self._launch(pending)


def _parted(planes: Array, acquired: Acquired) -> tuple[Array, dict[str, Array]]:
    """The image, and what travelled behind it: the variance over its frames, or the frames in their own type."""
    if planes.ndim == 2:
        return planes, {}
    image = planes[0].astype("<f4")  # a mean is single precision, whatever its frames needed on the way
    if acquired.extras == "frames":
        return image, {"frames": planes[1:].astype(acquired.extras_dtype)}
    return image, {"variance": planes[1].astype("<f4")}
