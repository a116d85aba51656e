"""Files that are either the old one or the whole new one, even after a power cut: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aet_stream import failpoints
from aet_stream.errors import OutputFull

ABANDONED_S = 3600.0
SYNC_BYTES = 16 << 20
"""Of a large file, what is brought to the disk at once: nobody waits longer than that takes."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Whatever the disk complains about while we write becomes OutputFull, which means: keep the data, try again later."""
    try:
        yield
    except OSError as error:
        raise OutputFull(f"{path}: {refused(error, path)}") from error


def refused(error: OSError, path: Path) -> str:
    """What the disk of this path says, with the remedy if it is full; numpy's `tofile` only says that it wrote less than it was to."""
    reason = errno.ENOSPC if " requested and " in str(error) else error.errno
    said = os.strerror(reason) if reason else str(error)
    if reason not in (errno.ENOSPC, errno.EDQUOT):
        return said
    return f"{said}: {_free_bytes(path) / 1e6:.1f} MB are free there, and more is needed: make room, or write to another disk"


def _free_bytes(path: Path) -> int:
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 0


def temporary(path: Path) -> Path:
    """The name a file has while it is written: hidden, and this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def abandoned(path: Path) -> bool:
    """Is a temporary file nobody's any more? Its process is gone, and no machine has written to it for ABANDONED_S."""
    pid = path.name.split(".")[-2]
    try:
        return not Path("/proc", pid).exists() and time.time() - path.stat().st_mtime > ABANDONED_S
    except OSError:
        return False


def remove_dead(path: Path) -> None:
    """Drafts of this file whose processes are gone."""
    for draft in path.parent.glob(f".{path.name}.*.tmp"):
        if not Path("/proc", draft.name.split(".")[-2]).exists():
            draft.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """A folder that is still there after a power cut: every new level is synced into the one above it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _reach(point: str, step: str, path: Path) -> None:
    if point:
        failpoints.reach(f"{point}.{step}", path)


def write_synced(path: Path, content: bytes | memoryview, point: str = "") -> None:
    """Write a new file and bring it to the disk; nothing is left of it on failure."""
    _reach(point, "draft", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        _reach(point, "written", path)
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file that a library has written to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_now_and_then(path: Path, part: int, part_bytes: int) -> None:
    """Bring a large file to the disk while it is written part by part, so that the last `sync_file` is short."""
    every = max(1, SYNC_BYTES // part_bytes)
    if (part + 1) % every == 0:
        sync_file(path)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder last."""
    sync_file(folder)


def put_in_place(draft: Path, path: Path, point: str = "") -> None:
    """Give a synced draft its final name, durably."""
    _reach(point, "synced", draft)
    draft.replace(path)
    _reach(point, "renamed", path)
    sync_folder(path.parent)
    _reach(point, "durable", path)


def replace(path: Path, content: bytes | memoryview, point: str = "") -> None:
    """Put `content` at `path` so that nobody ever sees half of it. `point` names it to tests (failpoints)."""
    draft = temporary(path)
    with disk_errors(path):
        try:
            write_synced(draft, content, point)
            put_in_place(draft, path, point)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


@contextmanager
def replacing(path: Path, point: str = "") -> Iterator[Path]:
    """A temporary name to write to; takes the place of `path`, durably, when the block ends well, and is removed when not."""
    draft = temporary(path)
    with disk_errors(path):
        try:
            _reach(point, "draft", draft)
            yield draft
            sync_file(draft)
            put_in_place(draft, path, point)
        finally:
            draft.unlink(missing_ok=True)
