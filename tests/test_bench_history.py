"""What `make bench` keeps of its runs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests import bench_history
from tests.bench_history import Run


def test_a_figure_is_slower_if_it_is_so_against_the_reference_of_its_own_run(tmp_path: Path) -> None:
    """A computer that is twice as slow that day makes nothing slower; another kind of computer does not count."""
    path = tmp_path / "history.jsonl"
    for busy in (1.0, 2.0, 1.1):
        bench_history.add(bench_history.this_run({"frame": 0.2 * busy, "row": 0.01 * busy}, 0.05 * busy), path)
    before = bench_history.read(path)
    assert [run.ratios for run in before] == [{"frame": 4.0, "row": 0.2}] * 3
    run = bench_history.this_run({"frame": 0.9, "row": 0.03, "new": 1.0}, 0.15)
    assert bench_history.slower(run, before) == ["frame: 1.50 times as long as before (3 runs)"]
    elsewhere = [msgspec.structs.replace(each, machine="another, 64 cores") for each in before]
    assert bench_history.slower(run, elsewhere) == []


def test_the_history_in_the_repository_can_be_read() -> None:
    for run in bench_history.read():
        assert isinstance(run, Run)
        assert run.reference_s > 0
        assert all(ratio > 0 for ratio in run.ratios.values())


def test_the_reference_takes_a_moment() -> None:
    assert 0.001 < bench_history.reference_s() < 10
