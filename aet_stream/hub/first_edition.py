"""The file of edition 1, `editions/01.h5`: what lets a closed series show another edition, and its projection files go."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from aet_stream import durable, edition, failpoints
from aet_stream.edition import Covered, Edition, Maker
from aet_stream.errors import StoreError
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.layout import Planes, Record


def holds(path: Path, guard: CrashGuard, records: Sequence[Record], extras: Iterable[str] = ()) -> bool:
    """Does the file hold these as they were stored, and beside them what has these names?"""
    try:
        with guard.reading(path), Edition(path) as first:
            rows = (first.covers(record) and first.rows[record.number].clean_crc32 == record.checksums["clean"] for record in records)
            return all(rows) and set(extras) <= set(first.extras())
    except StoreError:
        return False


def write(
    path: Path,
    series: str,
    records: Sequence[Record],
    shape: tuple[int, int],
    reading: Callable[[Record], Generator[None, None, Planes]],
    extras: Callable[[], Iterable[tuple[int, Planes]]],
) -> Generator[None]:
    """Write it anew, read it back, and put it in place; yields after every row.

    Parameters
    ----------
    shape : (height, width)
    reading : the planes of a projection as they were stored, checked
    extras : projections by their numbers, with what is kept beside each

    Raises
    ------
    StoreError : what is to be written cannot be read, or does not read back
    OSError : the disk does not take it
    """
    draft, qualities = durable.temporary(path), [record.quality for record in records]
    maker = Maker("worker", _common([each.model for each in qualities]), _common([each.model_sha256 for each in qualities]))
    try:
        durable.make_folder(path.parent)
        failpoints.reach("first.begin", draft)
        with edition.drafting(draft, series, maker, [Covered.of(record) for record in records], shape) as written:
            for record in records:
                planes = yield from reading(record)
                yield from written.writing_row(planes["clean"], record.quality)
                failpoints.reach("first.frame", draft)
                yield
            for number, planes in extras():
                for name, pixels in planes.items():
                    written.extra(extra_name(number, name), pixels)
                yield
        failpoints.reach("first.written", draft)
        yield from edition.reading_back(draft)
        failpoints.reach("first.checked", draft)
        durable.put_in_place(draft, path, "first")
    finally:
        draft.unlink(missing_ok=True)


def extra_name(number: int, name: str) -> str:
    """Of what is kept beside a projection, within the file."""
    return f"{number:06d}/{name}"


def _common(values: list[str]) -> str:
    """What all say; empty where they differ."""
    return values[0] if len(set(values)) == 1 else ""
