"""What every estimator of a background takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from aet_stream.denoise import classical, features, vacuum
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.lanes import Later, aside
from aet_stream.denoise.vacuum import Vacuum
from aet_stream.projection import Array

Beat = Callable[[], None]
"""Called between pieces of work: it goes on."""


@dataclass(frozen=True, slots=True)
class Classical:
    """Backgrounds that need no network, (rows, columns) float32 at block centres of the vacuum's grid."""

    laplace: Array
    gaussian_process: Array


class Image:
    """A projection on its way through an estimator; what is seen of it is found when it is first asked for."""

    def __init__(self, pixels: Array) -> None:
        """`pixels`: (height, width) float32, counts, not all the same."""
        self.pixels = pixels
        self.shape = (int(pixels.shape[0]), int(pixels.shape[1]))

    @cached_property
    def blocks(self) -> Blocks:
        """Statistics of at most 64 x 64 blocks, as networks see them."""
        return features.describe(self.pixels)

    @cached_property
    def vacuum(self) -> Vacuum:
        """Where nothing but background is seen, as classical estimates take it."""
        return vacuum.find_vacuum(self.pixels)

    @cached_property
    def classical(self) -> Later[Classical]:
        """What is computed beside every estimate; begun when it is first asked for."""
        return aside(lambda: Classical(classical.laplace(self.vacuum), classical.gaussian_process(self.vacuum)))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A background, and what its estimator says of it."""

    background: Array
    """(height, width) float32, counts"""
    support: Array | None = None
    """(rows, columns) bool: where the particle is, on the grid of features.Blocks; None: it does not say"""
    doubts: Mapping[str, float] = field(default_factory=dict)
    """What the estimator itself is unsure of, by name, counts"""


class Estimator(Protocol):
    """Finds the background of an image."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str:
        """Of all that decides its results: of weights, or of code."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def rule(self) -> Mapping[str, float]:
        """For the expected error, see trust.py."""

    def background(self, image: Image, beat: Beat) -> Estimate:
        """The background of an image, in the same units."""

    def support(self, image: Image) -> Array | None:
        """(rows, columns) float32 logit of where the particle is, on the grid of features.Blocks; None: it does not say. Takes less time
        than its background."""
