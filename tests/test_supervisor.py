"""The supervisor, with real processes in the place of roles."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aet_stream.config import Config
from aet_stream.config_file import load
from aet_stream.errors import AetError, AlreadyRunning, ConfigError, NotRunning
from aet_stream.service import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Stop, exit_code, serve
from aet_stream.supervisor import Supervisor
from aet_stream.transport import ask
from tests.harness import wait_for

ROLE = """
import os, sys, time
from aet_stream import lifeline
from aet_stream.service import Stop, serve
class Part:
    name = sys.argv[1]
    def start(self): {start}
    def step(self): {step}
    def beat(self): return ''
    def close(self): pass
lifeline.tie(os.getppid())
sys.stdin.buffer.read()
sys.exit(serve(Part(), Stop()))
"""


def config(folder: Path, *words: str) -> Config:
    (folder / "in").mkdir(exist_ok=True)
    return load(None, [f"watch.root={folder / 'in'}", f"output.root={folder / 'out'}", "supervise.stop_s=3", *words])


def supervisor(folder: Path, *words: str, **roles: str) -> Supervisor:
    """`roles`: name -> what its step does (or `start:` and what its start does)."""

    def command(name: str) -> list[str]:
        what = roles.get(name.split("-")[0], "time.sleep(0.02)")
        start, step = (what[6:], "pass") if what.startswith("start:") else ("pass", what)
        return [sys.executable, "-c", ROLE.format(start=start, step=step), name]

    return Supervisor(config(folder, *words), command=command)


def turn_until(subject: Supervisor, condition: object, limit_s: float = 20.0) -> None:
    def turned() -> bool:
        subject.step()
        return bool(condition())  # type: ignore[operator]

    wait_for(turned, limit_s=limit_s, what="the supervisor to get there")


def test_a_killed_role_is_started_again(tmp_path: Path) -> None:
    """Another process, counted, ready again; the others are left alone."""
    subject = supervisor(tmp_path)
    subject.start()
    try:
        turn_until(subject, lambda: all(child.ready for child in subject.children.values()))
        watch, hub = subject.children["watch"], subject.children["hub"]
        assert watch.process is not None
        assert hub.process is not None
        before, untouched = watch.process.pid, hub.process.pid
        watch.process.kill()
        turn_until(subject, lambda: watch.restarts == 1 and watch.ready)
        assert watch.process.pid != before
        assert hub.process.pid == untouched
    finally:
        subject.close()


def test_ctrl_c_while_roles_start_is_heard_when_they_can(tmp_path: Path) -> None:
    """A terminal's Ctrl-C reaches roles that are still importing: they end as asked, without a traceback each."""
    subject = supervisor(tmp_path)
    subject.start()
    try:
        roles = [child.process for child in subject.children.values() if child.process is not None]
        for role in roles:
            role.send_signal(signal.SIGINT)
        assert [role.wait(60) for role in roles] == [0] * len(roles)
    finally:
        subject.close()


def open_paths() -> Iterator[Path]:
    """What this process has open: a list that changes while it is read."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield link.readlink()


def test_a_deep_output_folder_keeps_nobody_from_getting_ready(tmp_path: Path) -> None:
    """A socket's address holds 107 bytes; a path of more than that works, and asking takes no descriptor each time."""
    deep = tmp_path / "/".join(["acquisition_workstation_results"] * 4)
    deep.mkdir(parents=True)
    subject = supervisor(deep)
    subject.start()
    try:
        turn_until(subject, lambda: all(child.ready for child in subject.children.values()))
    finally:
        subject.close()
    (deep / "out" / "run" / "hub").touch()
    open_files = []
    for _ in range(2):
        with pytest.raises(NotRunning):
            ask(deep / "out", "idle", timeout_s=0.01)
        open_files.append(list(open_paths()).count(deep / "out" / "run"))
    assert open_files == [1, 1]


def test_a_failing_optional_role_is_degraded_and_a_failing_vital_one_ends_the_run(tmp_path: Path) -> None:
    """The monitor may fail for ever; a worker that never gets ready may not."""
    subject = supervisor(tmp_path, monitor="start:raise SystemExit(1)")
    subject.start()
    try:
        turn_until(subject, lambda: subject.children["monitor"].degraded and subject.children["monitor"].restarts >= 2)
        assert subject.verdict is None
        assert subject.children["hub"].ready
    finally:
        subject.close()
    failing = supervisor(tmp_path, worker="start:raise SystemExit(1)")
    failing.start()
    try:
        turn_until(failing, lambda: failing.verdict is not None)
        assert failing.verdict == EXIT_FAILED
    finally:
        failing.close()


def test_a_usage_error_of_a_role_is_not_tried_again(tmp_path: Path) -> None:
    """Starting it again cannot help: its exit code becomes ours."""
    subject = supervisor(tmp_path, hub=f"start:raise SystemExit({EXIT_USAGE})")
    subject.start()
    try:
        turn_until(subject, lambda: subject.verdict is not None)
        assert subject.verdict == EXIT_USAGE
        assert subject.children["hub"].restarts == 0
    finally:
        subject.close()


def test_a_role_whose_loop_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    """The heartbeat comes from the loop, so a hung loop cannot look alive."""
    flag = tmp_path / "hang"
    flag.touch()
    step = f"time.sleep(0.02 if not os.path.exists({str(flag)!r}) else 60)"
    subject = supervisor(tmp_path, "supervise.stall_s=1", watch=step)
    subject.start()
    try:
        turn_until(subject, lambda: subject.children["watch"].restarts >= 1)
        flag.unlink()
        turn_until(subject, lambda: subject.children["watch"].ready and time.monotonic() - subject.children["watch"].beaten_at < 0.5)
    finally:
        subject.close()


def test_closing_leaves_no_process_behind(tmp_path: Path) -> None:
    """Asked, waited for, killed if need be."""
    subject = supervisor(tmp_path, worker="import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    subject.start()
    turn_until(subject, lambda: all(child.ready for child in subject.children.values()))
    processes = [child.process for child in subject.children.values()]
    subject.close()
    assert all(process is not None and process.poll() is not None for process in processes)


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    """One output, one daemon."""
    first, second = supervisor(tmp_path), supervisor(tmp_path)
    first.start()
    try:
        with pytest.raises(AlreadyRunning, match="runs already"):
            second.start()
    finally:
        second.close()
        first.close()


class Part:
    """A role that does as it is told."""

    name = "part"

    def __init__(self, stop: Stop, fault: Exception | None = None, at: str = "step") -> None:
        self.stop, self.fault, self.at, self.closed = stop, fault, at, 0

    def start(self) -> None:
        if self.fault is not None and self.at == "start":
            raise self.fault

    def step(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.stop.asked = True

    def beat(self) -> str:
        return ""

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("fault", "at", "code"),
    [
        (None, "step", EXIT_OK),
        (ConfigError("x"), "start", EXIT_USAGE),
        (AetError("x"), "step", EXIT_FAILED),
        (RuntimeError("x"), "step", EXIT_FAILED),
    ],
)
def test_the_exit_code_tells_how_a_role_ended(fault: Exception | None, at: str, code: int) -> None:
    """A dead loop never looks like success, and everything is let go of once."""
    stop = Stop()
    part = Part(stop, fault, at)
    assert serve(part, stop) == code
    assert part.closed == 1


def test_every_error_has_an_exit_code() -> None:
    """Usage, already running, failed."""
    assert [exit_code(error) for error in (ConfigError(), AlreadyRunning(), AetError())] == [2, 4, 1]
