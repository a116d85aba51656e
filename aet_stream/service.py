"""The loop around a role's `step()`: signals, heartbeat, readiness, exit code, logging.

Readiness and heartbeats use systemd's notify protocol (a datagram to NOTIFY_SOCKET, sd_notify(3)), to systemd itself or to our own
supervisor, which listens in the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any, Protocol

from aet_stream.errors import AetError, AlreadyRunning, ConfigError, OutputFull
from aet_stream.naming import shown

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # wrong configuration or command line: starting again cannot help
EXIT_STRICT = 3  # it ran, but something was quarantined, held or failed, and --strict was asked for
EXIT_ALREADY_RUNNING = 4
EXIT_DISK = 5  # the output cannot be written now: starting again later helps

BEAT_S = 1.0
LONGEST_STATUS = 1000
STILL_AT_IT = "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=60000000"
"""Said while a start or a step takes long: whoever waits for us waits on, for a minute from then."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_KEPT_BYTES, _MAPPED_BYTES = 256 << 20, 32 << 20
"""Freed memory that a process keeps at most; what a single array must exceed to be given back at once (older glibc takes no more)."""

logger = logging.getLogger(__name__)


class Role(Protocol):
    """One process of the daemon: parts are handed to the constructor, which starts nothing."""

    name: str

    def start(self) -> None:
        """Bind, connect, load; READY is said when this returns."""

    def step(self) -> None:
        """One bounded turn, at most about half a second."""

    def beat(self) -> str:
        """Once a second: publish the whole status; returns it in a few words (`status.in_words`)."""

    def close(self) -> None:
        """Let go of everything; the step in hand has finished."""


class Stop:
    """Set by SIGTERM or SIGINT; a signal handler does nothing else."""

    def __init__(self) -> None:
        self.asked = False

    def catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # our supervisor starts roles with it held back

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def serve(role: Role, stop: Stop) -> int:
    """Run a role until it is asked to stop; the exit code tells how it ended."""
    stop.catch_signals()
    keep_freed_memory()
    try:
        role.start()
        notify(role.name, "READY=1")
        logger.info("ready")
        beaten_at = 0.0
        while not stop.asked:
            role.step()
            now = time.monotonic()
            if now - beaten_at >= BEAT_S:
                beaten_at = now
                notify(role.name, f"STATUS={shown(role.beat())[:LONGEST_STATUS]}\nWATCHDOG=1")
        notify(role.name, "STOPPING=1")
        logger.info("stopped")
    except AetError as error:
        logger.error("%s", error)
        return exit_code(error)
    except Exception:  # nobody foresaw it: the exit code says so, and the supervisor starts the role again
        logger.exception("unexpected failure")
        return EXIT_FAILED
    finally:
        role.close()
    return EXIT_OK


def keep_freed_memory() -> None:
    """For processes in which frames come and go: glibc would give the room of each back to the system, which clears it for the next."""
    with contextlib.suppress(AttributeError, OSError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def exit_code(error: AetError | OSError) -> int:
    """The exit code that a failure ends with."""
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    if isinstance(error, OutputFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return EXIT_DISK
    return EXIT_ALREADY_RUNNING if isinstance(error, AlreadyRunning) else EXIT_FAILED


def notify(role: str, state: str) -> None:
    """Tell systemd or our supervisor; without either, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, as systemd may use
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(f"{state}\nX_AET_ROLE={role}\nX_AET_PID={os.getpid()}".encode(), address)
        except OSError as error:
            logger.debug("nobody at NOTIFY_SOCKET: %s", error)


_told_at = 0.0


def still_at_it(role: str) -> None:
    """A sign of life from within a long start or step, at most once a second."""
    global _told_at
    if time.monotonic() - _told_at >= BEAT_S:
        _told_at = time.monotonic()
        notify(role, STILL_AT_IT)


def be_a_child() -> None:
    """For a command that does its work and ends: SIGTERM ends it as Ctrl-C does, so that no draft is left."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def set_up_logging(role: str, *, verbose: bool = False) -> None:
    """Human lines on a terminal or in a file, JSON lines under systemd's journal; always to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter = _PlainLines(f"%(asctime)s {role:<8} %(levelname)-7s %(message)s", "%H:%M:%S")
    if os.environ.get("JOURNAL_STREAM"):
        formatter = _JsonLines(role)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for noisy in ("matplotlib", "PIL", "asyncio", "watchdog", "h5py"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _PlainLines(logging.Formatter):
    """Messages hold names from outside: nothing in them moves a terminal's cursor or begins a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return shown(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "\n".join(shown(line) for line in super().formatException(ei).split("\n"))


class _JsonLines(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line = {"t": round(record.created, 3), "role": self._role, "level": record.levelname, "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
