"""Does the tilt axis lie where it is said to? Asked of the whole half turn, for no residual of a volume says it: solvers explain a lot.

What is summed across the tilt axis does not depend on the tilt: along the axis, and nowhere else, all projections have one profile (common
lines: Liu, Penczek, McEwen and Frank, Ultramicroscopy 58 (1995) 393). Each projection is summed across every direction, and the profiles of
one direction are moved onto each other. How far they agree is judged against neighbouring tilts, whose profiles agree along any direction:
the misfit of a direction is 1 less the correlation of all pairs over that of neighbours. Noise, which no two projections share, has no part
in it; what a removed background leaves over is wide, so what is wider than a fifth of the frame is not listened to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.profiles import align_profiles, in_band, isolated, peak, tapered
from aet_stream.reconstruct.projector import make_projector
from aet_stream.reconstruct.registered import QUICK_PX, bin_factor, binned

STEP_DEG = 2.0
NEAR_DEG = 6.0
"""An axis this near to where it is said to lie is left to the alignment (tilt_axis.py), which looks a little farther than that."""
CERTAIN_SIGMAS = 4.0
"""Of 182 series whose axis lay where it was said to, 57 of them with backgrounds removed well or badly, none came beyond 3."""
LEAST_GAIN = 1e-3
"""Less is of no account: any direction will do for such a specimen, and for the volume."""
LEAST_LIKENESS = 0.5
"""Of neighbours: below, profiles are noise."""
FEWEST_TILTS, SMALLEST_PX = 8, 24
"""Fewer projections, or smaller ones, say nothing about directions."""
_FEWEST_WAVES = 4
"""Across a frame."""
_AT_ONCE = 15
"""Directions summed across at a time."""


@dataclass(frozen=True, slots=True)
class AxisSearch:
    """What the half turn says. Angles are counted as `orientation.tilt_axis_deg`; NaN where there was too little to look at."""

    said_deg: float
    """Where the axis is said to be."""
    found_deg: float
    """Where the profiles agree best; of the two ways to count that line, the one nearer to `said_deg`."""
    misfit_said: float
    """The least misfit within NEAR_DEG of `said_deg`."""
    misfit_found: float
    """That at `found_deg`."""
    sigmas: float
    """By how many standard errors it is less."""
    likeness: float
    """Mean correlation of neighbouring tilts at `found_deg`, 0..1."""

    @property
    def contradicts(self) -> bool:
        """Whether it lies elsewhere: profiles agree better there than by chance, and by more than is left to explain."""
        gain = self.misfit_said - self.misfit_found
        certain = self.sigmas > CERTAIN_SIGMAS and self.likeness > LEAST_LIKENESS and gain > max(self.misfit_found, LEAST_GAIN)
        return certain and abs(self.found_deg - self.said_deg) > NEAR_DEG

    @property
    def sentence(self) -> str:
        """For people: what was found, and what to do about it."""
        if np.isnan(self.found_deg):
            return "Too few or too small projections to say where the tilt axis lies."
        said, found = (f"{100 * max(0.0, misfit):.2g} %" for misfit in (self.misfit_said, self.misfit_found))
        figures = f"profiles along it differ by {said}, along {self.found_deg:.0f} deg by {found}"
        if not self.contradicts:
            return f"The tilt axis is taken to lie at {self.said_deg:g} deg: {figures}, {self.sigmas:.1f} standard errors."
        return (
            f"The tilt axis does not lie at {self.said_deg:g} deg, where it is said to: {figures}, {self.sigmas:.0f} standard errors less."
            f" Say --axis-deg {self.found_deg:.0f}, and orientation.tilt_axis_deg for what comes; 180 degrees from it is the other hand."
        )


def search(projections: Array, tilts_deg: Array, said_deg: float = 0.0) -> AxisSearch:
    """Look along every direction of the half turn.

    Parameters
    ----------
    projections : (tilts, y, x) float32, background-free, as they lie in the series
    said_deg : where the axis is said to be, degrees from +y towards -x
    """
    views = binned(projections, bin_factor(projections, QUICK_PX))
    if len(views) < FEWEST_TILTS or min(views.shape[1:]) < SMALLEST_PX:
        return AxisSearch(said_deg, *[float("nan")] * 5)
    views, _ = isolated(views[np.argsort(tilts_deg, kind="stable")])
    offsets = np.arange(-90.0, 90.0, STEP_DEG)
    along = [_Profiles(spectra, max(views.shape[1:])) for spectra in _spectra(tapered(views), said_deg + offsets)]
    misfits = np.array([one.misfit for one in along])
    near = np.flatnonzero(np.abs(offsets) <= NEAR_DEG)
    said, found = int(near[misfits[near].argmin()]), int(misfits.argmin())
    between = peak(-misfits[[found - 1, found, (found + 1) % len(offsets)]])
    gain, error = along[said].misfit - along[found].misfit, np.sqrt(2) * along[found].error  # where they agree they vary by mistakes alone
    return AxisSearch(
        said_deg,
        float(said_deg + offsets[found] + STEP_DEG * between),
        along[said].misfit,
        along[found].misfit,
        gain / max(error, 1e-6),
        along[found].likeness,
    )


class _Profiles:
    """All projections' profiles along one direction, in register and of equal energy: what differs is their shape."""

    def __init__(self, spectra: Array, edge_px: int) -> None:
        """(tilts, edge / 2 + 1), in the order of tilts."""
        bins = np.arange(_FEWEST_WAVES, spectra.shape[1])
        bins = bins[in_band(bins / edge_px)]
        equal = spectra[:, bins] / np.maximum(np.linalg.norm(spectra[:, bins], axis=1, keepdims=True), 1e-30)
        moved = equal * np.exp(-2j * np.pi / edge_px * bins * align_profiles(equal, bins, edge_px)[:, None])
        correlation = (moved @ moved.conj().T).real
        self.likeness = float(np.concatenate([np.diag(correlation, 1), np.diag(correlation, 2)]).mean())
        others = (correlation.sum(axis=1) - np.diag(correlation)) / (len(moved) - 1)
        misfits = 1 - others / max(self.likeness, 1e-3)
        self.misfit, self.error = float(misfits.mean()), float(misfits.std(ddof=1)) / len(moved) ** 0.5


def _spectra(views: Array, angles_deg: Array) -> Iterator[Array]:
    """For each direction, (tilts, edge / 2 + 1): the spectra of what is summed across it."""
    tilts, height, width = views.shape
    edge = max(height, width)
    square = np.zeros((tilts, edge, edge), np.float32)
    top, left = (edge - height) // 2, (edge - width) // 2
    square[:, top : top + height, left : left + width] = views
    for first in range(0, len(angles_deg), _AT_ONCE):
        some = angles_deg[first : first + _AT_ONCE]
        # As if the image were a slice: along the axis, turned from +y (down) towards -x, lies X cos + Y sin of this angle.
        projector = make_projector(-90.0 - some, edge)
        sums = (projector.forward @ square[:, projector.inside].T).reshape(len(some), edge, tilts)
        yield from np.fft.rfft(sums, axis=1).swapaxes(1, 2)
