"""Series of particles whose atoms are known, as a microscope would count them; written without any code that looks for atoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from aet_stream.projection import Array
from tests.test_reconstruct import write_series

PIXEL_ANGSTROM = 0.35
WIDTH_ANGSTROM = 0.52


def fcc(radius_angstrom: float, lattice_angstrom: float = 4.08, turn: float = 0.3) -> Array:
    """(atoms, 3) angstrom: a ball of a face-centred crystal, turned about two axes so that no zone axis lies along anything."""
    cells = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3, indexing="ij"), -1).reshape(-1, 3)
    basis = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
    places = (cells[:, None] + basis).reshape(-1, 3) * lattice_angstrom
    places = places[np.linalg.norm(places, axis=1) < radius_angstrom]
    c, s = np.cos(turn), np.sin(turn)
    turned: Array = places @ np.array([(c, -s, 0), (s, c, 0), (0, 0, 1)]).T @ np.array([(1, 0, 0), (0, c, -s), (0, s, c)]).T
    return turned


def counted(
    places: Array,
    weights: Array,
    tilts_deg: Array,
    *,
    size_px: int,
    vacuum: float = 1.0,
    seed: int = 0,
    pixel_angstrom: float = PIXEL_ANGSTROM,
    shifts_px: Array | None = None,
    turns: Array | None = None,
) -> Array:
    """(tilts, y, x) float32 counts: Gaussian atoms of so many counts each over a vacuum of so many counts a pixel.

    Parameters
    ----------
    places : (atoms, 3) angstrom, x to the right, y upwards, z towards who looks
    shifts_px : (tilts, 2) [y, x] by which each image is off
    turns : (tilts, 3) radians about x, y and z by which the specimen had turned before it was tilted
    """
    sigma, middle, at = WIDTH_ANGSTROM / pixel_angstrom, (size_px - 1) / 2, np.arange(size_px)
    images = np.empty((len(tilts_deg), size_px, size_px))
    shifts_px = np.zeros((len(tilts_deg), 2)) if shifts_px is None else shifts_px
    lay = Rotation.from_rotvec(np.zeros((len(tilts_deg), 3)) if turns is None else turns)
    for image, tilt, (dy, dx), turn in zip(images, np.radians(tilts_deg), shifts_px, lay, strict=True):
        x, y, z = turn.apply(places / pixel_angstrom).T
        down = np.exp(-((at[:, None] - (middle - y + dy)) ** 2) / (2 * sigma**2))
        across = np.exp(-((at[:, None] - (middle + x * np.cos(tilt) + z * np.sin(tilt) + dx)) ** 2) / (2 * sigma**2))
        image[:] = (down * weights / (2 * np.pi * sigma**2)) @ across.T
    return np.random.default_rng(seed).poisson(images + vacuum).astype(np.float32) - np.float32(vacuum)


def series_of(path: Path, images: Array, tilts_deg: Array, pixel_angstrom: float = PIXEL_ANGSTROM) -> Path:
    """A `series.h5` of them."""
    return write_series(path, images, tilts_deg, pixel_size_nm=np.full(len(images), pixel_angstrom / 10))


def matched(found: Array, places: Array, reach_angstrom: float = 1.0) -> tuple[Array, Array]:
    """(which of found, which of places): one to one, the nearest first, within reach."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(found).sparse_distance_matrix(cKDTree(places), reach_angstrom, output_type="ndarray")
    one, other = [], []
    for i, j in pairs[["i", "j"]][np.argsort(pairs["v"])].tolist():
        if i not in one and j not in other:
            one.append(i)
            other.append(j)
    return np.array(one, int), np.array(other, int)
