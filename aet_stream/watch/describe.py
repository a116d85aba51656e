"""What would be done with files, in words: `aet-stream check FILE...`, the first thing to run at a new site."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from aet_stream.config import Config, Orientation
from aet_stream.errors import AetError, ReaderDied, SourceError, SourceGone, SourceNotReady
from aet_stream.naming import NO_TEXT, is_text, series_of, shown
from aet_stream.projection import Acquisition, Candidate
from aet_stream.readers.looking import Look, Unit
from aet_stream.readers.plan import load_plan
from aet_stream.readers.sidecar import SUFFIXES as SIDECARS
from aet_stream.watch.angle import resolve
from aet_stream.watch.settle import Settling
from aet_stream.watch.watch import Reader

SHOWN_IMAGES = 3
"""Of a long stack, the first and last images are shown in full."""


def describe_all(paths: Iterable[Path], reader: Reader, config: Config, *, say: Callable[[str], None]) -> bool:
    """Describe files, and every file below folders; True when all could be stored as they are.

    Raises
    ------
    AetError : a path is not there
    """
    plan = load_plan(config.angle.plan)
    suffixes = reader.suffixes()
    verdicts: Counter[str] = Counter()
    for folder, files in _by_folder(paths):
        folder_files = Settling(folder, exclude=config.watch.exclude, settle_s=0.0, suffixes=suffixes)
        folder_files.scan(0.0)
        for name in files or sorted(folder_files.candidates):
            loose = tuple(str(folder / other) for other in folder_files.loose(name))
            passed_over = "its name matches watch.exclude" if folder_files.excluded(Path(name).name) else _no_image(name, suffixes)
            verdict, text = describe(folder / name, reader, config, loose=loose, plan=plan, passed_over=passed_over)
            verdicts[verdict] += 1
            say("\n".join(map(shown, text.split("\n"))))
        for name in () if files else folder_files.nameless:
            verdicts["would be quarantined"] += 1
            say(f"{shown(str(folder))}/{name}\n  would be quarantined: {NO_TEXT}")
        if not (files or folder_files.candidates or folder_files.nameless):
            say(f"{shown(str(folder))}\n  no image in it, nor below; looked at is what ends in {', '.join(sorted(suffixes))}")
    if sum(verdicts.values()) > 1:
        say("in all: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    return not (verdicts.keys() - {"would be stored"})


def _no_image(name: str, suffixes: frozenset[str]) -> str:
    """Why a file of this name is none that is looked at, or an empty string."""
    suffix = Path(name).suffix.lower()
    if suffix in suffixes:
        return ""
    return "a sidecar, read with its image" if suffix in SIDECARS else f"looked at is what ends in {', '.join(sorted(suffixes))}"


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


def describe(
    path: Path, reader: Reader, config: Config, *, loose: tuple[str, ...] = (), plan: tuple[float, ...] = (), passed_over: str = ""
) -> tuple[str, str]:
    """(verdict, lines) for one file; `passed_over`: why the daemon would not even open it."""
    name = shown(str(path))
    series = series_of(_relative(path, config), config.watch_root.name if config.watch.root else "", config.series)
    if passed_over:
        return "never looked at", f"{name}\n  never looked at: {passed_over}"
    if not is_text(str(path)):
        return "would be quarantined", f"{name}\n  would be quarantined: {NO_TEXT}"
    try:
        look = reader.look(path, loose)
    except SourceNotReady as error:
        return "would be waited for", f"{name}\n  not complete: {error}\n  would be waited for"
    except SourceGone as error:
        return "gone", f"{name}\n  {error}"
    except (SourceError, ReaderDied) as error:
        return "would be quarantined", f"{name}\n  would be quarantined: {error}"
    probe = look.probe
    lines = [name, f"  {probe.reader}, {_images(look)}; series {series}"]
    if look.waiting:
        lines.append(f"  still growing, or stopped early: {look.waiting}")
    verdicts = Counter[str]()
    for unit in look.units:
        verdict, text = _unit(path, look, unit, config, plan)
        verdicts[verdict] += 1
        if unit.image < SHOWN_IMAGES or unit.image >= len(look.units) - SHOWN_IMAGES:
            lines += text
        elif unit.image == SHOWN_IMAGES:
            lines.append("  ...")
    if len(look.units) > 1:
        lines.append("  " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    worst = next(name for name in ("would be held", "of another detector", "would be stored") if verdicts[name])
    return worst, "\n".join(lines)


def _relative(path: Path, config: Config) -> str:
    """As the daemon would see it; a file elsewhere counts as lying in a series folder of its own folder's name."""
    absolute = path.absolute()
    if config.watch.root and absolute.is_relative_to(config.watch_root):
        return absolute.relative_to(config.watch_root).as_posix()
    return f"{absolute.parent.name}/{absolute.name}"


def _images(look: Look) -> str:
    probe = look.probe
    frames = f", up to {probe.frames} frames each" if probe.frames > 1 else ""
    return f"complete: {probe.images} image(s) of {probe.shape[0]} x {probe.shape[1]} px {probe.dtype}{frames}"


def _unit(path: Path, look: Look, unit: Unit, config: Config, plan: tuple[float, ...]) -> tuple[str, list[str]]:
    stated, hold = resolve(unit.acquisition, unit.tilts, path.name, look.probe.promised, config.angle, remark=unit.remark, plan=plan)
    wanted, found = config.series.detector, unit.acquisition.detector
    lines = [f"  [{unit.image}] {_known(unit.acquisition)}", *(f"      {_stated(c)}" for c in stated)]
    lines += _axis(unit.acquisition, config.orientation)
    if wanted and found and wanted.lower() != found.lower():
        return "of another detector", [*lines, f"      would be recorded, not stored: series.detector is {wanted}"]
    if hold:
        return "would be held", [*lines, f"      would be held: {hold}"]
    return "would be stored", [*lines, f"      would be stored at {stated[0].tilt_deg:+.3f} deg from {stated[0].source}"]


def _axis(said: Acquisition, orientation: Orientation) -> list[str]:
    """Where the tilt axis is taken to lie, if anybody says it."""
    axis_deg, by_file = orientation.axis_deg(said.tilt_axis_deg), orientation.tilt_axis_deg == "file"
    if math.isnan(axis_deg):
        return []
    source = f"its file says {said.tilt_axis_deg:g}" if by_file else "orientation.tilt_axis_deg"
    return [f"      tilt axis {axis_deg:+.1f} deg from the vertical  ({source})"]


def _stated(candidate: Candidate) -> str:
    return f"{candidate.source:<8} {candidate.tilt_deg:+9.3f} deg  ({candidate.raw})"


def _known(said: Acquisition) -> str:
    size = "pixel size unknown" if said.pixel_size_nm is None else f"pixel {said.pixel_size_nm:.5g} nm"
    when = said.acquired_utc or (f"{said.acquired_local} local time" if said.acquired_local else "time unknown")
    dwell = f", dwell {said.dwell_time_s * 1e6:g} us" if said.dwell_time_s else ""
    return ", ".join(filter(None, (size, when, said.detector))) + dwell
