"""Whatever a daemon has started ends with its supervisor; `make durability` kills two hundred of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.durability import orphans
from tests.harness import Daemon, put, wait_for

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("at", ["start", "work"])
def test_nobody_outlives_a_killed_supervisor(tmp_path: Path, at: str) -> None:
    """Beside two busy loops, while roles are still importing, or with a reader and a reconstruction under way: none after two seconds."""
    daemon = Daemon(tmp_path, **orphans.SETTINGS | {"reconstruct__iterations": 100_000})
    for index in range(3):
        put(daemon.root / "s", index, 10.0 * index)
    with orphans.busy_loops():
        group = orphans.Group(daemon)
        try:
            wanted = {"reader", "reconstruct"} if at == "work" else {"hub", "watch", "worker"}
            wait_for(lambda: wanted <= set(map(orphans.kind, group.members().values())), limit_s=100, what=str(wanted))
            assert group.kill() == {}
        finally:
            group.clear()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_kills_leave_nobody_and_lose_nothing(tmp_path: Path) -> None:
    """At any moment of a daemon's life."""
    found = orphans.run(tmp_path, seed=1, kills=20)
    assert (found["left"], found["wrong"]) == ({}, [])
