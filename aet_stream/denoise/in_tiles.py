"""A DnCNN at work, at full resolution in tiles."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import nn

from aet_stream.config import Denoise
from aet_stream.denoise.dncnn import DnCNN
from aet_stream.denoise.estimate import Beat, Estimate, Image
from aet_stream.denoise.features import normalisation
from aet_stream.denoise.fusion.gate import Gate
from aet_stream.denoise.hardware import find_device, find_precision, take_threads
from aet_stream.denoise.trust import WITHOUT_CARD
from aet_stream.denoise.weights_file import Card
from aet_stream.errors import ModelError
from aet_stream.projection import Array

logger = logging.getLogger(__name__)

_SMALLEST_TILE_PX = 64
_CPU_TILE_PX = 1024
_CUDA_TILE_PX = 2048


class InTiles:
    """A DnCNN at full resolution; when memory runs out it takes smaller tiles, then the CPU."""

    def __init__(self, model: nn.Module, card: Card, settings: Denoise, gate: Gate | None = None) -> None:
        """`model`: with `halo_px` and `folded()`, as DnCNN has them; `gate`: there is nothing for one to weigh here."""
        self._threads = settings.threads or len(os.sched_getaffinity(0))
        self.card, self.name, self.sha256 = card, card.name, card.sha256
        self.rule: Mapping[str, float] = card.trust or WITHOUT_CARD
        self.torch_device = find_device(settings.device)
        self.dtype = find_precision(settings.precision, card.bfloat16, self.torch_device)
        self._on_cpu = settings.precision if settings.precision == "float32" else "auto"
        """What is wanted of a CPU, should the GPU have too little memory: bfloat16 only where it is no slower."""
        network = cast(DnCNN, model)
        self.halo_px = network.halo_px
        layers = network.folded().to(self.torch_device, self.dtype)
        self.layers: nn.Sequential = layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._tile_px = settings.tile_px or (_CUDA_TILE_PX if self.torch_device.type == "cuda" else _CPU_TILE_PX)

    @property
    def device(self) -> str:
        return str(self.torch_device)

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def background(self, image: Image, beat: Beat) -> Estimate:
        take_threads(self._threads)
        frame = image.pixels
        low, span = normalisation(frame)
        normal = (frame - np.float32(low)) / np.float32(span)
        return Estimate(self._in_tiles(normal, beat) * np.float32(span) + np.float32(low))

    def support(self, image: Image) -> Array | None:
        return None

    def _in_tiles(self, normal: Array, beat: Beat) -> Array:
        """(y, x) -> (y, x), retried with less memory until it fits."""
        while True:
            try:
                return self._tiled(normal, self._tile_px, beat)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "alloc" not in str(error):
                    raise
                reason = str(error).splitlines()[0]
            # Outside the except block: the exception holds on to the memory that is missing.
            gc.collect()
            self.take_less(reason)

    def take_less(self, reason: str) -> None:
        """Half the tile; when it cannot get smaller, the CPU; when it is the CPU already, give up.

        Raises
        ------
        ModelError : not enough memory for the smallest tile
        """
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        if self._tile_px > _SMALLEST_TILE_PX:
            self._tile_px = max(_SMALLEST_TILE_PX, self._tile_px // 2)
            logger.warning("out of memory (%s): tiles of %d px from now on", reason, self._tile_px)
        elif self.torch_device.type == "cuda":
            self.torch_device, self._tile_px = torch.device("cpu"), _CPU_TILE_PX
            self.dtype = find_precision(self._on_cpu, self.card.bfloat16, self.torch_device)
            self.layers = self.layers.to(self.torch_device, self.dtype)
            logger.error("out of GPU memory even for the smallest tile (%s): on the CPU from now on", reason)
        else:
            raise ModelError(f"not enough memory for tiles of {_SMALLEST_TILE_PX} px: {reason}")

    def _tiled(self, normal: Array, tile_px: int, beat: Beat) -> Array:
        """Tiles with a halo as wide as the network sees: equal to the whole frame at once, to rounding."""
        height, width = normal.shape
        background = np.empty((height, width), np.float32)
        for y in range(0, height, tile_px):
            for x in range(0, width, tile_px):
                top, left = max(0, y - self.halo_px), max(0, x - self.halo_px)
                tile = normal[top : y + tile_px + self.halo_px, left : x + tile_px + self.halo_px]
                result = self._infer(tile, beat)[y - top : y - top + tile_px, x - left : x - left + tile_px]
                background[y : y + tile_px, x : x + tile_px] = result
        return background

    def _infer(self, tile: Array, beat: Beat) -> Array:
        """(y, x) -> (y, x) float32; beats after every layer, because a tile may take a processor a minute."""
        with torch.inference_mode():
            frame = torch.from_numpy(np.ascontiguousarray(tile))[None, None].to(self.torch_device, self.dtype)
            frame = frame.contiguous(memory_format=torch.channels_last)  # (1, 1, y, x)
            for layer in self.layers:
                frame = layer(frame)
                beat()
            result: Array = frame[0, 0].float().cpu().numpy()
        return result
