"""Whatever a daemon has started ends with its supervisor; `make durability` kills two hundred of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.durability import orphans
from tests.harness import Daemon, put, wait_for


@pytest.mark.parametrize("at", ["its start", "work"])
def test_nobody_outlives_a_killed_supervisor(tmp_path: Path, at: str) -> None:
    """Beside two busy loops, while roles are still importing, or with a reader and a delivery under way: none is left after two seconds."""
    daemon = Daemon(tmp_path, **orphans.SETTINGS)
    put(daemon.root / "s", 0, 0.0)
    with orphans.busy_loops():
        group = orphans.Group(daemon)
        try:
            if at == "work":
                wait_for(lambda: "preview" in map(orphans.kind, group.members().values()), limit_s=100, what=daemon.log.read_text)
            else:
                wait_for(lambda: len(group.members()) == 6, what="supervisor and five roles")
            assert group.kill() == {}
        finally:
            group.clear()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_kills_leave_nobody_and_lose_nothing(tmp_path: Path) -> None:
    """At any moment of a daemon's life."""
    found = orphans.run(tmp_path, seed=1, kills=20)
    assert (found["left"], found["wrong"]) == ({}, [])
