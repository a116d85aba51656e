"""The suites above are able to fail: each line of safety code, broken on purpose, turns one of them red."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.durability import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_fits_the_code(mutant: mutants.Mutant) -> None:
    """One whose place is not there any more would pass for caught, or never be tried; what it makes is still a program."""
    before = (mutants.HERE / mutant.file).read_text()
    assert ast.dump(ast.parse(mutants.broken(mutant))) != ast.dump(ast.parse(before))


def test_every_suite_has_tests() -> None:
    """One that has been renamed would notice nothing."""
    suites = {mutant.suite for mutant in mutants.MUTANTS}
    split = {suite: suite.replace("\\", "").partition(" -k ")[::2] for suite in suites}
    files = sorted({file for named, _ in split.values() for file in named.split()})
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow", *files], capture_output=True, text=True, cwd=mutants.HERE
    )
    tests = told.stdout.splitlines()
    for suite, (named, words) in split.items():
        for file in named.split():
            assert any(test.startswith(file) and any(word in test for word in words.split(" or ")) for test in tests), suite


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_line_is_noticed(tmp_path: Path, mutant: mutants.Mutant) -> None:
    """Its suite turns red."""
    assert mutants.caught(mutant, tmp_path)
