"""Which tilts there are, and which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aet_stream.coverage import largest_gap
from aet_stream.monitor.advice import usable
from aet_stream.monitor.series_cache import Row


def coverage(rows: Sequence[Row], same_tilt_deg: float) -> dict[str, Any]:
    """Range, usual step, gaps wider than 1.6 steps, repeats, missing wedge (from, to and width); degrees.

    Blank, superseded and excluded rows show nothing; empty without others.
    """
    tilts = np.array(sorted(row["tilt_deg"] for row in usable(rows)))
    if not tilts.size:
        return {}
    steps = np.diff(tilts)
    apart = steps[steps > same_tilt_deg]
    usual = float(np.median(apart)) if apart.size else 0.0
    gaps = (
        [[float(tilts[i]), float(tilts[i + 1])] for i in np.flatnonzero(steps > max(1.6 * usual, same_tilt_deg))] if apart.size > 2 else []
    )
    low, high = largest_gap(tilts)
    return {
        "from_deg": float(tilts[0]),
        "to_deg": float(tilts[-1]),
        "step_deg": usual,
        "gaps_deg": gaps,
        "repeats": int((steps <= same_tilt_deg).sum()),
        "wedge_deg": [low, high],
        "missing_wedge_deg": high - low,
    }
