"""What would be done with files, in words: `aet-stream check FILE...`, the first thing to run at a new site.

Files are looked at, read and judged by the code of the daemon, in its order; only nothing is stored.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aet_stream.config import Config
from aet_stream.errors import AetError, ReaderDied, SourceError, SourceGone, SourceNotReady, complaint
from aet_stream.judging import Held, Row, Rows, Site, is_bound, judge, odd, parted
from aet_stream.messages import Acquired
from aet_stream.naming import is_text, series_of, shown, without_reader
from aet_stream.newer_than import limit_s
from aet_stream.projection import Acquisition, Array, Candidate
from aet_stream.readers.child import Member, ReaderChild
from aet_stream.readers.looking import Look, Unit
from aet_stream.readers.sidecar import is_sidecar
from aet_stream.reasons import Reason, why
from aet_stream.watch.merging import Merging
from aet_stream.watch.settle import Settling
from aet_stream.watch.visits import Visit, Visits
from aet_stream.watch.witness import Witness

SHOWN_IMAGES = 3
"""Of a long stack, the first and last images are shown in full."""
STORED, WAITED_FOR, QUARANTINED, GONE, UNREAD = "would be stored", "would be waited for", "would be quarantined", "gone", "never looked at"
ODD = "would be set aside"
_WORDS = {
    "stored": STORED,
    "held": "would be held",
    "other": "would be recorded, not stored",
    "duplicate": "would be recorded as a duplicate",
    "same": "would be recorded as known",
}
_WORST_FIRST = (QUARANTINED, GONE, _WORDS["held"], ODD, WAITED_FOR, STORED, _WORDS["duplicate"], _WORDS["other"])
"""Which verdict on one of its images is that on a file."""


def describe_all(paths: Iterable[Path], reader: ReaderChild, config: Config, *, say: Callable[[str], None]) -> bool:
    """Describe files, and every file below folders; True when all could be stored as they are.

    Raises
    ------
    AetError : a path is not there
    """
    foresight = Foresight(reader, config)
    verdicts: Counter[str] = Counter()
    for folder, files in _by_folder(paths):
        for verdict, text in foresight.of(folder, files):
            if verdict:
                verdicts[verdict] += 1
            say("\n".join(map(shown, text.split("\n"))))
    if sum(verdicts.values()) > 1:
        say("in all: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    return not (verdicts.keys() - {STORED})


def _by_folder(paths: Iterable[Path]) -> list[tuple[Path, list[str]]]:
    """(folder, names of files in it); no names for a folder that is meant as a whole."""
    found: dict[Path, list[str]] = {}
    whole: list[tuple[Path, list[str]]] = []
    for path in paths:
        if path.is_dir():
            whole.append((path, []))
        elif os.path.lexists(path):
            found.setdefault(path.parent, []).append(path.name)
        else:
            raise AetError(f"{path}: no such file or folder")
    return [*found.items(), *whole]


@dataclass
class _File:
    """What has been found out about one file."""

    path: Path
    name: str
    """Relative to the watched folder."""
    series: str
    verdict: str = ""
    """Known before any of its images was judged."""
    words: str = ""
    look: Look | None = None
    images: dict[int, tuple[str, list[str]]] = field(default_factory=dict)
    """Image -> (verdict, lines)."""


class _Held(NamedTuple):
    """What is judged again when the row that it was held against is set aside."""

    files: list[_File]
    visit: Visit
    acquired: Acquired
    raw: Array
    """Shape and dtype; its pixels are known by their checksum."""
    reason: Reason


class Foresight:
    """What would become of files; what would be stored is remembered, and what comes after it judged beside it."""

    def __init__(self, reader: ReaderChild, config: Config) -> None:
        self._reader = reader
        self._config = config
        self._witness = Witness(config)
        self._suffixes = reader.suffixes()
        self._rows: dict[str, Rows] = {}
        self._held: dict[str, list[_Held]] = {}
        self._aside: dict[str, set[int]] = {}
        """Series -> numbers of rows that would be set aside."""
        self._of_row: dict[tuple[str, int], tuple[_File, int]] = {}
        """(series, number) -> file and image that it would be of."""

    def of(self, folder: Path, names: list[str]) -> list[tuple[str, str]]:
        """(verdict, text) of files in a folder, or of all below it; text without a verdict is about several of them."""
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
        there = Settling(folder, exclude=self._config.watch.exclude, settle_s=0.0, suffixes=self._suffixes)
        there.scan(0.0)
        visits = Visits(self._config.frames)
        root = self._root(folder)
        inside = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        files = {}
        for name in there.in_order(names) if names else list(there.candidates):
            series = series_of(f"{inside}{name}", root.name, self._config.series)
            file = files[name] = _File(folder / name, f"{inside}{name}", series)
            self._look(file, there, name, visits)
        loose = {files[name].name: there.loose(name) for name in files}
        by_name = {file.name: file for file in files.values()}
        for later_s in (0.0, math.inf):  # those that may still get another frame are waited for
            for visit in visits.due(later_s):
                self._judge(visit, [by_name[frame.path] for frame in visit.frames], loose)
                visits.told(visit)
        told = [self._told(files[name]) for name in names or sorted(files)]
        return told + ([] if names else self._of_all(folder, there, [file.name for file in files.values()]))

    def _root(self, folder: Path) -> Path:
        """The watched folder, or that of a person who asks about another one."""
        watched = self._config.watch_root
        return watched if self._config.watch.root and folder.is_relative_to(watched) else folder

    def _look(self, file: _File, there: Settling, name: str, visits: Visits) -> None:
        if passed_over := self._passed_over(file.path.name, there):
            file.verdict, file.words = UNREAD, f"never looked at: {passed_over}"
            return
        if not is_text(str(file.path)):
            file.verdict, file.words = QUARANTINED, f"{QUARANTINED}: {why('nameless').with_remedy()}"
            return
        try:
            file.look = self._reader.look(file.path, there.loose(name))
        except AetError as error:
            file.verdict, file.words = _failed(error, complaint(error, file.name))
            return
        visits.note(file.name, self._witness.frames(file.name, file.look, closed_at=there.final_at(name), now=0.0))

    def _passed_over(self, name: str, there: Settling) -> str:
        """Why the daemon would not open a file of this name, or an empty string."""
        if there.excluded(name):
            return "its name matches watch.exclude"
        if is_sidecar(name):
            return "a sidecar, read with its image"
        return "" if Path(name).suffix.lower() in self._suffixes else f"looked at is what ends in {', '.join(sorted(self._suffixes))}"

    def _judge(self, visit: Visit, files: list[_File], loose: dict[str, tuple[str, ...]]) -> None:
        """Read a visit, and judge it as the hub would."""
        frames = visit.frames
        members = [Member(str(file.path), frame.image, loose[frame.path]) for file, frame in zip(files, frames, strict=True)]
        assert files[0].look is not None
        stated: tuple[Candidate, ...] = self._witness.stated(frames[0], files[0].look)
        try:
            projection, reading = self._reader.read_visit(members)
        except AetError as error:
            verdict, words = _failed(error, str(error))
        else:
            acquired, planes = self._witness.acquired(visit, projection, reading)
            self._decide(files, visit, acquired, parted(planes, acquired)[0])
            self._set_aside(files[0].series)
            return
        self._note(files, visit, stated, verdict, words)

    def _decide(self, files: list[_File], visit: Visit, acquired: Acquired, raw: Array) -> None:
        series, site = files[0].series, Site.of(self._config)
        rows = self._rows.setdefault(series, Rows())
        found = judge(acquired, raw, rows, site)
        verdict = _WORDS[found.state]
        words = f"{verdict}: {found.reason.with_remedy()}" if found.reason else verdict
        if found.state == "stored":
            self._of_row[series, len(rows)] = files[0], visit.key[1]
            rows.take(Row.of(acquired, raw, found, site, len(rows)))
            words = f"{STORED} at {found.tilt_deg:+.3f} deg from {found.tilt_source}"
        elif found.state == "held" and found.reason is not None and is_bound(found.reason):
            stub = np.broadcast_to(raw.dtype.type(0), raw.shape)
            self._held.setdefault(series, []).append(_Held(files, visit, acquired, stub, found.reason))
        self._note(files, visit, acquired.candidates, verdict, words)

    def _note(self, files: list[_File], visit: Visit, stated: tuple[Candidate, ...], verdict: str, words: str) -> None:
        files[0].images[visit.key[1]] = verdict, [*(f"      {_stated(c)}" for c in stated), f"      {words}"]
        for file, frame in zip(files[1:], visit.frames[1:], strict=True):
            file.images[frame.image] = verdict, [f"      a frame of {visit.key[0]} image {visit.key[1]}, as which it {verdict}"]

    def _set_aside(self, series: str) -> None:
        """As the hub would: a row that two agree against no longer binds, and what was held because of it is judged again."""
        rows, held = self._rows.get(series, Rows()), self._held.get(series, [])
        said = [Held(each.reason, each.acquired.candidates[0].tilt_deg, each.acquired.sha256) for each in held if each.acquired.candidates]
        if found := odd(rows, said):
            self._aside.setdefault(series, set()).add(found.row.number)
            rows.decided(self._aside[series])
            file, image = self._of_row[series, found.row.number]
            file.images[image] = ODD, [*file.images[image][1], f"      {ODD}: {found.reason.with_remedy()}"]
            for each in found.in_turn((each, each.reason) for each in self._held.pop(series)):
                self._decide(each.files, each.visit, each.acquired, each.raw)
                self._set_aside(series)

    def _told(self, file: _File) -> tuple[str, str]:
        """(verdict, lines) of one file."""
        name = shown(str(file.path))
        if file.look is None:
            return file.verdict, f"{name}\n  {file.words}"
        look, units = file.look, file.look.units
        lines = [name, f"  {look.probe.reader}, {_images(look)}; series {file.series}"]
        lines += [f"  still growing, or stopped early: {look.waiting}"] if look.waiting else []
        for place, unit in enumerate(units):
            if SHOWN_IMAGES <= place < len(units) - SHOWN_IMAGES:
                lines += ["  ..."] if place == SHOWN_IMAGES else []
            else:
                lines += [
                    f"  [{unit.image}] {_known(unit.acquisition)}",
                    *_not_believed(unit),
                    *self._axis(unit.acquisition),
                    *file.images[unit.image][1],
                ]
        verdicts = Counter(verdict for verdict, _ in file.images.values())
        if look.waiting is not None and look.waiting.code == "zeros_so_far":
            verdicts[WAITED_FOR] += look.probe.promised - len(units)
        if sum(verdicts.values()) > 1:
            lines.append("  " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
        return next(verdict for verdict in (*_WORST_FIRST, *verdicts) if verdicts[verdict]), "\n".join(lines)

    def _axis(self, said: Acquisition) -> list[str]:
        """Where the tilt axis is taken to lie, if anybody says it."""
        orientation = self._config.orientation
        axis_deg, by_file = orientation.axis_deg(said.tilt_axis_deg), orientation.tilt_axis_deg == "file"
        if math.isnan(axis_deg):
            return []
        source = f"its file says {said.tilt_axis_deg:g}" if by_file else "orientation.tilt_axis_deg"
        return [f"      tilt axis {axis_deg:+.1f} deg from the vertical  ({source})"]

    def _of_all(self, folder: Path, there: Settling, names: list[str]) -> list[tuple[str, str]]:
        """What is to be said of a folder as a whole."""
        said = [(QUARANTINED, f"{folder}/{name}\n  {QUARANTINED}: {why('nameless').with_remedy()}") for name in there.nameless]
        merged = Merging(self._root(folder).name, self._config.series).note(names)
        said += [("", f"{folder}\n  {sentence}") for sentence in merged]
        said += [(UNREAD, f"{folder / below}\n  {words}") for below, words in without_reader(there.no_reader).items()]
        if old := there.written_before(limit_s(self._config.watch.newer_than, time.time())):
            left_out = "those that are there at the first start are left out (watch.newer_than)"
            said.append(("", f"{folder}\n  {old} of {len(names)} files are older than wanted: {left_out}"))
        if not (names or said):
            said.append(("", f"{folder}\n  no image in it, nor below; looked at is what ends in {', '.join(sorted(self._suffixes))}"))
        return said


def _failed(error: AetError, said: str) -> tuple[str, str]:
    """(verdict, words) on what could not be looked at or read."""
    if isinstance(error, SourceGone):
        return GONE, said
    if isinstance(error, SourceNotReady):
        return WAITED_FOR, f"not complete: {said}\n  {WAITED_FOR}"
    if isinstance(error, SourceError | ReaderDied):
        return QUARANTINED, f"{QUARANTINED}: {said}"
    raise error


def _images(look: Look) -> str:
    probe = look.probe
    frames = f", up to {probe.frames} frames each" if probe.frames > 1 else ""
    return f"complete: {probe.images} image(s) of {probe.shape[0]} x {probe.shape[1]} px {probe.dtype}{frames}"


def _not_believed(unit: Unit) -> list[str]:
    return [f"      not believed: {unit.acquisition.remark}"] if unit.acquisition.remark else []


def _stated(candidate: Candidate) -> str:
    return f"{candidate.source:<8} {candidate.tilt_deg:+9.3f} deg  ({candidate.raw})"


def _known(said: Acquisition) -> str:
    size = "pixel size unknown" if said.pixel_size_nm is None else f"pixel {said.pixel_size_nm:.5g} nm"
    when = said.acquired_utc or (f"{said.acquired_local} local time" if said.acquired_local else "time unknown")
    dwell = f", dwell {said.dwell_time_s * 1e6:g} us" if said.dwell_time_s else ""
    return ", ".join(filter(None, (size, when, f"{said.detector} {said.segment}".strip()))) + dwell
