"""How much each projection counts in a volume: less where its background may be wrong.

In weighted least squares a projection counts for 1 / variance: what all projections are off by anyhow (counting noise, the solver's own
error), and what the background of this one is expected to be wrong by.
"""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.registered import bin_factor, binned

HALF = 0.05
"""Expected error of a background, as a share of the particle's range, at which a projection counts for half; found on simulated series of
films that turn (docs/adr/0025)."""
_BLOCKS = 64
"""Along a frame: the range is that of their means, 0.5 to 99.5 percent, as trust has it."""


def by_expected_error(projections: Array, expected_error: Array) -> Array | None:
    """(tilts,) float32, above 0 and at most 1; None: all count alike.

    Parameters
    ----------
    projections : (tilts, y, x) float32, clean
    expected_error : (tilts,) root mean square errors of their backgrounds, in the same units; NaN: nobody has said, and it counts whole
    """
    means = binned(projections, bin_factor(projections, _BLOCKS)).reshape(len(projections), -1)
    low, high = np.percentile(means, (0.5, 99.5), axis=1)
    share = np.nan_to_num(expected_error / max(float(np.median(high - low)), 1e-30), nan=0.0, posinf=1e6)
    weights: Array = (1 / (1 + np.square(share / HALF))).astype(np.float32)
    return weights if weights.min() < weights.max() else None
