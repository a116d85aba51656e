"""About how many atoms a series that still grows has: maxima in a slab of the particle, at full resolution, and what says how sure that is.

Previews are binned and show no atoms. A slab across the tilt axis can be made as it is in seconds, as slices are independent; how many
atoms lie in all of the particle then follows from how much of its intensity lies in the slab.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aet_stream.atoms import doubts
from aet_stream.atoms.maxima import maxima, neighbour_distance
from aet_stream.atoms.source import pixel_of
from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.align import align
from aet_stream.reconstruct.input import Input, read_input
from aet_stream.reconstruct.registered import apply, binned, brightest_rows

ALIGN = ("common-line", "center-of-mass")
"""What can be had without reconstructions."""
SLAB_ANGSTROM = 12.0
_EDGE_ANGSTROM = 1.0
"""Of the slab, on both sides: what lies there may be half an atom."""
_FINE_ANGSTROM = 0.4
"""Pixels are binned to at most this: atoms are seen in it as well."""
_ITERATIONS = 30
_HARDLY, _CLEARLY = 2.0, 4.0
"""Of the contrast: where it is less than the first, counts were found up to 15 % too high."""
_PARTS = 4
"""The slab is cut into so many; how differently they count tells how sure the sum is."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many, about."""

    atoms: int
    sigma: int
    """Standard deviation of that: of how the atoms of the slab are carried over to all of the particle, and of how many they are."""
    seen: int
    """That were counted."""
    contrast: float
    """How well they keep their distance (maxima.py): 1 does noise, from 1.5 on there are atoms, from 4 on they are clearly resolved."""
    neighbour_angstrom: float
    tilts: int
    series_digest: str
    edition: int

    @property
    def sentence(self) -> str:
        """In words."""
        word = "hardly" if self.contrast < _HARDLY else "clearly" if self.contrast >= _CLEARLY else "fairly"
        about = f"about {self.atoms:,} ± {self.sigma:,} atoms from {self.tilts} tilts, {word} resolved (contrast {self.contrast:.1f})"
        return f"{about}; {self.seen:,} were counted in a slab of {SLAB_ANGSTROM:g} Å"


def count(series: Path, pixel_angstrom: float = 0.0) -> Count:
    """Of a series as it is now.

    Parameters
    ----------
    pixel_angstrom : what a pixel measures; 0: as the series says

    Raises
    ------
    ReconstructionError : it cannot be read
    NoAtoms : none can be told, or not yet
    """
    given = read_input(series)
    pixel = pixel_angstrom or pixel_of(given, series)
    broken = doubts.broken_frames(given.projections)
    doubts.refuse_geometry(given.tilts_deg[~broken], pixel)
    list(doubts.about_noise(given.projections[~broken]))
    return _counted(given, given.projections[~broken], given.tilts_deg[~broken], pixel)


def _counted(given: Input, projections: Array, tilts_deg: Array, pixel_angstrom: float) -> Count:
    factor = max(1, int(_FINE_ANGSTROM / pixel_angstrom))
    views, voxel = binned(projections, factor), pixel_angstrom * factor
    views = apply(views, align(views, tilts_deg, ALIGN, axis_deg=float(np.nan_to_num(given.axis_deg)), threads=1))
    rows = brightest_rows(views, round(SLAB_ANGSTROM / voxel))
    volume = solver.solve(views[:, rows], tilts_deg, iterations=_ITERATIONS, threads=1).volume
    found, _ = maxima(volume, voxel)
    neighbour, contrast = neighbour_distance(found * voxel)
    doubts.refuse_maxima(len(found), contrast)
    edge = round(_EDGE_ANGSTROM / voxel)
    parts = np.array_split(np.arange(edge, len(volume) - edge), _PARTS)
    numbers = np.histogram(found[:, 0], [*(part[0] - 0.5 for part in parts), parts[-1][-1] + 0.5])[0]
    light = _light(views)
    shares = np.array([light[rows][part].sum() for part in parts]) / light.sum()
    atoms = numbers.sum() / shares.sum()
    spread = np.sqrt(np.sum((numbers - atoms * shares) ** 2) / (_PARTS - 1) * _PARTS) / shares.sum()
    sigma = np.hypot(spread, np.sqrt(numbers.sum()) / shares.sum())
    return Count(round(atoms), round(sigma), int(numbers.sum()), float(contrast), neighbour, len(tilts_deg), given.digest, given.edition)


def _light(views: Array) -> Array:
    """(rows,) intensity of the particle in each row, over all views; what lies around it, as the border of each shows, is taken off."""
    border = np.concatenate([views[:, 0], views[:, -1], views[:, :, 0], views[:, :, -1]], axis=1)
    level = np.median(border, axis=1)[:, None, None]
    light: Array = np.maximum((views - level).sum(axis=(0, 2), dtype=np.float64), 0)
    return light
