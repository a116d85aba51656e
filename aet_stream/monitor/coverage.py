"""Which tilts there are, and which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aet_stream.monitor.shelf import Row


def coverage(rows: Sequence[Row], same_tilt_deg: float) -> dict[str, Any]:
    """Range, usual step, gaps wider than 1.6 steps, repeats, missing wedge; degrees. Empty for an empty series."""
    tilts = np.array(sorted(row["tilt_deg"] for row in rows if not row.get("superseded")))
    if not tilts.size:
        return {}
    steps = np.diff(tilts)
    apart = steps[steps > same_tilt_deg]
    usual = float(np.median(apart)) if apart.size else 0.0
    gaps = (
        [[float(tilts[i]), float(tilts[i + 1])] for i in np.flatnonzero(steps > max(1.6 * usual, same_tilt_deg))] if apart.size > 2 else []
    )
    return {
        "from_deg": float(tilts[0]),
        "to_deg": float(tilts[-1]),
        "step_deg": usual,
        "gaps_deg": gaps,
        "repeats": int((steps <= same_tilt_deg).sum()),
        # a projection at t and one at t + 180 show the same
        "missing_wedge_deg": max(0.0, 180.0 - float(tilts[-1] - tilts[0]) - usual),
    }
