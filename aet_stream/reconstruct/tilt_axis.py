"""The direction of the tilt axis: the one along which all projections have the same profile."""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.profiles import align_profiles, in_band, isolated, peak, tapered
from aet_stream.reconstruct.registered import Alignment
from aet_stream.reconstruct.shifts import CERTAIN_SIGMAS, centre_of_mass, common_line

LARGEST_ANGLE_DEG = 8.0
"""What is farther from where the axis is said to lie is no inaccuracy: axis_search.py says so."""
_GROUPS = 8
"""Of projections, at most; each is left out in turn to see how certain an angle is."""


def axis_angle(projections: Array, tilts_deg: Array, so_far: Alignment) -> Alignment:
    """Search the direction whose profiles agree best, each profile moved freely along it.

    Two things can feign a turn. Noise: the angle has to be larger than it varies when an eighth of the projections is left out (the
    jackknife). What a removed background leaves over or takes along: the turn has to explain more than all that noise does not.
    """
    height, width = projections.shape[1:]
    frequency = np.fft.rfftfreq(height)
    band = in_band(frequency)
    spectra, noise = np.empty((len(projections), int(band.sum()), width), np.complex64), np.empty(len(projections))
    for row in range(len(projections)):
        view, noise[row : row + 1] = isolated(projections[row : row + 1])
        spectra[row] = np.fft.rfft(tapered(view), axis=1)[0, band]
    across = np.arange(width) - (width - 1) / 2

    def profiles_along(angle_deg: float) -> Array:
        turned = np.exp(2j * np.pi * frequency[band, None] * across * np.tan(np.radians(angle_deg)))
        profiles: Array = np.einsum("nkx,kx->nk", spectra, turned)
        return profiles

    def misfit(profiles: Array) -> float:
        """Share of the profiles' energy that is not common to them."""
        shifts = align_profiles(profiles, np.flatnonzero(band), height)
        moved = profiles * np.exp(-2j * np.pi * frequency[band] * shifts[:, None])
        return float(1 - np.sum(np.abs(moved.mean(axis=0)) ** 2) / np.mean(np.sum(np.abs(moved) ** 2, axis=1)))

    def least(tried_deg: Array, profiles: list[Array], rows: Array) -> float:
        values = np.array([misfit(along[rows]) for along in profiles])
        at = int(np.clip(values.argmin(), 1, len(values) - 2))
        return float(tried_deg[at] + peak(-values[at - 1 : at + 2]) * (tried_deg[1] - tried_deg[0]))

    groups = min(_GROUPS, len(projections))
    group = np.arange(len(projections)) % groups
    everything = group >= 0
    coarse = np.linspace(-LARGEST_ANGLE_DEG, LARGEST_ANGLE_DEG, 33)
    about = least(coarse, [profiles_along(angle) for angle in coarse], everything)
    if abs(about) >= LARGEST_ANGLE_DEG:
        return so_far
    fine = about + np.linspace(-0.5, 0.5, 11)
    along = [profiles_along(angle) for angle in fine]
    found = least(fine, along, everything)
    error = np.sqrt((groups - 1) * np.var([least(fine, along, group != left_out) for left_out in range(groups)]))
    straight, turned = profiles_along(0.0), profiles_along(found)
    by_noise = band.sum() * noise.mean() / float(np.mean(np.sum(np.abs(turned) ** 2, axis=1)))
    unexplained = misfit(turned) - by_noise
    certain = abs(found) > CERTAIN_SIGMAS * error and misfit(straight) - misfit(turned) > unexplained
    return _anew(projections, tilts_deg, so_far, found) if certain else so_far


def _anew(projections: Array, tilts_deg: Array, so_far: Alignment, axis_deg: float) -> Alignment:
    """The shifts found so far belong to another axis: find them again for this one, by the steps that found them."""
    found = Alignment(np.zeros_like(so_far.shifts_px), axis_deg)
    if "common-line" in so_far.residuals:
        found = common_line(projections, tilts_deg, found)
    return centre_of_mass(projections, tilts_deg, found) if "center-of-mass" in so_far.residuals else found
