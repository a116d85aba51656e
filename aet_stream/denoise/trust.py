"""Figures that go with every subtraction, and how far they may be believed.

`trust` compares two estimates: where network and Laplace agree about the background, and vacuum is seen, both are probably right.
It is a ranking (0..1), not an error bar: it is not calibrated against true errors.
"""

from __future__ import annotations

import numpy as np

from aet_stream.denoise import grid
from aet_stream.denoise.classical import Vacuum
from aet_stream.projection import Array, Quality

_ENOUGH_VACUUM = 0.25
_BAD_DISAGREEMENT = 0.10
"""Difference of the two backgrounds, as a share of the frame's range, at which trust has fallen to 1/e."""


def blank_quality(model: str, sha256: str) -> Quality:
    """Every pixel has the same value: nothing was subtracted, nothing can be said."""
    return Quality(model=model, model_sha256=sha256, blank=True)


def judge(
    clean: Array, background: Array, laplace: Array, vacuum: Vacuum, *, model: str, sha256: str, device: str, precision: str
) -> Quality:
    """Figures of one subtraction; all arrays (height, width) float32 in counts."""
    block = vacuum.block_px
    means, _, _, noise = grid.statistics(clean, block)
    seen = ~vacuum.mask
    low, high = np.percentile(means, (1, 99))
    disagreement = float(np.sqrt(np.mean((grid.at_centres(background - laplace, block)) ** 2)))
    visible = min(1.0, vacuum.fraction / _ENOUGH_VACUUM)
    relative = disagreement / max(float(high - low), 1e-9)
    return Quality(
        model=model,
        model_sha256=sha256,
        background_mean=float(background.mean()),
        vacuum_noise=float(np.sqrt(np.mean(noise[seen] ** 2))) if seen.any() else float("nan"),
        vacuum_residual=float(means[seen].mean()) if seen.any() else float("nan"),
        vacuum_fraction=vacuum.fraction,
        laplace_rms=disagreement,
        trust=float(visible * np.exp(-relative / _BAD_DISAGREEMENT)),
        device=device,
        precision=precision,
    )
