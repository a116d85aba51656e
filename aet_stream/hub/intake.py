"""The side that looks at watch: what it offers, what the hub wants of it, and what becomes of the answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.hub.archive import Archive
from aet_stream.hub.flights import Flight, Flights, Pending
from aet_stream.hub.ledger import AGAIN, SOURCE_GONE, Ledger, candidates_json
from aet_stream.hub.outcomes import Outcomes
from aet_stream.layout import Record
from aet_stream.messages import Acquired, AnyMessage, NotAcquired, Offer, Want
from aet_stream.naming import series_of, shown
from aet_stream.projection import Array, VisitKey

FORGOTTEN_S = 3.0
"""A unit that watch does not name this long after it was asked for got lost on the way: ask again."""
SAME_TILT_DEG = 0.01

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
        if self._archive.store(series).holds(VisitKey(pending.path, pending.image, pending.stamp)):
            del self._flights.backlog[pending.path, pending.image]
            return False
        return True

    def _launch(self, pending: Pending) -> Flight:
        series = series_of(pending.path, self._root_name, self._rules)
        flight = Flight(
            unit_id=self._ledger.want(series, VisitKey(pending.path, pending.image, pending.stamp)),
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
        person = None if row is None else row["person_tilt_deg"]
        flight.acquired, flight.acquired_at = acquired, time.time()
        flight.raw, flight.extras = _parted(raw, acquired)
        if person is not None:
            flight.tilt_deg, flight.tilt_source = float(person), "person"
        elif (judged := self._judged(flight, acquired)) is not None:
            self._outcomes.end(flight, "same", f"projection {judged.number}: the file was touched, its pixels were not")
            return
        elif acquired.candidates and not acquired.hold:
            flight.tilt_deg, flight.tilt_source = acquired.candidates[0].tilt_deg, acquired.candidates[0].source
        else:
            self._outcomes.end(flight, "held", acquired.hold or "no source names a tilt angle")
            return
        if not self.settled(flight):
            flight.state, flight.nbytes = "waiting", raw.nbytes + flight.raw.size * 4

    def _judged(self, flight: Flight, acquired: Acquired) -> Record | None:
        """What is stored of this image with these pixels, at the tilt that a person gave it when its sources said the same as now."""
        stored, said = self._archive.store(flight.series).same_pixels(acquired.sha256), candidates_json(acquired.candidates)
        by_person = [record for record in stored if record.visit.source == flight.key and record.tilt_source == "person"]
        return next((record for record in by_person if record.tilt_candidates == said), None)

    def settled(self, flight: Flight) -> bool:
        """End the flight if its pixels have a row already, or cannot have one."""
        if flight.acquired is None or flight.raw is None:
            return False
        if self._other_detector(flight):
            return True
        for record in self._archive.store(flight.series).same_pixels(flight.acquired.sha256):
            same_image, same_tilt = record.visit.source == flight.key, abs(record.tilt_deg - flight.tilt_deg) <= SAME_TILT_DEG
            if same_image and same_tilt:
                self._outcomes.end(flight, "same", f"projection {record.number}: the file was touched, its pixels were not")
            elif same_image and flight.tilt_source != "person":
                said = f"stored as projection {record.number} at {record.tilt_deg:g} deg, but its sources now say {flight.tilt_deg:g} deg"
                self._outcomes.end(flight, "held", said)
            elif same_tilt:
                self._outcomes.end(
                    flight,
                    "duplicate",
                    f"same pixels and tilt as {record.visit.path} image {record.visit.image} (projection {record.number})",
                )
            else:
                continue
            return True
        misfit = self._misfit(flight, flight.raw)
        if misfit:
            self._outcomes.end(flight, "held", misfit)
        return bool(misfit)

    def _misfit(self, flight: Flight, raw: Array) -> str:
        """Why it cannot be a row of its series, or an empty string."""
        store = self._archive.store(flight.series)
        misfit = store.misfit(raw)
        if misfit or not store.records:
            return misfit
        first, roots = store.records[0], [record.watch_root for record in store.records if record.watch_root]
        if first.orientation != self._turn:
            was = f"orientation {self._turn!r}, but the series has {first.orientation!r}"
            return f"{was}: set orientation.* as it was, or put it into a folder of its own"
        if roots and self.root not in roots and flight.tilt_source != "person":
            was = f"watch.root was {roots[-1]} for this series, now it is {self.root}"
            same = "if it is the same under another name, `aet-stream release` one projection with its angle, and those after it follow"
            return f"{was}: put it into a folder of another name; {same}"
        return ""

    def _other_detector(self, flight: Flight) -> bool:
        """Of several detectors one is used; the others are recorded, or held when nobody has said which one."""
        said = flight.acquired.acquisition.detector if flight.acquired else ""
        stored = self._archive.store(flight.series).records
        used = self._rules.detector or (stored[0].acquisition.detector if stored else "")
        if not said or not used or said.lower() == used.lower():
            return False
        if self._rules.detector:
            self._outcomes.end(
                flight,
                "other",
                f"detector {said}; series.detector is {used}: if it should not be, set it and `aet-stream requeue {flight.unit_id}`",
            )
        else:
            self._outcomes.end(flight, "held", f"detector {said}, but the series has {used}: set series.detector to the one to use")
        return True

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
