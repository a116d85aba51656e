"""One series on disk, and the commit protocol.

A projection is stored once its file has its final name and the folder is synced. Then `series.h5` is rewritten to show it. Then, and only
then, the ledger and the world hear of it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import h5py

from aet_stream import durable, edition, failpoints, hdf5, layout, pieces
from aet_stream.edition import FIRST, Edition
from aet_stream.errors import OutputFull, StoreError, Unstorable
from aet_stream.hub import first_edition, stacks
from aet_stream.hub.chosen import Chosen
from aet_stream.hub.closed_file import ClosedFile
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.decisions import DECISIONS, Decisions
from aet_stream.hub.master import About, Shown, Source, write_contiguous, write_virtual
from aet_stream.judging import Row, Rows
from aet_stream.layout import PLANES, PROJECTIONS, SERIES_FILE, Planes, Record
from aet_stream.projection import Array, VisitKey
from aet_stream.readers import path_stamp

logger = logging.getLogger(__name__)

#: Whose projection it is: (path, image, SHA-256 of the raw pixels).
Identity = tuple[str, int, str]

_SEGMENT = re.compile(r"segment_(\d{6})_(\d{6})\.h5")


@dataclass(frozen=True, slots=True)
class Draft:
    """A projection on its way to the disk."""

    record: Record
    planes: Planes
    extras: Planes = field(default_factory=dict)
    """What is kept beside a mean of frames."""


class Found(NamedTuple):
    """What the present `series.h5` says."""

    rows: dict[int, Identity]
    """Number -> whose projection it is, also of those of another frame size; none when the file is missing or damaged."""
    closed: bool
    """Is it the one file of a closed series?"""
    decisions: str
    """Those that it was written by, as text."""


class SeriesStore:
    """The only writer of one series folder."""

    def __init__(self, folder: Path, guard: CrashGuard, *, fold_rows: int) -> None:
        self.folder = folder
        self.name = folder.name
        self.records: list[Record] = []
        """Of the projections that are rows of `series.h5`."""
        self.apart: list[Record] = []
        """The others: set aside, and of another frame size."""
        self._stored: list[tuple[Record, Array]] = []
        """All of them in order of their numbers, with a frame of their shape and dtype."""
        self._visits: set[VisitKey] = set()
        self.rows = Rows()
        """What the records say about images that come after them."""
        self._newest: dict[tuple[str, int], Record] = {}
        """(path, image) -> what was last stored of it, alone or within a mean."""
        self._guard = guard
        self.chosen = Chosen(folder, guard)
        self._next_number = 0
        self._fold_rows = fold_rows
        self._segments: list[tuple[int, int]] = []
        """(first, end) positions in `records` that a segment file holds."""
        self._frame: Array | None = None
        """A raw frame without content: shape and dtype of the series, which are those of its last projection. One of another size comes
        only when none that is there counts."""
        self._closed: ClosedFile | None = None
        self.packed: set[int] = set()
        """Numbers of projections without a file of their own: a closed `series.h5` has them."""
        self._to_keep = False
        """Is `series.h5` damaged, or does it hold what nobody could take up?"""

    @property
    def next_number(self) -> int:
        """Never one that a file has had before: an old master that somebody holds open must not show other pixels."""
        return self._next_number

    def holds(self, visit: VisitKey) -> bool:
        """Is this state of a source image stored?"""
        return visit in self._visits

    def closed_bytes(self) -> int:
        """Pixels of the one file that it would be closed into."""
        return sum(layout.nbytes(record, frame) for record, frame in self._stored)

    def current(self) -> list[Record]:
        """What was neither superseded nor set aside."""
        aside = self.chosen.decisions.excluded
        return [record for record in self.records if self._newest[record.visit.source] is record and record.number not in aside]

    @property
    def stored(self) -> list[Record]:
        """Of all projections, rows or not, in order of their numbers."""
        return [record for record, _ in self._stored]

    def form_apart(self, number: int) -> str:
        """What is another about a projection that no row can show; empty: it is a row."""
        its = next((frame for record, frame in self._stored if record.number == number and record in self.apart), None)
        if its is None or self._frame is None:
            return ""
        (height, width), (its_height, its_width) = self._frame.shape, its.shape
        return f"{its_height} x {its_width} px of {its.dtype}, and the series {height} x {width} px of {self._frame.dtype}"

    def _take(self, record: Record, frame: Array) -> None:
        """Note a projection that is stored; `frame`: an image of its shape and dtype."""
        self._stored.append((record, layout.without_content(frame)))
        if self._frame is None or layout.form(frame) != layout.form(self._frame):
            self._show_those_like(frame)
        else:
            self.records.append(record)
        self.rows.take(_row(record, frame))
        self._visits.add(record.visit)
        self._newest |= dict.fromkeys(record.sources, record)
        self._next_number = max(self._next_number, record.number + 1)

    def _show_those_like(self, frame: Array) -> None:
        """From now on the rows are those of this shape and dtype."""
        self._frame, self._segments = layout.without_content(frame), []
        self.records = [record for record, its in self._stored if layout.form(its) == layout.form(frame)]
        self.apart = [record for record, its in self._stored if layout.form(its) != layout.form(frame)]

    def decide(self, decisions: Decisions) -> list[str]:
        """From now on this is decided, durably; returns what is wrong with the edition that it chooses.

        Raises
        ------
        OutputFull : the disk does not take it; nothing has changed
        """
        complaints = self.chosen.decide(decisions)
        self._take_note()
        return complaints

    def _take_note(self) -> None:
        decisions = self.chosen.decisions
        self.rows.decided(decisions.excluded, decisions.restored)

    # -- commit -----------------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Draft]) -> int:
        """Store projections durably, as many as the disk takes; returns how many.

        The first missing one did not fit: keep it and try again later.

        Raises
        ------
        OutputFull : the disk takes none of them
        Unstorable : which of them can never be written; none of the batch is stored
        """
        folder, version = self.folder / PROJECTIONS, self._version(batch[0].planes["raw"])
        drafts: list[Path] = []
        taken: list[Draft] = []
        try:
            with durable.disk_errors(folder):
                durable.make_folder(folder)
            for draft in batch:
                record, path = draft.record, folder / layout.file_name(draft.record.number)
                with durable.disk_errors(path):
                    image = layout.projection_image(record, draft.planes, draft.extras, version=version)
                    durable.write_synced(durable.temporary(path), image, "projection")
                drafts.append(path)
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            for path in drafts:
                durable.temporary(path).unlink(missing_ok=True)
            raise Unstorable(record.number, f"its metadata cannot be stored: {error}: mend the file, or leave it out") from error
        except OutputFull:
            if not drafts:
                raise
        with durable.disk_errors(folder):
            for draft, path in zip(batch, drafts, strict=False):
                failpoints.reach("projection.synced", durable.temporary(path))
                durable.temporary(path).replace(path)
                failpoints.reach("projection.renamed", path)
                taken.append(draft)
            durable.sync_folder(folder)  # from here on they are stored, whatever happens
        failpoints.reach("projection.durable", folder)
        for draft in taken:
            self._take(draft.record, draft.planes["raw"])
        return len(taken)

    def _version(self, raw: Array) -> int:
        """Of a projection file: beside others of another size a version from before would call it damaged."""
        alike = not self.apart and (self._frame is None or layout.form(raw) == layout.form(self._frame))
        return layout.UNDECIDED_VERSION if alike else layout.LAYOUT_VERSION

    def write_master(self, about: About) -> None:
        """Show all stored projections in `series.h5`.

        Raises
        ------
        StoreError : a source is missing or not as it was written; `series.h5` is left as it was
        """
        for _ in self.unpacking():
            pass
        if self._frame is not None:
            path = self.folder / SERIES_FILE
            if self._to_keep and path.exists():
                logger.error("%s: not all of it could be taken up; %s", path, self._guard.move(path))
            self._to_keep = False
            write_virtual(self.folder, self.chosen.shown(self.records, self.apart), self._sources(), self._frame, about)

    def _sources(self) -> list[Source]:
        """Segments first, then single files."""
        sources = [Source(f"{PROJECTIONS}/{_segment_name(first, end)}", end - first, folded=True) for first, end in self._segments]
        single = self.records[self._folded :]
        return sources + [Source(f"{PROJECTIONS}/{layout.file_name(record.number)}") for record in single]

    # -- closing ----------------------------------------------------------------------------------------------------------------

    def reading(self, record: Record) -> Generator[None, None, Planes]:
        """The pixels of a projection as they were stored, checked, piece by piece."""
        if self._closed is not None and record.number in self.packed:
            return (yield from self._closed.reading(record))
        path = self.folder / PROJECTIONS / layout.file_name(record.number)
        stored, planes = yield from self._guard.pieces(path, layout.reading_projection(str(path)))
        if not layout.same(stored, record):
            raise StoreError(f"{self.folder}: projection {record.number} is not the one that was stored")
        return planes

    def close(self, about: About) -> Generator[None]:
        """Make `series.h5` one contiguous, verified file; yields often, so that the hub can go on with other things."""
        if self._frame is None:
            return
        shown, draft = self.chosen.shown(self.records, self.apart), durable.temporary(self.folder / SERIES_FILE)

        def reading(row: int) -> Generator[None, None, Planes]:
            planes = yield from self.reading(self.records[row])
            clean = yield from self.chosen.reading_clean(self.records[row])
            return planes if clean is None else {**planes, "clean": clean}

        try:
            with durable.disk_errors(draft):
                yield from self._keep_first(shown)
                failpoints.reach("close.begin", draft)
                yield from write_contiguous(draft, shown, reading, self.reading, self._frame, about)
                durable.put_in_place(draft, self.folder / SERIES_FILE, "close")
        finally:
            draft.unlink(missing_ok=True)

    # -- editions ---------------------------------------------------------------------------------------------------------------

    def _keep_first(self, shown: Shown) -> Generator[None]:
        """Of a closed file that shows another edition, edition 1 goes into a file of its own: projection files may be taken away."""
        needed = [record for record, place in zip(self.records, shown.places, strict=True) if place is not None]
        path = self.chosen.path(FIRST)
        if self._frame is None or not needed or first_edition.holds(path, self._guard, needed):
            return
        closed, packed, (height, width) = self._closed, sorted(self.packed), self._frame.shape
        extras = ((number, closed.extras(number)) for number in packed if closed is not None)
        yield from first_edition.write(path, self.name, self.records, (height, width), self.reading, lambda: extras)

    def taking(self, key: str, number: int) -> Generator[None]:
        """Check the finished edition of this key, and give it its number; yields often.

        Raises
        ------
        StoreError : it is damaged, or of another series than this
        """
        path, target = edition.made_path(self.folder, key), self.chosen.path(number)
        with durable.disk_errors(path):
            failpoints.reach("take.begin", path)
            with self._guard.reading(path), Edition(path) as found:
                known = {record.number: record for record in self.records}
                strange = [number for number in found.rows if number not in known or not found.covers(known[number])]
                if strange:
                    raise StoreError(f"{path}: projections {strange[:10]} are not those of {self.name}: make it anew")
                if self._frame is None or found.shape != self._frame.shape:
                    raise StoreError(f"{path}: {found.shape} px are not those of {self.name}: make it anew")
            for _ in edition.reading_back(path):
                failpoints.reach("take.frame", path)
                yield
            failpoints.reach("take.checked", path)
            durable.put_in_place(path, target, "take")

    def editions(self, but: set[int]) -> dict[int, edition.About]:
        """Number -> what the editions on disk say of themselves, all `but` these; those that cannot be read are left out."""
        found: dict[int, edition.About] = {}
        for number, path in layout.edition_files(self.folder).items():
            if number in but:
                continue
            try:
                with self._guard.reading(path), Edition(path) as each:
                    found[number] = each.about
            except StoreError as error:
                logger.error("%s", error)
        return found

    # -- folding ----------------------------------------------------------------------------------------------------------------

    def fold(self) -> Generator[None]:
        """Fold the oldest single files into a segment, so that `series.h5` never spans too many files; yields often."""
        first, end = self._folded, self._folded + self._fold_rows
        path = self.folder / PROJECTIONS / _segment_name(first, end)
        draft = durable.temporary(path)
        try:
            with durable.disk_errors(path):
                failpoints.reach("fold.begin", draft)
                yield from self._write_segment(draft, first, end)
                durable.put_in_place(draft, path, "fold")
            self._segments.append((first, end))
        finally:
            draft.unlink(missing_ok=True)

    def needs_folding(self) -> bool:
        return len(self.records) - self._folded >= 2 * self._fold_rows

    @property
    def _folded(self) -> int:
        """Rows that lie in segments."""
        return self._segments[-1][1] if self._segments else 0

    def _write_segment(self, draft: Path, first: int, end: int) -> Generator[None]:
        records = self.records[first:end]
        if self._frame is None:
            return
        with hdf5.writing(draft, libver=layout.LIBVER) as file:
            file.attrs["numbers"], file.attrs["clean_crc32"] = _identity(records)
            yield from stacks.write(file, attrgetter("name"), records, lambda row: self.reading(records[row]), self._frame, "fold")
        failpoints.reach("fold.written", draft)
        durable.sync_file(draft)
        with h5py.File(draft, "r") as file:
            frame = yield from stacks.spoilt(file, attrgetter("name"), records)
            if frame is not None:
                raise StoreError(f"{draft}: frame {frame} does not read back as it was written")
        failpoints.reach("fold.checked", draft)

    # -- recovery ---------------------------------------------------------------------------------------------------------------

    def numbers_on_disk(self) -> list[int]:
        """Which projection files there are; their content is not looked at."""
        return list(layout.projection_files(self.folder))

    def remove_drafts(self) -> None:
        """Remove what a killed hub was writing, and what a reconstruction or a report that was killed has left."""
        first = f"{layout.EDITIONS}/.{layout.edition_file(FIRST)}.*.tmp"
        for pattern in (f".{SERIES_FILE}.*.tmp", f".{DECISIONS}.*.tmp", f"{PROJECTIONS}/.*.tmp", first):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        for path in (*self.folder.glob(".*.*.tmp"), *self.folder.glob(f"{layout.EDITIONS}/.*.*.tmp")):
            if durable.abandoned(path):
                path.unlink(missing_ok=True)

    def load(self, known: Mapping[int, object]) -> list[str]:
        """Take up what is on disk; returns what was wrong with it. Files that the ledger does not know are read whole.

        A damaged file is moved into quarantine. A closed `series.h5` stands for that, and for those that were pruned or that somebody
        deleted.
        """
        return pieces.finished(self.loading(known))

    def loading(self, known: Mapping[int, object]) -> Generator[None, None, list[str]]:
        """The same, piece by piece."""
        self.records, self.apart, self._stored, self._segments, self._frame = [], [], [], [], None
        self._visits, self.rows, self._newest = set(), Rows(), {}
        self._closed, self.packed = None, set()
        shown = self.shown()
        complaints = self.chosen.load(shown.decisions)
        self._take_note()
        found: dict[int, tuple[Record, Array]] = {}

        def load(number: int, *, whole: bool) -> None:
            try:
                found[number] = self._load_one(path_of(number), whole=whole)
            except StoreError as error:
                complaints.append(f"{error}; {self._guard.move(path_of(number))}")

        def path_of(number: int) -> Path:
            return self.folder / PROJECTIONS / layout.file_name(number)

        numbers = self.numbers_on_disk()
        self._next_number = max([*known, *numbers, *shown.rows], default=-1) + 1
        for number in numbers:
            load(number, whole=number not in known)
            yield
        closed_has = set(shown.rows) if shown.closed else set[int]()
        complaints += self._take_from_closed(closed_has - found.keys(), found, known)
        strange = self._strange(found)
        for number, complaint in strange:
            del found[number]
            where = "" if number in self.packed else f"; {self._guard.move(path_of(number))}"
            complaints.append(f"{path_of(number)}: {complaint}{where}")
        again = {number for number, _ in strange} - self.packed
        self.packed &= found.keys()
        complaints += self._take_from_closed(closed_has & again, found, known)
        self._to_keep = (self.folder / SERIES_FILE).exists() and (
            not shown.rows or (shown.closed and bool(shown.rows.keys() - found.keys()))
        )
        for number in sorted(found):
            self._take(*found[number])
        if found:
            self._show_those_like(self._frame_of(found))
        self._load_segments()
        return complaints

    def _frame_of(self, found: dict[int, tuple[Record, Array]]) -> Array:
        """A frame of the shape and dtype of most of those that count; where none does, of the last one."""
        counting = [frame for number, (_, frame) in found.items() if number not in self.chosen.decisions.excluded]
        forms = Counter(map(layout.form, counting))
        return max(counting, key=lambda frame: forms[layout.form(frame)]) if counting else [*found.values()][-1][1]

    def _strange(self, found: dict[int, tuple[Record, Array]]) -> list[tuple[int, str]]:
        """Which of these do not belong beside the others, and why."""
        strange: list[tuple[int, str]] = []
        frame, visits = self._frame_of(found) if found else None, set[VisitKey]()
        for number, (record, its) in found.items():
            if number not in self.chosen.decisions.excluded and frame is not None and layout.form(its) != layout.form(frame):
                series = f"{frame.shape} px of {frame.dtype}"
                strange.append((number, f"{its.shape} px of {its.dtype} do not belong to a series of {series}"))
            elif record.visit in visits:
                strange.append((number, f"{record.visit.path} image {record.visit.image} is stored already"))
            visits.add(record.visit)
        return strange

    def _take_from_closed(self, numbers: set[int], found: dict[int, tuple[Record, Array]], known: Mapping[int, object]) -> list[str]:
        """Add these to what was found; returns what is wrong with the closed file. What is not `known` is read whole."""
        if not numbers:
            return []
        try:
            self._closed = closed = ClosedFile(self.folder, self._guard)
        except StoreError as error:
            return [str(error)]
        complaints = closed.complaints
        for number in sorted(numbers & closed.known.keys()):
            record, frame = closed.known[number]
            try:
                if number not in known:
                    pieces.finished(closed.reading(record))
            except StoreError as error:
                complaints.append(str(error))
                continue
            found[number] = (record, frame)
            self.packed.add(number)
        return complaints

    def unpacking(self) -> Generator[None]:
        """Write the projection files anew that only a closed series has, since it is to be open again; yields after each.

        Raises
        ------
        StoreError : what a closed series has of one is not what was written
        OutputFull : the disk does not take it
        """
        closed = self._closed
        if closed is None:
            return
        with durable.disk_errors(self.folder / PROJECTIONS):
            durable.make_folder(self.folder / PROJECTIONS)
        records = {record.number: record for record in self.stored}
        for number in sorted(self.packed):
            beside_others = closed.apart and number not in closed.apart
            version = layout.LAYOUT_VERSION if beside_others else layout.UNDECIDED_VERSION
            planes = yield from closed.reading(records[number])
            if number not in self.packed:
                continue  # somebody was faster
            extras = closed.extras(number)
            image = layout.projection_image(records[number], planes, extras, version=version)
            path = self.folder / PROJECTIONS / layout.file_name(number)
            durable.replace(path, image, "unpack")
            self.packed.discard(number)
            with self._guard.reading(path):
                layout.read_projection(str(path))  # what is written now is soon the only one
            yield

    def check(self) -> list[str]:
        """Read every projection file whole, as `load` does with unknown ones, the chosen edition, a closed file; returns what was wrong."""
        packed = set(self.packed)
        complaints = self.load({}) + self.chosen.check()
        if gone := self.packed - packed:
            complaints.append(f"{self.folder}: {len(gone)} projection files are gone; {SERIES_FILE} has them")
        if self.shown().closed:
            try:
                complaints += [doubt for doubt in ClosedFile(self.folder, self._guard).doubts() if doubt]
            except StoreError as error:
                complaints.append(str(error))
        return complaints

    def _load_one(self, path: Path, *, whole: bool) -> tuple[Record, Array]:
        """The record, and a frame of its shape and dtype."""
        if whole:
            with self._guard.reading(path):
                record, planes = layout.read_projection(str(path))
            frame = planes["raw"]
        else:
            try:
                with self._guard.reading(path), h5py.File(path, "r", locking=False) as file:
                    record, frame = layout.read_record(file), layout.without_content(file["raw"])
                    if shapes := {name: file[name].shape for name in record.checksums if file[name].shape != frame.shape}:
                        raise StoreError(f"{path}: raw is {frame.shape}, {shapes}")
            except (OSError, KeyError, RuntimeError) as error:
                raise StoreError(f"{path}: not a readable projection file: {error}") from error
        if record.number != int(path.stem):
            raise StoreError(f"{path}: holds projection {record.number}")
        return record, layout.without_content(frame)

    def _load_segments(self) -> None:
        """Use segments that still match; anything else about them is rebuilt from the projection files."""
        for path in sorted((self.folder / PROJECTIONS).glob("segment_*.h5")):
            match = _SEGMENT.fullmatch(path.name)
            first, end = (int(match[1]), int(match[2])) if match else (-1, -1)
            expected = _identity(self.records[first:end])
            try:
                with self._guard.reading(path), h5py.File(path, "r", locking=False) as file:
                    found = (list(file.attrs["numbers"]), list(file.attrs["clean_crc32"]))
                    fits = (
                        end <= len(self.records)
                        and found == expected
                        and {len(file[plane.name]) for plane in PLANES if plane.name in file} == {end - first}
                    )
            except (OSError, KeyError, RuntimeError):
                fits = False
            if fits and first == self._folded:
                self._segments.append((first, end))

    def is_there(self) -> bool:
        """Is it a series at all?"""
        return (self.folder / PROJECTIONS).is_dir() or (self.folder / SERIES_FILE).exists()

    def stamp(self) -> str:
        """While this is the same, nobody has put anything into the folder, taken anything away or replaced it."""
        places = (self.folder, self.folder / PROJECTIONS, self.folder / layout.EDITIONS, self.folder / SERIES_FILE, self.folder / DECISIONS)
        return " ".join(map(path_stamp, places))

    def shown(self) -> Found:
        """What the present `series.h5` shows."""
        path = self.folder / SERIES_FILE
        try:
            with self._guard.reading(path), h5py.File(path, "r", locking=False) as file:
                columns = [file[f"{layout.PER_PROJECTION}/{name}"][()] for name in ("number", "path", "image", "sha256")]
                rows = {int(n): (path.decode(), int(image), sha256.decode()) for n, path, image, sha256 in zip(*columns, strict=True)}
                rows |= {number: _of(record) for number, record in layout.apart(file).items()}
                about = file[layout.ABOUT].attrs
                return Found(rows, bool(about["closed_utc"]), str(about.get("decisions", "")))
        except (OSError, KeyError, RuntimeError, ValueError, StoreError):
            return Found({}, False, "")

    def identities(self) -> dict[int, Identity]:
        """Number -> whose projection it is."""
        return {record.number: _of(record) for record, _ in self._stored}

    def drop_master(self) -> None:
        """Take away a `series.h5` that would mislead: over no sources at all a master is read as NaN.

        One that cannot be read may be all that is left of a closed series, or somebody's own file: it is kept in quarantine.
        """
        path = self.folder / SERIES_FILE
        if not path.exists():
            return
        shown, closed, _ = self.shown()
        if not shown or (closed and not self.records):
            logger.error("%s: not a readable series with its projections; %s", path, self._guard.move(path))
        elif not self.records:
            path.unlink()


def _segment_name(first: int, end: int) -> str:
    return f"segment_{first:06d}_{end:06d}.h5"


def _of(record: Record) -> Identity:
    return (*record.visit.source, record.sha256)


def _identity(records: list[Record]) -> tuple[list[int], list[int]]:
    """What a segment says of itself: numbers and checksums."""
    return [record.number for record in records], [record.checksums["clean"] for record in records]


def _row(record: Record, frame: Array) -> Row:
    known = record.acquisition
    return Row(
        number=record.number,
        path=record.visit.path,
        image=record.visit.image,
        sha256=record.sha256,
        tilt_deg=record.tilt_deg,
        tilt_source=record.tilt_source,
        tilt_candidates=record.tilt_candidates,
        shape=frame.shape,
        dtype=frame.dtype.str,
        pixel_size_nm=known.pixel_size_nm,
        detector=known.detector,
        orientation=record.orientation,
        watch_root=record.watch_root,
        members=record.members,
    )
