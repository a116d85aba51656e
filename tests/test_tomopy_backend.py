"""What we promise tomopy and what we make of its answers, with a recording stand-in; tomopy itself: test_apart.py."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import tomopy_backend
from tests.test_reconstruct import BLOBS, TILTS_DEG, place_of, views_of


class FakeTomopy:
    """Records what `recon` is given, and answers with a mark at a known place, shifted as the real gridrec would shift it."""

    def __init__(self, x: int = 5, y: int = -3) -> None:
        self.calls: list[SimpleNamespace] = []
        self._x, self._y = x, y

    def recon(self, tomo: Array, theta: Array, *, center: float, algorithm: str, sinogram_order: bool, **options: Any) -> Array:
        self.calls.append(
            SimpleNamespace(tomo=tomo, theta=theta, center=center, algorithm=algorithm, order=sinogram_order, options=options)
        )
        width = tomo.shape[2]
        volume = np.zeros((tomo.shape[1], width, width), np.float32)
        middle = (width - 1) / 2
        row, column = middle - self._y, middle + self._x
        if algorithm == "gridrec":  # (-0.5, +0.5) for even widths, (-1, +1) for odd ones
            off = 0.5 if width % 2 == 0 else 1.0
            row, column = row - off, column + off
            volume[:, 0, :] = volume[:, :, -1] = 1e30  # memory that it never wrote
        r, c = np.indices((width, width))
        volume += np.exp(-((r - row) ** 2 + (c - column) ** 2) / 8).astype(np.float32) * (volume == 0)
        tomo[:] = -1  # tomopy may write into its input
        return volume


def solved(algorithm: str, width: int = 48, **options: Any) -> tuple[FakeTomopy, Array]:
    fake = FakeTomopy()
    volume = tomopy_backend.solve(
        views_of(BLOBS, TILTS_DEG, width=width), TILTS_DEG, algorithm=algorithm, tomopy=as_module(fake), **options
    )
    return fake, volume


def as_module(fake: FakeTomopy) -> ModuleType:
    module = ModuleType("tomopy")
    module.recon = fake.recon  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("width", [48, 47])
@pytest.mark.parametrize("algorithm", ["sirt", "art", "bart", "tv"])
def test_iterative_algorithms_get_the_axis_in_pixel_edges(algorithm: str, width: int) -> None:
    """N/2 is the middle for them, for even and odd widths; angles are radians, iterations a whole number, slices lie along axis 1."""
    fake, volume = solved(algorithm, width, iterations=np.int64(7), threads=2)
    (call,) = fake.calls
    assert (call.algorithm, call.center, call.order) == (algorithm, width / 2, False)
    assert call.tomo.shape == (29, 17, width)
    assert call.options == {"num_iter": 7, "ncore": 2}
    assert type(call.options["num_iter"]) is int
    np.testing.assert_allclose(call.theta, np.radians(TILTS_DEG))
    assert volume.shape == (17, width, width)


@pytest.mark.parametrize("width", [48, 47])
def test_gridrec_is_padded_and_gets_the_axis_in_pixel_centres(width: int) -> None:
    """32 columns are added on both sides, the axis is (W - 1)/2 of the padded width, and no iterations are passed on."""
    fake, _ = solved("gridrec", width, threads=3)
    (call,) = fake.calls
    assert call.tomo.shape == (29, 17, width + 64)
    assert call.center == (width + 64 - 1) / 2
    assert call.options == {"ncore": 3}


@pytest.mark.parametrize("width", [48, 47])
@pytest.mark.parametrize("algorithm", ["sirt", "gridrec"])
def test_all_algorithms_agree_about_where_things_are(algorithm: str, width: int) -> None:
    """A mark at X = 5, Y = -3 ends at row (N-1)/2 - Y, column (N-1)/2 + X, and nothing of gridrec's unwritten edge is left."""
    _, volume = solved(algorithm, width)
    assert volume.shape == (17, width, width)
    assert volume.dtype == np.float32
    assert place_of(volume, 5, -3, 8) == pytest.approx((5, -3, 8), abs=0.02)
    assert 0.93 < volume.max() < 1.01


def test_our_projections_are_never_written_to() -> None:
    """tomopy gets a contiguous float32 copy, whatever we have: read-only, float64 or a view."""
    views = views_of(BLOBS, TILTS_DEG)
    read_only = views.copy()
    read_only.flags.writeable = False
    for given in (read_only, views.astype(np.float64), np.asfortranarray(views), views[:, ::-1][:, ::-1]):
        fake = FakeTomopy()
        tomopy_backend.solve(given, TILTS_DEG, algorithm="sirt", tomopy=as_module(fake))
        tomo = fake.calls[0].tomo
        assert tomo.dtype == np.float32
        assert tomo.flags.c_contiguous
        assert tomo.flags.writeable
        np.testing.assert_array_equal(given, views)


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        ("mlem", "negative values"),
        ("osem", "divides by zero"),
        ("ospml_hybrid", "NaN"),
        ("pml_quad", "NaN"),
        ("grad", "diverges"),
        ("fbp", "without a filter"),
        ("magic", "not been checked"),
    ],
)
def test_unsafe_algorithms_are_refused_with_the_reason(algorithm: str, why: str) -> None:
    """Nothing is handed to tomopy that would come back as nonsense; the safe ones are named."""
    fake = FakeTomopy()
    with pytest.raises(ReconstructionError, match=f"{why}.*choose gridrec, sirt"):
        tomopy_backend.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, algorithm=algorithm, tomopy=as_module(fake))
    assert fake.calls == []


def test_values_that_are_not_finite_never_reach_tomopy() -> None:
    """One NaN would spoil a whole slice; the row is named."""
    views, fake = views_of(BLOBS, TILTS_DEG), FakeTomopy()
    views[6, 1, 2] = np.nan
    with pytest.raises(ReconstructionError, match="row 6"):
        tomopy_backend.solve(views, TILTS_DEG, algorithm="sirt", tomopy=as_module(fake))
    assert fake.calls == []
