"""`atoms.json`: what is said of the atoms of a series that has none, because it still grows, or because they cannot be told."""

from __future__ import annotations

import json
import time
from pathlib import Path

from aet_stream import durable
from aet_stream.atoms.count import Count
from aet_stream.naming import ATOMS_FILE, ATOMS_NOTE_FILE


def say_count(folder: Path, found: Count) -> None:
    """Of a series that grows."""
    numbers = {name: getattr(found, name) for name in ("atoms", "sigma", "contrast", "tilts", "edition")}
    _write(folder, {"text": found.sentence, **numbers})


def say_not_yet(folder: Path, reason: str) -> None:
    """Why they cannot be counted."""
    _write(folder, {"text": f"not to be counted yet: {reason}"})


def say_none(folder: Path, reason: str) -> None:
    """Why there are none; those of a volume that was there before are taken away."""
    for suffix in (".h5", ".xyz", ".png"):
        (folder / ATOMS_FILE).with_suffix(suffix).unlink(missing_ok=True)
    _write(folder, {"text": f"no atoms: {reason}"})


def forget(folder: Path) -> None:
    """There are atoms now."""
    (folder / ATOMS_NOTE_FILE).unlink(missing_ok=True)


def _write(folder: Path, note: dict[str, str | int | float]) -> None:
    durable.replace(folder / ATOMS_NOTE_FILE, json.dumps({**note, "at": time.time()}).encode())
