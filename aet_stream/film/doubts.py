"""What a series cannot know of its films, and why: advice for whoever is still at the microscope."""

from __future__ import annotations

import numpy as np

from aet_stream.denoise.cokriging.estimator import Estimated
from aet_stream.reasons import Reason, why

_CLEAR = -1.0
"""Score of a scan below which there is a film for certain"""
_KNOWS_LITTLE = 0.85
"""Of what a projection alone leaves open under the particle, the share that the series leaves open, above which it is of no use"""
_NO_BETTER = 1.0
"""Error of the vacuum around the particle, held back and foretold by the series, over that by each projection alone"""
_UNSEEN = 0.2
"""Share of what the particle hides of the film that no projection shows, in the mean, above which much of it is a guess"""
_BESIDE = 0.35
"""Radii of the particle within which a film lies at the height of the tilt axis"""


def doubts(found: Estimated, radius: float) -> list[Reason]:
    """
    Parameters
    ----------
    radius : of the particle, points
    """
    known = [drawing.verdict for drawing in found.drawings if np.isfinite(drawing.verdict.too_sure)]
    if not known:
        return []
    score, foretold = (float(np.median([getattr(verdict, name) for verdict in known])) for name in ("score", "foretold"))
    height = min((film.height for film in found.model.films), key=abs)
    if score > _KNOWS_LITTLE:
        if found.scan_score < _CLEAR and abs(height) < _BESIDE * radius:
            return [why("film_at_axis", radii=round(abs(height) / radius, 2), left_percent=round(100 * score))]
        return [why("nothing_turns", left_percent=round(100 * score))]
    if foretold >= _NO_BETTER:
        return [why("film_thick", times=round(foretold, 2))]
    unseen = float(np.mean([drawing.drawn.unseen for drawing in found.drawings]))
    return [why("film_unseen", unseen_percent=round(100 * unseen))] if unseen > _UNSEEN else []
