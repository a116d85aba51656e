"""The U-Nets of the default network as a CPU takes least time for them: coarse.UNet without a gradient, the same to rounding."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise import coarse
from aet_stream.denoise.lanes import in_lanes
from aet_stream.denoise.winograd import LANES, Convolution, Surface
from aet_stream.projection import Array


def at_home(model: nn.Module, device: torch.device) -> nn.Module:
    """A network, ready to be asked on this device: on a CPU with U-Nets of this file."""
    placed: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":  # where its weights are now, whatever they come from
        for module in list(placed.modules()):
            for name, part in module.named_children():
                if isinstance(part, coarse.UNet):
                    setattr(module, name, UNetOnCpu(part))
    return placed


class _Room:
    """What one pass over a grid of one size needs."""

    def __init__(self, rows: int, columns: int, unet: UNetOnCpu) -> None:
        sizes = [(rows >> scale, columns >> scale, width) for scale, width in enumerate(unet.widths)]
        self.given, self.output = Surface(rows, columns, unet.first.inputs), Surface(rows, columns, unet.last.outputs)
        self.total, self.active, self.between = ([Surface(*size) for size in sizes] for _ in range(3))
        """By scale: what the residual blocks add to, its SiLU, and what is between the two layers of a block"""
        self.unused = Surface(rows, columns, max(*unet.widths, unet.last.outputs))
        self.scratch = np.empty(max(layer.scratch for layer in unet.layers), np.float32)

    def activate(self, scale: int) -> None:
        self.active[scale].inside[...] = functional.silu(torch.from_numpy(self.total[scale].inside)).numpy()


class UNetOnCpu(nn.Module):
    """A coarse.UNet whose weights stay as they are."""

    def __init__(self, unet: coarse.UNet) -> None:
        super().__init__()
        self.widths = tuple(_filled(width) for width in unet.widths)
        self._outputs, self._pooled = unet.last.out_channels, (unet.widths[-1], unet.widths[0])
        self.first, self.last = _layer(unet.first), _layer(unet.last)
        self._down, self._up = ([_blocks(part) for part in parts] for parts in (unet.down, unet.up))
        self._pool = [_matrix(pool, (2, 3, 1, 0)) for pool in unet.pool]
        self._widen = [_matrix(widen, (0, 2, 3, 1)) for widen in unet.widen]
        self._free: dict[tuple[int, int], list[_Room]] = {}

    @property
    def layers(self) -> list[Convolution]:
        return [self.first, self.last, *(layer for parts in (self._down, self._up) for part in parts for pair in part for layer in pair)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As coarse.UNet has it."""
        outputs, pooled = zip(*in_lanes([partial(self._one, one) for one in x.permute(0, 2, 3, 1).numpy()]), strict=True)
        return torch.stack(outputs), torch.stack(pooled)

    def _one(self, x: Array) -> tuple[Tensor, Tensor]:
        """(y, x, inputs) -> ((outputs, y, x), (features,))"""
        free = self._free.setdefault((x.shape[0], x.shape[1]), [])
        try:
            room = free.pop()
        except IndexError:  # none yet, or another thread is in it
            room = _Room(x.shape[0], x.shape[1], self)
        room.given.inside[..., : x.shape[2]] = x
        self.first(room.given, room.total[0], room.active[0], room.scratch)
        for scale, blocks in enumerate(self._down):
            _add(blocks, room, scale)
            if scale < len(self._pool):
                weight, bias = self._pool[scale]
                rows, columns, width = room.total[scale + 1].inside.shape
                pairs = room.total[scale].inside.reshape(rows, 2, columns, 2, -1).transpose(0, 2, 1, 3, 4)
                room.total[scale + 1].inside[...] = (pairs.reshape(rows * columns, -1) @ weight + bias).reshape(rows, columns, width)
                room.activate(scale + 1)
        for scale in reversed(range(len(self._up))):
            weight, bias = self._widen[scale]
            rows, columns, width = room.total[scale + 1].inside.shape
            wider = (room.total[scale + 1].inside.reshape(-1, width) @ weight).reshape(rows, columns, 2, 2, -1) + bias
            pairs = room.total[scale].inside.reshape(rows, 2, columns, 2, -1)
            pairs += wider.transpose(0, 2, 1, 3, 4)
            room.activate(scale)
            _add(self._up[scale], room, scale)
        self.last(room.total[0], room.output, room.unused, room.scratch)
        output = torch.from_numpy(room.output.inside[..., : self._outputs].transpose(2, 0, 1).copy())
        ends = [torch.from_numpy(room.total[scale].inside[..., :width]) for scale, width in zip((-1, 0), self._pooled, strict=True)]
        pooled = torch.cat([f(end, (0, 1)) for end in ends for f in (torch.mean, torch.amax)])
        free.append(room)
        return output, pooled


def _add(blocks: list[tuple[Convolution, Convolution]], room: _Room, scale: int) -> None:
    """Residual blocks, one after the other."""
    total, active, between = room.total[scale], room.active[scale], room.between[scale]
    for one, two in blocks:
        one(active, room.unused, between, room.scratch)
        two(between, total, active, room.scratch, add=True)


def _filled(channels: int) -> int:
    """As many as they are with some that are always 0."""
    return channels + -channels % LANES


def _layer(layer: nn.Conv2d) -> Convolution:
    return Convolution(*_parameters(layer))


def _blocks(part: nn.Module) -> list[tuple[Convolution, Convolution]]:
    return [(_layer(block.one), _layer(block.two)) for block in part.children() if isinstance(block, coarse.Residual)]


def _matrix(layer: nn.Module, order: tuple[int, ...]) -> tuple[Array, Array]:
    """((4 inputs, outputs) or (inputs, 4 outputs) weights, bias) of a layer between two scales; `order` of the axes of its weight."""
    weight, bias = _parameters(layer)
    weight = np.pad(weight, [(0, -n % LANES) for n in weight.shape[:2]] + [(0, 0), (0, 0)]).transpose(order)
    rows = weight.shape[0] * (weight.shape[1] * weight.shape[2] if order[0] > 1 else 1)
    return np.ascontiguousarray(weight.reshape(rows, -1)), np.pad(bias, (0, -len(bias) % LANES))


def _parameters(layer: nn.Module) -> tuple[Array, Array]:
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    assert layer.bias is not None
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()
