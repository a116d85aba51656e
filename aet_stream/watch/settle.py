"""Which files there are, and which have stood still for long enough to be looked into.

A writer that closed its file, or moved it here, has finished with it: no wait. Otherwise size, time and inode must stay the same for
`settle_s`. Whether the content is complete is the format's business (readers), asked afterwards.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SIDECAR_SUFFIXES = (".mdoc", ".rawtlt")


@dataclass(slots=True)
class Candidate:
    """A file that is not known to be complete yet. Times are monotonic unless said otherwise."""

    stamp: str
    changed_at: float
    final_at: float
    """When file and sidecar took their present name and content on this machine: unix seconds."""
    closed: bool = False
    look_at: float = 0.0
    """Not to be looked into before this."""
    complaint: str = ""
    """What the format missed at the last look."""


class Settling:
    """All files under the watched folder, and those that are still moving. The stamp of a file covers its sidecars."""

    def __init__(
        self,
        root: Path,
        *,
        exclude: tuple[str, ...],
        settle_s: float,
        suffixes: frozenset[str],
        sidecars_of: Callable[[str], tuple[str, ...]],
    ) -> None:
        self.root = root
        self._exclude = exclude
        self._settle_s = settle_s
        self._suffixes = suffixes
        self._sidecars_of = sidecars_of
        self._stats: dict[str, os.stat_result] = {}
        self.seen: dict[str, str] = {}
        """Path -> stamp of files that have been passed on in that state."""
        self.candidates: dict[str, Candidate] = {}
        self.ignored: set[str] = set()
        """Files that are neither images nor sidecars."""

    def excluded(self, name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in self._exclude)

    def scan(self, now: float) -> None:
        """Look at every file. Those that have vanished are forgotten."""
        self._stats = dict(_files(self.root, self.excluded))
        for path in self._stats:
            self._note(path, now, closed=False)
        for gone in (self.seen.keys() | self.candidates.keys()) - self._stats.keys():
            self.seen.pop(gone, None)
            self.candidates.pop(gone, None)
        self.ignored &= self._stats.keys()

    def hint(self, absolute: str, now: float, *, closed: bool) -> bool:
        """An event named this path; True when only a scan can tell what it means: a folder, or a sidecar."""
        try:
            path = Path(absolute).relative_to(self.root).as_posix()
            entry = os.lstat(absolute)
        except (ValueError, OSError):
            return False
        if stat.S_ISDIR(entry.st_mode):
            return True
        if not stat.S_ISREG(entry.st_mode) or any(self.excluded(part) for part in path.split("/")):
            return False
        self._stats[path] = entry
        if self._is_image(path):
            self._note(path, now, closed=closed)
            return False
        return True

    def _is_image(self, path: str) -> bool:
        return PurePosixPath(path).suffix.lower() in self._suffixes

    def _note(self, path: str, now: float, *, closed: bool) -> None:
        """A file was seen in some state."""
        if not self._is_image(path):
            if not any(PurePosixPath(path).suffix.lower() == suffix for suffix in SIDECAR_SUFFIXES):
                self.ignored.add(path)
            return
        together = [self._stats[path], *(self._stats[name] for name in self._sidecars_of(path) if name in self._stats)]
        stamp = "+".join(f"{entry.st_size}.{entry.st_mtime_ns}.{entry.st_ino}" for entry in together)
        candidate = self.candidates.get(path)
        if candidate is None and self.seen.get(path) == stamp:
            return
        if candidate is None or candidate.stamp != stamp:
            self.candidates[path] = Candidate(stamp, now, max(entry.st_ctime for entry in together), closed)
        elif closed and not candidate.closed:
            candidate.closed, candidate.look_at = True, 0.0

    def settled(self, now: float) -> list[tuple[str, Candidate]]:
        """Files that have stood still for long enough."""
        return [
            (path, candidate)
            for path, candidate in self.candidates.items()
            if now >= candidate.look_at and (candidate.closed or now - candidate.changed_at >= self._settle_s)
        ]

    def current(self, path: str) -> str:
        """The stamp under which the hub knows this file, or an empty string."""
        return self.seen.get(path, "")

    def pass_on(self, path: str) -> None:
        """The hub has been told of this state of the file."""
        self.seen[path] = self.candidates.pop(path).stamp

    def again(self, path: str) -> None:
        """Forget that a file was passed on: the next scan takes it up anew."""
        self.seen.pop(path, None)

    def next_look_s(self, now: float) -> float:
        """Seconds until a candidate may be due."""
        waits = [
            max(candidate.look_at, 0.0 if candidate.closed else candidate.changed_at + self._settle_s) - now
            for candidate in self.candidates.values()
        ]
        return max(0.0, min(waits, default=1.0))


def _files(root: Path, excluded: Callable[[str], bool]) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below `root`, as (relative path, stat); links are not followed."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if excluded(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        yield path, entry.stat(follow_symlinks=False)
        except OSError:
            continue  # gone, or not ours to read: the next scan looks again
