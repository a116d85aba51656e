"""From what the hub wants to pixels: one visit is read, or it is said why not."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aet_stream import failpoints
from aet_stream.errors import ReaderDied, SourceError, SourceGone, SourceNotReady, SourceStillZero, WireError
from aet_stream.messages import NotAcquired, Want
from aet_stream.projection import Projection, VisitKey
from aet_stream.readers.child import Member, Reading
from aet_stream.reasons import Reason, why
from aet_stream.watch.part import Part
from aet_stream.watch.visits import Visit

logger = logging.getLogger(__name__)

TRY_AGAIN_S = 0.25


@dataclass
class Answering(Part):
    """Reads what is wanted, in the order in which it was asked for."""

    def __post_init__(self) -> None:
        self.asked: deque[Want] = deque()
        """What the hub waits for."""
        self._unread: dict[VisitKey, float] = {}
        """Visits whose pixels cannot be read, and since when."""

    def forget(self) -> None:
        """A new hub has asked for nothing."""
        self.asked.clear()
        self._unread.clear()

    def turn(self) -> None:
        """Read the next visit that is wanted."""
        if self.asked:
            self._answer(self.asked.popleft())

    def _answer(self, want: Want) -> None:
        """Read one visit for the hub, or say why not."""
        visit = self.visits.find(*want.visit.source)
        if visit is None or visit.stamp != want.visit.stamp:
            self._refuse(want, "gone" if _is_gone(self.settling.root / want.visit.path) else "later", why("changed"))
            if visit is None:
                self.settling.again(want.visit.path)
            else:
                self.visits.tell_of(visit)
            self.rhythm.now()
            return
        members = [Member(str(self.settling.root / frame.path), frame.image, self.settling.loose(frame.path)) for frame in visit.frames]
        try:
            projection, reading = self.reader.read_visit(members, lenient=any(frame.lenient for frame in visit.frames))
        except SourceGone as error:
            if all(_is_gone(self.settling.root / frame.path) for frame in visit.frames):
                self._again(visit)  # its folder may only be away: the next scan forgets it, or finds it there again
            self._refuse(want, "gone", why("gone", error=str(error)))
        except SourceStillZero as error:
            self._again(visit, after_s=self.config.watch.zero_grace_s)
            self._refuse(want, "later", why("unreadable", error=str(error)))
        except SourceNotReady as error:
            self._unreadable(want, visit, error)
        except SourceError as error:
            self._refuse(want, "bad", why("unreadable", error=str(error)))
        except ReaderDied as error:
            self._refuse(want, "died", why("reader_died", error=str(error)))
        else:
            if [unit.stamp for unit in reading.units] != [frame.state for frame in visit.frames]:
                self._again(visit)
                self._refuse(want, "later", why("changed"))
                return
            self._show(want, visit, projection, reading)

    def _unreadable(self, want: Want, visit: Visit, error: SourceNotReady) -> None:
        """Its header could be read, its pixels cannot: again, less and less often; for long enough the same, and it is quarantined."""
        now = time.monotonic()
        since = self._unread.setdefault(want.visit, now)
        limit_s = self.config.watch.incomplete_s
        if now - since >= limit_s and self.settling.root_is_there():
            del self._unread[want.visit]
            self._refuse(want, "bad", why("incomplete", error=str(error), still_s=now - since))
            return
        self._again(visit, not_before=now + min(max(TRY_AGAIN_S, (now - since) / 2), limit_s / 4))
        self._refuse(want, "later", why("unreadable", error=str(error)))

    def _again(self, visit: Visit, *, after_s: float = 0.0, not_before: float = 0.0) -> None:
        """Look anew at every file of a visit, and offer what is there then."""
        self.visits.retract(visit)
        for frame in visit.frames:
            self.settling.again(frame.path, after_s=after_s, not_before=not_before)
        self.rhythm.now()

    def _show(self, want: Want, visit: Visit, projection: Projection, reading: Reading) -> None:
        answer, planes = self.witness.acquired(visit, projection, reading)
        failpoints.reach("watch.send")
        try:
            self.send(answer, planes)
        except WireError as error:
            self._refuse(want, "bad", why("unreadable", error=str(error)))
        self._unread.pop(want.visit, None)

    def _refuse(self, want: Want, end: Literal["bad", "later", "gone", "died"], reason: Reason) -> None:
        if end == "gone" and not self.settling.root_is_there():
            end = "later"  # with everything else
        logger.debug("%s image %d: %s: %s", want.visit.path, want.visit.image, end, reason)
        self.send(NotAcquired(visit=want.visit, why=end, reason=reason))


def _is_gone(path: Path) -> bool:
    """Not there; a share that does not answer says nothing of that."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False
