"""What may be wrong with the background of one projection, as the series has it.

Where both the films and the first edition are in a background, by what each says and by how far they are apart: of a mixture of two, the
variance is the mean of their variances and that of their means (Hoeting et al., Stat. Sci. 14 (1999) 382). What can be tried is the vacuum
that was held back: a model that is wrong there is wrong under the particle as well. And of one particle the total is the same in all
projections: where it strays by far more than usual, particle was taken for background, or background for particle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.denoise.cokriging.drawing import Drawn
from aet_stream.denoise.cokriging.gate import Verdict
from aet_stream.denoise.cokriging.seen import in_blocks
from aet_stream.projection import Array

_CURVED = 24.0
"""The mean of a square is off its middle by its edge squared times the Laplacian, over this (a parabola's)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Root mean squares over the frame, counts."""

    spread: float
    """What the series states under the particle, as often as the ring is off by more, times its share of the background"""
    guessed: float
    """What no projection shows, times the share of the series"""
    unseen: float
    """What may lie where no projection shows the films, whichever background is taken; by the square of the share that is unseen once
    more, so that it counts where hardly any of it is shown"""
    apart: float
    """Standard deviation of the mixture, because of how far the first edition and the series are apart"""
    ring: float
    """Error of the vacuum around the particle, held back, by the series, as if it were so all over the particle; NaN: there is none"""
    total: float
    """By how much the particle's total strays, beyond what is usual"""
    vacuum: float
    """What the series states where the vacuum is seen, times its share of the background there"""
    bent: float
    """How far the background bends between blocks, where the vacuum is seen: it is drawn from their means"""


def gather(
    drawn: Drawn, verdict: Verdict, background: Array, apart: Array, hidden: Array, stray: float, unit: float, in_vacuum: float
) -> Evidence:
    """Of one projection.

    Parameters
    ----------
    drawn : in units of the model, of which one is `unit` counts
    background : as it is with its share of the series, means over blocks, counts
    apart : (rows, columns) the series' background less that, counts; 0 where the vacuum is seen
    hidden : (rows, columns) bool
    stray : by totals.beyond, counts
    in_vacuum : share of the series in the background where the vacuum is seen
    """
    covered = unit * float(np.sqrt(hidden.mean()))
    share = verdict.share
    middle, vacuum = background[1:-1, 1:-1], ~in_blocks(hidden)[1:-1, 1:-1]
    bends = 4 * middle - background[2:, 1:-1] - background[:-2, 1:-1] - background[1:-1, 2:] - background[1:-1, :-2]
    return Evidence(
        spread=share * float(np.fmax(verdict.too_sure, 1.0)) * drawn.series_sd * covered,
        guessed=share * drawn.guessed * covered,
        unseen=drawn.unseen**2 * drawn.unseen_sd * covered,
        apart=float(np.sqrt(share * (1 - share) * np.mean(np.square(apart)))),
        ring=drawn.by_series.error * covered,
        total=stray,
        vacuum=in_vacuum * drawn.vacuum_sd * unit * float(np.sqrt(1 - hidden.mean())),
        bent=float(np.sqrt(np.mean(np.square(bends * vacuum)))) / _CURVED,
    )
