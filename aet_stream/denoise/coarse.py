"""The default network: two small U-Nets on a grid of blocks, each followed by one solve that joins what it knows with what is seen.

Per block, a U-Net says what the background is (residual learning: clean = raw - background), how sure it is of that, how far the observed
mean may be taken for background, where it may change abruptly, and how large its error will be; per frame, how smooth the background is.
The solve (gaussian_process/cosines.py) then takes vacuum as observations and the network's word where there is none. The second U-Net sees
the frame without the background that the first one found, so that faint edges of the particle stand out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise.features import CHANNELS
from aet_stream.denoise.gaussian_process import learned
from aet_stream.denoise.hardware import has_bfloat16

MULTIPLE = 16
"""Rows and columns of the grid are padded to a multiple of this."""
_INPUTS = len(CHANNELS) + 14
_OUTPUTS = 6


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What one stage makes of its frames; (n, rows, columns) each, normalised units."""

    background: Tensor
    before_solve: Tensor
    """What the U-Net would draw alone."""
    support: Tensor
    """Logit: particle in this block?"""
    log_error: Tensor
    """Logarithm of the expected error's variance."""
    weight: Tensor
    """Precision of what the solve was given."""
    log_spectrum: Tensor
    """(n, knots): what it assumed, see learned.solve"""
    factor: Tensor
    """(n, modes, modes): how sure it is, see learned.Solution"""


class Coarse(nn.Module):
    """(n, 5, rows, columns) statistics of blocks, (n, rows, columns) 1 where a block is in the frame -> background of every block."""

    def __init__(self, *, widths: tuple[tuple[int, ...], ...] = ((32, 48, 64, 64), (48, 72, 96, 96))) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(width) for width in widths)

    def forward(self, statistics: Tensor, valid: Tensor) -> list[StageOutput]:
        """The output of every stage; the last one counts."""
        low = quantile(statistics[:, 0].flatten(1), 0.1)[:, None, None].expand_as(valid)
        outputs: list[StageOutput] = []
        before, support = low, torch.zeros_like(valid)
        for stage in self.stages:
            outputs.append(stage(statistics, valid, low, before, support))
            before, support = outputs[-1].background.detach(), torch.sigmoid(outputs[-1].support.detach())
        return outputs


class Stage(nn.Module):
    """One U-Net and its solve."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = UNet(4 * _INPUTS, 4 * _OUTPUTS, widths)
        self.smoothness = nn.Sequential(nn.Linear(2 * (widths[0] + widths[-1]), 64), nn.SiLU(), nn.Linear(64, len(learned.KNOTS)))
        last = cast(nn.Linear, self.smoothness[-1])
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(torch.tensor([2.0 - 12 * knot for knot in learned.KNOTS]))

    def forward(self, statistics: Tensor, valid: Tensor, low: Tensor, before: Tensor, support: Tensor) -> StageOutput:
        inputs = functional.pixel_unshuffle(_inputs(statistics, valid, low, before, support), 2)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.training and has_bfloat16(inputs.device.type)):
            output, pooled = self.unet(inputs.contiguous(memory_format=torch.channels_last))
        output, pooled = functional.pixel_shuffle(output.float(), 2), pooled.float()
        log_spectrum = self.smoothness(pooled).clamp(-24, 8)
        own = before + output[:, 0]
        log_seen, log_own = (output[:, 1] + 4).clamp(-8, 15), (output[:, 2] + 3).clamp(-8, 15)
        weight = (log_seen.exp() + log_own.exp()) * valid
        share = torch.sigmoid(log_seen - log_own)
        value = share * statistics[:, 0] + (1 - share) * own
        smooth, factor = learned.solve(value, weight, log_spectrum)
        abrupt = torch.sigmoid(output[:, 3] - 4) * (value - smooth) * valid
        background = smooth + functional.conv2d(functional.pad(abrupt[:, None], (1, 1, 1, 1), "replicate"), blur(abrupt))[:, 0]
        return StageOutput(background, own, output[:, 4], output[:, 5] - 6, weight, log_spectrum, factor)


def _inputs(statistics: Tensor, valid: Tensor, low: Tensor, before: Tensor, support: Tensor) -> Tensor:
    """(n, _INPUTS, rows, columns): levels above the background so far, coarse and magnified, and what is known of it."""
    levels = torch.cat([statistics[:, :3] - before[:, None], statistics[:, 3:]], 1)
    mean, minimum, maximum, deviation, difference = levels.unbind(1)
    lower, upper, contrast = _neighbourhood(mean, minimum, maximum, deviation)
    coarse = magnified(torch.stack([mean, minimum, lower, contrast], 1), 10)
    fine = magnified(torch.stack([mean, minimum, deviation, difference], 1), 100)
    around = torch.stack([before - low, support, valid, *(part.clamp(-5, 5) for part in (lower, upper, contrast))], 1)
    return torch.cat([levels.clamp(-5, 5), coarse[:, :2], fine, around, coarse[:, 2:]], 1)


def magnified(values: Tensor, scale: float) -> Tensor:
    """Differences, so that small ones are told apart and large ones stay in bounds: asinh(scale values) / (3 lg scale). torch's own asinh
    takes four times as long on a CPU."""
    size = (scale * values).abs()
    return torch.log1p(size + size.square() / (1 + (1 + size.square()).sqrt())).copysign(values) / (3 * math.log10(scale))


def _neighbourhood(mean: Tensor, minimum: Tensor, maximum: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum, maximum and standard deviation over 3 x 3 blocks: wide enough for a period of most lattices. The deeper the valleys between
    atomic columns against their height, the more of the mean is particle."""
    lower = -functional.max_pool2d(-minimum, 3, 1, 1)
    upper = functional.max_pool2d(maximum, 3, 1, 1)

    def averaged(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    variance = averaged(mean.square() + deviation.square()) - averaged(mean).square()
    return lower, upper, variance.clamp(min=1e-12).sqrt()


def quantile(values: Tensor, share: float) -> Tensor:
    """(n,) of (n, m), as torch.quantile, which sorts them all."""
    at = share * (values.shape[1] - 1)
    low, high = (values.kthvalue(1 + k, dim=1).values for k in (int(at), min(int(at) + 1, values.shape[1] - 1)))
    return low + (at - int(at)) * (high - low)


def blur(like: Tensor) -> Tensor:
    """(1, 1, 3, 3) binomial filter: nothing finer than two blocks."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=like.dtype, device=like.device)
    return (line[:, None] * line)[None, None]


class UNet(nn.Module):
    """Residual blocks on four scales; no norms, whose batch statistics would cost accuracy here."""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.first = nn.Conv2d(inputs, widths[0], 3, padding=1)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(Residual(a), Residual(a)) for a in widths)
        self.pool = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.widen = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.Sequential(Residual(a), Residual(a)) for a, _ in pairs)
        self.last = nn.Conv2d(widths[0], outputs, 3, padding=1)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            cast(Tensor, self.last.bias).zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """((n, outputs, y, x), (n, features) of the whole frame)"""
        x = self.first(x)
        passed: list[Tensor] = []
        for scale, down in enumerate(self.down):
            x = down(x)
            if scale < len(self.pool):
                passed.append(x)
                x = self.pool[scale](x)
        deep = x
        for scale in reversed(range(len(self.up))):
            x = self.up[scale](passed[scale] + self.widen[scale](x))
        pooled = [f(part, (2, 3)) for part in (deep, x) for f in (torch.mean, torch.amax)]
        return self.last(x), torch.cat(pooled, dim=1)


class Residual(nn.Module):
    """x + a small step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.two.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.two(functional.silu(self.one(functional.silu(x)))))
