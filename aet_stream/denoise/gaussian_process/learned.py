"""The solve of cosines.py in torch, a batch at once, with its gradient: a network is trained through it.

The gradient is written by hand: with the factor that is there already it costs one more solve.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aet_stream.denoise.gaussian_process import cosines, lapack
from aet_stream.denoise.lanes import in_lanes
from aet_stream.projection import Array

KNOTS = (0.0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Where the logarithm of the spectrum is given, in units of cosines.FINEST; linear between."""


class Solution(NamedTuple):
    """What `solve` finds."""

    surface: Tensor
    """(n, rows, columns)"""
    factor: Tensor
    """(n, modes, modes) Cholesky factor of the precision of what was solved for, for `spread`; without a gradient"""


def solve(value: Tensor, weight: Tensor, log_spectrum: Tensor) -> Solution:
    """The smooth surface through observations, see gaussian_process/cosines.py.

    Parameters
    ----------
    value, weight : (n, rows, columns) what was observed and its precision (1 / variance)
    log_spectrum : (n, knots) logarithm of the spectrum at KNOTS
    """
    grid = basis(value.shape[-2], value.shape[-1], value.device)
    log_modes = _log_modes(log_spectrum, grid)
    surface, factor = _Solve.apply(value.double(), weight.double(), log_modes, grid)  # type: ignore[no-untyped-call]
    return Solution(surface.to(value.dtype), factor)


def spread(factor: Tensor, log_spectrum: Tensor, grid: tuple[int, int], frame: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(n,) standard deviation of the surface over the frame: as the spectrum allows it, and as the observations leave it open.

    `factor` and `log_spectrum` as in `solve`; `grid`: its (rows, columns); `frame`: how many of them there are in the frame.
    """
    scale = (_log_modes(log_spectrum, basis(*grid, factor.device)) / 2).exp()
    root, blocks = _frame_root(grid, frame, factor.device), frame[0] * frame[1]
    drawn = scale[:, :, None] * root
    allowed = drawn.square().sum((1, 2))
    left = _whitened(factor, drawn).square().sum((1, 2))
    return (allowed / blocks).sqrt(), (left / blocks).sqrt()


def _whitened(factor: Tensor, columns: Tensor) -> Tensor:
    """(n, modes, m): L^-1 of as many, on a CPU in their place."""
    if factor.device.type != "cpu":
        solved: Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
        return solved
    in_lanes([partial(lapack.solve, lower.numpy(), each.numpy()) for lower, each in zip(factor, columns, strict=True)])
    return columns


@lru_cache(maxsize=16)
def _frame_root(grid: tuple[int, int], frame: tuple[int, int], device: torch.device) -> Tensor:
    """(modes, modes) R: R R^T is the normal matrix of a frame of which every block is seen alike."""
    with torch.inference_mode(False):
        there = torch.zeros((1, *grid), dtype=torch.float64, device=device)
        there[:, : frame[0], : frame[1]] = 1
        its = basis(*grid, device)
        values, vectors = torch.linalg.eigh(_normal_matrix(_products(there, its), its)[0])
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root.contiguous()


class Basis(NamedTuple):
    """A cosines.Basis on a device."""

    rows: Tensor
    columns: Tensor
    chosen: Tensor
    row_products: Tensor
    column_products: Tensor
    pairs: Tensor
    knot: Tensor
    """(modes,) which of KNOTS is the next one above each mode"""
    part: Tensor
    """(modes,) how far it is from the knot before to that one, 0..1"""


@lru_cache(maxsize=16)
def basis(rows: int, columns: int, device: torch.device) -> Basis:
    """Sent there once, not with every solve."""
    grid, knots = cosines.basis(rows, columns), np.array(KNOTS) * cosines.FINEST
    knot = np.searchsorted(knots, grid.frequency).clip(1, len(knots) - 1)
    part = (grid.frequency - knots[knot - 1]) / (knots[knot] - knots[knot - 1])
    arrays = (grid.rows, grid.columns, grid.chosen, grid.row_products, grid.column_products, grid.pairs, knot, part)
    with torch.inference_mode(False):  # what is made in that mode cannot be learned with later
        return Basis(*(torch.as_tensor(array, device=device) for array in arrays))


def _log_modes(log_spectrum: Tensor, grid: Basis) -> Tensor:
    """(n, modes): the spectrum at every mode, linear between the knots."""
    known = log_spectrum.double()
    interpolated: Tensor = (1 - grid.part) * known[:, grid.knot - 1] + grid.part * known[:, grid.knot]
    return interpolated


class _Solve(torch.autograd.Function):
    """Coefficients scaled by sqrt(S), so that the matrix is 1 + something positive; the gradient costs one more solve with its factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, log_modes: Tensor, grid: Basis) -> tuple[Tensor, Tensor]:
        to_modes, to_grid = _transforms(grid)
        scale = (log_modes / 2).exp()  # (n, modes)
        factor = _factor(weight, scale, grid)
        coefficients = _solved(factor, to_modes(weight * value) * scale)
        surface: Tensor = to_grid(coefficients * scale)
        ctx.grid = grid
        ctx.save_for_backward(value, weight, scale, factor, coefficients, surface)
        ctx.mark_non_differentiable(factor)
        return surface, factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, weight, scale, factor, coefficients, surface = ctx.saved_tensors
        to_modes, to_grid = _transforms(ctx.grid)
        adjoint = _solved(factor, to_modes(gradients[0]) * scale)
        back = to_grid(adjoint * scale)
        return weight * back, back * (value - surface), adjoint * coefficients, None


def _factor(weight: Tensor, scale: Tensor, grid: Basis) -> Tensor:
    """(n, modes, modes): Cholesky factor of 1 + what is observed, for coefficients scaled by sqrt(S). On a CPU what stands above its
    diagonal means nothing, and OpenBLAS takes two thirds of the time of torch."""
    products = _products(weight, grid)
    if weight.device.type != "cpu":
        matrix = _normal_matrix(products, grid).mul_(scale[:, :, None]).mul_(scale[:, None, :])
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        factor: Tensor = torch.linalg.cholesky_ex(matrix)[0]  # what is not finite stays so, and is seen by the caller
        return factor
    pairs, made = grid.pairs.numpy(), np.empty((len(weight), *2 * (len(grid.chosen),)))
    in_lanes([partial(_factor_one, *each, pairs) for each in zip(made, products.numpy(), scale.numpy(), strict=True)])
    return torch.from_numpy(made).mT


def _factor_one(matrix: Array, products: Array, scale: Array, pairs: Array) -> None:
    """The same of one, in its place; what has no factor is no number."""
    products.take(pairs, out=matrix.reshape(-1), mode="clip")  # a third of the time of torch
    matrix *= scale[:, None]
    matrix *= scale
    matrix.reshape(-1)[:: len(matrix) + 1] += 1
    if not lapack.factor(matrix.T):
        matrix.fill(np.nan)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    """(n, modes): (L L^T)^-1 of as many."""
    if factor.device.type != "cpu":
        return torch.cholesky_solve(right[..., None], factor)[..., 0]
    solution = right.clone()
    for lower, each in zip(factor, solution, strict=True):
        for transposed in (False, True):
            lapack.solve(lower.numpy(), each.numpy(), transposed=transposed)
    return solution


def _transforms(grid: Basis) -> Any:
    """(grid -> modes, modes -> grid)."""
    rows, columns = grid.rows, grid.columns

    def to_modes(surface: Tensor) -> Tensor:
        return (rows.T @ surface @ columns).flatten(1)[:, grid.chosen]

    def to_grid(coefficients: Tensor) -> Tensor:
        full = coefficients.new_zeros(len(coefficients), rows.shape[1] * columns.shape[1])
        full[:, grid.chosen] = coefficients
        return rows @ full.view(-1, rows.shape[1], columns.shape[1]) @ columns.T

    return to_modes, to_grid


def _products(weight: Tensor, grid: Basis) -> Tensor:
    """(n, pairs of rows * pairs of columns): what the normal matrix is made of, one axis after the other."""
    return (grid.row_products.T @ (weight @ grid.column_products)).flatten(1)


def _normal_matrix(products: Tensor, grid: Basis) -> Tensor:
    """(n, modes, modes): Phi^T W Phi."""
    return products.index_select(1, grid.pairs).view(-1, *2 * (len(grid.chosen),))
