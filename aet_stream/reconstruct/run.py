"""From `series.h5` to `reconstruction.h5`: read, align, solve, judge, write so that nobody sees half of it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable
from aet_stream.errors import AetError, ReconstructionError, TooFewProjections
from aet_stream.layout import CLEAN, PER_PROJECTION, THETA, crc32
from aet_stream.projection import Array
from aet_stream.reconstruct import apart, quality, solver
from aet_stream.reconstruct.align import STEPS, align
from aet_stream.reconstruct.export import VOLUME, write_volume
from aet_stream.reconstruct.figure import draw_summary
from aet_stream.reconstruct.quality import Quality
from aet_stream.reconstruct.registered import Alignment, apply, brightest_rows
from aet_stream.reconstruct.stopping import choose_iterations

logger = logging.getLogger(__name__)

BUILT_IN = "nesterov-sirt"
HDF5 = (".h5", ".hdf5")
OTHERS = (".mrc", ".tif", ".tiff")
LEAST_SLICES = 32
"""Half volumes of fewer slices, where there are more, have too few shells to correlate."""
_MIB = 2**20
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


@dataclass(frozen=True, slots=True)
class Options:
    """How to reconstruct; part of what makes a volume the same volume."""

    method: str = "auto"
    """auto (the built-in solver), nesterov-sirt, tomopy:ALGORITHM or astra:ALGORITHM"""
    iterations: int = 0
    """0: chosen by the stopping rule (stopping.py); for others what is usual."""
    residual: float = 0.0
    """Not 0: stop the built-in solver where the residual has fallen to this."""
    align: tuple[str, ...] = STEPS
    """Steps of the alignment; empty: none."""
    quality: bool = True
    """Judge the volume: half volumes (twice the work), residual of each projection."""
    threads: int = 0
    memory_mib: int = 0
    device: str = "cpu"
    """Of the built-in solver: cpu, cuda, cuda:0, ..."""

    @property
    def memory_here_mib(self) -> int:
        """The bound on this machine's memory; with a GPU the one above is for that."""
        return self.memory_mib if self.device == "cpu" else 0


def reconstruct(
    series: Path,
    options: Options | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: solver.Progress | None = None,
) -> Path:
    """Reconstruct a series; returns the path of the volume. Done already with the same input and options, it returns at once.

    Parameters
    ----------
    out : default: reconstruction.h5 beside the series. With another suffix (.mrc, .tif) that file is written too. A picture lies beside.
    overwrite : with `out`: replace files of its names even where no volume of ours lies beside them
    progress : called with (steps done, steps in all); by default a log line every few seconds. Others tell nothing.

    Raises
    ------
    ReconstructionError : unreadable series, unknown method, options that exclude each other, too few projections, a name that is taken, or
        the volume cannot be written
    """
    options = options or Options()
    method = check_method(options.method, options.device)
    if options.residual and (options.iterations or method != BUILT_IN):
        other = f"{options.iterations} iterations" if options.iterations else method
        raise ReconstructionError(
            f"a residual of {options.residual:g} to stop at does not go with {other}: leave one of them out (--residual)"
        )
    wanted = out or series.with_name("reconstruction.h5")
    target = wanted if wanted.suffix in HDF5 else wanted.with_suffix(".h5")
    _check_target(wanted, target, replaces=overwrite or out is None)
    given = read_input(series)
    solver.check(given.projections, given.tilts_deg, max(1, options.iterations))
    identity: dict[str, str | int | float] = {
        "series_digest": given.digest,
        "method": method,
        "iterations": options.iterations,
        "residual": options.residual,
        "align": ",".join(options.align),
        "quality": int(options.quality),
    }
    if _is_done(target, identity):
        logger.info("%s holds this volume already", target)
    else:
        began = time.monotonic()
        logger.info("%s: %d projections of %d x %d px, %s", series, *given.projections.shape, method)

        def keep(result: _Result, complete: bool) -> None:
            quality = int(options.quality and complete)  # where it is not, asking again judges
            facts = {**identity, "quality": quality, "seconds": round(time.monotonic() - began, 2), "series": series.name}
            _save(target, given, result, facts)

        _make(given, method, options, progress or _Log(), keep)
    _ensure_picture(target, f"{series.absolute().parent.name}, {method}")
    if wanted != target:
        with h5py.File(target, "r", locking=False) as file:
            write_volume(file[VOLUME][()], float(file["reconstruction"].attrs["voxel_size_nm"]), wanted)
    return wanted


def check_method(wanted: str, device: str = "cpu") -> str:
    """The method that is meant, before any work is done for it.

    Raises
    ------
    ReconstructionError : it is unknown, not safe, or of no use here; there is no such device
    """
    method = BUILT_IN if wanted == "auto" else wanted
    if method != BUILT_IN:
        apart.check(method)
    elif device != "cpu":
        solver.limit_bytes(device=device)
    return method


@dataclass(frozen=True, slots=True)
class _Result:
    volume: Array
    residuals: Array
    iterations: int
    alignment: Alignment
    quality: Quality


Keep = Callable[[_Result, bool], None]
"""Write it; whether all is there that was asked for."""


def _make(given: Input, method: str, options: Options, progress: solver.Progress, keep: Keep) -> None:
    """Align, choose when to stop, solve, judge. The volume is kept before its halves are made: whatever happens to them, it is there."""
    found = Alignment(np.zeros((len(given.projections), 2)))
    if options.align:
        found = align(given.projections, given.tilts_deg, options.align, threads=options.threads, memory_mib=options.memory_here_mib)
    projections = apply(given.projections, found)
    iterations = options.iterations
    if method == BUILT_IN and not iterations:
        iterations = choose_iterations(projections, given.tilts_deg, residual=options.residual, memory_mib=options.memory_mib)
        logger.info("%d iterations, by the stopping rule", iterations)
    volume, residuals, iterations = _solve(projections, given.tilts_deg, method, iterations, options, progress)
    judged = quality.judge(volume, projections, given.tilts_deg)
    for row in judged.suspects:
        tilt, residual = given.tilts_deg[row], judged.residual_per_tilt[row]
        logger.warning("row %d at %+.2f deg fits worse than the others (residual %.3f): look at it", given.rows[row], tilt, residual)
    result = _Result(volume, residuals, iterations, found, judged)
    if options.quality and len(projections) >= 6:
        _compare_halves(given, projections, result, method, options, progress, keep)
    else:
        keep(result, True)


def _compare_halves(
    given: Input, projections: Array, result: _Result, method: str, options: Options, progress: solver.Progress, keep: Keep
) -> None:
    """Keep the volume; make its halves, within the memory that is left; keep it with what they say. What goes wrong with them is said."""
    so_far = result.quality
    try:
        slices, memory_mib = _beside(result.volume, projections, options)
    except ReconstructionError as error:
        logger.warning("%s", error)
        keep(replace(result, quality=replace(so_far, remark=str(error))), False)
        return
    keep(replace(result, quality=replace(so_far, remark="Half volumes have not been compared.")), False)
    options = replace(options, memory_mib=memory_mib)
    try:
        one, other = (
            _solve(projections[part, slices], given.tilts_deg[part], method, result.iterations, options, progress)[0]
            for part in quality.split(given.tilts_deg)
        )
        found = quality.judge_by_halves(so_far, one, other, slices)
        if len(one) < len(result.volume):
            remark = f"The correlation is of slices {slices.start} to {slices.stop - 1} of {len(result.volume)}: memory did not allow more."
            logger.warning("%s", remark)
            found = replace(found, remark=remark)
        keep(replace(result, quality=found), True)
    except AetError as error:
        logger.warning("the volume is there, but half volumes could not be compared: %s", error)


def _beside(volume: Array, projections: Array, options: Options) -> tuple[slice, int]:
    """The slices, all or the brightest, of which two half volumes and their spectra fit beside what is held; MiB for making one of them.

    Raises
    ------
    ReconstructionError : too few do
    """
    held = volume.nbytes + 3 * projections.nbytes  # as acquired, in register, and parts of them
    free = solver.limit_bytes(options.memory_here_mib) - held
    height, width = volume.shape[:2]
    per_slice = 4 * width * (width + 2)
    most, least = min(height, free // (4 * per_slice)), min(height, LEAST_SLICES)
    if most < least:
        raise ReconstructionError(
            f"No correlation of half volumes: {least} slices of {width} x {width} px need {4 * least * per_slice // _MIB + 1} MiB beside"
            f" the volume, {max(0, free) // _MIB} may be used: allow more (--memory, reconstruct.memory_mib)."
        )
    for_one_mib = max(1, (free - most * per_slice) // _MIB)
    return brightest_rows(projections, most), for_one_mib if options.device == "cpu" else options.memory_mib


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
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ReconstructionError(f"{series}: cannot be read as a tilt series: {error}") from error
    if len(rows) < 3:
        raise TooFewProjections(f"{series}: {len(rows)} of {len(tilts)} projections can be used; at least 3 are needed")
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


def _check_target(wanted: Path, target: Path, *, replaces: bool) -> None:
    """Find out now, not after minutes of work. `target`: the volume's HDF5 file, which takes the place of an older volume only.

    What else has its names goes with an older volume; where there is none, it may be the microscope's own.
    """
    if not wanted.parent.is_dir():
        raise ReconstructionError(f"{wanted.parent} is no folder: make it first, or choose another --out")
    picture = target.with_suffix(".png")
    if wanted.suffix not in HDF5 + OTHERS or any(path.is_dir() for path in (wanted, target, picture)):
        raise ReconstructionError(f"{wanted} cannot take the volume: name a file ending in .h5, .mrc or .tif, and none that is a folder")
    try:
        with h5py.File(target, "r", locking=False) as file:
            is_volume = "reconstruction" in file
    except OSError:
        is_volume = False  # not there, or damaged: nothing to lose
    else:
        if not is_volume:
            raise ReconstructionError(f"{target} holds something else than a volume, and would be lost: choose another --out")
    if present := [path for path in (wanted, picture) if path != target and path.exists() and not (is_volume or replaces)]:
        raise ReconstructionError(f"{present[0]} is there already: choose another --out, or say --overwrite")


def _solve(
    projections: Array, tilts_deg: Array, method: str, iterations: int, options: Options, progress: solver.Progress
) -> tuple[Array, Array, int]:
    """Volume, residuals (of others: none), iterations."""
    if method != BUILT_IN:
        volume, done = apart.solve(
            projections, tilts_deg, method, iterations=iterations, threads=options.threads, memory_mib=options.memory_mib
        )
        return volume, np.zeros(0), done
    solution = solver.solve(
        projections,
        tilts_deg,
        iterations=iterations,
        progress=progress,
        threads=options.threads,
        memory_mib=options.memory_mib,
        device=options.device,
    )
    return solution.volume, solution.residuals, iterations


class _Log:
    """A line every few seconds, with the time left."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said > _SAY_EVERY_S or done == total:
            self._said = now
            logger.info("%d %%, about %.0f s left", 100 * done // total, (now - self._began) * (total - done) / done)


def _is_done(target: Path, identity: dict[str, str | int | float]) -> bool:
    try:
        with h5py.File(target, "r", locking=False) as file:
            return all(file["reconstruction"].attrs[key] == value for key, value in identity.items())
    except (OSError, KeyError, RuntimeError):
        return False  # none, or not one of ours: it is replaced


def _save(target: Path, given: Input, result: _Result, facts: dict[str, str | int | float]) -> None:
    target.with_suffix(".png").unlink(missing_ok=True)  # a picture never shows another volume than the one beside it
    try:
        with durable.replacing(target, "volume") as draft, h5py.File(draft, "w") as file:
            _write(file, given, result, facts)
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
        raise ReconstructionError(f"{target}: cannot be written: {error}") from error


def _write(file: h5py.File, given: Input, result: _Result, facts: dict[str, str | int | float]) -> None:
    group = file.create_group("reconstruction")
    dataset = group.create_dataset("volume", data=result.volume)
    dataset.attrs["axes"] = _AXES
    dataset.attrs["units"] = (
        "arbitrary: gridrec's amplitude depends on the tilts" if facts["method"] == "tomopy:gridrec" else "counts per voxel"
    )
    group["tilts_deg"] = given.tilts_deg
    group["rows"] = given.rows
    group["residuals"] = result.residuals
    group["shifts_px"] = result.alignment.shifts_px
    group["shifts_px"].attrs["meaning"] = "[y, x] that each projection was moved by, after it was turned by axis_deg"
    size_nm, software = given.pixel_size_nm, f"aet_stream {__version__}"
    group.attrs.update(facts, iterations_done=result.iterations, voxel_size_nm=size_nm, software=software)
    group.attrs.update(axis_deg=result.alignment.axis_deg, alignment=json.dumps(result.alignment.residuals))
    _write_quality(group.create_group("quality"), given, result.quality)


def _write_quality(group: h5py.Group, given: Input, found: Quality) -> None:
    group["residual_per_tilt"] = found.residual_per_tilt
    group["suspect_rows"] = given.rows[found.suspects]
    group["fsc_per_px"], group["fsc"] = found.fsc_per_px, found.fsc
    group["fsc"].attrs["slices"] = found.fsc_slices
    group.attrs["resolution_px"] = found.resolution_px
    group.attrs["resolution_nm"] = found.resolution_px * given.pixel_size_nm
    group.attrs["missing_wedge_deg"] = found.missing_wedge_deg
    group.attrs["note"] = (
        f"No projection in {found.missing_wedge_deg:.0f} of 180 degrees: along the beam the volume is blurred by what was not seen, and the"
        " Fourier shell correlation, whose halves miss the same wedge, says nothing about it."
        f" {found.remark}".rstrip()
    )


def _ensure_picture(target: Path, title: str) -> None:
    picture = target.with_suffix(".png")
    if not picture.exists():
        with h5py.File(target, "r", locking=False) as file:
            draw_summary(file["reconstruction"], picture, title=title)
