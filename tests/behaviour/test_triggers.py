"""Events of a real daemon reach real receivers, whatever is killed or stopped."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Daemon, put, running, wait_for
from tests.receivers import Program, Receiver, http_receiver, zmq_receiver

ALL = ["projection.stored", "coverage.milestone", "series.closed", "reconstruction.done", "held", "quarantined"]


def numbers(receiver: Receiver, series: str) -> list[int]:
    return [event["data"]["number"] for event in receiver.effects if event["event"] == "projection.stored" and event["series"] == series]


def test_the_life_of_a_series_is_told_in_order(tmp_path: Path) -> None:
    """Stored, milestones, held, quarantined, closed, reconstructed: each once, to all three kinds of receivers."""
    program = Program(tmp_path / "program")
    with http_receiver() as web, zmq_receiver(tmp_path) as queue:
        daemon = Daemon(
            tmp_path,
            reconstruct__on_close=True,
            reconstruct__iterations=2,
            command__argv=program.argv,
            command__events=ALL,
            webhook__url=web.address,
            webhook__events=ALL,
            zeromq__endpoint=queue.address,
            zeromq__events=ALL,
        )
        for index in range(12):
            put(daemon.root / "s", index, 10.0 * index - 50)
        put(daemon.root / "s", 50, None)
        (daemon.root / "s" / "bad_+7.00deg.tif").write_bytes(b"II*\0 no image")
        assert daemon.run("--until-idle", "1", "--strict") == 3
    kinds = Counter(event["event"] for event in web.effects)
    assert kinds == {
        "projection.stored": 12,
        "coverage.milestone": 1,
        "series.closed": 1,
        "reconstruction.done": 1,
        "held": 1,
        "quarantined": 1,
    }
    assert sorted(numbers(web, "s")) == list(range(12))
    assert [event["event"] for event in web.effects[-2:]] == ["series.closed", "reconstruction.done"]
    assert [event["id"] for event in queue.effects] == [event["id"] for event in web.effects] == [event["id"] for event in program.tries]
    done = web.effects[-1]
    assert Path(done["data"]["volume"]).is_file()
    listed = daemon.ask("events", *daemon.set).stdout.splitlines()
    assert len(listed) == 3 * 17 + 1
    assert all(": done, 1 try" in line for line in listed)


@pytest.mark.thorough
@pytest.mark.parametrize("role", ["trigger", "hub"])
def test_kills_lose_no_event_and_repeat_no_effect(tmp_path: Path, role: str) -> None:
    """SIGKILL as soon as the receiver hears of something, again and again: every event arrives, in order, each effect once."""
    with http_receiver() as web, running(tmp_path, webhook__url=web.address, webhook__events=ALL, webhook__timeout_s=2) as daemon:
        killed: list[int] = []

        def alive() -> int | None:
            pid = daemon.role_pids().get(role)
            return None if pid in killed else pid

        def kill(event: dict[str, object]) -> None:
            pid = alive()
            if len(killed) < 2 and pid:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        web.before_answer = lambda event: kill(event) if len(killed) % 2 == 0 else None
        web.after_answer = lambda event: kill(event) if len(killed) % 2 else None
        for index in range(4):
            wait_for(alive, limit_s=60, what=f"the {role} to be there, before event {index}")
            put(daemon.root / "s", index, 2.0 * index)
            wait_for(lambda index=index: len(numbers(web, "s")) > index, limit_s=60, what=f"event {index}")
        assert len(killed) == 2
        wait_for(lambda: daemon.status().get("events", {}).get("pending") == 0, limit_s=30)
    assert numbers(web, "s") == list(range(4))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Receiver]]:
    """A daemon with a step of each kind, and whom it tells; every test has its own series."""
    folder = tmp_path_factory.mktemp("told")
    settings = {"trigger__attempts": 1, "preview__enabled": True, "preview__every_deg": 6, "reconstruct__on_close": True}
    with http_receiver() as web, running(folder, webhook__url=web.address, webhook__events=ALL, **settings) as daemon:
        yield daemon, web


def test_a_stopped_trigger_stops_nothing_else(told: tuple[Daemon, Receiver]) -> None:
    """SIGSTOP: projections are stored all the same; SIGCONT: their events arrive."""
    daemon, web = told
    pid = wait_for(lambda: daemon.role_pids().get("trigger"))
    os.kill(pid, signal.SIGSTOP)
    try:
        for index in range(6):
            put(daemon.root / "stopped", index, 0.1 * index)
        wait_for(lambda: stored(daemon, "stopped") == 6)
        assert all(event["series"] != "stopped" for event in web.tries)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: len(numbers(web, "stopped")) == 6)


def stored(daemon: Daemon, series: str) -> int:
    return sum(one["stored"] for one in daemon.status().get("series", []) if one["name"] == series)


def test_a_dead_letter_is_shown_and_resent_from_the_command_line(told: tuple[Daemon, Receiver]) -> None:
    """`status` and `events --failed` name it, `resend` delivers it, exit codes tell the truth."""
    daemon, web = told
    web.answers = [500]
    put(daemon.root / "dead", 10, 1.0)
    wait_for(lambda: daemon.status().get("events", {}).get("failed") == 1)
    assert "FAILED       projection.stored of dead -> webhook (1 tries): HTTP 500" in daemon.ask("status").stdout
    line = daemon.ask("events", "--failed", *daemon.set).stdout
    assert daemon.ask("resend", "nonsense", *daemon.set).returncode == 1
    sent = daemon.ask("resend", line.split()[0], *daemon.set)
    assert (sent.returncode, sent.stdout) == (0, "1 will be sent again\n")
    wait_for(lambda: numbers(web, "dead") == [0])


def test_a_growing_series_has_a_preview(told: tuple[Daemon, Receiver]) -> None:
    """Made while the series is open, by the trigger's child, beside the series."""
    daemon, _ = told
    for index in range(4):
        put(daemon.root / "growing", 20 + index, 20.0 * index)
    wait_for(lambda: (daemon.out / "growing" / "preview.h5").exists(), limit_s=90, what="the preview")
    assert {one["name"]: one["state"] for one in daemon.status()["series"]}["growing"] == "open"


def test_a_series_too_short_for_a_volume_is_no_failure(told: tuple[Daemon, Receiver]) -> None:
    """Two projections: no volume, nothing tried in vain, no delivery put aside."""
    daemon, _ = told
    for index in range(2):
        put(daemon.root / "short", 30 + index, 2.0 * index)
    wait_for(lambda: stored(daemon, "short") == 2)
    assert daemon.ask("close", "short").returncode == 0
    wait_for(lambda: "2 of 2 projections can be used; at least 3 are needed" in daemon.log.read_text(), limit_s=60)
    wait_for(lambda: "short -> reconstruct: done, 1 try " in daemon.ask("events").stdout)
    assert not (daemon.out / "short" / "reconstruction.h5").exists()


@pytest.mark.thorough
def test_a_run_ends_though_a_receiver_says_again_later(tmp_path: Path) -> None:
    """What it put off is said and told in the next run; with --strict it fails."""
    with http_receiver() as web:
        web.answers = [503] * 1000
        daemon = Daemon(tmp_path, webhook__url=web.address, webhook__events=["projection.stored", "series.closed"], report__on_close=False)
        for index in range(2):
            put(daemon.root / "s", index, 10.0 * index)
        assert daemon.run("--until-idle", "1") == 0
        assert "0 failed events, 3 events put off" in daemon.log.read_text()
        assert daemon.run("--until-idle", "1", "--strict") == 3
