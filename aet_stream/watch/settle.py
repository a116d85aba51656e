"""Which files there are, and which have stood still for long enough to be looked into.

A writer that closed its file, or moved it here, has finished with it: no wait. Otherwise size, time and inode must stay the same for
`settle_s`. Whether the content is complete is the format's business (readers), asked afterwards.
"""

from __future__ import annotations

import fnmatch
import itertools
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aet_stream.naming import is_text, shown, top_folder
from aet_stream.readers.sidecar import is_loose, is_sidecar, sidecar_names
from aet_stream.watch.listing import Stat, files

logger = logging.getLogger(__name__)


SMALLEST_IMAGE_BYTES = 1024
"""What no reader knows and is smaller is no image."""
NO_IMAGES = tuple(
    f".{suffix}"
    for suffix in (
        "txt", "log", "md", "rst", "csv", "tsv", "json", "xml", "xsd", "yaml", "yml", "toml", "ini", "cfg", "conf", "set", "settings",
        "hdr", "html", "htm", "css", "js", "pdf", "doc", "docx", "odt", "rtf", "xls", "xlsx", "ods", "ppt", "pptx", "odp", "eps", "svg",
        "py", "ipynb", "m", "s", "sh", "bat", "ps1", "exe", "dll", "lnk", "url", "db", "sqlite", "sha256", "md5", "adoc", "nav", "com",
        "err",
    )
)  # fmt: skip
"""How names end of what lies beside images and is none: notes, settings, tables, documents, programs."""
BEGIN_FILES = 1000
"""A tree of many more is begun with so many, or some more."""
PACKED = ("gz", "bz2", "xz", "zst", "zip")


@dataclass(slots=True)
class Candidate:
    """A file that is not known to be complete yet. Times are monotonic unless said otherwise."""

    stamp: str
    own: int
    """So many letters of its stamp are of file and sidecars of its own."""
    changed_at: float
    final_at: float
    """When file and sidecar took their present name and content on this machine: unix seconds."""
    closed: bool = False
    look_at: float = 0.0
    """Not to be looked into before this."""
    complaint: str = ""
    """What the format missed at the last look."""
    deaths: int = 0
    """Reading processes that died over it."""

    @property
    def refused(self) -> str:
        """State under which it is refused: without the loose sidecars, which grow with every image, and never that of an image offered."""
        return f"{self.stamp[: self.own]} refused"


class Settling:
    """All files under the watched folder, and those that are still moving. The stamp of a file covers its sidecars."""

    def __init__(
        self,
        root: Path,
        *,
        exclude: tuple[str, ...],
        settle_s: float,
        suffixes: frozenset[str],
        sentinel: str = "",
        only: frozenset[str] | None = None,
    ) -> None:
        """`only`: paths of images; there are no others then, and beside them their sidecars alone."""
        self.root = root
        self._only = only
        self._folders = None if only is None else sorted({path.rpartition("/")[0] for path in only})
        self._exclude = re.compile("|".join(fnmatch.translate(pattern.lower()) for pattern in exclude) or r"(?!)")
        self._prefix = f"{root}/"
        self._settle_s = settle_s
        self.suffixes = suffixes
        self._sentinel = sentinel.lower()
        self._stats: dict[str, Stat] = {}
        self._loose: dict[str, tuple[str, ...]] = {}
        """Folder -> sidecars in it that belong to no image by name."""
        self._with_sidecars: set[str] = set()
        self.seen: dict[str, Candidate] = {}
        """Files that have been passed on, in that state."""
        self._back: dict[str, Candidate] = {}
        """Files that come again, if they are still what they were."""
        self.candidates: dict[str, Candidate] = {}
        self.sentinels: dict[str, str] = {}
        """Files that say that a series has ended, and their stamps."""
        self._unread: dict[str, str] = {}
        """Files that may be images and that nobody reads -> how such files are called: `*.eer`."""
        self.no_reader: tuple[tuple[str, str, int], ...] = ()
        """(folder, how they are called, how many) of them at the last scan."""
        self.newer_than_s = 0.0
        """Unix seconds: images written before are older than wanted, unless they are said to be taken."""
        self.older: dict[str, str] = {}
        """Images that are older than wanted, and their stamps."""
        self.older_to_tell: dict[str, Stat] = {}
        """Those that nobody has been told of yet."""
        self._taken: set[str] = set()
        """Older ones that are to be taken all the same."""
        self.nameless: dict[str, str] = {}
        """Images whose names are not UTF-8, as they can be shown, and their stamps."""
        self.unreadable: set[str] = set()
        """Folders (and files) that are there but could not be looked at by the last scan: what was known of them still counts."""
        self.untold: set[str] = set()
        """Found new or changed by the last scan, and no event has named them since."""

    def excluded(self, name: str) -> bool:
        return self._exclude.match(name.lower()) is not None

    def scan(self, now: float) -> list[str]:
        """Look at every file; returns those that have vanished."""
        unreadable: dict[str, OSError] = {}
        found = {stat.path: stat for stat in map(self._kept, files(self.root, self.excluded, unreadable, self._folders))}
        if self._only is not None:
            found = {path: known for path, known in found.items() if path in self._only or is_sidecar(path)}
        if unreadable:
            inside = tuple(f"{place}/" if place else "" for place in unreadable)
            found = {path: known for path, known in self._stats.items() if path in unreadable or path.startswith(inside)} | found
        for place in unreadable.keys() - self.unreadable:
            logger.warning("%s/%s cannot be looked at (%s): see to its rights", self.root, shown(place), unreadable[place].strerror)
        self.unreadable = set(unreadable)
        nameless = {path for path in found if not is_text(path)}
        self.nameless = {shown(path): found[path].stamp for path in nameless if self._is_image(path)}
        self._stats = {path: known for path, known in found.items() if path not in nameless} if nameless else found
        self.untold = self._note_all(now)
        gone = {path for known in (self.seen, self.candidates, self._back) for path in known if path not in self._stats}
        for path in gone:
            for known in (self.seen, self.candidates, self._back):
                known.pop(path, None)
        for others in (self._unread, self.older, self.older_to_tell):
            for path in others.keys() - self._stats.keys():
                del others[path]
        self._taken &= self._stats.keys()
        unread = Counter((path.rpartition("/")[0], kind) for path, kind in self._unread.items())
        self.no_reader = tuple((folder, kind, files) for (folder, kind), files in sorted(unread.items()))
        self.sentinels = {path: stamp for path, stamp in self.sentinels.items() if path in self._stats}
        return sorted(gone)

    def begin(self, now: float) -> bool:
        """Before the first scan of a large tree: note all that is in some of its folders, and below them.

        False, and nothing is noted, if all that there is, or nearly, would have to be listed for that.
        """
        some: dict[str, Stat] = {}
        last = ""
        for file in files(self.root, self.excluded, {}) if self._only is None else ():
            top = top_folder(file.path)
            if top != last and len(some) >= BEGIN_FILES:
                self._stats = some
                self._note_all(now)
                return True
            if len(some) > 5 * BEGIN_FILES:
                break
            last = top
            if is_text(file.path):
                some[file.path] = file
        return False

    def _note_all(self, now: float) -> set[str]:
        """Of all that was listed, the images that are new or changed."""
        self._sort_sidecars()
        new = [path for path in self._stats if self._note(path, now, closed=False)]
        for path in self.in_order(new):
            self.candidates[path] = self.candidates.pop(path)
        return set(new)

    def _kept(self, listed: Stat) -> Stat:
        """What is known already of a file that has not changed: a scan leaves no second copy of it, nor of its name."""
        known = self._stats.get(listed.path)
        return known if known == listed else listed

    def final_at(self, path: str) -> float:
        """When a file took its present name and content: unix seconds."""
        return self.candidates[path].final_at

    def written_before(self, limit_s: float) -> int:
        """How many images were last written before a time: unix seconds."""
        return sum(self._stats[path].written_at < limit_s for path in self.candidates)

    def in_order(self, paths: Iterable[str]) -> list[str]:
        """As they were written: the first of a series decides what fits into it, whatever order the disk tells of them in."""
        return sorted(paths, key=lambda path: (self._stats[path].written_ns if path in self._stats else 0, path))

    def _sort_sidecars(self) -> None:
        """Which sidecars belong to an image by their name, and which speak of images by theirs."""
        sidecars = [path for path in self._stats if is_sidecar(path)]
        self._with_sidecars = {path.rpartition("/")[0] for path in sidecars}
        own: set[str] = set()
        if sidecars:
            images = [path for path in self._stats if self._is_image(path) and path.rpartition("/")[0] in self._with_sidecars]
            own = {name for path in images for name in sidecar_names(path)}
        loose: dict[str, list[str]] = {}
        for path in sidecars:
            if path not in own and is_loose(path):
                loose.setdefault(path.rpartition("/")[0], []).append(path)
        self._loose = {folder: tuple(sorted(paths)) for folder, paths in loose.items()}

    def loose(self, path: str) -> tuple[str, ...]:
        """Sidecars of the same folder that may name this image inside: full paths."""
        return tuple(str(self.root / name) for name in self._loose.get(path.rpartition("/")[0], ()))

    def root_is_there(self) -> bool:
        return os.path.isdir(self.root)  # noqa: PTH112 - Path.is_dir raises what a share that is away answers

    def hint(self, absolute: str, now: float, *, closed: bool) -> bool:
        """An event named this path; True when only a scan can tell what it means: a folder, or a sidecar."""
        try:
            entry = os.lstat(absolute)
        except (ValueError, OSError):
            return False
        if not absolute.startswith(self._prefix):
            return absolute == self._prefix[:-1]
        path = absolute[len(self._prefix) :]
        if not is_text(path):
            return True
        if stat.S_ISDIR(entry.st_mode):
            return True
        if not (stat.S_ISREG(entry.st_mode) or stat.S_ISLNK(entry.st_mode)) or any(self.excluded(part) for part in path.split("/")):
            return False
        self._stats[path] = self._kept(Stat.of(path, entry))
        self.untold.discard(path)
        if self._is_image(path):
            self._note(path, now, closed=closed)
            return False
        return is_sidecar(path) or self._is_sentinel(path)

    def _is_sentinel(self, path: str) -> bool:
        return bool(self._sentinel) and fnmatch.fnmatchcase(path.rpartition("/")[2].lower(), self._sentinel)

    def _is_image(self, path: str) -> bool:
        stem, _, suffix = path.rpartition(".")  # a Path for each of 100,000 files takes too long, and so does os.path.splitext
        return f".{suffix.lower()}" in self.suffixes and stem[-1:] not in ("", "/") and not is_sidecar(path)

    def _note(self, path: str, now: float, *, closed: bool) -> bool:
        """A file was seen in some state; True for an image that is new or changed."""
        file = self._stats[path]
        if not self._is_image(path):
            if self._is_sentinel(path):
                self.sentinels[path] = file.stamp
            elif not is_sidecar(path):
                self._note_unread(file)
            return False
        if self._is_older(file):
            self._leave_out(file)
            return False
        self.older.pop(path, None)
        self.older_to_tell.pop(path, None)
        mine = stamp = file.stamp
        final_at, folder = file.changed_at, path.rpartition("/")[0]
        if folder in self._with_sidecars:
            own = [file, *[self._stats[name] for name in sidecar_names(path) if name in self._stats]]
            loose = [self._stats[name] for name in self._loose.get(folder, ()) if name in self._stats]
            mine = "+".join([each.stamp for each in own])
            stamp = "+".join([mine, *[each.stamp for each in loose]])
            final_at = max([each.changed_at for each in own + loose])
        candidate = self.candidates.get(path)
        seen = self.seen.get(path)
        if candidate is None and seen is not None and seen.stamp == stamp:
            return False
        if candidate is None or candidate.stamp != stamp:
            before = self._back.pop(path, None)
            since, look_at = (now, 0.0) if before is None or before.stamp != stamp else (before.changed_at, before.look_at)
            self.candidates[path] = Candidate(stamp, len(mine), since, final_at, closed, look_at)
            return True
        if closed and not candidate.closed:
            candidate.closed, candidate.look_at = True, 0.0
        return False

    def _note_unread(self, file: Stat) -> None:
        name = file.path.rpartition("/")[2].lower()
        if file.nbytes < SMALLEST_IMAGE_BYTES or name.endswith(NO_IMAGES) or "." not in name:
            self._unread.pop(file.path, None)
            return
        stem, _, suffix = name.rpartition(".")
        packed = f"{stem.rpartition('.')[2]}." if suffix in PACKED and "." in stem else ""
        self._unread[file.path] = f"*.{packed}{suffix}"

    def _is_older(self, file: Stat) -> bool:
        return file.written_at < self.newer_than_s and file.path not in self._taken

    def leave_out(self, newer_than_s: float) -> None:
        """From now on, images that were written before are older than wanted, and nobody has been told of any."""
        self.newer_than_s = newer_than_s
        self.older_to_tell = {path: self._stats[path] for path in self.older}
        for path in [path for path in self.candidates if self._is_older(self._stats[path])]:
            self._leave_out(self._stats[path])

    def _leave_out(self, file: Stat) -> None:
        if (candidate := self.candidates.pop(file.path, None)) is not None:
            self._back[file.path] = candidate
        if self.older.get(file.path) != file.stamp:
            self.older[file.path], self.older_to_tell[file.path] = file.stamp, file

    def take(self, path: str, now: float) -> None:
        """This one is to be taken, old as it is."""
        if self.older.pop(path, None) is not None:
            self._taken.add(path)
            self._note(path, now, closed=False)

    def settled(self, now: float, most: int) -> list[tuple[str, Candidate]]:
        """The first files that have stood still for long enough; those that a reading process died over come last."""
        due = (item for item in self.candidates.items() if self._due_at(item[1]) <= now)
        some = list(itertools.islice((item for item in due if not item[1].deaths), most))
        return some or [item for item in self.candidates.items() if item[1].deaths and self._due_at(item[1]) <= now][:most]

    def _due_at(self, candidate: Candidate) -> float:
        """When it is to be looked into."""
        return max(candidate.look_at, 0.0 if candidate.closed else candidate.changed_at + self._settle_s)

    def moving_in(self, folder: str) -> bool:
        """Is a file of this folder, or one below it, not passed on yet?"""
        inside = f"{folder}/" if folder else ""
        return any(path.startswith(inside) for path in self.candidates)

    def pass_on(self, path: str) -> None:
        """The hub has been told of this state of the file."""
        self.seen[path] = self.candidates.pop(path)

    def again(self, path: str, *, after_s: float = 0.0, not_before: float = 0.0) -> None:
        """Forget that a file was passed on: the next scan takes it up anew, `after_s` it last changed, and not before a time."""
        if (before := self.seen.pop(path, None)) is not None:
            before.look_at = max(before.changed_at + after_s, not_before)
            self._back[path] = before

    def next_look_s(self, now: float) -> float:
        """Seconds until a candidate may be due."""
        soonest = 1.0
        for candidate in self.candidates.values():
            soonest = min(soonest, self._due_at(candidate) - now)
            if soonest <= 0:
                return 0.0  # of a hundred thousand that wait
        return soonest
