"""When the projection files of a closed series may go: nobody reads them any more, and nothing is under way that might."""

from __future__ import annotations

from collections.abc import Callable
from shlex import quote

from aet_stream.config import Output
from aet_stream.errors import AetError
from aet_stream.hub.archive import Archive
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.timing import Timing


class Retention:
    """Has the archive prune what is due, one series after the other; sources are not its business."""

    def __init__(
        self, rules: Output, ledger: Ledger, archive: Archive, outbox: Outbox, coming: Callable[[], set[str]], timing: Timing
    ) -> None:
        """
        Parameters
        ----------
        coming : series that something is on its way to
        """
        self._rules = rules
        self._ledger = ledger
        self._archive = archive
        self._outbox = outbox
        self._coming = coming
        self._timing = timing
        self._looked_at_s = -1e9
        self._closed_at_s: dict[tuple[str, float], float] = {}
        """(series, when it was closed by the ledger) -> the same on the monotonic clock: one that is set must not make a series old."""
        self._tried_at_s: dict[str, float] = {}

    def prune(self) -> None:
        """Begin with the oldest series that is due, if nothing else is to be done."""
        now_s = self._timing.now_s()
        if not self._rules.prune or now_s - self._looked_at_s < self._timing.look_for_pruning_s or self._archive.working_on():
            return
        self._looked_at_s = now_s
        closed = self._ledger.unpruned()
        self._closed_at_s = {key: at for key, at in self._closed_at_s.items() if closed.get(key[0]) == key[1]}
        self._tried_at_s = {name: at for name, at in self._tried_at_s.items() if name in closed}
        for name, closed_at in closed.items():
            tried_at_s = self._tried_at_s.get(name, -1e9)
            old = self._age_s(name, closed_at) >= self._grace_s
            if old and now_s - tried_at_s >= self._timing.prune_again_s and not self._hindrance(name):
                self._begin(name)
                return

    def ask(self, name: str, *, now: bool) -> bool:
        """A person wants it pruned; True once that is done.

        Parameters
        ----------
        now : nobody has it open who opened it before it was closed, they say

        Raises
        ------
        AetError : it may not be, or could not be
        """
        if self._ledger.pruned_at(name) is not None:
            return True
        if self._archive.pruning(name):
            return False
        closed_at = self._ledger.unpruned().get(name)
        if closed_at is None:
            remedy = f"`aet-stream close {quote(name)}` first"
            raise AetError(f"{name} is not pruned: it is open, and its projection files are what it is made of; {remedy}")
        if hindrance := self._archive.why_unpruned(name) or self._hindrance(name):
            raise AetError(f"{name} is not pruned: {hindrance}")
        age_s = self._age_s(name, closed_at)
        if not now and age_s < self._grace_s:
            raise AetError(
                f"{name} was closed {age_s / 3600:.1f} h ago: a program that opened it before still reads its projection files, and would"
                f" be shown zeros; wait for {self._rules.prune_after_h:g} h (output.prune_after_h), or say --now if there is none"
            )
        self._begin(name)
        return False

    @property
    def _grace_s(self) -> float:
        return 3600 * self._rules.prune_after_h

    def _begin(self, name: str) -> None:
        self._tried_at_s[name] = self._timing.now_s()
        self._archive.begin_prune(name)

    def _age_s(self, name: str, closed_at: float) -> float:
        """Seconds since it was closed; the wall clock counts only for the time before it was first seen."""
        now_s = self._timing.now_s()
        return now_s - self._closed_at_s.setdefault((name, closed_at), now_s - max(0.0, self._timing.unix_s() - closed_at))

    def _hindrance(self, name: str) -> str:
        """Why a closed series may not be pruned, whatever its age; empty: it may."""
        if name in self._coming():
            return "a projection is on its way to it"
        if not self._archive.at_rest(name):
            return "another file of it is being written; ask again in a while"
        if sinks := self._outbox.waiting(name):
            return f"{', '.join(sinks)} has not done its part yet; ask again when it has (`aet-stream events`)"
        return ""
