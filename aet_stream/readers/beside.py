"""What stands beside the images of a file: what is said of one of them, and what of the file has to fit it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from aet_stream.projection import Acquisition, Candidate

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
Figures = tuple[float, float, float]
"""Smallest, largest and mean pixel of an image, counts."""


class Beside(msgspec.Struct, frozen=True):
    """What sidecars say about one image."""

    tilts: tuple[Candidate, ...] = ()
    known: Acquisition = Acquisition()
    remark: str = ""
    """Why a sidecar that is there says no tilt."""
    frames: int = 0
    """So many images of the file are frames of one visit to one tilt; 0 where the sidecar does not say it."""

    def completing(self, said: Acquisition) -> Acquisition:
        """The file's own words, and the sidecars' where it has none."""
        empty = {name: getattr(self.known, name) for name in said.__struct_fields__ if getattr(said, name) in (None, "", ())}
        return msgspec.structs.replace(said, **empty)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which sidecar is asked of which image."""

    sidecar: Path
    path: Path
    image: int
    stack: Stack
    """All images of its file."""
    is_own: bool = True
    """It belongs to the file by its name."""
    fresh: bool = False
    """Sidecar or file changed so lately that what is missing may still come."""


@dataclass(frozen=True, eq=False, slots=True)
class Stack:
    """All images of a file, for those who pair something with them."""

    promised: int
    """Images that are there or announced."""
    there: int
    grows: bool = False
    """The instrument may append to it."""
    figures: Callable[[], tuple[Figures, ...]] = tuple
    """Of every image that is there; none where there is too much to read for it."""
    kept: dict[str, Any] = field(default_factory=dict)
    """By the text of a sidecar: what was made of it for all images at once."""

    def counts(self, statements: int) -> bool:
        """Is there one statement for every image?"""
        return statements in (self.there, self.promised)


def candidate(number: str, said: str, unit: str = "deg") -> Candidate:
    """What cannot be read as a number becomes NaN, which holds the projection."""
    try:
        value = float(number.strip().replace(",", "."))
    except ValueError:
        value = math.nan
    return Candidate("sidecar", said, math.degrees(value) if unit == "rad" else value, unit)


def number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None
