"""What lies below a folder, as the disk lists it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aet_stream.readers import stat_stamp


@dataclass(slots=True)
class Stat:
    """What is remembered of a file: there may be hundreds of thousands, and `os.stat_result` has fifteen objects for each.

    Never changed, and yet not `frozen`: that takes four times as long to make.
    """

    path: str
    stamp: str
    nbytes: int
    written_ns: int
    changed_at: float
    """When it took its present name and content: unix seconds."""

    @classmethod
    def of(cls, path: str, entry: os.stat_result) -> Stat:
        return cls(path, stat_stamp(entry), entry.st_size, entry.st_mtime_ns, entry.st_ctime)

    @property
    def written_at(self) -> float:
        """Unix seconds."""
        return self.written_ns / 1e9


def files(
    root: Path, excluded: Callable[[str], bool], unreadable: dict[str, OSError], inside_only: list[str] | None = None
) -> Iterator[Stat]:
    """Every file below `root`; links are not followed, but named: the reader refuses them aloud.

    What has vanished meanwhile is passed over; what is there, but cannot be looked at, goes into `unreadable`.

    Parameters
    ----------
    inside_only : look into these folders, and not into those in them
    """
    folders = [""] if inside_only is None else [*inside_only]
    while folders:
        folder = folders.pop()
        inside = f"{folder}/" if folder else ""
        try:
            with os.scandir(root / folder) as listing:
                yield from _listed(listing, inside, excluded, folders if inside_only is None else [], unreadable)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreadable[folder] = error


def _listed(
    entries: Iterable[os.DirEntry[str]], inside: str, excluded: Callable[[str], bool], folders: list[str], unreadable: dict[str, OSError]
) -> Iterator[Stat]:
    """The files of one folder; folders in it join `folders`."""
    for entry in entries:
        if excluded(entry.name):
            continue
        path = f"{inside}{entry.name}"
        try:
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                yield Stat.of(path, entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable[path] = error
