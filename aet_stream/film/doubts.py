"""What a series cannot know of its films, and why: advice for whoever is still at the microscope."""

from __future__ import annotations

import numpy as np

from aet_stream.denoise.cokriging.estimator import Estimated
from aet_stream.reasons import Reason, why


def doubts(found: Estimated, radius: float) -> list[Reason]:
    """
    Parameters
    ----------
    radius : of the particle, points
    """
    return []
