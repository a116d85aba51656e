"""Every failpoint, every fault, several times each: after the next start nothing is lost, doubled, changed or left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aet_stream import failpoints
from tests.durability import rig
from tests.durability.oracle import Exposure, judge

FAULTS = ("kill", "torn", "error", "ENOSPC", "EIO", "EACCES")
#: Points that only the real watch and the way of events pass: driven by tests with real processes (test_event_kills.py for the latter).
ELSEWHERE = ("watch.send", *(name for name in failpoints.NAMES if name.startswith(("event.", "slab.", "volume.", "atoms."))))
#: Points where a file is at stake whose bytes may be torn.
WITH_FILE = tuple(name for name in failpoints.NAMES if name.endswith((".written", ".frame")))
#: Groups of places that are passed only when other editions are made and shown.
EDITIONS = frozenset({"made", "take", "decided", "decide", "discard", "first"})
#: And those that are passed only when a series is pruned, and opened again.
PRUNING = frozenset({"prune", "unpack"})
#: Files that were synced and renamed cannot be torn by a kill, and a rename is no place for it either.
RECOVER = "recover"
RECOVERY = tuple(name for name in failpoints.NAMES if name.startswith(f"{RECOVER}."))


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    name: str
    ordinal: int
    fault: str
    twice: bool = False
    """The same fault again during recovery."""

    def __str__(self) -> str:
        return f"{self.name}@{self.ordinal}={self.fault}{' twice' if self.twice else ''}"


def cells() -> list[Cell]:
    """The whole matrix."""
    names = [name for name in failpoints.NAMES if name not in ELSEWHERE]
    faults = [(name, fault) for name in names for fault in FAULTS if fault != "torn" or name in WITH_FILE]
    once = [Cell(name, ordinal, fault) for name, fault in faults for ordinal in (1, 2, 5)]
    twice = [Cell(name, 1, "kill", twice=True) for name in names if name not in RECOVERY]
    return once + twice


@dataclass(frozen=True)
class Life:
    """What is done with a series so that the places of a group are passed, and what must have come of it."""

    folder: Path
    group: str

    @property
    def editions(self) -> bool:
        return self.group in EDITIONS | PRUNING

    @property
    def pruned(self) -> bool:
        return self.group in PRUNING

    def expose(self) -> list[Exposure]:
        return rig.expose(self.folder / "in", late=self.pruned)

    def attempt(self, fault: str = "") -> int:
        return rig.attempt(rig.Case(self.folder, fault, editions=self.editions, prune=self.pruned))

    def words(self, exposures: list[Exposure]) -> list[str]:
        """What is wrong at the end."""
        shown = [*rig.REMOVED][2 if self.editions else 0]
        excluded = {rig.EXCLUDED} if self.editions else set()
        places = self.folder / "in", self.folder / "out"
        return judge(*places, exposures, removed=rig.REMOVED, shown=shown, excluded=excluded, late={rig.LATE}, pruned=self.pruned).words


def killed_in_turn(group: str, folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """One life in which each place of a group is killed once, in turn, and once more with a torn file where one is being written:
    (fault, exit code, what is wrong afterwards).

    A place that is not passed any more in that life gets another one.
    """
    names = [name for name in failpoints.NAMES if name.startswith(f"{group}.") and name not in ELSEWHERE]
    faults = [f"{name}=kill" for name in names] + [f"{name}=torn" for name in names if name in WITH_FILE]
    life, exposures, killed = Life(folder, group), list[Exposure](), 0

    def end() -> tuple[str, int, list[str]]:
        return "the end", life.attempt(), life.words(exposures)

    def attempt(fault: str) -> int:
        if group == RECOVER:
            _lose_ledger(life.folder)
        return life.attempt(fault)

    for number, fault in enumerate(faults):
        code = attempt(fault) if killed else 0
        if code == 0:  # not passed in this life any more
            if killed:
                yield end()
            life, killed = Life(folder / f"{group}{number}", group), 0
            exposures = life.expose()
            code = attempt(fault)
        killed += 1
        yield fault, code, []
    yield end()


def _lose_ledger(folder: Path) -> None:
    """So that there is something to recover."""
    if not (folder / "out" / "s").exists():
        rig.attempt(rig.Case(folder, close=False))
    for path in (folder / "out").glob("ledger.sqlite*"):
        path.unlink()


@dataclass(frozen=True)
class Outcome:
    reached: bool
    """The fault did happen (or the place was passed with an error that the hub outlived)."""
    words: list[str]
    """What is wrong afterwards; empty when all is well."""


def run(cell: Cell, folder: Path) -> Outcome:
    """One case in a folder of its own."""
    folder.mkdir(parents=True)
    life = Life(folder, cell.name.split(".")[0])
    exposures = life.expose()
    if cell.name in RECOVERY:
        _lose_ledger(folder)
    codes = [life.attempt(f"{cell.name}@{cell.ordinal}={cell.fault}")]
    if cell.twice:
        codes.append(life.attempt(f"{cell.name}@1={cell.fault}"))
    codes.append(life.attempt())
    words = life.words(exposures)
    if not {rig.STUCK, rig.HUNG}.isdisjoint(codes):
        words.append(f"a run never ended: {codes}")
    if codes[-1] != 0:
        words.append(f"the last run ended with {codes[-1]}, not 0")
    expected = {"kill": -9, "torn": -9}.get(cell.fault)
    log = (folder / "log.txt").read_text()
    reached = (
        codes[0] == expected
        if expected
        else any(
            word in log
            for word in ("failpoint", "rrno", "waits until", "not what was written", "does not read back", "cannot store", "is not pruned")
        )
    )
    return Outcome(reached, words)
