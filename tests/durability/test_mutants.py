"""The suites above are able to fail: each line of safety code, broken on purpose, turns one of them red."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.durability import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_fits_the_code(mutant: mutants.Mutant) -> None:
    """One whose place is not there any more would pass for caught, or never be tried; what it makes is still a program."""
    before = (mutants.HERE / mutant.file).read_text()
    assert ast.dump(ast.parse(mutants.broken(mutant))) != ast.dump(ast.parse(before))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_line_is_noticed(tmp_path: Path, mutant: mutants.Mutant) -> None:
    """Its suite turns red."""
    assert mutants.caught(mutant, tmp_path)
