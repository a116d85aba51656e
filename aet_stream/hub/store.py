"""One series on disk, and the commit protocol.

A projection is stored once its file has its final name and the folder is synced. Then `series.h5` is rewritten to show it. Then, and only
then, the ledger and the world hear of it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import h5py
import msgspec
import numpy as np

from aet_stream import durable, layout
from aet_stream.errors import OutputFull, StoreError
from aet_stream.hub.master import About, Source, write_contiguous, write_virtual
from aet_stream.layout import PROJECTIONS, SERIES_FILE, Record, crc32
from aet_stream.projection import Array

logger = logging.getLogger(__name__)

Stored = tuple[Record, Array, Array] | tuple[Record, Array, Array, dict[str, Array]]

_SEGMENT = re.compile(r"segment_(\d{6})_(\d{6})\.h5")


class SeriesStore:
    """The only writer of one series folder."""

    def __init__(self, folder: Path, *, fold_rows: int) -> None:
        self.folder = folder
        self.name = folder.name
        self.records: list[Record] = []
        self._fold_rows = fold_rows
        self._segments: list[tuple[int, int]] = []
        """(first, end) positions in `records` that a segment file holds."""
        self._frame: Array | None = None
        """A raw frame without content: shape and dtype of the series."""

    @property
    def next_number(self) -> int:
        return self.records[-1].number + 1 if self.records else 0

    def misfit(self, raw: Array) -> str:
        """Why `raw` cannot be a row of this series, or an empty string."""
        if self._frame is None or (raw.shape == self._frame.shape and raw.dtype == self._frame.dtype):
            return ""
        return (
            f"{raw.shape[0]} x {raw.shape[1]} px of {raw.dtype}, but the series has "
            f"{self._frame.shape[0]} x {self._frame.shape[1]} px of {self._frame.dtype}: put it into a folder of its own"
        )

    # -- commit -----------------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Stored]) -> int:
        """Store (record, raw, clean) durably, as many as the disk takes; returns how many. A fourth part is kept beside the pixels.

        The first missing one did not fit: keep it and try again later.
        """
        (self.folder / PROJECTIONS).mkdir(parents=True, exist_ok=True)
        drafts: list[Path] = []
        try:
            for record, raw, clean, *extras in batch:
                path = self.folder / PROJECTIONS / layout.file_name(record.number)
                with durable.disk_errors(path):
                    durable.write_synced(durable.temporary(path), layout.projection_image(record, raw, clean, *extras))
                drafts.append(path)
        except OutputFull as error:
            logger.warning("cannot store: %s", error)
        for path in drafts:
            durable.temporary(path).replace(path)
        if drafts:
            durable.sync_folder(self.folder / PROJECTIONS)  # from here on they are stored, whatever happens
            self.records += [stored[0] for stored in batch[: len(drafts)]]
            self._frame = np.broadcast_to(batch[0][1].dtype.type(0), batch[0][1].shape)
        return len(drafts)

    def write_master(self, about: About) -> None:
        """Show all stored projections in `series.h5`."""
        if self._frame is not None:
            write_virtual(self.folder, self.records, self._sources(), self._frame, about)

    def _sources(self) -> list[Source]:
        sources = [Source(f"{PROJECTIONS}/{layout.file_name(record.number)}") for record in self.records]
        for first, end in self._segments:
            name = f"{PROJECTIONS}/segment_{first:06d}_{end:06d}.h5"
            sources[first:end] = [Source(name, frame, end - first) for frame in range(end - first)]
        return sources

    # -- closing ----------------------------------------------------------------------------------------------------------------

    def read(self, row: int) -> tuple[Array, Array]:
        """Raw and clean of one row from its projection file, checked."""
        record = self.records[row]
        stored, raw, clean = layout.read_projection(str(self.folder / PROJECTIONS / layout.file_name(record.number)))
        if stored != record and not _same(stored, record):
            raise StoreError(f"{self.folder}: projection {record.number} is not the one that was stored")
        return raw, clean

    def close(self, about: About) -> Generator[None]:
        """Make `series.h5` one contiguous, verified file; yields often, so that the hub can go on with other things."""
        if self._frame is None:
            return
        draft = durable.temporary(self.folder / SERIES_FILE)
        try:
            with durable.disk_errors(draft):
                yield from write_contiguous(draft, list(self.records), self.read, self._frame, about)
                draft.replace(self.folder / SERIES_FILE)
                durable.sync_folder(self.folder)
        finally:
            draft.unlink(missing_ok=True)

    def fold(self) -> Generator[None]:
        """Fold the oldest single files into a segment, so that `series.h5` never spans too many files; yields often."""
        first = self._segments[-1][1] if self._segments else 0
        end = first + self._fold_rows
        path = self.folder / PROJECTIONS / f"segment_{first:06d}_{end:06d}.h5"
        draft = durable.temporary(path)
        try:
            with durable.disk_errors(path):
                yield from self._write_segment(draft, first, end)
                draft.replace(path)
                durable.sync_folder(path.parent)
            self._segments.append((first, end))
        finally:
            draft.unlink(missing_ok=True)

    def needs_folding(self) -> bool:
        folded = self._segments[-1][1] if self._segments else 0
        return len(self.records) - folded >= 2 * self._fold_rows

    def _write_segment(self, draft: Path, first: int, end: int) -> Generator[None]:
        numbers = [record.number for record in self.records[first:end]]
        raw, clean = self.read(first)
        with h5py.File(draft, "w", libver=layout.LIBVER) as file:
            file.attrs["numbers"] = numbers
            raws = file.create_dataset("raw", (end - first, *raw.shape), raw.dtype)
            cleans = file.create_dataset("clean", (end - first, *clean.shape), clean.dtype)
            for frame in range(end - first):
                raws[frame], cleans[frame] = self.read(first + frame)
                yield
        durable.sync_file(draft)
        with h5py.File(draft, "r") as file:
            for frame, record in enumerate(self.records[first:end]):
                if crc32(file["raw"][frame]) != record.raw_crc32 or crc32(file["clean"][frame]) != record.clean_crc32:
                    raise StoreError(f"{draft}: frame {frame} does not read back as it was written")
                yield

    # -- recovery ---------------------------------------------------------------------------------------------------------------

    def numbers_on_disk(self) -> list[int]:
        """Which projection files there are; their content is not looked at."""
        folder = self.folder / PROJECTIONS
        return sorted(int(path.stem) for path in folder.glob("[0-9]*.h5")) if folder.is_dir() else []

    def remove_drafts(self) -> None:
        """Remove what a killed hub was writing; a reconstruction's draft is not ours."""
        for path in (*self.folder.glob(f".{SERIES_FILE}.*.tmp"), *(self.folder / PROJECTIONS).glob(".*.tmp")):
            path.unlink(missing_ok=True)

    def load(self, known: set[int], aside: Path) -> None:
        """Take up what is on disk. Files that the ledger does not know are read whole; damaged ones are moved to `aside`."""
        self.records, self._segments = [], []
        for number in self.numbers_on_disk():
            path = self.folder / PROJECTIONS / layout.file_name(number)
            try:
                self.records.append(self._load_one(path, whole=number not in known))
            except StoreError as error:
                aside.mkdir(parents=True, exist_ok=True)
                target = aside / f"{self.name}-{path.name}-{time.time_ns()}"
                path.replace(target)
                logger.error("%s; moved to %s, its source will be read again", error, target)
        self._load_segments()

    def _load_one(self, path: Path, *, whole: bool) -> Record:
        if whole:
            record, raw, _ = layout.read_projection(str(path))
            shape, dtype = raw.shape, raw.dtype
        else:
            try:
                with h5py.File(path, "r", locking=False) as file:
                    record, shape, dtype = layout.read_record(file), file["raw"].shape, file["raw"].dtype
            except (OSError, KeyError, RuntimeError) as error:
                raise StoreError(f"{path}: not a readable projection file: {error}") from error
        if record.number != int(path.stem):
            raise StoreError(f"{path}: holds projection {record.number}")
        self._frame = np.broadcast_to(dtype.type(0), shape)
        return record

    def _load_segments(self) -> None:
        """Use segments that still match; anything else about them is rebuilt from the projection files."""
        for path in sorted((self.folder / PROJECTIONS).glob("segment_*.h5")):
            match = _SEGMENT.fullmatch(path.name)
            first, end = (int(match[1]), int(match[2])) if match else (-1, -1)
            expected = [record.number for record in self.records[first:end]]
            try:
                with h5py.File(path, "r") as file:
                    fits = end <= len(self.records) and list(file.attrs["numbers"]) == expected
            except (OSError, KeyError):
                fits = False
            if fits and first == (self._segments[-1][1] if self._segments else 0):
                self._segments.append((first, end))

    def master_numbers(self) -> list[int]:
        """Which projections the present `series.h5` shows; empty when it is missing or damaged."""
        try:
            with h5py.File(self.folder / SERIES_FILE, "r", locking=False) as file:
                return [int(number) for number in file[f"{layout.PER_PROJECTION}/number"][()]]
        except (OSError, KeyError, RuntimeError):
            return []

    def master_is_closed(self) -> bool:
        """True when `series.h5` is the one contiguous file of a closed series."""
        try:
            with h5py.File(self.folder / SERIES_FILE, "r", locking=False) as file:
                return bool(file[layout.ABOUT].attrs["closed_utc"])
        except (OSError, KeyError, RuntimeError):
            return False


def _same(a: Record, b: Record) -> bool:
    """Equal, with NaN equal to NaN."""
    return msgspec.json.encode(a) == msgspec.json.encode(b)
