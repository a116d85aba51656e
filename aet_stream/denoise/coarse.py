"""The default network: two small U-Nets on a grid of blocks, each followed by one solve that joins what it knows with what is seen.

Per block, a U-Net says what the background is (residual learning: clean = raw - background), how sure it is of that, how far the observed
mean may be taken for background, where it may change abruptly, and how large its error will be; per frame, how smooth the background is.
The solve (gaussian_process/cosines.py) then takes vacuum as observations and the network's word where there is none. The second U-Net sees
the frame without the background that the first one found, so that faint edges of the particle stand out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise.features import CHANNELS
from aet_stream.denoise.gaussian_process import cosines
from aet_stream.denoise.hardware import has_bfloat16

MULTIPLE = 16
"""Rows and columns of the grid are padded to a multiple of this."""
_KNOTS = (0.0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Where the logarithm of the spectrum is given, in units of cosines.FINEST; linear between."""
_SEEN = len(CHANNELS) + 14
_SAID = 6


@dataclass(frozen=True, slots=True)
class Said:
    """What one stage makes of its frames; (n, rows, columns) each, normalised units."""

    background: Tensor
    own: Tensor
    """The U-Net's own word, before the solve."""
    support: Tensor
    """Logit: particle in this block?"""
    log_error: Tensor
    """Logarithm of the expected error's variance."""
    weight: Tensor
    """Precision of what the solve was told."""
    log_spectrum: Tensor
    """(n, knots): what it assumed, see solve"""


class Coarse(nn.Module):
    """(n, 5, rows, columns) statistics of blocks, (n, rows, columns) 1 where a block is in the frame -> background of every block."""

    def __init__(self, *, widths: tuple[tuple[int, ...], ...] = ((32, 48, 64, 64), (48, 72, 96, 96))) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(width) for width in widths)

    def forward(self, statistics: Tensor, valid: Tensor) -> list[Said]:
        """What every stage says; the last one counts."""
        low = torch.quantile(statistics[:, 0].flatten(1), 0.1, dim=1)[:, None, None].expand_as(valid)
        said: list[Said] = []
        before, support = low, torch.zeros_like(valid)
        for stage in self.stages:
            said.append(stage(statistics, valid, low, before, support))
            before, support = said[-1].background.detach(), torch.sigmoid(said[-1].support.detach())
        return said


class Stage(nn.Module):
    """One U-Net and its solve."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = UNet(4 * _SEEN, 4 * _SAID, widths)
        self.smoothness = nn.Sequential(nn.Linear(2 * (widths[0] + widths[-1]), 64), nn.SiLU(), nn.Linear(64, len(_KNOTS)))
        last = cast(nn.Linear, self.smoothness[-1])
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(torch.tensor([2.0 - 12 * knot for knot in _KNOTS]))

    def forward(self, statistics: Tensor, valid: Tensor, low: Tensor, before: Tensor, support: Tensor) -> Said:
        seen = functional.pixel_unshuffle(_seen(statistics, valid, low, before, support), 2)
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=self.training and has_bfloat16(seen.device.type)):
            said, pooled = self.unet(seen.contiguous(memory_format=torch.channels_last))
        said, pooled = functional.pixel_shuffle(said.float(), 2), pooled.float()
        log_spectrum = self.smoothness(pooled).clamp(-24, 8)
        own = before + said[:, 0]
        log_seen, log_own = (said[:, 1] + 4).clamp(-8, 15), (said[:, 2] + 3).clamp(-8, 15)
        weight = (log_seen.exp() + log_own.exp()) * valid
        share = torch.sigmoid(log_seen - log_own)
        value = share * statistics[:, 0] + (1 - share) * own
        smooth = solve(value, weight, log_spectrum)
        abrupt = torch.sigmoid(said[:, 3] - 4) * (value - smooth) * valid
        background = smooth + functional.conv2d(functional.pad(abrupt[:, None], (1, 1, 1, 1), "replicate"), blur(abrupt))[:, 0]
        return Said(background, own, said[:, 4], said[:, 5] - 6, weight, log_spectrum)


def _seen(statistics: Tensor, valid: Tensor, low: Tensor, before: Tensor, support: Tensor) -> Tensor:
    """(n, _SEEN, rows, columns): levels above the background so far, coarse and magnified, and what is known of it."""
    mean, minimum, maximum = (statistics[:, i] - before for i in range(3))
    deviation, difference = statistics[:, 3], statistics[:, 4]
    magnified = [torch.asinh(10 * mean) / 3, torch.asinh(10 * minimum) / 3, torch.asinh(100 * mean) / 6, torch.asinh(100 * minimum) / 6]
    magnified += [torch.asinh(100 * deviation) / 6, torch.asinh(100 * difference) / 6]
    levels = [mean, minimum, maximum, deviation, difference]
    lower, upper, contrast = _neighbourhood(mean, minimum, maximum, deviation)
    around = [lower.clamp(-5, 5), upper.clamp(-5, 5), contrast.clamp(-5, 5), torch.asinh(10 * lower) / 3, torch.asinh(10 * contrast) / 3]
    return torch.stack([*(level.clamp(-5, 5) for level in levels), *magnified, before - low, support, valid, *around], dim=1)


def _neighbourhood(mean: Tensor, minimum: Tensor, maximum: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum, maximum and standard deviation over 3 x 3 blocks: wide enough for a period of most lattices. The deeper the valleys between
    atomic columns against their height, the more of the mean is particle."""
    lower = -functional.max_pool2d(-minimum, 3, 1, 1)
    upper = functional.max_pool2d(maximum, 3, 1, 1)

    def averaged(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    variance = averaged(mean.square() + deviation.square()) - averaged(mean).square()
    return lower, upper, variance.clamp(min=1e-12).sqrt()


def blur(like: Tensor) -> Tensor:
    """(1, 1, 3, 3) binomial filter: nothing finer than two blocks."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=like.dtype, device=like.device)
    return (line[:, None] * line)[None, None]


class UNet(nn.Module):
    """Residual blocks on four scales; no norms, whose batch statistics would cost accuracy here."""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
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


def solve(value: Tensor, weight: Tensor, log_spectrum: Tensor) -> Tensor:
    """The smooth surface through observations, see gaussian_process/cosines.py.

    Parameters
    ----------
    value, weight : (n, rows, columns) what was observed and its precision (1 / variance)
    log_spectrum : (n, knots) logarithm of the spectrum at _KNOTS

    Returns
    -------
    (n, rows, columns)
    """
    grid = _basis(value.shape[-2], value.shape[-1], value.device)
    log_modes = _log_modes(log_spectrum, grid)
    surface: Tensor = _Solve.apply(value.double(), weight.double(), log_modes, grid)  # type: ignore[no-untyped-call]
    return surface.to(value.dtype)


def spread(said: Said, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) standard deviation of the smooth surface over the frame: as the spectrum allows it, and as the observations leave it open."""
    grid = _basis(valid.shape[-2], valid.shape[-1], valid.device)
    scale = (_log_modes(said.log_spectrum, grid) / 2).exp()
    frame = _normal_matrix(valid.double(), grid) * scale[:, :, None] * scale[:, None, :]
    left = torch.cholesky_inverse(_factor(said.weight.double(), scale, grid))
    blocks = valid.sum((1, 2))
    return (frame.diagonal(dim1=1, dim2=2).sum(1) / blocks).sqrt(), ((left * frame).sum((1, 2)) / blocks).clamp(min=0).sqrt()


class _Basis(NamedTuple):
    """A cosines.Basis on a device."""

    rows: Tensor
    columns: Tensor
    chosen: Tensor
    row_products: Tensor
    column_products: Tensor
    pairs: Tensor
    knot: Tensor
    """(modes,) which of _KNOTS is the next one above each mode"""
    part: Tensor
    """(modes,) how far it is from the knot before to that one, 0..1"""


@lru_cache(maxsize=16)
def _basis(rows: int, columns: int, device: torch.device) -> _Basis:
    """Sent there once, not with every solve."""
    grid, knots = cosines.basis(rows, columns), np.array(_KNOTS) * cosines.FINEST
    knot = np.searchsorted(knots, grid.frequency).clip(1, len(knots) - 1)
    part = (grid.frequency - knots[knot - 1]) / (knots[knot] - knots[knot - 1])
    arrays = (grid.rows, grid.columns, grid.chosen, grid.row_products, grid.column_products, grid.pairs, knot, part)
    with torch.inference_mode(False):  # what is made in that mode cannot be learned with later
        return _Basis(*(torch.as_tensor(array, device=device) for array in arrays))


def _log_modes(log_spectrum: Tensor, grid: _Basis) -> Tensor:
    """(n, modes): the spectrum at every mode, linear between the knots."""
    known = log_spectrum.double()
    found: Tensor = (1 - grid.part) * known[:, grid.knot - 1] + grid.part * known[:, grid.knot]
    return found


class _Solve(torch.autograd.Function):
    """Coefficients scaled by sqrt(S), so that the matrix is 1 + something positive; the gradient costs one more solve with its factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, log_modes: Tensor, grid: _Basis) -> Tensor:
        to_modes, to_grid = _transforms(grid)
        scale = (log_modes / 2).exp()  # (n, modes)
        factor = _factor(weight, scale, grid)
        found = torch.cholesky_solve((to_modes(weight * value) * scale)[..., None], factor)[..., 0]
        surface: Tensor = to_grid(found * scale)
        ctx.grid = grid
        ctx.save_for_backward(value, weight, scale, factor, found, surface)
        return surface

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, weight, scale, factor, found, surface = ctx.saved_tensors
        to_modes, to_grid = _transforms(ctx.grid)
        adjoint = torch.cholesky_solve((to_modes(gradients[0]) * scale)[..., None], factor)[..., 0]
        back = to_grid(adjoint * scale)
        return weight * back, back * (value - surface), adjoint * found, None


def _factor(weight: Tensor, scale: Tensor, grid: _Basis) -> Tensor:
    """(n, modes, modes): Cholesky factor of 1 + what is observed, for coefficients scaled by sqrt(S)."""
    matrix = _normal_matrix(weight, grid) * scale[:, :, None] * scale[:, None, :]
    matrix.diagonal(dim1=1, dim2=2).add_(1)
    factor: Tensor = torch.linalg.cholesky_ex(matrix)[0]  # what is not finite stays so, and is seen by the caller
    return factor


def _transforms(grid: _Basis) -> Any:
    """(grid -> modes, modes -> grid)."""
    rows, columns = grid.rows, grid.columns

    def to_modes(surface: Tensor) -> Tensor:
        return (rows.T @ surface @ columns).flatten(1)[:, grid.chosen]

    def to_grid(coefficients: Tensor) -> Tensor:
        full = coefficients.new_zeros(len(coefficients), rows.shape[1] * columns.shape[1])
        full[:, grid.chosen] = coefficients
        return rows @ full.view(-1, rows.shape[1], columns.shape[1]) @ columns.T

    return to_modes, to_grid


def _normal_matrix(weight: Tensor, grid: _Basis) -> Tensor:
    """(n, modes, modes): Phi^T W Phi, one axis after the other."""
    products = (grid.row_products.T @ (weight @ grid.column_products)).flatten(1)
    return products[:, grid.pairs].view(-1, len(grid.chosen), len(grid.chosen))
