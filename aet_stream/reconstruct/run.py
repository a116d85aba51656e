"""From `series.h5` to `reconstruction.h5`: read, align, solve, judge, write so that nobody sees half of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aet_stream import __version__
from aet_stream.errors import AetError, ReconstructionError
from aet_stream.naming import VOLUME_FILE
from aet_stream.projection import Array
from aet_stream.reconstruct import apart, prepared, quality, solver
from aet_stream.reconstruct.align import STEPS, align
from aet_stream.reconstruct.axis_search import search
from aet_stream.reconstruct.input import Input, read_input
from aet_stream.reconstruct.prepared import Prepared
from aet_stream.reconstruct.progress import ProgressLog
from aet_stream.reconstruct.registered import Alignment, Registered, apply, brightest_rows
from aet_stream.reconstruct.slabs import SlabFiles, Volume, discard, prepared_path
from aet_stream.reconstruct.stopping import choose_iterations
from aet_stream.reconstruct.turns import alignment_of, of_atoms, poses
from aet_stream.reconstruct.volume_file import HDF5, VOLUME, Facts, Result, check_target, ensure_picture, form_of, is_done, save

logger = logging.getLogger(__name__)

BUILT_IN = "nesterov-sirt"
LEAST_SLICES = 32
"""Half volumes of fewer slices, where there are more, have too few shells to correlate."""
SHARE_SLICES = 64
"""Of a volume that is shared out, for each process at a time: two slabs, so that its projector is made for more than one."""
_MIB = 2**20


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
    axis_deg: float | None = None
    """Where the tilt axis lies, from +y towards -x. None: where the series says."""
    axis_offset_px: float | None = None
    """How far right of the middle it lies in upright images. None: the alignment looks for it."""
    quality: bool = True
    """Judge the volume: half volumes (twice the work), residual of each projection."""
    weighted: bool = True
    """The built-in solver lets what is smooth in a projection count for less where its background may be wrong (weights.py)."""
    threads: int = 0
    memory_mib: int = 0
    device: str = "cpu"
    """Of the built-in solver: cpu, cuda, cuda:0, ..."""
    exclude: tuple[int, ...] = ()
    """Numbers of projections that are left out of this volume alone."""
    atoms: Path | None = None
    """An atoms.h5 of this series: projections are taken as its atoms found that they lay, turned about all axes. No alignment then."""
    silence_s: float = apart.SILENCE_S
    """How long a library of other people's may hand nothing over."""

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
    progress : called with (steps done, steps in all), of tomopy and ASTRA slices; by default a log line every few seconds

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
    wanted = out or series.with_name(VOLUME_FILE)
    target = wanted if form_of(wanted) == HDF5 else wanted.with_suffix(".h5")
    check_target(wanted, target, replaces=overwrite or out is None)
    given, identity = _asked(series, method, options)
    if is_done(target, identity):
        logger.info("%s holds this volume already", target)
        discard(target)  # of a try that was killed when it was there
    else:
        began = time.monotonic()
        logger.info("%s: %d projections of %d x %d px, %s", series, *given.projections.shape, method)

        def keep(result: Result, complete: bool) -> None:
            quality = int(options.quality and complete)  # where it is not, asking again judges
            facts = {
                **identity,
                "quality": quality,
                "seconds": round(time.monotonic() - began, 2),
                "series": series.name,
                "edition": given.edition,
            }
            save(target, given, result, facts)

        _make(given, method, options, progress or ProgressLog(), target, identity, keep)
    ensure_picture(target, f"{series.absolute().parent.name}, {method}")
    if wanted != target:
        from aet_stream.reconstruct.export import write_volume  # loads the writers of all forms: a tenth of a second

        with h5py.File(target, "r", locking=False) as file:
            about = file["reconstruction"].attrs
            write_volume(file[VOLUME][()], float(about["voxel_size_nm"]), wanted, int(about.get("edition", 1)))
        logger.info("%s: the same with all that is known of it is in %s, a picture in %s", wanted, target, target.with_suffix(".png"))
    return wanted


def share_out(series: Path, options: Options) -> list[slice]:
    """Get a volume that is too large for memory ready to be made by several processes; returns the slices that `make_share` is to be asked
    for, wherever the folder of the series can be reached. `reconstruct` makes one volume of them. None: it is no such volume, or is there.

    Raises
    ------
    ReconstructionError : as for `reconstruct`
    """
    method, target = check_method(options.method, options.device), series.with_name(VOLUME_FILE)
    given, identity = _asked(series, method, options)
    height, width = Alignment(np.zeros((0, 2)), given.axis_deg).shape(given.projections.shape)
    if options.atoms is not None or is_done(target, identity) or not _is_large((height, width, width), options):
        return []
    ready = prepared.find(target, _digest(identity), slice(0))
    if ready is None:
        ready = _prepare(given, method, options, identity)
        prepared.keep(target, ready, _digest(identity))
    height, _ = ready.views.alignment.shape(given.projections.shape)
    ends = [*range(SHARE_SLICES, height - SHARE_SLICES + 1, SHARE_SLICES), height]
    return [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]


def make_share(series: Path, slices: slice, options: Options, progress: solver.Progress | None = None) -> None:
    """Make these slices of a volume that was shared out with the same options. What is there of them is left alone.

    Raises
    ------
    ReconstructionError : it was not, or as for `reconstruct`
    """
    method, target = check_method(options.method, options.device), series.with_name(VOLUME_FILE)
    found = prepared.find(target, slices=slices)
    if found is None:
        words = "not there, or damaged: see that all workers reach the same folders, remove it, start again"
        raise ReconstructionError(f"{prepared_path(target)}: {words}")
    with contextlib.closing(SlabFiles(target, found.key, _shape(found.views), share=slices)) as slabs:
        _fill(slabs, found.views, method, found.iterations, options, progress or ProgressLog())


def _asked(series: Path, method: str, options: Options) -> tuple[Input, Facts]:
    """What a volume is to be made from, and all that makes it the same volume."""
    given = read_input(series, exclude=options.exclude)
    axis_deg = given.axis_deg if options.axis_deg is None else options.axis_deg
    given = replace(given, axis_deg=0.0 if np.isnan(axis_deg) else axis_deg)
    solver.check(given.projections, given.tilts_deg, max(1, options.iterations))
    if method != BUILT_IN or not options.weighted:
        given = replace(given, weights=None)
    return given, {
        "turns_digest": "" if options.atoms is None else _turns_digest(options.atoms, given, method),
        "series_digest": given.digest,
        "method": method,
        "iterations": options.iterations,
        "residual": options.residual,
        "align": ",".join(options.align),
        "axis_said_deg": given.axis_deg,
        "axis_offset_px": "" if options.axis_offset_px is None else options.axis_offset_px,
        "quality": int(options.quality),
        "weights_digest": "" if given.weights is None else hashlib.sha256(given.weights.round(3).tobytes()).hexdigest(),
    }


def _turns_digest(atoms: Path, given: Input, method: str) -> str:
    """Names the turns that atoms found, of which there have to be some, of these projections."""
    turned = of_atoms(atoms)
    if turned.series_digest != given.digest:
        raise ReconstructionError(f"{atoms} is of other projections than the series holds now: find its atoms again")
    if not turned.turns.any():
        raise ReconstructionError(f"{atoms} found no turns that explain more: a volume by them would be the one it was made from")
    if method != BUILT_IN:
        raise ReconstructionError(f"{method} knows one axis only: leave out --method, or --atoms")
    return turned.digest


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


Keep = Callable[[Result, bool], None]
"""Write it; whether all is there that was asked for."""


def _register(given: Input, options: Options) -> Registered:
    """By the steps of the alignment, or as the atoms found that projections lay."""
    if options.atoms is not None:
        turned = of_atoms(options.atoms)
        found, posed = turned.onto(alignment_of(turned.volume)[0]), poses(given.tilts_deg, turned.turns, stretched=True)
        projections = apply(given.projections, found, rolls=posed.rolls)
        return Registered(projections, posed.tilts_deg, found, posed.pitches, given.weights)
    found = align(
        given.projections,
        given.tilts_deg,
        options.align,
        axis_deg=given.axis_deg,
        axis_offset_px=options.axis_offset_px,
        threads=options.threads,
        memory_mib=options.memory_here_mib,
    )
    return Registered(apply(given.projections, found), given.tilts_deg, found, weights=given.weights)


def _prepare(given: Input, method: str, options: Options, identity: Facts) -> Prepared:
    """Align, and choose when to stop."""
    axis = search(given.projections, given.tilts_deg, given.axis_deg)
    logger.log(logging.WARNING if axis.contradicts else logging.INFO, "%s", axis.sentence)
    views = _register(given, options)
    iterations = options.iterations
    if method == BUILT_IN and not iterations:
        left = _beside_views(views, options) if _goes_by_slabs(views, options) else options
        iterations = choose_iterations(
            views.projections, views.tilts_deg, residual=options.residual, memory_mib=left.memory_here_mib, weights=views.weights
        )
        logger.info("%d iterations, by the stopping rule", iterations)
    iterations = iterations or apart.usual_iterations(method)
    found = views.alignment
    return Prepared(views, iterations, axis, _digest(identity, iterations, found.axis_deg, found.shifts_px.tolist()))


def _make(given: Input, method: str, options: Options, progress: solver.Progress, target: Path, identity: Facts, keep: Keep) -> None:
    """Align, choose when to stop, solve, judge. The volume is kept before its halves are made: whatever happens to them, it is there."""
    ready = prepared.find(target, _digest(identity)) or _prepare(given, method, options, identity)
    views, iterations = ready.views, ready.iterations
    with contextlib.ExitStack() as held:
        volume: Volume
        if _goes_by_slabs(views, options):
            logger.info("slab by slab: %d x %d x %d voxels are too many for the memory there is", *_shape(views))
            slabs = SlabFiles(target, ready.key, _shape(views))
            volume = held.enter_context(contextlib.closing(slabs))
            _fill(slabs, views, method, iterations, options, progress)
            residuals = solver.residuals(slabs.squares, views.projections)
        else:
            volume, residuals, iterations = _solve(views, method, iterations, options, progress)
        judged = quality.judge(volume, views.projections, views.tilts_deg, views.pitches)
        for row in judged.suspects:
            tilt, residual = given.tilts_deg[row], judged.residual_per_tilt[row]
            logger.warning("row %d at %+.2f deg fits worse than the others (residual %.3f): look at it", given.rows[row], tilt, residual)
        result = Result(volume, residuals, iterations, views.alignment, judged, ready.axis)
        if options.quality and len(views.projections) >= 6:
            _compare_halves(given, views, result, method, options, progress, keep)
        else:
            keep(result, True)
    discard(target)


def _shape(views: Registered) -> tuple[int, int, int]:
    _, height, width = views.projections.shape
    return height, width, width


def _is_large(shape: tuple[int, int, int], options: Options) -> bool:
    """Whether the volume would take more than half of the memory there is."""
    return 4 * math.prod(shape) > solver.limit_bytes(options.memory_here_mib) // 2


def _goes_by_slabs(views: Registered, options: Options) -> bool:
    """Slices that see each other cannot."""
    return views.pitches is None and _is_large(_shape(views), options)


def _beside_views(views: Registered, options: Options) -> Options:
    """With the memory that projections, as acquired and in register, leave; a GPU has them not."""
    if options.device != "cpu":
        return options
    return replace(options, memory_mib=max(1, (solver.limit_bytes(options.memory_mib) - 2 * views.projections.nbytes) // _MIB))


def _digest(identity: Facts, *found: Any) -> str:
    """Of projections, all options but that for judging, and what was found out by them."""
    return hashlib.sha256(json.dumps([__version__, {**identity, "quality": 0}, *found], sort_keys=True).encode()).hexdigest()


def _fill(slabs: SlabFiles, views: Registered, method: str, iterations: int, options: Options, progress: solver.Progress) -> None:
    """Make the slabs that are not there yet."""
    height, options = slabs.shape[0], _beside_views(views, options)
    if slabs.height:
        logger.info("%d of %d slices are there from the try before", slabs.height, height)
    if slabs.height < height:
        common: dict[str, Any] = {"iterations": iterations, "first": slabs.height, "progress": progress}
        common |= {"threads": options.threads, "memory_mib": options.memory_mib}
        if method == BUILT_IN:
            making = solver.solve_by_slabs(views.projections, views.tilts_deg, device=options.device, weights=views.weights, **common)
        else:
            making = apart.solve_by_slabs(views.projections, views.tilts_deg, method, silence_s=options.silence_s, **common)
        for slab in making:
            slabs.add(slab)


def _compare_halves(
    given: Input, views: Registered, result: Result, method: str, options: Options, progress: solver.Progress, keep: Keep
) -> None:
    """Keep the volume; make its halves, within the memory that is left; keep it with what they say. What goes wrong with them is said."""
    so_far = result.quality
    try:
        slices, memory_mib = _beside(result.volume, views.projections, options)
    except ReconstructionError as error:
        logger.warning("%s", error)
        keep(replace(result, quality=replace(so_far, remark=str(error))), False)
        return
    keep(replace(result, quality=replace(so_far, remark="Half volumes have not been compared.")), False)
    options = replace(options, memory_mib=memory_mib)
    try:
        one, other = (
            _solve(views.some(part, slices), method, result.iterations, options, progress)[0] for part in quality.split(given.tilts_deg)
        )
        found = quality.judge_by_halves(so_far, one, other, slices)
        if len(one) < (height := result.volume.shape[0]):
            remark = f"The correlation is of slices {slices.start} to {slices.stop - 1} of {height}: memory did not allow more."
            logger.warning("%s", remark)
            found = replace(found, remark=remark)
        keep(replace(result, quality=found), True)
    except AetError as error:
        logger.warning("the volume is there, but half volumes could not be compared: %s", error)


def _beside(volume: Volume, projections: Array, options: Options) -> tuple[slice, int]:
    """The slices, all or the brightest, of which two half volumes and their spectra fit beside what is held; MiB for making one of them.

    Raises
    ------
    ReconstructionError : too few do
    """
    held = 3 * projections.nbytes  # as acquired, in register, and parts of them
    held += 0 if isinstance(volume, SlabFiles) else volume.nbytes
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


def _solve(views: Registered, method: str, iterations: int, options: Options, progress: solver.Progress) -> tuple[Array, Array, int]:
    """Volume, residuals (of others: none), iterations."""
    if method != BUILT_IN:
        volume, done = apart.solve(
            views.projections,
            views.tilts_deg,
            method,
            iterations=iterations,
            threads=options.threads,
            memory_mib=options.memory_mib,
            silence_s=options.silence_s,
            progress=progress,
        )
        return volume, np.zeros(0), done
    solution = solver.solve(
        views.projections,
        views.tilts_deg,
        iterations=iterations,
        progress=progress,
        threads=options.threads,
        memory_mib=options.memory_mib,
        device=options.device,
        pitches=views.pitches,
        weights=views.weights,
    )
    return solution.volume, solution.residuals, iterations
