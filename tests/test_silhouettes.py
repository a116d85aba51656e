"""Where the particle can be, as all tilts have it together: film that was taken for particle, and particle that was taken for film."""

from __future__ import annotations

import numpy as np
import pytest

from aet_stream.denoise.cokriging.silhouettes import carved
from aet_stream.projection import Array

EDGE = 48
TILTS = np.linspace(-75, 75, 21)
HALF = np.array([9.0, 14.0, 7.0])
"""Half axes of an ellipsoid, across the axis, along it and in depth, blocks"""


def shadows(*, axis_deg: float = 0.0, lies: Array | None = None, middle: tuple[float, float] = (3.0, -2.0), rows: int = EDGE) -> Array:
    """(tilts, rows, EDGE) bool, of an ellipsoid whose middle lies off the tilt axis, across and in depth."""
    lies = np.zeros((len(TILTS), 2)) if lies is None else lies
    y, x = np.meshgrid(np.arange(rows) - (rows - 1) / 2, np.arange(EDGE) - (EDGE - 1) / 2, indexing="ij")
    turn = np.radians(axis_deg)
    along, across = y * np.cos(turn) - x * np.sin(turn), x * np.cos(turn) + y * np.sin(turn)
    found = []
    for tilt, (off_along, off_across) in zip(np.radians(TILTS), lies, strict=True):
        at = middle[0] * np.cos(tilt) + middle[1] * np.sin(tilt) + off_across
        wide = np.hypot(HALF[0] * np.cos(tilt), HALF[2] * np.sin(tilt))
        found.append(np.square((across - at) / wide) + np.square((along - off_along) / HALF[1]) < 1)
    return np.array(found)


def carve(supports: Array, *, axis_deg: float = 0.0, lies: Array | None = None, usable: Array | None = None) -> Array | None:
    n = len(supports)
    return carved(
        supports,
        TILTS,
        np.full(n, axis_deg),
        np.zeros((n, 2)) if lies is None else lies,
        np.ones(n, bool) if usable is None else usable,
    )


def test_supports_that_agree_are_left_alone() -> None:
    true = shadows()
    found = carve(true)
    assert found is not None
    assert np.array_equal(found, true)


@pytest.mark.parametrize("axis_deg", [0.0, 90.0, -30.0])
def test_film_that_was_taken_for_particle_is_found_out(axis_deg: float) -> None:
    """At the steepest tilts a half of the frame; what is left holds the particle, and little else. However the axis lies."""
    true = shadows(axis_deg=axis_deg)
    seen, steep = true.copy(), [0, 1, 19, 20]
    seen[steep, :, : EDGE // 2] = True
    usable = np.ones(len(TILTS), bool)
    usable[steep] = False
    found = carve(seen, axis_deg=axis_deg, usable=usable)
    assert found is not None
    for number in steep:
        assert (found[number] & true[number]).sum() > 0.98 * true[number].sum()
        assert found[number].sum() < 1.5 * true[number].sum() < seen[number].sum()
    others = np.setdiff1d(np.arange(len(TILTS)), steep)
    assert np.array_equal(found[others], seen[others])


def test_particle_that_was_taken_for_film_is_found_again() -> None:
    """Most of it at one tilt, all of it at another; a torn one elsewhere spoils nothing."""
    true = shadows()
    seen = true.copy()
    seen[2, :, EDGE // 2 :] = False
    seen[20] = False
    seen[10, : EDGE // 2 - 4] = False
    usable = np.ones(len(TILTS), bool)
    usable[[2, 20]] = False
    found = carve(seen, usable=usable)
    assert found is not None
    for number in (2, 20):
        assert (found[number] & true[number]).sum() > 0.98 * true[number].sum()
        assert found[number].sum() < 1.6 * true[number].sum()


def test_a_specimen_that_moves_is_followed() -> None:
    """By two or three blocks from one exposure to the next; not told, its silhouettes agree about nothing."""
    lies = np.random.default_rng(0).normal(0, 2.5, (len(TILTS), 2))
    true = shadows(lies=lies)
    seen = true.copy()
    seen[20, :, : EDGE // 2] = True
    usable = np.arange(len(TILTS)) != 20
    found = carve(seen, lies=lies, usable=usable)
    assert found is not None
    assert (found[20] & true[20]).sum() > 0.97 * true[20].sum()
    assert found[20].sum() < 1.6 * true[20].sum()
    assert carve(seen, usable=usable) is None


def test_frames_need_not_be_square() -> None:
    true = shadows(rows=36)
    seen = true.copy()
    seen[0, :, EDGE // 2 :] = True
    found = carve(seen, usable=np.arange(len(TILTS)) != 0)
    assert found is not None
    assert (found[0] & true[0]).sum() > 0.98 * true[0].sum()
    assert found[0].sum() < 1.5 * true[0].sum()


def test_nothing_is_said_where_nothing_is_known() -> None:
    """Too few whole silhouettes: a particle that the frame cuts off, totals that are off; or no one thing that turns."""
    true = shadows()
    assert carve(true, usable=np.arange(len(TILTS)) < 8) is None
    cut = true.copy()
    cut[:, 0, 20] = True
    assert carve(cut) is None
    rng = np.random.default_rng(1)
    elsewhere = np.array([np.roll(one, rng.integers(-12, 12, 2), (0, 1)) for one in true])
    assert carve(elsewhere) is None
