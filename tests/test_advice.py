"""Advice: each piece with its figure and the limit that it broke, from real pixels; nothing where all is well."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from aet_stream.config import Advice
from aet_stream.consistency import intensity_ratio, mass_residual_px
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.monitor.advice import Adviser, Hint
from aet_stream.monitor.frame_metrics import measured, row_jump
from aet_stream.monitor.frames import grey_png
from aet_stream.monitor.series_cache import Row
from aet_stream.projection import Array

EDGE_PX = 96
TILTS = np.arange(-50.0, 51.0, 10.0)
BAD = 4
"""Which projection is spoilt."""


def particle(tilt_deg: float, *, shift_px: float = 0.0, bitten: bool = False) -> Array:
    """Clean: an uneven blob that turns about an axis beside it; counts."""
    y, x = np.mgrid[:EDGE_PX, :EDGE_PX].astype(np.float32) - (EDGE_PX - 1) / 2
    tilt = np.radians(tilt_deg)
    x = x - 6 * np.cos(tilt) - 4 * np.sin(tilt) - shift_px
    image = 1000 * np.exp(-(x * x + y * y) / 120) + 700 * np.exp(-((x - 5) ** 2 + (y + 9) ** 2) / 30)
    if bitten:
        image[y > -4] = 0
    return (image + np.random.default_rng(int(tilt_deg) + 90).normal(0, 3, image.shape)).astype(np.float32)


def row(number: int, tilt_deg: float, clean: Array, raw: Array | None = None, **figures: Any) -> Row:
    raw = np.rint(clean + 200).clip(0).astype("<u2") if raw is None else raw
    quality = Denoiser(model="constant").subtract(raw).quality
    return {
        "number": number,
        "tilt_deg": tilt_deg,
        "trust": 0.9,
        "trust_in_series": 0.9,
        "vacuum_noise": 3.0,
        **{name: getattr(quality, name) for name in ("total_intensity", "mass_x_px", "mass_y_px", "edge_contact")},
        **measured(raw, clean).figures,
        **figures,
        "image": clean,
    }


def in_series(rows: list[Row]) -> list[Row]:
    """With what the hub adds when it has all rows."""
    tilts, totals, x, y = (np.array([row[name] for row in rows]) for name in ("tilt_deg", "total_intensity", "mass_x_px", "mass_y_px"))
    added = zip(intensity_ratio(totals).tolist(), mass_residual_px(tilts, x, y).tolist(), strict=True)
    return [row | {"intensity_ratio": ratio, "mass_residual_px": px} for row, (ratio, px) in zip(rows, added, strict=True)]


@cache
def good_rows() -> tuple[Row, ...]:
    return tuple(row(number, tilt, particle(tilt)) for number, tilt in enumerate(TILTS))


def hints(*, limits: Advice | None = None, more: list[Row] | None = None, spoilt: Row | None = None) -> list[Hint]:
    rows = list(good_rows())
    if spoilt is not None:
        rows[BAD] = spoilt
    return Adviser(limits or Advice(), in_series([*rows, *(more or [])]), EDGE_PX, lambda one: one["image"]).hints()


def test_a_good_series_needs_no_advice() -> None:
    """Eleven tilts of a turning particle and a repeat of the first: nothing to say."""
    assert hints(more=[row(11, TILTS[0], particle(TILTS[0]))]) == []


@pytest.mark.parametrize("shape", [(8, 1024), (1024, 8), (8, 8192), (96, 96)])
def test_a_flat_frame_is_looked_at_like_any_other(shape: tuple[int, int]) -> None:
    """Its picture has pixels."""
    clean = np.zeros(shape, np.float32)
    clean[shape[0] // 2 :, shape[1] // 2 :] = 100
    seen = measured(clean.astype("<u2"), clean)
    assert grey_png(seen.small).startswith(b"\x89PNG")


def clipped_raw() -> Array:
    raw = np.rint(particle(TILTS[BAD]) + 200).astype("<u2")
    raw[:4, :12] = 4095
    return raw


def jumped() -> Array:
    clean = particle(TILTS[BAD])
    clean[EDGE_PX // 2 :] = np.roll(clean[EDGE_PX // 2 :], 9, axis=1)
    return clean


def at_the_edge() -> Array:
    clean = particle(TILTS[BAD])
    clean[:, :2] = 900
    return clean


T = float(TILTS[BAD])
CASES: dict[str, tuple[Callable[[], Row], str, float, str]] = {
    "clipped": (lambda: row(BAD, T, particle(T), clipped_raw()), "clipped", 48 / EDGE_PX**2, "clipped_above"),
    "trust": (lambda: row(BAD, T, particle(T), trust_in_series=0.21), "trust", 0.21, "trust_below"),
    "drift": (lambda: row(BAD, T, particle(T, shift_px=8)), "drift", 8 / EDGE_PX, "drift_above"),
    "jump": (lambda: row(BAD, T, jumped()), "jump", row_jump(jumped()), "row_jump_above"),
    "noise": (lambda: row(BAD, T, particle(T), vacuum_noise=7.5), "noise", 2.5, "noise_above"),
    "lost": (lambda: row(BAD, T, 0.5 * particle(T)), "intensity", 0.5, "intensity_change_above"),
    "edge": (lambda: row(BAD, T, at_the_edge()), "edge", (EDGE_PX + 2) / (4 * EDGE_PX - 4), "edge_above"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_with_figure_and_limit(name: str) -> None:
    """The one bad projection, by its kind, figure, limit and setting; a limit beyond the figure silences it."""
    made, kind, figure, setting = CASES[name]
    spoilt = made()
    found = hints(spoilt=spoilt)
    assert {hint.number for hint in found} == {BAD}
    (hint,) = (hint for hint in found if hint.kind == kind)
    assert hint.tilt_deg == T
    assert hint.figure == pytest.approx(figure, rel=0.03, abs=0.02)  # of the border, in whole blocks
    assert hint.limit == getattr(Advice(), setting)
    assert hint.setting == f"advice.{setting}"
    beyond = 0.8 * hint.figure if setting.endswith("below") else 1.25 * hint.figure
    lenient = msgspec.structs.replace(Advice(), **{setting: beyond})
    assert kind not in {other.kind for other in hints(spoilt=spoilt, limits=lenient)}
    assert hints(spoilt=spoilt, limits=Advice(enabled=False)) == []


def test_a_jump_is_one_in_any_unit() -> None:
    """A detector may count in amperes; a frame without anything in it has no jump."""
    assert row_jump(jumped() * np.float32(1e-15)) == pytest.approx(row_jump(jumped()), rel=1e-3)
    assert row_jump(np.zeros((64, 64), np.float32)) == 0


def test_damage_is_seen_against_the_first_image_at_the_same_tilt() -> None:
    """A repeat without its lower part: less alike than the limit, and less of it; the first image is not blamed."""
    first, again = particle(0.0), particle(0.0, bitten=True)
    found = [hint for hint in hints(more=[row(11, 0.1, again)]) if hint.kind == "damage"]
    assert [hint.number for hint in found] == [11, 11]
    alike, less = sorted(found, key=lambda hint: hint.setting, reverse=True)
    assert (alike.setting, alike.limit) == ("advice.damage_likeness_below", 0.9)
    assert np.corrcoef(first.ravel(), again.ravel())[0, 1] <= alike.figure < 0.9  # the best of all displacements
    assert (less.setting, less.limit) == ("advice.damage_intensity_above", 0.1)
    assert less.figure == pytest.approx(1 - again.sum() / first.sum(), rel=0.01)
    assert "+0.0°" in less.text


def test_a_moved_particle_is_no_damage() -> None:
    """A repeat that drifted by a few pixels is the same particle: drift, if anything, not damage."""
    assert "damage" not in {hint.kind for hint in hints(more=[row(11, 0.0, particle(0.0, shift_px=6))])}


def test_a_blank_frame_is_to_be_retaken_and_does_not_count() -> None:
    """Every pixel the same: said, and not taken for what is usual."""
    blank = row(BAD, T, np.zeros((EDGE_PX, EDGE_PX), np.float32), blank=1)
    (hint,) = hints(spoilt=blank)
    assert (hint.number, hint.kind) == (BAD, "blank")
    assert "retake" in hint.text


def test_too_few_projections_have_no_law() -> None:
    """With four tilts nobody can say what is usual: no drift, no noise, no lost particle."""
    rows = [row(number, tilt, particle(tilt, shift_px=20.0 * (number == 1))) for number, tilt in enumerate(TILTS[:4])]
    adviser = Adviser(Advice(), in_series(rows), EDGE_PX, lambda one: one["image"])
    assert adviser.law is None
    assert adviser.hints() == []
