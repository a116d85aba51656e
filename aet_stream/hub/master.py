"""`series.h5`: a small master of virtual datasets while the series grows, one contiguous file once it is closed.

Both have the same names inside (layout.py). Virtual datasets show a missing source as NaN without any error, so every source is checked
before a master is written, and each frame's checksum stands in the master itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aet_stream import __version__, durable, layout
from aet_stream.errors import StoreError
from aet_stream.layout import Record, crc32
from aet_stream.projection import Array

NXCLASSES = {
    "/entry1": "NXentry",
    layout.NXTOMO: "NXsubentry",
    f"{layout.NXTOMO}/instrument": "NXinstrument",
    f"{layout.NXTOMO}/instrument/detector": "NXdetector",
    f"{layout.NXTOMO}/instrument/source": "NXsource",
    f"{layout.NXTOMO}/sample": "NXsample",
    f"{layout.NXTOMO}/data": "NXdata",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the pixels of one row are: a projection file (2-D datasets), or one frame of a folded segment (3-D datasets)."""

    file: str
    """Relative to the series folder."""
    frame: int | None = None
    """Index in the segment; None for a projection file."""
    frames: int = 1


@dataclass(frozen=True, slots=True)
class About:
    """What is known about the whole series."""

    name: str
    opened_at: float
    closed_at: float | None
    generation: int
    expected: int
    duplicates: int
    config: str


def write_virtual(folder: Path, records: list[Record], sources: list[Source], raw: Array, about: About) -> None:
    """Replace `series.h5` by a master over `sources`. `raw` is any raw frame: it gives shape (height, width) and dtype.

    Raises
    ------
    StoreError : a source is missing
    OutputFull : the disk does not take it
    """
    missing = [source.file for source in sources if not (folder / source.file).is_file()]
    if missing:
        raise StoreError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(sources)} sources); series.h5 is left as it was")
    with h5py.File("master", "w", driver="core", backing_store=False, libver=layout.LIBVER, block_size=1 << 14) as file:
        for name, key, dtype, fill in ((layout.RAW, "raw", raw.dtype, 0), (layout.CLEAN, "clean", np.dtype("<f4"), np.nan)):
            virtual = h5py.VirtualLayout((len(records), *raw.shape), dtype)
            for row, source in enumerate(sources):
                if source.frame is None:
                    virtual[row] = h5py.VirtualSource(source.file, key, raw.shape, dtype)
                else:
                    virtual[row] = h5py.VirtualSource(source.file, key, (source.frames, *raw.shape), dtype)[source.frame]
            file.create_virtual_dataset(name, virtual, fillvalue=fill)
        _write_rest(file, records, raw.shape, about)
        file.flush()
        content = file.id.get_file_image()
    durable.replace(folder / layout.SERIES_FILE, content)


def write_contiguous(
    path: Path, records: list[Record], read: Callable[[int], tuple[Array, Array]], first: Array, about: About
) -> Generator[None]:
    """Write the whole series as one file at `path`, frame by frame, and read it back; yields after every frame.

    Parameters
    ----------
    read : row -> (raw, clean) of that row, checked
    first : any raw frame: shape and dtype
    """
    shape = (len(records), *first.shape)
    with h5py.File(path, "w", libver=layout.LIBVER) as file:
        raw = file.create_dataset(layout.RAW, shape, first.dtype)
        clean = file.create_dataset(layout.CLEAN, shape, "<f4")
        for row in range(len(records)):
            raw[row], clean[row] = read(row)
            yield
        _write_rest(file, records, first.shape, about)
    durable.sync_file(path)
    with h5py.File(path, "r") as file:
        for row, record in enumerate(records):
            if crc32(file[layout.RAW][row]) != record.raw_crc32 or crc32(file[layout.CLEAN][row]) != record.clean_crc32:
                raise StoreError(f"{path}: row {row} does not read back as it was written; the series stays open")
            yield


def _write_rest(file: h5py.File, records: list[Record], shape: tuple[int, ...], about: About) -> None:
    """All but the frames themselves."""
    file.attrs["layout_version"] = layout.LAYOUT_VERSION
    theta = file.create_dataset(layout.THETA, data=np.array([record.tilt_deg for record in records]))
    theta.attrs["units"] = "deg"
    # Never written, so they take no room: readers get the fill value.
    file.create_dataset("/exchange/data_white", (1, *shape), "<f4", fillvalue=1)
    file.create_dataset("/exchange/data_dark", (1, *shape), "<f4", fillvalue=0)
    file[layout.CLEAN].attrs["description"] = (
        "background-free: raw - background, nothing clipped or masked; (tilt, y, x), tilt axis along y"
    )
    _write_per_projection(file, records)
    _write_about(file, records, about)
    _write_nxtomo(file, records, about)


def _write_per_projection(file: h5py.File, records: list[Record]) -> None:
    group = file.create_group(layout.PER_PROJECTION)
    for name in Record.__struct_fields__:
        group.create_dataset(name, data=column([getattr(record, name) for record in records]))
    group.create_dataset("repeat", data=np.array(layout.repeats(records), np.int32))
    taken = np.empty(len(records), np.int32)
    taken[layout.acquisition_order(records)] = np.arange(len(records), dtype=np.int32)
    group.create_dataset("acquisition_order", data=taken)
    group.create_dataset("superseded", data=np.array(layout.superseded(records), np.uint8))
    order = np.argsort([record.tilt_deg for record in records], kind="stable")
    rank = np.empty(len(records), np.int32)
    rank[order] = np.arange(len(records), dtype=np.int32)
    group.create_dataset("angle_order", data=rank)


def column(values: list[Any]) -> Array:
    """One value per projection as plain readers like it: fixed-length bytes (UTF-8), 64-bit numbers, uint8 for yes and no."""
    if isinstance(values[0], str):
        return np.array([value.encode() for value in values], dtype=bytes) if any(values) else np.zeros(len(values), "S1")
    return np.array(values, np.uint8) if isinstance(values[0], bool) else np.array(values)


def _write_about(file: h5py.File, records: list[Record], about: About) -> None:
    group = file.create_group(layout.ABOUT)
    replaced = sum(layout.superseded(records))
    group.attrs.update(
        name=about.name,
        opened_utc=_utc(about.opened_at),
        closed_utc="" if about.closed_at is None else _utc(about.closed_at),
        generation=about.generation,
        expected=about.expected,
        stored=len(records),
        superseded=replaced,
        duplicates=about.duplicates,
        microscope=next((record.microscope for record in records if record.microscope), ""),
        software=f"aet_stream {__version__}",
        config=about.config,
    )


def _write_nxtomo(file: h5py.File, records: list[Record], about: About) -> None:
    for path, name in NXCLASSES.items():
        file.require_group(path).attrs["NX_class"] = name
    entry, detector = file[layout.NXTOMO], file[f"{layout.NXTOMO}/instrument/detector"]
    entry["definition"] = "NXtomo"
    entry["title"] = about.name
    entry["start_time"] = _utc(about.opened_at)
    entry["instrument/source/name"] = "STEM"
    entry["instrument/source/probe"] = "electron"
    entry["sample/name"] = about.name
    detector["data"] = file[layout.CLEAN]
    for key in ("image_key", "image_key_control"):
        detector[key] = np.zeros(len(records), np.int32)
    pixel_size_m = next((record.pixel_size_nm for record in records if np.isfinite(record.pixel_size_nm)), np.nan) * 1e-9
    for key in ("x_pixel_size", "y_pixel_size"):
        detector[key] = pixel_size_m
        detector[key].attrs["units"] = "m"
    entry["sample/rotation_angle"] = file[layout.THETA]
    file[layout.THETA].attrs["units"] = "degree"
    for key, target in (("data", layout.CLEAN), ("rotation_angle", layout.THETA), ("image_key", f"{detector.name}/image_key")):
        entry[f"data/{key}"] = file[target]
    entry["data"].attrs["signal"] = "data"


def _utc(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
