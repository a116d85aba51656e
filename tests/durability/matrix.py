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
ELSEWHERE = ("watch.send", *(name for name in failpoints.NAMES if name.startswith(("event.", "volume.", "atoms."))))
#: Points where a file is at stake whose bytes may be torn.
WITH_FILE = tuple(name for name in failpoints.NAMES if name.endswith((".written", ".frame")))
#: Groups of places that are passed only when other editions are made and shown.
EDITIONS = frozenset({"made", "take", "decided", "decide", "discard", "first"})
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


def _of_editions(cell: Cell) -> bool:
    return cell.name.split(".")[0] in EDITIONS


def killed_in_turn(group: str, folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """One life in which each place of a group is killed once, in turn, and once more with a torn file where one is being written:
    (fault, exit code, what is wrong afterwards).

    A place that is not passed any more in that life gets another one.
    """
    editions = group in EDITIONS
    names = [name for name in failpoints.NAMES if name.startswith(f"{group}.") and name not in ELSEWHERE]
    faults = [f"{name}=kill" for name in names] + [f"{name}=torn" for name in names if name in WITH_FILE]
    life, exposures, killed = folder, list[Exposure](), 0

    def end() -> tuple[str, int, list[str]]:
        code = rig.attempt(rig.Case(life, editions=editions))
        excluded = {rig.EXCLUDED} if editions else set()
        verdict = judge(life / "in", life / "out", exposures, removed=rig.REMOVED, shown=expected_model(editions), excluded=excluded)
        return "the end", code, verdict.words

    def attempt(fault: str) -> int:
        if group == RECOVER:
            _lose_ledger(life)
        return rig.attempt(rig.Case(life, fault, editions=editions))

    for number, fault in enumerate(faults):
        code = attempt(fault) if killed else 0
        if code == 0:  # not passed in this life any more
            if killed:
                yield end()
            life, killed = folder / f"{group}{number}", 0
            exposures = rig.expose(life / "in")
            code = attempt(fault)
        killed += 1
        yield fault, code, []
    yield end()


def expected_model(editions: bool) -> str:
    """Of the edition that is shown at the end."""
    return [*rig.REMOVED][2 if editions else 0]


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
    editions = _of_editions(cell)
    exposures = rig.expose(folder / "in")
    if cell.name in RECOVERY:
        _lose_ledger(folder)
    codes = [rig.attempt(rig.Case(folder, f"{cell.name}@{cell.ordinal}={cell.fault}", editions=editions))]
    if cell.twice:
        codes.append(rig.attempt(rig.Case(folder, f"{cell.name}@1={cell.fault}", editions=editions)))
    codes.append(rig.attempt(rig.Case(folder, editions=editions)))
    excluded = {rig.EXCLUDED} if editions else set()
    verdict = judge(folder / "in", folder / "out", exposures, removed=rig.REMOVED, shown=expected_model(editions), excluded=excluded)
    words = list(verdict.words)
    if codes[-1] != 0:
        words.append(f"the last run ended with {codes[-1]}, not 0")
    expected = {"kill": -9, "torn": -9}.get(cell.fault)
    log = (folder / "log.txt").read_text()
    reached = (
        codes[0] == expected
        if expected
        else any(word in log for word in ("failpoint", "rrno", "waits until", "not what was written", "does not read back", "cannot store"))
    )
    return Outcome(reached, words)
