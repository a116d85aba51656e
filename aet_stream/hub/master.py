"""`series.h5`: a small master of virtual datasets while the series grows, one contiguous file once it is closed.

Both have the same names inside (layout.py). Virtual datasets show a missing source as NaN without any error, so every source is checked
before a master is written, and each frame's checksum stands in the master itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable, failpoints, layout, nexus
from aet_stream.consistency import about_axis, error_in_series, intensity_ratio, mass_residual_px, trust_in_series
from aet_stream.errors import StoreError
from aet_stream.layout import PLANES, Planes, Record, crc32
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


DESCRIBED: dict[str, dict[str, str]] = {
    "instrument/detector/data": {
        "units": "counts",
        "long_name": "without background (counts)",
        "interpretation": "image",
        "description": "background-free: raw - background, nothing clipped or masked; (tilt, y, x), tilt axis along y",
        "target": f"{layout.NXTOMO}/instrument/detector/data",
    },
    "instrument/detector/image_key": {"target": f"{layout.NXTOMO}/instrument/detector/image_key"},
    "instrument/detector/x_pixel_size": {"units": "m"},
    "instrument/detector/y_pixel_size": {"units": "m"},
    "sample/rotation_angle": {"units": "degree", "target": f"{layout.NXTOMO}/sample/rotation_angle"},
}
"""Below NXTOMO: what a plot needs to know of a dataset. `target`: of the names that links give it, the one that counts."""
LINKS = {"data": "instrument/detector/data", "rotation_angle": "sample/rotation_angle", "image_key": "instrument/detector/image_key"}
"""Below NXTOMO/data: what they lead to."""


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
    _check_sources(folder, records, sources, raw)
    with h5py.File("master", "w", driver="core", backing_store=False, libver=layout.LIBVER_VIRTUAL, block_size=1 << 14) as file:
        for plane in PLANES:
            dtype = plane.dtype_beside(raw)
            virtual = h5py.VirtualLayout((len(records), *raw.shape), dtype)
            row = 0
            for source in sources:
                shape = (source.rows, *raw.shape) if source.folded else raw.shape
                virtual[slice(row, row + source.rows) if source.folded else row] = h5py.VirtualSource(source.file, plane.name, shape, dtype)
                row += source.rows
            file.create_virtual_dataset(plane.dataset, virtual, fillvalue=plane.fill)
        _write_rest(file, records, raw.shape, about)
        file.flush()
        content = file.id.get_file_image()
    durable.replace(folder / layout.SERIES_FILE, content, "master")


def _check_sources(folder: Path, records: list[Record], sources: list[Source], raw: Array) -> None:
    row = 0
    for source in sources:
        path, held = folder / source.file, records[row : row + source.rows]
        least_bytes = sum(layout.nbytes(record, raw) for record in held)
        if not path.is_file() or path.stat().st_size < least_bytes:
            raise StoreError(f"{path} is missing or too short; series.h5 is left as it was")
        row += source.rows


def write_contiguous(path: Path, records: list[Record], read: Callable[[int], Planes], first: Array, about: About) -> Generator[None]:
    """Write the whole series as one file at `path`, frame by frame, and read it back; yields after every frame.

    Parameters
    ----------
    read : row -> the pixels of that row, checked
    first : any raw frame: shape and dtype
    """
    shape = (len(records), *first.shape)
    with h5py.File(path, "w", libver=layout.LIBVER) as file:
        planes = {
            plane.name: file.create_dataset(plane.dataset, shape, plane.dtype_beside(first), fillvalue=plane.fill) for plane in PLANES
        }
        for row, record in enumerate(records):
            for name, pixels in read(row).items():
                planes[name][row] = pixels
            durable.sync_now_and_then(path, row, layout.nbytes(record, first))
            failpoints.reach("close.frame", path)
            yield
        _write_rest(file, records, first.shape, about)
    failpoints.reach("close.written", path)
    durable.sync_file(path)
    try:
        yield from _read_back(path, records)
    except (KeyError, RuntimeError, ValueError) as error:  # how HDF5 shows damage
        raise StoreError(f"{path}: does not read back: {error}; the series stays open") from error
    failpoints.reach("close.checked", path)


def _read_back(path: Path, records: list[Record]) -> Generator[None]:
    with h5py.File(path, "r") as file:
        for row, record in enumerate(records):
            if {plane.name: crc32(file[plane.dataset][row]) for plane in PLANES if plane.name in record.checksums} != record.checksums:
                raise StoreError(f"{path}: row {row} does not read back as it was written; the series stays open")
            yield
        if layout.Contents.of(file) != file[layout.ABOUT].attrs["content_sha256"]:
            raise StoreError(f"{path}: tilts or records do not read back as they were written; the series stays open")


def _write_rest(file: h5py.File, records: list[Record], shape: tuple[int, ...], about: About) -> None:
    """All but the frames themselves."""
    file.attrs["layout_version"] = layout.LAYOUT_VERSION
    contents = layout.Contents()
    file.create_dataset(layout.THETA, data=contents.add(np.array([record.tilt_deg for record in records])))
    # Never written, so they take no room: readers get the fill value.
    for name, value in layout.NEUTRAL.items():
        file.create_dataset(name, (1, *shape), "<f4", fillvalue=value)
    _write_per_projection(file, records, contents, shape[0] * shape[1])
    _write_about(file, records, about)
    _write_nxtomo(file, records, about, shape, contents)
    for name in (*NXCLASSES, layout.ABOUT):
        contents.add_attributes(file[name])
    file[layout.ABOUT].attrs["content_sha256"] = contents.sha256()


def _write_per_projection(file: h5py.File, records: list[Record], contents: layout.Contents, size_px: int) -> None:
    superseded = np.array(layout.superseded(records), bool)
    taken, rank = np.empty(len(records), np.int32), np.empty(len(records), np.int32)
    taken[layout.acquisition_order(records)] = np.arange(len(records), dtype=np.int32)
    rank[np.argsort([record.tilt_deg for record in records], kind="stable")] = np.arange(len(records), dtype=np.int32)
    columns = {name: layout.column([values.get(record) for record in records]) for name, values in layout.COLUMNS.items()} | {
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
        return np.array([layout.COLUMNS[name].get(record) for record in records])

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
        microscope=next((record.acquisition.microscope for record in records if record.acquisition.microscope), ""),
        software=f"aet_stream {__version__}",
        config=about.config,
    )


def _write_nxtomo(file: h5py.File, records: list[Record], about: About, shape: tuple[int, ...], contents: layout.Contents) -> None:
    """The same frames and tilts by the names of NXtomo, and a plot of them with its axes."""
    for path, name in NXCLASSES.items():
        file.require_group(path).attrs["NX_class"] = name
    entry = file[layout.NXTOMO]
    sizes_nm = (record.acquisition.pixel_size_nm for record in records)
    size_nm = next((size for size in sizes_nm if size is not None), np.nan)
    times = [about.opened_at, *(record.closed_at for record in records if np.isfinite(record.closed_at))]
    for key, value in {
        "definition": "NXtomo",
        "title": about.name,
        "start_time": _utc(min(times)),
        "end_time": _utc(max(times)),
        "instrument/source/name": "STEM",
        "instrument/source/probe": "electron",
        "sample/name": about.name,
        "instrument/detector/image_key": np.zeros(len(records), np.int32),
        "instrument/detector/image_key_control": np.zeros(len(records), np.int32),
        "instrument/detector/x_pixel_size": size_nm * 1e-9,
        "instrument/detector/y_pixel_size": size_nm * 1e-9,
        "data/y": -nexus.positions(shape[0], size_nm),  # upwards
        "data/x": nexus.positions(shape[1], size_nm),
    }.items():
        entry[key] = contents.add(value)
    entry["instrument/detector/data"], entry["sample/rotation_angle"] = file[layout.CLEAN], file[layout.THETA]
    for key, target in LINKS.items():
        entry[f"data/{key}"] = entry[target]
    edge = {"units": nexus.unit(size_nm)}
    for key, attributes in {**DESCRIBED, "data/y": edge, "data/x": edge}.items():
        entry[key].attrs.update(attributes)
        contents.add_attributes(entry[key])
    nexus.make_plot(entry["data"], "data", ("rotation_angle", "y", "x"), title=about.name)
    nexus.set_default(file, *layout.NXTOMO.strip("/").split("/"), "data")


def _utc(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
