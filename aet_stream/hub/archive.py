"""All series on disk together with the ledger: the second half of the commit protocol, closing, and recovery at start.

projection files (durable) -> series.h5 -> one ledger transaction -> the world may know
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

import msgspec

from aet_stream import coverage, edition, failpoints, layout, pieces
from aet_stream.edition import FIRST
from aet_stream.errors import AetError, OutputFull, StoreError
from aet_stream.hub import decisions as decided
from aet_stream.hub import quarantine
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.decisions import Aside, Decisions
from aet_stream.hub.ledger import Ledger, passing
from aet_stream.hub.master import About
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.pruning import pruning
from aet_stream.hub.store import Draft, Found, Identity, SeriesStore
from aet_stream.layout import COLUMNS, SERIES_FILE, Record
from aet_stream.naming import RESERVED
from aet_stream.reasons import Reason

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A projection on its way into its series."""

    visit_id: int
    draft: Draft
    stages_s: dict[str, float]
    """Seconds in each stage up to the worker's answer."""
    done_at: float
    """When that came: unix seconds."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """The same, once its pixels are on disk and no longer in memory."""

    visit_id: int
    record: Record
    stages_s: dict[str, float]
    done_at: float


@dataclass(frozen=True, slots=True)
class Closed:
    """A series that is one verified file now, or another one than before."""

    name: str
    called_off: list[tuple[str, str]]
    """(event, sink) of what somebody works on in vain."""
    what: Literal["closed", "revised", "shown"] = "closed"
    """`revised`: it was closed before, and what is decided about it has changed. `shown`: the same of an open one."""


def open_ledger(root: Path) -> tuple[Ledger, bool]:
    """The ledger of an output folder, and whether it is a new one; a damaged one is set aside and rebuilt from the files."""
    path = root / "ledger.sqlite"
    fresh = not path.exists()
    try:
        return Ledger(path), fresh
    except sqlite3.DatabaseError as error:
        if passing(error):
            raise OutputFull(f"{path}: {error}: make room, or end what holds it") from error
        aside = path.with_name(f"ledger.sqlite.damaged-{time.time_ns()}")
        path.replace(aside)
        for extra in ("-wal", "-shm"):
            path.with_name(path.name + extra).unlink(missing_ok=True)
        logger.error("%s is damaged (%s): set aside as %s and rebuilt from the projection files", path, error, aside.name)
        return Ledger(path), True


class Archive:
    """Owner of every series folder under the output root."""

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        outbox: Outbox,
        guard: CrashGuard,
        *,
        fold_rows: int,
        expected: int,
        milestone_deg: float = 15.0,
        config: str,
    ) -> None:
        self.root = root
        self._ledger = ledger
        self._fold_rows = fold_rows
        self._expected = expected
        self._outbox = outbox
        self._guard = guard
        self._milestone_deg = milestone_deg
        self._config = config
        self._stores: dict[str, SeriesStore] = {}
        self._works: dict[str, tuple[str, Generator[None]]] = {}
        """Series -> what is being done to it piece by piece: ("load", "close", "fold", "revise", "take", "unpack" or "prune", the work)."""
        self._unshown: set[str] = set()
        """Series about which something is decided that `series.h5` does not show yet, or nobody has been told."""
        self._taking: dict[tuple[str, str], bool] = {}
        """(series, key) of finished editions that are to be taken over -> shown from then on?"""
        self._refused: dict[tuple[str, str], str] = {}
        """The same of those that were damaged -> why, for whoever asks next."""
        self._unpruned: dict[str, str] = {}
        """Series whose projection files could not be removed -> why, for whoever asks next."""
        self._lost = True
        """A stored projection was damaged, is gone or was superseded: its source, or what was a copy of it, is to be read again.
        And at a start, whatever the hub before has left."""
        self._unpublished: dict[str, list[_Stored]] = {}
        """Stored, but not yet shown in `series.h5` nor known to the ledger."""

    # -- start ------------------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Make ledger and `series.h5` agree with the projection files, which are the truth."""
        self._guard.set_aside()
        failpoints.reach("recover.drafts", self.root)
        agreed, found = self._ledger.agreed(), dict[str, str]()
        for name in sorted(entry.name for entry in os.scandir(self.root)):
            store = SeriesStore(self.root / name, self._guard, fold_rows=self._fold_rows)
            stamp = store.stamp()
            if agreed.get(name) == stamp or name in RESERVED or not store.is_there():
                continue
            if self._recover_series(name, store):
                found[name] = stamp
        with contextlib.suppress(OutputFull), self._ledger.transaction():
            self._ledger.agree(found)
        for row in self._ledger.series(state="open"):
            if row["stored"] and not (self.root / row["name"]).is_dir():
                self.store(row["name"])  # somebody has taken the folder of an open series away
        self._recover_quarantine()

    def _recover_series(self, name: str, store: SeriesStore) -> bool:
        """Whether it is closed, the ledger knows all of it, and nothing is to be done about it."""
        store.remove_drafts()
        made = edition.made(store.folder)
        self._taking |= {(name, key): False for key in made}
        shown = store.shown()
        if shown.closed and self._agrees(name, store, shown):
            return not made  # nothing to load until somebody asks
        self._stores.pop(name, None)
        store = self.store(name)
        if shown.closed and store.identities() == shown.rows:
            self._announce_closed(name)
            self._unshown.add(name)
            if store.chosen.decisions.text == shown.decisions:
                self._tell_decided(name)
        else:
            store.drop_master()
            store.write_master(self._about(name, None))
            self._tell_decided(name)
        return False

    def _agrees(self, name: str, store: SeriesStore, shown: Found) -> bool:
        """Do the closed file, the others beside it and the ledger say the same of a series?"""
        try:
            found = decided.read(store.folder)
        except StoreError:
            return False
        editions = set(layout.edition_files(store.folder)) - {FIRST}
        return (
            self._state(name) == "closed"
            and shown.rows == self._ledger.stored(name)
            and set(store.numbers_on_disk()) <= set(shown.rows)
            and shown.decisions == self._ledger.decided(name) == ("" if found is None else found.text)
            and editions <= set(self._ledger.editions(name))
        )

    def _recover_quarantine(self) -> None:
        """Drafts of a killed hub, and records of images that have been dealt with since."""
        for file, path, image in quarantine.left_over(self.root / "quarantine"):
            if not path or self._ledger.dealt_with(path, image):
                file.unlink(missing_ok=True)

    def _state(self, name: str) -> str:
        return next((series["state"] for series in self._ledger.series(name)), "")

    def store(self, name: str) -> SeriesStore:
        """The store of one series, loaded from disk at first use."""
        if name not in self._stores:
            pieces.finished(self._loading(name))
        return self._stores[name]

    def _loading(self, name: str) -> Generator[None]:
        """Have the rows of a series in memory."""
        store = SeriesStore(self.root / name, self._guard, fold_rows=self._fold_rows)
        known = self._ledger.stored(name)
        complaints = yield from store.loading(known)
        if name in self._stores:
            return  # somebody could not wait
        self._reconcile(name, store, known, complaints)
        self._stores[name] = store
        if store.chosen.decisions.text != self._ledger.decided(name):
            self._unshown.add(name)

    def tilts_deg(self, name: str) -> list[float]:
        """Of every stored projection that counts: one that was taken again under its name counts once, a deliberate repeat by itself."""
        return [record.tilt_deg for record in self.store(name).current()]

    def _reconcile(self, name: str, store: SeriesStore, known: dict[int, Identity], complaints: list[str]) -> None:
        """The files are the truth: what the ledger says of a series becomes what they say."""
        for complaint in complaints:
            logger.error("%s", complaint)
        found = store.identities()
        gone = [number for number, identity in known.items() if found.get(number) != identity]
        new = [record for record in store.stored if known.get(record.number) != found[record.number]]
        if not gone and not new and (found or self._state(name) != "closed"):
            return
        failpoints.reach("recover.begin", store.folder)
        with self._ledger.transaction():
            for number in gone:
                logger.error("%s: projection %d is gone; its source will be read again", name, number)
                self._ledger.lose(name, number)
                self._lost = True
            self._ledger.open_series(name, at=min((record.closed_at for record in store.stored), default=None))
            for record in new:
                logger.info("%s: projection %d was stored before the ledger knew; taken up", name, record.number)
                self._lost |= self._ledger.adopt(name, record)
                self._announce_stored(record)
            failpoints.reach("recover.commit", store.folder)
        failpoints.reach("recover.committed", store.folder)

    def _mend(self, name: str, error: StoreError) -> None:
        """Something in a series folder is not as it was written: read all of it, set aside what is damaged, show the rest.

        Raises
        ------
        OutputFull : nothing is wrong with the files, so it must be the disk; try again later
        """
        logger.error("%s: every projection of the series is checked", error)
        self._abandon(name)
        store, known = self.store(name), self._ledger.stored(name)
        before = store.identities()
        complaints = store.check()
        self._reconcile(name, store, known, complaints)
        if store.chosen.decisions.text != self._ledger.decided(name):
            self._unshown.add(name)
        before_it = self._unpublished.pop(name, [])
        there = [stored for stored in before_it if stored.record.number in store.identities()]
        self._lost = self._lost or len(before_it) != len(there)
        if there:
            self._unpublished[name] = there
        if store.identities() == before and not complaints:
            raise OutputFull(str(error)) from error
        if self._state(name) == "closed":
            self._unshown.add(name)  # its one file stands
            return
        store.drop_master()
        store.write_master(self._about(name, None))

    def _about(self, name: str, closed_at: float | None) -> About:
        series = next(iter(self._ledger.series(name)), {})
        return About(
            name=name,
            opened_at=series.get("opened_at", time.time()),
            closed_at=closed_at,
            generation=series.get("generation", 0),
            expected=self._expected,
            duplicates=series.get("duplicates", 0),
            config=self._config,
        )

    def closing_bytes(self) -> int:
        """What the series in memory, which are the open ones, will need on the disk to be closed."""
        return sum(store.closed_bytes() for store in self._stores.values())

    # -- commit -----------------------------------------------------------------------------------------------------------------

    def unpublished(self) -> set[str]:
        """Series with projections that are stored, and not yet readable."""
        return set(self._unpublished)

    def to_read_again(self) -> list[sqlite3.Row]:
        """Visits whose sources are to be read though nobody offers them: asked for once, then only when something was lost since."""
        lost, self._lost = self._lost, False
        return self._ledger.ready() if lost else []

    def commit(self, name: str, batch: Sequence[Arrival]) -> int:
        """Store projections durably, as many as the disk takes. Closing starts again later; what concerns old rows only goes on."""
        if name in self._works and self._works[name][0] in ("close", "revise", "prune"):
            self._abandon(name)
        stored = self.store(name).commit([arrival.draft for arrival in batch])
        for arrival in batch[:stored]:
            noted = _Stored(arrival.visit_id, arrival.draft.record, arrival.stages_s, arrival.done_at)
            self._unpublished.setdefault(name, []).append(noted)
        return stored

    def unpacking(self, name: str) -> bool:
        """Must projection files be written anew first, because a pruned series is to be open again? Then that has begun, piece by piece."""
        if not self.store(name).packed:
            return False
        if name not in self._works:
            self._works[name] = ("unpack", self.store(name).unpacking())
        return True

    def publish(self, name: str) -> list[tuple[Record, dict[str, float]]]:
        """Show what is stored in `series.h5`, then enter it into the ledger; returns each record, and the seconds in each stage.

        Raises
        ------
        OutputFull : the disk does not take it; try again later
        """
        try:
            self.store(name).write_master(self._about(name, None))
        except StoreError as error:
            self._mend(name, error)
        readable_at, published = time.time(), list[tuple[Record, dict[str, float]]]()
        failpoints.reach("publish.begin", self.root / name)
        with self._ledger.transaction():
            self._ledger.open_series(name)
            for stored in self._unpublished.get(name, []):
                record = stored.record
                stages_s = {**stored.stages_s, "commit": readable_at - stored.done_at, "total": readable_at - record.closed_at}
                self._lost |= self._ledger.store(stored.visit_id, record, stages_s)
                self._announce_stored(record)
                published.append((record, stages_s))
            self._announce_coverage(name)
            failpoints.reach("publish.commit", self.root / name)
        self._unpublished.pop(name, None)
        failpoints.reach("publish.committed", self.root / name)
        return published

    def _announce_stored(self, record: Record) -> None:
        shown = ("number", "tilt_deg", "tilt_source", "path", "image", "sha256", "trust", "blank", "pixel_size_nm")
        data = {name: COLUMNS[name].get(record) for name in shown}
        data = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in data.items()}
        key = f"{record.number}|{record.sha256}|{record.checksums['clean']:08x}|{record.tilt_deg!r}"
        self._outbox.announce("projection.stored", record.series, key, data)

    def _announce_coverage(self, name: str) -> None:
        """Once for every so many degrees of newly covered directions."""
        tilts_deg = sorted(set(self.tilts_deg(name)))
        covered_deg = coverage.covered_deg(tilts_deg)
        milestone = int(covered_deg // self._milestone_deg)
        if milestone and len(tilts_deg) > 2:
            data = {"covered_deg": covered_deg, "largest_gap_deg": coverage.largest_gap_deg(tilts_deg), "tilts": len(tilts_deg)}
            self._outbox.announce("coverage.milestone", name, f"{milestone}|{self._milestone_deg:g}", data)

    # -- editions and decisions -----------------------------------------------------------------------------------------------------

    def take(self, name: str, key: str, *, use: bool) -> int | None:
        """Have the finished edition of the maker with this key taken over, and with `use` shown; its number once that is done.

        Raises
        ------
        AetError : there is none, or it is damaged
        """
        if refused := self._refused.pop((name, key), ""):
            raise AetError(refused)
        if edition.made_path(self.root / name, key).exists():
            self._taking[name, key] = self._taking.get((name, key), False) or use
        if (name, key) in self._taking:
            return None
        known, there = self._ledger.editions(name), layout.edition_files(self.root / name).keys() - {FIRST}
        if there - known.keys():
            return None  # taken over, and not yet told
        number = max((each for each in there if known[each]["key"] == key), default=None)
        if number is None:
            raise AetError(f"{name} has no finished edition {key}: make it anew")
        return number if not use or self.use(name, number) else None

    def use(self, name: str, number: int) -> bool:
        """Show this edition from now on; True once that is done.

        Raises
        ------
        AetError : there is none of this number
        """
        there = {FIRST, *layout.edition_files(self.root / name)}
        if number not in there:
            raise AetError(
                f"{name} has no edition {number}: `aet-stream editions {quote(name)}` lists {', '.join(map(str, sorted(there)))}"
            )
        decisions = self.store(name).chosen.decisions
        if decisions.edition != number:
            self.decide(name, msgspec.structs.replace(decisions, edition=number, chosen_at=time.time()))
        return self.settled(name)

    def exclude(self, name: str, numbers: Collection[int], reason: Reason) -> None:
        """These projections do not count from now on; what does not count already keeps its reason, unless that was nobody's word.

        Raises
        ------
        AetError : the series has no projection of such a number
        """
        decisions, now = self.known(name, numbers), time.time()
        there = {number for number, aside in decisions.excluded.items() if aside.reason.code != "odd" or reason.code == "odd"}
        new = {number: Aside(reason, now) for number in numbers if number not in there}
        if new:
            self.decide(name, msgspec.structs.replace(decisions, aside=decisions.aside | new))

    def restore(self, name: str, numbers: Collection[int]) -> None:
        """These projections count again; why they did not is kept.

        Raises
        ------
        AetError : the series has no projection of such a number, or that is of another size than the series
        """
        decisions, now = self.known(name, numbers), time.time()
        for number in sorted(numbers):
            if form := self.store(name).form_apart(number):
                remedy = f"it stays in {layout.PROJECTIONS}/{layout.file_name(number)}; put a copy of its source into a folder of its own"
                raise AetError(f"{name} projection {number} has {form}: no file can hold it beside the others; {remedy}")
        there = decisions.excluded
        back = {number: msgspec.structs.replace(there[number], restored_at=now) for number in numbers if number in there}
        if back:
            self.decide(name, msgspec.structs.replace(decisions, aside=decisions.aside | back))

    def known(self, name: str, numbers: Collection[int]) -> Decisions:
        """What is decided about a series that has projections of these numbers.

        Raises
        ------
        AetError : it has not
        """
        store = self.store(name)
        if unknown := sorted(set(numbers) - store.identities().keys()):
            raise AetError(f"{name} has no projection {unknown[0]}: its numbers are /aet/projection/number in its {SERIES_FILE}")
        return store.chosen.decisions

    def decisions(self, name: str) -> Decisions:
        """What is decided about a series."""
        return self.known(name, ())

    def decide(self, name: str, decisions: Decisions) -> None:
        """From now on this is decided; `series.h5` shows it as soon as it can, and then the world hears of it.

        Raises
        ------
        OutputFull : the disk does not take it; nothing has changed
        """
        if name in self._works and self._works[name][0] in ("close", "revise", "prune"):
            self._abandon(name)
        for complaint in self.store(name).decide(decisions):
            logger.error("%s", complaint)
        self._unshown.add(name)

    def at_hand(self, name: str) -> bool:
        """Are the rows of this series in memory?"""
        return name in self._stores

    def fetching(self, name: str) -> bool:
        """Are the rows of this series still on their way into memory? That has begun then: thousands take their time."""
        if name not in self._stores and name not in self._works:
            self._works[name] = ("load", self._loading(name))
        return name not in self._stores

    def settled(self, name: str) -> bool:
        """Does `series.h5` show all that is decided about a series?"""
        return name not in self._unshown

    def _take(self, name: str, key: str) -> Generator[None]:
        """Take over a finished edition; one that is damaged is set aside."""
        if name not in self._stores:
            yield from self._loading(name)
        store, number = self.store(name), max([FIRST, *layout.edition_files(self.root / name), *self._ledger.editions(name)]) + 1
        try:
            yield from store.taking(key, number)
        except StoreError as error:
            path = edition.made_path(store.folder, key)
            self._refused[name, key] = f"{error}; {self._guard.move(path, shown=False)}" if path.exists() else str(error)
            logger.error("%s", self._refused[name, key])
            del self._taking[name, key]
            return
        logger.info("series=%s edition %d taken over", name, number)
        if self._taking[name, key]:
            self.decide(name, msgspec.structs.replace(store.chosen.decisions, edition=number, chosen_at=time.time()))
        else:
            self._tell_decided(name)
        del self._taking[name, key]  # not before: what fails here is told by `_begin_works`

    def _begin_works(self) -> list[Closed]:
        """Whatever is to be done to a series, one thing after the other; returns what needed no more than its master."""
        shown = list[Closed]()
        for name in sorted(self._unshown - self._works.keys() - self._unpublished.keys()):
            if self._state(name) == "closed":
                closed_at = self._ledger.series(name)[0]["closed_at"]
                self._works[name] = ("revise", self.store(name).close(self._about(name, closed_at)))
            else:
                self._show_decided(name)
                shown.append(Closed(name, [], "shown"))
        for name, key in sorted(self._taking):
            if not edition.made_path(self.root / name, key).exists():  # taken over, but the disk failed before anybody was told
                del self._taking[name, key]
                self._unshown.add(name)
            elif name not in self._works:
                self._works[name] = ("take", self._take(name, key))
        for name, store in list(self._stores.items()):
            if name in self._works or name in self._unpublished or not store.needs_folding():
                continue
            if self._state(name) == "closed":  # somebody asked for its records: it is one file, and stays it
                del self._stores[name]
            else:
                self._works[name] = ("fold", store.fold())
        return shown

    def _show_decided(self, name: str) -> None:
        """In the master of an open series."""
        try:
            self.store(name).write_master(self._about(name, None))
        except StoreError as error:
            self._mend(name, error)
        self._tell_decided(name)

    def _tell_decided(self, name: str) -> None:
        """`series.h5` shows it: the ledger follows, and the world may know. What it knows already is not told again."""
        store, folder = self.store(name), self.root / name
        decisions, before = store.chosen.decisions, decided.parsed(self._ledger.decided(name))
        new = store.editions(but={FIRST, *self._ledger.editions(name)})
        if not new and decisions == before:
            self._unshown.discard(name)
            return
        with self._ledger.transaction():
            for number, about in new.items():
                self._ledger.take_edition(name, number, about)
                data = {"edition": number, "made_by": about.made_by, "model": about.model, "shown": decisions.edition == number}
                self._outbox.announce("edition.done", name, about.content_sha256, data | {"path": str(store.chosen.path(number))})
            if (decisions.edition, decisions.chosen_at) != (before.edition, before.chosen_at):
                key, data = f"{decisions.edition}|{decisions.chosen_at!r}", {"edition": decisions.edition, "before": before.edition}
                self._outbox.announce("edition.chosen", name, key, data)
            self._announce_asides(name, decisions, before)
            self._ledger.decide(name, decisions.text)
            if decisions != before and self._state(name) == "closed":
                shown = store.chosen.shown(store.records).records
                data = {"path": str(folder / SERIES_FILE), "projections": len(shown), "edition": decisions.edition}
                self._outbox.announce("series.revised", name, f"{_digest(name, shown)}|{decisions.text}", data)
            failpoints.reach("decide.commit", folder)
        self._unshown.discard(name)
        failpoints.reach("decide.committed", folder)

    def _announce_asides(self, name: str, decisions: Decisions, before: Decisions) -> None:
        """What does not count any more, and what counts again."""
        for number, aside in decisions.aside.items():
            known = before.aside.get(number)
            data = {"number": number, "reason": str(aside.reason), "code": aside.reason.code}
            if known is None or known.at != aside.at:
                self._outbox.announce("projection.excluded", name, f"{number}|{aside.at!r}", data)
            if aside.restored_at and aside != known:
                self._outbox.announce("projection.restored", name, f"{number}|{aside.restored_at!r}", data)

    # -- closing and folding ------------------------------------------------------------------------------------------------------

    def begin_close(self, name: str) -> None:
        if name not in self._works and self.store(name).records:
            self._works[name] = ("close", self.store(name).close(self._about(name, time.time())))

    # -- pruning ----------------------------------------------------------------------------------------------------------------

    def begin_prune(self, name: str) -> None:
        """Remove the projection files of a closed series of which nothing is in memory, nor under way."""
        self._unpruned.pop(name, None)
        self._stores.pop(name, None)
        self._works[name] = ("prune", self._prune(name))

    def pruning(self, name: str) -> bool:
        """Are its projection files being removed?"""
        return name in self._works and self._works[name][0] == "prune"

    def at_rest(self, name: str) -> bool:
        """Is nothing under way to a series, and everything about it shown?"""
        taking = {of for of, _ in self._taking}
        return not (name in self._works or name in self._unshown or name in self._unpublished or name in taking)

    def why_unpruned(self, name: str) -> str:
        """Why the last try failed, told once; empty: it did not."""
        return self._unpruned.pop(name, "")

    def _prune(self, name: str) -> Generator[None]:
        room_bytes = lambda: shutil.disk_usage(self.root).free - self.closing_bytes()  # noqa: E731
        removed_bytes = yield from pruning(self.root / name, self._guard, room_bytes)
        with self._ledger.transaction():
            self._ledger.prune(name)
            failpoints.reach("prune.commit", self.root / name)
        failpoints.reach("prune.committed", self.root / name)
        logger.info("series=%s pruned: %d MiB of projection files removed; %s has them", name, removed_bytes >> 20, SERIES_FILE)

    def _cannot_prune(self, name: str, error: OutputFull | StoreError) -> None:
        """It costs nothing but the room: what is damaged is set aside, or made good from the rest, and intake goes on."""
        logger.error("series=%s is not pruned: %s", name, error)
        self._unpruned[name] = str(error)
        if isinstance(error, StoreError):
            with contextlib.suppress(OutputFull):  # nothing to mend was found
                self._mend(name, error)
            if self._state(name) != "closed":
                self._unshown.add(name)

    # -- all that is done piece by piece ------------------------------------------------------------------------------------------

    def working_on(self, name: str | None = None) -> bool:
        """Is a series (or any) being closed, folded or revised, or is an edition taken over?"""
        if name is None:
            return bool(self._works or self._unshown or self._taking)
        return name in self._works

    def work(self, budget_s: float) -> list[Closed]:
        """Go on with closing, folding and the rest for about `budget_s`, at least by one piece.

        Returns the series that are another file now.
        """
        until, closed = time.monotonic() + budget_s, self._begin_works()
        while self._works:
            name = next((name for name, (kind, _) in self._works.items() if kind != "prune"), next(iter(self._works)))
            kind, work = self._works[name]
            try:
                next(work)
                if time.monotonic() >= until:
                    break
                continue
            except StopIteration:
                self._works.pop(name, None)
            except (OutputFull, StoreError) as error:
                self._works.pop(name, None)
                if kind == "prune":
                    self._cannot_prune(name, error)
                elif isinstance(error, StoreError):
                    self._mend(name, error)
                else:
                    raise
                continue
            if kind == "fold":
                self._stores[name].write_master(self._about(name, None))
            elif kind in ("close", "revise"):
                off = self._announce_closed(name) if kind == "close" else []
                self._tell_decided(name)
                closed.append(Closed(name, off, "closed" if kind == "close" else "revised"))
            if kind != "load" and self._state(name) == "closed" and name not in self._unshown and name not in self._unpublished:
                self._stores.pop(name, None)  # its records are on disk; memory is for open series
        return closed

    def _announce_closed(self, name: str) -> list[tuple[str, str]]:
        """The file is there: only now may anybody hear of it. The same content gives the same event ids, however often it is told.

        Returns what is being done about it and nobody needs any more.
        """
        data = {"path": str(self.root / name / SERIES_FILE), "projections": len(self.store(name).records)}
        with self._ledger.transaction():
            self._ledger.close_series(name)
            self._outbox.announce("series.closed", name, _digest(name, self.store(name).records), data)
            off = self._outbox.end_growing(name)
            failpoints.reach("close.commit", self.root / name)
        failpoints.reach("close.committed", self.root / name)
        return off

    def _abandon(self, name: str) -> None:
        if name in self._works:
            kind, work = self._works.pop(name)
            work.close()
            if kind == "prune":
                self._stores.pop(name, None)  # it may know of files that are gone

    def close(self) -> None:
        """Drop unfinished work; it starts again at the next start."""
        for name in list(self._works):
            self._abandon(name)


def _digest(name: str, records: list[Record]) -> str:
    """Names exactly these pixels at these tilts."""
    digest = hashlib.sha256(name.encode())
    for record in records:
        digest.update(f"{record.number}:{record.checksums['clean']:08x}:{record.tilt_deg!r};".encode())
    return digest.hexdigest()
