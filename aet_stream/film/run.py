"""From `series.h5` to `film.h5`, and to an edition of the whole series: read, estimate, judge, write so that nobody sees half of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from aet_stream import edition
from aet_stream.denoise.cokriging.estimator import Drawing, Estimated, estimate
from aet_stream.denoise.cokriging.gate import Taken
from aet_stream.denoise.cokriging.model import FILM_LENGTHS, OWN_LENGTHS, Film, Model
from aet_stream.denoise.cokriging.seen import look, point_px, pooled
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.estimate import Image
from aet_stream.denoise.estimators import CLASSICAL
from aet_stream.edition import Maker
from aet_stream.errors import TooFewProjections
from aet_stream.film import film_file
from aet_stream.film.doubts import doubts
from aet_stream.film.film_file import Told
from aet_stream.film.frames import MODEL, Frame, code_sha256, finished, under, with_places
from aet_stream.naming import FILM_FILE
from aet_stream.projection import Array
from aet_stream.reasons import json_of
from aet_stream.series import Series

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
MADE_BY = "film"
_SUPPORTS = ("supports/logit", "supports/number", "supports/raw_crc32")


@dataclass(frozen=True, slots=True)
class Options:
    """What decides when and how it is done, but not the result."""

    tilts_each_side: int = 5
    memory_mib: int = 1536


def maker_of(denoiser: Denoiser) -> Maker:
    """Who makes the edition: this code, and the network that says where the particle is."""
    return Maker(MADE_BY, MODEL, code_sha256(), {"particle_by": denoiser.name, "particle_by_sha256": denoiser.sha256})


def enough(tilts_deg: Array, each_side: int) -> bool:
    """Are there tilts to both sides? What one hides, only the other shows."""
    return min(int((tilts_deg < 0).sum()), int((tilts_deg > 0).sum())) >= each_side


def see(path: Path, denoiser: Denoiser, options: Options | None = None) -> Path:
    """The films of a series that grows: write `film.h5` beside it, from the model that stands there.

    Raises
    ------
    StoreError : the series is damaged
    TooFewProjections : of tilts on both sides, or nothing turns with the specimen that could be told
    OutputFull : the disk does not take it
    """
    began = time.monotonic()
    with Series(path) as series:
        frames = list(_frames(series, denoiser, options or Options()))
        estimated = _estimated(frames, series.shape, _model_before(path.with_name(FILM_FILE)), options or Options())
        _write(path, series, frames, estimated, denoiser, time.monotonic() - began)
    return path.with_name(FILM_FILE)


def make_edition(path: Path, denoiser: Denoiser, options: Options | None = None) -> tuple[Path, Maker]:
    """The films of a series as it is: `film.h5`, and an edition that waits for the hub. Done already, it returns at once.

    It begins anew, whatever has been found of a shorter series: the same rows give the same pixels.

    Raises
    ------
    StoreError, TooFewProjections, OutputFull : as `see`
    """
    began, folder, maker = time.monotonic(), path.absolute().parent, maker_of(denoiser)
    with Series(path) as series:
        covered = edition.covered(series)
        done = edition.find(folder, maker, covered)
        if done is not None:
            return done, maker
        frames = list(_frames(series, denoiser, options or Options()))
        estimated = _estimated(frames, series.shape, None, options or Options())
        told = _write(path, series, frames, estimated, denoiser, time.monotonic() - began)
        drawings = {frame.row: (frame, drawing) for frame, drawing in zip(frames, estimated.drawings, strict=True)}
        with edition.writing(folder, folder.name, maker, covered, series.shape) as draft:
            for row in range(len(covered)):
                clean, quality = series.first(row)
                if row not in drawings:
                    draft.row(clean, quality, estimate=Taken.SINGLE, because="it does not count, or has no tilt")
                    continue
                frame, drawing = drawings[row]
                clean, quality = finished(frame, drawing, clean)
                draft.row(clean, quality, estimate=drawing.verdict.taken, because=_because(drawing))
            for name, (values, meaning) in told.items():
                draft.extra(name, values, meaning=meaning)
    return edition.made_path(folder, maker.key), maker


def _frames(series: Series, denoiser: Denoiser, options: Options) -> Iterator[Frame]:
    rows = np.flatnonzero(series.counting & np.isfinite(series.tilts_deg))
    tilts_deg = series.tilts_deg
    if not enough(tilts_deg[rows], options.tilts_each_side):
        raise TooFewProjections(
            f"{series.path}: {(tilts_deg[rows] < 0).sum()} and {(tilts_deg[rows] > 0).sum()} tilts on the two sides of 0;"
            f" {options.tilts_each_side} on both are needed: what one side hides, only the other shows"
        )
    numbers, checksums = series.column("number"), series.column("raw_crc32")
    axes_deg = series.column("tilt_axis_deg") if series.has("tilt_axis_deg") else np.zeros(len(tilts_deg))
    order = series.column("acquisition_order")
    times = np.argsort(np.argsort(order[rows])) / max(1, len(rows) - 1)
    known = _supports(series.path.with_name(FILM_FILE), denoiser)
    level = float(series.raw(int(rows[0])).flat[0])
    for row, when in zip(rows.tolist(), times.tolist(), strict=True):
        raw = series.raw(row)
        logit = known.get((int(numbers[row]), int(checksums[row])))
        if logit is None:
            logit = denoiser.support(raw)
        clean, quality = series.first(row)
        axis_deg = float(np.nan_to_num(axes_deg[row]))
        yield Frame.of(row, raw, clean, quality, logit, tilt_deg=float(tilts_deg[row]), time=when, level=level, axis_deg=axis_deg)


def _supports(path: Path, denoiser: Denoiser) -> dict[tuple[int, int], Array]:
    """Where the particle is, of projections that have been looked at before: by number and checksum."""
    found = film_file.read(path, *_SUPPORTS)
    if found is None or found[1].get("particle_by_sha256") != denoiser.sha256:
        return {}
    logits, numbers, checksums = (found[0][name] for name in _SUPPORTS)
    return {(int(number), int(crc)): logit for logit, number, crc in zip(logits, numbers, checksums, strict=True)}


def _estimated(frames: list[Frame], shape: tuple[int, int], begin: Model | None, options: Options) -> Estimated:
    found = estimate(with_places(frames, shape), begin=begin, memory_bytes=options.memory_mib << 20, beat=_log())
    if found is None:
        raise TooFewProjections("nothing turns with the specimen that could be told: no vacuum beside the particle through the tilts")
    return found


def _log() -> Callable[[str, int, int], None]:
    last: list[str] = []

    def say(what: str, done: int, total: int) -> None:
        if [what] != last:
            last[:] = [what]
            logger.info("%s", what)

    return say


# ---------------------------------------------------------------- what stands in the files


def _write(path: Path, series: Series, frames: list[Frame], found: Estimated, denoiser: Denoiser, seconds: float) -> Told:
    """Replace `film.h5`; returns what stands in it but for what only the next run needs."""
    told = _told(series, frames, found)
    checksums = series.column("raw_crc32")
    kept = {
        _SUPPORTS[0]: (np.stack([frame.logit for frame in frames]).astype(np.float32), "logit of the particle's support, of blocks"),
        _SUPPORTS[1]: (series.column("number")[[frame.row for frame in frames]], "of which projection"),
        _SUPPORTS[2]: (checksums[[frame.row for frame in frames]], "of its raw pixels"),
    }
    counts = {taken.value: sum(drawing.verdict.taken is taken for drawing in found.drawings) for taken in Taken}
    facts = {
        "digest": series.digest, "projections": len(frames), "seconds": round(seconds, 2), "made_at": time.time(),
        "particle_by": denoiser.name, "particle_by_sha256": denoiser.sha256, "code_sha256": code_sha256(),
        "height_px": series.shape[0], "width_px": series.shape[1], **counts,
        "unit_counts": found.unit, "doubts": msgspec.json.encode([json_of(doubt) for doubt in doubts(found, _radius(frames))]).decode(),
    }  # fmt: skip
    film_file.write(path.with_name(FILM_FILE), told | kept, facts)
    return told


def _told(series: Series, frames: list[Frame], found: Estimated) -> Told:
    model, unit, drawings = found.model, found.unit, found.drawings
    px, level = float(point_px(series.shape)), frames[0].level
    verdicts = [drawing.verdict for drawing in drawings]

    def stacked(values: list[Array]) -> Array:
        return np.stack(values).astype(np.float32)

    return {
        "film/map_counts": (
            found.map.film.astype(np.float32),
            "(films, along, across) thickness from its mean, as counts at 0 degrees to it",
        ),
        "film/sd_counts": (found.map.sd.astype(np.float32), "its standard deviation"),
        "film/along_px": (found.map.along * px, "along the tilt axis"),
        "film/across_px": (found.map.across * px, "across it, on the film"),
        "geometry/heights_px": (np.array([film.height for film in model.films]) * px, "of each film where it crosses the middle"),
        "geometry/growing": (np.array([film.growing for film in model.films]), "it comes with time: contamination"),
        "geometry/turn_deg": (np.array(model.turn_deg), "by which the films are turned about the axis where the stage says 0"),
        "geometry/slope": (np.array(model.slope), "height by length along the axis"),
        "geometry/scan_score": (np.array(found.scan_score), "logarithm of the share of its slopes that tilts do not agree about"),
        "geometry/radius_px": (np.array(_radius(frames) * px), "of the particle: median over the tilts"),
        "amplitudes/film_counts": (np.stack([film.amplitudes for film in model.films]) * unit, "(films, lengths) standard deviations"),
        "amplitudes/film_lengths_px": (FILM_LENGTHS * px, "of squared exponentials"),
        "amplitudes/own_counts": (model.own * unit, "of each projection's own part"),
        "amplitudes/own_lengths_px": (OWN_LENGTHS * px, "of squared exponentials"),
        "amplitudes/offset_counts": (np.array(model.offset * unit), "of each projection's own pedestal"),
        "amplitudes/nugget_counts": (np.array(model.nugget * unit), "of what no two windows share, beyond noise"),
        "amplitudes/unit_counts": (np.array(unit), "range of the block means, median over the projections"),
        "rows/number": (series.column("number")[[frame.row for frame in frames]], "of the projection"),
        "rows/tilt_deg": (np.array([frame.view.seen.tilt_deg for frame in frames]), "nominal"),
        "rows/shift_px": (np.array([drawing.seen.shift for drawing in drawings]) * px, "along and across the axis: of the specimen"),
        "rows/gain": (np.array([drawing.seen.gain for drawing in drawings]), "how bright the films are, to what they are in the others"),
        "rows/elsewhere": (np.array([drawing.elsewhere for drawing in drawings]), "the particle is not where edition 1 has it"),
        "rows/taken": (np.array([verdict.taken.encode() for verdict in verdicts]), "series, mixed or single"),
        "rows/share": (np.array([verdict.share for verdict in verdicts]), "of the series in the background"),
        "rows/score": (
            np.array([verdict.score for verdict in verdicts]),
            "what the series leaves open under the particle, over what the tilt alone does",
        ),
        "rows/too_sure": (np.array([verdict.too_sure for verdict in verdicts]), "error of the held-back ring over what the model states"),
        "rows/foretold": (
            np.array([verdict.foretold for verdict in verdicts]),
            "error of the held-back ring over that by the tilt alone",
        ),
        "rows/unseen": (
            np.array([drawing.drawn.unseen for drawing in drawings]),
            "share of what the particle hides that no projection shows, of the film that varies most",
        ),
        "rows/first_off_counts": (
            np.array([verdict.first_off for verdict in verdicts]),
            "error of edition 1 under the particle, as the gate has it: by itself, by the model and by how totals stray",
        ),
        "rows/series_off_counts": (np.array([verdict.series_off for verdict in verdicts]), "the same of the series"),
        "rows/changed_counts": (np.array([under(pooled(d.correction), d) for d in drawings]), "under the particle"),
        "rows/spread_counts": (
            np.array([under(d.sd, d) for d in drawings]),
            "of the series, under the particle",
        ),
        "rows/correction_counts": (
            stacked([pooled(drawing.correction) for drawing in drawings]),
            "(n, rows, columns) added to the background",
        ),
        "rows/series_counts": (
            stacked([pooled(drawing.background) + level for drawing in drawings]),
            "(n, rows, columns) background by the series alone",
        ),
        "rows/first_counts": (
            stacked([pooled(frame.view.first) + level for frame in frames]),
            "(n, rows, columns) background of edition 1",
        ),
        "rows/classical_counts": (
            stacked([_classical(series.raw(frame.row), frame) for frame in frames]),
            "(n, rows, columns) background by Laplace",
        ),
        "rows/sd_counts": (stacked([drawing.sd for drawing in drawings]), "(n, rows, columns) spread of the series' background"),
    }


def _classical(raw: Array, frame: Frame) -> Array:
    """(rows, columns) Laplace's background, means over points, counts."""
    image = Image((raw - np.float64(frame.level)).astype(np.float32))
    return look(CLASSICAL["laplace"].background(image, lambda: None).background, frame.logit, 0.0).means + frame.level


def _radius(frames: list[Frame]) -> float:
    """Of a disc as large as what is hidden, points."""
    return float(np.sqrt(np.median([frame.view.seen.hidden.sum() for frame in frames]) / np.pi))


def _model_before(path: Path) -> Model | None:
    """That of the same series when it was shorter."""
    found = film_file.read(path)
    if found is None or found[1].get("code_sha256") != code_sha256():
        return None
    told, facts = found
    px = float(point_px((int(facts["height_px"]), int(facts["width_px"]))))
    unit = float(told["amplitudes/unit_counts"])
    columns = (told["geometry/heights_px"] / px, told["amplitudes/film_counts"] / unit, told["geometry/growing"])
    films = tuple(Film(float(height), each, bool(growing)) for height, each, growing in zip(*columns, strict=True))
    rest = (float(told[f"amplitudes/{name}_counts"]) / unit for name in ("offset", "nugget"))
    return Model(films, float(told["geometry/turn_deg"]), float(told["geometry/slope"]), told["amplitudes/own_counts"] / unit, *rest)


def _because(drawing: Drawing) -> str:
    verdict = drawing.verdict
    if math.isnan(verdict.too_sure):
        return "no vacuum around the particle to try the series by"
    known = f"the series leaves {verdict.score:.2f} of what this projection alone leaves open"
    ring = f"is off by {verdict.too_sure:.2f} of what is stated, by {verdict.foretold:.2f} of what this projection alone is off by"
    where = "the particle is not where the network has it: all projections together say where; " if drawing.elsewhere else ""
    return f"{where}{known}; the vacuum around the particle, held back, {ring}"
