"""Which images are one visit to one tilt.

Usually each image is a visit of its own. Frames that lie in several files (or rows of a stack) are gathered by name or by time, and named
after the first of them; its stamp covers all, so a late frame makes a new state of the same unit, as a late sidecar does.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from aet_stream.config import Frames
from aet_stream.reasons import Reason

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of one file, as it was looked at: what has to be remembered of it, for there may be hundreds of thousands."""

    path: str
    image: int
    state: str
    """Changes when its pixels or what is said about its tilt may have."""
    images: int
    """How many images its file holds, or promises."""
    nbytes: int
    closed_at: float
    """When its file took its final form: unix seconds."""
    taken_at: float
    """When it was taken, as far as anybody knows: unix seconds."""
    tilt_deg: float | None
    """What its sources agree on."""
    lenient: bool
    """Zeros at its end have been waited for."""
    seen_at: float
    """Monotonic."""
    of_images: int = 1
    """So many images of the file, from this one on, are the frames that it is made of."""
    detector: str = ""
    is_projection: bool = True
    """Its file does not say that it is none."""
    doubt: Reason | None = None
    """What is odd about the file as a whole."""

    @property
    def key(self) -> Key:
        return self.path, self.image

    @property
    def made_of(self) -> tuple[Key, ...]:
        """The images of its file that it is made of: usually itself."""
        return tuple((self.path, self.image + further) for further in range(self.of_images))

    @property
    def stamp(self) -> str:
        """State of the image, which is another one when a doubt about its file comes or goes."""
        return f"{self.state}?{zlib.crc32(str(self.doubt).encode()):08x}" if self.doubt else self.state


@dataclass(slots=True)
class Visit:
    """The frames of one visit, the first of them first."""

    frames: list[Frame]
    told: bool = False
    """The hub knows of it in this state."""
    stamp: str = field(init=False)
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        self.stamp, self.key = stamp_of([frame.stamp for frame in self.frames]), self.frames[0].key


def stamp_of(stamps: list[str]) -> str:
    """State of a visit: that of its only image, or of all its frames together."""
    return stamps[0] if len(stamps) == 1 else f"{len(stamps)} frames {hashlib.sha256('|'.join(stamps).encode()).hexdigest()[:16]}"


class Visits:
    """All images that are there, as visits."""

    def __init__(self, rules: Frames) -> None:
        self._rules = rules
        self._pattern = re.compile(rules.pattern)
        self._frames: dict[str, dict[str, list[Frame]]] = {}
        """Folder -> file -> images."""
        self._noted: dict[str, int] = {}
        """File -> its place in the order in which files were looked at; where frames of several files are gathered."""
        self._next = itertools.count()
        self._visits: dict[Key, Visit] = {}
        self._of_folder: dict[str, set[Key]] = {}
        """Where frames of several files are gathered."""
        self._untold: dict[Key, Visit] = {}
        self._stale: dict[str, None] = {}
        """Folders to be grouped anew before anybody asks: once for many files, each of which would ask for all."""

    def note(self, path: str, frames: list[Frame]) -> None:
        """A file was looked at."""
        folder = path.rpartition("/")[0]
        files = self._frames.setdefault(folder, {})
        before, files[path] = files.get(path, []), frames
        if self._rules.group != "container":
            self._noted[path] = next(self._next)
            self._stale[folder] = None
            return
        for frame in frames:
            self._keep(Visit(frames if len(frames) == 1 else [frame]))
        self._drop({frame.key for frame in before} - {frame.key for frame in frames})

    def forget(self, path: str) -> None:
        """A file has vanished. What it was a frame of is finished with: fewer frames are never taken for a new state."""
        self._regroup()
        folder = path.rpartition("/")[0]
        files = self._frames.get(folder, {})
        mine = {frame.key for frame in files.pop(path, [])}
        self._noted.pop(path, None)
        if self._rules.group != "container":
            touched = [v for v in map(self._visits.get, self._of_folder.get(folder, ())) if v and any(f.path == path for f in v.frames)]
            for frame in (frame for visit in touched for frame in visit.frames if frame.path in files):
                files[frame.path] = [other for other in files[frame.path] if other.key != frame.key]
            mine = {visit.key for visit in touched}
        self._drop(mine, folder)

    def tell_again(self) -> None:
        """A new hub knows of nothing."""
        self._regroup()
        for visit in self._visits.values():
            visit.told = False
        self._untold = dict(self._visits)

    def knows(self, path: str) -> bool:
        return path in self._frames.get(path.rpartition("/")[0], {})

    def find(self, path: str, image: int) -> Visit | None:
        self._regroup()
        return self._visits.get((path, image))

    def due(self, now: float) -> list[Visit]:
        """Visits that are complete and that the hub has not been told of, in the order in which their last files were looked at."""
        self._regroup()
        due = [visit for visit in self._untold.values() if self._complete(visit, now)]
        return due if self._rules.group == "container" else sorted(due, key=self._last_noted)

    def _last_noted(self, visit: Visit) -> int:
        return max(self._noted.get(frame.path, -1) for frame in visit.frames)

    def told(self, visit: Visit) -> None:
        visit.told = True
        self._untold.pop(visit.key, None)

    def tell_of(self, visit: Visit) -> None:
        """The hub asks for another state: it may not know of this one."""
        visit.told = False
        self._untold[visit.key] = visit

    def retract(self, visit: Visit) -> None:
        """What the hub was told does not hold any more; the next look says anew what there is."""
        self._visits.pop(visit.key, None)
        self._untold.pop(visit.key, None)

    @property
    def waiting(self) -> int:
        """Visits that the hub does not know of yet."""
        self._regroup()
        return len(self._untold)

    def _complete(self, visit: Visit, now: float) -> bool:
        rules = self._rules
        if rules.group == "container" or len(visit.frames) == rules.expected:
            return True
        if rules.group == "pattern" and self._named_as_frame(visit.frames[0]) is None:
            return True  # no other can belong to it
        return now - max(frame.seen_at for frame in visit.frames) >= rules.window_s

    def _keep(self, visit: Visit) -> None:
        before = self._visits.get(visit.key)
        if before is not None and before.stamp == visit.stamp and [f.key for f in before.frames] == [f.key for f in visit.frames]:
            before.frames = visit.frames
            return
        self._visits[visit.key] = self._untold[visit.key] = visit

    def _drop(self, keys: set[Key], folder: str = "") -> None:
        for key in keys:
            self._visits.pop(key, None)
            self._untold.pop(key, None)
            self._of_folder.get(folder, set()).discard(key)

    def _regroup(self) -> None:
        while self._stale:
            folder = next(iter(self._stale))
            del self._stale[folder]
            visits = [Visit(frames) for frames in self._groups([f for frames in self._frames[folder].values() for f in frames])]
            keys = {visit.key for visit in visits}
            self._drop(self._of_folder.get(folder, set()) - keys, folder)
            self._of_folder[folder] = keys
            for visit in visits:
                self._keep(visit)

    def _groups(self, frames: list[Frame]) -> Iterator[list[Frame]]:
        return self._by_name(frames) if self._rules.group == "pattern" else self._by_time(frames)

    def _by_name(self, frames: list[Frame]) -> Iterator[list[Frame]]:
        groups: dict[tuple[str, int], list[tuple[str, Frame]]] = {}
        for frame in frames:
            found = self._named_as_frame(frame)
            if found is None:
                groups[frame.path, frame.image] = [("", frame)]
                continue
            name, (start, end) = found.string, found.span("frame")
            groups.setdefault((f"{name[:start]}*{name[end:]}", -1), []).append((found["frame"], frame))
        for members in groups.values():
            yield [frame for _, frame in sorted(members, key=lambda m: (len(m[0]), m[0], m[1].path))]

    def _named_as_frame(self, frame: Frame) -> re.Match[str] | None:
        """How the name of its file tells it from other frames of its tilt, if it does."""
        return None if frame.images > 1 else self._pattern.search(PurePosixPath(frame.path).name)

    def _by_time(self, frames: list[Frame]) -> Iterator[list[Frame]]:
        """Runs of images at one tilt, each taken within the window after the one before."""
        rules, run = self._rules, list[Frame]()
        for frame in sorted(frames, key=lambda f: (f.taken_at, f.path, f.image)):
            first = run[0] if run else None
            if (
                first is not None
                and first.tilt_deg is not None
                and frame.tilt_deg is not None
                and abs(frame.tilt_deg - first.tilt_deg) <= rules.tolerance_deg
                and frame.taken_at - run[-1].taken_at <= rules.window_s
                and frame.detector == first.detector
                and not (frame.doubt or first.doubt)
                and frame.is_projection
                and first.is_projection
                and frame.nbytes == first.nbytes
                and (not rules.expected or len(run) < rules.expected)
            ):
                run.append(frame)
                continue
            if run:
                yield run
            run = [frame]
        if run:
            yield run
