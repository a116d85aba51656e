"""The side that looks at watch: what it offers, what the hub wants of it, and what becomes of the answers."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.hub.archive import Archive
from aet_stream.hub.endings import Endings
from aet_stream.hub.in_flight import InFlight, Offered, Read, Subtracted, Wanted
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.room import Room
from aet_stream.hub.timing import Timing
from aet_stream.judging import Site, Verdict, judge, parted
from aet_stream.messages import Acquired, NotAcquired, Offer, Want
from aet_stream.naming import shown
from aet_stream.projection import Array, VisitKey
from aet_stream.reasons import reason_of, why


class Intake:
    """Knows which visits there are; asks for as many as the credit allows."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        archive: Archive,
        room: Room,
        in_flight: InFlight,
        endings: Endings,
        outgoing: Outgoing,
        timing: Timing,
    ) -> None:
        self.root = shown(os.path.realpath(config.watch_root))
        self._rules = config.series
        self._turn = config.orientation.letters
        self._ledger = ledger
        self._archive = archive
        self._room = room
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
                self._in_flight.want_again(wanted, now_s)
                self._outgoing.send(peer, Want(visit=wanted.key))

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
        grantable = self._in_flight.grantable(self._timing.now_s()) if self._room.there() and self._watch else []
        chosen = [offered for offered in grantable if self._is_open(offered)]
        if not chosen:
            return
        failpoints.reach("want.begin")
        with self._ledger.transaction():
            ids = [self._ledger.want(self._in_flight.series_of(offered.key.path), offered.key) for offered in chosen]
            failpoints.reach("want.commit")
        for offered, visit_id in zip(chosen, ids, strict=True):
            self._in_flight.want(offered, visit_id, self._timing.now_s())
            self._outgoing.send(self._watch, Want(visit=offered.key))

    def _is_open(self, offered: Offered) -> bool:
        """False, and off the list, if the visit has been stored since it was offered: the files know it before the ledger does."""
        if self._archive.store(self._in_flight.series_of(offered.key.path)).holds(offered.key):
            self._in_flight.withdraw(offered)
            return False
        return True

    def hear_acquired(self, acquired: Acquired, pixels: Array) -> None:
        wanted = self._in_flight.find(acquired.visit)
        if wanted is None:
            return  # an answer to a question that has been taken back
        failpoints.reach("acquired.heard")
        row = self._ledger.visit(wanted.visit_id)
        person_deg = None if row is None else row["person_tilt_deg"]
        raw, extras = parted(pixels, acquired)
        read = Read(wanted, acquired, raw, extras, person_deg, self._timing.unix_s())
        verdict = self._verdict(read)
        read = replace(read, tilt_deg=verdict.tilt_deg, tilt_source=verdict.tilt_source)
        if verdict.reason is None or self._is_early(read, verdict):
            self._in_flight.wait(read)
        else:
            self._endings.end(read, verdict.state, verdict.reason)

    def _is_early(self, read: Read, verdict: Verdict) -> bool:
        """Was it compared with the rows of its series, while one that comes before it may still decide what fits?"""
        compared = not math.isnan(verdict.tilt_deg)
        return compared and self._archive.store(read.series).rows.learns(read.acquired) and self._in_flight.follows(read)

    def _verdict(self, read: Read) -> Verdict:
        """By the rows that its series has now."""
        site = Site(self._rules, self._turn, self.root)
        return judge(read.acquired, read.raw, self._archive.store(read.series).rows, site, read.person_deg)

    def settled(self, subtracted: Subtracted) -> bool:
        """End it if it cannot become a row any more, or is one already."""
        verdict = self._verdict(subtracted.read)
        if verdict.reason is not None:
            self._endings.end(subtracted, verdict.state, verdict.reason)
        return verdict.reason is not None

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
                known = row is not None and reason_of(row["reason"]) == why("again")  # it was dealt with once: nothing is lost unnoticed
                self._endings.end(wanted, "gone" if known else "quarantined", message.reason)

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
            visit_id = self._ledger.want(self._in_flight.series_of(key.path), offered.key)
        return self._in_flight.want(offered, visit_id, self._timing.now_s())
