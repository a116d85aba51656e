"""Does the tilt axis lie where it is said to? Asked of the whole half turn, for no residual of a volume says it: solvers explain a lot.

What is summed across the tilt axis does not depend on the tilt: along the axis, and nowhere else, all projections have one profile (common
lines: Liu, Penczek, McEwen and Frank, Ultramicroscopy 58 (1995) 393). Each projection is summed across every direction, the profiles of one
direction are moved onto each other, and their misfit is the share of their energy that they do not have in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.profiles import LARGEST_SHIFT_SHARE, align_profiles, in_band, isolated, peak, tapered
from aet_stream.reconstruct.projector import make_projector
from aet_stream.reconstruct.registered import QUICK_PX, bin_factor, binned

STEP_DEG = 2.0
NEAR_DEG = 6.0
"""An axis this near to where it is said to lie is left to the alignment (tilt_axis.py), which looks a little farther than that."""
CERTAIN_SIGMAS = 4.0
FEWEST_TILTS, SMALLEST_PX = 8, 24
"""Fewer projections, or smaller ones, say nothing about directions."""
_FEWEST_WAVES = 5
"""Across a frame: what is wider is mostly left-over background, which agrees along directions of its own."""
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
    """Least share of the profiles' energy that they do not have in common within NEAR_DEG of `said_deg`, 0..1."""
    misfit_found: float
    """The same at `found_deg`."""
    sigmas: float
    """By how many standard errors over the tilts they agree better there."""
    unexplained: float
    """`misfit_found` without what is noise."""

    @property
    def contradicts(self) -> bool:
        """Whether it lies elsewhere: profiles agree better there than by chance, and by more than is left unexplained."""
        gain = self.misfit_said - self.misfit_found
        return abs(self.found_deg - self.said_deg) > NEAR_DEG and self.sigmas > CERTAIN_SIGMAS and gain > self.unexplained

    @property
    def sentence(self) -> str:
        """For people: what was found, and what to do about it."""
        if np.isnan(self.found_deg):
            return "Too few or too small projections to say where the tilt axis lies."
        figures = (
            f"profiles along it differ by {100 * self.misfit_said:.2g} %, along {self.found_deg:.0f} deg by {100 * self.misfit_found:.2g} %"
        )
        if not self.contradicts:
            return f"The tilt axis is taken to lie at {self.said_deg:g} deg: {figures}."
        return (
            f"The tilt axis does not lie at {self.said_deg:g} deg, where it is said to: {figures} ({self.sigmas:.0f} standard errors)."
            f" Say --axis-deg {self.found_deg:.0f}, and orientation.tilt_axis_deg for what comes; 180 degrees from it is the other hand."
        )


def search(projections: Array, said_deg: float = 0.0) -> AxisSearch:
    """Look along every direction of the half turn.

    Parameters
    ----------
    projections : (tilts, y, x) float32, background-free, as they lie in the series, in any order
    said_deg : where the axis is said to be, degrees from +y towards -x
    """
    views = binned(projections, bin_factor(projections, QUICK_PX))
    if len(views) < FEWEST_TILTS or min(views.shape[1:]) < SMALLEST_PX:
        return AxisSearch(said_deg, *[float("nan")] * 5)
    views, noise = isolated(views)
    offsets = np.arange(-90.0, 90.0, STEP_DEG)
    profiles = [_Profiles(spectra, noise, max(views.shape[1:])) for spectra in _spectra(tapered(views), said_deg + offsets)]
    misfits = np.array([one.misfit for one in profiles])
    near = np.flatnonzero(np.abs(offsets) <= NEAR_DEG)
    said, found = int(near[misfits[near].argmin()]), int(misfits.argmin())
    between = peak(-misfits[[found - 1, found, (found + 1) % len(offsets)]])
    return AxisSearch(
        said_deg,
        float(said_deg + offsets[found] + STEP_DEG * between),
        profiles[said].misfit,
        profiles[found].misfit,
        _sigmas(profiles[found].likeness - profiles[said].likeness),
        max(0.0, profiles[found].misfit - profiles[found].by_noise),
    )


class _Profiles:
    """All projections' profiles along one direction, of equal energy and in register: what still differs is their shape."""

    def __init__(self, spectra: Array, noise: Array, edge_px: int) -> None:
        """(tilts, edge / 2 + 1) spectra; (tilts,) the noise in each of their values."""
        frequency = np.fft.rfftfreq(edge_px)
        band = in_band(frequency) & (frequency >= _FEWEST_WAVES / edge_px)
        energy = np.maximum(np.sum(np.abs(spectra[:, band]) ** 2, axis=1), 1e-30)
        self.by_noise = float(np.mean(band.sum() * noise / energy))
        equal = spectra[:, band] / np.sqrt(energy)[:, None]
        shifts = align_profiles(equal, frequency[band], LARGEST_SHIFT_SHARE * edge_px)
        moved = equal * np.exp(-2j * np.pi * frequency[band] * shifts[:, None])
        self.misfit = float(1 - np.sum(np.abs(moved.mean(axis=0)) ** 2))
        others = moved.sum(axis=0) - moved
        self.likeness: Array = np.sum(moved * others.conj(), axis=1).real / np.maximum(np.linalg.norm(others, axis=1), 1e-30)
        """(tilts,) correlation of each with the mean of the others, -1..1"""


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


def _sigmas(gain: Array) -> float:
    """Mean of (tilts,) differences over its standard error."""
    error = float(gain.std(ddof=1)) / len(gain) ** 0.5
    return float(gain.mean()) / error if error > 0 else 0.0
