"""From `reconstruction.h5` and `series.h5` to `atoms.h5`, `atoms.xyz` and a picture."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aet_stream.atoms import atoms_file, doubts
from aet_stream.atoms.atoms_file import Atoms, Tilts
from aet_stream.atoms.figure import draw_atoms
from aet_stream.atoms.kernels import window_for
from aet_stream.atoms.maxima import maxima, neighbour_distance
from aet_stream.atoms.model import Model, Stage
from aet_stream.atoms.source import Source, read_source
from aet_stream.atoms.sureness import standard_deviations
from aet_stream.atoms.trace import Round, Rules, Traced, measured_weights, trace
from aet_stream.atoms.views import make_views, to_angstrom, to_places, to_voxels
from aet_stream.layout import SERIES_FILE
from aet_stream.naming import ATOMS_FILE
from aet_stream.projection import Array
from aet_stream.reconstruct.turns import one_after

logger = logging.getLogger(__name__)

WIDTH_ANGSTROM = 0.5
"""Of an atom's image to begin with; it is refined."""
WIDEST_ANGSTROM = 0.56


@dataclass(frozen=True, slots=True)
class Options:
    """How atoms are found; part of what makes them the same atoms."""

    elements: tuple[str, ...] = ()
    """Symbols, the heaviest first. Empty: not known."""
    kinds: int = 0
    """How many kinds of atoms there are. 0: as many as `elements`, or as many as the weights speak for."""
    pixel_angstrom: float = 0.0
    """0: as the series says"""
    threads: int = 0
    """0: all cores"""

    @property
    def kinds_said(self) -> int:
        return self.kinds or len(self.elements)


def find_atoms(
    reconstruction: Path, series: Path | None = None, options: Options | None = None, *, out: Path | None = None, overwrite: bool = False
) -> Path:
    """Find the atoms of a volume; returns the path of `atoms.h5`. Done already with the same input and options, it returns at once.

    Parameters
    ----------
    series : default: series.h5 beside the volume
    out : default: atoms.h5 beside the volume. An .xyz and a .png lie beside it.
    overwrite : with `out`: replace files of its names even where no atoms of ours lie beside them

    Raises
    ------
    NoAtoms : none can be told here; the message says why
    ReconstructionError : unreadable input, a name that is taken, or they cannot be written
    """
    options = options or Options()
    target = out or reconstruction.with_name(ATOMS_FILE)
    atoms_file.check_target(target, replaces=overwrite or out is None)
    source = read_source(reconstruction, series or reconstruction.with_name(SERIES_FILE), options.pixel_angstrom)
    identity: atoms_file.Facts = {
        "volume_digest": source.volume_digest,
        "series_digest": source.given.digest,
        "elements": ",".join(options.elements),
        "kinds_said": options.kinds_said,
        "pixel_angstrom": source.pixel_angstrom,
    }
    if atoms_file.is_done(target, identity):
        logger.info("%s holds these atoms already", target)
        return target
    began = time.monotonic()
    atoms = trace_source(source, options)
    facts = {**identity, "seconds": round(time.monotonic() - began, 2), "volume": reconstruction.name}
    facts |= {"volume_crc32": source.volume_crc32, "edition": source.given.edition}
    atoms_file.save(target, atoms, facts)
    atoms_file.save_xyz(target.with_suffix(".xyz"), atoms)
    draw_atoms(
        atoms, source.volume, target.with_suffix(".png"), title=f"{reconstruction.absolute().parent.name}: {len(atoms.weights):,} atoms"
    )
    return target


def trace_source(source: Source, options: Options, rules: Rules | None = None) -> Atoms:
    """The atoms of a volume.

    Raises
    ------
    NoAtoms : none can be told here
    """
    projections, tilts_deg, pixel = source.given.projections, source.given.tilts_deg, source.pixel_angstrom
    broken = doubts.broken_frames(projections)
    doubts.refuse_geometry(tilts_deg[~broken], pixel)
    said = list(doubts.about_noise(projections[~broken]))
    found, heights = maxima(source.volume, pixel)
    neighbour, contrast = neighbour_distance(found * pixel)
    doubts.refuse_maxima(len(found), contrast)
    logger.info("%d maxima, neighbours %.2f angstrom apart", len(found), neighbour)
    stage = stage_for(source, broken, options.threads)
    try:
        traced = trace(
            stage,
            to_places(found, source.volume.shape),
            heights,
            pixel_angstrom=pixel,
            neighbour_angstrom=neighbour,
            width_angstrom=WIDTH_ANGSTROM,
            kinds=options.kinds_said,
            rules=rules or Rules(),
            told=_log,
        )
        return _described(stage, traced, source, options, said)
    finally:
        stage.close()


def stage_for(source: Source, left_out: Array, threads: int = 0) -> Stage:
    """Where models are compared with the projections of a volume; (tilts,) `left_out`: those that weigh nothing. To be closed."""
    window = window_for(WIDEST_ANGSTROM / source.pixel_angstrom)
    views = make_views(source.given.projections, source.given.tilts_deg, source.alignment, window)
    return Stage(views.without(left_out), window, threads or len(os.sched_getaffinity(0)))


def _log(number: int, model: Model, done: Round) -> None:
    logger.info(
        "round %d: %d atoms (%d added, %d pruned, %d merged, %d on trial), chi squared per pixel %.3f",
        number, done.atoms, done.added, done.pruned, done.merged, done.tried, done.misfit,
    )  # fmt: skip


def _described(stage: Stage, traced: Traced, source: Source, options: Options, said: list[str]) -> Atoms:
    model, shape, pixel = traced.model, source.volume.shape, source.pixel_angstrom
    order = np.lexsort((model.places[:, 1], model.places[:, 0]))
    weights, errors = measured_weights(stage, model, traced.prior)
    places_sigma = standard_deviations(stage, model)
    sigmas = np.abs(to_angstrom(places_sigma, pixel))
    chances = traced.species.chances(weights, errors)
    misfits, left_out = stage.misfit_per_tilt(model), stage.views.left_out
    if traced.unseen:
        said.append("There are lighter atoms than these, but not one of them stands out from the noise: they are not in the list.")
    said += doubts.after(sigmas.max(axis=1), float(np.median(misfits[~left_out])), int(left_out.sum()), len(left_out))
    for sentence in said:
        logger.warning("%s", sentence)
    given, turns = source.given, model.turns
    if source.alignment.turns is not None:
        turns = one_after(turns, source.alignment.turns)
    return Atoms(
        angstrom=to_angstrom(model.places, pixel)[order],
        voxels=to_voxels(model.places, shape)[order],
        starts=to_voxels(traced.starts, shape)[order],
        sigmas_angstrom=sigmas[order],
        weights=model.weights[order],
        weight_sigmas=errors[order],
        kinds=model.kinds[order],
        chances=chances[order],
        presence=traced.species.presence(weights, errors)[order],
        rounds_born=traced.born[order],
        symbols=options.elements[: len(traced.species.means)],
        mean_weights=traced.species.means,
        weight_spreads=traced.species.spreads,
        widths_angstrom=model.widths_px * pixel,
        tilts=Tilts(
            given.rows,
            given.tilts_deg,
            misfits,
            model.offsets,
            traced.levelled,
            model.gains,
            model.shifts_px,
            np.degrees(to_angstrom(turns, 1.0)),
            left_out,
        ),
        rounds=traced.rounds,
        doubts=tuple(said),
        pixel_angstrom=pixel,
    )
