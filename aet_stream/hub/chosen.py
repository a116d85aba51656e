"""What one series shows: which edition, and which of its rows count. Decided by people and makers, kept in `decisions.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import h5py
import msgspec
import numpy as np

from aet_stream import edition, layout
from aet_stream.edition import FIRST, Covered, Edition, Maker
from aet_stream.errors import StoreError
from aet_stream.hub import decisions as decided
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.decisions import Decisions
from aet_stream.hub.master import MAKER, Shown
from aet_stream.layout import Record
from aet_stream.projection import Array


class Chosen:
    """The decisions about one series, and the edition that they choose."""

    def __init__(self, folder: Path, guard: CrashGuard) -> None:
        self.decisions = Decisions()
        self._folder = folder
        self._guard = guard
        self._about: edition.About | None = None
        self._rows: dict[int, edition.Row] = {}

    def load(self, said: str) -> list[str]:
        """Take up what is decided; returns what was wrong.

        Parameters
        ----------
        said : what `series.h5` says that is; it counts where the file of its own is missing or damaged
        """
        complaints: list[str] = []
        try:
            found = decided.read(self._folder)
        except StoreError as error:
            complaints.append(f"{error}; {self._guard.move(self._folder / decided.DECISIONS)}")
            found = None
        if found is None:
            try:
                found = decided.parsed(said)
            except StoreError as error:
                complaints.append(f"{self._folder / layout.SERIES_FILE}: {error}")
                found = Decisions()
            if found.text:
                decided.write(self._folder, found)
        self.decisions = found
        return complaints + self._load_edition()

    def _load_edition(self) -> list[str]:
        """The rows of the chosen edition; one that is damaged or gone is not chosen any more."""
        self._about, self._rows = None, {}
        number = self.decisions.edition
        if number == FIRST:
            return []
        path = self.path(number)
        try:
            with self._guard.reading(path), Edition(path) as found:
                self._about, self._rows = found.about, found.rows
            return []
        except StoreError as error:
            return [str(error), *self._mend(path)]

    def decide(self, decisions: Decisions) -> list[str]:
        """From now on this is decided, durably; returns what is wrong with the edition that it chooses.

        Raises
        ------
        OutputFull : the disk does not take it; nothing has changed
        """
        decided.write(self._folder, decisions)
        self.decisions = decisions
        return self._load_edition()

    def check(self) -> list[str]:
        """Read the chosen edition whole; returns what was wrong with it. It is not chosen any more then."""
        path = self.path(self.decisions.edition)
        if self.decisions.edition == FIRST:
            return []
        try:
            with self._guard.reading(path), Edition(path) as found:
                doubts = found.doubts()
        except StoreError as error:
            doubts = [str(error)]
        return [*doubts[:1], *self._mend(path)] if doubts else []

    def _mend(self, path: Path) -> list[str]:
        """The file of the chosen edition is damaged or gone: write it anew from a closed series, or go back to edition 1."""
        moved = [f"{path}: {self._guard.move(path)}"] if path.exists() else []
        if self._restore(path):
            return [*moved, f"{path}: written anew from the closed {layout.SERIES_FILE}, without what its maker had kept beside"]
        back = msgspec.structs.replace(self.decisions, edition=FIRST, chosen_at=time.time())
        return [*moved, f"{self._folder.name} shows edition {FIRST} again", *self.decide(back)]

    def _restore(self, path: Path) -> bool:
        series = self._folder / layout.SERIES_FILE
        try:
            with self._guard.reading(series), h5py.File(series, "r", locking=False) as file:
                about = dict(file[layout.ABOUT].attrs)
                rows = np.flatnonzero(file[f"{layout.PER_PROJECTION}/edition"][()] == self.decisions.edition).tolist()
                if not about["closed_utc"] or not rows:
                    return False
                made_by, model, sha256, settings = (str(about[f"edition_{name}"]) for name in MAKER)
                maker = Maker(made_by, model, sha256, json.loads(settings))
                covered = [Covered.of(layout.row_of(file, row)[0]) for row in rows]
                with edition.writing(self._folder, self._folder.name, maker, covered, file[layout.CLEAN].shape[1:], target=path) as draft:
                    for row in rows:
                        record, planes = layout.row_of(file, row)
                        draft.row(planes["clean"], record.quality)
            with Edition(path) as found:
                self._about, self._rows = found.about, found.rows
        except (OSError, KeyError, RuntimeError, ValueError, StoreError):
            return False
        return True

    def path(self, number: int) -> Path:
        """Of the file of an edition."""
        return self._folder / layout.EDITIONS / layout.edition_file(number)

    def _row(self, record: Record) -> edition.Row | None:
        """What the chosen edition has of this projection; None: nothing, so edition 1 is shown."""
        row = self._rows.get(record.number)
        return row if row is not None and row.covered == Covered.of(record) else None

    def shown(self, records: list[Record], apart: Sequence[Record] = ()) -> Shown:
        """The rows of a series as `series.h5` is to show them; `apart`: what no row can show."""
        rows = [self._row(record) for record in records]
        return Shown(
            records=[record if row is None else row.shown(record) for record, row in zip(records, rows, strict=True)],
            places=[None if row is None else row.place for row in rows],
            decisions=self.decisions,
            edition=self._about,
            edition_rows=len(self._rows),
            apart=apart,
        )

    def reading_clean(self, record: Record) -> Generator[None, None, Array | None]:
        """(height, width) float32, counts, checked: the chosen edition's pixels of a projection, piece by piece; None: those of edition 1.

        Raises
        ------
        StoreError : they are not what was written
        """
        row = self._row(record)
        if row is None:
            return None
        path = self.path(self.decisions.edition)
        return (yield from self._guard.pieces(path, edition.reading_frame(path, row)))
