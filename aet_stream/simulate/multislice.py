"""Images by multislice theory (PRISM, through abTEM): channelling and all. The extra `[multislice]`; minutes a projection, so resumable.

abTEM: Madsen & Susi, Open Research Europe 1 (2021) 24; PRISM: Ophus, Adv. Struct. Chem. Imaging 3 (2017) 13. Same geometry as formation.py.
"""

from __future__ import annotations

import io
import logging
import math
import time
from pathlib import Path

import numpy as np
from scipy.fft import next_fast_len
from scipy.ndimage import gaussian_filter

from aet_stream import durable
from aet_stream.errors import AetError
from aet_stream.projection import Array
from aet_stream.simulate.particle import Particle

logger = logging.getLogger(__name__)

ENERGY_EV = 300e3
SEMIANGLE_MRAD = 25.0
INNER_MRAD = 40.0
SAMPLING_NM = 0.008
"""Of the wave function; the detector reaches out to where it can carry the beams."""
SLICE_NM = 0.2
INTERPOLATION = 4
SOURCE_SIGMA_NM = 0.04
_MARGIN_NM = 0.2


def project(particle: Particle, tilt_deg: float, *, size_px: int, pixel_size_nm: float) -> Array:
    """(size_px, size_px) float32: one annular dark-field projection, in shares of the beam.

    Raises
    ------
    AetError : abTEM is not installed
    """
    try:
        import abtem
        import ase
    except ImportError as error:
        raise AetError("multislice images need abTEM: pip install 'aet-stream[multislice]'") from error
    x, y, z = particle.positions_nm.T
    tilt = np.radians(tilt_deg)
    across, depth = x * np.cos(tilt) + z * np.sin(tilt), z * np.cos(tilt) - x * np.sin(tilt)
    width_nm = size_px * pixel_size_nm
    seen = (np.abs(across) < width_nm / 2) & (np.abs(y) < width_nm / 2)
    thick_nm = float(np.ptp(depth)) + 2 * _MARGIN_NM
    # A pixel's middle is where formation.py has it: (N - 1)/2 is the axis.
    middle = (size_px - 1) / 2 * pixel_size_nm
    places = np.stack([across + middle, y + middle, depth - depth.min() + _MARGIN_NM], axis=1)[seen] * 10  # angstrom
    atoms = ase.Atoms(numbers=particle.atomic_number[seen], positions=places, cell=np.array([width_nm, width_nm, thick_nm]) * 10)
    points = next_fast_len(math.ceil(width_nm / SAMPLING_NM))
    while points % INTERPOLATION:
        points = next_fast_len(points + 1)
    potential = abtem.Potential(atoms, gpts=(points, points), slice_thickness=SLICE_NM * 10)
    waves = abtem.SMatrix(potential=potential, energy=ENERGY_EV, semiangle_cutoff=SEMIANGLE_MRAD, interpolation=INTERPOLATION)
    detector = abtem.AnnularDetector(inner=INNER_MRAD, outer=min(waves.cutoff_angles))
    scan = abtem.GridScan(start=(0, 0), end=(width_nm * 10, width_nm * 10), gpts=(size_px, size_px), endpoint=False)
    measured = waves.scan(scan=scan, detectors=detector).compute(progress_bar=False)
    image = np.asarray(measured.array, np.float32).T  # abTEM has x first
    blurred: Array = gaussian_filter(image, SOURCE_SIGMA_NM / pixel_size_nm)
    return blurred


def project_series(particle: Particle, tilts_deg: Array, *, size_px: int, pixel_size_nm: float, folder: Path) -> Array:
    """(tilts, size_px, size_px) float32; every projection is kept in `folder`, and one that is there is not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    began, made = time.monotonic(), 0
    images = []
    for number, tilt in enumerate(tilts_deg):
        path = folder / f"{len(particle.positions_nm)}_{size_px}_{pixel_size_nm:.6f}_{tilt:+.3f}.npy"
        if not path.exists():
            buffer = io.BytesIO()
            np.save(buffer, project(particle, float(tilt), size_px=size_px, pixel_size_nm=pixel_size_nm))
            durable.replace(path, buffer.getvalue())
            made += 1
            left = (time.monotonic() - began) / made * (len(tilts_deg) - number - 1)
            logger.info("multislice projection %d of %d, about %.0f min left", number + 1, len(tilts_deg), left / 60)
        images.append(np.load(path))
    return np.stack(images)
