"""What atoms are made from: a volume, the projections that it was made from, and what brings them into register."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import h5py
import numpy as np

from aet_stream.errors import NoAtoms, ReconstructionError
from aet_stream.layout import crc32, unreadable
from aet_stream.projection import Array
from aet_stream.reconstruct.input import Input, read_input
from aet_stream.reconstruct.registered import Alignment
from aet_stream.reconstruct.turns import alignment_of
from aet_stream.reconstruct.volume_file import VOLUME


@dataclass(frozen=True, slots=True)
class Source:
    """A volume and its projections."""

    volume: Array
    """(slice y, row, column) float32"""
    given: Input
    alignment: Alignment
    pixel_angstrom: float
    volume_crc32: int
    """Of its voxels."""
    volume_digest: str
    """Names exactly this volume, by its voxels, its projections and where they lie."""


def read_source(reconstruction: Path, series: Path, pixel_angstrom: float = 0.0) -> Source:
    """A `reconstruction.h5` with its `series.h5`.

    Parameters
    ----------
    pixel_angstrom : what a pixel measures; 0: as the series says

    Raises
    ------
    ReconstructionError : either cannot be read
    NoAtoms : the volume is not of the projections that the series holds now, or nobody says what a pixel measures
    """
    try:
        with h5py.File(reconstruction, "r", locking=False) as file:
            volume: Array = file[VOLUME][()]
            tilts_deg = file["reconstruction/tilts_deg"][()]
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{reconstruction}: cannot be read as a volume with its alignment: {unreadable(error)}") from error
    alignment, digest, _ = alignment_of(reconstruction)
    given = read_input(series)
    if digest != given.digest:
        raise NoAtoms(
            f"{reconstruction} is outdated: it was made from other projections than {series} holds now:"
            f" `aet-stream reconstruct {quote(str(series))}`"
        )
    size = pixel_angstrom or pixel_of(given, series)
    checksum = crc32(volume)
    facts = hashlib.sha256(f"{digest} {checksum}".encode())
    facts.update(tilts_deg.tobytes() + alignment.shifts_px.tobytes() + np.float64(alignment.axis_deg).tobytes())
    if alignment.turns is not None:
        facts.update(alignment.turns.tobytes())
    return Source(volume, given, alignment, size, checksum, facts.hexdigest())


def pixel_of(given: Input, series: Path) -> float:
    """What a pixel measures in angstrom, as the series says.

    Raises
    ------
    NoAtoms : it does not say
    """
    if not np.isfinite(given.pixel_size_nm):
        raise NoAtoms(f"{series} does not say what a pixel measures, and without that nothing can be called an atom: say --pixel-angstrom")
    return 10 * given.pixel_size_nm
