"""What has been decided about a stored series: which edition it shows, which rows are set aside, and why.

`<series>/decisions.json` is the durable truth; `series.h5` repeats it word for word, the ledger follows. All three go the way of a
projection: file -> series.h5 -> one ledger transaction -> the world may know.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from aet_stream import durable, edition
from aet_stream.errors import StoreError
from aet_stream.reasons import Reason

DECISIONS = "decisions.json"


class Aside(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Why one row does not count, and since when; kept also when it counts again."""

    reason: Reason
    at: float
    """Unix seconds."""
    restored_at: float = 0.0
    """Since when it counts again; 0: it does not."""


class Decisions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All that has been decided about one series."""

    edition: int = edition.FIRST
    """Which one `series.h5` shows, where it has the row."""
    chosen_at: float = 0.0
    """Unix seconds."""
    aside: dict[int, Aside] = {}
    """By the number of the projection."""

    @property
    def excluded(self) -> dict[int, Aside]:
        """What does not count at present."""
        return {number: aside for number, aside in self.aside.items() if not aside.restored_at}

    @property
    def restored(self) -> set[int]:
        """What did not count once, and counts again."""
        return {number for number, aside in self.aside.items() if aside.restored_at}

    @property
    def text(self) -> str:
        """As it is written; the same decisions have the same text. Empty: nothing has been decided."""
        return "" if self == Decisions() else msgspec.json.encode(msgspec.to_builtins(self, str_keys=True), order="sorted").decode()


def parsed(text: str) -> Decisions:
    """What `text` says.

    Raises
    ------
    StoreError : it says nothing that could be understood
    """
    try:
        return msgspec.json.decode(text, type=Decisions) if text else Decisions()
    except msgspec.DecodeError as error:
        raise StoreError(f"decisions that cannot be understood: {error}") from error


def read(folder: Path) -> Decisions | None:
    """Of the series in this folder; None: there is no such file.

    Raises
    ------
    StoreError : it is damaged
    OutputFull : the disk does not give it
    """
    path = folder / DECISIONS
    try:
        with durable.disk_errors(path):
            content = path.read_bytes() if path.is_file() else None
        return None if content is None else parsed(content.decode().strip())
    except (UnicodeDecodeError, StoreError) as error:
        raise StoreError(f"{path}: {error}") from error


def write(folder: Path, decisions: Decisions) -> None:
    """Durably; from here on it is decided."""
    durable.replace(folder / DECISIONS, decisions.text.encode() + b"\n", "decided")
