"""The side that looks at watch: what it offers, what the hub wants of it, and what becomes of the answers."""

from __future__ import annotations

import os
from dataclasses import replace

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.hub.archive import Archive
from aet_stream.hub.endings import Endings
from aet_stream.hub.in_flight import InFlight, Offered, Read, Subtracted, Wanted
from aet_stream.hub.ledger import AGAIN, SOURCE_GONE, Ledger, candidates_json
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.timing import Timing
from aet_stream.layout import Planes, Record
from aet_stream.messages import Acquired, NotAcquired, Offer, Want
from aet_stream.naming import series_of, shown
from aet_stream.projection import Array, VisitKey

SAME_TILT_DEG = 0.01


class Intake:
    """Knows which visits there are; asks for as many as the credit allows."""

    def __init__(
        self, config: Config, ledger: Ledger, archive: Archive, in_flight: InFlight, endings: Endings, outgoing: Outgoing, timing: Timing
    ) -> None:
        self._root_name = config.watch_root.name
        self.root = shown(os.path.realpath(config.watch_root))
        self._rules = config.series
        self._turn = config.orientation.letters
        self._ledger = ledger
        self._archive = archive
        self._in_flight = in_flight
        self._endings = endings
        self._outgoing = outgoing
        self._timing = timing
        self._watch = b""

    def hear_watch(self, peer: bytes, asked: set[tuple[str, int]]) -> None:
        """Watch lives, and `asked` is all that it still means to answer. Nobody died over what it does not know of."""
        self._watch = peer
        now_s = self._timing.now_s()
        for wanted in self._in_flight.all(Wanted):
            if wanted.key.source not in asked and now_s - wanted.since_s > self._timing.forgotten_s:
                self._endings.again(wanted)

    def watch_left(self, peer: bytes) -> None:
        """Nobody was there to hear what is wanted: its successor will say so."""
        if peer == self._watch:
            self._watch = b""

    def hear_offer(self, offer: Offer) -> None:
        now = self._timing.unix_s()
        for file in offer.files:
            ended = self._ledger.ended(file.path)
            for image, stamp in file.visits:
                if (image, stamp) not in ended:
                    self._in_flight.offer(Offered(VisitKey(file.path, image, stamp), file.nbytes, file.closed_at, now))

    def grant(self) -> None:
        """Ask for visits; the ledger knows of it first, so that whatever dies over them is noticed."""
        grantable = self._in_flight.grantable(self._timing.now_s()) if self._watch else []
        chosen = [offered for offered in grantable if self._is_open(offered)]
        if not chosen:
            return
        failpoints.reach("want.begin")
        with self._ledger.transaction():
            ids = [self._ledger.want(self._series(offered), offered.key) for offered in chosen]
            failpoints.reach("want.commit")
        for offered, visit_id in zip(chosen, ids, strict=True):
            self._fly(offered, visit_id)
            self._outgoing.send(self._watch, Want(visit=offered.key))

    def _is_open(self, offered: Offered) -> bool:
        """False, and off the list, if the visit has been stored since it was offered: the files know it before the ledger does."""
        if self._archive.store(self._series(offered)).holds(offered.key):
            self._in_flight.withdraw(offered)
            return False
        return True

    def _series(self, offered: Offered) -> str:
        return series_of(offered.key.path, self._root_name, self._rules)

    def _fly(self, offered: Offered, visit_id: int) -> Wanted:
        return self._in_flight.want(offered, visit_id, self._series(offered), self._timing.now_s())

    def hear_acquired(self, acquired: Acquired, pixels: Array) -> None:
        wanted = self._in_flight.find(acquired.visit)
        if wanted is None:
            return  # an answer to a question that has been taken back
        failpoints.reach("acquired.heard")
        row = self._ledger.visit(wanted.visit_id)
        person_deg = None if row is None else row["person_tilt_deg"]
        raw, extras = _parted(pixels, acquired)
        read = Read(wanted, acquired, raw, extras, float("nan"), "", self._timing.unix_s())
        if person_deg is not None:
            read = replace(read, tilt_deg=float(person_deg), tilt_source="person")
        elif (judged := self._judged(read)) is not None:
            self._endings.end(read, "same", f"projection {judged.number}: the file was touched, its pixels were not")
            return
        elif acquired.candidates and not acquired.hold:
            read = replace(read, tilt_deg=acquired.candidates[0].tilt_deg, tilt_source=acquired.candidates[0].source)
        else:
            self._endings.end(read, "held", acquired.hold or "no source names a tilt angle")
            return
        if not self.settled(read):
            self._in_flight.wait(read)

    def _judged(self, read: Read) -> Record | None:
        """What is stored of this image with these pixels, at the tilt that a person gave it when its sources said the same as now."""
        stored, said = self._archive.store(read.series).same_pixels(read.acquired.sha256), candidates_json(read.acquired.candidates)
        by_person = [record for record in stored if record.visit.source == read.key.source and record.tilt_source == "person"]
        return next((record for record in by_person if record.tilt_candidates == said), None)

    def settled(self, state: Read | Subtracted) -> bool:
        """End the visit if its pixels have a row already, or cannot have one."""
        read = state if isinstance(state, Read) else state.read
        if self._other_detector(state, read):
            return True
        for record in self._archive.store(read.series).same_pixels(read.acquired.sha256):
            same_image, same_tilt = record.visit.source == read.key.source, abs(record.tilt_deg - read.tilt_deg) <= SAME_TILT_DEG
            if same_image and same_tilt:
                self._endings.end(state, "same", f"projection {record.number}: the file was touched, its pixels were not")
            elif same_image and read.tilt_source != "person":
                said = f"stored as projection {record.number} at {record.tilt_deg:g} deg, but its sources now say {read.tilt_deg:g} deg"
                self._endings.end(state, "held", said)
            elif same_tilt:
                first = f"{record.visit.path} image {record.visit.image} (projection {record.number})"
                self._endings.end(state, "duplicate", f"same pixels and tilt as {first}")
            else:
                continue
            return True
        misfit = self._misfit(read)
        if misfit:
            self._endings.end(state, "held", misfit)
        return bool(misfit)

    def _misfit(self, read: Read) -> str:
        """Why it cannot be a row of its series, or an empty string."""
        store = self._archive.store(read.series)
        misfit = store.misfit(read.raw)
        if misfit or not store.records:
            return misfit
        first, roots = store.records[0], [record.watch_root for record in store.records if record.watch_root]
        if first.orientation != self._turn:
            was = f"orientation {self._turn!r}, but the series has {first.orientation!r}"
            return f"{was}: set orientation.* as it was, or put it into a folder of its own"
        if roots and self.root not in roots and read.tilt_source != "person":
            was = f"watch.root was {roots[-1]} for this series, now it is {self.root}"
            same = "if it is the same under another name, `aet-stream release` one projection with its angle, and those after it follow"
            return f"{was}: put it into a folder of another name; {same}"
        return ""

    def _other_detector(self, state: Read | Subtracted, read: Read) -> bool:
        """Of several detectors one is used; the others are recorded, or held when nobody has said which one."""
        said = read.acquired.acquisition.detector
        stored = self._archive.store(read.series).records
        used = self._rules.detector or (stored[0].acquisition.detector if stored else "")
        if not said or not used or said.lower() == used.lower():
            return False
        if self._rules.detector:
            remedy = f"if it should not be, set it and `aet-stream requeue {read.visit_id}`"
            self._endings.end(state, "other", f"detector {said}; series.detector is {used}: {remedy}")
        else:
            self._endings.end(state, "held", f"detector {said}, but the series has {used}: set series.detector to the one to use")
        return True

    def hear_not_acquired(self, message: NotAcquired) -> None:
        wanted = self._in_flight.find(message.visit)
        if wanted is None and message.why == "bad":
            wanted = self._unasked(message.visit)
        if wanted is None:
            return
        match message.why:
            case "died":
                self._endings.charge(wanted, message.reason)
            case "later":
                self._endings.end(wanted, "dropped", message.reason)
            case "bad":
                self._endings.end(wanted, "quarantined", message.reason)
            case "gone":
                row = self._ledger.visit(wanted.visit_id)
                known = row is not None and row["reason"] == AGAIN  # it was dealt with once: nothing is lost unnoticed
                self._endings.end(wanted, "gone" if known else "quarantined", f"{SOURCE_GONE}: {message.reason}")

    def _unasked(self, key: VisitKey) -> Wanted | None:
        """A file so broken that watch could not even offer it."""
        if (key.image, key.stamp) in self._ledger.ended(key.path):
            return None
        now = self._timing.unix_s()
        self._in_flight.offer(Offered(key, 0, now, now))
        offered = self._in_flight.backlog.get(key.source)
        if offered is None or self._in_flight.holds(key.source):  # an earlier state is with a worker: this one is asked for after it
            return None
        with self._ledger.transaction():
            visit_id = self._ledger.want(self._series(offered), offered.key)
        return self._fly(offered, visit_id)


def _parted(planes: Array, acquired: Acquired) -> tuple[Array, Planes]:
    """The image, and what travelled behind it: the variance over its frames, or the frames in their own type."""
    if planes.ndim == 2:
        return planes, {}
    image = planes[0].astype("<f4")  # a mean is single precision, whatever its frames needed on the way
    if acquired.extras == "frames":
        return image, {"frames": planes[1:].astype(acquired.extras_dtype)}
    return image, {"variance": planes[1].astype("<f4")}
