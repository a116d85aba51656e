"""Damaged files of every format: no hang, no death of the daemon's side, no wrong pixels from what was cut or zero-filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fuzz


def judged(counts: dict[str, int]) -> None:
    print("\n" + "\n".join(f"{number:7d}  {what}" for what, number in sorted(counts.items())))
    wrong = {what: number for what, number in counts.items() if what.startswith("WRONG")}
    assert not wrong
    assert counts["files"] == sum(number for what, number in counts.items() if what != "files")


@pytest.mark.thorough
def test_240_damaged_files(tmp_path: Path) -> None:
    """Ten of every kind of file; each ends in pixels or in one clear refusal, and whole files are read as ever afterwards."""
    judged(fuzz.run(240, tmp_path, seed=1, timeout_s=5.0))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_20000_damaged_files(tmp_path: Path) -> None:
    """The same, twenty thousand times."""
    judged(fuzz.run(20_000, tmp_path, seed=2))
