"""What a check says, and what it is told."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from aet_stream.config import Config

WALK_S = 5.0
SAMPLE = 8
"""Newest images that are looked into."""

State = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """One fact about this workstation."""

    state: State
    """`ok`; `warn`: work goes on, but a person should know; `fail`: something will not work."""
    said: str
    remedy: str = ""
    """What to do; empty where all is well."""


def ok(said: str) -> Finding:
    return Finding("ok", said)


def warn(said: str, remedy: str) -> Finding:
    return Finding("warn", said, remedy)


def fail(said: str, remedy: str) -> Finding:
    return Finding("fail", said, remedy)


@dataclass(slots=True)
class Walk:
    """What there is below a folder, as far as a few seconds go."""

    folders: int = 0
    files: int = 0
    refused: list[str] = field(default_factory=list)
    newest: list[tuple[float, Path]] = field(default_factory=list)
    whole: bool = True

    @classmethod
    def of(cls, root: Path, suffixes: frozenset[str] = frozenset()) -> Walk:
        """`suffixes`: of files that may be images; the newest of them are kept."""
        found, until = cls(), time.monotonic() + WALK_S
        for folder, names, files in os.walk(root, onerror=lambda error: found.refused.append(str(error.filename))):
            names[:] = [name for name in names if not name.startswith(".")]
            found.folders += 1
            found.files += len(files)
            for name in files:
                path = Path(folder, name)
                if path.suffix.lower() in suffixes:
                    with contextlib.suppress(OSError):
                        found.newest.append((path.stat().st_mtime, path))
            found.newest = sorted(found.newest, reverse=True)[:SAMPLE]
            if time.monotonic() > until:
                found.whole = False
                break
        return found


@dataclass
class Station:
    """What is examined."""

    config: Config
    path: Path | None = None
    """The file that the settings came from."""
    refused: str = ""
    """Why there are no settings; then `config` has the defaults."""

    @property
    def has_watch(self) -> bool:
        return bool(self.config.watch.root)

    @cached_property
    def walk(self) -> Walk:
        """Below the watched folder."""
        from aet_stream.readers import SUFFIXES

        return Walk.of(self.config.watch_root, SUFFIXES)

    @property
    def has_output(self) -> bool:
        return bool(self.config.output.root)


Check: TypeAlias = Callable[[Station], Iterator[Finding]]
