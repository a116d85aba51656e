"""What names say: which series a source file belongs to, and which detector; and how they are shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from aet_stream.config import Series
from aet_stream.projection import Acquisition

SERIES_FILE = "series.h5"
"""Of every series, in its folder below output.root."""
PREVIEW_FILE, VOLUME_FILE, ATOMS_FILE, FILM_FILE = "preview.h5", "reconstruction.h5", "atoms.h5", "film.h5"
"""What children of the trigger leave beside it."""
ATOMS_NOTE_FILE = "atoms.json"
"""What is said of the atoms of a series that has none, because it still grows, or because they cannot be told."""
#: Folders under output.root that are no series.
RESERVED = ("quarantine", "run")
_NO_FOLDERS = ("", ".", "..")
_LEDGER = "ledger.sqlite"
_LONGEST_BYTES = 200
"""File systems take 255; drafts and copies put something around a name."""

_UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]")


def top_folder(path: str) -> str:
    """The folder directly under the watched one that a path lies in; empty for the watched one itself."""
    top, _, rest = path.partition("/")
    return top if rest else ""


def series_of(path: str, root_name: str, rules: Series | None = None) -> str:
    """The series of a file: by default the folder directly under the watched one (whatever lies deeper in it), or that one itself.

    Folders in a path are joined by a tilde.

    Parameters
    ----------
    path : relative to the watched folder, with forward slashes
    root_name : name of the watched folder
    """
    folder, top = path.rpartition("/")[0], top_folder(path)
    by = "folder" if rules is None else rules.by
    name = top or root_name
    if by == "file":
        name = _joined(path.removesuffix(PurePosixPath(path).suffix), path)
    elif by == "leaf":
        name = _joined(folder, folder) or root_name
    elif rules is not None and by in ("pattern", "path_pattern"):
        found = re.search(rules.pattern, PurePosixPath(path).name if by == "pattern" else path)
        parts = found["series"].split("/") if found and found["series"] else []
        name = "~".join(re.sub(r"[^\w.+-]+", "_", part) for part in parts).lstrip(".") if parts else name
    if by in ("folder", "leaf") and top and name == root_name:
        return f"{name}_"
    coded = _coded(name)
    if len(coded) > _LONGEST_BYTES:
        name = f"{coded[:_LONGEST_BYTES].decode(errors='ignore')}_{_digest(coded)}"
    return f"{name}_" if name in (*RESERVED, *_NO_FOLDERS) or name.startswith(_LEDGER) else name


def _joined(name: str, path: str) -> str:
    """Folders of a path as one name; with a digest where that might be the name of another."""
    return f"{name.replace('/', '~')}_{_digest(_coded(path))}" if "~" in path else name.replace("/", "~")


_WORD = re.compile(r"[^\W_]+")
_DETECTOR = re.compile(r"(?:(?:HAADF|MAADF|LAADF|ADF|ABF|BF|[ID]?DPC)(?=\d*$)|DF\d*$)", re.IGNORECASE)


def detector_in_name(path: str) -> str:
    """The detector that a word of a file's name is; empty for none, and for several. The number of a DF is part of its name."""
    words = (_DETECTOR.match(word) for word in _WORD.findall(PurePosixPath(path).stem))
    found = {match.group(0).upper() for match in words if match}
    return found.pop() if len(found) == 1 else ""


def is_left_out(said: Acquisition, path: str, rules: Series) -> bool:
    """Is it an image of another detector, or segment of one, than `series.detector`? The file is believed before its name."""
    name = detector_in_name(path)
    names = (said.detector, f"{said.detector} {said.segment}") if said.detector else (name, name.rstrip("0123456789"))
    return bool(rules.detector and names[0]) and rules.detector.lower() not in map(str.lower, names)


def _coded(name: str) -> bytes:
    """A name's own bytes, whatever they are."""
    return name.encode("utf-8", "surrogateescape")


def _digest(name: bytes) -> str:
    return hashlib.sha256(name).hexdigest()[:8]


def shown(name: str) -> str:
    """A folder or file name as text, whatever bytes it has: nothing in it moves a terminal's cursor or turns the reading direction."""
    return _UNSEEN.sub("\ufffd", _coded(name).decode("utf-8", "replace"))


def without_reader(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Folder -> what nobody reads in it: "12 files *.eer, 1 file *.mrc.gz: no reader".

    Parameters
    ----------
    rows : (folder, how such files are called, how many)
    """
    folders: dict[str, list[str]] = {}
    for folder, kind, files in rows:
        folders.setdefault(folder, []).append(f"{files} file{'' if files == 1 else 's'} {kind}")
    return {folder: f"{', '.join(kinds)}: no reader" for folder, kinds in folders.items()}


def lines_without_reader(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """The same with the folder in front: one line for each."""
    return {folder: f"{shown(folder) or 'the watched folder'}: {words}" for folder, words in without_reader(rows).items()}


def is_text(name: str) -> bool:
    """Whether a file name is UTF-8; one of other bytes cannot be sent, logged or written down as it is."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
