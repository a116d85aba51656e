"""One writer for each output folder: whoever holds its lock. The kernel lets go of it when the process dies."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import TextIO

from aet_stream import durable
from aet_stream.errors import AlreadyRunning
from aet_stream.transport import run_folder

WAIT_S = 5.0
"""A hub whose supervisor was killed needs up to 2 s to end."""


def take(root: Path, *, wait_s: float = WAIT_S) -> TextIO:
    """Take an output folder for ourselves; closing what is returned, or dying, lets go of it.

    Raises
    ------
    AlreadyRunning : another process has it, and did not let go of it in time
    OutputFull : the folder cannot be made
    """
    with durable.disk_errors(root):
        durable.make_folder(root)
        path = run_folder(root) / "writer.lock"
    return hold(path, wait_s=wait_s, otherwise=f"another aet-stream writes to {root}: stop it, or choose another output.root")


def hold(path: Path, *, wait_s: float, otherwise: str, shared: bool = False) -> TextIO:
    """Hold the lock of this file; `shared`: with others who do so, too.

    Raises
    ------
    AlreadyRunning : another process has it; says `otherwise`
    OutputFull : the file cannot be made
    """
    with durable.disk_errors(path):
        lock = path.open("w")
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > until:
                lock.close()
                raise AlreadyRunning(otherwise) from None
            time.sleep(0.1)
