"""A damaged HDF5 file can crash the library, or keep it busy for ever, and the hub with it: at every start, in a circle.

So the name of the file that the hub reads stands in `run/reading` meanwhile. A hub that finds one there follows one that died: by chance,
or of that file. A child process reads it first; if the child dies too, the file is set aside and made good like any that is damaged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar

import h5py

from aet_stream import durable, hdf5, lifeline
from aet_stream.layout import ABOUT, SERIES_FILE
from aet_stream.service import BEAT_S
from aet_stream.transport import run_folder

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")
PATIENCE_S = 60.0
SLOWEST_DISK_BYTES_PER_S = 10e6
KILLED_AT_MOST = 4
FROM_OUTSIDE = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


class CrashGuard:
    """Of the files below `output.root`."""

    def __init__(
        self, root: Path, alive: Callable[[], None] = lambda: None, *, patience_s: float = PATIENCE_S, reader: tuple[str, ...] = ()
    ) -> None:
        """
        Parameters
        ----------
        alive : called at each file, and while one is tried: thousands are read at a start, and that may take many minutes
        patience_s : how long a child may read a small file
        reader : program that reads the file which it is given as its last argument; this module by default
        """
        self._root = root
        self._alive = alive
        self._patience_s = patience_s
        self._reading: list[Path] = []
        """The innermost last: while one file is read, another may have to be."""
        self._reader = reader or tuple(lifeline.command(__name__))

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Leave word of `path` while it is read; it stays only if this process dies."""
        self._alive()
        self._reading.append(path)
        self._say()
        try:
            yield
        finally:
            self._reading.pop()
            self._say()

    def pieces(self, path: Path, work: Generator[None, None, _Made]) -> Generator[None, None, _Made]:
        """Work that reads `path` piece by piece: word of it is left during each."""
        try:
            while True:
                with self.reading(path):
                    try:
                        next(work)
                    except StopIteration as ended:
                        made: _Made = ended.value
                        return made
                yield
        finally:
            work.close()

    def _say(self) -> None:
        said = self._root / "run" / "reading"
        if not self._reading:
            said.unlink(missing_ok=True)
            return
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from reading
            said.write_bytes(os.fsencode(self._reading[-1].relative_to(self._root)))

    def set_aside(self) -> None:
        """At start: move the file away of which the hub before us died, if it did."""
        said = run_folder(self._root) / "reading"
        name = os.fsdecode(said.read_bytes()) if said.exists() else ""  # after a power cut it may be anything
        path = self._root / name
        if name and ".." not in name and path.exists() and self._kills(path):
            logger.error("%s: whatever reads it dies or never ends; %s", path, self.move(path))
        said.unlink(missing_ok=True)

    def move(self, path: Path, *, shown: bool = True) -> str:
        """Out of its series folder, under a name that says where it came from; returns the words for it.

        Parameters
        ----------
        shown : may `series.h5` show pixels of it?
        """
        aside = self._root / "quarantine"
        if shown and path.parent.parent.parent == self._root:  # a projection file, or an edition
            self._withdraw(path.parents[1] / SERIES_FILE)
        with durable.disk_errors(aside):
            durable.make_folder(aside)
            target = aside / f"{path.relative_to(self._root).parts[0]}-{path.name}-{time.time_ns()}"
            path.replace(target)
        return f"moved to {target}"

    def _withdraw(self, master: Path) -> None:
        """An open `series.h5` shows zeros for a file that is not there, and no error: better none until it is written anew."""
        try:
            with self.reading(master), h5py.File(master, "r", locking=False) as file:
                closed = bool(file[ABOUT].attrs["closed_utc"])
        except (OSError, KeyError, RuntimeError, ValueError):
            return  # none, or none of ours
        if not closed:
            master.unlink(missing_ok=True)

    def _kills(self, path: Path) -> bool:
        """Does a process that reads it die of that? Signals from outside prove nothing; SIGKILL only when it comes each time."""
        limit_s = self._patience_s + path.stat().st_size / SLOWEST_DISK_BYTES_PER_S
        for _ in range(KILLED_AT_MOST):
            code = self._read_by_another(path, limit_s)
            if code is None:
                return True
            if code != -signal.SIGKILL:
                return code < 0 and -code not in FROM_OUTSIDE
        return True

    def _read_by_another(self, path: Path, limit_s: float) -> int | None:
        """Exit code of a process that reads it; None: it has not ended in time."""
        until = time.monotonic() + limit_s
        with subprocess.Popen([*self._reader, str(path)]) as child:
            try:
                while time.monotonic() < until:
                    self._alive()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return child.wait(BEAT_S)
            finally:
                child.kill()
        return None


def read_everything(path: Path) -> None:
    """What the hub may ever read of a file, frame by frame; errors are the hub's to understand."""
    with contextlib.suppress(Exception), h5py.File(path, "r", locking=False) as file:
        for item in chain([file], hdf5.items(file)):
            hdf5.attributes(item)
            if isinstance(item, h5py.Dataset) and not item.is_virtual:
                for row in range(len(item)) if item.ndim == 3 else [()]:
                    item[row]


if __name__ == "__main__":
    read_everything(Path(sys.argv[1]))
