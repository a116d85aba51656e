"""Named places in the commit path, and on the way of events, where a test can make the process die, or the disk fail.

Off unless the environment variable AET_STREAM_FAILPOINT is set when the process starts; then `reach` is an empty function. The
variable says `NAME@N=FAULT`: at the N-th time that NAME is reached (default: the first), FAULT happens. Faults: `kill` (SIGKILL to this
very process), `torn` (half of the file's bytes are lost, then SIGKILL), `spoil` (one bit of the file is flipped, and nobody says so),
`error` (an exception that nobody expects), `hang` (SIGSTOP), `slow` (the disk takes its time), or the name of an errno, for example ENOSPC.
With a `+` behind it a fault happens every time from then on.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "AET_STREAM_FAILPOINT"
SLOW_S = 1.5

#: Every file that takes the place of another goes through these, under its own name: master, quarantine, close, segment.
_FILE = ("draft", "written", "synced", "renamed", "durable")

#: All there are; a test drives every one of them, so a name that nobody reaches any more is noticed.
NAMES = (
    "want.begin", "want.commit", "want.send",
    "watch.send",
    "acquired.heard",
    "lease.send", "lease.sent",
    "worker.received", "worker.send", "worker.sent",
    "done.heard",
    "projection.draft", "projection.written", "projection.synced", "projection.renamed", "projection.durable",
    *(f"master.{step}" for step in _FILE),
    "publish.begin", "publish.commit", "publish.committed", "publish.told",
    "close.begin", "close.frame", *(f"close.{step}" for step in _FILE[1:]), "close.checked", "close.commit", "close.committed",
    *(f"decided.{step}" for step in _FILE), "decide.commit", "decide.committed", "discard.commit", "discard.committed",
    "take.begin", "take.frame", "take.checked", *(f"take.{step}" for step in _FILE[2:]),
    "first.begin", "first.frame", "first.written", "first.checked", *(f"first.{step}" for step in _FILE[2:]),
    *(f"made.{step}" for step in ("draft", "synced", "renamed", "durable")),
    "prune.begin", "prune.first", "prune.compared", "prune.checked", "prune.removed", "prune.durable", "prune.commit", "prune.committed",
    *(f"unpack.{step}" for step in _FILE),
    "fold.begin", "fold.frame", *(f"fold.{step}" for step in _FILE[1:]), "fold.checked",
    *(f"quarantine.{step}" for step in _FILE), "quarantine.remove",
    "end.commit", "end.committed",
    "odd.decided", "again.commit", "again.committed",
    "event.leased", "event.sent", "event.heard", "event.begun", "event.acted", "event.told", "event.done", "event.ended",
    *(f"{file}.{step}" for file in ("slab", "volume", "atoms") for step in ("draft", "synced", "renamed", "durable")),
    "recover.drafts", "recover.begin", "recover.commit", "recover.committed",
)  # fmt: skip


class FailpointError(Exception):
    """What the fault `error` raises: no error of ours, so that nobody has prepared for it."""


def off(name: str, path: Path | None = None) -> None:
    """Nothing is armed."""


#: Say that a place is reached; `path` is the file at stake.
reach = off

_armed: tuple[str, int, str] = ("", 0, "")
reached: Counter[str] = Counter()
"""How often each place was reached since `arm`."""


def arm(spec: str) -> None:
    """Arm one place; an empty string only counts.

    Raises
    ------
    ValueError : no such place, or no such fault
    """
    global reach, _armed
    match = re.fullmatch(r"([\w.]+)(?:@(\d+))?=(\w+\+?)|", spec)
    if match is None or (spec and (match[1] not in NAMES or not _known(match[3]))):
        raise ValueError(f"{VARIABLE}={spec!r}: say NAME@N=FAULT; names: {', '.join(NAMES)}")
    _armed = (match[1] or "", int(match[2] or 1), match[3] or "")
    reached.clear()
    reach = _on


def _known(fault: str) -> bool:
    return fault.rstrip("+") in ("kill", "torn", "spoil", "error", "hang", "slow") or hasattr(errno, fault.rstrip("+"))


def _on(name: str, path: Path | None = None) -> None:
    if name not in NAMES:
        raise ValueError(f"{name!r} is no failpoint: enter it into failpoints.NAMES")
    reached[name] += 1
    wanted, ordinal, fault = _armed
    if name != wanted or reached[name] < ordinal or (reached[name] > ordinal and not fault.endswith("+")):
        return
    match fault.rstrip("+"):
        case "slow":
            time.sleep(SLOW_S)
        case "kill" | "torn":
            if fault == "torn" and path is not None:
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        case "spoil":
            if path is not None:
                with path.open("r+b") as file:
                    file.seek(path.stat().st_size // 2)
                    byte = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte[0] ^ 1]))
        case "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "error":
            raise FailpointError(f"failpoint {name}")
        case _:
            number = getattr(errno, fault.rstrip("+"))
            raise OSError(number, os.strerror(number), str(path or name))


if os.environ.get(VARIABLE):
    arm(os.environ[VARIABLE])
