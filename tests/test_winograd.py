"""Convolutions that are compiled for this computer, and U-Nets made of them, against torch in double precision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise.coarse import UNet
from aet_stream.denoise.unet_on_cpu import UNetOnCpu, at_home
from aet_stream.denoise.winograd import Convolution, Surface
from aet_stream.projection import Array

ROUNDING = 3e-6
"""Of sums over some hundred float32 numbers about 1."""


def random(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def surface(pixels: Array) -> Surface:
    """(rows, columns, channels)"""
    made = Surface(*pixels.shape)
    made.inside[...] = pixels
    return made


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (4, 3), (1, 1), (7, 18)])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 48), (72, 32), (8, 8)])
def test_a_convolution_is_that_of_the_formula(rows: int, columns: int, inputs: int, outputs: int) -> None:
    """Alone and added to what is there; a second one on its result sees the same rim of zeros."""
    given, before = random(rows, columns, inputs), random(rows, columns, outputs)
    weight, bias = random(outputs, inputs, 3, 3) / np.float32(3 * inputs**0.5), random(outputs)
    x = torch.from_numpy(given).double().permute(2, 0, 1)[None]
    expected = functional.conv2d(x, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), padding=1)[0].permute(1, 2, 0)
    layer = Convolution(weight, bias)
    active, scratch = Surface(rows, columns, outputs), np.full(layer.scratch, np.nan, np.float32)
    for add in (False, True):
        total, wanted = surface(before), expected + add * torch.from_numpy(before)
        layer(surface(given), total, active, scratch, add=add)
        assert np.abs(total.inside - wanted.numpy()).max() < ROUNDING * wanted.abs().max()
        assert np.abs(active.inside - functional.silu(wanted).numpy()).max() < ROUNDING * wanted.abs().max()
        for result in (total, active):
            behind = result.memory[:-outputs].copy()
            behind.reshape(-1, 2 * -(-columns // 2) + 2, outputs)[1 : 1 + rows, 1 : 1 + columns] = 0
            assert not behind.any()


def test_what_is_no_number_stays_none_and_what_is_large_stays_finite() -> None:
    """As with torch: a network of broken weights is found out, and SiLU overflows nowhere."""
    layer = Convolution(np.eye(8, dtype=np.float32)[:, :, None, None] * np.pad([[1.0]], 1), np.zeros(8, np.float32))
    pixels = np.zeros((6, 6, 8), np.float32)
    pixels[0, 0], pixels[5, 5, 0], pixels[5, 0, 0] = np.nan, 1e6, -1e6
    total, active = Surface(6, 6, 8), Surface(6, 6, 8)
    layer(surface(pixels), total, active, np.empty(layer.scratch, np.float32))
    assert np.isnan(total.inside[0, 0]).all()
    assert np.isnan(active.inside[0, 0]).all()
    assert active.inside[5, 5, 0] == 1e6
    assert active.inside[5, 0, 0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("inputs", "outputs", "widths"), [(76, 24, (32, 48, 64, 64)), (39, 4, (24, 32, 48)), (13, 5, (12, 20, 30))])
def test_a_unet_on_a_cpu_is_the_same_function(inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
    """To rounding, of every grid of a batch; widths that fill no vectors among them. Threads do not disturb each other, to the last bit."""
    torch.manual_seed(0)
    plain = UNet(inputs, outputs, widths).eval()
    ours, x = UNetOnCpu(plain), torch.randn(3, inputs, 16, 24)
    with torch.inference_mode():
        found, pooled = ours(x)
        exact, of_frame = plain.double()(x.double())
        assert found.shape == exact.shape
        assert (found - exact).abs().max() < ROUNDING * exact.abs().max()
        assert (pooled - of_frame).abs().max() < ROUNDING * of_frame.abs().max()
    with ThreadPoolExecutor(3) as threads:
        for again, _ in threads.map(torch.inference_mode()(ours), repeat(x, 12)):
            assert torch.equal(again, found)


class _Away(nn.Module):
    """A network on a GPU, as far as one is needed to tell: its weights cannot be read before they are brought here."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(13, 5, (12, 20)).eval()
        self.kept = {name: value.clone() for name, value in self.unet.state_dict().items()}
        self.unet.to("meta")

    def to(self, *args: Any, **kwargs: Any) -> _Away:
        self.unet.to_empty(device="cpu").load_state_dict(self.kept)
        return super().to(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.unet(x)[0]
        return output


def test_a_network_comes_home_from_a_gpu() -> None:
    """Whose memory is full, in the middle of a series."""
    x, there = torch.randn(1, 13, 8, 8), _Away()
    plain = UNet(13, 5, (12, 20)).eval()
    plain.load_state_dict(there.kept)
    with torch.inference_mode():
        here = at_home(there, torch.device("cpu"))
        assert isinstance(here.unet, UNetOnCpu)
        assert torch.allclose(here(x), plain(x)[0], atol=1e-5)
