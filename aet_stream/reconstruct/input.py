"""What a volume is made from: the projections of `series.h5` that can be used, each checked."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aet_stream.errors import ReconstructionError, TooFewProjections
from aet_stream.layout import CLEAN, PER_PROJECTION, THETA, counting, crc32, digest_of, edition_shown, unreadable
from aet_stream.projection import Array
from aet_stream.reconstruct.weights import by_expected_error

logger = logging.getLogger(__name__)

NUMBER = f"{PER_PROJECTION}/number"
TILT_AXIS = f"{PER_PROJECTION}/tilt_axis_deg"


@dataclass(frozen=True, slots=True)
class Input:
    """What a volume is made from."""

    projections: Array
    """(tilts, y, x) float32, finite"""
    tilts_deg: Array
    rows: Array
    """Which rows of the series these are."""
    pixel_size_nm: float
    """NaN where the series does not say, or says different things."""
    digest: str
    """Names exactly these pixels at these tilts."""
    axis_deg: float = float("nan")
    """Where the tilt axis is said to lie, from +y towards -x; NaN: nobody has said."""
    edition: int = 1
    """Of the background; rows that it does not have are of edition 1."""
    weights: Array | None = None
    """(tilts,) how much of what is smooth in each counts (weights.py); None: all"""


def read_input(series: Path, *, exclude: Collection[int] = (), keep_excluded: bool = False) -> Input:
    """Frame by frame, each checked; what is blank, superseded or excluded is left out, deliberate repeats stay.

    Parameters
    ----------
    exclude : numbers of projections that are to be left out as well
    keep_excluded : take also what is excluded in the series

    Raises
    ------
    ReconstructionError : unreadable, damaged, or nothing to use
    """
    try:
        with h5py.File(series, "r", locking=False) as file:
            facts = {name: file[f"{PER_PROJECTION}/{name}"][()] for name in ("pixel_size_nm", "clean_crc32")}
            numbers = file[NUMBER][()] if NUMBER in file else np.arange(len(file[THETA]))  # a series of other people's has none
            if unknown := sorted(set(exclude) - set(numbers.tolist())):
                raise ReconstructionError(f"{series}: has no projection {unknown[0]} to leave out: see {NUMBER}")
            counts = counting(file, keep_excluded=keep_excluded) & ~np.isin(numbers, [*exclude])
            rows, edition = np.flatnonzero(counts), edition_shown(file)
            expected = _expected_error(file, len(counts))[rows]
            axes_deg = file[TILT_AXIS][()][rows] if TILT_AXIS in file else np.zeros(0)
            tilts = file[THETA][()]
            projections = np.empty((len(rows), *file[CLEAN].shape[1:]), np.float32)
            for place, row in enumerate(rows.tolist()):
                projections[place] = _frame(file, row, facts["clean_crc32"][row])
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ReconstructionError(f"{series}: cannot be read as a tilt series: {unreadable(error)}") from error
    if len(rows) < 3:
        raise TooFewProjections(f"{series}: {len(rows)} of {len(tilts)} projections can be used; at least 3 are needed")
    if not np.isfinite(tilts[rows]).all():
        raise ReconstructionError(f"{series}: row {rows[~np.isfinite(tilts[rows])][0]} has no tilt")
    digest = digest_of(facts["clean_crc32"][rows], tilts[rows])
    size_nm, axis_deg = _common_size_nm(series, facts["pixel_size_nm"][rows]), _last_axis_deg(series, axes_deg)
    return Input(projections, tilts[rows], rows, size_nm, digest, axis_deg, edition, by_expected_error(projections, expected))


def _expected_error(file: h5py.File, rows: int) -> Array:
    """(rows,) of each background, counts, by the series where it has been asked; NaN: nobody has said."""
    whole, alone = (
        file[name][()].astype(np.float64) if name in file else np.full(rows, np.nan)
        for name in (f"{PER_PROJECTION}/expected_error_in_series", f"{PER_PROJECTION}/expected_error")
    )
    return np.where(np.isfinite(whole), whole, alone)


def _frame(file: h5py.File, row: int, checksum: int) -> Array:
    frame: Array = file[CLEAN][row]
    if crc32(frame) != checksum:
        raise ReconstructionError(f"{file.filename}: row {row} is missing or damaged (checksum); `aet-stream verify` says more")
    if not np.isfinite(frame).all():
        raise ReconstructionError(f"{file.filename}: row {row} has pixels that are not finite (NaN or infinite)")
    return frame


def _common_size_nm(series: Path, sizes_nm: Array) -> float:
    known = sizes_nm[np.isfinite(sizes_nm)]
    if known.size == 0:
        return float("nan")
    if known.max() > 1.01 * known.min():
        logger.warning("%s: pixel sizes between %g and %g nm in one series: the volume gets none", series, known.min(), known.max())
        return float("nan")
    return float(np.median(known))


def _last_axis_deg(series: Path, axes_deg: Array) -> float:
    """A setting may have been put right in the middle of a series: the last word counts."""
    known = axes_deg[np.isfinite(axes_deg)]
    if known.size == 0:
        return float("nan")
    if np.ptp(known) > 0:
        logger.warning("%s: its tilt axis is said to lie at %g to %g deg: the last word is %g", series, known.min(), known.max(), known[-1])
    return float(known[-1])
