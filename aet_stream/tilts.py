"""When two tilts are the same. There are two questions: is it the same number, and is it the same place?"""

from __future__ import annotations

EQUAL_TILT_DEG = 0.01
"""One tilt that is stated twice (by two sources, for every frame) differs by no more: that is rounding."""
SAME_TILT_DEG = 0.1
"""Visits to one tilt differ by no more: a stage comes back that well. What `advice.same_tilt_deg` and `frames.tolerance_deg` are unless
somebody sets them."""
