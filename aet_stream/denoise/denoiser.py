"""Subtract the background of one projection with a chosen estimator: clean = raw - background, nothing clipped, masked or zeroed."""

from __future__ import annotations

import logging
import os
from typing import Any

import msgspec
import numpy as np

from aet_stream.config import Denoise
from aet_stream.denoise import features, trust
from aet_stream.denoise.estimate import Beat, Estimate, Estimator, Image
from aet_stream.denoise.estimators import FALLBACK, find_estimator
from aet_stream.denoise.lanes import take_lanes
from aet_stream.projection import Array, Quality, Subtracted

logger = logging.getLogger(__name__)

_WARM_UP_PX = 256
_DEFAULTS = Denoise()
_SURE = 6.0
"""Logit where the classical mask has the particle; and less than none where it has not"""


def _no_beat() -> None:
    """Nobody wants to know how it goes."""


class Denoiser:
    """One estimator, chosen by name or path; the classical estimates are always computed beside it."""

    def __init__(self, settings: Denoise = _DEFAULTS, **changes: Any) -> None:
        """`changes`: single settings by name, for example model="laplace".

        Raises
        ------
        ModelError : the model, its file, card or device is not what it should be
        """
        settings = msgspec.structs.replace(settings, **changes)
        self.estimator: Estimator = find_estimator(settings)
        self._lanes = settings.threads or len(os.sched_getaffinity(0)) // settings.workers
        self.name, self.sha256, self.rule = self.estimator.name, self.estimator.sha256, self.estimator.rule
        self.device = self.estimator.device

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
        frame, unit = _scaled(pixels)
        estimate, image = self.estimate(frame, beat)
        fallback, rule = "", self.rule
        if not np.isfinite(estimate.background).all():
            logger.error("%s: its background is not finite; the %s stands in", self.name, FALLBACK.name)
            fallback, rule, estimate = FALLBACK.name, FALLBACK.rule, FALLBACK.background(image, beat)
        about = Quality(self.name, self.sha256, fallback=fallback, device=self.estimator.device, precision=self.estimator.precision)
        quality = trust.judge(trust.gather(image, estimate, about), rule, unit=unit)
        quality = msgspec.structs.replace(quality, background_mean=quality.background_mean + level)
        clean = image.pixels - estimate.background
        return Subtracted(np.multiply(clean, np.float32(unit), out=clean), quality)

    def support(self, pixels: Array) -> Array:
        """(rows, columns) float32 logit of where the particle is, on the grid of features.Blocks; `pixels` as for `subtract`."""
        if pixels.min() == pixels.max():
            return np.full(features.describe(pixels.astype(np.float32)).statistics.shape[1:], -_SURE, np.float32)
        take_lanes(self._lanes)
        image = Image(_scaled(pixels)[0])
        found = self.estimator.support(image)
        if found is not None and np.isfinite(found).all():
            return found
        return np.where(trust.classical_support(image.vacuum, image.shape, image.blocks.block_px), _SURE, -_SURE).astype(np.float32)

    def estimate(self, frame: Array, beat: Beat = _no_beat) -> tuple[Estimate, Image]:
        """The background of a (height, width) float32 frame that is not all the same, and what was seen of the frame."""
        take_lanes(self._lanes)
        image = Image(frame)
        return self.estimator.background(image, beat), image


def _scaled(pixels: Array) -> tuple[Array, float]:
    """(frame, unit): float32 that loses nothing, and how many counts one of it is. A large offset would eat its digits: it goes first, and
    belongs to the background. Units that it can hardly hold (amperes, say) become ones about 1, by a power of two: that is exact."""
    counts = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2
    above: Array = pixels.astype(np.float32 if counts else np.float64)  # either holds all differences
    above = np.subtract(above, float(pixels.flat[0]), out=above)
    unit = 2.0 ** (int(np.frexp(max(float(above.max()), -float(above.min())))[1]) - 1)
    return np.divide(above, unit, out=above).astype(np.float32, copy=False), unit
