"""What the vacuum itself says of the model: its marginal likelihood over bands of rows, and its gradient.

A place of a film stays in its row (but for the slope), so a row of points, through the tilts, holds nearly all that one place of a film has
to say. A few rows count as independent (composite likelihood). Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), 5.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from aet_stream.denoise.cokriging.model import FILM_LENGTHS, LEVEL, OWN_LENGTHS, Film, Model
from aet_stream.denoise.cokriging.seen import Seen
from aet_stream.projection import Array

_MOST_TILTS = 14
_BANDS = (0.3, -0.5, 0.8, -0.8)
_FEWEST = 40
"""Windows without which a band says nothing"""
_FIRST, _THEN = 8, 24
"""Steps of a first search, or one that begins near; of the whole one"""
_HEIGHT, _TURN_DEG, _SLOPE = 0.25, 0.3, 0.01
"""Of the geometry, one unit of the search."""
_HEIGHT_SD, _TURN_SD_DEG, _SLOPE_SD = 10.0, 5.0, 0.1
_AMPLITUDE_SD = 3.0
"""Of the logarithm of an amplitude, about a tenth of the vacuum's standard deviation."""
_QUIET = 0.12
"""Own parts that are less than this share of the film (standard deviations) leave nothing for another film, but for one that grows: its
errors all projections share, the more the later they come."""
_MOST_FILMS = 3
_ASIDE = 4.0
"""Points above and below the film where another one is looked for, beside where it would be on the particle's other side"""
_ASKED_FOR = 20.0
"""Of the logarithm of the likelihood, what another film has to win: more than its five parameters do (Schwarz, Ann. Stat. 6 (1978) 461)."""
_LONGEST = 2.0
"""Of one step, in every parameter."""
_PROBES = 48
"""Random vectors by which a curvature is estimated"""
_ENOUGH = 1.0
"""A step that wins less is the last."""
_ROUNDING = 2e-7
"""Of the largest variance, what single precision leaves uneven"""
WIDE = 1 / 12
"""Variance of where in its window of one point a pixel lies, points squared"""
_FARTHEST, _MOST_TURN_DEG, _STEEPEST = 20.0, 12.0, 0.25


class Band:
    """Windows of one row through several tilts, and what of their covariance no parameter changes."""

    def __init__(self, series: Sequence[Seen], picked: Sequence[int], place: float) -> None:
        """`place`: of the row along the axis, points."""
        kept = [np.flatnonzero((np.abs(series[k].along - place) <= 0.5) & (series[k].edge == 1)) for k in picked]
        counts = [len(each) for each in kept]
        self.tilts_deg = np.repeat([series[k].tilt_deg for k in picked], counts)
        rows = [(series[k], each) for k, each in zip(picked, kept, strict=True)]
        self.time = np.repeat([series[k].time for k in picked], counts)
        self.gain = np.repeat([series[k].gain for k in picked], counts)
        self.along = np.concatenate([seen.along[each] for seen, each in rows])
        self.across = np.concatenate([seen.across[each] for seen, each in rows])
        self.noise = np.concatenate([seen.noise[each] for seen, each in rows])
        self.values = np.concatenate([seen.mean[each] for seen, each in rows])
        which = np.repeat(np.arange(len(picked)), counts)
        signs = np.random.default_rng(0).integers(0, 2, (len(which), _PROBES))
        self.probes = (2 * signs - 1).astype(np.float32)
        self.together = (which[:, None] == which).astype(np.float64)
        along2, across2 = (np.square(at[:, None] - at) for at in (self.along, self.across))
        broader = [length**2 + 2 * WIDE for length in OWN_LENGTHS]
        self.own = [
            self.together * (length**2 / wide) * np.exp((along2 + across2) / (-2 * wide))
            for length, wide in zip(OWN_LENGTHS, broader, strict=True)
        ]
        broader = [length**2 + 2 * WIDE for length in FILM_LENGTHS]
        self.by_along = [
            (length**2 / wide**0.5 * np.exp(along2 / (-2 * wide))).astype(np.float32)
            for length, wide in zip(FILM_LENGTHS, broader, strict=True)
        ]


def bands_of(series: Sequence[Seen], at: Sequence[float] = _BANDS, most_tilts: int = _MOST_TILTS) -> list[Band]:
    """Rows of points at these shares of the way from the middle to the rim, in tilts that are spread over all."""
    order = sorted(range(len(series)), key=lambda k: series[k].tilt_deg)
    picked = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(len(order), most_tilts)).round().astype(int))]
    rows = series[0].means.shape[0]
    places = np.arange(rows) - (rows - 1) / 2
    chosen = [places[np.abs(places - share * rows / 2).argmin()] for share in at]
    bands = [Band(series, picked, place) for place in chosen]
    return [band for band in bands if len(band.values) >= _FEWEST]


@dataclass(frozen=True, slots=True)
class Found:
    """Minus the logarithm of a density, its slope, and the curvature that is expected of it."""

    value: float
    slope: Array
    curvature: Array


class Likelihood:
    """Of one number of films, as a function of a vector: logarithms of amplitudes, then the geometry in its units.

    The vector: films x FILM_LENGTHS, OWN_LENGTHS, offset, nugget, heights, turn, slope.
    """

    def __init__(self, bands: Sequence[Band], growing: Sequence[bool]) -> None:
        """`growing`: of each film."""
        self._bands, self._growing, films = bands, tuple(growing), len(growing)
        self._films = films
        values = np.concatenate([band.values for band in bands])
        self.sd, self._mean = float(values.std()) or 1.0, float(values.mean())
        self.amplitudes = films * len(FILM_LENGTHS) + len(OWN_LENGTHS) + 2
        self.size = self.amplitudes + films + 2
        self._centre = np.concatenate([np.full(self.amplitudes, np.log(0.1 * self.sd)), np.zeros(films + 2)])
        loose = [1 / _AMPLITUDE_SD] * (self.amplitudes - 2) + [0.0, 0.0]
        geometry = [_HEIGHT / _HEIGHT_SD] * films + [_TURN_DEG / _TURN_SD_DEG, _SLOPE / _SLOPE_SD]
        self._precision = np.square([*loose, *geometry])
        low, high = float(np.log(self.sd)) - 9, float(np.log(self.sd)) + 2
        most = [_FARTHEST / _HEIGHT] * films + [_MOST_TURN_DEG / _TURN_DEG, _STEEPEST / _SLOPE]
        self.low = np.array([low] * self.amplitudes + [-each for each in most])
        self.high = np.array([high] * self.amplitudes + most)

    def vector(self, model: Model) -> Array:
        amplitudes = np.concatenate([*(film.amplitudes for film in model.films), model.own, np.array([model.offset, model.nugget])])
        heights = np.array([film.height for film in model.films]) / _HEIGHT
        return np.concatenate(
            [np.log(np.maximum(amplitudes, 1e-12)), heights, np.array([model.turn_deg / _TURN_DEG, model.slope / _SLOPE])]
        )

    def model(self, vector: Array) -> Model:
        films, lengths = self._films, len(FILM_LENGTHS)
        amplitudes = np.exp(vector[: self.amplitudes])
        heights = vector[self.amplitudes : self.amplitudes + films] * _HEIGHT
        each = amplitudes[: films * lengths].reshape(films, lengths)
        own = amplitudes[films * lengths : -2]
        return Model(
            tuple(Film(float(height), row, growing) for height, row, growing in zip(heights, each, self._growing, strict=True)),
            float(vector[-2] * _TURN_DEG), float(vector[-1] * _SLOPE), own, float(amplitudes[-2]), float(amplitudes[-1]),
        )  # fmt: skip

    def at(self, vector: Array, *, curved: bool = True) -> Found:
        """With its prior; `curved`: with slope and curvature."""
        apart = vector - self._centre
        value = 0.5 * float(apart @ (self._precision * apart))
        slope, curvature = self._precision * apart, np.diag(self._precision)
        model = self.model(vector)
        for band in self._bands:
            try:
                more = self._of_band(band, model, curved)
            except LinAlgError:
                return Found(np.inf, slope, curvature)
            value, slope, curvature = value + more.value, slope + more.slope, curvature + more.curvature
        return Found(value, slope, curvature)

    def _of_band(self, band: Band, model: Model, curved: bool) -> Found:
        angle = np.radians(band.tilts_deg + model.turn_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        tan = sin / cos
        thick = 1 / cos
        wide = WIDE / np.square(cos)
        wide2 = (wide[:, None] + wide).astype(np.float32)
        parts: list[Array] = []
        by_u: list[Array] = []
        by_wide = np.zeros_like(wide2)
        films = np.zeros(wide2.shape)
        levels = np.full(wide2.shape, LEVEL**2)
        for film in model.films:
            thicker = thick * film.weight(band.time) * band.gain
            levels += np.outer(LEVEL**2 * thicker, thicker)
            pairs = np.outer(thicker, thicker).astype(np.float32)
            u = ((band.across - (film.height + model.slope * band.along) * sin) / cos).astype(np.float32)
            apart = u[:, None] - u
            square = np.square(apart)
            slope = np.zeros_like(apart)
            for length, sd, along in zip(FILM_LENGTHS, film.amplitudes, band.by_along, strict=True):
                broader = 1 / (np.float32(length**2) + wide2)
                scaled = square * broader
                part = np.exp(scaled * np.float32(-0.5))
                part *= np.sqrt(broader)
                part *= along
                part *= pairs
                part *= np.float32(sd**2)
                parts.append(part)
                films += part
                if curved:
                    part = part * broader
                    slope -= part
                    scaled -= 1
                    scaled *= part
                    by_wide += scaled
            slope *= apart
            by_u.append(slope)
        by_wide *= np.float32(0.5)
        uneven = _ROUNDING * float(films.max())
        films += levels - LEVEL**2
        owns = [sd**2 * part for sd, part in zip(model.own, band.own, strict=True)]
        offsets = model.offset**2 * band.together
        covariance = films + sum(owns) + offsets + LEVEL**2
        covariance[np.diag_indices(len(covariance))] += band.noise + model.nugget**2 + uneven
        factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        values = band.values - self._mean
        weights = cho_solve((factor, True), values, check_finite=False)
        value = 0.5 * float(values @ weights) + float(np.log(np.diag(factor)).sum())
        if not curved:
            return Found(value, np.zeros(self.size), np.zeros((self.size, self.size)))
        # Of the covariance, by each parameter: what the projections share, and what they do not.
        height = np.stack([film.height + model.slope * band.along for film in model.films])
        moves = [(np.square(thick) * (band.across * sin - each)).astype(np.float32) for each in height]
        tan32, steep = tan.astype(np.float32), (-tan * band.along).astype(np.float32)
        by_height = [each * ((tan32 - tan32[:, None]) * np.float32(_HEIGHT)) for each in by_u]
        by_slope = sum(each * (steep[:, None] - steep) for each in by_u) * _SLOPE
        by_turn = sum(each * (move[:, None] - move) for each, move in zip(by_u, moves, strict=True))
        wider = 2 * wide * tan
        by_turn += films * (tan[:, None] + tan) + by_wide * (wider[:, None] + wider)
        shared = [*(2 * part for part in parts), *by_height, by_turn * np.radians(_TURN_DEG), by_slope]
        nugget = 2 * model.nugget**2 * np.eye(len(values))
        own = [*(2 * part for part in owns), 2 * offsets, nugget]
        amplitudes = len(parts)
        changes = [*shared[:amplitudes], *own, *shared[amplitudes:]]
        inverse = cho_solve((factor, True), np.eye(len(values)), check_finite=False)
        pull = inverse - np.outer(weights, weights)
        slope = np.array([0.5 * float(np.vdot(pull, change)) for change in changes])
        # Fisher's information (Mardia & Marshall, Biometrika 71 (1984) 135), its traces by random probes (Hutchinson, Commun. Stat. Simul.
        # 19 (1990) 433) in single precision: it only shows the way to the minimum.
        single = factor.astype(np.float32)
        probes = solve_triangular(single, band.probes, lower=True, trans=1, check_finite=False)
        white = [
            solve_triangular(single, change.astype(np.float32, copy=False) @ probes, lower=True, check_finite=False) for change in changes
        ]
        seen = np.stack(white).reshape(len(changes), -1)
        return Found(value, slope, 0.5 / _PROBES * seen @ seen.T)


def first_guess(sd: float, height: float, turn_deg: float, slope: float, *, film: float = 0.25, own: float = 0.05) -> Model:
    """A model from which a search may begin; `sd`: standard deviation of the vacuum."""
    one = Film(height, np.full(len(FILM_LENGTHS), film * sd))
    return Model((one,), turn_deg, slope, np.full(len(OWN_LENGTHS), own * sd), 0.05 * sd, 0.01 * sd)


def fit(bands: Sequence[Band], begins: Sequence[Model]) -> Model:
    """The most likely model with one film near one of these, or with more beside it as long as the vacuum asks for them.

    Amplitudes come first, with the geometry as it is: from wrong amplitudes the geometry would run away.
    """
    tried = [_nearest(bands[:2], begin, _FIRST, geometry=False) for begin in begins]
    if len(tried) > 1:
        tried = [_nearest(bands[:2], amplitudes, _FIRST) for amplitudes, _ in tried]
    return with_more_films(bands, _nearest(bands, min(tried, key=lambda found: found[1])[0], _THEN)[0])


def with_more_films(bands: Sequence[Band], model: Model) -> Model:
    """The same, or with more films beside those it has as long as the vacuum asks for them. Whether one grows is always asked, others only
    where projections have much of their own."""
    while len(model.films) < _MOST_FILMS:
        quiet = model.own_sd < _QUIET * model.film_sd
        if quiet and any(film.growing for film in model.films):
            break
        few = bands[:2]
        begin, value = _nearest(few, model, _FIRST)
        heights = [film.height for film in begin.films]
        others = [begin.with_film(height, growing=True) for height in heights]
        if not quiet:
            others += [begin.with_film(other) for other in (-heights[0], heights[0] + _ASIDE, heights[0] - _ASIDE)]
        best, least = min((_nearest(few, other, _FIRST) for other in others), key=lambda found: found[1])
        if value - least <= _ASKED_FOR:
            break
        model = _nearest(bands, best, _FIRST)[0]
    return model


def fit_warm(bands: Sequence[Band], begin: Model) -> Model:
    """The most likely model near that of the same series when it was shorter."""
    return _nearest(bands, begin, _FIRST)[0]


def likelier(here: list[Seen], there: list[Seen], model: Model) -> tuple[list[Seen], Model]:
    """Projections where they are, with the model as it is; or where they may be, with one for them, if that makes them likelier: as the
    model is, or each by its own, for what was fitted to one register need not suit another."""
    bands, others = bands_of(here), bands_of(there)
    fitted = fit_warm(others, model)
    if surprise(others, model) < surprise(bands, model) or surprise(others, fitted) < surprise(bands, fit_warm(bands, model)):
        return there, fitted
    return here, model


def surprise(bands: Sequence[Band], model: Model) -> float:
    """Minus the logarithm of the density of what is seen, of one window in the mean."""
    target = Likelihood(bands, [film.growing for film in model.films])
    return target.at(target.vector(model), curved=False).value / sum(len(band.values) for band in bands)


def _nearest(bands: Sequence[Band], begin: Model, steps: int, *, geometry: bool = True) -> tuple[Model, float]:
    target = Likelihood(bands, [film.growing for film in begin.films])
    at, value = descend(target, target.vector(begin), np.arange(target.size if geometry else target.amplitudes), steps)
    return target.model(at), value


def descend(target: Likelihood, at: Array, free: Array, steps: int) -> tuple[Array, float]:
    """Fisher scoring with Levenberg's damping, over the free parameters."""
    here, damping = target.at(at), 1e-3
    for _ in range(steps):
        curvature = here.curvature[np.ix_(free, free)]
        while True:
            damped = curvature + np.diag(damping * (np.diag(curvature) + 1.0))
            step = np.clip(np.linalg.lstsq(damped, -here.slope[free], rcond=None)[0], -_LONGEST, _LONGEST)
            there = at.copy()
            there[free] += step
            there = np.clip(there, target.low, target.high)
            value = target.at(there, curved=False).value
            if value < here.value or damping > 1e4:
                break
            damping *= 5
        gain = here.value - value
        if gain <= 0:
            break
        at, damping = there, max(damping / 10, 1e-6)
        here = target.at(at)
        if gain < _ENOUGH:
            break
    return at, here.value
