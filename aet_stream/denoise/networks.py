"""Networks at work: the default one on a grid of blocks, and DnCNN at full resolution in tiles. The only room of the daemon with torch."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aet_stream.denoise import detail, grid
from aet_stream.denoise.classical import Vacuum
from aet_stream.denoise.estimate import Beat, Estimate
from aet_stream.denoise.features import Blocks, normalisation
from aet_stream.denoise.weights_file import Card, load_card, load_tensors
from aet_stream.errors import ModelError
from aet_stream.projection import Array

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_SMALLEST_TILE_PX = 64
_CPU_TILE_PX = 1024
_CUDA_TILE_PX = 2048


def load_network(path: Path, *, device: str, precision: str, tile_px: int, threads: int) -> OnBlocks | InTiles:
    """The network in a weights file, ready to work.

    Parameters
    ----------
    threads : 0: as is fastest, one for a network on blocks and all cores at full resolution

    Raises
    ------
    ModelError : the file, its card or the device is not what it should be
    """
    card = load_card(path)
    if card.architecture == "Coarse":
        return OnBlocks(path, card, device=device, threads=threads)
    return InTiles(path, card, device=device, precision=precision, tile_px=tile_px, threads=threads)


class OnBlocks:
    """The default network: a grid of at most 64 x 64 blocks, whatever the frame; splines through the block centres draw the background."""

    precision = "float32"

    def __init__(self, path: Path, card: Card, *, device: str, threads: int) -> None:
        from aet_stream.denoise.coarse import Coarse

        # Its layers are over before a second thread is awake: two took four times as long as one, and fifty times beside other work.
        self._threads = threads or 1
        self.card, self.name, self.sha256 = card, card.name, card.sha256
        self._device = _device(device)
        self._model = _loaded(Coarse(**card.shape), path).to(self._device)

    @property
    def device(self) -> str:
        return str(self._device)

    def background(self, frame: Array, blocks: Blocks, vacuum: Vacuum, beat: Beat) -> Estimate:
        beat()
        _take(self._threads)
        # Asked twice, the second time with rows and columns exchanged: what the two answers do not share is the network's own error.
        one, other = self._said(blocks.statistics), self._said(blocks.statistics.transpose(0, 2, 1))
        background, support = ((a + b.T) / 2 for a, b in zip(one[:2], other[:2], strict=True))
        apart = np.abs(one[0] - other[0].T)
        doubts = {name: (value + other[2][name]) / 2 for name, value in one[2].items()}
        doubts |= {"views": float(np.sqrt(np.mean(apart**2))), "views_most": float(np.quantile(apart, 0.99))}
        noise = np.square(blocks.statistics[4] / blocks.block_px)
        background = background + detail.of_vacuum(blocks.statistics[0] - background, support <= 0, noise)
        drawn = grid.draw_means(background * blocks.span + blocks.low, blocks.block_px, (frame.shape[0], frame.shape[1]))
        return Estimate(drawn, support=support > 0, doubts={name: value * blocks.span for name, value in doubts.items()})

    def _said(self, statistics: Array) -> tuple[Array, Array, dict[str, float]]:
        """See `_infer`, of a grid of any size; on the CPU where the GPU has no memory left."""
        import torch

        from aet_stream.denoise.coarse import MULTIPLE

        rows, columns = statistics.shape[1:]
        padding = [(0, -rows % MULTIPLE), (0, -columns % MULTIPLE)]
        inputs = np.pad(statistics, [(0, 0), *padding], mode="edge"), np.pad(np.ones((rows, columns), np.float32), padding)
        try:
            background, support, doubts = self._infer(*inputs)
        except torch.OutOfMemoryError as error:
            logger.error("out of GPU memory (%s): on the CPU from now on", str(error).splitlines()[0])
            self._device = torch.device("cpu")
            self._model = self._model.to(self._device)
            background, support, doubts = self._infer(*inputs)
        return background[:rows, :columns], support[:rows, :columns], doubts

    def _infer(self, statistics: Array, valid: Array) -> tuple[Array, Array, dict[str, float]]:
        """((rows, columns) background, (rows, columns) logit of the support, doubts); normalised.

        Doubts, over the frame: the error that the network expects (`network`, root mean square; `network_mostly`, geometric mean); how far
        its two stages are apart (`stages`, and `stages_most`, where they are farthest), and its own word from the solve
        under the particle (`own`); of the solves, what the spectrum allows (`prior`), what the observations leave open (`posterior`), and
        how little the first one was told (`blind`).
        """
        import torch

        from aet_stream.denoise.coarse import spread

        with torch.inference_mode():
            inputs = [torch.from_numpy(part)[None].to(self._device) for part in (statistics, valid)]
            first, last = self._model(*inputs)
            there = inputs[1] > 0
            apart = (last.background - first.background)[there]
            own = (last.own - last.background)[there] * torch.sigmoid(last.support[there]).sqrt()
            prior, posterior = spread(last, inputs[1])
            doubts = {
                "network": last.log_error[there].exp().mean().sqrt(),
                "network_mostly": (last.log_error[there].mean() / 2).exp(),
                "stages": apart.square().mean().sqrt(),
                "stages_most": torch.quantile(apart.abs(), 0.99),
                "own": own.square().mean().sqrt(),
                "prior": prior[0],
                "posterior": posterior[0],
                "blind": (-(first.weight[there] + 1e-9).log().mean() / 2).exp(),
            }
            found = {name: float(value) for name, value in doubts.items()}
            return last.background[0].cpu().numpy(), last.support[0].cpu().numpy(), found


class InTiles:
    """A DnCNN at full resolution; when memory runs out it takes smaller tiles, then the CPU."""

    def __init__(self, path: Path, card: Card, *, device: str, precision: str, tile_px: int, threads: int) -> None:
        import torch

        from aet_stream.denoise.dncnn import DnCNN

        self._threads = threads or len(os.sched_getaffinity(0))
        self.card, self.name, self.sha256 = card, card.name, card.sha256
        self._torch_device = _device(device)
        self._dtype = _precision(precision, card, self._torch_device)
        model = DnCNN(**card.shape)
        self.halo_px = model.halo_px
        layers = _loaded(model, path).folded().to(self._torch_device, self._dtype)
        self._layers: torch.nn.Module = layers.to(memory_format=torch.channels_last)
        self._tile_px = tile_px or (_CUDA_TILE_PX if self._torch_device.type == "cuda" else _CPU_TILE_PX)

    @property
    def device(self) -> str:
        return str(self._torch_device)

    @property
    def precision(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def background(self, frame: Array, blocks: Blocks, vacuum: Vacuum, beat: Beat) -> Estimate:
        _take(self._threads)
        low, span = normalisation(frame)
        normal = (frame - np.float32(low)) / np.float32(span)
        return Estimate(self._in_tiles(normal, beat) * np.float32(span) + np.float32(low))

    def _in_tiles(self, normal: Array, beat: Beat) -> Array:
        """(y, x) -> (y, x), retried with less memory until it fits."""
        import torch

        while True:
            try:
                return self._tiled(normal, self._tile_px, beat)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "alloc" not in str(error):
                    raise
                said = str(error).splitlines()[0]
            # Outside the except block: the exception holds on to the memory that is missing.
            gc.collect()
            self._take_less(said)

    def _take_less(self, said: str) -> None:
        """Half the tile; when it cannot get smaller, the CPU; when it is the CPU already, give up.

        Raises
        ------
        ModelError : not enough memory for the smallest tile
        """
        import torch

        if self._torch_device.type == "cuda":
            torch.cuda.empty_cache()
        if self._tile_px > _SMALLEST_TILE_PX:
            self._tile_px = max(_SMALLEST_TILE_PX, self._tile_px // 2)
            logger.warning("out of memory (%s): tiles of %d px from now on", said, self._tile_px)
        elif self._torch_device.type == "cuda":
            self._torch_device, self._tile_px = torch.device("cpu"), _CPU_TILE_PX
            self._dtype = _precision("auto", self.card, self._torch_device)
            self._layers = self._layers.to(self._torch_device, self._dtype)
            logger.error("out of GPU memory even for the smallest tile (%s): on the CPU from now on", said)
        else:
            raise ModelError(f"not enough memory for tiles of {_SMALLEST_TILE_PX} px: {said}")

    def _tiled(self, normal: Array, tile_px: int, beat: Beat) -> Array:
        """Tiles with a halo as wide as the network sees: equal to the whole frame at once, to rounding."""
        height, width = normal.shape
        found = np.empty((height, width), np.float32)
        for y in range(0, height, tile_px):
            for x in range(0, width, tile_px):
                top, left = max(0, y - self.halo_px), max(0, x - self.halo_px)
                tile = normal[top : y + tile_px + self.halo_px, left : x + tile_px + self.halo_px]
                result = self._infer(tile)[y - top : y - top + tile_px, x - left : x - left + tile_px]
                found[y : y + tile_px, x : x + tile_px] = result
                beat()
        return found

    def _infer(self, tile: Array) -> Array:
        """(y, x) -> (y, x) float32"""
        import torch

        with torch.inference_mode():
            frame = torch.from_numpy(np.ascontiguousarray(tile))[None, None].to(self._torch_device, self._dtype)
            frame = frame.contiguous(memory_format=torch.channels_last)  # (1, 1, y, x)
            result: Array = self._layers(frame)[0, 0].float().cpu().numpy()
        return result


def _take(threads: int) -> None:
    """How many cores the arithmetic of this process takes; several networks may be loaded."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _loaded(model: Any, path: Path) -> Any:
    """The model with the weights of a file, for inference."""
    try:
        model.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise ModelError(f"{path}: its tensors are not those of its card: {str(error).splitlines()[-1].strip()}") from error
    return model.eval()


def _device(wanted: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises
    ------
    ModelError : it is not there
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelError(f"denoise.device {wanted!r}: say auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"denoise.device {wanted!r}: say auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"denoise.device {wanted!r}: there is no such GPU ({torch.cuda.device_count()} found); say auto or cpu")
    return device


def _precision(wanted: str, card: Card, device: torch.device) -> torch.dtype:
    """bfloat16 where asked for, or where hardware and card allow it."""
    import torch

    from aet_stream.denoise.precision import has_bfloat16

    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    return torch.bfloat16 if card.bfloat16 and has_bfloat16(device.type) else torch.float32
