"""How large is the error of a background that a series has looked at, and how far may it be trusted?

Its variance is a sum of what may be wrong, each times a factor that is not negative: one alarm is enough, and none makes another smaller.
The factors were fitted on simulated series whose truth is known (training/calibrate_films.py) and stand in trust.json. Trust asks how
large the error may be: with a margin that 95 of 100 frames of those series keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.denoise.cokriging.evidence import Evidence
from aet_stream.projection import Quality

RULE_FILE = Path(__file__).with_name("trust.json")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From evidence to an error."""

    factors: dict[str, float]
    """Of each evidence, by its name"""
    margin: float
    """So many times the expected error is not exceeded in 95 of 100 frames"""
    fitted_on: str
    """Which series"""
    frames: int

    def expected(self, evidence: Mapping[str, float]) -> float:
        """Root mean square error of the background, in the unit of the evidence."""
        return float(np.sqrt(sum((factor * evidence[name]) ** 2 for name, factor in self.factors.items())))


@cache
def shipped() -> Rule:
    """As it was fitted for the films of a series."""
    return msgspec.json.decode(RULE_FILE.read_bytes(), type=Rule)


def all_evidence(first: Quality, found: Evidence, share: float, in_vacuum: float, point_px: int) -> dict[str, float]:
    """All evidence of one background, root mean squares over the frame, counts.

    Parameters
    ----------
    first : figures of the first edition
    share, in_vacuum : of the series in the background, under the particle and where the vacuum is seen, 0..1
    point_px : edge of the squares whose means the first edition follows where the vacuum is seen
    """
    return asdict(found) | {"first": (1 - share) * first.expected_error, "noise": (1 - in_vacuum) * first.vacuum_noise / point_px}
