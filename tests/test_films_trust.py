"""The expected error of a series' backgrounds: what is evidence, that no alarm is outvoted, and that a rule is found again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from aet_stream.cli import main
from aet_stream.denoise import grid
from aet_stream.denoise.cokriging.drawing import UNKNOWN, Drawn, Held
from aet_stream.denoise.cokriging.estimator import Drawing
from aet_stream.denoise.cokriging.evidence import Evidence, gather
from aet_stream.denoise.cokriging.gate import Taken, Verdict
from aet_stream.denoise.cokriging.seen import in_blocks
from aet_stream.denoise.cokriging.totals import beyond
from aet_stream.film.expected import Rule, shipped
from aet_stream.film.frames import Frame, finished
from aet_stream.projection import Array, Quality
from aet_stream.training.calibrate_films import fit
from aet_stream.training.judged_series import Marks, Which

NAMES = list(shipped().factors)
OF_SERIES = [field.name for field in fields(Evidence)]
EDGE, POINT = 64, 4
SAID = Quality("first", "", expected_error=3.0, vacuum_noise=8.0, total_intensity=1e5, trust=0.8)


def verdict(share: float, too_sure: float = 1.0) -> Verdict:
    taken = Taken.MIXED if share else Taken.SINGLE
    return Verdict(taken, share, 0.3, too_sure, 0.5, 1.0, 1.0)


def frame_of(quality: Quality = SAID) -> tuple[Frame, Array]:
    """(a disc of 100 counts, its clean image)."""
    y, x = np.meshgrid(*(np.arange(EDGE) - (EDGE - 1) / 2,) * 2, indexing="ij")
    clean = np.where(np.hypot(y, x) < 14, 100.0, 0.0).astype(np.float32)
    logit = np.where(grid.statistics(clean, POINT // 2)[2] > 0, 5.0, -9.0)
    return Frame.of(0, clean + np.float32(20), clean, quality, logit, tilt_deg=0.0, time=0.0), clean


def drawing_of(frame: Frame, share: float, **told: float) -> Drawing:
    nothing = np.zeros(frame.view.seen.hidden.shape)
    evidence = Evidence(**dict.fromkeys(OF_SERIES, 0.5) | told)
    drawn = Drawn(nothing, nothing, UNKNOWN, UNKNOWN, 1.0, 1.0, 0.02, 0.0, 0.0, 1.0)
    correction = np.where(in_blocks(frame.view.seen.hidden), share * 4.0, 0.0)
    return Drawing(frame.view.seen, drawn, correction, nothing, nothing, verdict(share), share, evidence, False)


# ---------------------------------------------------------------- evidence


def test_two_backgrounds_that_are_apart_say_that_one_is_wrong() -> None:
    """The standard deviation of a mixture of two, by the definition of one."""
    hidden = np.zeros((8, 8), bool)
    hidden[2:6, 2:6] = True
    apart = np.where(hidden, 3.0, 0.0)
    drawn = Drawn(apart, apart, Held(0.2, 0.1), Held(1.0, 1.0), 0.1, 1.0, 0.02, 0.05, 0.5, 0.3)

    def gathered(said: Verdict) -> Evidence:
        return gather(drawn, said, np.zeros((16, 16)), apart, hidden, 0.0, 10.0, said.share / 2)

    told = gathered(verdict(0.25, too_sure=2.0))
    of_one_place = np.std(np.repeat([0.0, 3.0], [3, 1]))
    assert told.apart == pytest.approx(of_one_place * np.sqrt(hidden.mean()))
    covered = 10.0 * np.sqrt(hidden.mean())
    assert told.spread == pytest.approx(0.25 * 2.0 * 0.1 * covered)
    assert told.guessed == pytest.approx(0.25 * 0.05 * covered)
    assert told.unseen == gathered(verdict(1.0)).unseen == pytest.approx(0.5**4 * 0.3 * covered)
    assert told.ring == pytest.approx(0.2 * covered)
    assert told.vacuum == pytest.approx(0.125 * 0.02 * 10.0 * np.sqrt(1 - hidden.mean()))
    assert gathered(verdict(1.0)).apart == 0
    assert gathered(verdict(1.0, too_sure=0.5)).spread == pytest.approx(0.1 * covered)


def test_a_background_that_bends_is_not_as_its_blocks_have_it() -> None:
    """The mean over a square of a parabola, less what it is in the middle; under the particle it does not count, and a slope does not."""
    y, x = np.meshgrid(*(np.arange(200) - 99.5,) * 2, indexing="ij")
    parabola = (3 * x**2 + y**2 + 40 * x) / 1000
    blocks = parabola.reshape(20, 10, 20, 10).mean((1, 3))
    middle = (parabola[4::10, 4::10] + parabola[5::10, 5::10] + parabola[4::10, 5::10] + parabola[5::10, 4::10]) / 4
    off = (blocks - middle)[1:-1, 1:-1]
    nothing = np.zeros((10, 10))
    drawn = Drawn(nothing, nothing, UNKNOWN, UNKNOWN, 1.0, 1.0, 0.02, 0.0, 0.0, 1.0)
    seen, hidden = (gather(drawn, verdict(0.0), blocks, nothing, np.full((10, 10), under), 0.0, 1.0, 0.0).bent for under in (False, True))
    assert seen == pytest.approx(np.sqrt(np.mean(np.square(off))), rel=0.05)
    assert hidden == 0


def test_a_total_that_strays_beyond_what_is_usual_is_particle_or_background() -> None:
    """A share of the particle that is missing at one tilt is so much of an error there; what strays as usual says nothing."""
    usual = 0.3 * np.array([1, -1, 0.5, 0, -0.5, 1, -1, 0.7, -0.7, 0.7, -0.7, 1, -1])
    totals, hidden = 100 + usual, np.full(13, 50.0)
    assert (beyond(totals, hidden, 400) == 0).all()
    totals[4] = 60.0
    told = beyond(totals, hidden, 400)
    assert np.flatnonzero(told).tolist() == [4]
    even = np.zeros(400)
    even[:50] = 40 / 50
    assert told[4] == pytest.approx(1.25 * np.sqrt(np.mean(np.square(even))), rel=0.05)
    totals[5] = np.nan
    assert beyond(totals, hidden, 400)[5] == 0
    assert (beyond(totals[2:6], hidden[2:6], 400) == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", OF_SERIES)
def test_one_alarm_is_enough(name: str, share: float) -> None:
    """However good everything else looks; and no evidence makes the error smaller."""
    frame, clean = frame_of()
    quiet, loud, alarm = (finished(frame, drawing_of(frame, share, **{name: size}), clean)[1] for size in (0.5, 5.0, 500.0))
    assert quiet.expected_error < loud.expected_error < alarm.expected_error
    assert quiet.trust > loud.trust > alarm.trust
    assert alarm.trust < 0.1


def test_where_nothing_is_changed_the_pixels_stay_and_the_trust_does_not() -> None:
    frame, clean = frame_of()
    pixels, quality = finished(frame, drawing_of(frame, 0.0, ring=50.0), clean)
    assert np.array_equal(pixels, clean)
    assert quality.model == "first"
    assert quality.expected_error > SAID.expected_error
    assert quality.trust < 0.1
    assert quality.total_intensity == SAID.total_intensity


def test_without_vacuum_around_the_particle_the_first_edition_speaks_for_itself() -> None:
    frame, clean = frame_of()
    assert finished(frame, drawing_of(frame, 0.0, ring=float("nan")), clean)[1] == SAID


def test_trust_asks_how_large_the_error_may_be() -> None:
    """A half where the margin reaches 3 % of the particle's range."""
    frame, clean = frame_of()
    quality = finished(frame, drawing_of(frame, 0.5), clean)[1]
    may_be = shipped().margin * quality.expected_error / 100  # the disc's range, nearly
    assert quality.trust == pytest.approx(1 / (1 + (may_be / 0.03) ** 2), rel=0.15)


def test_the_shipped_rule_says_where_it_comes_from() -> None:
    rule = shipped()
    assert min(rule.factors.values()) >= 0
    assert rule.margin >= 1
    assert rule.frames > 100
    assert "clouds" in rule.fitted_on


# ---------------------------------------------------------------- its fit


def told(seed: int, factors: Array, scatter: float, *, frames: int = 40, nothing_says: int | None = None) -> Marks:
    """A series whose errors are by a rule, but for what scatters."""
    rng = np.random.default_rng(seed)
    evidence = np.exp(rng.normal(-5, 1, (frames, len(NAMES))))
    error = np.linalg.norm(evidence * factors, axis=1) * np.exp(rng.normal(0, scatter, frames))
    which, zeros = Which(kind="halo", physics="clouds", seed=seed, tilts=frames), [0.0] * frames
    columns = {name: evidence[:, k].tolist() for k, name in enumerate(NAMES)}
    if nothing_says is not None:
        columns[NAMES[0]][nothing_says] = float("nan")
    return Marks(
        which=which, estimator="e + films", tilts_deg=zeros, inside=zeros, total=zeros, share=zeros, error=error.tolist(), evidence=columns
    )


def test_a_rule_is_found_again() -> None:
    """By many series: what it foretells, and a margin that 95 of 100 frames keep, of a series that was not asked as well; by two, its
    factors stay nearer to 1."""
    true = np.array([1.0, 0.5, 2.0, 0.4, 0.7, 1.4, 1.2, 0.6, 1.7, 0.8])
    series = [told(seed, true, 0.3, frames=8) for seed in range(200)]
    rule = fit(series)
    assert rule.margin == pytest.approx(np.exp(1.645 * 0.3), rel=0.08)
    assert rule.frames == 1600
    assert "halo clouds 3" in rule.fitted_on
    other = told(100, true, 0.0)
    expected = np.array([rule.expected(dict(zip(NAMES, row, strict=True))) for row in np.array(list(other.evidence.values())).T])
    assert expected == pytest.approx(np.array(other.error), rel=0.3)
    assert np.median(expected / other.error) == pytest.approx(1, abs=0.08)
    far, near = (np.abs(np.log(list(each.factors.values()))).max() for each in (rule, fit(series[:2])))
    assert near < far / 2


def test_frames_of_which_something_is_not_known_do_not_count() -> None:
    series = [told(seed, np.ones(len(NAMES)), 0.1, nothing_says=7) for seed in range(2)]
    rule = fit(series)
    assert rule.frames == 78
    assert all(np.isfinite(list(rule.factors.values())))


def test_what_cannot_be_fitted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = told(0, np.ones(len(NAMES)), 0.1)
    for few in ([], [one], [one, silent(one)]):
        with pytest.raises(ValueError, match="two series"):
            fit(few)
    assert main(["evaluate", "--fit-trust", str(tmp_path / "trust.json")]) != 0
    assert "--series" in capsys.readouterr().err
    assert not (tmp_path / "trust.json").exists()


def silent(marks: Marks) -> Marks:
    """Of an estimator that says nothing."""
    return Marks(**{name: getattr(marks, name) for name in Marks.__struct_fields__ if name != "evidence"})


def test_a_rule_foretells_by_its_factors() -> None:
    rule = Rule(factors={"ring": 3.0, "noise": 4.0}, margin=2.0, fitted_on="", frames=1)
    assert rule.expected({"ring": 1.0, "noise": 1.0, "spread": 9.0}) == pytest.approx(5.0)
