"""The unit file, judged by systemd's own tools; readiness and watchdog, judged by a socket that plays systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aet_stream.cli import main
from aet_stream.config_file import load
from aet_stream.status import (
    QueueDepth,
    RelayStatus,
    SeriesStatus,
    Status,
    TriggerStatus,
    WatchStatus,
    WorkerStatus,
    in_words,
)
from tests.harness import ENVIRONMENT, Daemon, put, wait_for

UNITS = Path(__file__).parent.parent / "aet_stream" / "systemd"
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")

DROP_INS = {"gpu-wsl.conf": "/dev/dxg:rw", "gpu-mig.conf": "char-nvidia-caps:rw"}
EXPOSED = {
    "aet-stream.service": 16,
    "aet-stream@tem1.service": 16,
    "aet-stream-hub.service": 5,
    "aet-stream-watch.service": 5,
    "aet-stream-worker.service": 5,
    "aet-stream-trigger.service": 16,
    "aet-stream-monitor.service": 16,
    "aet-stream-relay.service": 16,
    "aet-stream-elsewhere@0.service": 14,
    "aet-stream-helper.service": 14,
}
"""Tenths of 10 that each may have by systemd's own measure."""
OFFLINE = ("aet-stream-hub.service", "aet-stream-watch.service", "aet-stream-worker.service")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they would be installed here: with a program and a user that exist, and an instance of each template."""
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    for path in [*folder.glob("*.service"), *folder.glob("*/*.conf")]:
        text = path.read_text().replace("/opt/aet-stream/bin/aet-stream", sys.executable)
        path.write_text(text.replace("User=aet-stream", "User=daemon").replace("Group=aet-stream", "Group=daemon"))
    for name in EXPOSED:
        if "@" in name:
            shutil.copy(folder / f"{name.partition('@')[0]}@.service", folder / name)
    return folder


def rated(unit: Path, tenths: int = 100) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={tenths}", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@analyze
def test_systemd_finds_nothing_wrong_with_the_units(installed: Path) -> None:
    """systemd-analyze verify is silent about all of them, and the target."""
    units = [str(installed / name) for name in (*EXPOSED, "aet-stream.target")]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(installed) in line or "aet-stream" in line]
    assert done.returncode == 0, done.stderr
    assert not complaints


@analyze
def test_every_unit_is_well_locked_up(installed: Path) -> None:
    """By systemd's own measure; those that need no network have none, and all have the common sandbox."""
    for name, tenths in EXPOSED.items():
        done = rated(installed / name, tenths)
        assert done.returncode == 0, (name, done.stdout[-1500:])
        found = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines() if line.startswith(("✓", "✗"))}
        assert (found["PrivateNetwork="] == "✓") == (name in OFFLINE), name
        assert [found[key] for key in ("PrivateUsers=", "NoNewPrivileges=", "ProtectSystem=", "ProtectProc=")] == ["✓"] * 4, name


@analyze
@pytest.mark.parametrize("drop_in", DROP_INS)
def test_a_drop_in_opens_its_device_alone(installed: Path, drop_in: str) -> None:
    """For the all-in-one unit."""
    folder = installed / "aet-stream.service.d"
    folder.mkdir()
    shutil.copy(UNITS / drop_in, folder)
    (devices,) = [line for line in rated(installed / "aet-stream.service").stdout.splitlines() if "DeviceAllow=" in line]
    assert [device in devices for device in DROP_INS.values()] == [name == drop_in for name in DROP_INS]


def test_every_file_is_tried() -> None:
    """A new one cannot be forgotten."""
    known = {re.sub("@.*[.]", "@.", name) for name in EXPOSED} | {*DROP_INS, "aet-stream.target", "aet-stream-.service.d"}
    assert {path.name for path in UNITS.iterdir()} == known


# -- install-service --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation where a service can reach it."""
    found = tmp_path / "opt" / "bin" / "aet-stream"
    found.parent.mkdir(parents=True)
    found.touch(0o755)
    monkeypatch.setattr("aet_stream.cli.set_up_logging", lambda *words, **more: None)
    monkeypatch.setattr(sys, "executable", str(found.with_name("python")))
    return found


def place(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "units", "settings"),
    [
        ([], {"aet-stream.service", "aet-stream.service.d/paths.conf"}, {"config.toml"}),
        (["--instance", "tem1"], {"aet-stream@.service", "aet-stream@tem1.service.d/paths.conf"}, {"tem1.toml"}),
        (["--units", "roles"], {*(name for name in EXPOSED if not re.search("@|stream.service|helper", name)), "aet-stream.target",
                                "aet-stream-.service.d/role.conf", "aet-stream-.service.d/paths.conf"}, {"config.toml"}),
        (["--units", "elsewhere"], {"aet-stream-elsewhere@.service", "aet-stream-helper.service", "aet-stream-.service.d/role.conf"},
         {"elsewhere.env", "worker.key"}),
    ],
)  # fmt: skip
def test_install_and_uninstall(
    tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str], words: list[str], units: set[str], settings: set[str]
) -> None:
    """A dry run says the same and does nothing; a second run changes nothing of a person's; away again, the settings stay."""
    root = tmp_path / "root"
    chosen = ["--set", "watch.root=/microscope", "--set", "output.root=/data/aet", "--root", str(root)]
    command = ["install-service", *words, *chosen]
    assert main([*command, "--dry-run"]) == 0
    said, beside = capsys.readouterr()
    assert not root.exists()
    assert "would write" in said
    assert "nothing has been done" in beside
    assert main(command) == 0
    assert capsys.readouterr().out == said.replace("would ", "")
    expected = {f"etc/systemd/system/{name}" for name in units} | {f"etc/aet-stream/{name}" for name in settings}
    assert place(root) == expected
    text = "".join((root / path).read_text() for path in expected if "system" in path)
    assert f"ExecStart={program} " in text
    assert "/opt/aet-stream/bin/aet-stream " not in text
    if "elsewhere" not in words:
        assert "ReadWritePaths=/data/aet\n" in text
        name = root / "etc" / "aet-stream" / next(iter(settings))
        assert load(name, []).watch.root == "/microscope"
        name.write_text(name.read_text() + "# mine\n")
        assert main([*command, "--set", "output.root=/elsewhere"]) == 0
        assert "ReadWritePaths=/data/aet\n" in "".join((root / path).read_text() for path in expected if "paths.conf" in path)
        assert "stays as it is" in capsys.readouterr().out
        assert name.read_text().endswith("# mine\n")
    assert main(["uninstall-service", "--root", str(root)]) == 0
    assert place(root) == {path for path in expected if "aet-stream/" in path}
    assert "left alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "words", "said"),
    [
        ("/home/me/venv/bin", [], "lies in a home"),
        ("/no/such", [], "is not there"),
        ("", ["--set", "output.root="], "output.root is not set"),
    ],
)
def test_what_cannot_be_a_service_is_refused(
    tmp_path: Path,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    words: list[str],
    said: str,
) -> None:
    """Before anything is done."""
    if folder:
        monkeypatch.setattr(sys, "executable", f"{folder}/python")
    if folder.startswith("/home"):
        monkeypatch.setattr(Path, "exists", lambda path: True)
    chosen = ["--set", "watch.root=/microscope", "--set", "output.root=/data/aet", *words, "--root", str(tmp_path / "root")]
    assert main(["install-service", *chosen]) in (1, 2)
    assert said in capsys.readouterr().err
    monkeypatch.undo()
    assert not (tmp_path / "root").exists()


# -- readiness and watchdog -------------------------------------------------------------------------------------------------------


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
        for number in range(2):
            put(daemon.root / "s", number, float(number))
        wait_for(lambda: any("STATUS=series s: 2 projections\n" in words for words in systemd.listen()), what="word of the series")
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


OPEN = SeriesStatus(
    name="np1", state="open", opened_at=1, last_at=2, closed_at=None, generation=1, stored=34, held=0, quarantined=0, duplicates=0,
    last_tilt_deg=None, tilts=34,
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Status(), "no series is open"),
        (Status(series=(OPEN,), queue=QueueDepth(working=1, waiting=1, offered=7)), "series np1: 34 projections, 2 in flight"),
        (
            Status(series=(replace(OPEN, stored=1, held=3), replace(OPEN, name="old", last_at=1))),
            "series np1: 1 projection, 3 held (and 1 more open)",
        ),
        (Status(series=(replace(OPEN, state="closed"),), paused="the disk is full"), "paused: the disk is full"),
        (WatchStatus(), ""),
        (WatchStatus(root_there=False, moving=3), "the watched folder is not there"),
        (WatchStatus(moving=1), "1 file not complete yet"),
        (WorkerStatus(model="default", device="cuda:0", done=12), "default on cuda:0: 12 done"),
        (TriggerStatus(series={"reconstruct": "np1", "report": "np2"}), "volume of np1 running, report of np2 running"),
        (RelayStatus(workers=("lab2:gpu0",)), "1 worker on other computers"),
    ],
)  # fmt: skip
def test_systemctl_status_says_what_each_role_is_at(said: Any, words: str) -> None:
    """One line, in words."""
    assert in_words(said) == words


def test_roles_as_units_of_their_own_make_a_series(tmp_path: Path) -> None:
    """As aet-stream.target starts them, in no order: each says READY and WATCHDOG itself, and ends with 0 when asked."""
    daemon, heard, roles = Daemon(tmp_path), {}, ("worker", "watch", "trigger", "hub")
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        with daemon.log.open("w") as log:
            for role in roles:
                heard[role] = FakeSystemd(tmp_path / f"{role}.notify")
                environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(heard[role].path)}
                processes[role] = subprocess.Popen(daemon.command(role, *daemon.set), stderr=log, env=environment)
        put(daemon.root / "s", 0, 1.0)
        for word in ("READY=1", "WATCHDOG=1"):
            wait_for(lambda word=word: all(any(word in said for said in each.listen()) for each in heard.values()), what=word)
        daemon.wait_for_totals(stored=1)
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        assert {role: process.wait(20) for role, process in processes.items()} == dict.fromkeys(roles, 0)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        for each in heard.values():
            each.close()
