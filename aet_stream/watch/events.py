"""File system events, as hints: they make a look come sooner, and say that a writer has closed its file.

Overflow and lost events are normal (thousands at a time in a burst); the periodic scan finds what no event told of.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections import deque
from pathlib import Path

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

logger = logging.getLogger(__name__)

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "davfs"})
_MAX_HINTS = 100_000
_ASKED_FOR: list[type[FileSystemEvent]] = [FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileClosedEvent, FileDeletedEvent]
"""Of the kernel: not of what is opened and read, which is our own reading, with several events for each folder of a scan."""


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Name of the file system that a folder lies on; empty where that cannot be told."""
    best, kind = "", ""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    here = f"{folder.resolve()}/"
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields.split(" ")[4])
        if here.startswith(f"{point.rstrip('/')}/") and len(point) >= len(best):
            best, kind = point, rest.split(" ")[0]
    return kind


def network_file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Name of the network file system that a folder lies on; empty for a local one. Networks tell nobody of other machines' writes."""
    kind = file_system(folder, mounts)
    return kind if kind in _NETWORK or kind.startswith("fuse.") else ""


def _speak_briefly() -> None:
    """watchdog 7.1 warns of each nested new folder in a text that names every folder there is: megabytes for a few thousand."""
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
    with contextlib.suppress(ImportError, AttributeError):
        from watchdog.observers.inotify_c import Watch

        Watch.__repr__ = Watch.short_str  # type: ignore[method-assign, assignment]


class Hints(FileSystemEventHandler):
    """What the operating system tells of a folder, gathered by watchdog's thread and taken by ours."""

    def __init__(self) -> None:
        self._hints: deque[tuple[str, bool]] = deque(maxlen=_MAX_HINTS)
        self.wake_fd, self._wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._observer: BaseObserver | None = None
        self._overflow = _Overflow(self)
        self._refused = ""
        """Why there were no events when last asked for: said once."""
        self.lost = False
        """Events were lost: only a scan can tell what has happened. Set by watchdog's thread, cleared by ours."""

    def start(self, root: Path) -> bool:
        """Begin to listen, anew if need be; False where the system has no events for this folder."""
        self._stop()
        network = network_file_system(root)
        if network:
            logger.info("%s lies on %s, which sends no events: the periodic scan finds files", root, network)
            return False
        _speak_briefly()
        observer: BaseObserver | None = None
        try:
            observer = Observer()  # takes one of the inotify instances of this user, of which there may be none left
            # FileSystemEvent: whatever class watchdog makes of them
            observer.schedule(self, str(root), recursive=True, event_filter=[*_ASKED_FOR, FileSystemEvent])
            observer.start()
        except OSError as error:
            if observer is not None:
                observer.stop()
            if str(error) != self._refused:
                logger.warning("no file system events for %s (%s): the periodic scan alone finds files", root, error)
            self._refused = str(error)
            return False
        # watchdog tells of an overflow only in its log
        logging.getLogger("watchdog.observers.inotify_c").addHandler(self._overflow)
        self._observer = observer
        return True

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Runs in watchdog's thread: only appends, and stirs the main loop."""
        if event.is_directory and event.event_type != "created":
            return
        moved = event.event_type == "moved"
        path = event.dest_path if moved else event.src_path
        if len(self._hints) == _MAX_HINTS:
            self.lost = True
        self._hints.append((os.fsdecode(path), moved or isinstance(event, FileClosedEvent)))
        self.stir()

    def stir(self) -> None:
        with contextlib.suppress(OSError):  # the pipe is full or closed: the loop has been stirred already, or is ending
            os.write(self._wake_end, b"x")

    def take(self) -> list[tuple[str, bool]]:
        """(path, its writer has closed it or moved it here), oldest first."""
        try:
            os.read(self.wake_fd, 1 << 16)
        except BlockingIOError:
            return []
        return [self._hints.popleft() for _ in range(len(self._hints))]

    def _stop(self) -> None:
        logging.getLogger("watchdog.observers.inotify_c").removeHandler(self._overflow)
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=2)
            self._observer = None

    def close(self) -> None:
        self._stop()
        os.close(self.wake_fd)
        os.close(self._wake_end)


class _Overflow(logging.Handler):
    """Hears watchdog say that the kernel's queue overflowed."""

    def __init__(self, hints: Hints) -> None:
        super().__init__(logging.WARNING)
        self._hints = hints

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            self._hints.lost = True
            self._hints.stir()
