"""What stands beside an image: SerialEM's `.mdoc`, `.rawtlt` and `.tlt` (one angle per line), `.csv`, TIA's `.emi`, GENFIRE's `angles.mat`.

A sidecar belongs to an image by its name (`x.mrc.mdoc`, `x.mdoc`), or names the image inside (a loose one, for many images of a folder).
Doubles that end in `_override` are ignored. One that is there, but cannot be understood, holds its images; it never costs them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.readers import stat_stamp
from aet_stream.readers.angle_file import ANGLE_FILE, from_angles, pair_of
from aet_stream.readers.beside import Asked, Beside, Stack, candidate
from aet_stream.readers.emi import from_emi
from aet_stream.readers.mdoc import from_mdoc
from aet_stream.readers.tables import ANGLE_TEXT, from_csv, from_lines, from_text

#: Suffix -> what such a text says of an image. Files of angles alone (`angles.mat`, `angles.txt`) are known by their names.
_TEXTS: dict[str, Callable[[str, Asked], Beside | None]] = {
    ".mdoc": from_mdoc,
    ".idoc": from_mdoc,
    ".rawtlt": from_lines,
    ".tlt": from_lines,
    ".csv": from_csv,
    ".emi": from_emi,
}
SUFFIXES = tuple(_TEXTS)
_ANGLES = (".mat", ".txt", ".dat")
"""Suffixes of files of angles alone."""
_OF_ONE_FILE = (".emi",)
_MAX_BYTES = 16 << 20
_MAX_EMI_BYTES = 512 << 20
_LATE_S = 10.0
"""What is still missing of sidecar or file after both have stood still for so long is not awaited any more."""
_NOT_THERE = (errno.ENOENT, errno.ENAMETOOLONG)


def sidecar_names(path: str) -> tuple[str, ...]:
    """Where a sidecar of this image would lie; both `x.mrc.mdoc` and `x.mdoc` are in use, and Windows does not care about case."""
    pure = PurePosixPath(path)
    stem = str(pure.with_suffix(""))
    names = [f"{path}.mdoc", f"{stem}.mdoc", f"{stem}.rawtlt", f"{stem}.tlt", f"{path}.csv", f"{stem}.csv"]
    if pure.suffix.lower() == ".ser":
        names += [f"{re.sub(r'_[0-9]+$', '', stem)}.emi"]
    if pair := pair_of(pure.stem):
        names += [str(pure.with_name(pair))]
    return tuple(dict.fromkeys(other for name in names for other in (name, _upper(name))))


def _upper(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{suffix.upper()}"


def is_sidecar(path: str) -> bool:
    """Is a file of this name one that stands beside images, and none itself?"""
    lower = path.lower()
    if not lower.endswith(_ANGLES):  # as nearly all of a hundred thousand
        return lower.endswith(SUFFIXES)
    name = lower.rpartition("/")[2]
    return ANGLE_FILE.fullmatch(name) is not None or ANGLE_TEXT.fullmatch(name) is not None


def is_loose(path: str) -> bool:
    """May one sidecar of this name speak of many images, or of one of another name?"""
    return is_sidecar(path) and not path.lower().endswith(_OF_ONE_FILE)


def ignored(name: str) -> bool:
    """`_override` doubles carry the tilts of other images."""
    return "_override" in PurePosixPath(name).name.lower()


def beside(path: Path, image: int, images: int, loose: Iterable[Path] = (), *, settle_s: float = 0.0, stack: Stack | None = None) -> Beside:
    """What the sidecars say about one image.

    Parameters
    ----------
    images : how many its file holds or promises
    loose : sidecars of the same folder that belong to no image by name
    settle_s : a text whose last line has no end may still be written, until it has stood still for so many seconds
    stack : more about all images of the file

    Raises
    ------
    SourceNotReady : a sidecar is there but not whole yet, or cannot be read now
    """
    stack = stack or Stack(images, images)
    own = [(Path(name), True) for name in sidecar_names(str(path))]
    asked = [Asked(sidecar, path, image, stack, is_own) for sidecar, is_own in [*own, *((other, False) for other in loose)]]
    found = [said for ask in asked if not ignored(ask.sidecar.name) and (said := _one(ask, settle_s)) is not None]
    if not found:
        return Beside()
    known = found[0].known
    for other in found[1:]:
        known = other.completing(known)
    remarks = dict.fromkeys(said.remark for said in found if said.remark)
    return Beside(tuple(tilt for said in found for tilt in said.tilts), known, "; ".join(remarks), max(said.frames for said in found))


def _one(ask: Asked, settle_s: float) -> Beside | None:
    sidecar = ask.sidecar
    try:
        entry = sidecar.lstat()
        if unread := _unread(sidecar, entry):
            return _held(sidecar, unread)
        text = _text(sidecar, entry)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        remedy = ": give the daemon's user the right to read it" if isinstance(error, PermissionError) else ""
        raise SourceNotReady(f"{sidecar.name}: {error.strerror}{remedy}") from error
    fresh = min(abs(time.time() - at) for at in (entry.st_mtime, _changed_at(ask.path))) < max(_LATE_S, settle_s)
    return _heard(text, replace(ask, fresh=fresh), written=abs(time.time() - entry.st_mtime) >= settle_s)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _heard(text: str, ask: Asked, *, written: bool) -> Beside | None:
    """What a sidecar says; what of it is late is awaited, what is damaged is not known."""
    name = ask.sidecar.name
    try:
        said = _said(text, ask)
        torn = not written and not text.endswith("\n") and ask.sidecar.suffix.lower() != ".mat"
        if torn and (ask.is_own or said != _said(text[: text.rfind("\n") + 1], ask)):
            raise SourceNotReady(f"{name}: its last line has no end yet; believed as it is when it stands still (watch.settle_s)")
    except SourceNotReady as error:
        if ask.fresh:
            raise
        return Beside(remark=str(error))
    except SourceError as error:
        return Beside(remark=str(error))
    return said


def _said(text: str, ask: Asked) -> Beside | None:
    suffix = ask.sidecar.suffix.lower()
    return from_angles(ask) if suffix == ".mat" else _TEXTS.get(suffix, from_text)(text, ask)


_texts: dict[Path, tuple[str, str]] = {}


def _held(sidecar: Path, why: str) -> Beside:
    """A sidecar that may say anything: the image's name alone is not believed."""
    return Beside((candidate("", sidecar.name),), remark=f"{sidecar.name} {why}")


def _unread(sidecar: Path, entry: os.stat_result) -> str:
    """Why a sidecar that is there is not read, which holds the projection; or an empty string."""
    limit = _MAX_EMI_BYTES if sidecar.suffix.lower() == ".emi" else _MAX_BYTES
    if not stat.S_ISREG(entry.st_mode):
        return "is a link or folder, not a regular file: copy the file here, or rename it"
    return f"has {entry.st_size} bytes, at most {limit} are read: shorten it, or rename it" if entry.st_size > limit else ""


def _text(sidecar: Path, entry: os.stat_result) -> str:
    """Content of a small text file, kept as long as the file stays as it is; nothing of one that is no text."""
    if sidecar.suffix.lower() == ".mat":
        return ""
    stamp = stat_stamp(entry)
    if sidecar in _texts and _texts[sidecar][0] == stamp:
        return _texts[sidecar][1]
    content = sidecar.read_bytes()
    if sidecar.suffix.lower() == ".emi":  # pixels and XML in one file: keep the XML
        content = b"".join(part + b"\n" for part in re.findall(rb"<ObjectInfo>.{0,1000000}?</ObjectInfo>", content, re.DOTALL)[:64])
    if len(_texts) > 256:
        _texts.clear()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # what Excel and SerialEM write on Windows; every byte is a character of it
        text = content.decode("latin-1")
    _texts[sidecar] = (stamp, text)
    return _texts[sidecar][1]
