"""The supervisor behind `aet-stream run`: starts the roles, starts them again, and tells the truth about how it went.

One plain loop. Roles report through systemd's notify protocol to a socket of ours (service.py), and the kernel ends them with us
(lifeline.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from aet_stream import lifeline
from aet_stream.config import Config
from aet_stream.config_file import require_folders
from aet_stream.errors import AetError, AlreadyRunning, NotRunning
from aet_stream.service import EXIT_ALREADY_RUNNING, EXIT_DISK, EXIT_FAILED, EXIT_OK, EXIT_STRICT, EXIT_USAGE, STILL_AT_IT, Stop, notify
from aet_stream.status import ChildStatus, SupervisorStatus
from aet_stream.transport import HubLink, ask, run_folder

logger = logging.getLogger(__name__)

TURN_S = 0.1
FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 10.0
HEALTHY_AFTER_S = 10.0
START_LIMIT_S = 180.0
"""Of silence: importing torch from a cold disk is slow. A hub that reads many projections says that it does."""
GIVE_UP_AFTER = 5
"""Starts in a row that never became ready."""
ASK_IDLE_S = 0.5
_TOLD = ("hub", "watch", "trigger", "relay")
"""Kinds of roles whose words stand in the status of the whole."""


@dataclass(slots=True)
class Child:
    """One role and how it fares. Times are monotonic."""

    name: str
    vital: bool
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    started_at: float = 0.0
    beaten_at: float = 0.0
    start_at: float = 0.0
    back_off_s: float = FIRST_BACK_OFF_S
    restarts: int = 0
    failed_starts: int = 0
    degraded: str = ""
    words: str = ""
    """What it is at, as it says itself."""

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]


def role_command(name: str, *, verbose: bool) -> list[str]:
    """How a role is started; its settings come over its standard input."""
    words = [name.split("-")[0], "--supervised", "--name", name, *(["-v"] if verbose else [])]
    return lifeline.command("aet_stream", *words)


class Supervisor:
    """Parent of all roles."""

    def __init__(self, config: Config, *, command: Callable[[str], list[str]]) -> None:
        self._config = config
        self._command = command
        self._folder = run_folder(config.output_root)
        self._address = f"@aet-{os.urandom(8).hex()}"
        """Abstract: a path of more than 107 bytes is no address, and output.root may be as deep as it likes."""
        self._lock: TextIO | None = None
        self._inbox: socket.socket | None = None
        self._link: HubLink | None = None
        workers = [f"worker-{i}" for i in range(config.denoise.workers)]
        wanted = {"trigger": True, "monitor": config.monitor.enabled, "relay": config.relay.listen}
        optional = [name for name, there in wanted.items() if there]
        self.children = {name: Child(name, True) for name in ("hub", "watch", *workers)}
        self.children |= {name: Child(name, False) for name in optional}
        self.verdict: int | None = None
        """Set when going on makes no sense: the exit code."""
        self._told_ready = False
        self._beaten_at = 0.0

    # -- life -------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the output folder for ourselves and start every role."""
        self._lock = (self._folder / "supervisor.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"aet-stream runs already for {self._config.output_root}: stop it, or choose another output.root"
            ) from None
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._inbox.bind(self._address.replace("@", "\0"))
        self._inbox.settimeout(TURN_S)
        for child in self.children.values():
            self._start(child)
        self._link = HubLink(self._config.output_root, name="supervisor")

    def _start(self, child: Child) -> None:
        environment = {**os.environ, "NOTIFY_SOCKET": self._address}
        for variable in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(variable, None)  # systemd's are for us
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C reaches the roles too: they hear it once they can (Stop)
        try:
            child.process = subprocess.Popen(self._command(child.name), stdin=subprocess.PIPE, env=environment)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        child.words = ""
        child.ready, child.started_at, child.beaten_at = False, time.monotonic(), time.monotonic()
        given = child.process.stdin
        assert given is not None
        with contextlib.suppress(BrokenPipeError), given:  # it may be dead already: the next turn sees it
            given.write(msgspec.json.encode(self._config))

    def step(self) -> None:
        self._hear()
        for child in self.children.values():
            self._look_after(child)
        self._tell()

    def close(self) -> None:
        """Ask every child, wait, kill, wait."""
        alive = [child.process for child in self.children.values() if child.process is not None]
        for process in alive:
            process.terminate()
        until = time.monotonic() + self._config.supervise.stop_s
        for process in alive:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("a role did not stop within %g s: killed", self._config.supervise.stop_s)
                process.kill()
                process.wait()
        for part in (self._link, self._inbox, self._lock):
            if part is not None:
                part.close()

    # -- children ---------------------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take what children say; stale voices of earlier processes do not count."""
        if self._inbox is None:
            return
        try:
            words = self._inbox.recv(4096).decode("utf-8", "replace")
            self._inbox.settimeout(0)
            while True:
                self._note(words)
                words = self._inbox.recv(4096).decode("utf-8", "replace")
        except (TimeoutError, BlockingIOError):
            pass
        finally:
            self._inbox.settimeout(TURN_S)

    def _note(self, words: str) -> None:
        said = dict(line.split("=", 1) for line in words.splitlines() if "=" in line)
        child = self.children.get(said.get("X_AET_ROLE", ""))
        if child is None or child.process is None or str(child.process.pid) != said.get("X_AET_PID"):
            return
        child.beaten_at = time.monotonic()
        child.words = said.get("STATUS", child.words)
        if said.get("READY") == "1":
            child.ready, child.failed_starts = True, 0
            if child.degraded:
                logger.info("%s is back", child.name)
                child.degraded = ""

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                child.restarts += 1
                self._start(child)
            return
        code = child.process.poll()
        if code is not None:
            self._ended(child, code)
            return
        if child.ready and now - child.started_at > HEALTHY_AFTER_S:
            child.back_off_s = FIRST_BACK_OFF_S
        limit_s = self._config.supervise.stall_s if child.ready else START_LIMIT_S
        if now - child.beaten_at > limit_s:
            logger.error("%s has not turned for %.0f s: killed and started again", child.name, limit_s)
            child.process.kill()

    def _ended(self, child: Child, code: int) -> None:
        child.process = None
        child.failed_starts += not child.ready and code != EXIT_DISK  # a full disk is waited for
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if child.vital and code in (EXIT_USAGE, EXIT_ALREADY_RUNNING):
            self._give_up(code, f"{child.name} {how}: starting it again cannot help")
        elif child.vital and child.failed_starts >= GIVE_UP_AFTER:
            self._give_up(EXIT_FAILED, f"{child.name} never became ready in {GIVE_UP_AFTER} starts (the last {how}): see its message above")
        else:
            child.start_at = time.monotonic() + child.back_off_s
            if child.vital or not child.degraded:
                degraded = "" if child.vital else "; the series goes on without it"
                logger.warning("%s %s%s: starting it again in %.1f s", child.name, how, degraded, child.back_off_s)
            child.degraded = "" if child.vital else how
            child.back_off_s = min(LONGEST_BACK_OFF_S, child.back_off_s * 2)
        child.ready = False

    def _give_up(self, code: int, why: str) -> None:
        logger.error("%s", why)
        self.verdict = code

    # -- telling ----------------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Pass readiness and heartbeat on to systemd; our own status goes to the hub like that of any role."""
        vital = [child for child in self.children.values() if child.vital]
        if not self._told_ready and all(child.ready for child in vital):
            self._told_ready = True
            logger.info("ready: watching %s, writing to %s", self._config.watch_root, self._config.output_root)
            notify("supervisor", "READY=1")
        now = time.monotonic()
        if now - self._beaten_at < 1:
            return
        self._beaten_at = now
        silent = [child.name for child in vital if now - child.beaten_at > max(5.0, self._config.supervise.stall_s / 4) and child.ready]
        notify("supervisor", f"STATUS={self._in_words(silent)}")
        if not self._told_ready:
            notify("supervisor", STILL_AT_IT)  # a role that is silent at its start is our business
        elif not silent:
            notify("supervisor", "WATCHDOG=1")
        if self._link is not None:
            self._link.beat(SupervisorStatus(roles={child.name: self._status(child) for child in self.children.values()}))
            for _ in self._link.receive(0):
                pass  # pulses are noted inside

    def _in_words(self, silent: list[str]) -> str:
        """For `systemctl status`: what is wrong, then what the roles are at."""
        degraded = [f"{child.name} {child.degraded}" for child in self.children.values() if child.degraded]
        wrong = {"silent": silent, "degraded": degraded}
        words = [f"{how}: {', '.join(names)}" for how, names in wrong.items() if names]
        words += [child.words for child in self.children.values() if child.kind in _TOLD and child.words]
        return "; ".join(words) or "starting"

    def _status(self, child: Child) -> ChildStatus:
        state = "starting" if child.process is not None and not child.ready else "ready" if child.ready else "waiting"
        pid = None if child.process is None else child.process.pid
        return ChildStatus(pid=pid, state=state, restarts=child.restarts, degraded=child.degraded)


class UntilIdle:
    """`--until-idle`: close what is open once nothing comes any more, wait for its reconstruction, then end.

    A receiver that says "again later" is not waited for: the next run tells it.
    """

    def __init__(self, config: Config, seconds: float) -> None:
        self._root = config.output_root
        self._seconds = seconds
        self._asked_at = 0.0
        self.last: dict[str, Any] = {}

    def finished(self) -> bool:
        now = time.monotonic()
        if now - self._asked_at < ASK_IDLE_S:
            return False
        self._asked_at = now
        try:
            self.last = ask(self._root, "idle", timeout_s=1.0)
            if self.last["idle_for_s"] < self._seconds:
                return False
            for name in self.last["open"]:
                ask(self._root, "close", {"series": name}, timeout_s=1.0)
        except NotRunning:
            return False  # the hub is being started again
        except AetError as error:
            logger.debug("not closed yet: %s", error)
            return False
        return not self.last["open"] and not self.last["unfinished_events"]


def run(config: Config, *, until_idle_s: float | None, strict: bool, verbose: bool) -> int:
    """Run everything until SIGTERM, Ctrl-C or idleness; returns the exit code."""
    require_folders(config)
    stop = Stop()
    stop.catch_signals()
    supervisor = Supervisor(config, command=lambda name: role_command(name, verbose=verbose))
    idle = None if until_idle_s is None else UntilIdle(config, until_idle_s)
    try:
        supervisor.start()
        while not stop.asked and supervisor.verdict is None:
            supervisor.step()
            if idle is not None and idle.finished():
                return _closing_words(idle.last, strict, config.watch_root)
    finally:
        notify("supervisor", "STOPPING=1")
        supervisor.close()
    if supervisor.verdict is None:
        logger.info("stopped")
    return EXIT_OK if supervisor.verdict is None else supervisor.verdict


def _closing_words(last: dict[str, Any], strict: bool, watch_root: Path) -> int:
    """Say how it went, and turn it into the exit code."""
    counts = {key: last[key] for key in ("stored", "duplicates", "held", "quarantined", "odd")}
    counts |= {"failed events": last["failed_events"], "events put off": last["put_off_events"]}
    logger.info("idle: %s", ", ".join(f"{count} {name}" for name, count in counts.items()))
    trouble = last["held"] + last["quarantined"] + last["odd"] + last["failed_events"] + last["put_off_events"]
    if trouble:
        logger.warning(
            "`aet-stream status` names what was held, quarantined, set aside as odd or failed, `aet-stream events` what a receiver put off"
        )
    if not watch_root.is_dir():
        trouble += 1
        logger.warning("watch.root %s is not there: nothing was looked at; mount it, or correct the setting", watch_root)
    return EXIT_STRICT if strict and trouble else EXIT_OK
