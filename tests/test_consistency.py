"""A series judges its own projections: total intensity and centre of mass over tilt."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.consistency import intensity_ratio, mass_residual_px
from aet_stream.simulate import microscope
from aet_stream.simulate.series import simulate_series
from tests.harness import Daemon

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


def test_a_series_shows_which_projection_does_not_fit(tmp_path: Path) -> None:
    """One projection of a simulated series is shifted by 12 px: the stored figures point at it, and at no other."""
    series = simulate_series(seed=3, tilts_deg=TILTS[::3], size_px=128, kind="gaussian")
    images = series.raw.copy()
    images[4] = np.roll(images[4], 12, axis=1)
    daemon = Daemon(tmp_path)
    microscope.write(daemon.root / "s", microscope.shots(images, series.tilts_deg, series.pixel_size_nm, ["tiff"], []), told=lambda _: None)
    assert daemon.run("--until-idle", "2") == 0
    with h5py.File(daemon.out / "s" / "series.h5") as file:
        order = np.argsort(file["/exchange/theta"][()])
        residual = file["/aet/projection/mass_residual_px"][()][order]
        ratio = file["/aet/projection/intensity_ratio"][()][order]
    assert int(np.argmax(residual)) == 4
    assert residual[4] == pytest.approx(12, abs=3)
    assert np.delete(residual, 4).max() < 4
    assert np.abs(ratio - 1).max() < 0.3
