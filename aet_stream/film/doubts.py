"""What a series cannot know of its films, and why: advice for whoever is still at the microscope."""

from __future__ import annotations

import numpy as np

from aet_stream.denoise.cokriging.estimator import Estimated
from aet_stream.reasons import Reason, why

_TURNS = -0.3
"""Score of a scan above which nothing turns with the specimen as a film would"""
_KNOWS_LITTLE = 0.8
"""Of what a projection alone leaves open under the particle, the share that the series leaves open, above which it is of little use"""
_TOO_SURE = 2.0
"""Error of the vacuum around the particle, held back, over what is stated, above which the films are not what the model takes them for"""
_BESIDE = 0.35
"""Radii of the particle within which a film lies at the height of the tilt axis"""


def doubts(found: Estimated, radius: float) -> list[Reason]:
    """
    Parameters
    ----------
    radius : of the particle, points
    """
    verdicts = [drawing.verdict for drawing in found.drawings]
    known = [verdict for verdict in verdicts if np.isfinite(verdict.score) and np.isfinite(verdict.too_sure)]
    if not known:
        return []
    score, too_sure = (float(np.median([getattr(verdict, name) for verdict in known])) for name in ("score", "too_sure"))
    if found.scan_score > _TURNS:
        return [why("nothing_turns", left_percent=round(100 * score))]
    told = []
    height = min((film.height for film in found.model.films), key=abs)
    if abs(height) < _BESIDE * radius and score > _KNOWS_LITTLE:
        told.append(why("film_at_axis", radii=round(abs(height) / radius, 2), left_percent=round(100 * score)))
    if too_sure > _TOO_SURE:
        told.append(why("film_thick", times=round(too_sure, 1)))
    return told
