"""Images of a particle: linear ADF-STEM, every atom a Gaussian of weight Z**1.7, added up along the beam.

Geometry, the same as in reconstruct: the tilt axis runs along y (image rows) through the middle of the columns. An atom at (x, y, z) is
seen at column (N - 1)/2 + x cos(tilt) + z sin(tilt) and row (N - 1)/2 + y (in pixels); so X = x and Y = z of the slices there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from aet_stream.projection import Array
from aet_stream.simulate.particle import Particle

Z_POWER = 1.7
ATOM_SIGMA_NM = 0.06


@dataclass(frozen=True, slots=True)
class Beam:
    """How an atom looks through the instrument."""

    sigma_nm: float = ATOM_SIGMA_NM
    """Width of an atom: its own and the source's."""
    z_power: float = Z_POWER
    """Intensity of an atom is (Z / 79) ** z_power; 1.4 to 1.8 by detector angle."""
    tail: float = 0.0
    """Share of an atom's intensity in the wide tails of the probe."""
    tail_sigma_nm: float = 0.2
    saturation: float = 0.0
    """Columns saturate: intensity s becomes s / (1 + saturation * s); 0: strictly linear."""


LINEAR = Beam()


def project(particle: Particle, tilt_deg: float, *, size_px: int, pixel_size_nm: float, beam: Beam = LINEAR) -> Array:
    """(size_px, size_px) float32: one projection; an atom's intensity sums to (Z / 79)**z_power."""
    x, y, z = particle.positions_nm.T / pixel_size_nm
    tilt = np.radians(tilt_deg)
    middle = (size_px - 1) / 2
    places = np.stack([y + middle, x * np.cos(tilt) + z * np.sin(tilt) + middle])
    image = splat(places, (particle.atomic_number / 79.0) ** beam.z_power, (size_px, size_px))
    if beam.saturation:
        image /= 1 + np.float32(beam.saturation) * image
    blurred: Array = gaussian_filter(image, max(beam.sigma_nm / pixel_size_nm, 0.5), mode="constant")
    if beam.tail:
        wide = gaussian_filter(image, max(beam.tail_sigma_nm / pixel_size_nm, 0.5), mode="constant")
        blurred = np.float32(1 - beam.tail) * blurred + np.float32(beam.tail) * wide
    return blurred


def project_series(particle: Particle, tilts_deg: Array, *, size_px: int, pixel_size_nm: float) -> Array:
    """(tilts, size_px, size_px) float32."""
    return np.stack([project(particle, tilt, size_px=size_px, pixel_size_nm=pixel_size_nm) for tilt in tilts_deg])


def volume(particle: Particle, *, size_px: int, pixel_size_nm: float, sigma_nm: float = ATOM_SIGMA_NM) -> Array:
    """(slice y, row, column) float32 of which `project` gives the line integrals: row = (N - 1)/2 - z, column = (N - 1)/2 + x."""
    x, y, z = particle.positions_nm.T / pixel_size_nm
    middle = (size_px - 1) / 2
    places = np.stack([y + middle, middle - z, x + middle])
    grid = splat(places, (particle.atomic_number / 79.0) ** Z_POWER, (size_px,) * 3)
    blurred: Array = gaussian_filter(grid, max(sigma_nm / pixel_size_nm, 0.5), mode="constant")
    return blurred


def splat(places: Array, weights: Array, shape: tuple[int, ...]) -> Array:
    """Share every point (axes, points) linearly among its neighbouring pixels; what falls outside is lost."""
    total = np.zeros(int(np.prod(shape)))
    corner = np.floor(places).astype(np.int64)
    part = places - corner
    for offset in np.ndindex(*(2,) * len(shape)):
        at = corner + np.array(offset)[:, None]
        share = weights * np.prod(np.where(np.array(offset)[:, None] == 1, part, 1 - part), axis=0)
        inside = np.all((at >= 0) & (at < np.array(shape)[:, None]), axis=0)
        flat = np.ravel_multi_index(tuple(at[:, inside]), shape)
        total += np.bincount(flat, share[inside], minlength=total.size)
    return total.reshape(shape).astype(np.float32)


def fitting_pixel_size_nm(particle: Particle, size_px: int, fill: float) -> float:
    """Pixel size at which the particle, seen from any side, spans `fill` of the frame."""
    return float(2 * np.linalg.norm(particle.positions_nm, axis=1).max() / (fill * size_px))
