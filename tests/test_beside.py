"""Films at the side of a frame, and the particles that they are taken for."""

from __future__ import annotations

import numpy as np
import pytest

from aet_stream.denoise import beside, grid, trust
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.features import describe
from aet_stream.simulate.physical import physical_series

SIZE_PX = 256
COUNTS = 1000.0


def crystal(centre: tuple[float, float], radius: float = 45.0) -> np.ndarray:
    """(256, 256) a ball with a lattice, 1 at most."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - np.array(centre)[:, None, None]
    thickness = np.sqrt(np.clip(1 - (x * x + y * y) / radius**2, 0, None))
    lattice = (1 + np.cos(2 * np.pi * x / 6)) * (1 + np.cos(2 * np.pi * y / 6)) / 4
    return thickness * (0.4 + 0.6 * lattice)


def film(width: float) -> np.ndarray:
    """(256, 256) as bright as a particle, over the left of the frame."""
    return np.broadcast_to(0.8 / (1 + np.exp((np.arange(SIZE_PX) - width) / 2)), (SIZE_PX, SIZE_PX))


def counted(clean: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).poisson(COUNTS * clean + 20).astype(np.float32)


def in_blocks(where: np.ndarray, block_px: int) -> np.ndarray:
    return grid.in_blocks(where, block_px).any((1, 3))


@pytest.mark.parametrize("side", [0, 1, 2, 3])
@pytest.mark.parametrize("centre", [(128, 175), (120, 130)])
def test_a_film_at_any_side_is_no_particle(side: int, centre: tuple[float, float]) -> None:
    """Beside a free particle, and under its rim: it is found; of the particle next to nothing is taken."""
    particle, cover = (np.rot90(part, side) for part in (crystal(centre), film(100.0)))
    blocks = describe(counted(particle + cover))
    is_particle, covered = in_blocks(particle > 0.01, blocks.block_px), in_blocks(cover > 0.4, blocks.block_px)
    found = beside.films(blocks, is_particle | covered)
    assert found[covered & ~is_particle].mean() > 0.75
    assert found[is_particle].mean() < 0.05


@pytest.mark.parametrize("centre", [(128, 10), (20, 20), (128, 128)])
def test_a_particle_cut_by_the_side_is_let_be(centre: tuple[float, float]) -> None:
    """It shows its lattice; a free one beside it, or a smooth one, changes nothing. Nor is one robbed that is dim beside a free one."""
    cut = crystal(centre)
    for clean in (cut, cut + crystal((150, 200), 30.0), film(100.0), crystal((150, 170), 40.0) + 0.2 * crystal((100, 8), 40.0)):
        blocks = describe(counted(clean))
        assert not beside.films(blocks, in_blocks(clean > 0.01, blocks.block_px)).any()


def test_what_covers_a_side_is_subtracted_and_not_trusted(default: Denoiser) -> None:
    """A film beside a free particle at 75 degrees: the particle is left; wherever something reaches the side, trust is not whole."""
    series = physical_series("one-side", 100, np.linspace(-75, 75, 8)[-1:], physics="clouds")
    done = default.subtract(series.raw[0])
    wrong = series.raw[0] - done.clean - series.background[0]
    assert np.sqrt(np.mean(np.square(wrong))) < 0.1 * series.geometry.unit_counts
    cut = counted(crystal((128, 10)))
    evidence = trust.gather(*reversed(default.estimate(cut)))
    assert evidence.at_sides > 0
    assert default.subtract(cut).quality.trust < 0.99


@pytest.fixture(scope="module")
def default() -> Denoiser:
    return Denoiser(device="cpu", threads=1)
