"""All of the series estimator, in order: scan, fit, join, draw, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aet_stream.denoise import grid
from aet_stream.denoise.cokriging.doubted import doubted
from aet_stream.denoise.cokriging.drawing import Drawn, draw
from aet_stream.denoise.cokriging.evidence import Evidence, gather
from aet_stream.denoise.cokriging.gate import Verdict, judge, share_in_vacuum
from aet_stream.denoise.cokriging.likelihood import Band, bands_of, first_guess, fit, fit_warm, likelier, surprise, with_more_films
from aet_stream.denoise.cokriging.model import Model
from aet_stream.denoise.cokriging.posterior import Nodes, Posterior
from aet_stream.denoise.cokriging.registered import astray, brought_back, by_film, placed
from aet_stream.denoise.cokriging.scan import Scanned
from aet_stream.denoise.cokriging.seen import Seen, in_blocks, pooled
from aet_stream.denoise.cokriging.supports import found_elsewhere, supported
from aet_stream.denoise.cokriging.totals import beyond, lost, strayed
from aet_stream.projection import Array

Beat = Callable[[str, int, int], None]
"""Called between pieces of work: what, how many are done, of how many."""


MEMORY_BYTES = 1 << 30
_DOUBTED = 1.5
"""Error of the vacuum next to the particles, over what is stated, above which they may reach farther than is known"""
_REGISTERED = 2
"""So often projections are registered by the film"""
_ROUGHLY, _THINNED = 1.3, 2
"""So much coarser a film is enough for that, and one window in so many"""


@dataclass(frozen=True, slots=True)
class View:
    """One projection, as the estimator is given it."""

    seen: Seen
    first: Array
    """First edition's background, means over the blocks of `seen`, counts"""
    expected: float = float("nan")
    """Root mean square error that it expects under the particle, counts; NaN: it does not say"""
    lies: tuple[float, float] = (0.0, 0.0)
    """Along and across the axis, points: how far its specimen lies from where it would turn about the middle, as its particle has it"""
    total: float = float("nan")
    """Of its particle by the first edition, counts, a sum of means over points; the same at all tilts, but where a part of it was taken for
    background; NaN: unknown"""


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

    seen: Seen
    """In register, in units of the model"""
    drawn: Drawn
    correction: Array
    """To be added to the first edition's background, means over blocks"""
    background: Array
    """By the series alone, means over blocks"""
    sd: Array
    """(rows, columns) of it, over points, as the ring has it, with what is doubted; 0 where the vacuum is seen"""
    verdict: Verdict
    """With errors in counts"""
    in_vacuum: float
    """Share of the series in the background where the vacuum is seen"""
    evidence: Evidence
    elsewhere: bool
    """The particle is not where the first edition has it (supports.py)"""


@dataclass(frozen=True, slots=True)
class Estimated:
    """A whole series."""

    model: Model
    """Lengths in points, amplitudes in `unit`"""
    scan_score: float
    """Logarithm of the share of the film's slopes that the tilts do not agree about"""
    unit: float
    """Counts of one unit of the model"""
    level: float
    """Counts that were taken off first"""
    map: Map
    drawings: tuple[Drawing, ...]

    @property
    def off(self) -> float:
        """Error of the vacuum next to the particles, held back, over what the model states, before it is doubted: median; NaN where there
        is none."""
        known = [drawing.seen.off for drawing in self.drawings if np.isfinite(drawing.seen.off)]
        return float(np.median(known)) if known else float("nan")


def estimate(
    views: Sequence[View], *, begin: Model | None = None, memory_bytes: int = MEMORY_BYTES, beat: Beat = lambda *_: None
) -> Estimated | None:
    """The backgrounds of a series. Where the vacuum next to the particles is not what it is foretold to be, they may reach farther than is
    known: then it is done again with a margin, and that is kept if it foretells more truly.

    Parameters
    ----------
    views : every projection; at least three
    memory_bytes : bound on what the films take; within less they are known less finely
    begin : the model of the same series when it was shorter: a shorter fit

    Returns
    -------
    None where there is nothing to go by: no row of vacuum through the tilts, or no variation at all
    """
    found = _estimate(views, begin=begin, memory_bytes=memory_bytes, beat=beat)
    if found is None or not found.off > _DOUBTED:
        return found
    margins = [replace(view, seen=view.seen.wary()) for view in views]
    again = _estimate(margins, begin=begin, memory_bytes=memory_bytes, beat=beat)
    return again if again is not None and again.off < found.off else found


def _estimate(views: Sequence[View], *, begin: Model | None, memory_bytes: int, beat: Beat) -> Estimated | None:
    unit = float(np.median([view.seen.span for view in views]))
    level = float(np.median([view.seen.means[~view.seen.hidden].mean() for view in views if not view.seen.hidden.all()] or [0.0]))
    series = [
        _of_no_use(_scaled(view.seen, level, unit)) if useless else _scaled(view.seen, level, unit)
        for view, useless in zip(views, lost(np.array([view.total for view in views])), strict=True)
    ]
    beat("scan", 0, 1)
    starts = [(*start, bands_of(start[0])) for start in placed(series, np.array([view.lies for view in views]))]
    fitted = [(there, found, bands, _fitted(bands, found, begin)) for there, found, bands in starts if bands]
    if not fitted:
        return None
    series, found, _, model = min(fitted, key=lambda each: surprise(*each[2:]))
    astray_by = astray(series)
    if 0 < np.any(astray_by, axis=1).sum() < len(series) / 2:
        beat("gather", 0, 1)
        others = [seen for seen, at in zip(series, astray_by, strict=True) if not at.any()]
        series = brought_back(_roughly(model, others, memory_bytes), series, astray_by)
    beat("supports", 0, 1)
    given, series = series, supported(_roughly(model, series, memory_bytes), series)
    if any(one is not other for one, other in zip(given, series, strict=True)):  # films that a lost particle had bent named others, too
        model = fit_warm(bands_of(series), model)
        series = supported(_roughly(model, series, memory_bytes), given)
    elsewhere = np.array([found_elsewhere(one, other) for one, other in zip(given, series, strict=True)])
    series, model = _with_fewest_films(model, series, memory_bytes, beat)
    posterior = Posterior(model, Nodes.covering(series, model, memory_bytes))
    for done, seen in enumerate(series):
        beat("join", done, len(series))
        posterior.add(seen)
    posterior.solve()
    drawn = []
    for done, seen in enumerate(series):
        beat("draw", done, len(series))
        drawn.append(draw(posterior, seen))
    tilts_deg, doubt = (np.array([getattr(seen, name) for seen in series]) for name in ("tilt_deg", "doubt"))
    changing = [view.seen.hidden | seen.hidden for view, seen in zip(views, series, strict=True)]
    everywhere = [each.background * unit + level - view.first for view, each in zip(views, drawn, strict=True)]
    apart = [np.where(where, pooled(each), 0.0) for each, where in zip(everywhere, changing, strict=True)]
    first = np.array([view.total for view in views]) / unit
    by_series = first - np.array([each.sum() for each in apart]) / unit
    hidden = np.array([where.sum() for where in changing])
    totals = strayed(first, by_series, hidden, tilts_deg)
    verdicts = judge(drawn, tilts_deg, _expected(views, apart, elsewhere) / unit, doubt, totals, elsewhere)
    shares = np.array([verdict.share for verdict in verdicts])
    strays = unit * beyond(first + shares * (by_series - first), hidden, views[0].seen.hidden.size)
    drawings = []
    columns = (views, series, drawn, verdicts, changing, everywhere, apart, strays.tolist(), elsewhere.tolist())
    for view, seen, each, verdict, where, change, away, stray, wrong in zip(*columns, strict=True):
        background = each.background * unit + level
        vacuum = ~in_blocks(where)
        left, noise = (view.seen.blocks.means - view.first)[vacuum], view.seen.blocks.noise[vacuum]
        in_vacuum = share_in_vacuum(verdict.share, left, left - change[vacuum], noise)
        correction = change * np.where(vacuum, in_vacuum, verdict.share)
        spread = np.where(where, np.hypot(each.sd * np.fmax(1.0, verdict.too_sure), seen.doubt), 0.0) * unit
        verdict = replace(verdict, first_off=verdict.first_off * unit, series_off=verdict.series_off * unit)
        evidence = gather(each, verdict, view.first + correction, away, where, stray, unit, in_vacuum)
        drawings.append(Drawing(seen, each, correction, background, spread, verdict, in_vacuum, evidence, wrong))
    film, uncertain = posterior.map()
    nodes = posterior.nodes
    return Estimated(model, found.best.score, unit, level, Map(nodes.along, nodes.across, film * unit, uncertain * unit), tuple(drawings))


def _with_fewest_films(model: Model, series: list[Seen], memory_bytes: int, beat: Beat) -> tuple[list[Seen], Model]:
    """Projections in register by the films that the vacuum asks for, and the model of these. Out of register one film looks like several,
    and films that are not there keep the projections out of register: so the strongest is tried alone, and others are asked for after
    that. Where there are some, the likelier is taken."""
    if len(model.films) == 1:
        return _registered(model, series, memory_bytes, beat)
    there, one = _registered(fit_warm(bands_of(series), model.strongest), series, memory_bytes, beat)
    more = with_more_films(bands_of(there), one)
    if len(more.films) == 1:
        return there, one
    return min((there, more), _registered(model, series, memory_bytes, beat), key=lambda found: _surprise(*found))


def _registered(model: Model, series: list[Seen], memory_bytes: int, beat: Beat) -> tuple[list[Seen], Model]:
    """Projections in register by so many films, and the model for it."""
    for turn in range(_REGISTERED):
        beat("register", turn, _REGISTERED)
        rough = _roughly(model, series, memory_bytes)
        series = doubted(rough, series, _THINNED)
        series, model = likelier(series, by_film(rough, series), model)
    return series, model


def _surprise(series: Sequence[Seen], model: Model) -> float:
    """At what is seen of the vacuum, nothing of it doubted."""
    return surprise(bands_of([replace(seen, noise=seen.measured) for seen in series]), model)


def _expected(views: Sequence[View], apart: Sequence[Array], elsewhere: Array) -> Array:
    """(n,) what the first editions expect of themselves; of the background of a particle that lies elsewhere, that it is wrong."""
    wrong = np.array([float(np.sqrt(np.mean(np.square(away[away != 0])))) if away.any() else 0.0 for away in apart])
    return np.where(elsewhere, wrong, [view.expected for view in views])


def _roughly(model: Model, series: Sequence[Seen], memory_bytes: int) -> Posterior:
    """By one window in some, at nodes farther apart."""
    rough = Posterior(model, Nodes.covering(series, model, memory_bytes, coarser=_ROUGHLY))
    for seen in series:
        rough.add(seen.thinned(_THINNED))
    rough.solve()
    return rough


def _fitted(bands: Sequence[Band], found: Scanned, begin: Model | None) -> Model:
    """From the model of the series when it was shorter; or from where a scan has found the film, and from there without turn or slope."""
    if begin is not None:
        return fit_warm(bands, begin)
    sd = float(np.std(np.concatenate([band.values for band in bands])))
    return fit(bands, [first_guess(sd, lie.height, lie.turn_deg, lie.slope) for lie in dict.fromkeys((found.best, found.level))])


def _of_no_use(seen: Seen) -> Seen:
    """So noisy that it says nothing of the films."""
    return replace(seen, noise=seen.noise + 1, measured=seen.measured + 1, lost=True)


def _scaled(seen: Seen, level: float, unit: float) -> Seen:
    blocks = seen.blocks
    return replace(
        seen,
        blocks=replace(blocks, means=(blocks.means - level) / unit, noise=blocks.noise / unit**2, span=blocks.span / unit),
        mean=(seen.mean - level) / unit,
        noise=seen.noise / unit**2,
        measured=seen.measured / unit**2,
        means=(seen.means - level) / unit,
    )


def drawn_on(correction: Array, block_px: int, shape: tuple[int, int]) -> Array:
    """(height, width) float32: a correction on the pixels of a frame; beyond the last whole point, as it is there."""
    missing = [(0, -(-edge // block_px) - blocks) for edge, blocks in zip(shape, correction.shape, strict=True)]
    return grid.draw_means(np.pad(correction, missing, mode="edge"), block_px, shape)
