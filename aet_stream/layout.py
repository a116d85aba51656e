"""Names inside our HDF5 files, and the record that stands beside every projection.

A projection file (`projections/000007.h5`) holds its pixels (`PLANES`) and, as attributes, the values of its `Record` (`COLUMNS`).
`series.h5` shows all of them as one series: Data Exchange for dxchange and tomopy, NXtomo by hard links, and `/aet` for what is ours.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from aet_stream import hdf5, pieces
from aet_stream.errors import NewerLayout, StoreError
from aet_stream.naming import SERIES_FILE as SERIES_FILE
from aet_stream.projection import Acquisition, Array, Drift, Quality, VisitKey
from aet_stream.tilts import SAME_TILT_DEG

LAYOUT_VERSION = 3
"""1: only the frames had checksums. 2: `content_sha256` in series.h5, `record_sha256` in a projection file, `crc32` beside extras.
3: something has been decided about the series. A version that knows nothing of it would count what is excluded, take up edition 1 again,
or call projections damaged because the one before them has another size."""
UNDECIDED_VERSION = 2
"""Of everything else that is written."""
#: Of whatever holds its own pixels: every HDF5 library since 1.8 reads it, MATLAB's before R2021b among them.
LIBVER = ("v108", "v108")
#: Of a master: virtual datasets came with HDF5 1.10.
LIBVER_VIRTUAL = ("v110", "v110")

PROJECTIONS = "projections"
EDITIONS = "editions"

CLEAN = "/exchange/data"
THETA = "/exchange/theta"
NEUTRAL = {"/exchange/data_white": 1, "/exchange/data_dark": 0}
"""What other programs divide by and subtract, and its value everywhere."""
RAW = "/aet/raw"
PER_PROJECTION = "/aet/projection"
ABOUT = "/aet/series"
APART = "/aet/apart"
"""Projections that are set aside and of another frame size than the series: by number, each a group like a projection file."""
NXTOMO = "/entry1/tomo_entry"

EDITION_CLEAN = "/clean"
"""In an edition's file: (n, y, x)."""
EDITION_ROWS = "/projection"
"""One value per row: which projection it is of, checksum, quality."""
EDITION_ABOUT = "/edition"
EDITION_EXTRA = "/maker"
"""What its maker wants kept beside."""

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Plane:
    """One image of every projection, beside the others."""

    name: str
    """Of its dataset in projection and segment files."""
    dataset: str
    """In series.h5."""
    dtype: str | None
    """None: as the detector wrote it."""
    fill: float
    """What plain readers see where a file has none."""

    @property
    def checksum(self) -> str:
        """Name of the column with the CRC-32 of each of its frames; -1 where there is none."""
        return f"{self.name}_crc32"

    def dtype_beside(self, raw: Array) -> np.dtype[Any]:
        """Its type in a series with such raw frames."""
        return np.dtype(self.dtype or raw.dtype)


#: All pixels that are kept. One more is one more line here, and a field of that name in `projection.Subtracted`, which the worker fills.
PLANES = (Plane("raw", RAW, None, 0), Plane("clean", CLEAN, "<f4", NAN))
SUBTRACTED = PLANES[1:]
"""Those that the worker answers with, all of float32."""

#: The pixels of one projection by the name of their plane, each (height, width).
Planes = Mapping[str, Array]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known about one stored projection. Written once; `COLUMNS` says under which names its values stand in our files."""

    number: int
    """Name of the projection file, and order of arrival."""
    series: str
    visit: VisitKey
    sha256: str
    """Of the raw pixels' bytes."""
    checksums: dict[str, int]
    """Plane -> CRC-32 of its pixels."""
    tilt_deg: float
    tilt_source: str
    """metadata, sidecar, filename or person."""
    tilt_candidates: str
    """JSON: every statement about the tilt that was found."""
    acquisition: Acquisition = Acquisition()
    drift: Drift = Drift()
    quality: Quality
    members: tuple[tuple[str, int], ...] = ()
    """(path, image) of each image, when several went into this projection."""
    orientation: str = ""
    """How the pixels were turned when they were read: `t` transposed, `y` and `x` flipped along that axis."""
    tilt_axis_deg: float = NAN
    """Where the tilt axis lies in these pixels, from +y towards -x; NaN: nobody says, so along y."""
    closed_at: float = NAN
    """Unix seconds when the source file took its final form."""
    settle_s: float = NAN
    read_s: float = NAN
    queue_s: float = NAN
    network_s: float = NAN
    attempts: int = 0
    """Readers or workers that died over this projection before it was stored."""
    worker: str = ""
    """Who subtracted its background; `HOST:NAME` on another computer."""
    software: str = ""
    config_sha256: str = ""
    watch_root: str = ""
    """The watched folder, links resolved: `path` counts from it."""

    @property
    def sources(self) -> tuple[tuple[str, int], ...]:
        """(path, image) of every image that went into the projection, the one that names it first."""
        return self.members or (self.visit.source,)


@dataclass(frozen=True, slots=True)
class Column:
    """One value of a record, under its name in our files: an attribute of a projection file, a dataset of series.h5."""

    name: str
    part: str
    """What of a record it belongs to, for example "quality"; empty: to the record itself."""
    field: str
    type: Any
    get: Callable[[Record], Any]
    """The value as it is written."""
    read: Callable[[Any], Any] | None
    """The value as it was, where it is written otherwise."""


#: Where the name in our files is another than that of the field.
_NAMES = {
    "acquisition.tilt_axis_deg": "tilt_axis_stated_deg",
    "drift.averaged": "frames_averaged",
    "drift.shifts_px": "frame_shifts_px",
    "drift.doubt_px": "drift_doubt_px",
}
#: Of what the instrument says, the tilt stands in `tilt_candidates`, word for word, and a remark in `flag`.
_ELSEWHERE = {f"acquisition.{name}" for name in ("tilt_deg", "tilt_raw", "tilt_unit", "remark")}


def _columns(kind: type[msgspec.Struct], part: str = "") -> Iterator[Column]:
    """A column for each value of a record, and of the structures that it nests."""
    for field in msgspec.structs.fields(kind):
        path = f"{part}.{field.name}" if part else field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _columns(field.type, field.name)
        elif path == "checksums":
            yield from (_checksum(plane) for plane in PLANES)
        elif path not in _ELSEWHERE:
            codec, value = _CODECS.get(path) or _CODECS.get(field.type), attrgetter(path)
            get = value if codec is None else lambda record, value=value, write=codec[0]: write(value(record))
            yield Column(_NAMES.get(path, field.name), part, field.name, field.type, get, codec and codec[1])


def _checksum(plane: Plane) -> Column:
    return Column(plane.checksum, "checksums", plane.name, int, lambda record: record.checksums.get(plane.name, -1), None)


def _json(value: tuple[Any, ...]) -> str:
    return msgspec.json.encode(value).decode() if value else ""


def _from_json(text: str) -> Any:
    return msgspec.json.decode(text) if text else ()


#: By path or type: how a value is written where HDF5 has none of its kind, and read again.
_CODECS: dict[Any, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    float | None: (lambda value: NAN if value is None else value, lambda value: None if value != value else value),
    "acquisition.scan_rotation_deg": (lambda each: each[0] if each else NAN, lambda first: () if first != first else (first,)),
    "drift.shifts_px": (_json, _from_json),
    "members": (_json, _from_json),
}
COLUMNS = {column.name: column for column in _columns(Record)}
_PARTS = {column.part for column in COLUMNS.values()}


def flat(record: Record) -> dict[str, Any]:
    """The values of a record by their names in our files."""
    return {name: column.get(record) for name, column in COLUMNS.items()}


def nested(values: Mapping[str, Any]) -> Record:
    """The record that has these values; those that are missing, because they were not known when it was written, have their default.

    Raises
    ------
    msgspec.ValidationError : one that every record has is missing, or is of another type
    """
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, value in values.items():
        column = COLUMNS[name]
        parts[column.part][column.field] = value if column.read is None else column.read(value)
    parts["checksums"] = {name: value for name, value in parts["checksums"].items() if value != -1}
    return msgspec.convert(parts.pop("") | parts, Record)


def same(a: Record, b: Record) -> bool:
    """Is the same written of both?"""
    return a == b or _said_sha256(flat(a)) == _said_sha256(flat(b))


def column(values: list[Any]) -> Array:
    """One value per projection as plain readers like it: fixed-length bytes (UTF-8), 64-bit numbers, uint8 for yes and no."""
    if isinstance(values[0], str):
        return np.array([value.encode() for value in values], dtype=bytes) if any(values) else np.zeros(len(values), "S1")
    return np.array(values, np.uint8) if isinstance(values[0], bool) else np.array(values)


def crc32(pixels: Array, before: int = 0) -> int:
    """Checksum of an array's bytes in C order, little-endian; with that of what comes before it, of both."""
    return zlib.crc32(np.ascontiguousarray(pixels).data, before)


def nbytes(record: Record, raw: Array) -> int:
    """Of the pixels of a projection whose raw frame has this shape and dtype."""
    return sum(raw.size * plane.dtype_beside(raw).itemsize for plane in PLANES if plane.name in record.checksums)


def form(raw: Array | h5py.Dataset) -> tuple[tuple[int, ...], str]:
    """((height, width), dtype) of a frame as acquired: that all rows of a series have in common."""
    return raw.shape, raw.dtype.str


def without_content(frame: Array | h5py.Dataset) -> Array:
    """(height, width): a frame of this shape and dtype, or of a stack of such, that takes no room."""
    return np.broadcast_to(frame.dtype.type(0), frame.shape[-2:])


def file_name(number: int) -> str:
    return f"{number:06d}.h5"


def projection_files(folder: Path) -> dict[int, Path]:
    """Number -> projection file of the folder of a series, in order; whatever else lies there is nobody's business."""
    numbers = [int(path.stem) for path in (folder / PROJECTIONS).glob("*.h5") if path.stem.isdecimal()]
    paths = {number: folder / PROJECTIONS / file_name(number) for number in sorted(numbers)}
    return {number: path for number, path in paths.items() if path.exists()}


def edition_file(number: int) -> str:
    return f"{number:02d}.h5"


def edition_files(folder: Path) -> dict[int, Path]:
    """Number -> file of each edition that the hub has taken over, in order."""
    numbers = sorted(int(path.stem) for path in (folder / EDITIONS).glob("*.h5") if path.stem.isdecimal())
    paths = {number: folder / EDITIONS / edition_file(number) for number in numbers}
    return {number: path for number, path in paths.items() if path.exists()}


def projection_image(record: Record, planes: Planes, extras: Planes | None = None, *, version: int = UNDECIDED_VERSION) -> bytes:
    """The bytes of a projection file. Made in memory, so that a full disk shows as a plain error with its number.

    Parameters
    ----------
    extras : what is kept beside a mean: `variance` (height, width) float32, or `frames` (n, height, width) as acquired

    Raises
    ------
    ValueError : HDF5 cannot hold a field of the record, such as a text with a NUL in it
    """
    with h5py.File("projection", "w", driver="core", backing_store=False, libver=LIBVER, block_size=1 << 16) as file:
        for name in record.checksums:
            file.create_dataset(name, data=planes[name])
        for name, pixels in (extras or {}).items():
            file.create_dataset(name, data=pixels).attrs["crc32"] = crc32(pixels)
        write_record(file, record, version)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def write_record(item: h5py.Group, record: Record, version: int = UNDECIDED_VERSION) -> None:
    """As attributes of a projection file, or of a group that stands for one.

    Raises
    ------
    ValueError : HDF5 cannot hold a field of the record, such as a text with a NUL in it
    """
    item.attrs["layout_version"] = version
    values = flat(record)
    for name, value in values.items():
        try:
            hdf5.describe(item, **{name: value})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} {value!r:.100}: {error}") from error
    item.attrs["record_sha256"] = _said_sha256(values)


def apart(file: h5py.File) -> dict[int, Record]:
    """Number -> record of each projection of another frame size that a series.h5 tells of.

    Raises
    ------
    StoreError : one is not what was written
    """
    return {int(name): read_record(group) for name, group in file[APART].items()} if APART in file else {}


def apart_planes(file: h5py.File, record: Record) -> Planes:
    """The pixels of one of them, from a closed series.

    Raises
    ------
    StoreError : they are not there, or not what was written
    """
    where = f"{APART}/{record.number:06d}"
    try:
        planes = {name: file[f"{where}/{name}"][()] for name in record.checksums}
    except (OSError, KeyError, RuntimeError) as error:
        raise StoreError(f"{file.filename}: {where} cannot be read: {error}") from error
    check_pixels(f"{file.filename} {where}", record, planes)
    return planes


def _said_sha256(values: dict[str, Any]) -> str:
    """Checksum of a record's fields, those that are known where it is written."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return hashlib.sha256("".join(f"{name}={plain[name]!r};" for name in sorted(plain)).encode()).hexdigest()


def read_record(file: h5py.Group) -> Record:
    """The record in an open projection file, or in a group that stands for one.

    Raises
    ------
    StoreError : an attribute is missing or of another type
    NewerLayout : a later version of this program wrote it
    """
    try:
        refuse_newer(file)
        there, values = hdf5.attributes(file), dict[str, Any]()
        for name in COLUMNS:
            if name not in there:
                continue  # written before this field was known: its default holds
            value = there[name]
            values[name] = value.item() if isinstance(value, np.generic) else value
        said = there.get("record_sha256")
        if said is None:
            whole = there["layout_version"] == 1
        elif not (whole := said == _said_sha256(values)):  # a later version may have written fields that this one does not know
            whole = said == _said_sha256({name: there[name] for name in there.keys() - {"record_sha256", "layout_version"}})
        if not whole:
            raise StoreError(f"{file.file.filename}: the record is not what was written (record_sha256)")
        return nested(values)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise StoreError(f"{file.file.filename}: no readable record: {error}") from error


def unreadable(error: Exception) -> str:
    """Why a file cannot be opened, in fewer words than HDF5's."""
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name the .h5 file in it"
    return "there is no such file" if isinstance(error, FileNotFoundError) else str(error)


def refuse_newer(file: h5py.Group) -> None:
    """Never touch what we may not understand.

    Raises
    ------
    NewerLayout : a later version of this program wrote the file
    """
    version = int(file.attrs.get("layout_version", 1))
    if version > LAYOUT_VERSION:
        raise NewerLayout(
            f"{file.file.filename} has layout {version}, this version knows {LAYOUT_VERSION}: use the aet_stream that wrote it"
        )


def row_of(file: h5py.File, row: int) -> tuple[Record, Planes]:
    """Record and pixels of one row of a closed series, checked against their checksums.

    Raises
    ------
    StoreError : they cannot be read, or are not what was written
    """
    try:
        values: dict[str, Any] = {}
        for name, column in COLUMNS.items():
            if f"{PER_PROJECTION}/{name}" in file:
                values[name] = _value(column, file[f"{PER_PROJECTION}/{name}"][row].item())
        record = nested(values)
        planes = {plane.name: file[plane.dataset][row] for plane in PLANES if plane.name in record.checksums}
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise StoreError(f"{file.filename}: row {row} cannot be read: {error}") from error
    check_pixels(f"{file.filename} row {row}", record, planes)
    return record, planes


def records_of(file: h5py.File) -> list[Record]:
    """The record of every row of an open series, as it is shown.

    Raises
    ------
    StoreError : they cannot be read
    """
    try:
        columns = {name: file[f"{PER_PROJECTION}/{name}"][()].tolist() for name in COLUMNS if f"{PER_PROJECTION}/{name}" in file}
        rows = (
            {name: _value(COLUMNS[name], each) for name, each in zip(columns, row, strict=True)}
            for row in zip(*columns.values(), strict=True)
        )
        return [nested(values) for values in rows]
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise StoreError(f"{file.filename}: its records cannot be read: {error}") from error


def _value(column: Column, written: Any) -> Any:
    """As it was, of what a dataset of series.h5 holds."""
    return written.decode() if isinstance(written, bytes) else bool(written) if column.type is bool else written


def check_pixels(where: str, record: Record, planes: Planes) -> None:
    """
    Raises
    ------
    StoreError : the pixels are not what was written
    """
    pieces.finished(checking_pixels(where, record, planes))


def checking_pixels(where: str, record: Record, planes: Planes) -> Generator[None]:
    """The same, piece by piece."""
    for name, expected in record.checksums.items():
        found = yield from pieces.crc32(planes[name])
        if found != expected:
            raise StoreError(f"{where}: the checksum of the {name} pixels is {found:08x}, written was {expected:08x}")


def spelled(value: Any) -> str:
    """The value of an attribute in words that are the same under every numpy, whose own `repr` is not: `5`, `np.int64(5)` since 2.0."""
    if isinstance(value, np.ndarray):
        return f"array({value.tolist()!r}, dtype={value.dtype})"
    if isinstance(value, np.bool_):
        return f"np.{bool(value)}_"
    if isinstance(value, np.generic):
        return f"np.{type(value).__name__}({_spelled_by_numpy_1(value)})"
    return repr(value)


def _spelled_by_numpy_1(value: Any) -> str:
    """As it stands in the checksums of files that were written under numpy 1, before `spelled` was."""
    if isinstance(value, np.number):
        return str(value)
    return repr(value.item()) if isinstance(value, np.generic) else spelled(value)


class Contents:
    """Checksum over all that a master says beside the frames, which have their own; the names of things have one from HDF5 itself."""

    def __init__(self, say: Callable[[Any], str] = spelled) -> None:
        self._say, self._parts = say, list[bytes]()

    def add(self, value: Any) -> Any:
        """Take note of a value on its way into the file; hands it back."""
        array = np.asarray(value.encode() if isinstance(value, str) else value)
        content = bytes(value, "utf-8") if isinstance(value, str) else value if isinstance(value, bytes) else array.tobytes()
        kind = "text" if isinstance(value, str | bytes) else f"{array.dtype.str}{array.shape}"
        self._parts.append(hashlib.sha256(kind.encode() + content).digest())
        return value

    def add_attributes(self, item: Any) -> None:
        """Text attributes lie in a heap without a checksum."""
        self.add_texts({key: value for key, value in hdf5.attributes(item).items() if key != "content_sha256"})

    def add_texts(self, attributes: Mapping[str, Any]) -> None:
        """The same of attributes on their way into the file, that are all text."""
        for key, value in attributes.items():
            self.add(f"{key}={self._say(value)}")

    def sha256(self) -> str:
        return hashlib.sha256(b"".join(sorted(self._parts))).hexdigest()

    @classmethod
    def of(cls, file: h5py.File, say: Callable[[Any], str] = spelled) -> str:
        """The same, from a file."""
        contents = cls(say)
        for item in hdf5.items(file):
            contents.add_attributes(item)
            if isinstance(item, h5py.Dataset) and len(item.shape) < 3:
                contents.add(hdf5.values(item))
        return contents.sha256()

    @classmethod
    def are(cls, file: h5py.File, written: str) -> bool:
        """Whether a file holds what was written, by its `content_sha256`."""
        return any(cls.of(file, say) == written for say in (spelled, _spelled_by_numpy_1))


def read_projection(path: str) -> tuple[Record, Planes]:
    """Record and pixels of a projection file, checked against their checksums.

    Raises
    ------
    StoreError : the file cannot be read, or its pixels are not what was written
    """
    return pieces.finished(reading_projection(path))


def reading_projection(path: str) -> Generator[None, None, tuple[Record, Planes]]:
    """The same, piece by piece."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            record, planes = read_record(file), dict[str, Array]()
            for name in record.checksums:
                planes[name] = yield from pieces.read(file[name])
                yield
            for name in file.keys() - planes.keys():
                if "crc32" in file[name].attrs and crc32(file[name][()]) != file[name].attrs["crc32"]:
                    raise StoreError(f"{path}: {name} is not what was written (checksum)")
    except (OSError, KeyError, RuntimeError) as error:
        raise StoreError(f"{path}: not a readable projection file: {error}") from error
    yield from checking_pixels(path, record, planes)
    return record, planes


def extras_of(path: str) -> list[str]:
    """What a projection file keeps beside its planes: `variance` or `frames` (`projection_image`); mostly nothing.

    Raises
    ------
    StoreError : it cannot be read
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return sorted(file.keys() - {plane.name for plane in PLANES})
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{path}: not a readable projection file: {error}") from error


def read_extra(path: str, name: str) -> Array:
    """One of them, as the file has it: `read_projection` has checked it.

    Raises
    ------
    StoreError : it cannot be read
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            pixels: Array = file[name][()]
            return pixels
    except (OSError, KeyError, RuntimeError) as error:
        raise StoreError(f"{path}: {name} cannot be read: {error}") from error


def counting(file: h5py.File, *, keep_excluded: bool = False) -> Array:
    """(n,) bool: the rows of an open `series.h5` that count: not blank, not superseded, not excluded unless they are to be kept."""
    group = file[PER_PROJECTION]
    names = ("blank", "superseded", *(["excluded"] if "excluded" in group and not keep_excluded else []))
    counts: Array = np.logical_and.reduce([group[name][()] == 0 for name in names])
    return counts


def editions_of(file: h5py.File) -> Array:
    """(n,) which edition each row of an open `series.h5` shows."""
    column = f"{PER_PROJECTION}/edition"
    found: Array = file[column][()] if column in file else np.ones(len(file[THETA]), np.int32)
    return found


def edition_shown(file: h5py.File) -> int:
    """The edition that an open `series.h5` shows, where it has the row."""
    return int(file[ABOUT].attrs.get("edition", 1)) if ABOUT in file else 1


def digest_of(clean_crc32: Array, tilts_deg: Array) -> str:
    """Names exactly these clean pixels at these tilts, row by row: of what a volume was made."""
    return hashlib.sha256(clean_crc32.tobytes() + tilts_deg.tobytes()).hexdigest()


def superseded(records: list[Record]) -> list[bool]:
    """Which records were followed by new pixels of the same source image, or by a mean that their image went into."""
    newest = {source: record.number for record in records for source in record.sources}
    return [newest[record.visit.source] != record.number for record in records]


def repeats(records: list[Record], left_out: list[bool] | None = None) -> list[int]:
    """How many earlier visits there were to the tilt of each projection; a second image at 0 degrees is deliberate, and has 1.

    Parameters
    ----------
    left_out : which do not count; None: those that were superseded
    """
    old, seen, counts = left_out or superseded(records), dict[float, int](), [0] * len(records)
    for row in acquisition_order(records):
        if not old[row]:
            tilt = round(records[row].tilt_deg / SAME_TILT_DEG)
            near = next((key for key in (tilt, tilt - 1, tilt + 1) if key in seen), tilt)
            counts[row] = seen[near] = seen.get(near, -1) + 1
    return counts


def acquisition_order(records: list[Record]) -> list[int]:
    """Rows in the order in which the images were taken: by the instrument's clock where every record has it, else as the files came."""
    for clock in ("acquired_utc", "acquired_local"):
        if all(getattr(record.acquisition, clock) for record in records):
            return sorted(range(len(records)), key=lambda row: (getattr(records[row].acquisition, clock), records[row].number))
    return sorted(range(len(records)), key=lambda row: (records[row].closed_at, records[row].visit.source))
