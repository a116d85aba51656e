"""Every state that a kill may leave on disk, and many that a power cut may leave: recovered, or refused aloud; never silently wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.durability import crashstates


def failures(states: list[crashstates.State], folder: Path) -> list[str]:
    outcomes = ((state, crashstates.outcome_of(state, folder)) for state in states)
    return [f"{state.words}: {outcome}" for state, outcome in outcomes if outcome != "recovered"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[crashstates.Recording]:
    """Of every life."""
    folder = tmp_path_factory.mktemp("lives")
    return [crashstates.record(folder / f"life{number}", *life) for number, life in enumerate(crashstates.LIVES)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", ["kill", "power"])
def test_some_states_of_each_kind_are_recovered(tmp_path: Path, recordings: list[crashstates.Recording], kind: str, count: int) -> None:
    """A sample, another one for every life; `make test-long` has them all."""
    for seed, recording in enumerate(recordings):
        states = list(crashstates.kill_states(recording)) if kind == "kill" else list(crashstates.power_states(recording, 1, seed))
        assert failures(random.Random(seed).sample(states, count), tmp_path / "state") == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("life", range(len(crashstates.LIVES)))
@pytest.mark.parametrize("kind", ["kill", "power"])
def test_every_state_is_recovered(tmp_path: Path, life: int, kind: str) -> None:
    """Every boundary and the middle of every write; five power cuts after each operation."""
    recording = crashstates.record(tmp_path / "life", *crashstates.LIVES[life])
    states = crashstates.kill_states(recording) if kind == "kill" else crashstates.power_states(recording, 5, life)
    assert failures(list(states), tmp_path / "state") == []
