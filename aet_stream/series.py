"""Read a tilt series: the one way that notices missing, damaged or half-copied data instead of showing it as NaN or 0."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from aet_stream import edition, layout
from aet_stream.errors import AetError, StoreError
from aet_stream.projection import Array, Quality, sha256_of


class Series:
    """An open `series.h5`, live or closed. Frames are read one by one and checked against the checksums in the master."""

    def __init__(self, path: Path) -> None:
        """Open a series.

        Raises
        ------
        StoreError : the file is missing, unreadable or no tilt series of ours
        """
        self.path = path
        try:
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened as a tilt series: {layout.unreadable(error)}") from error
        try:
            layout.refuse_newer(self._file)
            for name in (layout.PER_PROJECTION, layout.CLEAN, layout.ABOUT):
                if name not in self._file:
                    raise StoreError(f"{path}: has no {name}; not a series written by aet-stream")
            if "closed_utc" not in self._file[layout.ABOUT].attrs:
                raise StoreError(f"{path}: {layout.ABOUT} has no closed_utc; not a series written by aet-stream")
            self.tilts_deg: Array = self._file[layout.THETA][()]
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            self._file.close()
            raise StoreError(f"{path}: damaged: {error}") from error
        except AetError:
            self._file.close()
            raise
        """(n,) float64 degrees, in order of arrival."""

    def __len__(self) -> int:
        return len(self.tilts_deg)

    def __enter__(self) -> Series:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        """True for the one contiguous file of a closed series."""
        return bool(self.about["closed_utc"])

    @property
    def about(self) -> dict[str, Any]:
        """What is known about the whole series."""
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in self._file[layout.ABOUT].attrs.items()}

    def has(self, name: str) -> bool:
        """Is there such a column?"""
        return f"{layout.PER_PROJECTION}/{name}" in self._file

    def column(self, name: str) -> Array:
        """One value per projection, for example `trust` or `path`; text as str."""
        values: Array = self._file[f"{layout.PER_PROJECTION}/{name}"][()]
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values

    def last_columns(self, rows: int) -> dict[str, Array]:
        """Every column of the last `rows` projections by name, in order of arrival; text as str."""
        columns: dict[str, Array] = {}
        for name, dataset in self._file[layout.PER_PROJECTION].items():
            if isinstance(dataset, h5py.Dataset) and dataset.shape == (len(self),):
                values = dataset[max(0, len(self) - rows) :]
                columns[name] = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
        return columns

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        height, width = self._file[layout.CLEAN].shape[1:]
        return int(height), int(width)

    def raw(self, row: int) -> Array:
        """(height, width) as acquired, detector counts, checked."""
        return self.plane("raw", row)

    def clean(self, row: int) -> Array:
        """(height, width) float32 detector counts without background, checked."""
        return self.plane("clean", row)

    def first(self, row: int) -> tuple[Array, Quality]:
        """(clean, figures) of edition 1 of a row, whichever is shown.

        Raises
        ------
        StoreError : it cannot be read
        """
        if self.edition_of(row) == edition.FIRST:
            record, planes = layout.row_of(self._file, row)
            return planes["clean"], record.quality
        number, folder = int(self.column("number")[row]), self.path.absolute().parent
        kept = folder / layout.EDITIONS / layout.edition_file(edition.FIRST)
        if kept.exists():
            with edition.Edition(kept) as first:
                if number in first.rows:
                    return first.clean(number), first.rows[number].quality
        record, planes = layout.read_projection(str(folder / layout.PROJECTIONS / layout.file_name(number)))
        return planes["clean"], record.quality

    def edition_of(self, row: int) -> int:
        """Which edition a row shows."""
        return int(self._editions()[row])

    @property
    def edition(self) -> int:
        """The edition that was chosen; rows that it does not have show edition 1 (the column `edition` says which)."""
        return int(self.about.get("edition", edition.FIRST))

    @property
    def counting(self) -> Array:
        """(n,) bool: rows that are not blank, superseded or excluded."""
        return layout.counting(self._file)

    @property
    def digest(self) -> str:
        """Names the pixels and tilts of all rows that count: a volume of others is outdated."""
        rows = np.flatnonzero(self.counting)
        return layout.digest_of(self.column("clean_crc32")[rows], self.tilts_deg[rows])

    @property
    def apart(self) -> list[int]:
        """Numbers of projections that are set aside and of another frame size, so that no row shows them; their files hold them.

        Raises
        ------
        StoreError : what is said of one is not what was written
        """
        return list(layout.apart(self._file))

    def planes(self, row: int) -> dict[str, Array]:
        """All pixels of one projection by the name of their plane, checked."""
        return {plane.name: self.plane(plane.name, row) for plane in layout.PLANES if self._has(plane, row)}

    def _has(self, plane: layout.Plane, row: int) -> bool:
        column = f"{layout.PER_PROJECTION}/{plane.checksum}"
        return column in self._file and int(self._file[column][row]) != -1

    def plane(self, name: str, row: int) -> Array:
        """(height, width) of one of the planes that `layout.PLANES` names, checked."""
        plane = next(plane for plane in layout.PLANES if plane.name == name)
        dataset = plane.dataset
        try:
            pixels: Array = self._file[dataset][row]
        except (OSError, KeyError, RuntimeError) as error:
            raise StoreError(f"{self.path}: row {row} of {dataset} cannot be read: {error}") from error
        expected = int(self._file[f"{layout.PER_PROJECTION}/{plane.checksum}"][row])
        if layout.crc32(pixels) != expected:
            hint = "" if self.closed else "; is the projections folder beside it?"
            raise StoreError(f"{self.path}: row {row} of {dataset} is missing or damaged (checksum){hint}")
        return pixels

    def doubts(self) -> Iterator[str]:
        """Everything that is wrong with this series, one line each; nothing when it is sound."""
        try:
            yield from self._doubts_about_all()
            yield from self._doubts_about_editions()
            rows = len(self)
            for row in range(rows):
                yield from self._doubts_of(row)
        except StoreError as error:
            yield str(error)
        except (OSError, KeyError, RuntimeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            yield f"{self.path} cannot be read: {error}"

    def _doubts_about_all(self) -> Iterator[str]:
        """What concerns no single row."""
        records = self.column("number")
        written = self._file[layout.ABOUT].attrs.get("content_sha256")
        if written is not None and not layout.Contents.are(self._file, written):
            yield "tilts, records or names are not what was written (content_sha256)"
        if written is None and self._file.attrs.get("layout_version", 1) > 1:
            yield "the checksum of its contents is missing (content_sha256)"
        if self.about["stored"] != len(self):
            yield f"{layout.ABOUT} says {self.about['stored']} projections, {layout.THETA} {len(self)}"
        if not np.array_equal(self.tilts_deg, self.column("tilt_deg")):
            yield f"{layout.THETA} and {layout.PER_PROJECTION}/tilt_deg differ"
        yield from self._doubts_about_files(np.concatenate([records, np.array(self.apart, records.dtype)]))
        shapes = {plane.dataset: self._file[plane.dataset].shape for plane in layout.PLANES if plane.dataset in self._file}
        for name, shape in shapes.items():
            if shape[0] != len(self):
                yield f"{name} has {shape[0]} rows, {layout.THETA} {len(self)}"
        if len(set(records)) != len(records):
            yield "two rows have the same number"
        if not np.isfinite(self.tilts_deg).all():
            yield f"{layout.THETA} is not finite in rows {np.flatnonzero(~np.isfinite(self.tilts_deg)).tolist()[:10]}"
        counts = self.column("superseded") == 0  # a file may come back to pixels that it has had before
        sources = list(zip(self.column("path")[counts], self.column("image")[counts], strict=True))
        if len(set(sources)) != len(sources):
            yield "one source image is stored twice, and both rows count"
        for name, value in layout.NEUTRAL.items():
            neutral = self._file[name]  # a damaged shape may be too large to read
            if neutral.shape != (1, *self.shape) or not np.all(neutral[()] == value):
                yield f"{name} is not {value} everywhere: other programs would change the projections by it"

    def _doubts_about_files(self, numbers: Array) -> Iterator[str]:
        """Projection files that an open series does not show, and segments that are not what they should be."""
        if self.closed:
            return
        # HDF5 also looks in the current folder: what is read from there is another series' file.
        raw = self._file[layout.RAW]
        sources = {Path(source.file_name) for source in raw.virtual_sources()} if raw.is_virtual else set()
        if missing := sorted(str(source) for source in sources if not (self.path.absolute().parent / source).is_file()):
            yield f"{len(missing)} of its {len(sources)} files are not beside it ({missing[0]} …): its folder projections belongs to it"
        shown_at = self.path.stat().st_mtime
        for number, path in layout.projection_files(self.path.parent).items():
            if number not in numbers and path.stat().st_mtime < shown_at:
                yield f"{path} is not shown in {self.path.name}"
            elif number in numbers:
                try:
                    layout.read_projection(str(path))
                except StoreError as error:
                    yield str(error)

    def _doubts_about_editions(self) -> Iterator[str]:
        """Editions that lie beside it: each whole, of these projections, and shown as it is."""
        rows = zip(edition.covered(self), self.column("clean_crc32").tolist(), self._editions().tolist(), strict=True)
        yield from self._doubts_about_first()
        apart = self.apart
        known = {row.number: (row, clean_crc32, number) for row, clean_crc32, number in rows}
        for number, path in layout.edition_files(self.path.parent).items():
            try:
                with edition.Edition(path) as found:
                    yield from found.doubts()
                    for each, row in found.rows.items():
                        if each in apart:
                            continue  # of another frame size than its rows by now
                        its, clean_crc32, shown = known.get(each, (None, -1, 0))
                        if its != row.covered:
                            yield f"{path}: projection {each} is not that of this series"
                        elif shown == number and clean_crc32 != row.clean_crc32:
                            yield f"projection {each} is shown as of edition {number}, and is not: {path} has another"
            except StoreError as error:
                yield str(error)

    def _doubts_about_first(self) -> Iterator[str]:
        """Of rows that show another edition, edition 1 is in a projection file or in a file of its own."""
        folder = self.path.parent
        first = folder / layout.EDITIONS / layout.edition_file(edition.FIRST)
        numbers = set(self.column("number")[self._editions() != edition.FIRST].tolist())
        gone = numbers - layout.projection_files(folder).keys() if (folder / layout.EDITIONS).is_dir() else set()
        if gone and first.exists():
            with contextlib.suppress(StoreError), edition.Edition(first) as found:
                gone -= found.rows.keys()
        if gone:
            yield f"edition 1 of {len(gone)} projections ({min(gone)} …) is neither in {first} nor in projection files"

    def _editions(self) -> Array:
        """(n,) which edition each row shows."""
        return layout.editions_of(self._file)

    def _averaged(self, row: int) -> bool:
        """Is this row the mean of several frames? Their checksum is then that of all of them."""
        name = f"{layout.PER_PROJECTION}/frames"
        return name in self._file and int(self._file[name][row]) > 1

    def _doubts_of(self, row: int) -> Iterator[str]:
        try:
            planes = self.planes(row)
        except StoreError as error:
            yield str(error)
            return
        for plane in layout.SUBTRACTED:
            pixels = planes.get(plane.name)
            if pixels is not None and (pixels.shape != planes["raw"].shape or not np.isfinite(pixels).all()):
                yield f"row {row}: {plane.name} has values that are not finite"
        if not self._averaged(row) and self.column("sha256")[row] != sha256_of(planes["raw"]):
            yield f"row {row}: raw is not what was read from {self.column('path')[row]}"
        if not self.column("model_sha256")[row]:
            yield f"row {row}: no record of the model that made it"
