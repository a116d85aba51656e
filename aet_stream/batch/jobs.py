"""Which series there are in folders and files, and in which state: what is to be done about each is asked elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import h5py
import msgspec

from aet_stream import edition, layout
from aet_stream.config import Config
from aet_stream.errors import AetError
from aet_stream.layout import SERIES_FILE
from aet_stream.naming import lines_without_reader, series_of
from aet_stream.series import Series
from aet_stream.watch.settle import Settling


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One series, as its sources are now."""

    name: str
    """Of the series, and of its folder below the output."""
    root: str
    """The folder that paths are relative to; of a series of ours, its own."""
    paths: tuple[str, ...]
    """Of its images, with forward slashes. None: a series of ours, whose `series.h5` lies in `root`."""
    stamp: str
    """Changes with any of its files, or with what lies beside them; of a series of ours with its raw pixels: 64 hex digits."""
    nbytes: int
    by_file: bool = False
    """Named after its one file, whatever `series.by` says."""
    trouble: str = ""
    """Why nothing can be done, and what would help."""

    @property
    def ours(self) -> bool:
        """A series that was written by this program."""
        return not self.paths


@dataclass
class Found:
    """What there is."""

    jobs: list[Job] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What was passed over, one line each."""


def find(places: Iterable[Path], config: Config, suffixes: frozenset[str]) -> Found:
    """Every series in these folders and files, by name.

    A folder is taken as `watch.root` is: a series is a folder directly under it (`series.by`), what lies in it directly is a series named
    after it. A file is a series of its own, and so is every folder with a `series.h5` of ours.

    Parameters
    ----------
    suffixes : of files that are read, as `ReaderChild.suffixes` has them

    Raises
    ------
    AetError : a place is not there
    """
    found, seen = Found(), set[tuple[str, str]]()
    for place in places:
        if not os.path.lexists(place):
            raise AetError(f"{place}: no such file or folder")
        for job in _in_folder(place, config, suffixes, found.remarks) if place.is_dir() else [_of_file(place, config, suffixes)]:
            if (job.root, job.name) not in seen:
                seen.add((job.root, job.name))
                found.jobs.append(job)
    called = Counter(job.name for job in found.jobs)
    found.jobs = [job if called[job.name] == 1 else _namesake(job, found.jobs) for job in found.jobs]
    found.jobs.sort(key=lambda job: job.name)
    return found


def _namesake(job: Job, jobs: list[Job]) -> Job:
    others = sorted(other.root for other in jobs if other.name == job.name)
    words = f"series from {' and '.join(others)} would all be called {job.name}: give them to runs with different output.root"
    return msgspec.structs.replace(job, trouble=words)


def _in_folder(folder: Path, config: Config, suffixes: frozenset[str], remarks: list[str]) -> Iterator[Job]:
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    there = Settling(root, exclude=config.watch.exclude, settle_s=0.0, suffixes=suffixes)
    there.scan(0.0)
    images = list(there.candidates)
    inside = tuple(_inside(path) for path in images if path.rpartition("/")[2] == SERIES_FILE and is_ours(root / path))
    for prefix in inside:
        yield _of_ours(root / prefix)
    output = f"{config.output_root}/"
    series: dict[str, list[str]] = {}
    for path in images:
        if not path.startswith(inside) and not f"{root}/{path}".startswith(output):
            series.setdefault(series_of(path, root.name, config.series), []).append(path)
    for name, paths in series.items():
        nbytes = sum(int(there.candidates[path].stamp.partition(".")[0]) for path in paths)
        yield Job(name, str(root), tuple(sorted(paths)), _stamp(f"{path}|{there.candidates[path].stamp}" for path in paths), nbytes)
    unread = [row for row in there.no_reader if not row[0].startswith(tuple(prefix.rstrip("/") for prefix in inside) or ("\0",))]
    remarks += [f"{root}: {line}" for line in lines_without_reader(unread).values()]
    remarks += [f"{root}/{name}: its name is not UTF-8: rename it" for name in there.nameless]
    if not (images or unread):
        remarks.append(f"{root}: no image in it, nor below; looked at is what ends in {', '.join(sorted(suffixes))}")


def _inside(path: str) -> str:
    """What all paths in its folder begin with."""
    folder = path.rpartition("/")[0]
    return f"{folder}/" if folder else ""


def _of_file(file: Path, config: Config, suffixes: frozenset[str]) -> Job:
    path = Path(os.path.abspath(file))  # noqa: PTH100
    if path.name == SERIES_FILE and is_ours(path):
        return _of_ours(path.parent)
    rules = msgspec.structs.replace(config.series, by="file")
    name = series_of(path.name, path.parent.name, rules)
    there = Settling(path.parent, exclude=(), settle_s=0.0, suffixes=suffixes, only=frozenset({path.name}))
    there.scan(0.0)
    if path.name not in there.candidates:
        words = f"{file}: looked at is what ends in {', '.join(sorted(suffixes))}"
        return Job(name, str(path.parent), (path.name,), "", 0, by_file=True, trouble=words)
    stamp = there.candidates[path.name].stamp
    return Job(name, str(path.parent), (path.name,), _stamp([stamp]), path.stat().st_size, by_file=True)


def _of_ours(folder: Path) -> Job:
    path = folder / SERIES_FILE
    try:
        with Series(path) as series:
            trouble = "" if series.closed else f"{path} is still open: close it first (aet-stream close {quote(folder.name)})"
            stamp = _stamp(msgspec.json.encode(row).decode() for row in edition.covered(series))
    except AetError as error:
        trouble, stamp = str(error), ""
    return Job(folder.name, str(folder), (), stamp, path.stat().st_size, trouble=trouble)


def _stamp(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def is_ours(path: Path) -> bool:
    """Is this a `series.h5` that this program wrote?"""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return layout.PER_PROJECTION in file and layout.ABOUT in file
    except OSError:
        return False
