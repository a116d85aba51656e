"""What every estimator of a background takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aet_stream.denoise.classical import Vacuum
from aet_stream.denoise.features import Blocks
from aet_stream.projection import Array

Beat = Callable[[], None]
"""Called between pieces of work: it goes on."""


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
    """Finds the background of a frame."""

    name: str
    sha256: str

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def background(self, frame: Array, blocks: Blocks, vacuum: Vacuum, beat: Beat) -> Estimate:
        """The background of a (height, width) float32 frame, in the same units; its blocks and vacuum were found before."""
