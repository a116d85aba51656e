"""From settled files to visits: each is looked into; what is complete in it is noted, what is not is waited for, or given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from aet_stream.errors import AetError, ReaderDied, SourceGone, SourceNotReady, SourceStillZero, complaint
from aet_stream.messages import NotAcquired
from aet_stream.projection import VisitKey
from aet_stream.readers.looking import Look
from aet_stream.reasons import why
from aet_stream.watch.merging import Merging
from aet_stream.watch.part import Part
from aet_stream.watch.settle import Candidate

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.25
LOOK_BUDGET_S = 0.1
LOOKS_AT_ONCE = 32
DEATHS = 3
"""Reading processes that a file may kill before it is put aside."""


@dataclass
class Looking(Part):
    """Has the reading child look at files, a bounded time a turn."""

    def __post_init__(self) -> None:
        self._merging = Merging(self.config.watch_root.name, self.config.series)

    def say_merged(self, paths: Iterable[str]) -> None:
        """Warn of folders that become one series."""
        for sentence in self._merging.note(paths):
            logger.warning("%s", sentence)

    def turn(self, now: float, *, briefly: bool) -> None:
        """Look into files that have settled, for a bounded time; `briefly`: into a few, for workers wait."""
        grace_s = self.config.watch.zero_grace_s
        while settled := self.settling.settled(now, LOOKS_AT_ONCE):
            some = [(path, candidate, now - candidate.changed_at >= grace_s) for path, candidate in settled]
            looks = self.reader.look_at([(self.settling.root / path, self.settling.loose(path), lenient) for path, _, lenient in some])
            for (path, candidate, lenient), look in zip(some, looks, strict=False):
                self._looked(path, candidate, look, now, lenient=lenient)
            if len(looks) < len(some) or time.monotonic() - now > LOOK_BUDGET_S or briefly:
                break

    def _looked(self, path: str, candidate: Candidate, look: Look | AetError, now: float, *, lenient: bool) -> None:
        if isinstance(look, SourceGone):
            self.rhythm.now()  # the scan forgets it
            candidate.look_at = now + LOOK_AGAIN_S
        elif isinstance(look, AetError):
            self._not_yet(path, candidate, look, now)
        else:
            self.say_merged([path])
            self.visits.note(path, self.witness.frames(path, look, closed_at=candidate.final_at, now=now, lenient=lenient))
            self._settle(path, candidate, look, now)

    def _settle(self, path: str, candidate: Candidate, look: Look, now: float) -> None:
        """What could be taken is taken; images that are announced and zero, or cut off, are waited for."""
        rules, still_s = self.config.watch, now - candidate.changed_at
        zeros = look.waiting is not None and look.waiting.code == "zeros_so_far"
        grace_s = rules.zero_grace_s if zeros else rules.incomplete_s if look.probe.partial else 0.0
        if still_s < grace_s:
            candidate.complaint, candidate.look_at, candidate.closed = str(look.waiting or ""), candidate.changed_at + grace_s, False
            return
        if look.probe.partial:
            reason = why("cut_off", nbytes=look.probe.partial, image=look.probe.images, still_s=still_s)
            cut = NotAcquired(visit=VisitKey(path, look.probe.images, candidate.refused), why="bad", reason=reason)
            if not self.send(cut):
                return
        self.settling.pass_on(path)

    def _not_yet(self, path: str, candidate: Candidate, error: Exception, now: float) -> None:
        """Not complete, or not readable: look again later; for long enough the same, and it is quarantined."""
        said = complaint(error, path)
        if said != candidate.complaint:
            logger.info("%s: waiting: %s", path, said)
        candidate.complaint = said
        candidate.deaths += isinstance(error, ReaderDied)
        rules, still_s = self.config.watch, now - candidate.changed_at
        limit_s = max(rules.zero_grace_s, rules.incomplete_s) if isinstance(error, SourceStillZero) else rules.incomplete_s
        candidate.look_at = now + min(max(LOOK_AGAIN_S, still_s / 2), limit_s / 4 + LOOK_AGAIN_S)
        if isinstance(error, SourceStillZero):
            candidate.look_at = min(candidate.look_at, max(candidate.changed_at + rules.zero_grace_s, now + LOOK_AGAIN_S))
        deadly = candidate.deaths >= DEATHS
        if (deadly or still_s >= limit_s) and self.settling.root_is_there():
            if deadly:
                reason = why("deadly", error=said, deaths=candidate.deaths)
            elif isinstance(error, SourceNotReady):
                reason = why("incomplete", error=said, still_s=still_s)
            else:
                reason = why("unreadable", error=said)
            if self.send(NotAcquired(visit=VisitKey(path, 0, candidate.refused), why="bad", reason=reason)):
                self.settling.pass_on(path)
