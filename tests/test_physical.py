"""Simulated series of things that turn: what lies on a film is seen where the geometry says, and the truth is what was counted."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.spatial import cKDTree

from aet_stream.cli import main
from aet_stream.simulate.films import PHYSICS, Extent, Physics, ThicknessMap
from aet_stream.simulate.hard_core import CARBON_ATOMS_PER_NM3, CARBON_LEAST_NM, carbon_layer
from aet_stream.simulate.physical import SERIES_KINDS, Instrument, Lie, Slab, View, physical_series

STEADY = Instrument(jitter_px=0.0, drift=0.0, unsteady_px=0.0, stage_deg=0.0, pedestal=0.0)


@pytest.mark.parametrize(("kind", "physics"), list(zip(SERIES_KINDS, PHYSICS * len(SERIES_KINDS), strict=False)))
def test_a_series_of_every_kind_is_its_parts(kind: str, physics: Physics) -> None:
    """raw = clean + background + noise of the strength of its counts; the brightest pixel is what the unit says."""
    series = physical_series(kind, 3, np.array([-50.0, 0.0]), size_px=64, physics=physics, atoms=1500)
    unit = series.geometry.unit_counts
    assert series.clean.max() == pytest.approx(unit, rel=0.35)
    left = (series.raw - series.clean - series.background) / np.sqrt(series.clean + series.background - 11)  # 12 is no signal, 1 is read
    assert abs(left.mean()) < 0.1
    assert left.std() == pytest.approx(1, abs=0.25)
    assert series.background.min() > -0.3 * unit
    assert np.ptp(series.background) > 0.005 * unit


def test_a_series_follows_from_its_seed() -> None:
    """Alone."""
    one, same, other = (physical_series("everything", seed, np.array([-50.0, 0.0]), size_px=48, atoms=800) for seed in (3, 3, 4))
    assert np.array_equal(one.raw, same.raw)
    assert not np.array_equal(one.raw, other.raw)


def test_what_lies_on_a_film_is_seen_where_the_geometry_says() -> None:
    """A spot at (u, y) of a film at a height, turned and sloping: its place and brightness at every tilt."""
    extent, lie = Extent(256, 900.0), Lie(height_px=-40.0, offset_deg=3.0, slope=0.05)
    y, u = extent.axes()
    spot = ThicknessMap(np.exp(-(np.square(y - 30) + np.square(u - 20)) / (2 * 6.0**2)), extent)
    for tilt in (-60.0, 0.0, 50.0):
        seen = Slab(spot, lie).seen(View(tilt, 0.0, 256, 0.05, shift_px=(2.0, -3.0)))
        angle = np.radians(tilt + 3.0)
        row, column = np.unravel_index(np.argmax(seen), seen.shape)
        assert row == pytest.approx(127.5 + 30 + 2, abs=1)
        assert column == pytest.approx(127.5 + 20 * np.cos(angle) + (-40 + 0.05 * 30) * np.sin(angle) - 3, abs=1)
        assert seen.max() == pytest.approx(1 / np.cos(angle), rel=0.03)


def test_a_film_is_thicker_by_the_cosine_and_its_pattern_narrower() -> None:
    """Of one film at two tilts, without noise."""
    series = physical_series("thin-film", 1, np.array([0.0, 60.0]), size_px=128, instrument=STEADY, dose=20_000)
    flat, steep = series.background - series.geometry.pedestals[:, None, None]
    lie = series.geometry.lies[0]
    ratio = np.cos(np.radians(lie.offset_deg)) / np.cos(np.radians(60 + lie.offset_deg))
    assert np.abs(np.diff(steep, axis=1)).mean() > 0.6 * ratio**2 * np.abs(np.diff(flat, axis=1)).mean()


def test_contamination_grows_in_the_order_of_the_exposures() -> None:
    """The same tilt first and last: at the end there is more."""
    series = physical_series("growing-halo", 0, np.array([0.0, 30.0, 0.0]), size_px=96, instrument=STEADY, dose=20_000)
    first, _, last = series.background
    grown = (last - first) / series.geometry.unit_counts
    assert grown.max() > 0.15
    assert grown.min() > -0.02


@pytest.mark.parametrize("density", [1.8, 3.0])
def test_amorphous_carbon_has_its_density_and_no_two_atoms_in_one_place(density: float) -> None:
    """Across the seams of its tiles as well, where a few may be near; the same place holds the same atoms."""
    atoms = carbon_layer(density, 2.0, (-4.0, 4.0), (-9.0, 9.0), seed=1)
    assert len(atoms) == pytest.approx(CARBON_ATOMS_PER_NM3 * density * 2.0 * 8 * 18, rel=0.06)
    nearest = cKDTree(atoms).query(atoms, k=2)[0][:, 1]
    assert np.mean(nearest < 0.98 * CARBON_LEAST_NM) < 0.03
    part = carbon_layer(density, 2.0, (-1.0, 1.0), (2.0, 5.0), seed=1)
    inside = (np.abs(atoms[:, 0]) < 1) & (atoms[:, 1] >= 2) & (atoms[:, 1] < 5)
    assert np.array_equal(np.sort(part, axis=0), np.sort(atoms[inside], axis=0))


def test_carbon_is_smoother_than_atoms_at_random() -> None:
    """Hard cores keep apart: the number of atoms in a column varies less than by chance."""
    atoms = carbon_layer(2.0, 4.0, (-4.0, 4.0), (-20.0, 20.0), seed=2)
    counts, *_ = np.histogram2d(atoms[:, 0], atoms[:, 1], bins=(16, 80))
    assert counts.var() < 0.8 * counts.mean()


@pytest.mark.parametrize("words", [{"kind": "cloud"}, {"physics": "sand"}, {"particle": "sphere"}])
def test_what_cannot_be_made_is_named(words: dict[str, str]) -> None:
    """With the choices there are."""
    with pytest.raises(ValueError, match="choose"):
        physical_series(words.pop("kind", "edge"), 0, np.zeros(2), size_px=32, **words)  # type: ignore[arg-type]


def test_simulate_writes_a_specimen_that_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the kind's name; flakes only where something turns."""
    words = ["simulate", "--out", str(tmp_path / "in"), "--tilts", "3", "--size", "48", "--cadence", "0", "--atoms", "800"]
    assert main([*words, "--background", "two-films", "--flakes", "--name", "two"]) == 0
    with h5py.File(tmp_path / "in.truth" / "two.h5") as file:
        assert file["volume"].shape == (48, 48, 48)
    assert main([*words, "--background", "gaussian", "--flakes"]) != 0
    assert "does not turn" in capsys.readouterr().err
    assert main([*words, "--background", "sky"]) != 0
    assert "two-films" in capsys.readouterr().err
