"""What is done to one series: background, films, volume, atoms. Each stage is durable and repeatable, and does nothing that is done.

`<output.root>/<series>/` is as the daemon leaves it. Beside it `<output.root>/.batch/<series>/` holds what the daemon has once for all
series: ledger, lock and quarantine records of this one, a link to its folder, and two notes: how its images were read (`begun.json`), and
which stages are done, of what (`done.json`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import h5py
import msgspec
import numpy as np

from aet_stream import __version__, durable, edition, layout, reprocess
from aet_stream.batch.jobs import Job
from aet_stream.batch.local_hub import LocalHub, settings_of
from aet_stream.config import Config, Denoise, Output
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.edition import Maker
from aet_stream.errors import AetError, NoAtoms, OutputFull, ReconstructionError, TooFewProjections
from aet_stream.hub import writer_lock
from aet_stream.hub.decisions import DECISIONS
from aet_stream.layout import PROJECTIONS, SERIES_FILE
from aet_stream.naming import ATOMS_FILE, VOLUME_FILE
from aet_stream.readers import path_stamp
from aet_stream.readers.child import ReaderChild
from aet_stream.series import Series

if TYPE_CHECKING:
    from aet_stream.reconstruct.run import Options

logger = logging.getLogger(__name__)

StageName = Literal["background", "film", "volume", "atoms"]
BATCH = ".batch"
"""Folder below the output: what is remembered of each series."""
LOCKS, BEFORE = ".locks", ".before"
LOCK_WAIT_S = 600.0
IN_PLACE = "in place"
TOLD = 20
"""Of what was put aside, so many are named."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same for all series of one run."""

    config: Config
    stages: tuple[StageName, ...]
    maker: Maker
    """Of backgrounds: which model, with which settings."""
    again: bool = False
    """Read once more what was held or quarantined."""
    threads: int = 1
    """Of each process."""
    shares_volumes: bool = False
    """The slabs of a large volume are tasks of their own."""
    memory_mib: int = 0
    """That the volume of each process may take, where the settings do not say; 0: as if it were alone on its computer."""
    version: str = __version__


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of one series."""

    plan: Plan
    job: Job
    stage: StageName
    slices: tuple[int, int] | None = None
    """Of a volume that is shared out, only these: the first, and the one behind the last."""


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a stage says of its series; a stage leaves alone what it knows nothing of."""

    projections: int | None = None
    held: int | None = None
    quarantined: int | None = None
    odd: int | None = None
    """Of the projections: set aside, because two after it agree on something else."""
    duplicates: int | None = None
    others: int | None = None
    edition: int | None = None
    trust: float | None = None
    """Median over the projections."""
    resolution_px: float | None = None
    """Of the volume; None: not known."""
    atoms: int | None = None
    none: str = ""
    """Why there is nothing to be made of this series."""
    remarks: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a stage ended."""

    name: str
    stage: StageName
    figures: Figures = Figures()
    shares: tuple[tuple[int, int], ...] = ()
    """Slices of the volume that tasks of their own have to make first: then it is asked for again, of a plan that does not share."""
    error: str = ""
    """Empty: well."""
    disk: bool = False
    """It is the disk that fails: others would fare no better."""
    seconds: float = 0.0


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stage that ended well."""

    key: str
    """Of all that it depends on."""
    figures: Figures
    seconds: float


class _Begun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rows of a series came to be."""

    read_with: str
    """Settings that decide how images are read: key and JSON."""
    first: str
    """Key of the maker of every edition 1; empty: of several, or not known."""


def wanted(config: Config) -> tuple[StageName, ...]:
    """What these settings ask for."""
    stages: list[StageName] = ["background"]
    stages += ["film"] if config.film.enabled else []
    stages += ["volume"] if config.reconstruct.on_close else []
    return (*stages, "atoms") if config.atoms.enabled and config.reconstruct.on_close else tuple(stages)


# ---------------------------------------------------------------- where things are


def series_folder(plan: Plan, job: Job) -> Path:
    return plan.config.output_root / job.name


def state_folder(plan: Plan, job: Job) -> Path:
    """Folder of what is remembered of a series."""
    return plan.config.output_root / BATCH / job.name


def done(plan: Plan, job: Job) -> dict[str, Done]:
    """Stages that have ended well, by name."""
    return _read(state_folder(plan, job) / "done.json", dict[str, Done]) or {}


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


# ---------------------------------------------------------------- what depends on what


def up_to_date(plan: Plan, job: Job, stage: StageName) -> bool:
    """Was this stage done, of what is there now and with these settings?"""
    if job.trouble:
        return False
    found = done(plan, job).get(stage)
    if found is None or found.key != key(plan, job, stage):
        return False
    if plan.again and stage == "background" and (found.figures.held or found.figures.quarantined):
        return False
    product = {"background": SERIES_FILE, "film": SERIES_FILE, "volume": VOLUME_FILE, "atoms": ATOMS_FILE}[stage]
    return bool(found.figures.none) or (series_folder(plan, job) / product).exists()


def key(plan: Plan, job: Job, stage: StageName) -> str:
    """Of all that the result of a stage depends on."""
    folder, config = series_folder(plan, job), plan.config
    if stage == "background":
        films_shown = config.film.enabled and config.film.use  # else it is this stage that shows its own again
        return _digest(job.stamp, _reading(plan, job), plan.maker.key, films_shown)
    if stage == "film":
        from aet_stream.film.frames import code_sha256

        return _digest(key(plan, job, "background"), code_sha256(), config.film)
    if stage == "volume":
        options = {name: value for name, value in msgspec.to_builtins(config.reconstruct).items() if name not in _NO_MATTER}
        return _digest(path_stamp(folder / SERIES_FILE), options)
    return _digest(path_stamp(folder / VOLUME_FILE), config.atoms.elements, config.atoms.kinds, config.atoms.pixel_angstrom)


_NO_MATTER = ("on_close", "threads", "memory_mib", "timeout_s", "silence_s", "attempts", "device")
"""Settings of a volume that do not decide what it is."""


def _reading(plan: Plan, job: Job) -> str:
    """All settings that decide what images are made of files, and where their tilts come from."""
    if job.ours:
        return IN_PLACE if _in_place(plan, job) else f"a copy of {job.stamp}"
    config = plan.config
    series = {name: getattr(config.series, name) for name in ("by", "pattern", "detector")}
    watch = {name: getattr(config.watch, name) for name in ("exclude", "newer_than", "max_file_mib")}
    said = [config.readers, config.frames, config.angle, config.orientation, series, watch]
    return msgspec.json.encode(said, order="sorted").decode()


def _in_place(plan: Plan, job: Job) -> bool:
    """Is it a series that lies in the output folder already?"""
    return job.ours and Path(job.root).resolve() == series_folder(plan, job).resolve()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


# ---------------------------------------------------------------- doing it


def perform(task: Task) -> Outcome:
    """Do one stage of one series, wherever this is. It never raises, but for what ends a process."""
    began, job = time.monotonic(), task.job
    outcome = Outcome(job.name, task.stage)
    try:
        outcome = _perform(task)
    except OutputFull as trouble:
        outcome = msgspec.structs.replace(outcome, error=f"{trouble}: make room and start again", disk=True)
    except AetError as trouble:
        outcome = msgspec.structs.replace(outcome, error=str(trouble))
    except Exception as trouble:
        logger.exception("%s of %s", task.stage, job.name)
        outcome = msgspec.structs.replace(outcome, error=f"unexpected {type(trouble).__name__}: {trouble} (its log has the place)")
    return msgspec.structs.replace(outcome, seconds=time.monotonic() - began)


def perform_encoded(task: bytes) -> bytes:
    """The same for messages: msgpack in, msgpack out."""
    return msgspec.msgpack.encode(perform(msgspec.msgpack.decode(task, type=Task)))


def _perform(task: Task) -> Outcome:
    plan, job, stage = task.plan, task.job, task.stage
    if job.trouble:
        raise AetError(job.trouble)
    if plan.version != __version__:
        raise AetError(f"this is aet_stream {__version__}, the run was begun by {plan.version}: install the same everywhere")
    with _locked(plan, job, shared=task.slices is not None):
        if up_to_date(plan, job, stage):
            return Outcome(job.name, stage, done(plan, job)[stage].figures)
        if task.slices is not None:
            _share_of_volume(plan, job, slice(*task.slices))
            return Outcome(job.name, stage)
        if stage == "volume" and plan.shares_volumes and (shares := _shares_of_volume(plan, job)):
            return Outcome(job.name, stage, shares=shares)
        began = time.monotonic()
        figures = {"background": _background, "film": _film, "volume": _volume, "atoms": _atoms}[stage](plan, job)
        noted = done(plan, job) | {stage: Done(key(plan, job, stage), figures, time.monotonic() - began)}
        durable.replace(state_folder(plan, job) / "done.json", msgspec.json.encode(noted))
        return Outcome(job.name, stage, figures)


def _locked(plan: Plan, job: Job, *, shared: bool) -> TextIO:
    """Within it nobody else works on this series: a run before this one, or a worker that was believed dead. Shares go side by side."""
    folder = plan.config.output_root / BATCH / LOCKS
    durable.make_folder(folder)
    return writer_lock.hold(
        folder / job.name, wait_s=LOCK_WAIT_S, otherwise=f"another process works on {job.name}: let it end, start again", shared=shared
    )


class _Kept(threading.local):
    """What a thread needs for every series and gets once: a network that is loaded, and a process that reads."""

    denoiser: tuple[Denoise, Denoiser] | None = None
    reader: tuple[Config, ReaderChild] | None = None


_kept = _Kept()


def _denoiser(settings: Denoise) -> Denoiser:
    if _kept.denoiser is None or _kept.denoiser[0] != settings:
        _kept.denoiser = settings, Denoiser(settings)
    return _kept.denoiser[1]


def _reader(config: Config) -> ReaderChild:
    """As these settings ask for, wherever the files are."""
    config = msgspec.structs.replace(config, watch=msgspec.structs.replace(config.watch, root=""), output=Output())
    if _kept.reader is None or _kept.reader[0] != config:
        if _kept.reader is not None:
            _kept.reader[1].close()
        _kept.reader = config, ReaderChild.of(config)
    return _kept.reader[1]


def _checked_denoiser(plan: Plan) -> Denoiser:
    settings = plan.config.denoise
    denoiser = _denoiser(msgspec.structs.replace(settings, threads=settings.threads or int(plan.threads == 1)))
    if denoiser.sha256 != plan.maker.model_sha256:
        words = f"{denoiser.name} is another model here ({denoiser.sha256[:12]}) than where the run was begun"
        raise AetError(f"{words} ({plan.maker.model_sha256[:12]}): put the same weights everywhere")
    return denoiser


def _hub(plan: Plan, job: Job) -> LocalHub:
    """Over the folder of this series alone, which is reached through a link."""
    config, place = settings_of(plan.config), state_folder(plan, job)
    if job.by_file:
        config = msgspec.structs.replace(config, series=msgspec.structs.replace(config.series, by="file"))
    watch = msgspec.structs.replace(config.watch, root=job.root)
    output = msgspec.structs.replace(config.output, root=str(place))
    folder, link = series_folder(plan, job), place / job.name
    durable.make_folder(folder)
    durable.make_folder(place)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(folder, place), target_is_directory=True)
    return LocalHub(msgspec.structs.replace(config, watch=watch, output=output))


def _background(plan: Plan, job: Job) -> Figures:
    """Take the images in, each without its background, and close the series; one that shows another model's is given an edition."""
    denoiser, folder = _checked_denoiser(plan), series_folder(plan, job)
    remarks = _begin(plan, job)
    with _hub(plan, job) as hub:
        if not job.ours:
            _take_in(plan, job, hub, denoiser)
        if hub.state(job.name) == "":
            raise AetError(_nothing_stored(hub, job))
        hub.until_done("close", series=job.name)
        _show(plan, job, hub, denoiser)
        totals, aside = hub.totals(), hub.put_aside()
    remarks += [f"{row.path}[{row.image}]: {row.reason}; {row.remedy}" for row in aside[:TOLD]]
    remarks += [f"and {len(aside) - TOLD} more"] * (len(aside) > TOLD)
    with Series(folder / SERIES_FILE) as series:
        return Figures(
            projections=len(series),
            held=totals.held,
            quarantined=totals.quarantined,
            odd=totals.odd,
            duplicates=totals.duplicates,
            others=totals.others,
            edition=series.edition,
            trust=round(float(np.nanmedian(series.column("trust"))), 4),
            remarks=tuple(remarks),
        )


def _begin(plan: Plan, job: Job) -> list[str]:
    """Make sure that what is remembered is of these files, read in this way. What was read in another is set aside, and begun anew."""
    folder, place = series_folder(plan, job), state_folder(plan, job)
    reading, begun = _reading(plan, job), _read(place / "begun.json", _Begun)
    there = (folder / SERIES_FILE).exists() or (folder / PROJECTIONS).is_dir()
    if begun is not None and begun.read_with == IN_PLACE != reading:
        begun = None
    if begun is None and there and not _in_place(plan, job):
        raise AetError(f"{folder} is there, and not by `batch` from these files: choose another output.root, or name {folder} itself")
    remarks = []
    if begun is not None and not there:
        shutil.rmtree(place)  # somebody has taken the series away: it is made anew
        begun = None
    elif begun is not None and begun.read_with != reading and not _in_place(plan, job):
        remarks.append(f"read anew with other settings; the one before is {_set_aside(plan, job)}")
        begun = None
    if begun is None:
        durable.make_folder(place)
        first = plan.maker.key if not job.ours or _made_by(plan, Path(job.root)) else ""
        durable.replace(place / "begun.json", msgspec.json.encode(_Begun(reading, first)))
    if job.ours and not there:
        _adopt(Path(job.root), folder)
    return remarks


def _set_aside(plan: Plan, job: Job) -> Path:
    """Move a series, with what is remembered of it, out of the way; the first of its names that is free."""
    folder, place = series_folder(plan, job), state_folder(plan, job)
    before = place.parent / BEFORE
    durable.make_folder(before)
    aside = next(path for number in range(1, 1000) if not (path := before / f"{job.name}.{number}").exists())
    (place / job.name).unlink(missing_ok=True)
    if folder.exists():
        folder.rename(place / job.name)
    place.rename(aside)
    durable.sync_folder(aside.parent)
    return aside


def _adopt(source: Path, folder: Path) -> None:
    """Copy a closed series of ours: its one file, its editions, what is decided about it; `series.h5` comes last."""
    names = [f"{layout.EDITIONS}/{path.name}" for path in layout.edition_files(source).values()]
    for name in (*names, *([DECISIONS] if (source / DECISIONS).exists() else []), SERIES_FILE):
        target = folder / name
        durable.make_folder(target.parent)
        with durable.replacing(target) as draft:
            shutil.copyfile(source / name, draft)


def _made_by(plan: Plan, folder: Path) -> bool:
    """Was every edition 1 of this series made as this plan would make it?"""
    with Series(folder / SERIES_FILE) as series:
        if series.edition != edition.FIRST:
            return False
        said = msgspec.json.decode(str(series.about.get("config", "{}")) or "{}").get("denoise", {})
        settings = {name: said.get(name, getattr(Denoise(), name)) for name in plan.maker.settings}
        return settings == plan.maker.settings and set(series.column("model_sha256").tolist()) == {plan.maker.model_sha256}


def _take_in(plan: Plan, job: Job, hub: LocalHub, denoiser: Denoiser) -> None:
    place = state_folder(plan, job) / "begun.json"
    begun: _Begun = _read(place, _Begun)

    def before_work() -> None:
        """The rows to come are of another model than those there are: nobody made all of edition 1."""
        if begun.first and begun.first != plan.maker.key:
            durable.replace(place, msgspec.json.encode(msgspec.structs.replace(begun, first="")))

    if plan.again and (ids := [row.id for row in hub.put_aside()]):
        hub.ask("requeue", ids=ids)
    hub.take_in(frozenset(job.paths), _reader(hub.config), denoiser, before_work=before_work)


def _show(plan: Plan, job: Job, hub: LocalHub, denoiser: Denoiser) -> None:
    """Have the series show the background of this plan's model: edition 1, or one that is made of its raw pixels."""
    folder, maker = series_folder(plan, job), plan.maker
    begun: _Begun = _read(state_folder(plan, job) / "begun.json", _Begun)
    if begun.first == maker.key:
        if hub.shown(job.name) != edition.FIRST:
            hub.until_done("use", series=job.name, edition=edition.FIRST)
        return
    shown = hub.core.archive.decisions(job.name).edition
    with Series(folder / SERIES_FILE) as series:
        covered = edition.covered(series)
    path = layout.edition_files(folder).get(shown)
    if path is not None and edition.find(folder, maker, covered) == path:
        return
    reprocess.make_edition(folder / SERIES_FILE, denoiser, maker)
    hub.until_done("edition", series=job.name, key=maker.key, use=True)


def _nothing_stored(hub: LocalHub, job: Job) -> str:
    aside, totals = hub.put_aside(), hub.totals()
    words = f"none of its images could be stored: {totals.held} held, {totals.quarantined} quarantined, {totals.others} of another kind"
    if aside:
        words += f"; {aside[0].path}[{aside[0].image}]: {aside[0].reason}; {aside[0].remedy}"
    return words


def _film(plan: Plan, job: Job) -> Figures:
    """What all projections together say of the films: an edition of the series (`aet-stream film`)."""
    from aet_stream.film import run

    settings = plan.config.film
    path = series_folder(plan, job) / SERIES_FILE
    try:
        _, maker = run.make_edition(path, _checked_denoiser(plan), run.Options(settings.tilts_each_side, settings.memory_mib))
    except TooFewProjections as error:
        return Figures(none=f"no films: {error}")
    with _hub(plan, job) as hub:
        number = hub.until_done("edition", series=job.name, key=maker.key, use=settings.use)["edition"]
    return Figures(edition=number if settings.use else None)


def _options(plan: Plan) -> Options:
    """Of a volume, as the trigger has them."""
    from aet_stream.reconstruct.run import Options

    settings = plan.config.reconstruct
    return Options(
        method=settings.method,
        iterations=settings.iterations,
        align=settings.align,
        quality=settings.quality,
        weighted=settings.weighted,
        threads=settings.threads or plan.threads,
        memory_mib=settings.memory_mib or (plan.memory_mib if settings.device == "cpu" else 0),
        device=settings.device,
        silence_s=settings.silence_s,
    )


def _shares_of_volume(plan: Plan, job: Job) -> tuple[tuple[int, int], ...]:
    """What others are to make of it first. None: it fits into memory, or there is none."""
    from aet_stream.reconstruct.run import share_out

    try:
        shares = share_out(series_folder(plan, job) / SERIES_FILE, _options(plan))
    except TooFewProjections:
        return ()
    return tuple((slices.start, slices.stop) for slices in shares) if len(shares) > 1 else ()


def _share_of_volume(plan: Plan, job: Job, slices: slice) -> None:
    """Some slices of it, slab by slab: a worker goes on where one was lost."""
    from aet_stream.reconstruct.run import make_share

    try:
        make_share(series_folder(plan, job) / SERIES_FILE, slices, _options(plan))
    except ReconstructionError as error:
        raise ReconstructionError(f"slices {slices.start} to {slices.stop - 1}: {error}") from error


def _volume(plan: Plan, job: Job) -> Figures:
    """As the trigger makes it when a series closes. A large one goes by slabs: those that are there are taken up."""
    from aet_stream.reconstruct.run import reconstruct

    try:
        path = reconstruct(series_folder(plan, job) / SERIES_FILE, _options(plan))
    except TooFewProjections as error:
        return Figures(none=f"no volume: {error}")
    with h5py.File(path, "r", locking=False) as file:
        resolution_px = float(file["reconstruction/quality"].attrs["resolution_px"])
    return Figures(resolution_px=round(resolution_px, 3) if np.isfinite(resolution_px) else None)


def _atoms(plan: Plan, job: Job) -> Figures:
    """As `aet-stream atoms` finds them."""
    from aet_stream.atoms import note
    from aet_stream.atoms.atoms_file import GROUP
    from aet_stream.atoms.run import Options, find_atoms

    volume = series_folder(plan, job) / VOLUME_FILE
    if not volume.exists():
        return Figures(none="no atoms: there is no volume")
    settings, folder = plan.config.atoms, series_folder(plan, job)
    options = Options(settings.elements, settings.kinds, pixel_angstrom=settings.pixel_angstrom, threads=settings.threads or plan.threads)
    try:
        path = find_atoms(volume, None, options)
    except NoAtoms as error:
        note.say_none(folder, str(error))
        return Figures(none=f"no atoms: {error}")
    note.forget(folder)
    with h5py.File(path, "r", locking=False) as file:
        return Figures(atoms=len(file[f"{GROUP}/angstrom"]))
