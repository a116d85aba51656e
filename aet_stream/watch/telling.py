"""What the hub is told of files without being asked: which visits are complete, which series have ended, what is left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from aet_stream.config import Config
from aet_stream.messages import FileOffer, NoReader, NotAcquired, Offer, Older, OlderFile, SeriesEnd
from aet_stream.naming import top_folder
from aet_stream.projection import VisitKey
from aet_stream.reasons import why
from aet_stream.watch.link import Send
from aet_stream.watch.settle import Settling
from aet_stream.watch.visits import Visit, Visits

T = TypeVar("T")

OFFERED_AT_ONCE = 1000
"""Visits in one message."""
OFFERED_LETTERS = 100_000
"""Of their names, which may be long: a message holds a megabyte."""


class Telling:
    """Says everything once to each hub, and again when it has changed."""

    def __init__(self, config: Config, settling: Settling, visits: Visits, send: Send) -> None:
        self._by = config.series.by
        self._settling = settling
        self._visits = visits
        self._send = send
        self.forget()

    def forget(self) -> None:
        """A new hub has been told of nothing."""
        self._ends_told: dict[str, str] = {}
        self._nameless_told: dict[str, str] = {}
        self._no_reader_told: tuple[tuple[str, str, int], ...] | None = None
        self._older_told = False

    def turn(self, now: float, *, of_all: bool) -> None:
        """Say what is new; `of_all`: every file has been seen, so what is left out can be told, too."""
        self._offer(now)
        if not of_all:
            return
        self._tell_ends()
        self._tell_nameless()
        self._tell_no_reader()
        self._tell_older()

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
        if offers and self._send(Offer(files=tuple(offers))):
            for visit in [visit for visits in by_path.values() for visit in visits]:
                self._visits.told(visit)

    def _tell_ends(self) -> None:
        """A sentinel ends the series of its folder, once every file there has been offered; until it is taken away."""
        for path in [path for path in self._ends_told if path not in self._settling.sentinels]:
            if self._send(SeriesEnd(path=path, there=False)):
                del self._ends_told[path]
        for path, stamp in self._settling.sentinels.items():
            folder = path.rpartition("/")[0] if self._by == "leaf" else top_folder(path)
            news = self._ends_told.get(path) != stamp and not self._settling.moving_in(folder) and not self._visits.waiting
            if news and self._send(SeriesEnd(path=path)):
                self._ends_told[path] = stamp

    def _tell_nameless(self) -> None:
        """Images that no message can name as they are."""
        for path, stamp in self._settling.nameless.items():
            if self._nameless_told.get(path) != stamp:
                if not self._send(NotAcquired(visit=VisitKey(path, 0, stamp), why="bad", reason=why("nameless"))):
                    return
                self._nameless_told[path] = stamp

    def _tell_no_reader(self) -> None:
        """Files that may be images, of formats without a reader."""
        unread = tuple(_fitting(self._settling.no_reader, lambda row: len(row[0]) + len(row[1])))
        if unread != self._no_reader_told and self._send(NoReader(folders=unread)):
            self._no_reader_told = unread

    def _tell_older(self) -> None:
        """Images that are older than wanted: the hub says which of them were not there from the first. A bounded number a turn."""
        if not self.older_to_tell() or not self._settling.root_is_there():
            return
        left = self._settling.older_to_tell
        some = dict(_fitting(left.items(), lambda item: len(item[0])))
        files = tuple(OlderFile(path, file.stamp, file.written_at, file.changed_at) for path, file in some.items())
        if self._send(Older(files=files, last=len(some) == len(left))):
            self._older_told = True
            for path in some:
                del left[path]

    def older_to_tell(self) -> bool:
        """Does the hub not know of all images yet that are older than wanted? Once it is told that there are none."""
        return bool(self._settling.newer_than_s) and (not self._older_told or bool(self._settling.older_to_tell))


def _fitting(items: Iterable[T], letters: Callable[[T], int]) -> Iterator[T]:
    """The first ones, as many as one message holds."""
    left = OFFERED_LETTERS
    for item in itertools.islice(items, OFFERED_AT_ONCE):
        left -= letters(item)
        if left < 0:
            return
        yield item
