"""Is the series believed, of each projection? As far as it knows more than the projection does alone, and foretells better what is seen.

The model states how much the vacuum of all projections leaves open under the particle, and how much that of this one alone: where nothing
turns with the specimen, both are the same, and the first edition stays. How far the model may be believed is tried: a ring of vacuum around
the particle is held back (drawing.py) and foretold by the series and by the rest of this projection alone. Where the series does no better,
it is not believed: what it takes for films is something else. Errors larger than stated make the series' standard deviation as much larger,
which is doubled for what the ring cannot show: it lies nearer to the vacuum than what is hidden. What is doubted of the projection's vacuum
(doubted.py) is doubted under its particle as well, and a good part of what the films would be where no projection shows them: contamination
that is fixed to the particle looks like a film through it. So is as much as the films vary elsewhere, for what no projection shows need not
be like the rest. Of the first edition's error, the geometric mean counts of what it expects itself and of what the model leaves open, or
what the particle's totals say (totals.py) where that is more; what they say of the series is added to its own. Then both are weighed so
that the variance of the mixture is least, were their errors half alike: both come from the same vacuum around the same particle (Bates &
Granger, Oper. Res. Q. 20 (1969) 451). What they are apart says that one of them is wrong, and not which; but where the particle is not
where the first edition has it (supports.py), it is that one, and by all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from aet_stream.denoise.cokriging.drawing import Drawn
from aet_stream.denoise.cokriging.totals import Strayed
from aet_stream.projection import Array

_KNOWS_MORE, _KNOWS_NO_MORE = 0.7, 0.9
"""What the series leaves open, over what the projection alone does: up to the first the series counts whole, from the second on not."""
_FORETELLS, _FORETELLS_NO_BETTER = 0.8, 1.0
"""Error of the ring by the series, over that by the projection alone, likewise"""
DOUBLED = 2.0
"""What the model states, for what the ring cannot show"""
_ALIKE = 0.5
"""Correlation of the errors of the films and of the first edition"""
_ALL, _NOTHING = 0.9, 0.1
"""Shares of the series above and below which it is called taken, and the projection left as it was."""
_NEIGHBOURS_DEG = 8.0
"""Tilts that share what is known of the ring: one ring has few independent points."""


class Taken(StrEnum):
    """Whose background a projection has."""

    SERIES = "series"
    MIXED = "mixed"
    SINGLE = "single"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one projection."""

    taken: Taken
    share: float
    """Of the series in the mixture, 0..1"""
    score: float
    """What the series leaves open under the particle, over what the projection alone leaves open; 1: it knows nothing of its own"""
    too_sure: float
    """Error of the ring that was held back, over what the model states, with its neighbours; NaN: there is no ring"""
    foretold: float
    """Error of the ring by the series, over that by the projection alone, with its neighbours or of all, whichever is larger"""
    first_off: float
    """Error of the first edition under the particle, as it is judged here: root mean square, units of what is judged"""
    series_off: float
    """The same of the series"""


def judge(drawn: Sequence[Drawn], tilts_deg: Array, expected: Array, doubt: Array, totals: Strayed, elsewhere: Array) -> list[Verdict]:
    """One verdict for each projection.

    Parameters
    ----------
    expected : (n,) what the first edition expects its own error to be there; NaN: it does not say
    doubt : (n,) by how much the vacuum of each is foretold worse than is stated
    totals : errors as the particle's totals tell them
    elsewhere : (n,) bool: the particle is not where the first edition has it (supports.py)
    """
    too_sure = _with_neighbours(np.array([each.by_series.error / each.by_series.stated for each in drawn]), tilts_deg)
    worse = np.array([each.by_series.error / each.alone.error for each in drawn])
    worse = np.fmax(_with_neighbours(worse, tilts_deg), _mean(worse))
    found = []
    told_of_films = np.hypot(totals.series, totals.missed)
    columns = (too_sure, expected, worse, doubt, totals.first, told_of_films, elsewhere)
    for each, sure, own, foretold, more, told, told_of_film, wrong in zip(drawn, *(column.tolist() for column in columns), strict=True):
        score = each.series_sd / each.alone_sd if each.alone_sd else float("nan")
        by_films = (DOUBLED * max(sure, 1.0) * each.series_sd) ** 2 + each.guessed**2 + each.unseen_sd**2 + told_of_film**2
        by_itself = max((own if np.isfinite(own) else each.alone_sd) * (own if wrong else each.alone_sd), told**2)
        together = _ALIKE * np.sqrt(by_films * by_itself)
        share = np.clip((by_itself - together) / (by_itself + by_films + more**2 - 2 * together), 0, 1)
        believed = _falling(score, _KNOWS_MORE, _KNOWS_NO_MORE) * _falling(foretold, _FORETELLS, _FORETELLS_NO_BETTER)
        share *= 1.0 if wrong else believed
        found.append(_verdict(float(share), score, sure, foretold, float(np.sqrt(by_itself)), float(np.sqrt(by_films + more**2))))
    return found


def share_in_vacuum(share: float, by_first: Array, by_series: Array, noise: Array) -> float:
    """Share of the series where the vacuum is seen: as under the particle, if it leaves no more of the vacuum than the first edition and
    noise do; none from twice as much on.

    Parameters
    ----------
    share : under the particle, 0..1
    by_first, by_series : (n,) what both leave of the means of blocks of vacuum
    noise : (n,) variances of these means
    """
    usual = float(np.mean(np.square(by_first) + noise)) if by_first.size else 0.0
    return share * _falling(float(np.mean(np.square(by_series))) / usual, 1.0, 2.0) if usual else share


def _falling(value: float, whole: float, nothing: float) -> float:
    """1 up to the one, 0 from the other on."""
    return float(np.clip((nothing - value) / (nothing - whole), 0, 1))


def _mean(ratios: Array) -> float:
    """Geometric, of what is known; NaN for none."""
    known = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.exp(np.log(known).mean())) if known.size else float("nan")


def _with_neighbours(ratios: Array, tilts_deg: Array) -> Array:
    """Geometric means over tilts that are near; NaN where nothing is known of itself."""
    known = np.isfinite(ratios) & (ratios > 0)
    weights = np.exp(-np.square((tilts_deg[:, None] - tilts_deg) / _NEIGHBOURS_DEG) / 2) * known
    logarithms = np.log(np.where(known, ratios, 1.0))
    return np.where(known, np.exp(weights @ logarithms / np.maximum(weights.sum(1), 1e-12)), np.nan)


def _verdict(share: float, score: float, too_sure: float, foretold: float, first_off: float, series_off: float) -> Verdict:
    if not share > _NOTHING or np.isnan(too_sure):  # nor where it is not known
        return Verdict(Taken.SINGLE, 0.0, score, too_sure, foretold, first_off, series_off)
    return Verdict(Taken.SERIES if share > _ALL else Taken.MIXED, share, score, too_sure, foretold, first_off, series_off)
