"""Random kills, for a few seconds; `make durability` does it for long, and behaviour/test_survives_kills.py asks the same of one series."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.durability import campaign


@pytest.mark.thorough
@pytest.mark.timeout(400)
@pytest.mark.parametrize("supervised", [pytest.param(False, id="roles"), pytest.param(True, id="supervised")])
def test_random_kills_lose_double_and_change_nothing(tmp_path: Path, supervised: bool) -> None:
    """Roles one by one and all at once; or a supervisor, its whole group, one of its roles."""
    found = campaign.run(tmp_path / "campaign", seed=1, seconds=4.0, least_kills=4, supervised=supervised, reads_every_s=0.05)
    assert (found["wrong"], found["verify"], found["readers"]["words"]) == ([], [], [])
