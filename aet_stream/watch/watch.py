"""The watch's turn: take hints, scan, offer what is complete, read what the hub wants."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from aet_stream import failpoints
from aet_stream.config import Config
from aet_stream.errors import AetError, ReaderDied, SourceError, SourceGone, SourceNotReady, SourceStillZero, WireError
from aet_stream.messages import AnyMessage, FileOffer, NoReader, NotAcquired, Offer, Older, OlderFile, SeriesEnd, Taken, ToHub, Want
from aet_stream.naming import shown, top_folder
from aet_stream.projection import Array, Projection, VisitKey
from aet_stream.readers import stat_stamp
from aet_stream.readers.child import Member, Reading
from aet_stream.readers.looking import Look
from aet_stream.reasons import Reason, why
from aet_stream.transport import HubLink
from aet_stream.watch import settle
from aet_stream.watch.events import Hints
from aet_stream.watch.merging import Merging
from aet_stream.watch.rhythm import Rhythm
from aet_stream.watch.settle import Settling
from aet_stream.watch.visits import Visit, Visits
from aet_stream.watch.witness import Witness

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_AGAIN_S = 0.25
OFFERED_AT_ONCE = 1000
"""Units in one message."""
OFFERED_LETTERS = 100_000
"""Of their names, which may be long: a message holds a megabyte."""
LOOK_BUDGET_S = 0.3
LOOKS_AT_ONCE = 32
DEATHS = 3
"""Reading processes that a file may kill before it is put aside."""


class Reader(Protocol):
    """Reads files somewhere that may die without harm (readers.child.ReaderChild)."""

    def suffixes(self) -> frozenset[str]: ...
    def look(self, path: Path, loose: tuple[str, ...] = (), *, lenient: bool = False) -> Look: ...
    def look_at(self, files: Sequence[tuple[Path, tuple[str, ...], bool]]) -> list[Look | AetError]: ...
    def read_visit(self, members: Sequence[Member], *, lenient: bool = False) -> tuple[Projection, Reading]: ...
    def close(self) -> None: ...


class Link(Protocol):
    """The way to a hub, and what its pulse last said (transport.HubLink)."""

    hub_id: str
    newer_than_s: float

    def send(self, message: ToHub, pixels: Array | None = None) -> bool: ...
    def beat(self, status: dict[str, Any]) -> bool: ...
    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]: ...
    def close(self) -> None: ...


class Watch:
    """The only one that looks at source files; it never changes, moves or locks one."""

    name = "watch"

    def __init__(self, config: Config, reader: Reader, link: Link | None = None) -> None:
        """
        Parameters
        ----------
        link : the way to the hub; by default the socket below `output.root`
        """
        self._config = config
        self.root = config.watch_root
        self._reader = reader
        self._hints = Hints()
        self._settling = Settling(
            self.root,
            exclude=config.watch.exclude,
            settle_s=config.watch.settle_s,
            suffixes=frozenset(),
            sentinel=config.series.sentinel,
        )
        self._visits = Visits(config.frames)
        self._merging = Merging(self.root.name, config.series)
        self._asked: deque[Want] = deque()
        self._ends_told: dict[str, str] = {}
        self._nameless_told: dict[str, str] = {}
        self._no_reader_told: tuple[tuple[str, str, int], ...] | None = None
        self._older_told = False
        self._unread: dict[VisitKey, float] = {}
        """Units whose pixels cannot be read, and since when."""
        self._link = link
        self._witness: Witness | None = None
        self._hub_id = ""
        self._rhythm = Rhythm(config.watch.scan_s)
        self._there = False

    def start(self) -> None:
        self._witness = Witness(self._config)
        self._settling.suffixes = self._reader.suffixes()
        if self._link is None:
            self._link = HubLink(self._config.output_root, role="watch", name=self.name, wake_fd=self._hints.wake_fd)
        self._look_for_root()
        self._scan(time.monotonic())
        self._say_merged(self._settling.candidates)

    def _say_merged(self, paths: Iterable[str]) -> None:
        for sentence in self._merging.note(paths):
            logger.warning("%s", sentence)

    @property
    def link(self) -> Link:
        if self._link is None:
            raise SourceNotReady("watch has not been started")
        return self._link

    @property
    def witness(self) -> Witness:
        if self._witness is None:
            raise SourceNotReady("watch has not been started")
        return self._witness

    # -- seeing -----------------------------------------------------------------------------------------------------------------

    def _root_is_there(self) -> bool:
        return os.path.isdir(self.root)  # noqa: PTH112 - Path.is_dir raises what a share that is away answers

    def _look_for_root(self) -> None:
        there = self._root_is_there()
        if there and not self._there and self._config.watch.events:  # anew after an absence: events told of the folder that was
            self._rhythm.listening = self._hints.start(self.root)
        if there and not self._there and self._rhythm.scans:
            logger.info("watch.root %s is there again", self.root)
        if not there and (self._there or not self._rhythm.scans):
            logger.warning("watch.root %s is not there: waiting for it", self.root)
        self._there = there

    def _scan(self, now: float) -> None:
        """Look at every file."""
        self._look_for_root()
        if self._settling.untold:
            self._rhythm.missed(now)
        with self._rhythm.scan(now) as called:
            for path in self._settling.scan(now) if self._there else ():
                self._visits.forget(path)
        if called:
            self._settling.untold.clear()

    def step(self) -> None:
        now = time.monotonic()
        soon = min(0.25, max(0.0, self._rhythm.due_at - now))
        if self._hub_id:
            soon = min(soon, self._settling.next_look_s(now))
        for message, _ in self.link.receive(0.0 if self._asked else soon):
            if isinstance(message, Want):
                self._asked.append(message)
            elif isinstance(message, Taken):
                for path in message.paths:
                    self._settling.take(path, time.monotonic())
        if self.link.hub_id != self._hub_id:
            self._greet(self.link.hub_id)
        now = time.monotonic()
        hints = self._hints.take()
        if hints:
            self._rhythm.event(now)
        rescan = [self._settling.hint(path, now, closed=closed) for path, closed in hints]
        if self._hints.lost:
            self._hints.lost = False
            logger.warning("file system events were lost: scanning everything")
            self._rhythm.event(now)
            rescan = [True]
        if any(rescan):
            self._rhythm.call()
        if now >= self._rhythm.due_at:
            self._scan(now)
        if self._hub_id:
            self._look(now)
            self._offer(now)
            self._tell_ends()
            self._tell_nameless()
            self._tell_no_reader()
            self._tell_older()
            if self._asked and time.monotonic() - now < self._config.watch.reader_timeout_s:  # one timeout a step is enough
                self._answer(self._asked.popleft())

    def _greet(self, hub_id: str) -> None:
        """A new hub knows of nothing: show it everything, and look again at what could not be read."""
        self._hub_id = hub_id
        self._settling.leave_out(self.link.newer_than_s)
        self._visits.tell_again()
        for path in [path for path in self._settling.seen if not self._visits.knows(path)]:
            self._settling.again(path)
        self._asked.clear()
        self._ends_told.clear()
        self._nameless_told.clear()
        self._no_reader_told, self._older_told = None, False
        self._unread.clear()
        self._rhythm.now()

    # -- looking ----------------------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Look into files that have settled, for a bounded time; those that a reading process died over come last."""
        settled, grace_s = sorted(self._settling.settled(now), key=lambda found: found[1].deaths), self._config.watch.zero_grace_s
        for start in range(0, len(settled), LOOKS_AT_ONCE):
            some = [(path, candidate, now - candidate.changed_at >= grace_s) for path, candidate in settled[start : start + LOOKS_AT_ONCE]]
            looks = self._reader.look_at([(self.root / path, self._loose(path), lenient) for path, _, lenient in some])
            for (path, candidate, lenient), look in zip(some, looks, strict=False):
                self._looked(path, candidate, look, now, lenient=lenient)
            if len(looks) < len(some) or time.monotonic() - now > LOOK_BUDGET_S:
                break

    def _looked(self, path: str, candidate: settle.Candidate, look: Look | AetError, now: float, *, lenient: bool) -> None:
        if isinstance(look, SourceGone):
            self._rhythm.now()  # the scan forgets it
            candidate.look_at = now + LOOK_AGAIN_S
        elif isinstance(look, AetError):
            self._not_yet(path, candidate, look, now)
        else:
            self._say_merged([path])
            self._visits.note(path, self.witness.frames(path, look, closed_at=candidate.final_at, now=now, lenient=lenient))
            self._settle(path, candidate, look, now)

    def _loose(self, path: str) -> tuple[str, ...]:
        return tuple(str(self.root / name) for name in self._settling.loose(path))

    def _settle(self, path: str, candidate: settle.Candidate, look: Look, now: float) -> None:
        """What could be taken is taken; images that are announced and zero, or cut off, are waited for."""
        rules, still_s = self._config.watch, now - candidate.changed_at
        zeros = look.waiting is not None and look.waiting.code == "zeros_so_far"
        grace_s = rules.zero_grace_s if zeros else rules.incomplete_s if look.probe.partial else 0.0
        if still_s < grace_s:
            candidate.complaint, candidate.look_at, candidate.closed = str(look.waiting or ""), candidate.changed_at + grace_s, False
            return
        if look.probe.partial:
            reason = why("cut_off", nbytes=look.probe.partial, image=look.probe.images, still_s=still_s)
            cut = NotAcquired(visit=VisitKey(path, look.probe.images, candidate.refused), why="bad", reason=reason)
            if not self.link.send(cut):
                return
        self._settling.pass_on(path)

    def _not_yet(self, path: str, candidate: settle.Candidate, error: Exception, now: float) -> None:
        """Not complete, or not readable: look again later; for long enough the same, and it is quarantined."""
        complaint = str(error)
        if complaint != candidate.complaint:
            logger.info("%s: waiting: %s", path, complaint)
        candidate.complaint = complaint
        candidate.deaths += isinstance(error, ReaderDied)
        rules, still_s = self._config.watch, now - candidate.changed_at
        limit_s = max(rules.zero_grace_s, rules.incomplete_s) if isinstance(error, SourceStillZero) else rules.incomplete_s
        candidate.look_at = now + min(max(LOOK_AGAIN_S, still_s / 2), limit_s / 4 + LOOK_AGAIN_S)
        if isinstance(error, SourceStillZero):
            candidate.look_at = min(candidate.look_at, max(candidate.changed_at + rules.zero_grace_s, now + LOOK_AGAIN_S))
        deadly = candidate.deaths >= DEATHS
        if (deadly or still_s >= limit_s) and self._root_is_there():
            dead, late = why("deadly", error=complaint, deaths=candidate.deaths), why("incomplete", error=complaint, still_s=still_s)
            bad = NotAcquired(visit=VisitKey(path, 0, candidate.refused), why="bad", reason=dead if deadly else late)
            if self.link.send(bad):
                self._settling.pass_on(path)

    # -- offering ---------------------------------------------------------------------------------------------------------------

    def _offer(self, now: float) -> None:
        """Show complete visits to the hub, a bounded number a turn."""
        by_path: dict[str, list[Visit]] = {}
        letters = 0
        for visit in self._visits.due(now)[:OFFERED_AT_ONCE]:
            letters += len(visit.key[0]) + len(visit.stamp)
            if by_path and letters > OFFERED_LETTERS:
                break
            by_path.setdefault(visit.key[0], []).append(visit)
        offers = []
        for path, visits in by_path.items():
            stamps = tuple((visit.key[1], visit.stamp) for visit in visits)
            nbytes = max(sum(frame.nbytes for frame in visit.frames) for visit in visits)
            offers.append(FileOffer(path, stamps, nbytes, max(frame.closed_at for visit in visits for frame in visit.frames)))
        if offers and self.link.send(Offer(files=tuple(offers))):
            for visit in [visit for visits in by_path.values() for visit in visits]:
                self._visits.told(visit)

    def _tell_ends(self) -> None:
        """A sentinel ends the series of its folder, once every file there has been offered; until it is taken away."""
        for path in [path for path in self._ends_told if path not in self._settling.sentinels]:
            if self.link.send(SeriesEnd(path=path, there=False)):
                del self._ends_told[path]
        for path, stamp in self._settling.sentinels.items():
            folder = path.rpartition("/")[0] if self._config.series.by == "leaf" else top_folder(path)
            news = self._ends_told.get(path) != stamp and not self._settling.moving_in(folder) and not self._visits.waiting
            if news and self.link.send(SeriesEnd(path=path)):
                self._ends_told[path] = stamp

    def _tell_nameless(self) -> None:
        """Images that no message can name as they are."""
        for path, stamp in self._settling.nameless.items():
            if self._nameless_told.get(path) != stamp:
                if not self.link.send(NotAcquired(visit=VisitKey(path, 0, stamp), why="bad", reason=why("nameless"))):
                    return
                self._nameless_told[path] = stamp

    def _tell_no_reader(self) -> None:
        """Files that may be images, of formats without a reader."""
        unread = tuple(_fitting(self._settling.no_reader, lambda row: len(row[0]) + len(row[1])))
        if unread != self._no_reader_told and self.link.send(NoReader(folders=unread)):
            self._no_reader_told = unread

    def _tell_older(self) -> None:
        """Images that are older than wanted: the hub says which of them were not there from the first. A bounded number a turn."""
        if not self._older_to_tell() or not self._there:
            return
        left = self._settling.older_to_tell
        some = dict(_fitting(left.items(), lambda item: len(item[0])))
        files = tuple(OlderFile(path, stat_stamp(entry), entry.st_mtime, entry.st_ctime) for path, entry in some.items())
        if self.link.send(Older(files=files, last=len(some) == len(left))):
            self._older_told = True
            for path in some:
                del left[path]

    def _older_to_tell(self) -> bool:
        """Does the hub not know of all images yet that are older than wanted? Once it is told that there are none."""
        return bool(self._settling.newer_than_s) and (not self._older_told or bool(self._settling.older_to_tell))

    # -- answering --------------------------------------------------------------------------------------------------------------

    def _answer(self, want: Want) -> None:
        """Read one visit for the hub, or say why not."""
        visit = self._visits.find(*want.visit.source)
        if visit is None or visit.stamp != want.visit.stamp:
            self._refuse(want, "gone" if _is_gone(self.root / want.visit.path) else "later", why("changed"))
            if visit is None:
                self._settling.again(want.visit.path)
            else:
                self._visits.tell_of(visit)
            self._rhythm.now()
            return
        members = [Member(str(self.root / frame.path), frame.unit.image, self._loose(frame.path)) for frame in visit.frames]
        try:
            projection, reading = self._reader.read_visit(members, lenient=any(frame.lenient for frame in visit.frames))
        except SourceGone as error:
            if all(_is_gone(self.root / frame.path) for frame in visit.frames):
                self._again(visit)  # its folder may only be away: the next scan forgets it, or finds it there again
            self._refuse(want, "gone", why("gone", error=str(error)))
        except SourceStillZero as error:
            self._again(visit, after_s=self._config.watch.zero_grace_s)
            self._refuse(want, "later", why("unreadable", error=str(error)))
        except SourceNotReady as error:
            self._unreadable(want, visit, error)
        except SourceError as error:
            self._refuse(want, "bad", why("unreadable", error=str(error)))
        except ReaderDied as error:
            self._refuse(want, "died", why("reader_died", error=str(error)))
        else:
            if [unit.stamp for unit in reading.units] != [frame.unit.stamp for frame in visit.frames]:
                self._again(visit)
                self._refuse(want, "later", why("changed"))
                return
            self._send(want, visit, projection, reading)

    def _unreadable(self, want: Want, visit: Visit, error: SourceNotReady) -> None:
        """Its header could be read, its pixels cannot: again, less and less often; for long enough the same, and it is quarantined."""
        now = time.monotonic()
        since = self._unread.setdefault(want.visit, now)
        limit_s = self._config.watch.incomplete_s
        if now - since >= limit_s and self._root_is_there():
            del self._unread[want.visit]
            self._refuse(want, "bad", why("incomplete", error=str(error), still_s=now - since))
            return
        self._again(visit, not_before=now + min(max(LOOK_AGAIN_S, (now - since) / 2), limit_s / 4))
        self._refuse(want, "later", why("unreadable", error=str(error)))

    def _again(self, visit: Visit, *, after_s: float = 0.0, not_before: float = 0.0) -> None:
        """Look anew at every file of a visit, and offer what is there then."""
        self._visits.retract(visit)
        for frame in visit.frames:
            self._settling.again(frame.path, after_s=after_s, not_before=not_before)
        self._rhythm.now()

    def _send(self, want: Want, visit: Visit, projection: Projection, reading: Reading) -> None:
        answer, planes = self.witness.acquired(visit, projection, reading)
        failpoints.reach("watch.send")
        try:
            self.link.send(answer, planes)
        except WireError as error:
            self._refuse(want, "bad", why("unreadable", error=str(error)))
        self._unread.pop(want.visit, None)

    def _refuse(self, want: Want, end: Literal["bad", "later", "gone", "died"], reason: Reason) -> None:
        if end == "gone" and not self._root_is_there():
            end = "later"  # with everything else
        logger.debug("%s image %d: %s: %s", want.visit.path, want.visit.image, end, reason)
        self.link.send(NotAcquired(visit=want.visit, why=end, reason=reason))

    # -- status -----------------------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        moving = {path: candidate.complaint for path, candidate in list(self._settling.candidates.items())[:20]}
        self.link.beat(
            {
                "hub_id": self._hub_id,
                "busy": bool(
                    self._settling.candidates or self._visits.waiting or self._asked or not self._rhythm.scans or self._older_to_tell()
                ),
                "asked": [list(want.visit.source) for want in self._asked],
                "root": str(self.root),
                "root_there": self._there,
                "events": self._rhythm.listening,
                "scan_s": round(self._rhythm.cost_s, 4),
                "scan_every_s": round(self._rhythm.pause_s(time.monotonic()), 2),
                "files": len(self._settling.seen),
                "moving": len(self._settling.candidates),
                "visits_waiting": self._visits.waiting,
                "waiting_for": moving,
                "older": len(self._settling.older),
                "unreadable": sorted(map(shown, self._settling.unreadable))[:20],
            }
        )

    def close(self) -> None:
        self._reader.close()
        self._hints.close()
        if self._link is not None:
            self._link.close()


def _fitting(items: Iterable[T], letters: Callable[[T], int]) -> Iterator[T]:
    """The first ones, as many as one message holds."""
    left = OFFERED_LETTERS
    for item in itertools.islice(items, OFFERED_AT_ONCE):
        left -= letters(item)
        if left < 0:
            return
        yield item


def _is_gone(path: Path) -> bool:
    """Not there; a share that does not answer says nothing of that."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False
