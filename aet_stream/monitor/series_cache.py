"""The series on disk, read for viewers: one projection a read, from committed files, found by id and never by a path from outside.

Everything here runs in one thread of the monitor and reads only. Old rows, frames and their metrics are forgotten: memory stays bounded
however long the day.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import h5py
import msgspec
import numpy as np

from aet_stream import layout
from aet_stream.edition import FIRST, Edition
from aet_stream.errors import StoreError
from aet_stream.film import film_file
from aet_stream.monitor import frames
from aet_stream.monitor.frame_metrics import FrameMetrics, measured
from aet_stream.naming import ATOMS_FILE, ATOMS_NOTE_FILE, FILM_FILE, PREVIEW_FILE, VOLUME_FILE, shown
from aet_stream.projection import Array, Quality
from aet_stream.reasons import Reason
from aet_stream.series import Series

ROWS_SHOWN = 1000
"""Of a longer series, the last ones."""
FRAMES_MIB = 192
ENCODED_MIB = 96
METRICS = 4096
SMALL_ONES = 600
KINDS = ("raw", "clean", "background")
PLANES = ("xy", "xz", "yz")
FILM_PICTURES = ("map", "sd")
FILM_PICTURES_OF_ONE = ("first", "series", "classical", "correction")
"""Backgrounds of one projection: of edition 1, by the series alone, by Laplace; and what the series changes."""
_WIDEST_FILM = 1.5
"""Of a film, so much is shown, in half widths of the frame: what lies beyond, only the steepest tilts see."""
_LARGE_VOLUME_BYTES = 600 << 20
_SLUG = re.compile(r"[0-9a-f]{16}")
_UNSHOWN = frozenset({"sha256", "config_sha256", "stamp", "tilt_candidates", "series", "software", "watch_root"})
_V = TypeVar("_V")

Row = dict[str, Any]
"""One projection: every figure of its record by name; None where a number is not known."""


def series_id(name: str) -> str:
    """How a series is named in addresses: 16 hexadecimal digits, so that no folder name ever is part of one."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Recent(Generic[_V]):
    """The values used last, up to a total weight."""

    def __init__(self, limit: float, weight: Callable[[_V], float] = lambda _: 1.0) -> None:
        self._limit, self._weight, self._total = limit, weight, 0.0
        self._values: OrderedDict[Hashable, _V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _V]) -> _V:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: _V) -> None:
        if key in self._values:
            self._total -= self._weight(self._values.pop(key))
        self._values[key] = value
        self._total += self._weight(value)
        while self._total > self._limit and len(self._values) > 1:
            _, dropped = self._values.popitem(last=False)
            self._total -= self._weight(dropped)

    def peek(self, key: Hashable) -> _V | None:
        return self._values.get(key)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True, slots=True)
class Table:
    """What `series.h5` says, its last rows."""

    name: str
    about: dict[str, Any]
    stored: int
    rows: list[Row]
    shape: tuple[int, int]
    closed: bool
    digest: str
    """Of all rows that count."""


class SeriesCache:
    """All series under one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables: Recent[tuple[tuple[int, ...], Table]] = Recent(4)
        self._frames: Recent[layout.Planes] = Recent(FRAMES_MIB << 20, lambda pair: sum(image.nbytes for image in pair.values()))
        self._encoded: Recent[frames.Encoded] = Recent(ENCODED_MIB << 20, lambda encoded: len(encoded.body))
        self._figures: Recent[dict[str, float]] = Recent(METRICS)
        self._small: Recent[Array] = Recent(SMALL_ONES)
        self._films: Recent[tuple[tuple[int, ...], dict[str, Any] | None]] = Recent(4)

    # -- which there are ----------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Folders with a series, the latest written first."""
        found = []
        try:
            for folder in self.root.iterdir():
                path = folder / layout.SERIES_FILE
                if path.is_file():
                    found.append((path.stat().st_mtime, folder.name))
        except OSError:
            return [name for _, name in sorted(found, reverse=True)]
        return [name for _, name in sorted(found, reverse=True)]

    def name_of(self, wanted: str) -> str:
        """The series with this id.

        Raises
        ------
        StoreError : there is none
        """
        if _SLUG.fullmatch(wanted):
            for name in self.names():
                if series_id(name) == wanted:
                    return name
        raise StoreError("no such series")

    # -- rows -------------------------------------------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """Rows of a series, in order of arrival; read anew only when the file is another one.

        Raises
        ------
        StoreError : it cannot be read
        """
        path = self.root / name / layout.SERIES_FILE
        key = _key(path)
        kept = self._tables.peek(name)
        if kept is None or kept[0] != key:
            kept = (key, _read_table(name, path))
            self._tables.put(name, kept)
        return kept[1]

    def known_rows(self, name: str) -> list[Row]:
        """The rows as they were read last, without a look at the disk."""
        kept = self._tables.peek(name)
        return [] if kept is None else kept[1].rows

    def row(self, name: str, number: int) -> Row:
        """One row, also of those that `table` leaves out.

        Raises
        ------
        StoreError : no such projection
        """
        for row in reversed(self.table(name).rows):
            if row["number"] == number:
                return row
        path = self._projection_path(name, number)
        if not path.exists():
            with Series(self.root / name / layout.SERIES_FILE) as series:
                from_it_on = series.last_columns(len(series) - _row_of(series, number))
                return as_row({column: values.tolist()[0] for column, values in from_it_on.items()})
        try:
            with h5py.File(path, "r", locking=False) as file:
                return as_row(layout.flat(layout.read_record(file)))
        except OSError as error:
            raise StoreError(f"no projection {number} in this series") from error

    # -- pixels -----------------------------------------------------------------------------------------------------------------

    def _projection_path(self, name: str, number: int) -> Path:
        return self.root / name / layout.PROJECTIONS / layout.file_name(number)

    def pixels(self, name: str, row: Row) -> layout.Planes:
        """The planes of one projection (`raw`, `clean`), checked against their checksums.

        Raises
        ------
        StoreError : missing or damaged
        """
        return self._frames.get((name, row["number"], row["clean_crc32"]), lambda: self._read_pixels(name, row))

    def _read_pixels(self, name: str, row: Row) -> layout.Planes:
        path = self._projection_path(name, row["number"])
        if path.is_file() and row.get("edition", FIRST) == FIRST:
            return layout.read_projection(str(path))[1]
        # projection files may be removed after closing: then series.h5 holds the pixels itself
        with Series(self.root / name / layout.SERIES_FILE) as series:
            at = _row_of(series, row["number"])
            if series.edition_of(at) == row.get("edition", FIRST):
                return series.planes(at)
            return {"raw": series.raw(at), "clean": self._of_edition(series, at, row["edition"])[0]}

    def _of_edition(self, series: Series, at: int, wanted: int) -> tuple[Array, Quality]:
        """(clean, figures) of a row in another edition than the one that is shown."""
        if wanted == FIRST:
            return series.first(at)
        path, number = series.path.parent / layout.EDITIONS / layout.edition_file(wanted), int(series.column("number")[at])
        with Edition(path) as found:
            if number not in found.rows:
                raise StoreError(f"edition {wanted} has no projection {number}")
            return found.clean(number), found.rows[number].quality

    def editions(self, name: str) -> list[int]:
        """Which ones there are."""
        return sorted({FIRST, *layout.edition_files(self.root / name)})

    def in_edition(self, name: str, row: Row, wanted: int) -> Row:
        """A row as another edition has it.

        Raises
        ------
        StoreError : it does not have it
        """
        if wanted == row.get("edition", FIRST):
            return row
        with Series(self.root / name / layout.SERIES_FILE) as series:
            clean, quality = self._of_edition(series, _row_of(series, row["number"]), wanted)
        figures = {key: _plain(value) for key, value in msgspec.to_builtins(quality).items()}
        return {**row, **figures, "edition": wanted, "clean_crc32": layout.crc32(clean), "trust_in_series": figures["trust"]}

    def difference(self, name: str, row: Row, other: Row) -> dict[str, Any]:
        """How far a projection's background in one edition lies from that in another, in counts, and the figures of both."""
        one, another = self.pixels(name, row)["clean"], self.pixels(name, other)["clean"]
        between = another.astype(np.float64) - one
        rms, spread = float(np.sqrt(np.mean(between**2))), float(one.std())
        figures = {
            "rms": rms,
            "mean": float(between.mean()),
            "largest": float(np.abs(between).max()),
            "of_contrast": rms / (spread or float("nan")),
        }
        said = {key: [each.get(key) for each in (row, other)] for key in ("edition", "model", "trust")}
        return {**{key: _plain(value) for key, value in figures.items()}, **said}

    def image(self, name: str, row: Row, kind: str) -> Array:
        """raw, clean or background = raw - clean."""
        planes = self.pixels(name, row)
        return planes["raw"].astype(np.float32) - planes["clean"] if kind == "background" else planes[kind]

    def encoded(self, name: str, row: Row, kind: str, factor: int) -> frames.Encoded:
        """Ready to send; many viewers ask for the same."""
        key = (name, row["number"], row["clean_crc32"], kind, factor)
        return self._encoded.get(key, lambda: frames.encode(frames.binned(self.image(name, row, kind), factor)))

    # -- metrics ----------------------------------------------------------------------------------------------------------------

    def known_figures(self, name: str, row: Row) -> dict[str, float] | None:
        """What has been seen in it already."""
        return self._figures.peek((name, row["number"], row["clean_crc32"]))

    def figures(self, name: str, row: Row) -> dict[str, float]:
        """Measured at first use; the record's own figure of the same name has precedence in `as_row`."""
        return self._figures.get((name, row["number"], row["clean_crc32"]), lambda: self._look(name, row).figures)

    def small(self, name: str, row: Row) -> Array:
        """A small clean picture, float32."""
        return self._small.get((name, row["number"], row["clean_crc32"]), lambda: self._look(name, row).small)

    def known_small(self, name: str, row: Row) -> Array | None:
        """The small picture, if it has been made lately."""
        return self._small.peek((name, row["number"], row["clean_crc32"]))

    def _look(self, name: str, row: Row) -> FrameMetrics:
        planes = self.pixels(name, row)
        seen = measured(planes["raw"], planes["clean"])
        key = (name, row["number"], row["clean_crc32"])
        self._figures.put(key, seen.figures)
        self._small.put(key, seen.small)
        return seen

    # -- films ------------------------------------------------------------------------------------------------------------------

    def film(self, name: str) -> dict[str, Any] | None:
        """The films of a series as they have been seen so far, without pictures; None: nobody has looked yet."""
        path = self.root / name / FILM_FILE
        try:
            key = _key(path)
        except StoreError:
            return None
        kept = self._films.peek(name)
        if kept is None or kept[0] != key:
            kept = (key, _read_film(path))
            self._films.put(name, kept)
        return None if kept[1] is None else {**kept[1], "v": "-".join(map(str, key))}

    def film_picture(self, name: str, which: str, number: int | None = None) -> Array:
        """One of FILM_PICTURES: of the series, or of one projection; float32.

        Raises
        ------
        StoreError : there is none
        """
        path, wanted = self.root / name / FILM_FILE, f"rows/{which}_counts"
        if number is None:
            found = film_file.read(path, "film/map_counts", "film/sd_counts", "film/along_px", "film/across_px")
            if found is None:
                raise StoreError("no film has been seen")
            return _evenly(found[0], which)
        found = film_file.read(path, "rows/number", wanted)
        places = np.flatnonzero(found[0]["rows/number"] == number) if found else np.zeros(0, np.int64)
        if found is None or not places.size:
            raise StoreError(f"the film says nothing of projection {number}")
        picture: Array = found[0][wanted][places[0]]
        return picture

    def film_encoded(self, name: str, which: str, number: int | None = None) -> frames.Encoded:
        """Ready to send."""
        about = self.film(name)
        key = (name, about and about["v"], which, number)
        return self._encoded.get(key, lambda: frames.encode(self.film_picture(name, which, number)))

    # -- volume -----------------------------------------------------------------------------------------------------------------

    def volume(self, name: str) -> dict[str, Any] | None:
        """Where orthoslices can be had: the newer of preview and reconstruction, or None."""
        found = [path for path in (self.root / name / PREVIEW_FILE, self.root / name / VOLUME_FILE) if path.is_file()]
        for path in sorted(found, key=_key, reverse=True):
            try:
                with h5py.File(path, "r", locking=False) as file:
                    return _about_volume(path, file) | self._age(name, path, file)
            except (OSError, KeyError, RuntimeError, ValueError, AttributeError):
                continue  # half of one, or not ours
        return None

    def _age(self, name: str, path: Path, file: h5py.File) -> dict[str, Any]:
        """Which edition it is of, and whether the series shows something else by now; of a preview only whether that is another edition."""
        attributes = file.attrs if path.name == PREVIEW_FILE else file["reconstruction"].attrs
        number = int(attributes.get("edition", FIRST))
        try:
            table = self.table(name)
        except StoreError:
            return {"edition": number, "outdated": False}
        other = number != int(table.about.get("edition", FIRST))
        changed = path.name == VOLUME_FILE and str(attributes.get("series_digest", table.digest)) != table.digest
        return {"edition": number, "outdated": other or changed}

    def atoms(self, name: str) -> dict[str, Any] | None:
        """What is known of the atoms of a series: of those that were found, or why there are none, or how many there may be."""
        folder = self.root / name
        about: dict[str, Any] = {}
        try:
            with h5py.File(folder / ATOMS_FILE, "r", locking=False) as file:
                about = _about_atoms(folder / ATOMS_FILE, file) | {"outdated": self._atoms_outdated(name, file)}
        except (OSError, KeyError, RuntimeError, ValueError, AttributeError, StoreError):
            pass  # none, half of some, or not ours
        try:
            note = json.loads((folder / ATOMS_NOTE_FILE).read_bytes())
            about |= {"note": str(note["text"]), "note_at": float(note["at"])}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return about or None

    def _atoms_outdated(self, name: str, file: h5py.File) -> bool:
        """Is the volume another one by now, or does the series show something else than they were made from?"""
        attributes, table = file["atoms"].attrs, self.table(name)
        checksum = attributes["volume_crc32"]
        with contextlib.suppress(OSError, KeyError), h5py.File(self.root / name / VOLUME_FILE, "r", locking=False) as volume:
            checksum = volume["reconstruction/volume"].attrs["crc32"]
        of_series = (int(attributes["edition"]), str(attributes["series_digest"]))
        return checksum != attributes["volume_crc32"] or of_series != (int(table.about.get("edition", FIRST)), table.digest)

    def atom_places(self, name: str) -> bytes:
        """(n, 3) float32 angstrom and then (n,) uint8 kinds, little endian.

        Raises
        ------
        StoreError : there are none
        """
        try:
            with h5py.File(self.root / name / ATOMS_FILE, "r", locking=False) as file:
                places, kinds = file["atoms/angstrom"][()], file["atoms/kinds"][()]
        except (OSError, KeyError, RuntimeError) as error:
            raise StoreError("no atoms of this series") from error
        return bytes(places.astype("<f4").tobytes() + kinds.astype(np.uint8).tobytes())

    def atom_file(self, name: str, suffix: str) -> bytes:
        """What lies beside `atoms.h5`: `.xyz` or `.png`.

        Raises
        ------
        StoreError : it is not there
        """
        try:
            return (self.root / name / ATOMS_FILE).with_suffix(suffix).read_bytes()
        except OSError as error:
            raise StoreError("no atoms of this series") from error

    def plane(self, name: str, plane: str) -> frames.Encoded:
        """One orthoslice of what `volume` names.

        Raises
        ------
        StoreError : there is none
        """
        about = self.volume(name)
        if about is None or plane not in about["planes"]:
            raise StoreError("no such slice")
        return self._encoded.get((name, about["v"], plane), lambda: frames.encode(self.slice(name, about["file"], plane)))

    def slice(self, name: str, file_name: str, plane: str) -> Array:
        """One orthoslice, float32.

        Raises
        ------
        StoreError : it cannot be read
        """
        try:
            with h5py.File(self.root / name / file_name, "r", locking=False) as file:
                return _slice(file, plane).astype(np.float32)
        except (OSError, KeyError, RuntimeError) as error:
            raise StoreError(f"{file_name} cannot be read: {error}") from error


def _read_film(path: Path) -> dict[str, Any] | None:
    found = film_file.read(path, *(f"rows/{name}" for name in _FILM_ROWS), *(f"geometry/{name}" for name in _FILM_GEOMETRY))
    if found is None:
        return None
    told, facts = found
    columns = {name: told[f"rows/{name}"].tolist() for name in _FILM_ROWS}
    columns["taken"] = [taken.decode() for taken in columns["taken"]]
    rows = {number: {name: _plain(values[place]) for name, values in columns.items()} for place, number in enumerate(columns["number"])}
    geometry = {name: told[f"geometry/{name}"].tolist() for name in _FILM_GEOMETRY}
    kept = ("projections", "seconds", "made_at", "series", "mixed", "single", "unit_counts")
    doubts = [msgspec.json.decode(text, type=Reason) for text in msgspec.json.decode(str(facts["doubts"]), type=list[str])]
    return {
        **{name: facts[name] for name in kept},
        **{name: [_plain(value) for value in values] if isinstance(values, list) else _plain(values) for name, values in geometry.items()},
        "rows": rows,
        "doubts": [doubt.with_remedy() for doubt in doubts],
    }


_FILM_ROWS = ("number", "tilt_deg", "taken", "share", "score", "changed_counts", "spread_counts")
_FILM_GEOMETRY = ("heights_px", "growing", "turn_deg", "slope", "radius_px")


def _evenly(told: dict[str, Array], which: str) -> Array:
    """All films together, or how well they are known (1: as well as before anything was seen), on even places."""
    along, across = told["film/along_px"], told["film/across_px"]
    step = float(np.diff(along).min())
    half = min(float(across[-1]), _WIDEST_FILM * float(along[-1]))
    even = np.arange(-half, half + step / 2, step)
    sd = np.sqrt(np.square(told["film/sd_counts"]).sum(0))
    surface = told["film/map_counts"].sum(0) if which == "map" else sd / max(float(sd.max()), 1e-30)
    picture = np.stack([np.interp(even, across, line) for line in surface])
    return picture.astype(np.float32)


def _key(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError as error:
        raise StoreError(f"{shown(path.parent.name)} has no {path.name}") from error
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _read_table(name: str, path: Path) -> Table:
    with Series(path) as series:
        try:
            columns = series.last_columns(ROWS_SHOWN)
            rows = [as_row(dict(zip(columns, values, strict=True))) for values in zip(*(v.tolist() for v in columns.values()), strict=True)]
            return Table(name, series.about, len(series), rows, series.shape, series.closed, series.digest)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error


def _row_of(series: Series, number: int) -> int:
    rows = np.flatnonzero(series.column("number") == number)
    if not rows.size:
        raise StoreError(f"projection {number} is not there")
    return int(rows[0])


def as_row(values: dict[str, Any]) -> Row:
    """A record as it is sent: plain JSON, numbers that are not finite as None; long texts that nobody reads left out.

    Until the series says more, its word on the trust is that of the projection itself.
    """
    row = {key: _plain(value) for key, value in values.items() if key not in _UNSHOWN}
    row["path"] = shown(str(row.get("path", "")))
    row.setdefault("trust_in_series", row.get("trust"))
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _about_volume(path: Path, file: h5py.File) -> dict[str, Any]:
    if path.name == PREVIEW_FILE:
        group = file["orthoslices"]
        attributes = {key: _plain(value.item() if isinstance(value, np.generic) else value) for key, value in group.attrs.items()}
        attributes |= {key: _plain(value.item() if isinstance(value, np.generic) else value) for key, value in file.attrs.items()}
        shapes = {plane: list(group[plane].shape) for plane in PLANES if plane in group}
        kind = "preview"
    else:
        volume = file["reconstruction/volume"]
        slow = volume.size * volume.dtype.itemsize > _LARGE_VOLUME_BYTES  # a cut across the last axis would read all of it
        shapes = {plane: list(_shape(volume.shape, plane)) for plane in (PLANES[:2] if slow else PLANES)}
        given = file["reconstruction"].attrs
        attributes = {
            "voxel_size_nm": _plain(float(given["voxel_size_nm"])),
            "method": str(given["method"]),
        }
        attributes["tilts"] = len(file["reconstruction/tilts_deg"])
        if "quality" in file["reconstruction"]:
            judged = file["reconstruction/quality"].attrs
            attributes["resolution_nm"] = _plain(float(judged["resolution_nm"]))
            attributes["axis_doubt"] = str(judged.get("axis_doubt", ""))
        kind = "reconstruction"
    attributes["done_at"] = path.stat().st_mtime
    wanted = {key: attributes.get(key) for key in ("tilts", "done_at", "voxel_size_nm", "method", "resolution_nm", "axis_doubt")}
    if isinstance(wanted["tilts"], np.ndarray):  # the tilts themselves rather than their number
        wanted["tilts"] = int(wanted["tilts"].size)
    return {"kind": kind, "file": path.name, "planes": shapes, "v": "-".join(map(str, _key(path))), **wanted}


def _about_atoms(path: Path, file: h5py.File) -> dict[str, Any]:
    group = file["atoms"]
    kinds, attributes = group["species"], group.attrs
    columns = [kinds[name][()].tolist() for name in ("symbols", "counts", "mean_weights")]
    return {
        "v": "-".join(map(str, _key(path))),
        "count": len(group["weights"]),
        "kinds": [
            {"symbol": shown(_plain(symbol)), "count": count, "weight": _plain(weight)}
            for symbol, count, weight in zip(*columns, strict=True)
        ],
        "sigma_angstrom": _plain(float(np.median(group["sigmas_angstrom"][()]))),
        "tilts": int(np.count_nonzero(group["tilts/left_out"][()] == 0)),
        "doubts": [shown(line) for line in str(attributes["doubts"]).splitlines()],
        "edition": int(attributes["edition"]),
        "done_at": path.stat().st_mtime,
    }


def _shape(shape: tuple[int, ...], plane: str) -> tuple[int, int]:
    """Volume axes are [y, z, x]: slice along the tilt axis, depth, column (reconstruct/run.py)."""
    y, z, x = shape
    return {"xy": (y, x), "xz": (z, x), "yz": (y, z)}[plane]


def _slice(file: h5py.File, plane: str) -> Array:
    if "orthoslices" in file:
        image: Array = file["orthoslices"][plane][()]
        return image
    volume = file["reconstruction/volume"]
    y, z, x = (edge // 2 for edge in volume.shape)
    middle: Array = {"xz": lambda: volume[y], "xy": lambda: volume[:, z], "yz": lambda: volume[:, :, x]}[plane]()
    return middle
