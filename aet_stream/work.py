"""One delivery under way: a child process, or a call in a thread. Both are looked at, never waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

EXIT_AGAIN_LATER = 75
"""EX_TEMPFAIL of sysexits.h."""
KILL_AFTER_S = 2.0
NICENESS = 10
"""Not 19: a process of that kind that is killed beside busy programs takes seconds to get the turn in which it ends."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended."""

    ok: bool
    detail: str
    again_s: float = 0.0
    """Not 0: the receiver wants it again after so long; that was no failed try."""


class Work(Protocol):
    """A try under way."""

    def outcome(self) -> Outcome | None:
        """None while it goes on."""

    def stop(self) -> None:
        """Give up; what it has done already, the next try does again."""


class ChildWork:
    """A process of its own at low priority: it may crash, hang and eat memory without harm to anybody else."""

    def __init__(
        self,
        argv: list[str],
        *,
        timeout_s: float,
        again_s: float,
        stdin: bytes | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start it, with `stdin` to read."""
        self._timeout_s, self._again_s, self._began_at = timeout_s, again_s, time.monotonic()
        self._failed = ""
        try:
            # A process group of its own, so that what a script starts is stopped with it.
            given = subprocess.DEVNULL if stdin is None else subprocess.PIPE
            self._child = subprocess.Popen(argv, stdin=given, env=environment, process_group=0)
        except OSError as error:
            self._failed = f"{argv[0]} cannot be started: {error.strerror}"
            return
        lower_priority(self._child.pid)
        if stdin is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it need not read
                self._child.stdin.write(stdin)
                self._child.stdin.close()

    def outcome(self) -> Outcome | None:
        if self._failed:
            return Outcome(False, self._failed)
        code, took_s = self._child.poll(), time.monotonic() - self._began_at
        if code is None:
            if took_s < self._timeout_s:
                return None
            self.stop()
            return Outcome(False, f"stopped after {took_s:.0f} s (its timeout_s)")
        self._let_go()
        if code == 0:
            return Outcome(True, f"done in {took_s:.1f} s")
        if code == EXIT_AGAIN_LATER:
            return Outcome(False, "it says: again later", self._again_s)
        return Outcome(False, f"killed by signal {-code}" if code < 0 else f"exit code {code}")

    def stop(self) -> None:
        """Ask, wait, kill, wait."""
        if self._failed:
            return
        if self._child.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(KILL_AFTER_S)
            self._signal(signal.SIGKILL)  # what it started may have ignored the first signal
            self._child.wait()
        self._let_go()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _let_go(self) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()


class CallWork:
    """A call that waits for somebody on the network. It bounds its own time; one that does not is abandoned."""

    def __init__(self, call: Callable[[], Outcome], *, timeout_s: float) -> None:
        self._deadline = time.monotonic() + 2 * timeout_s + 1
        self._outcome: Outcome | None = None
        self._call = call
        threading.Thread(target=self._run, name="delivery", daemon=True).start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the try has failed with it
            self._outcome = Outcome(False, f"{type(error).__name__}: {error}")

    def outcome(self) -> Outcome | None:
        if self._outcome is None and time.monotonic() > self._deadline:
            return Outcome(False, "no answer, and no end of waiting for it")
        return self._outcome

    def stop(self) -> None:
        """Nothing to do: what it says from now on is not heard."""


def lower_priority(pid: int) -> None:
    """Let intake go first. Where that is not allowed, it is done without."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
