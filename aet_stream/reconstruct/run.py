"""From `series.h5` to `reconstruction.h5`: read, choose a method, solve, write so that nobody sees half of it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable
from aet_stream.errors import ReconstructionError
from aet_stream.layout import CLEAN, PER_PROJECTION, THETA, crc32
from aet_stream.projection import Array
from aet_stream.reconstruct import solver, tomopy_backend

logger = logging.getLogger(__name__)

BUILT_IN = "nesterov-sirt"
_SAY_EVERY_S = 5.0
_AXES = "(slice y, row, column); tilt axis along y; row = (N-1)/2 - Y, column = (N-1)/2 + X; seen at (N-1)/2 + X cos(tilt) + Y sin(tilt)"


@dataclass(frozen=True, slots=True)
class Input:
    """What a volume is made from."""

    projections: Array
    """(tilts, y, x) float32"""
    tilts_deg: Array
    rows: Array
    """Which rows of the series these are."""
    pixel_size_nm: float
    digest: str
    """Names exactly these pixels at these tilts."""


def reconstruct(series: Path, *, method: str = "auto", iterations: int = 50, out: Path | None = None) -> Path:
    """Reconstruct a series; returns the path of the volume. Done already with the same input, it returns at once.

    Raises
    ------
    ReconstructionError : unreadable series, unknown method, too few projections
    """
    method = BUILT_IN if method == "auto" else method
    _check_method(method)
    target = out or series.with_name("reconstruction.h5")
    given = read_input(series)
    identity: dict[str, str | int] = {"input_digest": given.digest, "method": method, "iterations": iterations}
    if _is_done(target, identity):
        logger.info("%s holds this volume already", target)
        return target
    began = time.monotonic()
    logger.info("%s: %d projections of %d x %d px, %s", series, *given.projections.shape, method)
    volume, residuals = _solve(given, method, iterations)
    with durable.replacing(target) as draft, h5py.File(draft, "w") as file:
        _write(file, given, volume, residuals, {**identity, "seconds": round(time.monotonic() - began, 2), "series": str(series.name)})
    from aet_stream.reconstruct.figure import draw_orthoslices

    draw_orthoslices(volume, given.pixel_size_nm, target.with_suffix(".png"), title=f"{series.parent.name}, {method}")
    return target


def _check_method(method: str) -> None:
    name, _, algorithm = method.partition(":")
    if name == "tomopy" and algorithm:
        tomopy_backend.load()
    elif method != BUILT_IN:
        raise ReconstructionError(f"method {method!r}: choose auto, {BUILT_IN} or tomopy:ALGORITHM ({', '.join(tomopy_backend.SAFE)})")


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
            tilts = file[THETA][()][rows]
            frames = []
            for row in rows:
                frame = file[CLEAN][row]
                if crc32(frame) != facts["clean_crc32"][row]:
                    raise ReconstructionError(f"{series}: row {row} is missing or damaged (checksum); `aet-stream verify` says more")
                frames.append(frame)
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{series}: cannot be read as a tilt series: {error}") from error
    if len(frames) < 3:
        raise ReconstructionError(f"{series}: {len(frames)} usable projections; at least 3 are needed")
    digest = hashlib.sha256(facts["clean_crc32"][rows].tobytes() + tilts.tobytes()).hexdigest()
    sizes = facts["pixel_size_nm"][rows]
    known = sizes[np.isfinite(sizes)]
    return Input(np.stack(frames), tilts, rows, float(known[0]) if known.size else float("nan"), digest)


def _solve(given: Input, method: str, iterations: int) -> tuple[Array, Array]:
    if method != BUILT_IN:
        algorithm = method.partition(":")[2]
        return tomopy_backend.solve(given.projections, given.tilts_deg, algorithm=algorithm, iterations=iterations), np.zeros(0)
    solution = solver.solve(given.projections, given.tilts_deg, iterations=iterations, progress=_progress())
    return solution.volume, solution.residuals


def _progress() -> Callable[[int, int], None]:
    """A line every few seconds, with the time left."""
    began = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > _SAY_EVERY_S or done == total:
            said = now
            logger.info("slice %d of %d, about %.0f s left", done, total, (now - began) * (total - done) / max(done, 1))

    return tell


def _is_done(target: Path, identity: dict[str, str | int]) -> bool:
    try:
        with h5py.File(target, "r") as file:
            return all(file["reconstruction"].attrs[key] == value for key, value in identity.items())
    except (OSError, KeyError):
        return False


def _write(file: h5py.File, given: Input, volume: Array, residuals: Array, facts: dict[str, str | int | float]) -> None:
    group = file.create_group("reconstruction")
    dataset = group.create_dataset("volume", data=volume)
    dataset.attrs["axes"] = _AXES
    dataset.attrs["units"] = "detector counts per voxel"
    group["tilts_deg"] = given.tilts_deg
    group["rows"] = given.rows
    group["residuals"] = residuals
    group.attrs.update(facts, voxel_size_nm=given.pixel_size_nm, software=f"aet_stream {__version__}")
