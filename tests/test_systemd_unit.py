"""The unit file, judged by systemd's own tools; readiness and watchdog, judged by a socket that plays systemd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ENVIRONMENT, Daemon, wait_for

UNIT = Path(__file__).parent.parent / "systemd" / "aet-stream.service"
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


DROP_INS = {"gpu-wsl.conf": "/dev/dxg:rw", "gpu-mig.conf": "char-nvidia-caps:rw"}


@pytest.fixture(params=["", *DROP_INS])
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The unit as it would be installed here: with a program that exists; alone, or with one of its drop-ins."""
    if request.param:
        (tmp_path / f"{UNIT.name}.d").mkdir()
        shutil.copy(UNIT.parent / request.param, tmp_path / f"{UNIT.name}.d")
    text = UNIT.read_text().replace("/opt/aet-stream/bin/aet-stream", sys.executable)
    copy = tmp_path / "aet-stream.service"
    copy.write_text(text.replace("User=aet-stream", "User=root").replace("Group=aet-stream", "Group=root"))
    return copy


@analyze
def test_systemd_finds_nothing_wrong_with_the_unit(installed: Path) -> None:
    """systemd-analyze verify is silent."""
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(installed)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(installed.parent) in line or installed.name in line]
    assert done.returncode == 0, done.stderr
    assert not complaints


@analyze
def test_the_unit_is_well_locked_up(installed: Path) -> None:
    """Exposure below 3.0 of 10 by systemd's own measure."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
    drop_ins = [path.name for path in installed.parent.glob("*.d/*")]
    (devices,) = [line for line in done.stdout.splitlines() if "DeviceAllow=" in line]
    assert [device in devices for device in DROP_INS.values()] == [name in drop_ins for name in DROP_INS]


def test_every_drop_in_is_tried() -> None:
    """A new one cannot be forgotten."""
    assert {path.name for path in UNIT.parent.iterdir()} == {UNIT.name, *DROP_INS}


class FakeSystemd:
    """Listens where systemd would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        try:
            while True:
                self.heard.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return self.heard

    def close(self) -> None:
        self._socket.close()


def test_ready_and_watchdog_come_from_live_roles_only(tmp_path: Path) -> None:
    """READY after all vital roles; WATCHDOG while they turn; silence once one is stopped; STOPPING at the end."""
    systemd = FakeSystemd(tmp_path / "notify")
    daemon = Daemon(tmp_path, supervise__stall_s=20)
    environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(systemd.path)}
    with daemon.log.open("w") as log:
        daemon.process = subprocess.Popen(daemon.command("run", *daemon.set), stderr=log, env=environment)
    try:
        wait_for(lambda: any("READY=1" in words for words in systemd.listen()), what="READY")
        assert any("EXTEND_TIMEOUT_USEC=" in words for words in systemd.heard)  # a start may take longer than the unit allows
        wait_for(lambda: len(daemon.role_pids()) >= 3, what="the roles")
        wait_for(lambda: any("WATCHDOG=1" in words for words in systemd.listen()), what="WATCHDOG")
        worker = wait_for(lambda: daemon.role_pids().get("worker-0"))
        os.kill(worker, signal.SIGSTOP)
        wait_for(lambda: any("STATUS=silent: worker-0" in words for words in systemd.listen()), what="word of the silent worker")
        systemd.heard.clear()
        until = time.monotonic() + 2.5
        wait_for(lambda: time.monotonic() > until, limit_s=5)
        assert not any("WATCHDOG=1" in words for words in systemd.listen())
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: any("WATCHDOG=1" in words for words in systemd.listen()), what="WATCHDOG again")
        assert daemon.stop() == 0
        assert any("STOPPING=1" in words for words in systemd.listen())
    finally:
        systemd.close()
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
