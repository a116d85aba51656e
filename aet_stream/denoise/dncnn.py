"""DnCNN (Zhang et al., IEEE Trans. Image Process. 26 (2017) 3142): convolutions that predict what to take away, here the background."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

DEPTH = 17
WIDTH = 64


class DnCNN(nn.Module):
    """Convolution + ReLU, then `depth` - 2 times convolution + batch norm + ReLU, then a convolution; all 3 x 3.

    Residual learning: the output is the part to be subtracted from the first input channel.
    """

    def __init__(self, *, depth: int = DEPTH, width: int = WIDTH, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            cast(nn.Conv2d, self.layers[-1]).weight.mul_(0.1)  # begin near "nothing to subtract"

    @property
    def halo_px(self) -> int:
        """How far an output pixel sees: one pixel for every convolution."""
        return sum(isinstance(layer, nn.Conv2d) for layer in self.layers)

    def forward(self, frames: Tensor) -> Tensor:
        """(n, in_channels, y, x) -> (n, 1, y, x)"""
        return cast(Tensor, self.layers(frames))

    def folded(self) -> nn.Sequential:
        """The same function for inference, every batch norm folded into its convolution."""
        layers: list[nn.Module] = []
        for layer in self.eval().layers:
            if isinstance(layer, nn.BatchNorm2d):
                layers[-1] = fuse_conv_bn_eval(cast(nn.Conv2d, layers[-1]), layer)
            else:
                layers.append(layer)
        return nn.Sequential(*layers)
