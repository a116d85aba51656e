"""Subtract the background of one projection with a chosen estimator: clean = raw - background, nothing clipped, masked or zeroed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.denoise import classical, features, trust
from aet_stream.denoise.classical import Vacuum
from aet_stream.denoise.estimate import Beat, Estimate, Estimator
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.weights_file import find_weights
from aet_stream.projection import Array, Quality, Subtracted

logger = logging.getLogger(__name__)

FALLBACK = "gaussian-process"
_WARM_UP_PX = 256


def _no_beat() -> None:
    """Nobody wants to know how it goes."""


class Denoiser:
    """One estimator, chosen by name or path; the classical estimates are always computed beside it."""

    def __init__(
        self, *, model: str = "default", device: str = "auto", precision: str = "auto", tile_px: int = 0, threads: int = 0
    ) -> None:
        self.rule: Mapping[str, float] = trust.CLASSICAL.get(model, trust.WITHOUT_CARD)
        if model in classical.NAMES:
            self._estimator: Estimator = Classical(model)
        else:
            from aet_stream.denoise.architectures import load_network

            network = load_network(find_weights(model), device=device, precision=precision, tile_px=tile_px, threads=threads)
            self._estimator = network
            self.rule = network.card.trust or self.rule
        self.name, self.sha256 = self._estimator.name, self._estimator.sha256

    def warm_up(self) -> None:
        """Run once, so that the first projection is as fast as the next."""
        self.subtract(np.random.default_rng(0).normal(size=(_WARM_UP_PX, _WARM_UP_PX)).astype(np.float32))

    def subtract(self, pixels: Array, *, beat: Beat = _no_beat) -> Subtracted:
        """Remove the background of one projection.

        Parameters
        ----------
        pixels : (height, width), any real dtype, finite; detector counts
        beat : called between pieces of work
        """
        level = float(pixels.flat[0])
        if level == float(pixels.max()) == float(pixels.min()):
            return Subtracted(pixels.astype(np.float32), trust.blank_quality(self.name, self.sha256))
        # A large offset would eat the digits of float32: it goes first, and belongs to the background. Units that it can hardly hold
        # (amperes, say) become ones about 1, by a power of two: that is exact.
        above = pixels.astype(np.float64) - level
        unit = 2.0 ** (int(np.frexp(np.abs(above).max())[1]) - 1)
        above /= unit
        frame = above.astype(np.float32)
        estimate, vacuum, blocks = self.estimate(frame, beat)
        fallback, rule = "", self.rule
        if not np.isfinite(estimate.background).all():
            logger.error("%s: its background is not finite; the %s stands in", self.name, FALLBACK)
            fallback, rule, estimate = FALLBACK, trust.CLASSICAL[FALLBACK], Classical(FALLBACK).background(frame, blocks, vacuum, beat)
        evidence = trust.gather(frame, estimate, vacuum, blocks)
        about = Quality(self.name, self.sha256, fallback=fallback, device=self._estimator.device, precision=self._estimator.precision)
        quality = trust.judge(evidence, rule, about, unit=unit)
        quality = msgspec.structs.replace(quality, background_mean=quality.background_mean + level)
        return Subtracted((frame - estimate.background) * np.float32(unit), quality)

    def estimate(self, frame: Array, beat: Beat = _no_beat) -> tuple[Estimate, Vacuum, Blocks]:
        """The background of a (height, width) float32 frame that is not all the same, and what it was found with."""
        vacuum, blocks = classical.find_vacuum(frame), features.describe(frame)
        return self._estimator.background(frame, blocks, vacuum, beat), vacuum, blocks


class Classical:
    """An estimator without weights; its hash is that of its name and code."""

    device, precision = "cpu", "float32"

    def __init__(self, name: str) -> None:
        self.name = name
        self.sha256 = hashlib.sha256(name.encode() + Path(classical.__file__).read_bytes()).hexdigest()

    def background(self, frame: Array, blocks: Blocks, vacuum: Vacuum, beat: Beat) -> Estimate:
        return Estimate(classical.draw(classical.ESTIMATES[self.name](vacuum), vacuum, (frame.shape[0], frame.shape[1])))
