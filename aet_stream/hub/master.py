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

from aet_stream import __version__, durable, failpoints, layout
from aet_stream.consistency import about_axis, error_in_series, intensity_ratio, mass_residual_px, trust_in_series
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
    """Where the pixels of some rows are: a projection file (one row, 2-D datasets), or a folded segment (3-D datasets)."""

    file: str
    """Relative to the series folder."""
    rows: int = 1
    folded: bool = False


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
    StoreError : a source is missing or too short
    OutputFull : the disk does not take it
    """
    least_bytes = raw.nbytes + raw.size * 4
    for source in sources:
        path = folder / source.file
        if not path.is_file() or path.stat().st_size < source.rows * least_bytes:
            raise StoreError(f"{path} is missing or too short; series.h5 is left as it was")
    with h5py.File("master", "w", driver="core", backing_store=False, libver=layout.LIBVER, block_size=1 << 14) as file:
        for name, key, dtype, fill in ((layout.RAW, "raw", raw.dtype, 0), (layout.CLEAN, "clean", np.dtype("<f4"), np.nan)):
            virtual = h5py.VirtualLayout((len(records), *raw.shape), dtype)
            row = 0
            for source in sources:
                shape = (source.rows, *raw.shape) if source.folded else raw.shape
                virtual[slice(row, row + source.rows) if source.folded else row] = h5py.VirtualSource(source.file, key, shape, dtype)
                row += source.rows
            file.create_virtual_dataset(name, virtual, fillvalue=fill)
        _write_rest(file, records, raw.shape, about)
        file.flush()
        content = file.id.get_file_image()
    durable.replace(folder / layout.SERIES_FILE, content, "master")


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
            durable.sync_now_and_then(path, row, first.nbytes + first.size * 4)
            failpoints.reach("close.frame", path)
            yield
        _write_rest(file, records, first.shape, about)
    failpoints.reach("close.written", path)
    durable.sync_file(path)
    with h5py.File(path, "r") as file:
        for row, record in enumerate(records):
            if crc32(file[layout.RAW][row]) != record.raw_crc32 or crc32(file[layout.CLEAN][row]) != record.clean_crc32:
                raise StoreError(f"{path}: row {row} does not read back as it was written; the series stays open")
            yield
    failpoints.reach("close.checked", path)


def _write_rest(file: h5py.File, records: list[Record], shape: tuple[int, ...], about: About) -> None:
    """All but the frames themselves."""
    file.attrs["layout_version"] = layout.LAYOUT_VERSION
    contents = layout.Contents()
    theta = file.create_dataset(layout.THETA, data=contents.add(np.array([record.tilt_deg for record in records])))
    theta.attrs["units"] = "deg"
    # Never written, so they take no room: readers get the fill value.
    for name, value in layout.NEUTRAL.items():
        file.create_dataset(name, (1, *shape), "<f4", fillvalue=value)
    file[layout.CLEAN].attrs["description"] = (
        "background-free: raw - background, nothing clipped or masked; (tilt, y, x), tilt axis along y"
    )
    _write_per_projection(file, records, contents, shape[0] * shape[1])
    _write_about(file, records, about)
    _write_nxtomo(file, records, about, contents)
    detector = f"{layout.NXTOMO}/instrument/detector"
    for name in (*NXCLASSES, layout.THETA, layout.CLEAN, layout.ABOUT, f"{detector}/x_pixel_size", f"{detector}/y_pixel_size"):
        contents.add_attributes(file[name])
    file[layout.ABOUT].attrs["content_sha256"] = contents.sha256()


def _write_per_projection(file: h5py.File, records: list[Record], contents: layout.Contents, size_px: int) -> None:
    superseded = np.array(layout.superseded(records), bool)
    taken, rank = np.empty(len(records), np.int32), np.empty(len(records), np.int32)
    taken[layout.acquisition_order(records)] = np.arange(len(records), dtype=np.int32)
    rank[np.argsort([record.tilt_deg for record in records], kind="stable")] = np.arange(len(records), dtype=np.int32)
    columns = {name: column([getattr(record, name) for record in records]) for name in Record.__struct_fields__} | {
        "repeat": np.array(layout.repeats(records), np.int32),
        "acquisition_order": taken,
        "superseded": superseded.astype(np.uint8),
        "angle_order": rank,
        **_in_series(records, superseded, size_px),
    }
    group = file.create_group(layout.PER_PROJECTION)
    for name, values in columns.items():
        group.create_dataset(name, data=contents.add(values))


def _in_series(records: list[Record], superseded: Array, size_px: int) -> dict[str, Array]:
    """What all projections that count say of each of them."""

    def values(name: str) -> Array:
        return np.array([getattr(record, name) for record in records])

    totals = np.where(superseded, np.nan, values("total_intensity"))
    across_px, along_px = about_axis(values("mass_x_px"), values("mass_y_px"), values("tilt_axis_deg"))
    expected = values("expected_error")
    error = error_in_series(expected, totals, values("vacuum_fraction"), values("edge_contact"), size_px)
    return {
        "intensity_ratio": intensity_ratio(totals),
        "mass_residual_px": mass_residual_px(values("tilt_deg"), np.where(superseded, np.nan, across_px), along_px),
        "expected_error_in_series": error,
        "trust_in_series": trust_in_series(values("trust"), expected, error),
    }


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


def _write_nxtomo(file: h5py.File, records: list[Record], about: About, contents: layout.Contents) -> None:
    for path, name in NXCLASSES.items():
        file.require_group(path).attrs["NX_class"] = name
    entry, detector = file[layout.NXTOMO], file[f"{layout.NXTOMO}/instrument/detector"]
    pixel_size_m = next((record.pixel_size_nm for record in records if np.isfinite(record.pixel_size_nm)), np.nan) * 1e-9
    for key, value in {
        "definition": "NXtomo",
        "title": about.name,
        "start_time": _utc(about.opened_at),
        "instrument/source/name": "STEM",
        "instrument/source/probe": "electron",
        "sample/name": about.name,
        "instrument/detector/image_key": np.zeros(len(records), np.int32),
        "instrument/detector/image_key_control": np.zeros(len(records), np.int32),
        "instrument/detector/x_pixel_size": pixel_size_m,
        "instrument/detector/y_pixel_size": pixel_size_m,
    }.items():
        entry[key] = contents.add(value)
    for key in ("x_pixel_size", "y_pixel_size"):
        detector[key].attrs["units"] = "m"
    detector["data"] = file[layout.CLEAN]
    entry["sample/rotation_angle"] = file[layout.THETA]
    file[layout.THETA].attrs["units"] = "degree"
    for key, target in (("data", layout.CLEAN), ("rotation_angle", layout.THETA), ("image_key", f"{detector.name}/image_key")):
        entry[f"data/{key}"] = file[target]
    entry["data"].attrs["signal"] = "data"


def _utc(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
