"""Is the series believed, of each projection? Only as far as it foretells what is seen, better than the projection does alone.

Around the particle a ring of vacuum is held back (drawing.py). What the series, with the rest of this projection, foretells of it is
compared with what is seen, and with what the projection foretells alone. Where the series knows nothing of its own, both err alike,
whatever the film is like; there the first edition stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from aet_stream.denoise.cokriging.drawing import Drawn
from aet_stream.projection import Array

TAKEN, NOT_BETTER = 0.5, 0.85
"""Error of the ring by the series, over that by the projection alone: up to the first the series is taken, from the second on the first
edition stays, between them both are mixed."""
_NEIGHBOURS_DEG = 8.0
"""Tilts that share what is known of the ring: one ring has few independent points."""


class Taken(StrEnum):
    """Whose background a projection has."""

    SERIES = "series"
    MIXED = "mixed"
    SINGLE = "single"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one projection."""

    taken: Taken
    share: float
    """Of the series in the mixture, 0..1"""
    score: float
    """Error of the ring by the series over that by the projection alone, with its neighbours"""
    stated: float
    """Error of the ring by the series over what the model states: above 1 the model is too sure of itself"""


def judge(drawn: list[Drawn], tilts_deg: Array) -> list[Verdict]:
    """One verdict for each projection."""
    by_series, alone, stated = (
        np.square([getattr(getattr(each, whose), what) for each in drawn])
        for whose, what in (("by_series", "error"), ("alone", "error"), ("by_series", "stated"))
    )
    known = np.isfinite(by_series) & np.isfinite(alone)
    weights = np.exp(-np.square((tilts_deg[:, None] - tilts_deg) / _NEIGHBOURS_DEG) / 2) * known
    by_series, alone, stated = (np.where(known, part, 0.0) for part in (by_series, alone, stated))
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.sqrt((weights @ by_series) / (weights @ alone))
        here = np.sqrt(by_series / alone)
        score = np.where(known, np.maximum(near, here), np.nan)
        too_sure = np.sqrt((weights @ by_series) / (weights @ stated))
    return [_verdict(float(one), float(other)) for one, other in zip(score, too_sure, strict=True)]


def _verdict(score: float, stated: float) -> Verdict:
    if not score < NOT_BETTER:  # nor where it is not known
        return Verdict(Taken.SINGLE, 0.0, score, stated)
    if score <= TAKEN:
        return Verdict(Taken.SERIES, 1.0, score, stated)
    return Verdict(Taken.MIXED, (NOT_BETTER - score) / (NOT_BETTER - TAKEN), score, stated)
