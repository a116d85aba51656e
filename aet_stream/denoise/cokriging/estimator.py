"""All of the series estimator, in order: scan, fit, join, draw, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aet_stream.denoise import grid
from aet_stream.denoise.cokriging.drawing import Drawn, draw
from aet_stream.denoise.cokriging.gate import Verdict, judge
from aet_stream.denoise.cokriging.likelihood import bands_of, first_guess, fit, fit_warm
from aet_stream.denoise.cokriging.model import Model
from aet_stream.denoise.cokriging.posterior import Nodes, Posterior
from aet_stream.denoise.cokriging.scan import scan
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

Beat = Callable[[str, int, int], None]
"""Called between pieces of work: what, how many are done, of how many."""


MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class View:
    """One projection, as the estimator is given it."""

    seen: Seen
    first: Array
    """(rows, columns) first edition's background, means over the points of `seen`, counts"""
    expected: float = float("nan")
    """Root mean square error that it expects under the particle, counts; NaN: it does not say"""


@dataclass(frozen=True, slots=True)
class Map:
    """The film as it has been seen, all of one series together."""

    along: Array
    """(rows,) points along the tilt axis"""
    across: Array
    """(columns,) points across it, on the film"""
    film: Array
    """(films, rows, columns) counts at 0 degrees to the film; from its mean"""
    sd: Array
    """The same shape: how sure that is"""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What the series says of one projection; counts."""

    drawn: Drawn

    correction: Array
    """(rows, columns) to be added to the first edition's background, means over points; 0 where the vacuum is seen"""
    background: Array
    """(rows, columns) by the series alone"""
    sd: Array
    """(rows, columns) of it, as the ring has it; 0 where the vacuum is seen"""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Estimated:
    """A whole series."""

    model: Model
    """Lengths in points, amplitudes in `unit`"""
    scan_score: float
    """Logarithm of the share of the film's slopes that the tilts do not agree about; NaN where no scan was made"""
    unit: float
    """Counts of one unit of the model"""
    level: float
    """Counts that were taken off first"""
    map: Map
    drawings: tuple[Drawing, ...]


def estimate(
    views: Sequence[View], *, begin: Model | None = None, memory_bytes: int = MEMORY_BYTES, beat: Beat = lambda *_: None
) -> Estimated | None:
    """The backgrounds of a series.

    Parameters
    ----------
    views : every projection, registered on the particle; at least three
    memory_bytes : bound on what the films take; within less they are known less finely
    begin : the model of the same series when it was shorter: no scan, and a shorter fit

    Returns
    -------
    None where there is nothing to go by: no row of vacuum through the tilts, or no variation at all
    """
    unit = float(np.median([view.seen.span for view in views]))
    level = float(np.median([view.seen.means[~view.seen.hidden].mean() for view in views if not view.seen.hidden.all()] or [0.0]))
    series = [_scaled(view.seen, level, unit) for view in views]
    bands = bands_of(series)
    score = float("nan")
    beat("scan", 0, 1)
    if begin is None:
        found = scan(series)
        if found is None or not bands:
            return None
        score = found.score
        sd = float(np.std(np.concatenate([band.values for band in bands])))
        begin = first_guess(sd, found.height, found.turn_deg, found.slope)
        model = fit(bands, begin)
    else:
        model = fit_warm(bands, begin)
    posterior = Posterior(model, Nodes.covering(series, model, memory_bytes))
    for done, seen in enumerate(series):
        beat("join", done, len(series))
        posterior.add(seen)
    posterior.solve()
    drawn = []
    for done, seen in enumerate(series):
        beat("draw", done, len(series))
        drawn.append(draw(posterior, seen))
    apart = np.array(
        [_rms((each.background * unit + level - view.first)[view.seen.hidden]) for each, view in zip(drawn, views, strict=True)]
    )
    expected = np.nan_to_num([view.expected for view in views])
    verdicts = judge(drawn, np.array([seen.tilt_deg for seen in series]), apart / unit, expected / unit)
    drawings = []
    for view, each, verdict in zip(views, drawn, verdicts, strict=True):
        background = each.background * unit + level
        correction = np.where(view.seen.hidden, verdict.share * (background - view.first), 0.0)
        drawings.append(Drawing(each, correction, background, each.sd * unit * np.fmax(1.0, verdict.too_sure), verdict))
    film, uncertain = posterior.map()
    nodes = posterior.nodes
    return Estimated(model, score, unit, level, Map(nodes.along, nodes.across, film * unit, uncertain * unit), tuple(drawings))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _scaled(seen: Seen, level: float, unit: float) -> Seen:
    return replace(
        seen, mean=(seen.mean - level) / unit, noise=seen.noise / unit**2, means=(seen.means - level) / unit, span=seen.span / unit
    )


def drawn_on(correction: Array, point_px: int, shape: tuple[int, int]) -> Array:
    """(height, width) float32: a correction on the pixels of a frame; 0 beyond the last whole point."""
    rows, columns = (-(-edge // point_px) for edge in shape)
    padded = np.zeros((rows, columns))
    padded[: correction.shape[0], : correction.shape[1]] = correction
    return grid.draw_means(padded, point_px, shape)
