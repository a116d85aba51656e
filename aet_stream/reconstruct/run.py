"""From `series.h5` to `reconstruction.h5`: read, choose a method, solve, write so that nobody sees half of it."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable
from aet_stream.errors import ReconstructionError
from aet_stream.layout import CLEAN, PER_PROJECTION, THETA, crc32
from aet_stream.projection import Array
from aet_stream.reconstruct import solver, tomopy_backend
from aet_stream.reconstruct.figure import draw_orthoslices

logger = logging.getLogger(__name__)

BUILT_IN = "nesterov-sirt"
VOLUME = "/reconstruction/volume"
_SAY_EVERY_S = 5.0
_AXES = "(slice y, row, column); tilt axis along y; row = (N-1)/2 - Y, column = (N-1)/2 + X; seen at (N-1)/2 + X cos(tilt) + Y sin(tilt)"


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


def reconstruct(
    series: Path, *, method: str = "auto", iterations: int = 50, out: Path | None = None, progress: solver.Progress | None = None
) -> Path:
    """Reconstruct a series; returns the path of the volume. Done already with the same input, it returns at once.

    Parameters
    ----------
    method : auto (the built-in solver), nesterov-sirt or tomopy:ALGORITHM
    out : default: reconstruction.h5 beside the series; a picture of its central slices lies beside it as .png
    progress : called with (steps done, steps in all); by default a log line every few seconds. tomopy tells nothing.

    Raises
    ------
    ReconstructionError : unreadable series, unknown method, too few projections, or the volume cannot be written
    """
    method = BUILT_IN if method == "auto" else method
    target = out or series.with_name("reconstruction.h5")
    _check_method(method)
    _check_target(target, series)
    given = read_input(series)
    identity: dict[str, str | int] = {"series_digest": given.digest, "method": method, "iterations": iterations}
    if _is_done(target, identity):
        logger.info("%s holds this volume already", target)
    else:
        began = time.monotonic()
        logger.info("%s: %d projections of %d x %d px, %s", series, *given.projections.shape, method)
        volume, residuals = _solve(given, method, iterations, progress or _Log())
        facts = {**identity, "seconds": round(time.monotonic() - began, 2), "series": series.name}
        target.with_suffix(".png").unlink(missing_ok=True)  # a picture never shows another volume than the one beside it
        try:
            with durable.replacing(target) as draft, h5py.File(draft, "w") as file:
                _write(file, given, volume, residuals, facts)
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            raise ReconstructionError(f"{target}: cannot be written: {error}") from error
    _ensure_picture(target, f"{series.absolute().parent.name}, {method}")
    return target


def read_input(series: Path) -> Input:
    """Frame by frame, each checked; blank and superseded projections are left out, deliberate repeats stay.

    Raises
    ------
    ReconstructionError : unreadable, damaged, or nothing to use
    """
    try:
        with h5py.File(series, "r", locking=False) as file:
            facts = {name: file[f"{PER_PROJECTION}/{name}"][()] for name in ("blank", "superseded", "pixel_size_nm", "clean_crc32")}
            rows = np.flatnonzero((facts["blank"] == 0) & (facts["superseded"] == 0))
            tilts = file[THETA][()]
            projections = np.empty((len(rows), *file[CLEAN].shape[1:]), np.float32)
            for place, row in enumerate(rows.tolist()):
                projections[place] = _frame(file, row, facts["clean_crc32"][row])
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{series}: cannot be read as a tilt series: {error}") from error
    if len(rows) < 3:
        raise ReconstructionError(f"{series}: {len(rows)} of {len(tilts)} projections can be used; at least 3 are needed")
    if not np.isfinite(tilts[rows]).all():
        raise ReconstructionError(f"{series}: row {rows[~np.isfinite(tilts[rows])][0]} has no tilt")
    digest = hashlib.sha256(facts["clean_crc32"][rows].tobytes() + tilts[rows].tobytes()).hexdigest()
    return Input(projections, tilts[rows], rows, _common_size_nm(series, facts["pixel_size_nm"][rows]), digest)


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


def _check_method(method: str) -> None:
    name, _, algorithm = method.partition(":")
    if name == "tomopy" and algorithm:
        tomopy_backend.check(algorithm)
        tomopy_backend.load()
    elif method != BUILT_IN:
        raise ReconstructionError(f"method {method!r}: choose auto, {BUILT_IN} or tomopy:ALGORITHM ({', '.join(tomopy_backend.SAFE)})")


def _check_target(target: Path, series: Path) -> None:
    """Find out now, not after minutes of work."""
    if not target.parent.is_dir():
        raise ReconstructionError(f"{target.parent} is no folder: make it first, or choose another --out")
    if target.resolve() == series.resolve() or target.suffix not in (".h5", ".hdf5") or target.is_dir():
        raise ReconstructionError(f"{target} cannot take the volume: name a file other than the series, ending in .h5")


def _solve(given: Input, method: str, iterations: int, progress: solver.Progress) -> tuple[Array, Array]:
    if method != BUILT_IN:
        algorithm = method.partition(":")[2]
        return tomopy_backend.solve(given.projections, given.tilts_deg, algorithm=algorithm, iterations=iterations), np.zeros(0)
    solution = solver.solve(given.projections, given.tilts_deg, iterations=iterations, progress=progress)
    return solution.volume, solution.residuals


class _Log:
    """A line every few seconds, with the time left."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said > _SAY_EVERY_S or done == total:
            self._said = now
            logger.info("%d %%, about %.0f s left", 100 * done // total, (now - self._began) * (total - done) / done)


def _is_done(target: Path, identity: dict[str, str | int]) -> bool:
    try:
        with h5py.File(target, "r", locking=False) as file:
            return all(file["reconstruction"].attrs[key] == value for key, value in identity.items())
    except (OSError, KeyError, RuntimeError):
        return False  # none, or not one of ours: it is replaced


def _write(file: h5py.File, given: Input, volume: Array, residuals: Array, facts: dict[str, str | int | float]) -> None:
    group = file.create_group("reconstruction")
    dataset = group.create_dataset("volume", data=volume)
    dataset.attrs["axes"] = _AXES
    dataset.attrs["units"] = (
        "arbitrary: gridrec's amplitude depends on the tilts" if facts["method"] == "tomopy:gridrec" else "counts per voxel"
    )
    group["tilts_deg"] = given.tilts_deg
    group["rows"] = given.rows
    group["residuals"] = residuals
    group.attrs.update(facts, voxel_size_nm=given.pixel_size_nm, software=f"aet_stream {__version__}")


def _ensure_picture(target: Path, title: str) -> None:
    picture = target.with_suffix(".png")
    if not picture.exists():
        with h5py.File(target, "r", locking=False) as file:
            draw_orthoslices(file[VOLUME], float(file["reconstruction"].attrs["voxel_size_nm"]), picture, title=title)
