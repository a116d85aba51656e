"""File system events, as hints: they make a look come sooner, and say that a writer has closed its file.

Overflow and lost events are normal (thousands at a time in a burst); the periodic scan finds what no event told of.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from pathlib import Path

from watchdog.events import FileClosedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

logger = logging.getLogger(__name__)


class Hints(FileSystemEventHandler):
    """What the operating system tells of a folder, gathered by watchdog's thread and taken by ours."""

    def __init__(self) -> None:
        self._hints: deque[tuple[str, bool]] = deque(maxlen=100_000)
        self.wake_fd, self._wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._observer: BaseObserver | None = None

    def start(self, root: Path) -> bool:
        """Begin to listen; False where the system has no events for this folder."""
        observer = Observer()
        try:
            observer.schedule(self, str(root), recursive=True)
            observer.start()
        except OSError as error:
            logger.warning("no file system events for %s (%s): the periodic scan alone finds files", root, error)
            return False
        self._observer = observer
        return True

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Runs in watchdog's thread: only appends, and stirs the main loop."""
        if event.event_type in ("opened", "closed_no_write") or (event.is_directory and event.event_type != "created"):
            return  # our own reading makes these
        moved = event.event_type == "moved"
        path = event.dest_path if moved else event.src_path
        self._hints.append((os.fsdecode(path), moved or isinstance(event, FileClosedEvent)))
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the loop has been stirred already
            os.write(self._wake_end, b"x")

    def take(self) -> list[tuple[str, bool]]:
        """(path, its writer has closed it or moved it here), oldest first."""
        try:
            os.read(self.wake_fd, 1 << 16)
        except BlockingIOError:
            return []
        return [self._hints.popleft() for _ in range(len(self._hints))]

    def close(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=2)
        os.close(self.wake_fd)
        os.close(self._wake_end)
