"""The judge. It knows which images were exposed, pixel by pixel, and looks only at source files, plain HDF5 and quarantine records.

It imports nothing of the product, never looks into the ledger, and tells apart what can go wrong with a unit.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

WRONGS = ("lost", "doubled", "changed", "wrong tilt", "not clean", "wrongly quarantined", "not quarantined", "source changed",
          "foreign", "left over", "unreadable", "edition changed", "another edition", "not held", "not as decided",
          "edition 1 gone")  # fmt: skip


Fate = Literal["stored", "quarantined", "either", "held", "aside"]


@dataclass(frozen=True)
class Exposure:
    """One image that the microscope wrote, and what must become of it."""

    path: str
    """Relative to the watched folder; its first part is the series."""
    tilt_deg: float
    pixels: np.ndarray | None
    """(height, width); None for a file that no program could read."""
    file_sha256: str
    fate: Fate = "stored"
    """`stored`: once, under this name or that of a copy (same pixels, same tilt, same series). `either`: stored, or known as damaged. `held`: neither.
    `aside`: held, or kept with its pixels, of another size than the rows, and never one of them while others are there."""


@dataclass
class Verdict:
    """How many units ended how, and a line for each that should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def wrong(self, kind: str, words: str) -> None:
        self.counts[kind] += 1
        self.words.append(f"{kind}: {words}")

    @property
    def good(self) -> bool:
        return not any(self.counts[kind] for kind in WRONGS)


@dataclass(frozen=True)
class Apart:
    """What a series says of a projection that no row can show."""

    number: int
    path: str
    raw: np.ndarray | None
    """Of a closed series."""


@dataclass(frozen=True)
class Row:
    series: str
    path: str
    tilt_deg: float
    raw: np.ndarray
    clean: np.ndarray
    number: int
    edition: int
    model: str
    excluded: bool


def rows_of(series: Path) -> list[Row]:
    """Every row of a series by plain HDF5, frame by frame."""
    with h5py.File(series, "r") as file:
        clean, raw, theta = file["/exchange/data"], file["/aet/raw"], file["/exchange/theta"][()]
        columns = [file[f"/aet/projection/{name}"][()] for name in ("path", "number", "edition", "model", "excluded")]
        paths, numbers, editions, models, excluded = columns
        if len({len(each) for each in (clean, raw, theta, *columns)}) != 1:
            raise OSError("the datasets have different lengths")
        return [
            Row(
                series.parent.name,
                paths[i].decode(),
                float(theta[i]),
                raw[i],
                clean[i],
                int(numbers[i]),
                int(editions[i]),
                models[i].decode(),
                bool(excluded[i]),
            )
            for i in range(len(theta))
        ]


def apart_of(series: Path) -> list[Apart]:
    """Everything that a series keeps beside its rows."""
    with h5py.File(series, "r") as file:
        groups = file["/aet/apart"].items() if "/aet/apart" in file else ()
        return [Apart(int(name), str(each.attrs["path"]), each["raw"][()] if "raw" in each else None) for name, each in groups]


def judge(
    watched: Path, output: Path, exposures: list[Exposure], *, removed: dict[str, float] | None = None, shown: str | None = None,
    excluded: set[str] | None = None, late: set[str] | None = None, pruned: bool = False,
) -> Verdict:  # fmt: skip
    """Look at everything.

    Parameters
    ----------
    removed : model -> what clean must differ from raw by, where it is known; None: by a constant
    shown : the model that every row must be of; None: any
    excluded : paths of the rows that do not count; None: nobody looks
    late : paths of rows that came after the edition that is shown, which show edition 1
    pruned : no row may have a projection file any more
    """
    verdict = Verdict()
    rows: list[Row] = []
    apart: dict[str, list[Apart]] = {}
    for series in sorted(output.glob("*/series.h5")):
        try:
            rows += rows_of(series)
            apart[series.parent.name] = apart_of(series)
        except (OSError, KeyError, RuntimeError) as error:
            verdict.wrong("unreadable", f"{series}: {error}")
    quarantined = Counter(json.loads(path.read_bytes())["path"] for path in (output / "quarantine").glob("*.json"))
    _judge_rows(verdict, rows, exposures, removed)
    _judge_editions(verdict, output, rows, exposures, removed)
    _judge_first(verdict, output, rows, removed, pruned=pruned)
    _judge_apart(verdict, output, rows, apart, exposures)
    _judge_fates(verdict, rows, exposures, quarantined)
    for row in rows:
        its = next(iter(removed)) if removed and late and row.path in late else shown
        if its is not None and row.model != its:
            verdict.wrong("another edition", f"{row.path} is of {row.model!r}, chosen was {its!r}")
        if excluded is not None and row.excluded != (row.path in excluded):
            verdict.wrong("not as decided", f"{row.path} {'does not count' if row.excluded else 'counts'}")
    for exposure in exposures:
        if hashlib.sha256((watched / exposure.path).read_bytes()).hexdigest() != exposure.file_sha256:
            verdict.wrong("source changed", exposure.path)
    for path in output.rglob(".*.tmp"):
        verdict.wrong("left over", str(path))
    return verdict


def _clean(raw: np.ndarray, clean: np.ndarray, background: float | None) -> bool:
    """Is clean = raw - a constant, and that one where it is known?"""
    difference = raw - clean
    if not np.isfinite(difference).all() or np.ptp(difference) > 1e-2:
        return False
    return background is None or abs(float(difference.mean()) - background) <= 1e-2


def _judge_rows(verdict: Verdict, rows: list[Row], exposures: list[Exposure], removed: dict[str, float] | None) -> None:
    known = {exposure.path: exposure for exposure in exposures}
    for row in rows:
        exposure = known.get(row.path)
        if exposure is None or exposure.path.split("/")[0] != row.series:
            verdict.wrong("foreign", f"{row.series} has a row of {row.path}")
        elif exposure.pixels is None or not np.array_equal(row.raw, exposure.pixels):
            verdict.wrong("changed", f"{row.path}: raw is not what was exposed")
        elif abs(row.tilt_deg - exposure.tilt_deg) > 1e-6:
            verdict.wrong("wrong tilt", f"{row.path}: {row.tilt_deg}, exposed at {exposure.tilt_deg}")
        elif not _clean(row.raw, row.clean, None if removed is None else removed[row.model]):
            verdict.wrong("not clean", f"{row.path}: raw - clean is not the background of {row.model}")


def _judge_editions(verdict: Verdict, output: Path, rows: list[Row], exposures: list[Exposure], removed: dict[str, float] | None) -> None:
    """Every edition of every projection: the first in the projection files, the others in files of their own; what is shown is one of them."""
    known = {exposure.path: exposure.pixels for exposure in exposures}
    for name in {row.series for row in rows}:
        numbers = {row.number: row for row in rows if row.series == name}
        for path in sorted((output / name / "projections").glob("0*.h5")):
            with h5py.File(path, "r") as file:
                raw, clean, model, source = file["raw"][()], file["clean"][()], str(file.attrs["model"]), str(file.attrs["path"])
            if not np.array_equal(raw, known[source]) or not _clean(raw, clean, None if removed is None else removed[model]):
                verdict.wrong("edition changed", f"{path} is not edition 1 of {source}")
            row = numbers.get(int(path.stem))
            if row is not None and row.edition == 1 and not np.array_equal(row.clean, clean):
                verdict.wrong("another edition", f"{row.path} is not what edition 1 says")
        for path in sorted((output / name / "editions").glob("[0-9]*.h5")):
            with h5py.File(path, "r") as file:
                each, models, clean = file["projection/number"][()], file["projection/model"][()], file["clean"][()]
            for number, model, pixels in zip(each.tolist(), models, clean, strict=True):
                row = numbers[number]
                if not _clean(row.raw, pixels, None if removed is None else removed[model.decode()]):
                    verdict.wrong("edition changed", f"{path}: projection {number}")
                if row.edition == int(path.stem) and not np.array_equal(row.clean, pixels):
                    verdict.wrong("another edition", f"{row.path} is not what {path.name} says")
        for row in numbers.values():
            if row.edition != 1 and not (output / name / "editions" / f"{row.edition:02d}.h5").exists():
                verdict.wrong("another edition", f"{row.path} is of edition {row.edition}, which is not there")


def _judge_first(verdict: Verdict, output: Path, rows: list[Row], removed: dict[str, float] | None, *, pruned: bool) -> None:
    """Edition 1 of every row is in its projection file or in `editions/01.h5`; there it is what the worker made."""
    for name in {row.series for row in rows}:
        files = {int(path.stem) for path in (output / name / "projections").glob("0*.h5")}
        first, kept = output / name / "editions" / "01.h5", set[int]()
        if first.exists():
            with h5py.File(first, "r") as file:
                models = dict(zip(file["projection/number"][()].tolist(), file["projection/model"][()], strict=True))
            kept = {number for number, model in models.items() if removed is None or model.decode() == next(iter(removed))}
            for number in models.keys() - kept:
                verdict.wrong("edition changed", f"{first}: projection {number} is of {models[number]!r}")
        for row in rows:
            if row.series == name and row.number not in files | kept:
                verdict.wrong("edition 1 gone", f"{row.path}: neither a projection file nor {first} has it")
            if row.series == name and pruned and row.number in files:
                verdict.wrong("not as decided", f"{row.path} has a projection file still")


def _judge_apart(verdict: Verdict, output: Path, rows: list[Row], apart: dict[str, list[Apart]], exposures: list[Exposure]) -> None:
    """Every projection file is of a row, or of what is kept beside them: with the pixels that were exposed, and for a reason."""
    aside = {exposure.path: exposure.pixels for exposure in exposures if exposure.fate == "aside"}
    for name, beside in apart.items():
        numbers = {row.number for row in rows if row.series == name}
        decided = json.loads((output / name / "decisions.json").read_bytes()) if (output / name / "decisions.json").exists() else {}
        for each in beside:
            said = decided.get("aside", {}).get(str(each.number), {})
            if each.path not in aside or each.number in numbers or not said or "restored_at" in said:
                verdict.wrong("not as decided", f"{name}: projection {each.number} of {each.path} is kept beside the rows")
            elif each.raw is not None and not np.array_equal(each.raw, aside[each.path]):
                verdict.wrong("changed", f"{name}: {each.path} is kept beside the rows with other pixels")
        for path in (output / name / "projections").glob("0*.h5"):
            if int(path.stem) not in numbers | {each.number for each in beside}:
                verdict.wrong("not as decided", f"{path} is nowhere in {name}/series.h5")
        for row in rows:
            if row.series == name and row.path in aside and not row.excluded and len(numbers) > 1:
                verdict.wrong("not as decided", f"{row.path} counts beside others")


def _judge_fates(verdict: Verdict, rows: list[Row], exposures: list[Exposure], quarantined: Counter[str]) -> None:
    found = Counter(row.path for row in rows)
    copies: dict[tuple[str, float, bytes], list[Exposure]] = {}
    for exposure in exposures:
        if exposure.fate == "quarantined":
            verdict.counts["quarantined"] += 1
            if not quarantined[exposure.path]:
                verdict.wrong("not quarantined", exposure.path)
        elif exposure.fate == "aside":
            if found[exposure.path] > 1 or quarantined[exposure.path]:
                verdict.wrong("doubled" if found[exposure.path] else "wrongly quarantined", exposure.path)
        elif exposure.fate == "held":
            if found[exposure.path] or quarantined[exposure.path]:
                verdict.wrong("not held", exposure.path)
        elif exposure.pixels is not None:
            key = exposure.path.split("/")[0], exposure.tilt_deg, exposure.pixels.tobytes()
            copies.setdefault(key, []).append(exposure)
            if quarantined[exposure.path] and exposure.fate == "stored":
                verdict.wrong("wrongly quarantined", exposure.path)
    for same in copies.values():
        times = sum(found[exposure.path] for exposure in same)
        verdict.counts["stored"] += times >= 1
        verdict.counts["duplicate"] += len(same) - 1
        if times == 0:
            verdict.wrong("lost", " = ".join(exposure.path for exposure in same))
        elif times > 1:
            verdict.wrong("doubled", " = ".join(exposure.path for exposure in same) + f": {times} rows")
