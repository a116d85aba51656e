"""Supervisors are killed beside two busy loops, at their start and at work: nobody of theirs is left after two seconds, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.durability.campaign import Microscope
from tests.durability.oracle import judge
from tests.harness import ENVIRONMENT, Daemon

GONE_S = 2.0
LONGEST_LIFE_S = 12.0
SETTINGS: dict[str, Any] = {
    "denoise__model": "default", "watch__incomplete_s": 3.0, "monitor__enabled": True, "monitor__port": 0, "series__idle_close_s": 1.0,
    "reconstruct__on_close": True, "reconstruct__iterations": 20, "preview__enabled": True, "preview__every_deg": 1, "report__on_close": True,
}  # fmt: skip
"""Everything that a daemon may start: a network on torch, the page, and a trigger with much to do."""


@contextlib.contextmanager
def busy_loops(count: int = 2) -> Iterator[None]:
    """Somebody else's programs that want all that the processors can do."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def members(session: int) -> dict[int, str]:
    """Every living process of a session, whoever its parent is by now: number -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return found


def kind(command: str) -> str:
    """What a process is, from its command line."""
    command, _, settings = command.partition(" --set ")  # the supervisor's settings name all the others
    if settings:
        return "supervisor"
    for name in ("readers.child", "crash_guard", "reconstruct", "preview", "report", "hub", "watch", "worker", "trigger", "monitor"):
        if f" {name}" in command or f".{name}" in command:
            return {"readers.child": "reader"}.get(name, name)
    return command[:60] or "ending"  # it has given its memory back already


class Group:
    """`aet-stream run` in a session of its own, by which its processes are known even without their parents."""

    def __init__(self, daemon: Daemon) -> None:
        with daemon.log.open("a") as log:
            self._process = subprocess.Popen(
                daemon.command("run", *daemon.set), stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
            )

    def members(self) -> dict[int, str]:
        return members(self._process.pid)

    def kill(self) -> dict[int, str]:
        """Kill the supervisor alone: who is still there after GONE_S."""
        until = time.monotonic() + GONE_S
        self._process.kill()
        self._process.wait()
        while (left := self.members()) and time.monotonic() < until:
            time.sleep(0.02)
        return left

    def clear(self) -> None:
        """Whoever is left would make the next start wait."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(folder: Path, *, seed: int, kills: int, busy: int = 2, longest_life_s: float = LONGEST_LIFE_S) -> dict[str, Any]:
    """So many kills, then one life to finish the work; what was left after each, and what became of every file."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(folder, **SETTINGS)
    microscope = Microscope(daemon.root, rng, first=seed * 100_000)
    there: Counter[str] = Counter()
    left: Counter[str] = Counter()
    began = time.monotonic()
    with busy_loops(busy):
        for _ in range(kills):
            group = Group(daemon)
            until = time.monotonic() + rng.uniform(0.05, longest_life_s)
            while time.monotonic() < until:
                if rng.random() < 0.02:
                    microscope.expose()
                microscope.grow()
                time.sleep(0.05)
            there.update(map(kind, group.members().values()))
            left.update(map(kind, group.kill().values()))
            group.clear()
    microscope.grow(all_of_them=True)
    code = daemon.run("--until-idle", "5", limit_s=900)
    verdict = judge(daemon.root, daemon.out, microscope.exposures)
    wrong = [words for words in verdict.words if not words.startswith("not clean")]  # the judge knows no background but a constant
    return {
        "seconds": round(time.monotonic() - began),
        "kills": kills,
        "there": dict(there),
        "left": dict(left),
        "inputs": len(microscope.exposures),
        "counts": {kind: count for kind, count in verdict.counts.items() if kind != "not clean"},
        "wrong": wrong[:20] + ([] if code == 0 else [f"the last run ended with exit code {code}"]),
    }
