"""Projection files of a closed series go, once everything in them is found, byte by byte, in `series.h5` and `editions/01.h5`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np

from aet_stream import durable, edition, failpoints, layout
from aet_stream.errors import OutputFull, StoreError
from aet_stream.hub import first_edition
from aet_stream.hub.closed_file import ClosedFile
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.layout import Planes, Record
from aet_stream.projection import Array


def pruning(folder: Path, guard: CrashGuard, room_bytes: Callable[[], int]) -> Generator[None, None, int]:
    """Remove the projection files and segments of a closed series; yields often, returns the bytes that were removed.

    Nothing is removed before all of it has been found equal. What no row can show keeps its file: its frame fits into no edition's.

    Parameters
    ----------
    room_bytes : how much the file of edition 1 may take

    Raises
    ------
    StoreError : a file is not what it should be; nothing has been removed
    OutputFull : the disk does not take the file of edition 1, or fails
    """
    closed, files = ClosedFile(folder, guard), layout.projection_files(folder)
    if closed.complaints:
        raise StoreError(closed.complaints[0])
    if strange := files.keys() - closed.known.keys():
        raise StoreError(f"{files[min(strange)]} is of no projection of {closed.path}")
    going = [(record, files[record.number]) for record, _ in closed.rows.values() if record.number in files]
    segments = sorted((folder / layout.PROJECTIONS).glob("segment_*.h5"))
    failpoints.reach("prune.begin", folder)
    if not going and not segments:
        return 0
    beside = dict[int, list[str]]()
    for record, path in going:
        beside[record.number] = layout.extras_of(str(path))
        yield
    with durable.disk_errors(closed.first_path):
        yield from _keep_first(folder, guard, closed, dict(files), beside, room_bytes)
    for record, path in going:
        yield from _compare(guard, closed, record, path, beside[record.number])
        failpoints.reach("prune.compared", path)
        yield
    failpoints.reach("prune.checked", folder)
    removed_bytes = 0
    with durable.disk_errors(folder / layout.PROJECTIONS):
        for path in (*segments, *(path for _, path in going)):
            removed_bytes += path.stat().st_size
            path.unlink()
            failpoints.reach("prune.removed", folder)
            yield
        durable.sync_folder(folder / layout.PROJECTIONS)
    failpoints.reach("prune.durable", folder)
    return removed_bytes


def _keep_first(
    folder: Path, guard: CrashGuard, closed: ClosedFile, files: dict[int, Path], beside: dict[int, list[str]], room_bytes: Callable[[], int]
) -> Generator[None]:
    """Edition 1 of every row in a file of its own, sound: checked whole, or written anew."""
    records, path = [record for record, _ in closed.rows.values()], closed.first_path
    if first_edition.holds(path, guard, records, [first_edition.extra_name(number, name) for number in beside for name in beside[number]]):
        with contextlib.suppress(StoreError):
            for _ in edition.reading_back(path):
                failpoints.reach("prune.first", path)
                yield
            return
    height, width = next(iter(closed.rows.values()))[1].shape
    needed, room = 4 * len(records) * height * width, room_bytes()
    if needed > room:
        raise OutputFull(
            f"{path}: edition 1 needs {needed >> 20} MiB before {folder.name} can be pruned, {max(0, room) >> 20} MiB are to be had"
        )

    def reading(record: Record) -> Generator[None, None, Planes]:
        if record.number not in files:
            return (yield from closed.reading(record))
        return (yield from _reading(guard, files[record.number]))[1]

    def extras() -> Iterator[tuple[int, Planes]]:
        for record in records:
            names, file = beside.get(record.number, []), str(files.get(record.number))
            yield record.number, {name: layout.read_extra(file, name) for name in names} or closed.extras(record.number)

    yield from first_edition.write(path, folder.name, records, (height, width), reading, extras)


def _compare(guard: CrashGuard, closed: ClosedFile, record: Record, path: Path, beside: list[str]) -> Generator[None]:
    """
    Raises
    ------
    StoreError : the file has anything that the closed series has not
    """
    said, planes = yield from _reading(guard, path)
    if not layout.same(said, record):
        raise StoreError(f"{path}: {closed.path} says something else of projection {record.number}")
    kept = yield from closed.reading(record)
    wrong = [name for name in kept if not _identical(planes[name], kept[name])]
    yield
    first = yield from closed.reading_first(record)
    wrong += ["clean"] * (not _identical(planes["clean"], first))
    if beside:
        extras = closed.extras(record.number)
        wrong += [name for name in beside if name not in extras or not _identical(layout.read_extra(str(path), name), extras[name])]
    if wrong:
        raise StoreError(f"{path}: its {wrong[0]} is not what the closed series has of projection {record.number}")


def _reading(guard: CrashGuard, path: Path) -> Generator[None, None, tuple[Record, Planes]]:
    return (yield from guard.pieces(path, layout.reading_projection(str(path))))


def _identical(a: Array, b: Array) -> bool:
    """Byte by byte, so that values that are no numbers count too."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bytes_a, bytes_b = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (a, b))
    return np.array_equal(bytes_a, bytes_b)
