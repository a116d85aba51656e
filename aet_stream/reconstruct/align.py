"""Where each projection lies: shifts and the direction of the tilt axis, found from the projections themselves.

Four steps, each of which can be left out, and none kept that makes the projections explain each other less well (by the residual of a quick
reconstruction):

    common-line            shifts along the axis: what is summed across it does not depend on the tilt
    center-of-mass         shifts across it: an isolated particle's centre of mass is put on the axis; where that does no good, all
                           projections are moved by how far the axis lies off the middle
    axis-angle             the direction of the tilt axis: the one along which all projections have the same profile
    projection-matching    both, against re-projections of the volume so far (Dengler, Ultramicroscopy 30 (1989) 337)

Shifts are what a projection has to be moved by, in pixels, [y, x]; the axis angle is how far the axis is turned from the image's y, in
degrees, positive when it turns from +y towards -x. Nothing of this is ever written into the series.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import affine_transform, binary_dilation, gaussian_filter

from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.projector import reproject

logger = logging.getLogger(__name__)

STEPS = ("common-line", "center-of-mass", "axis-angle", "projection-matching")
LARGEST_ANGLE_DEG = 5.0
LARGEST_SHIFT_SHARE = 0.25
"""Of a frame's edge: beyond it a shift is a mistake."""
QUICK_PX, QUICK_ITERATIONS = 128, 15
"""Size and effort of the reconstructions that only judge."""
MATCHING = ((128, 128, 5, 2), (128, 128, 20, 6), (256, 64, 20, 4))
"""Stages of projection matching: largest width and height in px, iterations, most rounds."""
FEWEST_ROWS = 8
"""Fewer along the axis show nothing of what happens along it."""
SMOOTH_PX = 1.0
GAIN = 0.002
"""A step has to lower the residual by this share of it."""
LEAST_OFFSET_PX, CERTAIN_SIGMAS = 0.05, 3.0
"""An axis this far off the middle, by so many standard errors, is worth a shift; turned by so many, a turn."""
SETTLED_PX = 0.03
TRUE_SHARE = 0.3
"""Of the variance of all moves, at least: else they are noise."""
_GROUPS = 8
"""Of projections, at most; each is left out in turn to see how certain an angle is."""
_BAND = (0.015, 0.25)
"""Spatial frequencies (1 / px) that speak for a position: below is left-over background, above is noise."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What brings the projections into register."""

    shifts_px: Array
    """(tilts, 2) float64, [y, x]"""
    axis_deg: float = 0.0
    residuals: dict[str, float] = field(default_factory=dict)
    """Relative residual of a quick reconstruction at the start and after each step that was kept."""

    @property
    def is_nothing(self) -> bool:
        return self.axis_deg == 0 and not self.shifts_px.any()


Find = Callable[[Array, Array, Alignment], Alignment]
"""(projections, tilts, alignment so far) -> a better one, perhaps."""


def align(projections: Array, tilts_deg: Array, steps: tuple[str, ...] = STEPS) -> Alignment:
    """Find the alignment of (tilts, y, x) float32 projections.

    Steps that do not help are dropped, so projections that are in register already stay as they are.
    """
    chosen = Alignment(np.zeros((len(projections), 2)))
    # Judged on smoothed images: moving one by a fraction of a pixel smooths its noise, which must not pass for a better fit.
    smooth = np.stack([gaussian_filter(view, SMOOTH_PX) for view in projections])
    best = _residual(smooth, tilts_deg, chosen)
    chosen.residuals["start"] = best
    if projections.shape[1] < FEWEST_ROWS:
        steps = tuple(step for step in steps if step == "center-of-mass")
    for step in [step for step in STEPS if step in steps]:
        for find, gain in _ways(step):
            found = find(projections, tilts_deg, chosen)
            if found is chosen:
                logger.info("alignment, %s: nothing certain, left out", step)
                continue
            now = _residual(smooth, tilts_deg, found)
            kept = now < best * (1 - gain)
            logger.info("alignment, %s: residual %.4f -> %.4f%s", step, best, now, "" if kept else ", left out")
            if kept:
                best, chosen = min(now, best), replace(found, residuals={**chosen.residuals, step: now})
                break
    return chosen


def _ways(step: str) -> tuple[tuple[Find, float], ...]:
    """How a step may be done, and by which share each way has to lower the residual; where it fails, the next one is tried.

    What noise or size hides from the residual (matching, a common offset) is kept unless it does harm.
    """
    ways: dict[str, tuple[tuple[Find, float], ...]] = {
        "common-line": ((_common_line, GAIN),),
        "center-of-mass": ((_centre_of_mass, GAIN), (_axis_offset, -GAIN)),
        "axis-angle": ((_axis_angle, 0.0),),
        "projection-matching": ((_match, -GAIN),),
    }
    return ways[step]


def apply(projections: Array, alignment: Alignment) -> Array:
    """(tilts, y, x) float32 in register, by cubic splines; the very same array where there is nothing to do."""
    if alignment.is_nothing:
        return projections
    turn = np.radians(alignment.axis_deg)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = (np.array(projections.shape[1:]) - 1) / 2
    moved = np.empty_like(projections)
    for view, shift_px, out in zip(projections, alignment.shifts_px, moved, strict=True):
        affine_transform(view, matrix, middle - matrix @ (middle + shift_px), output=out, order=3, mode="nearest")
    return moved


# -- the steps --------------------------------------------------------------------------------------------------------------------------


def _axis_angle(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Search the direction whose profiles agree best, each profile moved freely along it.

    Two things can feign a turn. Noise: the angle has to be larger than it varies when an eighth of the projections is left out (the
    jackknife). What a removed background leaves over or takes along: the turn has to explain more than all that noise does not.
    """
    views, noise = _isolated(projections)
    spectra = np.fft.rfft(_tapered(views), axis=1)  # (tilts, frequencies, x)
    height, width = projections.shape[1:]
    frequency = np.fft.rfftfreq(height)
    band = _in_band(frequency)
    across = np.arange(width) - (width - 1) / 2

    def profiles_along(angle_deg: float) -> Array:
        turned = np.exp(2j * np.pi * frequency[band, None] * across * np.tan(np.radians(angle_deg)))
        profiles: Array = np.einsum("nkx,kx->nk", spectra[:, band], turned)
        return profiles

    def misfit(profiles: Array) -> float:
        """Share of the profiles' energy that is not common to them."""
        shifts = _align_profiles(profiles, frequency[band], LARGEST_SHIFT_SHARE * height)
        moved = profiles * np.exp(-2j * np.pi * frequency[band] * shifts[:, None])
        return float(1 - np.sum(np.abs(moved.mean(axis=0)) ** 2) / np.mean(np.sum(np.abs(moved) ** 2, axis=1)))

    def least(tried_deg: Array, profiles: list[Array], rows: Array) -> float:
        values = np.array([misfit(along[rows]) for along in profiles])
        at = int(np.clip(values.argmin(), 1, len(values) - 2))
        return float(tried_deg[at] + _peak(-values[at - 1 : at + 2]) * (tried_deg[1] - tried_deg[0]))

    groups = min(_GROUPS, len(projections))
    group = np.arange(len(projections)) % groups
    everything = group >= 0
    coarse = np.linspace(-LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG, 21)
    about = least(coarse, [profiles_along(angle) for angle in coarse], everything)
    if abs(about) >= LARGEST_ANGLE_DEG:
        return so_far
    fine = about + np.linspace(-LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG, 11) / 10
    along = [profiles_along(angle) for angle in fine]
    found = least(fine, along, everything)
    error = np.sqrt((groups - 1) * np.var([least(fine, along, group != left_out) for left_out in range(groups)]))
    straight, turned = profiles_along(0.0), profiles_along(found)
    by_noise = band.sum() * noise.mean() / float(np.mean(np.sum(np.abs(turned) ** 2, axis=1)))
    unexplained = misfit(turned) - by_noise
    certain = abs(found) > CERTAIN_SIGMAS * error and misfit(straight) - misfit(turned) > unexplained
    return _anew(projections, tilts_deg, so_far, found) if certain else so_far


def _isolated(projections: Array) -> tuple[Array, Array]:
    """(tilts, y, x) what stands out and a rim around it, the rest 0; (tilts,) the noise in it: its pixels times their variance."""
    width = projections.shape[2]
    views, noise = np.zeros_like(projections), np.zeros(len(projections))
    for row, view in enumerate(projections):
        smooth, top = _smoothed(view)
        inside = binary_dilation(smooth > 0.1 * top, iterations=max(1, width // 32))
        vacuum = ~inside
        level = np.median(view[vacuum]) if vacuum.any() else 0.0
        views[row] = np.where(inside, view - level, 0)
        beside = vacuum[:, 1:] & vacuum[:, :-1]
        if beside.any():
            noise[row] = inside.sum() * np.mean(np.square(np.diff(view, axis=1)[beside])) / 2
    return views, noise


def _anew(projections: Array, tilts_deg: Array, so_far: Alignment, axis_deg: float) -> Alignment:
    """The shifts found so far belong to another axis: find them again for this one, by the steps that found them."""
    found = Alignment(np.zeros_like(so_far.shifts_px), axis_deg)
    if "common-line" in so_far.residuals:
        found = _common_line(projections, tilts_deg, found)
    return _centre_of_mass(projections, tilts_deg, found) if "center-of-mass" in so_far.residuals else found


def _common_line(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Move the sums across the axis onto their mean."""
    views = _tapered(apply(projections, so_far))
    profiles = np.fft.rfft(views.sum(axis=2), axis=1)
    frequency = np.fft.rfftfreq(views.shape[1])
    band = _in_band(frequency)
    moves = _align_profiles(profiles[:, band], frequency[band], LARGEST_SHIFT_SHARE * views.shape[1])
    shifts = so_far.shifts_px.copy()
    shifts[:, 0] += moves - np.median(moves)
    return replace(so_far, shifts_px=shifts)


def _centre_of_mass(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Each projection on the middle column."""
    shifts = so_far.shifts_px.copy()
    shifts[:, 1] += np.nan_to_num(_off_middle(projections, so_far))
    return replace(so_far, shifts_px=shifts)


def _axis_offset(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """All by the same: over the tilts a centre of mass moves as a cosine and a sine about the axis, wherever the particle lies."""
    off = _off_middle(projections, so_far)
    seen = np.isfinite(off)
    tilts = np.radians(tilts_deg[seen])
    basis = np.stack([np.ones_like(tilts), np.cos(tilts), np.sin(tilts)], axis=1)
    if len(basis) <= 3 or np.linalg.matrix_rank(basis) < 3:
        return so_far
    law, *_ = np.linalg.lstsq(basis, off[seen], rcond=None)
    variance = np.sum((off[seen] - basis @ law) ** 2) / (len(basis) - 3)
    error = np.sqrt(variance * np.linalg.inv(basis.T @ basis)[0, 0])
    if abs(law[0]) < max(LEAST_OFFSET_PX, CERTAIN_SIGMAS * error):
        return so_far
    return replace(so_far, shifts_px=so_far.shifts_px + np.array([0.0, law[0]]))


def _off_middle(projections: Array, so_far: Alignment) -> Array:
    """(tilts,) px from what stands out clearly (the rest may be left-over background) to the middle column. NaN: nothing stands out."""
    width = projections.shape[2]
    off = np.full(len(projections), np.nan)
    for row, view in enumerate(apply(projections, so_far)):
        smooth, top = _smoothed(view)
        weight = np.maximum(smooth - 0.2 * top, 0)
        total = float(weight.sum())
        if total > 0:
            off[row] = (width - 1) / 2 - float((weight.sum(axis=0) @ np.arange(width)) / total)
    return off


def _smoothed(view: Array) -> tuple[Array, float]:
    """A view in which only what is wide stands out, and how bright its brightest places are."""
    smooth: Array = gaussian_filter(view, max(2.0, view.shape[1] / 64))
    return smooth, float(np.percentile(smooth, 99.5))


def _match(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Reconstruct, re-project, move each projection onto its re-projection; coarse first, until nothing moves any more."""
    shifts = so_far.shifts_px.copy()
    for width_px, height_px, iterations, rounds in MATCHING:
        factor = _bin_factor(projections, width_px)
        if width_px > QUICK_PX and factor == _bin_factor(projections, QUICK_PX):
            break  # small frames: nothing finer is left
        axis_px = binned_axis_px(projections.shape[2], factor)
        for _ in range(rounds):
            views = _brightest_rows(binned(apply(projections, replace(so_far, shifts_px=shifts)), factor), height_px)
            volume = solver.solve(views, tilts_deg, iterations=iterations, axis_px=axis_px).volume
            again = reproject(volume, tilts_deg, axis_px)
            rows = [slice(None), slice(0, views.shape[1] // 2), slice(views.shape[1] // 2, None)]
            whole, *halves = (_without_drift(factor * _moves(views[:, part], again[:, part], 4.0), tilts_deg) for part in rows)
            moves = whole * (1.0, _are_true(*halves))
            shifts += moves
            if np.abs(moves).max() < SETTLED_PX * factor:
                break
    return replace(so_far, shifts_px=shifts)


def _moves(views: Array, references: Array, largest_px: float) -> Array:
    """(tilts, 2) px, [y, x], by which each view has to be moved to match its reference."""
    return np.clip([_shift_between(view, other) for view, other in zip(views, references, strict=True)], -largest_px, largest_px)


def _are_true(one: Array, other: Array) -> bool:
    """Whether the moves across the axis are more than noise, by two estimates of them whose noise has nothing in common.

    Moves that are all noise would misalign what is aligned. Along the axis, matching is several times as sure.
    """
    common = np.mean(one[:, 1] * other[:, 1])
    varied = np.mean(one[:, 1] ** 2 + other[:, 1] ** 2) / 2
    return bool(2 * common > TRUE_SHARE * (varied + common))  # Spearman-Brown: the share of the whole's variance that is true


def _brightest_rows(views: Array, height: int) -> Array:
    """The part of the frames, of at most so many rows, that has most to see."""
    if views.shape[1] <= height:
        return views
    signal = np.convolve(np.abs(views.sum(axis=(0, 2))), np.ones(height), mode="valid")
    first = int(signal.argmax())
    return views[:, first : first + height]


def _without_drift(moves: Array, tilts_deg: Array) -> Array:
    """A common move along the axis, or one that follows a sine of the tilt, moves the whole volume: it says nothing about alignment."""
    tilts = np.radians(tilts_deg)
    basis = np.stack([np.cos(tilts), np.sin(tilts)], axis=1)
    drift, *_ = np.linalg.lstsq(basis, moves[:, 1], rcond=None)
    free: Array = np.stack([moves[:, 0] - moves[:, 0].mean(), moves[:, 1] - basis @ drift], axis=1)
    return free


# -- measuring --------------------------------------------------------------------------------------------------------------------------


def _residual(projections: Array, tilts_deg: Array, alignment: Alignment) -> float:
    factor = _bin_factor(projections, QUICK_PX)
    views, axis_px = binned(apply(projections, alignment), factor), binned_axis_px(projections.shape[2], factor)
    return float(solver.solve(views, tilts_deg, iterations=QUICK_ITERATIONS, axis_px=axis_px).residuals[-1])


def _align_profiles(profiles: Array, frequency: Array, largest_px: float) -> Array:
    """(n,) px by which each of (n, frequencies) spectra has to be moved to lie on their common mean."""
    grid = np.arange(-largest_px, largest_px + 0.25, 0.25)
    waves = np.exp(-2j * np.pi * frequency[:, None] * grid)
    shifts = np.zeros(len(profiles))
    mean = profiles[len(profiles) // 2]
    for _ in range(4):
        match = ((profiles * mean.conj()) @ waves).real  # (n, grid)
        at = np.clip(match.argmax(axis=1), 1, len(grid) - 2)
        fine = np.array([_peak(row[place - 1 : place + 2]) for row, place in zip(match, at, strict=True)])
        shifts = grid[at] + 0.25 * fine
        mean = (profiles * np.exp(-2j * np.pi * frequency * shifts[:, None])).mean(axis=0)
    return shifts


def _shift_between(view: Array, reference: Array, upsampling: int = 50) -> Array:
    """[y, x] px by which `view` has to be moved to match best: peak of the cross-correlation, refined by a small inverse DFT.

    Guizar-Sicairos, Thurman and Fienup, Optics Letters 33 (2008) 156.
    """
    fy, fx = np.fft.fftfreq(view.shape[0]), np.fft.fftfreq(view.shape[1])
    radius = np.hypot(fy[:, None], fx)
    cross = np.fft.fft2(reference) * np.fft.fft2(view).conj() * ((radius > _BAND[0]) & (radius < _BAND[1]))
    match = np.fft.ifft2(cross).real
    coarse = np.array(np.unravel_index(match.argmax(), match.shape), dtype=np.float64)
    coarse = np.where(coarse > np.array(view.shape) / 2, coarse - view.shape, coarse)
    near = np.arange(-upsampling, upsampling + 1) / upsampling
    down = np.exp(2j * np.pi * (coarse[0] + near)[:, None] * fy)
    along = np.exp(2j * np.pi * fx[:, None] * (coarse[1] + near))
    fine = np.unravel_index((down @ cross @ along).real.argmax(), (len(near), len(near)))
    return coarse + near[list(fine)]


def binned(projections: Array, factor: int) -> Array:
    """(tilts, y / factor, x / factor) float32 means; what is left over is cut off around them."""
    if factor == 1:
        return projections
    tilts, height, width = projections.shape
    height, width = height // factor * factor, width // factor * factor
    top, left = (projections.shape[1] - height) // 2, (projections.shape[2] - width) // 2
    cut = projections[:, top : top + height, left : left + width]
    means: Array = cut.reshape(tilts, height // factor, factor, width // factor, factor).mean(axis=(2, 4), dtype=np.float32)
    return means


def binned_axis_px(width: int, factor: int) -> float:
    """Where the middle column lies after binning; off the middle where what was cut is not the same on both sides."""
    left = (width - width // factor * factor) // 2
    return ((width - 1) / 2 - left + 0.5) / factor - 0.5


def _bin_factor(projections: Array, size_px: int) -> int:
    flat = max(1, projections.shape[1] // FEWEST_ROWS)  # very flat frames are hardly binned
    return int(min(flat, max(1, -(-projections.shape[2] // size_px))))


def _tapered(projections: Array) -> Array:
    """Faded out towards the frame's edge, which must not be taken for a feature."""
    height, width = projections.shape[1:]
    ramps = [np.clip((length / 2 - np.abs(np.arange(length) - (length - 1) / 2)) / (0.1 * length), 0, 1) for length in (height, width)]
    return projections * np.float32(ramps[0][:, None] * ramps[1])


def _in_band(frequency: Array) -> Array:
    inside: Array = (frequency > _BAND[0]) & (frequency < _BAND[1])
    return inside


def _peak(three: Array) -> float:
    """Where a parabola through three neighbours has its peak, from the middle one, in steps."""
    low, mid, high = (float(value) for value in three)
    bend = low - 2 * mid + high
    return float(np.clip(0.5 * (low - high) / bend, -1, 1)) if bend < 0 else 0.0
