"""Figures that go with every subtraction, and how far they may be believed.

`expected_error` is calibrated: the root mean square error of the background, predicted from what can be seen without the truth (what the
network expects, how far classical estimates disagree, how much vacuum there is, ...) by a linear rule fitted on simulated frames whose
truth is known. Its coefficients stand in the card of each network. `trust` is the same on a scale from 0 to 1: a half where the error is
expected to be 3 % of the particle's range.

What reaches the frame's side may be a film that was taken for a particle, and then all of it is error. No figure of the rule knows of that:
a share of it is added (_FILM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from scipy.ndimage import binary_dilation

from aet_stream.denoise import beside, grid
from aet_stream.denoise.estimate import Estimate, Image
from aet_stream.denoise.vacuum import Vacuum
from aet_stream.projection import Array, Quality

HALF_TRUSTED = 0.03
"""Expected error, as a share of the particle's range, at which trust is a half."""
WITHOUT_CARD: Mapping[str, float] = {"intercept": -0.9, "gp": 0.35, "laplace": 0.35}
"""For an estimator of which no rule is known: half of how far Laplace and the Gaussian process are away, on a logarithmic scale."""
UNNAMED = Quality("", "")
_IN_COUNTS = (
    "background_mean", "vacuum_noise", "vacuum_residual", "laplace_rms", "gp_rms", "expected_error", "total_intensity",
)  # fmt: skip
_FILM = 0.2
"""Error of what reaches the frame's side, as a share of it: as if 4 in 100 such pieces were film; from simulated films that turn."""
_LEAST = 1e-4
"""Shares of the range below this are all alike."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is seen of one subtraction without knowing the truth."""

    figures: Quality
    """All that is stored of it, but the error that is expected"""
    range: float
    """Range of the clean frame's block means, 0.5 to 99.5 percent, counts"""
    background_std: float
    vacuum_texture: float
    """Standard deviation within blocks of the vacuum as acquired, with the slope of the background; counts"""
    at_sides: float
    """Root mean square over the frame of what an estimator left as a particle that reaches its side, counts"""
    doubts: Mapping[str, float]
    """What the estimator itself is unsure of, counts"""

    def features(self) -> dict[str, float]:
        """What the rule is linear in: logarithms of shares of the range, and shares of the frame."""
        shares = {
            **self.doubts,
            "laplace": self.figures.laplace_rms,
            "gp": self.figures.gp_rms,
            "background": self.background_std,
            "noise": self.vacuum_texture,
            "residual": abs(self.figures.vacuum_residual),
        }
        logarithms = {
            name: float(np.log10(max(value / max(self.range, 1e-12), _LEAST))) for name, value in shares.items() if value == value
        }
        return logarithms | {"vacuum": self.figures.vacuum_fraction, "edge": self.figures.edge_contact}


def gather(image: Image, estimate: Estimate, about: Quality = UNNAMED) -> Evidence:
    """Evidence of one subtraction, beside what is known `about` it."""
    classical = image.classical
    vacuum, blocks = image.vacuum, image.blocks
    clean = image.pixels - estimate.background
    block = blocks.block_px
    means, deviation = grid.mean_and_deviation(grid.in_blocks(clean, block))
    support = classical_support(vacuum, image.shape, block) if estimate.support is None else estimate.support
    seen: Array = np.logical_not(binary_dilation(support))
    rim = np.concatenate([support[0], support[-1], support[1:-1, 0], support[1:-1, -1]])
    low, high = np.percentile(means, (0.5, 99.5))
    below = grid.at_centres(estimate.background, vacuum.block_px)
    total, x_px, y_px = moments(means, seen, image.shape, block)
    figures = msgspec.structs.replace(
        about,
        background_mean=float(estimate.background.mean()),
        vacuum_noise=_rms(deviation[seen]),
        vacuum_residual=float(means[seen].mean()) if seen.any() else float("nan"),
        vacuum_fraction=float(seen.mean()),
        edge_contact=float(rim.mean()),
        laplace_rms=_rms(below - classical().laplace),
        gp_rms=_rms(below - classical().gaussian_process),
        total_intensity=total,
        mass_x_px=x_px,
        mass_y_px=y_px,
    )
    texture = _rms(blocks.statistics[3][seen] * blocks.span)
    at_sides = 0.0 if estimate.support is None else _rms(np.where(beside.touching(support), means, 0.0))
    return Evidence(figures, float(high - low), float(estimate.background.std()), texture, at_sides, estimate.doubts)


def moments(means: Array, seen: Array, shape: tuple[int, int], block: int) -> tuple[float, float, float]:
    """(total, x px, y px): sum of a clean frame over its particle, and where the centre of its mass lies from the frame's middle; NaN where
    there is next to none.

    Parameters
    ----------
    means, seen : (rows, columns) of its blocks; True where vacuum is seen
    """
    weights = np.where(seen, 0.0, means)
    total = float(weights.sum())
    y, x = ((np.arange(n) + 0.5) * block - size / 2 for n, size in zip(means.shape, shape, strict=True))
    if total <= 0.02 * float(np.abs(means).sum()):
        return total * block * block, float("nan"), float("nan")
    return total * block * block, float(weights.sum(0) @ x / total), float(weights.sum(1) @ y / total)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else float("nan")


def classical_support(vacuum: Vacuum, shape: tuple[int, int], block: int) -> Array:
    """(rows, columns) bool: the mask of the classical estimates on the network's grid."""
    pixels = np.kron(vacuum.mask, np.ones((vacuum.block_px,) * 2, bool))[: shape[0], : shape[1]]
    support: Array = grid.in_blocks(pixels, block).max((1, 3))
    return support


def expected_share(evidence: Evidence, rule: Mapping[str, float]) -> float:
    """Expected error as a share of the particle's range: by a linear rule for its logarithm, and as a film may be taken for a particle."""
    logarithm = rule["intercept"] + sum(rule.get(name, 0.0) * value for name, value in evidence.features().items())
    return float(np.hypot(10 ** min(logarithm, 1.0), _FILM * evidence.at_sides / max(evidence.range, 1e-12)))


def trust_of(share: float) -> float:
    """1 for no error, a half for HALF_TRUSTED, towards 0 beyond."""
    return float(1 / (1 + (share / HALF_TRUSTED) ** 2))


def blank_quality(model: str, sha256: str) -> Quality:
    """Every pixel has the same value: nothing was subtracted, nothing can be said."""
    return Quality(model=model, model_sha256=sha256, blank=True)


def judge(evidence: Evidence, rule: Mapping[str, float], *, unit: float) -> Quality:
    """The figures that are stored with a projection; `unit`: how many counts one of the evidence is."""
    share = expected_share(evidence, rule)
    figures = msgspec.structs.replace(evidence.figures, expected_error=share * evidence.range, trust=trust_of(share))
    return msgspec.structs.replace(figures, **{name: getattr(figures, name) * unit for name in _IN_COUNTS})
