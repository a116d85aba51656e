"""As a service of a real systemd: installed by our own command, started, hung, killed, cut off, two side by side."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.booted import Booted, why_not
from tests.harness import FAST, plain_rows, put, wait_for

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no systemd can be booted here: {WHY_NOT}")
ROLES = ("hub", "watch", "worker", "trigger", "monitor", "relay")


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    folder = Path(tempfile.mkdtemp(prefix="aet-booted-"))
    folder.chmod(0o755)
    booted = Booted(folder)
    try:
        yield booted
    finally:
        booted.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def roles(machine: Booted) -> Booted:
    """A unit for each role, with a watchdog of seconds."""
    machine.run("rm", "-f", "/etc/aet-stream/config.toml")
    install(
        machine,
        "roles",
        "--units",
        "roles",
        watchdog_s=4,
        monitor__enabled=True,
        monitor__port=18571,
        relay__listen="tcp://127.0.0.1:18572",
    )
    return machine


def settings(name: str, **more: object) -> list[str]:
    """Of a microscope that writes to /opt/data/NAME."""
    chosen = {**FAST, "watch.root": f"/opt/data/{name}/in", "output.root": f"/opt/data/{name}/out"}
    chosen |= {key.replace("__", "."): value for key, value in more.items()}
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def install(machine: Booted, name: str, *words: str, watchdog_s: float = 0, **more: object) -> None:
    """The service of a microscope."""
    (machine.data / name / "in").mkdir(parents=True)
    machine.ours("install-service", *words, *settings(name, **more))
    if watchdog_s:
        machine.write("/etc/systemd/system/service.d/watchdog.conf", f"[Service]\nWatchdogSec={watchdog_s}\nRestartSec=0.1\n")
        machine.run("systemctl", "daemon-reload")


def tilts(machine: Booted, name: str, numbers: range) -> None:
    """Projections of a series, as its microscope writes them."""
    for number in numbers:
        put(machine.data / name / "in" / "one", number, float(number))


def stored(machine: Booted, name: str) -> list[int]:
    """What a plain reader finds in the one series, by the numbers in its file names."""
    found = list((machine.data / name / "out").glob("*/series.h5"))
    rows = plain_rows(found[0]) if found else {}
    return sorted(int(Path(path).name.split("_")[1]) for path, _ in rows)


def wait_for_rows(machine: Booted, name: str, count: int) -> None:
    wait_for(lambda: stored(machine, name) == list(range(count)), limit_s=90, what=f"{count} rows of {name}; {machine.log()}")


def test_ready_is_true_and_a_stop_is_clean(machine: Booted) -> None:
    """`systemctl start` returns when projections are taken; stopped in the middle of a burst and started again: nothing lost or doubled."""
    install(machine, "all", relay__listen="tcp://127.0.0.1:8572")
    machine.run("systemctl", "start", "aet-stream")
    assert machine.of("aet-stream", "ActiveState") == "active"
    assert "hub" in json.loads(machine.ours("status", "--json", *settings("all")))["roles"]
    wait_for(lambda: "relay    INFO    ready" in machine.log(), what=f"the door for other computers; {machine.log()}")
    tilts(machine, "all", range(12))
    wait_for(lambda: stored(machine, "all"), what=f"a first row; {machine.log()}")
    machine.run("systemctl", "stop", "aet-stream")
    assert machine.of("aet-stream", "Result") == "success"
    machine.run("systemctl", "start", "aet-stream")
    wait_for_rows(machine, "all", 12)
    machine.wait("aet-stream", lambda found: found["StatusText"].startswith("series one: 12 projections"))
    assert machine.of("aet-stream", "NRestarts") == "0"


@pytest.mark.slow
def test_a_power_cut_in_the_middle_of_a_series(machine: Booted) -> None:
    """Every process gone at once; the next boot goes on where it was."""
    install(machine, "cut", "--instance", "cut")
    machine.run("systemctl", "start", "aet-stream@cut")
    tilts(machine, "cut", range(24))
    wait_for(lambda: len(stored(machine, "cut")) > 3, what=f"rows; {machine.log()}")
    machine.reboot()
    machine.ours("install-service", "--instance", "cut", *settings("cut"))
    machine.run("systemctl", "start", "aet-stream@cut")
    wait_for_rows(machine, "cut", 24)
    machine.ours("close", "one", *settings("cut"))
    wait_for(lambda: "closed" in machine.ours("status", *settings("cut")), what="the close")
    assert "24 projections, closed, 0 doubt" in machine.ours("verify", "/opt/data/cut/out/one/series.h5")
    machine.run("systemctl", "stop", "aet-stream@cut")


@pytest.mark.slow
def test_two_microscopes_side_by_side(machine: Booted) -> None:
    """Instances of the template: each has its own folder and its own series; one that is stopped does not stop the other."""
    for name in ("tem1", "tem2"):
        install(machine, name, "--instance", name)
        machine.run("systemctl", "start", f"aet-stream@{name}")
        tilts(machine, name, range(3))
    for name in ("tem1", "tem2"):
        wait_for_rows(machine, name, 3)
    machine.run("systemctl", "stop", "aet-stream@tem1")
    tilts(machine, "tem2", range(3, 6))
    wait_for_rows(machine, "tem2", 6)
    machine.run("systemctl", "stop", "aet-stream@tem2")


def test_what_cannot_run_ends_as_failed(machine: Booted) -> None:
    """A wrong setting is not tried again; who dies again and again is given up, and says so."""
    install(machine, "bad", "--instance", "bad", watchdog_s=30)
    machine.run("sed", "-i", 's/^scan_s.*/scan_s = "often"/', "/etc/aet-stream/bad.toml")
    machine.run("systemctl", "start", "aet-stream@bad", check=False)
    assert machine.of("aet-stream@bad", "ActiveState") == "failed"
    assert machine.of("aet-stream@bad", "NRestarts") == "0"
    assert "watch.scan_s" in machine.log()
    install(machine, "dies", "--instance", "dies")
    machine.write("/etc/systemd/system/aet-stream@dies.service.d/die.conf", "[Service]\nExecStartPre=/bin/false\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "--no-block", "aet-stream@dies")
    end = machine.wait("aet-stream@dies", lambda found: found["ActiveState"] == "failed")
    assert int(end["NRestarts"]) == 5
    machine.run("rm", "-r", "/etc/systemd/system/aet-stream@dies.service.d")


@pytest.mark.slow
def test_a_helper_is_a_service(machine: Booted) -> None:
    """Installed and let in as documented: hung, it is started again; in its sandbox it makes a volume; stopped, the workstation does."""
    volumes = {"reconstruct__on_close": True, "reconstruct__iterations": 2, "reconstruct__quality": False, "reconstruct__align": []}
    install(machine, "helped", "--instance", "helped", relay__listen="tcp://127.0.0.1:8572", **volumes)
    machine.ours("install-service", "--units", "elsewhere")
    public = machine.ours("keys", "show", "/etc/aet-stream/worker.key").strip()
    allowed = machine.ours("keys", "allow", "lab2", public, "--config", "/etc/aet-stream/helped.toml")
    connect, server_key = re.findall(r"--connect (\S+) --server-key (\S+)", allowed)[0]
    machine.write("/etc/aet-stream/elsewhere.env", f"CONNECT={connect}\nSERVER_KEY={server_key}\nHELPER=--takes volume\n")
    machine.write("/etc/systemd/system/aet-stream-helper.service.d/watchdog.conf", "[Service]\nWatchdogSec=4\nRestartSec=0.1\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "aet-stream@helped", "aet-stream-helper")
    before = machine.of("aet-stream-helper", "MainPID")
    machine.kill("aet-stream-helper", signal.SIGSTOP)
    again = machine.wait("aet-stream-helper", lambda found: found["ActiveState"] == "active" and found["NRestarts"] == "1")
    assert again["MainPID"] != before
    told = ("status", "--config", "/etc/aet-stream/helped.toml")
    wait_for(lambda: "lab2:helper: helper, free" in machine.ours(*told), what=f"the helper to be let in; {machine.log()}")
    for series, made in (
        ("one", "series=one volume by lab2:helper in"),
        ("two", "series=two volume: no helper that takes volume is let in: it is done here"),
    ):
        for number in range(3):
            put(machine.data / "helped" / "in" / series, number, 30.0 * number)
        stored = f"series {series}: open, 3 stored"
        wait_for(partial(lambda words: words in machine.ours(*told), stored), what=f"rows; {machine.log()}")
        machine.ours("close", series, "--config", "/etc/aet-stream/helped.toml")
        wait_for((machine.data / "helped" / "out" / series / "reconstruction.h5").exists, limit_s=90, what=f"a volume; {machine.log()}")
        assert made in (machine.data / "log").read_text()
        machine.run("systemctl", "stop", "aet-stream-helper")
        assert machine.of("aet-stream-helper", "Result") == "success"
        wait_for(lambda: "lab2:helper" not in machine.ours(*told), what="the relay to notice")
    machine.run("systemctl", "stop", "aet-stream@helped")


def test_a_role_that_hangs_is_started_again(roles: Booted) -> None:
    """Each role a unit of its own: all six hang at once; the watchdog ends each, and the series goes on."""
    machine = roles
    units = [f"aet-stream-{role}" for role in ROLES]
    machine.run("systemctl", "start", "aet-stream.target", *units)
    before = {unit: machine.of(unit, "MainPID") for unit in units}
    tilts(machine, "roles", range(3))
    wait_for_rows(machine, "roles", 3)
    for unit in units:
        machine.kill(unit, signal.SIGSTOP)
    tilts(machine, "roles", range(3, 6))
    for unit in units:
        again = machine.wait(unit, lambda found: found["ActiveState"] == "active" and found["NRestarts"] == "1")
        assert again["MainPID"] != before[unit]
    wait_for_rows(machine, "roles", 6)
    machine.run("systemctl", "stop", "aet-stream.target")
    for unit in units:
        machine.wait(unit, lambda found: found["ActiveState"] == "inactive")


def test_what_the_sandbox_denies(roles: Booted) -> None:
    """With all of the hub's unit but its program: its output and nothing else may be written, no raw disk, no other's process or file."""
    machine = roles
    tries = {
        "reads": "head -c1 /etc/hosts",
        "writes": "touch /opt/data/roles/out/mine",
        "etc": "touch /etc/aet-stream/mine",
        "usr": "touch /usr/mine",
        "tmp": "test -e /tmp/of-others",
        "disk": "head -c1 /dev/vda",
        "processes": "kill -0 1",
    }
    script = "".join(f"{words} > /dev/null 2>&1 && echo {name} yes || echo {name} no\n" for name, words in tries.items())
    machine.write("/opt/probe.sh", script + "id -un\n")
    machine.run("touch", "/tmp/of-others")
    hub = machine.run("cat", "/etc/systemd/system/aet-stream-hub.service").splitlines()
    other = {"ExecStart": "ExecStart=/bin/sh /opt/probe.sh", "Restart": ""}
    machine.write("/etc/systemd/system/aet-stream-probe.service", "\n".join(other.get(line.partition("=")[0], line) for line in hub))
    machine.write("/etc/systemd/system/aet-stream-probe.service.d/zz.conf", "[Service]\nType=oneshot\n")
    machine.run("systemctl", "daemon-reload")
    (machine.data / "log").unlink()
    machine.run("systemctl", "start", "aet-stream-probe")
    said = machine.log()
    assert "reads yes\nwrites yes\n" in said
    assert "etc no\nusr no\ntmp no\ndisk no\nprocesses no\n" in said
    assert said.endswith("aet-stream\n")
    machine.run("rm", "-r", "/etc/systemd/system/aet-stream-probe.service", "/etc/systemd/system/aet-stream-probe.service.d")


def test_it_goes_away_again(roles: Booted) -> None:
    """`uninstall-service` stops and removes the units; settings and what has been written stay."""
    machine = roles
    machine.run("systemctl", "start", "aet-stream-hub")
    assert "left alone" in machine.ours("uninstall-service")
    assert "aet-stream" not in machine.run("systemctl", "list-units", "--no-legend", "aet-stream*")
    assert "aet-stream" not in machine.run("ls", "/etc/systemd/system")
    assert "config.toml" in machine.run("ls", "/etc/aet-stream")
    assert (machine.data / "roles" / "out" / "ledger.sqlite").exists()
