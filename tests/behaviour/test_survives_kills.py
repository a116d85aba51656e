"""Every role is killed again and again while a series comes in; nothing is lost, doubled or changed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.harness import Daemon, plain_reader, plain_rows, put, running, wait_for
from tests.rehearsal import taken_in

ROLES = ("hub", "watch", "worker-0", "trigger", "monitor")
PROJECTIONS = 20


def expose(root: Path, index: int) -> None:
    put(root / "np", index, -60.0 + 6 * index, size_px=16)  # small: the commits and their files are tried, not the subtraction


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[float, bytes, bytes]]:
    """The rows of a run in which nobody is killed: a whole one in this process, of which there is nobody to kill."""
    folder = tmp_path_factory.mktemp("calm")
    for index in range(PROJECTIONS):
        expose(folder / "in", index)
    return plain_rows(taken_in(folder, "laplace") / "np" / "series.h5")


@pytest.mark.timeout(240)
def test_no_projection_is_lost_doubled_or_changed_when_every_role_is_killed(
    tmp_path: Path, undisturbed: dict[tuple[str, int], tuple[float, bytes, bytes]]
) -> None:
    """Each role but the supervisor is killed by SIGKILL twice at random moments; a plain reader watches all the while."""
    rng, kills = random.Random(5), dict.fromkeys(ROLES, 0)
    with (
        running(tmp_path / "storm", monitor__enabled=True, monitor__port=0) as daemon,
        plain_reader(daemon.out / "np" / "series.h5", tmp_path / "reader.json") as report,
    ):
        wait_for(lambda: len(daemon.role_pids()) >= len(ROLES), what="all roles")
        coming = iter(range(PROJECTIONS))
        killed_pids: set[int] = set()
        while min(kills.values()) < 2:
            for _ in range(rng.randrange(3)):
                if (index := next(coming, None)) is not None:
                    expose(daemon.root, index)
            name = rng.choice([role for role, count in kills.items() if count < 2])
            pid = wait_for(lambda name=name: daemon.role_pids().get(name), what=f"{name} to be back")
            if pid not in killed_pids:
                time.sleep(rng.uniform(0.0, 0.2))  # the moment of death is what is random here
                os.kill(pid, signal.SIGKILL)
                killed_pids.add(pid)
                kills[name] += 1
        for index in coming:
            expose(daemon.root, index)
        daemon.wait_for_totals(stored=PROJECTIONS, quarantined=0, held=0, duplicates=0, limit_s=120)
        assert daemon.ask("close", "np").returncode == 0
        found = report()
    assert plain_rows(daemon.out / "np" / "series.h5") == undisturbed
    assert found["bad"] == 0, found
    assert not list((daemon.out / "quarantine").glob("*")) if (daemon.out / "quarantine").exists() else True
    print(f"kills {kills}, reader {found['opened']} opens")


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_roles_end_when_their_supervisor_is_killed_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """SIGKILL to the supervisor: its roles are gone within two seconds, and a new run finds everything."""
    daemon = Daemon(tmp_path)
    for index in range(10):
        expose(daemon.root, index)
    for _ in range(2):
        daemon.start()
        pids = wait_for(lambda: (found := daemon.role_pids()) and len(found) >= 4 and found, what="all roles")
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        wait_for(lambda pids=pids: not any(alive(pid) for pid in pids.values()), limit_s=4.0, what="orphans to end")
    assert daemon.run("--until-idle", "1", "--strict") == 0
    assert len(plain_rows(daemon.out / "np" / "series.h5")) == 10


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_sigterm_finishes_the_commit_in_hand_and_loses_nothing(
    tmp_path: Path, undisturbed: dict[tuple[str, int], tuple[float, bytes, bytes]]
) -> None:
    """Stopped in mid-series and started again, three times: the same rows as without."""
    daemon = Daemon(tmp_path / "stopped")
    for index in range(PROJECTIONS):
        expose(daemon.root, index)
    for wanted in (2, 5, 9):
        daemon.start()
        wait_for(lambda wanted=wanted: daemon.status()["totals"]["stored"] >= wanted, what="some projections")
        assert daemon.stop() == 0
    assert daemon.run("--until-idle", "1", "--strict") == 0
    assert plain_rows(daemon.out / "np" / "series.h5") == undisturbed
