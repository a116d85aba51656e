"""A small volume of a series that is still growing: binned, one thread, started from the one before."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from aet_stream import durable, hdf5
from aet_stream.layout import LIBVER
from aet_stream.naming import PREVIEW_FILE
from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.align import align
from aet_stream.reconstruct.axis_search import search
from aet_stream.reconstruct.input import read_input
from aet_stream.reconstruct.registered import apply, bin_factor, binned, binned_axis_px

logger = logging.getLogger(__name__)

ALIGN = ("common-line", "center-of-mass")
"""What can be had without many reconstructions."""


def preview(series: Path, *, size_px: int = 128, iterations: int = 10) -> Path:
    """Write `preview.h5` beside the series, whole or not at all; returns its path.

    It holds `/orthoslices/xy` (y, x), `/orthoslices/xz` (z, x), `/orthoslices/yz` (y, z), float32, through the middle, and `/volume`
    (slice y, row z, column x), from which the next one starts; as attributes `tilts` (how many), `done_at` (ISO), `voxel_size_nm`,
    `axis_doubt` (why the tilt axis seems to lie elsewhere than is said, or nothing).

    Raises
    ------
    ReconstructionError : unreadable series, too few projections, or it cannot be written
    """
    given = read_input(series)
    target = series.with_name(PREVIEW_FILE)
    factor = bin_factor(given.projections, size_px)
    views = binned(given.projections, factor)
    said_deg = float(np.nan_to_num(given.axis_deg))
    axis = search(views, given.tilts_deg, said_deg)
    found = align(views, given.tilts_deg, ALIGN, axis_deg=said_deg, threads=1)
    views = apply(views, found)
    # What was centred lies about the middle of the binned views; what was not, about the middle of the whole ones.
    middle = [binned_axis_px(edge, factor) - (edge // factor - 1) / 2 for edge in given.projections.shape[1:]] @ found.matrix
    axis_px = (views.shape[2] - 1) / 2 + (0 if "center-of-mass" in found.residuals else middle[1])
    begin = _earlier(target, (views.shape[1], views.shape[2], views.shape[2]))
    volume = solver.solve(
        views, given.tilts_deg, iterations=iterations, axis_px=axis_px, start=begin, threads=1, weights=given.weights
    ).volume
    y, row, column = (edge // 2 for edge in volume.shape)
    with durable.replacing(target, "volume") as draft, hdf5.writing(draft, libver=LIBVER) as file:
        file["orthoslices/xy"], file["orthoslices/xz"], file["orthoslices/yz"] = volume[:, row], volume[y], volume[:, :, column]
        file["volume"] = volume
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs.update(tilts=len(views), done_at=now, voxel_size_nm=given.pixel_size_nm * factor, warm=begin is not None)
        file.attrs.update(edition=given.edition, series_digest=given.digest)
        file.attrs["axis_doubt"] = axis.sentence if axis.contradicts else ""
    return target


def _earlier(path: Path, shape: tuple[int, ...]) -> Array | None:
    """The volume of the preview before, if it has the same shape and is sound."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            volume: Array = file["volume"][()]
    except (OSError, KeyError, RuntimeError):
        return None
    return volume if volume.shape == shape and bool(np.isfinite(volume).all()) else None
