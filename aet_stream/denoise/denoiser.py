"""Subtract the background of one projection with a chosen estimator: clean = raw - background, nothing clipped, masked or zeroed."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from aet_stream.denoise import classical, grid, trust
from aet_stream.denoise.classical import Vacuum
from aet_stream.denoise.features import LAPLACE_CHANNEL, coarse_inputs, normalisation
from aet_stream.denoise.weights_file import Card, find_weights, load_card, load_tensors
from aet_stream.errors import ModelError
from aet_stream.projection import Array, Subtracted

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Beat = Callable[[], None]
_WARM_UP_PX = 256
_SMALLEST_TILE_PX = 64
_CPU_TILE_PX = 1024
_CUDA_TILE_PX = 2048


def _no_beat() -> None:
    """Nobody wants to know how it goes."""


class Estimator(Protocol):
    """Finds the background of a frame."""

    name: str
    sha256: str

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def background(self, frame: Array, vacuum: Vacuum, beat: Beat) -> Array:
        """(height, width) float32 -> the same, in the same units."""


class Denoiser:
    """One estimator, chosen by name or path, with the classical estimate always computed beside it."""

    def __init__(
        self, *, model: str = "default", device: str = "auto", precision: str = "auto", tile_px: int = 0, threads: int = 0
    ) -> None:
        if model in classical.NAMES:
            self._estimator: Estimator = Classical(model)
        else:
            self._estimator = Network(find_weights(model), device=device, precision=precision, tile_px=tile_px, threads=threads)
        self.name, self.sha256 = self._estimator.name, self._estimator.sha256

    def warm_up(self) -> None:
        """Run once, so that the first projection is as fast as the next."""
        self.subtract(np.random.default_rng(0).normal(size=(_WARM_UP_PX, _WARM_UP_PX)).astype(np.float32))

    def subtract(self, pixels: Array, *, beat: Beat = _no_beat) -> Subtracted:
        """Remove the background of one projection.

        Parameters
        ----------
        pixels : (height, width), any real dtype, finite; detector counts
        beat : called between tiles: it is still at work
        """
        frame = np.asarray(pixels, dtype=np.float32)
        if float(frame.max()) == float(frame.min()):
            return Subtracted(frame.copy(), trust.blank_quality(self.name, self.sha256))
        vacuum = classical.find_vacuum(frame)
        laplace = classical.laplace(frame, vacuum)
        background = laplace if self.name == "laplace" else self._estimator.background(frame, vacuum, beat)
        clean = frame - background
        quality = trust.judge(
            clean,
            background,
            laplace,
            vacuum,
            model=self.name,
            sha256=self.sha256,
            device=self._estimator.device,
            precision=self._estimator.precision,
        )
        return Subtracted(clean, quality)


class Classical:
    """An estimator without weights; its hash is that of its name and code."""

    device, precision = "cpu", "float32"

    def __init__(self, name: str) -> None:
        self.name = name
        self._estimate = {"constant": classical.constant, "laplace": classical.laplace}[name]
        self.sha256 = hashlib.sha256(name.encode() + Path(classical.__file__).read_bytes()).hexdigest()

    def background(self, frame: Array, vacuum: Vacuum, beat: Beat) -> Array:
        return self._estimate(frame, vacuum)


class Network:
    """A DnCNN on a CPU or a GPU; when memory runs out it takes smaller tiles, then the CPU."""

    def __init__(self, path: Path, *, device: str = "auto", precision: str = "auto", tile_px: int = 0, threads: int = 0) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.card: Card = load_card(path)
        self.name, self.sha256 = self.card.name, self.card.sha256
        self._torch_device = _device(device)
        self._dtype = _precision(precision, self.card, self._torch_device)
        self._layers = self._load(path)
        self._tile_px = tile_px or (_CUDA_TILE_PX if self._torch_device.type == "cuda" else _CPU_TILE_PX)

    @property
    def device(self) -> str:
        return str(self._torch_device)

    @property
    def precision(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def _load(self, path: Path) -> torch.nn.Module:
        import torch

        from aet_stream.denoise.dncnn import DnCNN

        model = DnCNN(depth=self.card.depth, width=self.card.width, in_channels=self.card.in_channels)
        try:
            model.load_state_dict(load_tensors(path))
        except RuntimeError as error:
            raise ModelError(f"{path}: its tensors are not those of its card: {str(error).splitlines()[-1].strip()}") from error
        self.halo_px = model.halo_px
        layers = model.folded().to(self._torch_device, self._dtype)
        return layers.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]

    def background(self, frame: Array, vacuum: Vacuum, beat: Beat) -> Array:
        low, span = normalisation(frame)
        if not self.card.grid_blocks:
            normal = (frame - np.float32(low)) / np.float32(span)
            return self._in_tiles(normal[None], beat) * np.float32(span) + np.float32(low)
        blocks = coarse_inputs(frame, vacuum, low, span)
        found = blocks[LAPLACE_CHANNEL] + self._in_tiles(blocks, beat)
        return grid.draw(found * np.float32(span) + np.float32(low), vacuum.block_px, (frame.shape[0], frame.shape[1]))

    def _in_tiles(self, channels: Array, beat: Beat) -> Array:
        """(channels, y, x) -> (y, x), retried with less memory until it fits."""
        import torch

        while True:
            try:
                return self._tiled(channels, self._tile_px, beat)
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

    def _tiled(self, channels: Array, tile_px: int, beat: Beat) -> Array:
        """Tiles with a halo as wide as the network sees: equal to the whole frame at once, to rounding."""
        _, height, width = channels.shape
        found = np.empty((height, width), np.float32)
        for y in range(0, height, tile_px):
            for x in range(0, width, tile_px):
                top, left = max(0, y - self.halo_px), max(0, x - self.halo_px)
                tile = channels[:, top : y + tile_px + self.halo_px, left : x + tile_px + self.halo_px]
                result = self._infer(tile)[y - top : y - top + tile_px, x - left : x - left + tile_px]
                found[y : y + tile_px, x : x + tile_px] = result
                beat()
        return found

    def _infer(self, channels: Array) -> Array:
        """(channels, y, x) -> (y, x) float32"""
        import torch

        with torch.inference_mode():
            tile = torch.from_numpy(np.ascontiguousarray(channels))[None].to(self._torch_device, self._dtype)
            tile = tile.contiguous(memory_format=torch.channels_last)  # (1, channels, y, x)
            result: Array = self._layers(tile)[0, 0].float().cpu().numpy()
        return result


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

    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
    return torch.bfloat16 if card.bfloat16 and fast else torch.float32


def cpu_has_bfloat16() -> bool:
    """Does this CPU multiply bfloat16 in hardware (AVX-512 BF16 or AMX)? Without, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
