"""`series.h5`: a small master of virtual datasets while the series grows, one contiguous file once it is closed.

Both have the same names inside (layout.py). Virtual datasets show a missing source as NaN without any error, so every source is checked
before a master is written, and each frame's checksum stands in the master itself.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable, edition, failpoints, hdf5, layout, nexus
from aet_stream.consistency import about_axis, error_in_series, intensity_ratio, mass_residual_px, trust_in_series
from aet_stream.errors import StoreError
from aet_stream.hub import stacks
from aet_stream.hub.decisions import Decisions
from aet_stream.layout import PLANES, Plane, Planes, Record
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
MAKER = ("made_by", "model", "model_sha256", "settings")
"""What series.h5 says of the chosen edition, behind `edition_`."""
NXTOMO_PROJECTION, NXTOMO_INVALID = 0, 3
"""Values of image_key."""
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


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown: every row as its edition has it, and what has been decided about it."""

    records: list[Record]
    places: list[int | None]
    """Row within the file of the chosen edition; None: edition 1."""
    decisions: Decisions
    edition: edition.About | None = None
    """Of the chosen one; None: edition 1."""
    edition_rows: int = 0
    """Of its file."""
    apart: Sequence[Record] = ()
    """Set aside, and of another frame size: no row can show them."""

    @property
    def editions(self) -> list[int]:
        return [edition.FIRST if place is None else self.decisions.edition for place in self.places]

    @property
    def edition_file(self) -> str:
        """Relative to the series folder."""
        return f"{layout.EDITIONS}/{layout.edition_file(self.decisions.edition)}"

    @property
    def layout_version(self) -> int:
        decided = self.decisions.edition != edition.FIRST or self.decisions.excluded
        return layout.LAYOUT_VERSION if decided else layout.UNDECIDED_VERSION

    @property
    def left_out(self) -> Array:
        """(n,) bool: rows that do not count, superseded or set aside."""
        aside = self.decisions.excluded
        old = layout.superseded(self.records)
        return np.array([gone or record.number in aside for gone, record in zip(old, self.records, strict=True)], bool)


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbouring rows of one plane that lie together in one file."""

    file: str
    dataset: str
    place: int | None
    """First row within its dataset; None: that is one image."""
    held: int
    """Rows of the dataset."""
    rows: int = 1

    def with_next(self, other: _Span) -> _Span | None:
        """Both as one, if `other` follows in the same dataset."""
        follows = self.place is not None and other.place == self.place + self.rows and other.file == self.file
        return _Span(self.file, self.dataset, self.place, self.held, self.rows + 1) if follows else None


def write_virtual(folder: Path, shown: Shown, sources: list[Source], raw: Array, about: About) -> None:
    """Replace `series.h5` by a master over `sources`. `raw` is any raw frame: it gives shape (height, width) and dtype.

    Raises
    ------
    StoreError : a source is missing or too short
    OutputFull : the disk does not take it
    """
    _check_sources(folder, shown, sources, raw)
    with h5py.File("master", "w", driver="core", backing_store=False, libver=layout.LIBVER_VIRTUAL, block_size=1 << 14) as file:
        for plane in PLANES:
            virtual = hdf5.Virtual((len(shown.records), *raw.shape), plane.dtype_beside(raw), plane.fill)
            for span in _spans(plane, shown, sources):
                virtual.add(span.file, span.dataset, span.place, span.held, span.rows)
            virtual.put(file, plane.dataset)
        _write_rest(file, shown, raw.shape, about)
        file.flush()
        content = file.id.get_file_image()
    durable.replace(folder / layout.SERIES_FILE, content, "master")


def _spans(plane: Plane, shown: Shown, sources: list[Source]) -> list[_Span]:
    """Where the rows of a plane lie, in order."""
    spans: list[_Span] = []
    rows = ((source, place) for source in sources for place in range(source.rows))
    for (source, place), chosen in zip(rows, shown.places, strict=True):
        if chosen is not None and plane.name == "clean":
            span = _Span(shown.edition_file, layout.EDITION_CLEAN, chosen, shown.edition_rows)
        else:
            span = _Span(source.file, plane.name, place if source.folded else None, source.rows)
        together = spans[-1].with_next(span) if spans else None
        if together is None:
            spans.append(span)
        else:
            spans[-1] = together
    return spans


def _check_sources(folder: Path, shown: Shown, sources: list[Source], raw: Array) -> None:
    row, least_bytes = 0, dict[str, int]()
    for source in sources:
        held = shown.records[row : row + source.rows]
        least_bytes[source.file] = sum(layout.nbytes(record, raw) for record in held)
        row += source.rows
    if any(place is not None for place in shown.places):
        least_bytes[shown.edition_file] = 4 * raw.size * shown.edition_rows
    for name, nbytes in least_bytes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size < nbytes:
            raise StoreError(f"{path} is missing or too short; series.h5 is left as it was")


def write_contiguous(
    path: Path,
    shown: Shown,
    reading: Callable[[int], Generator[None, None, Planes]],
    reading_apart: Callable[[Record], Generator[None, None, Planes]],
    first: Array,
    about: About,
) -> Generator[None]:
    """Write the whole series as one file at `path`, frame by frame, and read it back; yields often.

    Parameters
    ----------
    reading : row -> the pixels of that row as it is shown, checked
    reading_apart : the pixels of a projection of another frame size, checked
    first : any raw frame: shape and dtype
    """
    with hdf5.writing(path, libver=layout.LIBVER) as file:
        yield from stacks.write(file, attrgetter("dataset"), shown.records, reading, first, "close")
        for record in shown.apart:
            planes = yield from reading_apart(record)
            for name, pixels in planes.items():
                file[f"{layout.APART}/{record.number:06d}/{name}"] = pixels
            yield
        _write_rest(file, shown, first.shape, about)
    failpoints.reach("close.written", path)
    durable.sync_file(path)
    try:
        yield from _read_back(path, shown.records)
    except (KeyError, RuntimeError, ValueError) as error:  # how HDF5 shows damage
        raise StoreError(f"{path}: does not read back: {error}; the series stays open") from error
    failpoints.reach("close.checked", path)


def _read_back(path: Path, records: list[Record]) -> Generator[None]:
    with h5py.File(path, "r") as file:
        row = yield from stacks.spoilt(file, attrgetter("dataset"), records)
        if row is not None:
            raise StoreError(f"{path}: row {row} does not read back as it was written; the series stays open")
        if not layout.Contents.are(file, file[layout.ABOUT].attrs["content_sha256"]):
            raise StoreError(f"{path}: tilts or records do not read back as they were written; the series stays open")


def _write_rest(file: h5py.File, shown: Shown, shape: tuple[int, ...], about: About) -> None:
    """All but the frames themselves."""
    records = shown.records
    file.attrs["layout_version"] = shown.layout_version
    contents = layout.Contents()
    file.create_dataset(layout.THETA, data=contents.add(np.array([record.tilt_deg for record in records])))
    # Never written, so they take no room: readers get the fill value.
    for name, value in layout.NEUTRAL.items():
        file.create_dataset(name, (1, *shape), "<f4", fillvalue=value)
    _write_per_projection(file, shown, contents, shape[0] * shape[1])
    _write_about(file, shown, about)
    _write_nxtomo(file, shown, about, shape, contents)
    _write_apart(file, shown.apart, contents)
    for name in (*NXCLASSES, layout.ABOUT):
        contents.add_attributes(file[name])
    file[layout.ABOUT].attrs["content_sha256"] = contents.sha256()


def _write_apart(file: h5py.File, apart: Sequence[Record], contents: layout.Contents) -> None:
    """What is said of projections that no row can show; their pixels are there already, or stay in their files."""
    for record in apart:
        group = file.require_group(f"{layout.APART}/{record.number:06d}")
        layout.write_record(group, record)
        contents.add_attributes(group)
        for dataset in group.values():
            contents.add(dataset[()])


def _write_per_projection(file: h5py.File, shown: Shown, contents: layout.Contents, size_px: int) -> None:
    records, excluded = shown.records, shown.decisions.excluded
    superseded = np.array(layout.superseded(records), bool)
    asides = [excluded.get(record.number) for record in records]
    taken, rank = np.empty(len(records), np.int32), np.empty(len(records), np.int32)
    taken[layout.acquisition_order(records)] = np.arange(len(records), dtype=np.int32)
    rank[np.argsort([record.tilt_deg for record in records], kind="stable")] = np.arange(len(records), dtype=np.int32)
    columns = {name: layout.column([values.get(record) for record in records]) for name, values in layout.COLUMNS.items()} | {
        "repeat": np.array(layout.repeats(records, shown.left_out.tolist()), np.int32),
        "acquisition_order": taken,
        "superseded": superseded.astype(np.uint8),
        "angle_order": rank,
        "edition": np.array(shown.editions, np.int32),
        "excluded": np.array([aside is not None for aside in asides], np.uint8),
        "excluded_reason": layout.column(["" if aside is None else str(aside.reason) for aside in asides]),
        "excluded_utc": layout.column(["" if aside is None else _utc(aside.at) for aside in asides]),
        **_in_series(records, shown.left_out, size_px),
    }
    group = file.create_group(layout.PER_PROJECTION)
    for name, values in columns.items():
        hdf5.put(group, name, contents.add(values))


def _in_series(records: list[Record], left_out: Array, size_px: int) -> dict[str, Array]:
    """What all projections that count say of each of them."""

    def values(name: str) -> Array:
        return np.array([layout.COLUMNS[name].get(record) for record in records])

    totals = np.where(left_out, np.nan, values("total_intensity"))
    across_px, along_px = about_axis(values("mass_x_px"), values("mass_y_px"), values("tilt_axis_deg"))
    expected = values("expected_error")
    error = error_in_series(expected, totals, values("vacuum_fraction"), values("edge_contact"), size_px)
    return {
        "intensity_ratio": intensity_ratio(totals),
        "mass_residual_px": mass_residual_px(values("tilt_deg"), np.where(left_out, np.nan, across_px), along_px),
        "expected_error_in_series": error,
        "trust_in_series": trust_in_series(values("trust"), expected, error),
    }


def _write_about(file: h5py.File, shown: Shown, about: About) -> None:
    group, records = file.create_group(layout.ABOUT), shown.records
    hdf5.describe(
        group,
        name=about.name,
        opened_utc=_utc(about.opened_at),
        closed_utc="" if about.closed_at is None else _utc(about.closed_at),
        generation=about.generation,
        expected=about.expected,
        stored=len(records),
        superseded=sum(layout.superseded(records)),
        excluded=sum(record.number in shown.decisions.excluded for record in records),
        edition=shown.decisions.edition,
        decisions=shown.decisions.text,
        **_edition_facts(shown.edition),
        duplicates=about.duplicates,
        microscope=next((record.acquisition.microscope for record in records if record.acquisition.microscope), ""),
        software=f"aet_stream {__version__}",
        config=about.config,
    )


def _edition_facts(about: edition.About | None) -> dict[str, str]:
    """Who made the chosen edition, and with what: enough to write its file anew."""
    worker = {"made_by": "worker", "settings": "{}"}
    facts = worker if about is None else {name: getattr(about, name) for name in (*MAKER, "content_sha256")}
    if about is not None:
        facts["settings"] = json.dumps(about.settings, sort_keys=True)
    return {f"edition_{name}": facts.get(name, "") for name in (*MAKER, "content_sha256")}


def _write_nxtomo(file: h5py.File, shown: Shown, about: About, shape: tuple[int, ...], contents: layout.Contents) -> None:
    """The same frames and tilts by the names of NXtomo, and a plot of them with its axes."""
    for path, name in NXCLASSES.items():
        hdf5.describe(file.require_group(path), NX_class=name)
    entry, records = file[layout.NXTOMO], shown.records
    counting = (record for record, gone in zip(records, shown.left_out, strict=True) if not gone)
    sizes_nm = (record.acquisition.pixel_size_nm for record in (*counting, *records))
    size_nm = next((size for size in sizes_nm if size is not None), np.nan)
    keys = np.where(shown.left_out, NXTOMO_INVALID, NXTOMO_PROJECTION).astype(np.int32)
    times = [about.opened_at, *(record.closed_at for record in records if np.isfinite(record.closed_at))]
    for key, value in {
        "definition": "NXtomo",
        "title": about.name,
        "start_time": _utc(min(times)),
        "end_time": _utc(max(times)),
        "instrument/source/name": "STEM",
        "instrument/source/probe": "electron",
        "sample/name": about.name,
        "instrument/detector/image_key": keys,
        "instrument/detector/image_key_control": keys,
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
        hdf5.describe(entry[key], **attributes)
        contents.add_texts(attributes)
    nexus.make_plot(entry["data"], "data", ("rotation_angle", "y", "x"), title=about.name)
    nexus.set_default(file, *layout.NXTOMO.strip("/").split("/"), "data")


def _utc(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
