"""Fine detail of the visible background: taken out where it is seen, left alone where it is noise or hidden."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from aet_stream.denoise import detail, grid
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.projection import Array

ROWS, COLUMNS = 64, 50
Y, X = np.mgrid[:ROWS, :COLUMNS]
FROM_MIDDLE = np.hypot(Y - ROWS / 2, X - COLUMNS / 2)
VACUUM = FROM_MIDDLE > 14


def texture(length: float, seed: int = 0) -> Array:
    """Of standard deviation 1; not periodic."""
    noise = np.random.default_rng(seed).normal(size=(ROWS + 40, COLUMNS + 40))
    smooth: Array = gaussian_filter(noise, length)[20:-20, 20:-20]
    return smooth / smooth.std()


@pytest.mark.parametrize("length", [0.8, 1.5, 4.0])
def test_texture_of_the_vacuum_is_found_and_fades_out_under_the_particle(length: float) -> None:
    """Whatever stands under the particle (here: much) has no say."""
    truth = texture(length)
    found = detail.of_vacuum(truth + 100 * ~VACUUM, VACUUM, np.zeros((ROWS, COLUMNS)))
    assert np.std((found - truth)[VACUUM]) < 0.05
    assert np.abs(found).max() < 1.3 * np.abs(truth).max()
    assert np.std(found[FROM_MIDDLE < 3]) < 0.7


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_texture_is_found_through_noise_as_far_as_it_can_be(noise: float) -> None:
    """Better than the blocks themselves, and better than nothing."""
    truth = texture(2.0)
    seen = truth + np.random.default_rng(1).normal(0, noise, truth.shape)
    found = detail.of_vacuum(seen, VACUUM, np.full(truth.shape, noise**2))
    error = np.std((found - truth)[VACUUM])
    assert error < 0.6 * noise
    assert error < 0.6


def test_noise_is_left_in_the_projection() -> None:
    """Taking it out would make a vacuum that no detector has seen, and tell tomography a lie."""
    noise = np.random.default_rng(2).normal(size=(ROWS, COLUMNS))
    assert np.std(detail.of_vacuum(noise, VACUUM, np.ones_like(noise))) < 0.15


def test_where_the_vacuum_says_nothing_nothing_is_added() -> None:
    """Too little vacuum, no residual, no number."""
    truth, none = texture(2.0), np.zeros((ROWS, COLUMNS))
    assert not detail.of_vacuum(truth, FROM_MIDDLE < 4, none).any()
    assert not detail.of_vacuum(none, VACUUM, none).any()
    assert not detail.of_vacuum(np.where(VACUUM, np.nan, 0), VACUUM, none).any()


@pytest.mark.parametrize("block", [1, 2, 4, 16])
def test_what_is_drawn_has_the_means_of_its_blocks(block: int) -> None:
    """Also where the last blocks are not full."""
    height, width = 20 * block - block // 2, 17 * block
    means = np.random.default_rng(3).normal(size=(20, 17)).astype(np.float32)
    drawn = grid.draw_means(means, block, (height, width))
    assert np.abs(grid.statistics(drawn, block)[0] - means).max() < 1e-4


def test_ripples_of_a_film_are_gone_from_the_vacuum() -> None:
    """A period of 18 px at 256 px is too fine for the network's own solve; a particle in the middle stays as it was."""
    y, x = np.mgrid[:256, :256]
    ripples = (0.1 * np.sin(2 * np.pi * (x + y) / 18)).astype(np.float32)
    particle = (np.exp(-(np.maximum(np.hypot(y - 128, x - 128) - 40, 0) ** 2) / 8) * (0.7 + 0.3 * np.sin(x) * np.sin(y))).astype(np.float32)
    clean = Denoiser(model="default").subtract(1 + ripples + particle).clean
    far = np.hypot(y - 128, x - 128) > 60
    assert clean[far].std() < 0.1 * ripples.std()
    inside = np.hypot(y - 128, x - 128) < 38
    assert np.corrcoef(clean[inside], particle[inside])[0, 1] > 0.9
