"""Names inside our HDF5 files, and the record that stands beside every projection.

A projection file (`projections/000007.h5`) holds `/raw` and `/clean` and the fields of `Record` as attributes. `series.h5` shows all of
them as one series: Data Exchange for dxchange and tomopy, NXtomo by hard links, and `/aet` for what is ours.
"""

from __future__ import annotations

import zlib
from typing import Any

import h5py
import msgspec
import numpy as np

from aet_stream.errors import StoreError
from aet_stream.projection import Array

LAYOUT_VERSION = 1
#: Readable by every HDF5 library since 1.10, which virtual datasets need anyway.
LIBVER = ("v110", "v110")

PROJECTIONS = "projections"
SERIES_FILE = "series.h5"

CLEAN = "/exchange/data"
THETA = "/exchange/theta"
RAW = "/aet/raw"
PER_PROJECTION = "/aet/projection"
ABOUT = "/aet/series"
NXTOMO = "/entry1/tomo_entry"

NAN = float("nan")


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
    laplace_rms: float = NAN
    trust: float = NAN
    blank: bool = False
    device: str = ""
    precision: str = ""
    attempts: int = 0
    """Readers or workers that died over this projection before it was stored."""
    software: str = ""
    config_sha256: str = ""


def crc32(pixels: Array) -> int:
    """Checksum of an array's bytes in C order, little-endian."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


def file_name(number: int) -> str:
    return f"{number:06d}.h5"


def projection_image(record: Record, raw: Array, clean: Array) -> bytes:
    """The bytes of a projection file. Made in memory, so that a full disk shows as a plain error with its number."""
    with h5py.File("projection", "w", driver="core", backing_store=False, libver=LIBVER, block_size=1 << 16) as file:
        file.create_dataset("raw", data=raw)
        file.create_dataset("clean", data=clean)
        file.attrs["layout_version"] = LAYOUT_VERSION
        for name in record.__struct_fields__:
            file.attrs[name] = getattr(record, name)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def read_record(file: h5py.File) -> Record:
    """The record in an open projection file.

    Raises
    ------
    StoreError : an attribute is missing or of another type
    """
    try:
        values: dict[str, Any] = {}
        for name in Record.__struct_fields__:
            value = file.attrs[name]
            values[name] = value.item() if isinstance(value, np.generic) else value
        return msgspec.convert(values, Record)
    except (KeyError, OSError, msgspec.ValidationError) as error:
        raise StoreError(f"{file.filename}: no readable record: {error}") from error


def read_projection(path: str) -> tuple[Record, Array, Array]:
    """Record, raw and clean pixels of a projection file, checked against their checksums.

    Raises
    ------
    StoreError : the file cannot be read, or its pixels are not what was written
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            record, raw, clean = read_record(file), file["raw"][()], file["clean"][()]
    except (OSError, KeyError, RuntimeError) as error:
        raise StoreError(f"{path}: not a readable projection file: {error}") from error
    for name, pixels, expected in (("raw", raw, record.raw_crc32), ("clean", clean, record.clean_crc32)):
        if crc32(pixels) != expected:
            raise StoreError(f"{path}: the checksum of the {name} pixels is {crc32(pixels):08x}, written was {expected:08x}")
    return record, raw, clean


def superseded(records: list[Record]) -> list[bool]:
    """Which records were followed by new pixels of the same source image."""
    newest = {(record.path, record.image): record.number for record in records}
    return [newest[record.path, record.image] != record.number for record in records]
