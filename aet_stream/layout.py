"""Names inside our HDF5 files, and the record that stands beside every projection.

A projection file (`projections/000007.h5`) holds `/raw` and `/clean` and the fields of `Record` as attributes. `series.h5` shows all of
them as one series: Data Exchange for dxchange and tomopy, NXtomo by hard links, and `/aet` for what is ours.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from aet_stream.errors import NewerLayout, StoreError
from aet_stream.projection import Array

LAYOUT_VERSION = 2
"""1: only the frames had checksums. 2: `content_sha256` in series.h5, `record_sha256` in a projection file, `crc32` beside extras."""
#: Readable by every HDF5 library since 1.10, which virtual datasets need anyway.
LIBVER = ("v110", "v110")

PROJECTIONS = "projections"
SERIES_FILE = "series.h5"

CLEAN = "/exchange/data"
THETA = "/exchange/theta"
NEUTRAL = {"/exchange/data_white": 1, "/exchange/data_dark": 0}
"""What other programs divide by and subtract, and its value everywhere."""
RAW = "/aet/raw"
PER_PROJECTION = "/aet/projection"
ABOUT = "/aet/series"
NXTOMO = "/entry1/tomo_entry"

NAN = float("nan")
SAME_TILT_DEG = 0.1
"""Visits within this are visits to one tilt."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known about one stored projection. Written once; every field becomes one dataset under /aet/projection."""

    number: int
    """Name of the projection file, and order of arrival."""
    series: str
    path: str
    """Source file, relative to the watched folder."""
    image: int
    stamp: str
    """State of the source file when it was read."""
    sha256: str
    """Of the raw pixels' bytes."""
    raw_crc32: int
    clean_crc32: int
    tilt_deg: float
    tilt_source: str
    """metadata, sidecar, filename or person."""
    tilt_candidates: str
    """JSON: every statement about the tilt that was found."""
    pixel_size_nm: float = NAN
    dwell_time_s: float = NAN
    acquired_utc: str = ""
    detector: str = ""
    microscope: str = ""
    reader: str = ""
    tilt_beta_deg: float = NAN
    acquired_local: str = ""
    """ISO 8601 without zone, where only the instrument's local time is known."""
    frame_time_s: float = NAN
    scan_rotation_deg: float = NAN
    """Of the first frame."""
    frames: int = 1
    """Frames of this visit that were read."""
    frames_averaged: int = 1
    """Of these, the ones that /aet/raw is the mean of."""
    frame_shifts_px: str = ""
    """JSON: (y, x) by which each averaged frame lay off the first."""
    drift_doubt_px: float = NAN
    """Largest difference between the shifts that two independent halves of the pixels ask for."""
    members: str = ""
    """JSON: (path, image) of each image, when several went into this projection."""
    orientation: str = ""
    """How the pixels were turned when they were read: `t` transposed, `y` and `x` flipped along that axis."""
    tilt_axis_deg: float = NAN
    """Where the tilt axis lies in these pixels, from +y towards -x; NaN: nobody says, so along y."""
    flag: str = ""
    """What is not as it should be with these pixels."""
    closed_at: float = NAN
    """Unix seconds when the source file took its final form."""
    settle_s: float = NAN
    read_s: float = NAN
    queue_s: float = NAN
    network_s: float = NAN
    model: str = ""
    model_sha256: str = ""
    background_mean: float = NAN
    vacuum_noise: float = NAN
    vacuum_residual: float = NAN
    vacuum_fraction: float = NAN
    edge_contact: float = NAN
    laplace_rms: float = NAN
    gp_rms: float = NAN
    expected_error: float = NAN
    total_intensity: float = NAN
    mass_x_px: float = NAN
    mass_y_px: float = NAN
    trust: float = NAN
    fallback: str = ""
    blank: bool = False
    device: str = ""
    precision: str = ""
    attempts: int = 0
    """Readers or workers that died over this projection before it was stored."""
    software: str = ""
    config_sha256: str = ""
    watch_root: str = ""
    """The watched folder, links resolved: `path` counts from it."""


def crc32(pixels: Array) -> int:
    """Checksum of an array's bytes in C order, little-endian."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


def file_name(number: int) -> str:
    return f"{number:06d}.h5"


def projection_files(folder: Path) -> dict[int, Path]:
    """Number -> projection file of the folder of a series, in order; whatever else lies there is nobody's business."""
    numbers = [int(path.stem) for path in (folder / PROJECTIONS).glob("*.h5") if path.stem.isdecimal()]
    paths = {number: folder / PROJECTIONS / file_name(number) for number in sorted(numbers)}
    return {number: path for number, path in paths.items() if path.exists()}


def projection_image(record: Record, raw: Array, clean: Array, extras: dict[str, Array] | None = None) -> bytes:
    """The bytes of a projection file. Made in memory, so that a full disk shows as a plain error with its number.

    Parameters
    ----------
    extras : what is kept beside a mean: `variance` (height, width) float32, or `frames` (n, height, width) as acquired

    Raises
    ------
    ValueError : HDF5 cannot hold a field of the record, such as a text with a NUL in it
    """
    with h5py.File("projection", "w", driver="core", backing_store=False, libver=LIBVER, block_size=1 << 16) as file:
        file.create_dataset("raw", data=raw)
        file.create_dataset("clean", data=clean)
        for name, pixels in (extras or {}).items():
            file.create_dataset(name, data=pixels).attrs["crc32"] = crc32(pixels)
        file.attrs["layout_version"] = LAYOUT_VERSION
        for name in record.__struct_fields__:
            value = getattr(record, name)
            try:
                file.attrs[name] = value
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} {value!r:.100}: {error}") from error
        file.attrs["record_sha256"] = _said_sha256({name: getattr(record, name) for name in record.__struct_fields__})
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _said_sha256(values: dict[str, Any]) -> str:
    """Checksum of a record's fields, those that were known when it was written."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return hashlib.sha256("".join(f"{name}={plain[name]!r};" for name in sorted(plain)).encode()).hexdigest()


def read_record(file: h5py.File) -> Record:
    """The record in an open projection file.

    Raises
    ------
    StoreError : an attribute is missing or of another type
    NewerLayout : a later version of this program wrote it
    """
    try:
        refuse_newer(file)
        attributes, values = file.attrs, dict[str, Any]()  # asked for once: that alone is a third of the time, for thousands at a start
        there = set(attributes)
        for name in Record.__struct_fields__:
            if name not in there:
                continue  # written before this field was known: its default holds
            value = attributes[name]
            values[name] = value.item() if isinstance(value, np.generic) else value
        said = attributes.get("record_sha256")
        if said != _said_sha256(values) and (said is not None or attributes["layout_version"] > 1):
            raise StoreError(f"{file.filename}: the record is not what was written (record_sha256)")
        return msgspec.convert(values, Record)
    except (KeyError, OSError, RuntimeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise StoreError(f"{file.filename}: no readable record: {error}") from error


def unreadable(error: Exception) -> str:
    """Why a file cannot be opened, in fewer words than HDF5's."""
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name the .h5 file in it"
    return "there is no such file" if isinstance(error, FileNotFoundError) else str(error)


def refuse_newer(file: h5py.File) -> None:
    """Never touch what we may not understand.

    Raises
    ------
    NewerLayout : a later version of this program wrote the file
    """
    version = int(file.attrs.get("layout_version", 1))
    if version > LAYOUT_VERSION:
        raise NewerLayout(f"{file.filename} has layout {version}, this version knows {LAYOUT_VERSION}: use the aet_stream that wrote it")


def row_of(file: h5py.File, row: int) -> tuple[Record, Array, Array]:
    """Record, raw and clean pixels of one row of a closed series, checked against their checksums.

    Raises
    ------
    StoreError : they cannot be read, or are not what was written
    """
    try:
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(Record):
            if f"{PER_PROJECTION}/{field.name}" in file:
                value = file[f"{PER_PROJECTION}/{field.name}"][row]
                values[field.name] = value.decode() if isinstance(value, bytes) else value.item()
                if field.type is bool:
                    values[field.name] = bool(value)
        record, raw, clean = msgspec.convert(values, Record), file[RAW][row], file[CLEAN][row]
    except (OSError, KeyError, RuntimeError, ValueError, msgspec.ValidationError) as error:
        raise StoreError(f"{file.filename}: row {row} cannot be read: {error}") from error
    check_pixels(f"{file.filename} row {row}", record, raw, clean)
    return record, raw, clean


def check_pixels(where: str, record: Record, raw: Array, clean: Array) -> None:
    """
    Raises
    ------
    StoreError : the pixels are not what was written
    """
    for name, pixels, expected in (("raw", raw, record.raw_crc32), ("clean", clean, record.clean_crc32)):
        if crc32(pixels) != expected:
            raise StoreError(f"{where}: the checksum of the {name} pixels is {crc32(pixels):08x}, written was {expected:08x}")


class Contents:
    """Checksum over all that a master says beside the frames, which have their own; the names of things have one from HDF5 itself."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, value: Any) -> Any:
        """Take note of a value on its way into the file; hands it back."""
        array = np.asarray(value.encode() if isinstance(value, str) else value)
        content = bytes(value, "utf-8") if isinstance(value, str) else value if isinstance(value, bytes) else array.tobytes()
        kind = "text" if isinstance(value, str | bytes) else f"{array.dtype.str}{array.shape}"
        self._parts.append(hashlib.sha256(kind.encode() + content).digest())
        return value

    def add_attributes(self, item: Any) -> None:
        """Text attributes lie in a heap without a checksum."""
        for key, value in item.attrs.items():
            if key != "content_sha256":
                self.add(f"{key}={value!r}")

    def sha256(self) -> str:
        return hashlib.sha256(b"".join(sorted(self._parts))).hexdigest()

    @classmethod
    def of(cls, file: h5py.File) -> str:
        """The same, from a file."""
        contents = cls()

        def add(name: str, item: Any) -> None:
            contents.add_attributes(item)
            if isinstance(item, h5py.Dataset) and item.ndim < 3:
                contents.add(item[()])

        file.visititems(add)
        return contents.sha256()


def read_projection(path: str) -> tuple[Record, Array, Array]:
    """Record, raw and clean pixels of a projection file, checked against their checksums.

    Raises
    ------
    StoreError : the file cannot be read, or its pixels are not what was written
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            record, raw, clean = read_record(file), file["raw"][()], file["clean"][()]
            for name in file.keys() - {"raw", "clean"}:
                if "crc32" in file[name].attrs and crc32(file[name][()]) != file[name].attrs["crc32"]:
                    raise StoreError(f"{path}: {name} is not what was written (checksum)")
    except (OSError, KeyError, RuntimeError) as error:
        raise StoreError(f"{path}: not a readable projection file: {error}") from error
    check_pixels(path, record, raw, clean)
    return record, raw, clean


def members(record: Record) -> list[tuple[str, int]]:
    """(path, image) of every image that went into a projection, the one that names it first."""
    return [(path, image) for path, image in json.loads(record.members)] if record.members else [(record.path, record.image)]


def superseded(records: list[Record]) -> list[bool]:
    """Which records were followed by new pixels of the same source image, or by a mean that their image went into."""
    newest = {key: record.number for record in records for key in members(record)}
    return [newest[record.path, record.image] != record.number for record in records]


def repeats(records: list[Record]) -> list[int]:
    """How many earlier visits there were to the tilt of each projection; a second image at 0 degrees is deliberate, and has 1."""
    old, seen, counts = superseded(records), dict[float, int](), [0] * len(records)
    for row in acquisition_order(records):
        if not old[row]:
            tilt = round(records[row].tilt_deg / SAME_TILT_DEG)
            near = next((key for key in (tilt, tilt - 1, tilt + 1) if key in seen), tilt)
            counts[row] = seen[near] = seen.get(near, -1) + 1
    return counts


def acquisition_order(records: list[Record]) -> list[int]:
    """Rows in the order in which the images were taken: by the instrument's clock where every record has it, else as the files came."""
    for clock in ("acquired_utc", "acquired_local"):
        if all(getattr(record, clock) for record in records):
            return sorted(range(len(records)), key=lambda row: (getattr(records[row], clock), records[row].number))
    return sorted(range(len(records)), key=lambda row: (records[row].closed_at, records[row].path, records[row].image))
