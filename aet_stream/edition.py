"""Editions: one background for all projections of a series, as one closed file beside it (`<series>/editions/02.h5`).

Edition 1 is what the worker made when each projection came; it lies in the projection files. Every other one is made later by a child
process for a whole series at once, is never changed, and is taken over by the hub, which gives it its number:

    writing(...)  ->  editions/made_<key>.h5  ->  hand_over(...)  ->  the hub checks it, renames it to editions/02.h5, and may show it

In each, clean = raw - background. What the file says is covered by `content_sha256`, its pixels row by row by CRC-32.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import msgspec
import numpy as np

from aet_stream import __version__, durable, hdf5, layout, pieces
from aet_stream.errors import StoreError
from aet_stream.layout import LIBVER, Record
from aet_stream.projection import Array, Quality

FIRST = 1
"""What the worker made."""

_QUALITY = {name: column for name, column in layout.COLUMNS.items() if column.part == "quality"}
_MADE = "made_"
_IDENTITY = ("number", "sha256", "raw_crc32")


class Maker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who made an edition, and with what: the same maker of the same rows makes the same pixels."""

    made_by: str
    """`worker`, `reprocess` or the name of an estimator of whole series."""
    model: str
    model_sha256: str
    settings: dict[str, Any] = {}
    """All that decides the result beside the model and the raw pixels; nothing that does not."""

    @property
    def key(self) -> str:
        """Name of this maker: 16 hex digits."""
        said = json.dumps([self.made_by, self.model_sha256, self.settings], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


class Covered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which projection a row of an edition is of."""

    number: int
    sha256: str
    """Of its raw pixels, or of the frames that they are the mean of."""
    raw_crc32: int

    @classmethod
    def of(cls, record: Record) -> Covered:
        return cls(record.number, record.sha256, record.checksums["raw"])


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an edition says of one projection."""

    place: int
    """Row within the edition's file."""
    covered: Covered
    clean_crc32: int
    quality: Quality
    estimate: str = ""
    """Which of several estimates its maker took here, in the maker's words."""
    because: str = ""
    """And why."""

    def shown(self, record: Record) -> Record:
        """The record of its projection as this edition has it."""
        return msgspec.structs.replace(record, quality=self.quality, checksums={**record.checksums, "clean": self.clean_crc32})


class Draft:
    """An edition that is being written: rows in the order in which they were announced, and whatever else its maker wants kept."""

    def __init__(self, file: hdf5.Written, covered: Sequence[Covered]) -> None:
        self._file, self._covered = file, covered
        self._rows: list[Row] = []

    def row(self, clean: Array, quality: Quality, *, estimate: str = "", because: str = "") -> None:
        """The next row.

        Parameters
        ----------
        clean : (height, width) float32, counts, finite: raw - background
        estimate, because : which of several estimates was taken for this projection, and why

        Raises
        ------
        StoreError : more rows than were announced, another shape, or pixels that are not finite
        """
        pieces.finished(self.writing_row(clean, quality, estimate=estimate, because=because))

    def writing_row(self, clean: Array, quality: Quality, *, estimate: str = "", because: str = "") -> Generator[None]:
        """The same, piece by piece."""
        place, pixels = len(self._rows), np.ascontiguousarray(clean, "<f4")
        shape = self._file[layout.EDITION_CLEAN].shape
        if place >= shape[0] or pixels.shape != shape[1:] or not np.isfinite(pixels).all():
            raise StoreError(f"{self._file.path}: row {place} of {pixels.shape} does not belong into {shape}, or is not finite")
        yield from pieces.write(self._file[layout.EDITION_CLEAN], place, pixels)
        checksum = yield from pieces.crc32(pixels)
        self._rows.append(Row(place, self._covered[place], checksum, quality, estimate, because))
        self._file.check()
        durable.sync_now_and_then(self._file.path, place, pixels.nbytes)

    def extra(self, name: str, values: Any, **attributes: Any) -> None:
        """Something else that its maker wants kept, below `/maker`: a dataset by its path, for example "film/map_nm"; with a checksum."""
        dataset = self._file.create_dataset(f"{layout.EDITION_EXTRA}/{name}", data=values)
        dataset.attrs.update({**attributes, "crc32": _crc32(dataset)})

    def finish(self, series: str, maker: Maker) -> None:
        """Write what stands beside the pixels.

        Raises
        ------
        StoreError : rows are missing
        """
        rows = self._rows
        if len(rows) != len(self._covered):
            raise StoreError(f"{self._file.path}: {len(rows)} of {len(self._covered)} rows were written")
        columns = {name: [getattr(row.covered, name) for row in rows] for name in _IDENTITY}
        columns |= {"clean_crc32": [row.clean_crc32 for row in rows]}
        columns |= {name: [getattr(row.quality, column.field) for row in rows] for name, column in _QUALITY.items()}
        columns |= {name: [getattr(row, name) for row in rows] for name in ("estimate", "because")}
        group = self._file.create_group(layout.EDITION_ROWS)
        for name, values in columns.items():
            group.create_dataset(name, data=layout.column(values))
        about = self._file.create_group(layout.EDITION_ABOUT)
        about.attrs.update(
            series=series,
            made_by=maker.made_by,
            model=maker.model,
            model_sha256=maker.model_sha256,
            settings=json.dumps(maker.settings, sort_keys=True),
            key=maker.key,
            rows=len(rows),
            made_at=time.time(),
            software=f"aet_stream {__version__}",
        )
        self._file.attrs["layout_version"] = layout.UNDECIDED_VERSION
        about.attrs["content_sha256"] = layout.Contents.of(self._file)


@contextmanager
def writing(
    folder: Path, series: str, maker: Maker, covered: Sequence[Covered], shape: tuple[int, int], *, target: Path | None = None
) -> Iterator[Draft]:
    """Make an edition of a series; when the block ends well it lies, whole, synced and read back, under `made_path`.

    Parameters
    ----------
    folder : of the series, where its series.h5 is
    covered : of each row that will be given, in that order; at least one
    shape : (height, width)
    target : default: `made_path`

    Raises
    ------
    StoreError : rows are missing, or it does not read back as it was written
    OutputFull : the disk does not take it
    """
    target = target or made_path(folder, maker.key)
    durable.make_folder(target.parent)
    durable.remove_dead(target)
    with durable.replacing(target, "made") as draft:
        with drafting(draft, series, maker, covered, shape) as written:
            yield written
        for _ in reading_back(draft):
            pass


@contextmanager
def drafting(path: Path, series: str, maker: Maker, covered: Sequence[Covered], shape: tuple[int, int]) -> Iterator[Draft]:
    """The same without any care for the name: the file is synced when the block ends."""
    with hdf5.writing(path, libver=LIBVER) as file:
        hdf5.frames(file, layout.EDITION_CLEAN, (len(covered), *shape), np.dtype("<f4"), np.nan)
        written = Draft(file, covered)
        yield written
        written.finish(series, maker)
    durable.sync_file(path)


def reading_back(path: Path) -> Generator[None]:
    """Check an edition's file whole; yields after every row.

    Raises
    ------
    StoreError : something in it is not what was written
    """
    with Edition(path) as edition:
        for doubt in edition.checking():
            if doubt:
                raise StoreError(doubt)
            yield


def made_path(folder: Path, key: str) -> Path:
    """Where a finished edition of the maker with this key waits for the hub."""
    return folder / layout.EDITIONS / f"{_MADE}{key}.h5"


def made(folder: Path) -> list[str]:
    """Keys of the finished editions that wait for the hub."""
    return sorted(path.stem.removeprefix(_MADE) for path in (folder / layout.EDITIONS).glob(f"{_MADE}*.h5"))


@dataclass(frozen=True, slots=True)
class About:
    """What an edition says of itself."""

    series: str
    made_by: str
    model: str
    model_sha256: str
    settings: dict[str, Any]
    key: str
    made_at: float
    """Unix seconds."""
    software: str
    content_sha256: str


class Edition:
    """An edition's file, open for reading. What it says beside its pixels has been checked, those are checked row by row."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises
        ------
        StoreError : it is missing, unreadable, damaged or none
        NewerLayout : a later version of this program wrote it
        """
        self.path = path
        self.number = int(path.stem) if path.stem.isdecimal() else 0
        """0: the hub has not taken it over yet."""
        try:
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened as an edition: {layout.unreadable(error)}") from error
        with ExitStack() as given_back:
            given_back.enter_context(self._file)
            try:
                layout.refuse_newer(self._file)
                self.about = self._read_about()
                self.rows: dict[int, Row] = {row.covered.number: row for row in self._read_rows()}
                """By the number of the projection."""
            except (OSError, KeyError, RuntimeError, TypeError, ValueError, msgspec.DecodeError) as error:
                raise StoreError(f"{path}: not a readable edition: {error}") from error
            given_back.pop_all()

    def _read_about(self) -> About:
        attributes = dict(self._file[layout.EDITION_ABOUT].attrs)
        if not layout.Contents.are(self._file, attributes.pop("content_sha256")):
            raise StoreError(f"{self.path}: what it says is not what was written (content_sha256)")
        settings, rows = json.loads(attributes.pop("settings")), int(attributes.pop("rows"))
        if self._file[layout.EDITION_CLEAN].shape[0] != rows:
            raise StoreError(f"{self.path}: {self._file[layout.EDITION_CLEAN].shape[0]} rows of pixels, {rows} were written")
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
        sha256 = str(self._file[layout.EDITION_ABOUT].attrs["content_sha256"])
        return About(**plain, settings=settings, content_sha256=sha256)

    def _read_rows(self) -> Iterator[Row]:
        columns = {name: dataset[()].tolist() for name, dataset in self._file[layout.EDITION_ROWS].items()}
        for place in range(self._file[layout.EDITION_CLEAN].shape[0]):
            said = {name: value[place].decode() if isinstance(value[place], bytes) else value[place] for name, value in columns.items()}
            quality = {_QUALITY[name].field: said[name] for name in _QUALITY.keys() & said.keys()}
            quality["blank"] = bool(quality.get("blank"))
            covered = Covered(said["number"], said["sha256"], said["raw_crc32"])
            yield Row(place, covered, said["clean_crc32"], Quality(**quality), said["estimate"], said["because"])

    def __enter__(self) -> Edition:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        height, width = self._file[layout.EDITION_CLEAN].shape[1:]
        return int(height), int(width)

    def covers(self, record: Record) -> bool:
        """Has it a row of exactly this projection?"""
        row = self.rows.get(record.number)
        return row is not None and row.covered == Covered.of(record)

    def clean(self, number: int) -> Array:
        """(height, width) float32, counts, checked; `number`: of the projection.

        Raises
        ------
        StoreError : it cannot be read, or is not what was written
        """
        return pieces.finished(_reading_frame(self._file, self.rows[number]))

    def extra(self, name: str) -> Array:
        """What its maker has kept under this name below `/maker`, checked.

        Raises
        ------
        StoreError : it cannot be read, or is not what was written
        """
        try:
            dataset = self._file[f"{layout.EDITION_EXTRA}/{name}"]
            if _crc32(dataset) != dataset.attrs["crc32"]:
                raise StoreError(f"{self.path}: {name} is not what was written (checksum)")
            values: Array = dataset[()]
        except (OSError, KeyError, RuntimeError) as error:
            raise StoreError(f"{self.path}: {name} cannot be read: {error}") from error
        return values

    def extras(self) -> list[str]:
        """Names of all that its maker has kept."""
        names: list[str] = []
        if layout.EDITION_EXTRA in self._file:
            self._file[layout.EDITION_EXTRA].visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return names

    def checking(self) -> Generator[str | None]:
        """What is wrong with each row's pixels, and with each thing that its maker has kept, piece by piece; None: nothing."""
        for number, row in self.rows.items():
            try:
                pixels = yield from _reading_frame(self._file, row)
                finite = np.isfinite(pixels).all()
                yield None if finite else f"{self.path}: projection {number} has values that are not finite"
            except StoreError as error:
                yield str(error)
        for name in self.extras():
            try:
                self.extra(name)
                yield None
            except StoreError as error:
                yield str(error)

    def doubts(self) -> list[str]:
        """Everything that is wrong with it; nothing when it is sound."""
        return [doubt for doubt in self.checking() if doubt]


def reading_frame(path: Path, row: Row) -> Generator[None, None, Array]:
    """(height, width) float32, counts: one row of an edition whose `rows` are known, checked; piece by piece.

    Raises
    ------
    StoreError : it cannot be read, or is not what was written
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return (yield from _reading_frame(file, row))
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened as an edition: {layout.unreadable(error)}") from error


def _reading_frame(file: h5py.File, row: Row) -> Generator[None, None, Array]:
    try:
        pixels = yield from pieces.read(file[layout.EDITION_CLEAN], row.place)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise StoreError(f"{file.filename}: row {row.place} cannot be read: {error}") from error
    if (yield from pieces.crc32(pixels)) != row.clean_crc32:
        raise StoreError(f"{file.filename}: row {row.place} is not what was written (checksum)")
    return pixels


class Columns(Protocol):
    """An open series (`series.Series`)."""

    def column(self, name: str) -> Array: ...


def covered(series: Columns) -> list[Covered]:
    """Every projection of a series, row by row: what an edition of it may cover."""
    columns = [series.column(name).tolist() for name in _IDENTITY]
    return [Covered(*values) for values in zip(*columns, strict=True)]


def find(folder: Path, maker: Maker, covered: Sequence[Covered]) -> Path | None:
    """An edition of this maker that has all these projections, taken over or waiting to be; the newest one of them.

    Parameters
    ----------
    folder : of the series
    """
    wanted = {each.number: each for each in covered}
    for path in [made_path(folder, maker.key), *reversed(layout.edition_files(folder).values())]:
        try:
            with Edition(path) as edition:
                has = {number: row.covered for number, row in edition.rows.items()}
                if edition.about.key == maker.key and wanted.items() <= has.items():
                    return path
        except StoreError:
            continue  # none, or a damaged one: as good as none
    return None


def hand_over(output_root: Path, series: str, maker: Maker, *, use: bool, beat: Callable[[], None] = lambda: None) -> int:
    """Have the hub take over a finished edition; returns its number, once it is taken over and, with `use`, shown.

    Done already, it returns at once.

    Parameters
    ----------
    use : show it in series.h5 from now on
    beat : called now and then while the hub works

    Raises
    ------
    NotRunning : nobody answers; the finished file waits, and is taken over at the next start
    AetError : the hub refuses it, and why
    """
    from aet_stream.transport import ask_until_done

    return int(ask_until_done(output_root, "edition", {"series": series, "key": maker.key, "use": use}, beat=beat)["edition"])


def _crc32(dataset: h5py.Dataset) -> int:
    """Of all its values; a large one is read slab by slab."""
    if dataset.ndim < 2:
        return zlib.crc32(np.ascontiguousarray(dataset[()]).tobytes())
    value = 0
    for slab in dataset:
        value = zlib.crc32(np.ascontiguousarray(slab).tobytes(), value)
    return value
