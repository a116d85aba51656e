"""The suites above are able to fail: each line of safety code, broken on purpose, turns one of them red."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.durability import mutants


def test_every_mutant_fits_the_code() -> None:
    """A mutant whose text is not there any more would pass for caught, or never be tried."""
    misfits = {m.name for m in mutants.MUTANTS if (mutants.HERE / m.file).read_text().count(m.old) != 1}
    assert misfits == set()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_line_is_noticed(tmp_path: Path, mutant: mutants.Mutant) -> None:
    """Its suite turns red."""
    assert mutants.caught(mutant, tmp_path)
