"""Judging by series of things that turn: figures mean what they say, and what was found is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aet_stream.cli import main
from aet_stream.simulate.films import PHYSICS
from aet_stream.simulate.physical import PhysicalSeries, physical_series
from aet_stream.training import judged_series, oracle
from aet_stream.training.judged_series import Marks, Which, changes, chosen, judged, marks, rows, table, trusted

SMALL = Which(kind="one-side", physics="clouds", seed=5, tilts=3, size_px=64)


def off_by(share: float) -> judged_series.Estimator:
    """An estimator that is wrong by this share of the brightest pixel, everywhere."""

    def answers(series: PhysicalSeries) -> Iterator[judged_series.Answer]:
        for below in series.background:
            yield judged_series.Answer(below + share * series.geometry.unit_counts, share * series.geometry.unit_counts, 0.25)

    return answers


def test_a_known_error_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One percent of the brightest pixel is 40 dB, inside as outside, and adds to the particle's total."""
    monkeypatch.setitem(judged_series.OF_SERIES, "one percent", ("", lambda _: off_by(0.01)))
    found = [m for m in marks(["laplace"], [SMALL]) if m.estimator == "laplace + one percent"]
    row = rows(found)[0]
    assert row.mean_db == pytest.approx(40, abs=0.01)
    assert row.tenth_db == pytest.approx(40, abs=0.01)
    assert row.inside_db == pytest.approx(40, abs=0.01)
    series = SMALL.series()
    added = [
        0.01 * np.mean(clean > 2e-3 * series.clean.max()) * clean.size / (clean.sum() / series.geometry.unit_counts)
        for clean in series.clean
    ]
    assert row.total_percent == pytest.approx(100 * np.mean(added), rel=0.03)


def test_a_volume_of_true_backgrounds_is_no_distance_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of wrong ones the farther, the more wrong they are; three tilts make none."""
    five = Which(kind="one-side", physics="clouds", seed=5, tilts=5, size_px=64)
    for share in (0.0, 0.01, 0.03):
        monkeypatch.setitem(judged_series.OF_SERIES, f"{share}", ("", lambda _, share=share: off_by(share)))
    names = [f"laplace + {share}" for share in (0.0, 0.01, 0.03)]
    none, little, much = (m.volume for m in marks(["laplace"], [five], only=names))
    assert none == 0
    assert little is not None
    assert much is not None
    assert 0.005 < little < much / 2
    found = marks(["laplace"], [SMALL, five], only=names[1:2])
    assert found[0].volume is None
    assert rows(found)[0].volume_percent == pytest.approx(100 * little)
    assert f"{100 * little:.2f}" in table([msgspec.structs.replace(m, trust=[]) for m in found])


def test_wrong_trust_is_counted() -> None:
    """Only of frames with an error above 3 % of the particle's range."""
    words = {"which": SMALL, "estimator": "e", "tilts_deg": [0.0] * 20, "inside": [0.1] * 20, "total": [0.0] * 20}
    error = np.geomspace(1e-3, 0.1, 20).tolist()
    blind = Marks(**words, error=error, share=error, expected=error, trust=[0.9] * 20)  # type: ignore[arg-type]
    told = trusted([blind])[0]
    assert told.trusted_wrongly == sum(value > 0.03 for value in error)
    assert told.largest_wrong_trust == 0.9
    assert told.rank_correlation == pytest.approx(1)
    assert told.within_factor_two == 1


def test_what_a_series_changes_is_told_frame_by_frame() -> None:
    """A frame that loses is not hidden by others that gain more; nothing is told of estimators that have nothing to be compared with."""
    words = {"which": SMALL, "tilts_deg": [-60.0, 0.0, 60.0], "total": [0.0] * 3, "share": [0.0] * 3}
    alone = Marks(**words, estimator="e", error=[0.1, 0.1, 0.1], inside=[0.1] * 3)  # type: ignore[arg-type]
    films = Marks(**words, estimator="e + films", error=[0.01, 0.1, 0.2], inside=[0.01] * 3)  # type: ignore[arg-type]
    (told,) = changes([alone, films])
    assert (told.kind, told.estimator, told.frames, told.lost_much) == (SMALL.kind, "e + films", 3, 1)
    assert told.mean_db == pytest.approx((20 - 20 * np.log10(2)) / 3)
    assert told.inside_db == pytest.approx(20)
    assert told.largest_loss_db == pytest.approx(20 * np.log10(2))
    assert "largest loss" in table([alone, films])
    assert changes([films]) == []


def test_a_film_at_a_height_is_a_kind_of_its_own() -> None:
    found = judged(["halo"], 2, heights=[0.0, 0.5])
    assert [which.name for which in found] == ["halo 0 R"] * 2 + ["halo 0.5 R"] * 2
    assert [which.name for which in judged(["halo"], 1)] == ["halo"]


def test_the_oracle_is_better_than_what_is_not_told(tmp_path: Path) -> None:
    """It is given the mask and the covariance; a film that fills one side does not deceive it."""
    series = physical_series("one-side", 5, np.array([-60.0, 30.0]), size_px=128)
    unit = np.float32(series.geometry.unit_counts)
    from aet_stream.denoise.denoiser import Denoiser

    for raw, clean, below in zip(series.raw, series.clean, series.background, strict=True):
        told = oracle.background(raw / unit, clean / unit, below / unit) - below / unit
        untold = [(raw - Denoiser(model=name).subtract(raw).clean - below) / unit for name in ("constant", "laplace", "gaussian-process")]
        assert np.square(told).mean() < 0.7 * min(np.square(other).mean() for other in untold)


def test_what_was_found_is_kept_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made or estimated twice; another estimator is added to what is there."""
    words = ["evaluate", "laplace", "--series", "--kind", "mid-plane", "--seeds", "1", "--tilts", "2", "--keep", str(tmp_path / "kept")]
    assert main([*words, "--json", str(tmp_path / "one.json")]) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    monkeypatch.setattr(judged_series, "physical_series", None)
    assert main([*words, "--json", str(tmp_path / "two.json")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == files
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    assert {row["estimator"] for row in one["rows"]} >= {"nothing", "laplace", "oracle"}


def test_series_are_of_both_physics_and_fixed() -> None:
    """Seeds of judging are of judging alone."""
    of = judged(["edge", "halo"], 3)
    assert [(w.kind, w.physics) for w in of[:3]] == [("edge", "clouds"), ("edge", "flakes"), ("edge", "clouds")]
    assert len({(w.kind, w.seed) for w in of}) == 6
    assert {w.physics for w in judged(["edge"], 3, physics=chosen(["flakes"], PHYSICS, "physics of films"))} == {"flakes"}


def test_a_kind_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And settings that do not go together."""
    assert main(["evaluate", "--series", "--kind", "fog"]) != 0
    assert "growing-halo" in capsys.readouterr().err
    assert main(["evaluate", "--series", "--physics", "oil"]) != 0
    assert "flakes" in capsys.readouterr().err
    assert main(["evaluate", "--series", "--set", "hard"]) != 0
    assert "--set does not go" in capsys.readouterr().err
