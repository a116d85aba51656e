"""Files that are either the old one or the whole new one, even after a power cut: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aet_stream.errors import OutputFull

#: The disk, not the data, is at fault: the same bytes may be written later.
_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failing disk into OutputFull, which means: keep the data and try again later."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRNOS:
            raise OutputFull(f"{path}: {os.strerror(error.errno or 0)}") from error
        raise


def temporary(path: Path) -> Path:
    """The name a file has while it is written: hidden, and this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a new file and bring it to the disk; nothing is left of it on failure."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
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


def sync_folder(folder: Path) -> None:
    """Make renames within a folder last."""
    sync_file(folder)


def replace(path: Path, content: bytes | memoryview) -> None:
    """Put `content` at `path` so that nobody ever sees half of it."""
    with disk_errors(path):
        draft = temporary(path)
        write_synced(draft, content)
        draft.replace(path)
        sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; takes the place of `path`, durably, when the block ends well, and is removed when not."""
    draft = temporary(path)
    with disk_errors(path):
        try:
            yield draft
            sync_file(draft)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
