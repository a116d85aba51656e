"""`verify` reads in a process of its own: a damaged HDF5 file can crash the library, or keep it busy for ever."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from aet_stream import lifeline
from aet_stream.errors import StoreError
from aet_stream.series import Series

PATIENCE_S = 60.0
SLOWEST_DISK_BYTES_PER_S = 10e6


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found in one series."""

    rows: int = 0
    closed: bool = False
    doubts: tuple[str, ...] = ()
    refused: str = ""
    """Why it cannot be opened as a series; empty: it can."""


def verdicts(paths: Sequence[Path], *, patience_s: float = PATIENCE_S) -> Iterator[Verdict]:
    """One for each series in turn. A file that kills or hangs its reader has its verdict, too, and costs no other its own.

    Parameters
    ----------
    patience_s : longest time without a verdict, beside what its pixels need from the slowest disk
    """
    left = list(paths)
    while left:
        with subprocess.Popen(lifeline.command(__name__, *map(str, left)), stdout=subprocess.PIPE) as reader:
            try:
                _hear(reader, PATIENCE_S)  # it has started
                while left and (verdict := _hear(reader, patience_s + _slowest_s(left[0]))) is not None:
                    yield verdict
                    left.pop(0)
            finally:
                reader.kill()
        if left:
            yield Verdict(refused=f"{left.pop(0)}: whatever reads it dies or never ends: it is damaged")


def _slowest_s(path: Path) -> float:
    folder = [path, *path.parent.glob("projections/*.h5")]
    return sum(file.stat().st_size for file in folder if file.is_file()) / SLOWEST_DISK_BYTES_PER_S


def _hear(reader: subprocess.Popen[bytes], limit_s: float) -> Verdict | None:
    """The reader's next verdict; None: it died, or took too long. A verdict is one line, written at once."""
    if reader.stdout is None:
        return None
    with selectors.DefaultSelector() as selector:
        selector.register(reader.stdout, selectors.EVENT_READ)
        if not selector.select(limit_s):
            return None
    line = reader.stdout.raw.readline()  # type: ignore[attr-defined]
    return msgspec.json.decode(line, type=Verdict) if line.endswith(b"\n") else None


def _verify(path: Path) -> Verdict:
    try:
        with Series(path) as series:
            return Verdict(len(series), series.closed, tuple(series.doubts()))
    except StoreError as error:
        return Verdict(refused=str(error))


if __name__ == "__main__":
    os.write(1, b"{}\n")
    for name in sys.argv[1:]:
        os.write(1, msgspec.json.encode(_verify(Path(name))) + b"\n")
