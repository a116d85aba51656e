"""How much each projection counts in a volume: less where its background may be wrong, as far as a background reaches.

In generalised least squares (Aitken, Proc. R. Soc. Edinb. 55 (1936) 42) what is measured counts by the inverse of its errors' covariance.
Those of a projection are noise, and what is wrong with its background, which has no detail finer than its blocks: what is smooth in a
residual counts for less, and what atoms make of it counts whole.
"""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.registered import bin_factor, binned

HALF = 0.03
"""Expected error of a background, as a share of the particle's range, at which it counts for half: where trust is a half (trust.py). On
simulated series of films that turn, .02 to .05 are about as good (docs/adr/0025)."""
_BLOCKS = 64
"""Along a frame, as backgrounds are drawn over (denoise/features.py)."""


def by_expected_error(projections: Array, expected_error: Array) -> Array | None:
    """(tilts,) float32, above 0 and at most 1, as are half of them at least; None: all are.

    Parameters
    ----------
    projections : (tilts, y, x) float32, clean
    expected_error : (tilts,) root mean square errors of their backgrounds, in the same units; NaN: nobody has said, and it counts whole
    """
    means = binned(projections, bin_factor(projections, _BLOCKS)).reshape(len(projections), -1)
    low, high = np.percentile(means, (0.5, 99.5), axis=1)  # as trust has it
    share = np.nan_to_num(expected_error / max(float(np.median(high - low)), 1e-30), nan=0.0, posinf=1e6)
    counts = 1 / (1 + np.square(share / HALF))
    weights: Array = np.minimum(counts / np.median(counts), 1).astype(np.float32)
    return weights if weights.min() < 1 else None


class Weighing:
    """Of residuals: what is smooth in them counts for less, by its projection."""

    def __init__(self, weights: Array, width: int) -> None:
        """`weights`: (tilts,); `width` of the projections, px."""
        self.less = (1 - weights).astype(np.float32)
        """(tilts,) what does not count"""
        at = np.arange(width)
        windows = np.exp(-np.square((at[:, None] - at) * (_BLOCKS / width)) / 2)
        self.smooth = (windows / windows.sum(1, keepdims=True)).astype(np.float32)
        """(width, width) means in Gaussian windows of one block"""

    def weigh(self, missing: Array, rays: slice) -> None:
        """In place.

        Parameters
        ----------
        missing : (tilts * width, slices) float32 of some tilts
        rays : which these are, of all
        """
        width = len(self.smooth)
        for view, less in zip(missing.reshape(-1, width, missing.shape[1]), self.less[rays.start // width :], strict=False):
            if less > 0:
                view -= less * (self.smooth @ view)
