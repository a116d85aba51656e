"""What a closed series has of its projections as they were stored, without their own files: in `series.h5` and `editions/01.h5`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import h5py
import numpy as np

from aet_stream import edition, layout, pieces
from aet_stream.edition import FIRST, Edition
from aet_stream.errors import StoreError
from aet_stream.hub import first_edition
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.layout import PER_PROJECTION, PLANES, SERIES_FILE, Planes, Record
from aet_stream.projection import Array
from aet_stream.readers import path_stamp


class ClosedFile:
    """Projections as their files have them: edition 1, whichever is shown."""

    def __init__(self, folder: Path, guard: CrashGuard) -> None:
        """Look at a closed series.

        Raises
        ------
        StoreError : it is not closed, or what it says is not what was written
        """
        self.path = folder / SERIES_FILE
        self.first_path = folder / layout.EDITIONS / layout.edition_file(FIRST)
        self._guard = guard
        self._first: tuple[str, dict[int, edition.Row], list[str]] = ("", {}, [])
        self.rows: dict[int, tuple[Record, Array]] = {}
        """By number: the record of edition 1, and a frame of its shape and dtype without content."""
        self.apart: dict[int, tuple[Record, Array]] = {}
        """The same of what no row can show."""
        self.complaints: list[str] = []
        """Why of some row nobody can say what edition 1 of it is."""
        try:
            with guard.reading(self.path), h5py.File(self.path, "r", locking=False) as file:
                self._look(file)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise StoreError(f"{self.path}: not a readable closed series: {error}") from error

    def _look(self, file: h5py.File) -> None:
        about = file[layout.ABOUT].attrs
        if not about["closed_utc"] or any(file[plane.dataset].is_virtual for plane in PLANES):
            raise StoreError(f"{self.path}: the series is open")
        if "content_sha256" in about and not layout.Contents.are(file, about["content_sha256"]):
            raise StoreError(f"{self.path}: tilts or records are not what was written (content_sha256)")
        frame = layout.without_content(file[layout.RAW])
        for record, its in zip(layout.records_of(file), layout.editions_of(file), strict=True):
            try:
                self.rows[record.number] = (record if its == FIRST else self._row(record).shown(record), frame)
            except StoreError as error:
                self.complaints.append(str(error))
        for number, record in layout.apart(file).items():
            self.apart[number] = (record, layout.without_content(file[f"{layout.APART}/{number:06d}/raw"]))

    @property
    def known(self) -> dict[int, tuple[Record, Array]]:
        """All of them, in order of their numbers."""
        return dict(sorted((self.rows | self.apart).items()))

    def reading(self, record: Record) -> Generator[None, None, Planes]:
        """The pixels of one of them, checked, piece by piece.

        Raises
        ------
        StoreError : they cannot be read, or are not what was written
        """
        planes = yield from self._guard.pieces(self.path, self._reading(record))
        if "clean" in record.checksums and "clean" not in planes:
            planes = {**planes, "clean": (yield from self.reading_first(record))}
        yield from layout.checking_pixels(f"{self.path} projection {record.number}", record, planes)
        return planes

    def _reading(self, record: Record) -> Generator[None, None, Planes]:
        """What `series.h5` itself has of it."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                if f"{layout.APART}/{record.number:06d}" in file:
                    return layout.apart_planes(file, record)
                row = int(np.flatnonzero(file[f"{PER_PROJECTION}/number"][()] == record.number)[0])
                shown, planes = layout.editions_of(file)[row] == FIRST, dict[str, Array]()
                for plane in PLANES:
                    if plane.name in record.checksums and (shown or plane.name != "clean"):
                        planes[plane.name] = yield from pieces.read(file[plane.dataset], row)
                        yield
        except (OSError, KeyError, IndexError, RuntimeError) as error:
            raise StoreError(f"{self.path}: projection {record.number} cannot be read: {error}") from error
        return planes

    def reading_first(self, record: Record) -> Generator[None, None, Array]:
        """(height, width) float32, counts, checked, piece by piece: what the file of edition 1 has of a row.

        Raises
        ------
        StoreError : it cannot be read, or is not what was written
        """
        row = self._row(record)
        return (yield from self._guard.pieces(self.first_path, edition.reading_frame(self.first_path, row)))

    def extras(self, number: int) -> Planes:
        """What its projection file had beside its planes, checked.

        Raises
        ------
        StoreError : it cannot be read, or is not what was written
        """
        beginning = first_edition.extra_name(number, "")
        names = [name for name in self._rows_of_first()[1] if name.startswith(beginning)]
        if not names:
            return {}
        with self._guard.reading(self.first_path), Edition(self.first_path) as first:
            return {name.removeprefix(beginning): first.extra(name) for name in names}

    def doubts(self) -> Iterator[str]:
        """What is wrong with the pixels of each projection, one after the other; empty: nothing."""
        for record, _ in self.known.values():
            try:
                pieces.finished(self.reading(record))
                yield ""
            except StoreError as error:
                yield str(error)

    def _row(self, record: Record) -> edition.Row:
        """Of the file of edition 1.

        Raises
        ------
        StoreError : it has none of this projection
        """
        row = self._rows_of_first()[0].get(record.number)
        if row is None or row.covered != edition.Covered.of(record):
            raise StoreError(f"{self.first_path}: has no projection {record.number}, and {SERIES_FILE} shows another edition of it")
        return row

    def _rows_of_first(self) -> tuple[dict[int, edition.Row], list[str]]:
        """(rows, names of what is kept beside them) of the file of edition 1 as it is now; nothing: there is none that can be read."""
        stamp = path_stamp(self.first_path)
        if stamp != self._first[0]:
            rows, names = dict[int, edition.Row](), list[str]()
            try:
                with self._guard.reading(self.first_path), Edition(self.first_path) as first:
                    rows, names = first.rows, first.extras()
            except StoreError as error:
                self.complaints.append(str(error))
            self._first = (stamp, rows, names)
        return self._first[1], self._first[2]
