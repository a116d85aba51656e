"""A series judges its own projections: total intensity and centre of mass over tilt."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.consistency import error_in_series, intensity_ratio, mass_residual_px, trust_in_series
from aet_stream.simulate import microscope
from aet_stream.simulate.series import simulate_series
from tests.harness import Daemon, known_image, put
from tests.rehearsal import taken_in

TILTS = np.linspace(-70, 70, 29)
LAW = 3 + 20 * np.cos(np.radians(TILTS)) - 11 * np.sin(np.radians(TILTS))


def test_what_follows_the_law_has_no_residual_and_what_does_not_stands_out() -> None:
    """One shifted projection does not pull the law towards itself."""
    x, y = LAW.copy(), np.full(29, -4.0)
    assert mass_residual_px(TILTS, x, y).max() < 1e-6
    x[7] += 9
    y[20] -= 5
    residual = mass_residual_px(TILTS, x, y)
    assert residual[7] == pytest.approx(9, abs=0.1)
    assert residual[20] == pytest.approx(5, abs=0.1)
    assert np.delete(residual, [7, 20]).max() < 0.1


def test_what_is_not_known_stays_unknown() -> None:
    """NaN in, NaN out; too few, no law; no intensity, no ratio."""
    x = LAW.copy()
    x[3] = np.nan
    residual = mass_residual_px(TILTS, x, np.zeros(29))
    assert np.isnan(residual[3])
    assert np.delete(residual, 3).max() < 1e-6
    assert np.isnan(mass_residual_px(TILTS[:4], LAW[:4], np.zeros(4))).all()
    assert np.isnan(intensity_ratio(np.full(3, np.nan))).all()
    assert intensity_ratio(np.array([2.0, 2.0, 1.0, np.nan]))[:3].tolist() == [1, 1, 0.5]


def foretold(totals: np.ndarray, *, edge_contact: np.ndarray | float = 0.0, expected: float = 10.0) -> np.ndarray:
    """Of projections of 100 x 100 px, a quarter of them particle: an expected error of 10 counts is one of 25,000 in the total, or so."""
    n = len(totals)
    return error_in_series(np.full(n, expected), totals, np.full(n, 0.75), np.full(n, edge_contact), 10_000)


def steady(n: int = 21, strays: float = 20_000.0) -> np.ndarray:
    return 5e6 + strays * np.random.default_rng(0).standard_normal(n)


def test_background_left_under_the_particle_shows_in_the_series() -> None:
    """A level of 100 counts under the particle is a root mean square error of 50 in the frame; others are expected as before, or less."""
    totals = steady()
    totals[4] += 100 * 2500
    found = foretold(totals)
    assert 45 < found[4] < 80
    assert np.delete(found, 4).max() < 15
    assert (np.delete(found, 4) < 10).mean() > 0.5
    trust = trust_in_series(np.full(21, 0.5), np.full(21, 10.0), found)
    assert trust[4] == pytest.approx(1 / (1 + (found[4] / 10) ** 2))


def test_totals_that_are_not_steady_are_not_heard() -> None:
    """Where all totals stray by more than errors explain, as with channelling, what the frames say stands: the more, the larger."""
    found = [np.abs(foretold(steady(strays=strays)) / 10 - 1).max() for strays in (50_000, 250_000, 2_500_000)]
    assert found[0] < 0.6
    assert found[1] < 0.06
    assert found[2] < 0.001


def test_a_series_says_nothing_of_what_is_cut_off_unknown_or_alone() -> None:
    totals = steady()
    totals[4] = 1e6
    edge_contact = np.zeros(21)
    edge_contact[4] = 0.1
    cut, whole = foretold(totals, edge_contact=edge_contact), foretold(np.delete(totals, 4))
    assert cut[4] == 10
    assert np.delete(cut, 4) == pytest.approx(whole)
    assert foretold(totals[:4]).tolist() == [10] * 4
    unknown = steady()
    unknown[7] = np.nan
    assert foretold(unknown)[7] == 10
    assert np.isnan(foretold(totals, expected=np.nan)).all()
    assert foretold(np.full(6, 5e6), expected=0.0).tolist() == [0] * 6
    assert np.isnan(trust_in_series(np.array([np.nan]), np.array([1.0]), np.array([1.0]))).all()


def halo(clean: np.ndarray) -> np.ndarray:
    """A sixth of the particle's total, wholly under it."""
    at = [np.average(place, weights=clean) for place in np.indices(clean.shape)]
    y, x = (np.indices(clean.shape).T - at).T
    blob = np.exp(-(y * y + x * x) / (2 * 6.0**2))
    return np.rint(blob * clean.sum() / 6 / blob.sum()).astype("<u2")


def test_a_series_shows_which_projection_does_not_fit(tmp_path: Path) -> None:
    """One projection is shifted by 12 px, another has a halo hidden under its particle: the stored figures point at these, and no other."""
    series = simulate_series(seed=3, tilts_deg=TILTS[::3], size_px=128, kind="gaussian")
    images = series.raw.copy()
    images[4] = np.roll(images[4], 12, axis=1)
    images[7] += halo(series.clean[7])
    shots = microscope.shots(images, series.tilts_deg, series.pixel_size_nm, ["tiff"], [])
    microscope.write(tmp_path / "in" / "s", shots, told=lambda _: None)
    with h5py.File(taken_in(tmp_path, "default") / "s" / "series.h5") as file:
        order = np.argsort(file["/exchange/theta"][()])
        residual = file["/aet/projection/mass_residual_px"][()][order]
        ratio = file["/aet/projection/intensity_ratio"][()][order]
        trust, in_series = (file[f"/aet/projection/{name}"][()][order] for name in ("trust", "trust_in_series"))
    assert trust[7] > 0.95  # nothing of it is to be seen in the frame itself
    assert in_series[7] < 0.7
    assert np.delete(in_series, 7).min() > 0.85
    assert int(np.argmax(residual)) == 4
    assert residual[4] == pytest.approx(12, abs=3)
    assert np.delete(residual, 4).max() < 4
    assert np.abs(ratio - 1).max() < 0.3


@pytest.mark.thorough
def test_what_was_taken_again_judges_nobody_and_is_not_shown(tmp_path: Path) -> None:
    """Six tilts, then all of them again under the same names with a third more gain: the new ones agree, the report shows no others."""
    daemon = Daemon(tmp_path)
    for gain in (3, 4):
        for index in range(6):
            put(daemon.root / "s", index, 10.0 * index, pixels=(known_image(index) * gain).astype("<u2"))
        assert daemon.run("--until-idle", "2") == 0
    with h5py.File(daemon.out / "s" / "series.h5") as file:
        columns = {key: value[()] for key, value in file["/aet/projection"].items()}
    old = columns["superseded"] == 1
    assert old.sum() == 6
    assert columns["intensity_ratio"][~old] == pytest.approx(1, abs=0.05)
    assert np.isnan(columns["intensity_ratio"][old]).all()
    assert columns["trust_in_series"][old].tolist() == columns["trust"][old].tolist()
    assert (columns["trust_in_series"][~old] > 0.9 * columns["trust"][~old]).all()
    assert daemon.ask("report", str(daemon.out / "s" / "series.h5"), "--out", str(tmp_path / "r.html")).returncode == 0
    sheet = (tmp_path / "r.html").read_text().split("class='sheet'")[1].split("</div>")[0]
    assert sheet.count("<img") == 6
