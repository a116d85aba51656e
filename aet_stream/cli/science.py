"""Volumes and networks."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from aet_stream import durable
from aet_stream.cli.common import Add, folder, new_file, number_from, picture, share, size, whole, whole_from
from aet_stream.errors import AetError, NoAtoms, TooFewProjections
from aet_stream.service import EXIT_OK, be_a_child


def add_commands(add: Add) -> None:
    reconstruct = add("reconstruct", _reconstruct, "a volume from a series", config=False)
    reconstruct.add_argument("series", type=Path, metavar="SERIES.h5")
    reconstruct.add_argument("--method", default="auto", help="auto, nesterov-sirt, tomopy:ALGORITHM or astra:ALGORITHM (default: auto)")
    reconstruct.add_argument("--iterations", type=whole, default=0, help="default: until noise would make it worse (others: what is usual)")
    reconstruct.add_argument(
        "--residual", type=share, default=0.0, metavar="R", help="stop the built-in solver where the relative residual is R"
    )
    reconstruct.add_argument(
        "--align", default=None, metavar="STEPS", help="with commas; '' for none (default: all, as config.toml has them)"
    )
    reconstruct.add_argument(
        "--axis-deg",
        type=number_from(-180, 180),
        default=None,
        metavar="DEG",
        help="the tilt axis, from the vertical as orientation.tilt_axis_deg counts it (default: as the series says)",
    )
    reconstruct.add_argument(
        "--axis-offset-px",
        type=number_from(-1e5, 1e5),
        default=None,
        metavar="PX",
        help="how far right of the middle it lies, with the axis upright (default: the alignment looks for it)",
    )
    reconstruct.add_argument(
        "--exclude",
        type=whole,
        nargs="+",
        default=[],
        metavar="NUMBER",
        help="leave these projections out of this volume, for a trial; with --out (for good: aet-stream exclude)",
    )
    reconstruct.add_argument(
        "--atoms",
        type=Path,
        default=None,
        metavar="ATOMS.h5",
        help="projections as the atoms of a volume found that they lay, turned about all axes; with --out",
    )
    reconstruct.add_argument("--no-quality", action="store_true", help="no half volumes: half the work")
    reconstruct.add_argument(
        "--unweighted", action="store_true", help="all projections count alike, however wrong their backgrounds may be"
    )
    reconstruct.add_argument("--threads", type=whole, default=0, help="0: all cores")
    reconstruct.add_argument("--memory", type=whole, default=0, metavar="MIB", help="bound for the solver (0: 4/5 of what there is)")
    reconstruct.add_argument("--device", default="cpu", help="of the built-in solver: cpu, cuda, cuda:0 ... (default: cpu)")
    reconstruct.add_argument(
        "--silence",
        type=number_from(1e-3, 1e9),
        default=900.0,
        metavar="S",
        help="tomopy and ASTRA: stopped after so long without a slice (default: 900)",
    )
    reconstruct.add_argument("--out", type=Path, metavar="FILE", help="default: reconstruction.h5 beside it; .mrc, .tif, .emd as well")
    reconstruct.add_argument("--overwrite", action="store_true", help="with --out: replace files that are there")
    reconstruct.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    atoms = add("atoms", _atoms, "atoms from a volume and its projections", config=False)
    atoms.add_argument("reconstruction", type=Path, metavar="RECONSTRUCTION.h5", help="or, with --count, a series")
    atoms.add_argument("series", type=Path, nargs="?", metavar="SERIES.h5", help="default: series.h5 beside it")
    atoms.add_argument(
        "--count", action="store_true", help="only about how many, of a series that grows and has no volume yet: to atoms.json beside it"
    )
    atoms.add_argument("--elements", default="", metavar="A,B", help="chemical symbols, the heaviest first (default: not known)")
    atoms.add_argument("--kinds", type=whole_from(0, 3), default=0, metavar="N", help="how many species (default: as the weights say)")
    atoms.add_argument(
        "--pixel-angstrom",
        type=number_from(0.01, 100),
        default=0.0,
        metavar="A",
        help="what a pixel measures (default: as the series says)",
    )
    atoms.add_argument("--threads", type=whole, default=0, help="0: all cores")
    atoms.add_argument("--out", type=Path, metavar="FILE.h5", help="default: atoms.h5 beside the volume; .xyz and .png lie beside it")
    atoms.add_argument("--overwrite", action="store_true", help="with --out: replace files that are there")
    atoms.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    preview = add("preview", _preview, "a small volume of a series that is still growing", config=False)
    preview.add_argument("series", type=Path, metavar="SERIES.h5")
    preview.add_argument("--size", type=whole_from(8, 4096), default=128, metavar="PX", help="bin to at most this width (default: 128)")
    preview.add_argument("--iterations", type=whole, default=10)
    preview.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    export = add("export", _export, "a series or a volume for other programs", config=False)
    export.add_argument("source", type=Path, metavar="FILE.h5", help="series.h5 or reconstruction.h5")
    export.add_argument("target", type=Path, metavar="TARGET", help="a name ending in .mrc (.st, .rec, .map), .tif, .emd or .mat")
    export.add_argument(
        "--aligned", type=Path, metavar="VOLUME.h5", help="projections in register, as for this volume of theirs; .tlt and .xf beside them"
    )
    export.add_argument("--bin", type=whole_from(1, 64), default=1, metavar="N", help="with --aligned: N x N pixels become one")
    export.add_argument("--crop", type=size, default=(0, 0), metavar="WxH", help="with --aligned: so many pixels around the tilt axis")
    export.add_argument("--normalise", action="store_true", help="with --aligned: every projection scaled to the same total")
    export.add_argument(
        "--atoms", type=Path, metavar="ATOMS.h5", help="with --aligned: the turns to take (default: of the atoms.h5 of this volume, if any)"
    )
    export.add_argument("--no-turns", action="store_true", help="with --aligned: as the volume was made, whatever its atoms found")
    export.add_argument("--keep-excluded", action="store_true", help="also what is excluded in the series")
    export.add_argument("--overwrite", action="store_true", help="replace files that are there")
    train = add("train", _train, "make a network from simulated particles", config=False)
    train.add_argument("--preset", help="default, dncnn-2019, or a TOML file of your own (default: default)")
    train.add_argument("--out", type=folder, required=True, metavar="DIR")
    train.add_argument("--steps", type=whole, default=0, metavar="N", help="how many (0: what the preset says)")
    train.add_argument("--seed", type=whole, default=None, help="another seed than the preset's")
    train.add_argument("--threads", type=whole, default=0, help="of the network (0: the cores that making frames leaves)")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    train.add_argument("--from", dest="model", metavar="MODEL", help="fine-tune this network, a name or a path, on your own microscope")
    train.add_argument("--series", type=Path, nargs="+", default=[], metavar="FILE", help="with --from: stored series whose vacuum teaches")
    evaluate = add("evaluate", _evaluate, "judge networks beside the classical estimates", config=False)
    evaluate.add_argument("models", nargs="*", default=[], metavar="MODEL", help="names or paths (default: all that are shipped)")
    evaluate.add_argument(
        "--frames",
        type=whole_from(4, 100_000),
        default=48,
        metavar="N",
        help="per set, at least 4 (default: 48); of large frames 1/2 or 1/4",
    )
    evaluate.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME", help="only this set; may be repeated")
    evaluate.add_argument(
        "--trust-frames", type=whole, default=400, metavar="N", help="hard frames to judge trust by (default: 400; 0: none)"
    )
    evaluate.add_argument(
        "--series", action="store_true", help="on series of things that turn, kind by kind, instead of on single frames (hours; see --keep)"
    )
    evaluate.add_argument(
        "--kind", dest="kinds", action="append", default=[], metavar="KIND", help="with --series: only this; may be repeated"
    )
    evaluate.add_argument(
        "--estimator", dest="estimators", action="append", default=[], metavar="NAME", help="with --series: only this; may be repeated"
    )
    evaluate.add_argument("--seeds", type=whole_from(1, 1000), default=5, metavar="N", help="with --series: of each kind (default: 5)")
    evaluate.add_argument(
        "--first-seed", type=whole, default=4_000_000, metavar="N", help="with --series: others for development (default: 4000000)"
    )
    evaluate.add_argument(
        "--physics",
        action="append",
        default=[],
        metavar="NAME",
        help="with --series: films of this only, clouds or flakes (default: in turn)",
    )
    evaluate.add_argument("--tilts", type=whole_from(2, 1000), default=40, metavar="N", help="with --series: of each (default: 40)")
    evaluate.add_argument(
        "--height",
        dest="heights",
        type=number_from(-10, 10),
        action="append",
        default=[],
        metavar="R",
        help="with --series: of the film above the tilt axis, radii of the particle (default: below the particle); may be repeated",
    )
    evaluate.add_argument("--keep", type=folder, metavar="DIR", help="with --series: what was found of each; a stopped run goes on")
    evaluate.add_argument(
        "--fit-trust",
        type=new_file,
        metavar="FILE",
        help="with --series: fit the films' rule for the expected error on these, and write it",
    )
    evaluate.add_argument("--json", type=new_file, metavar="FILE", help="all figures as JSON as well")
    evaluate.add_argument(
        "--figure", type=picture, metavar="FILE", help="worst, median and best hard frame of the first network: .png, .pdf or .svg"
    )


def _reconstruct(arguments: argparse.Namespace) -> int:
    """Make a volume from a series; it lies beside it as reconstruction.h5, with a picture of its central slices."""
    if arguments.supervised:
        be_a_child()
    from aet_stream.reconstruct.align import STEPS
    from aet_stream.reconstruct.run import Options, reconstruct

    align = STEPS if arguments.align is None else tuple(filter(None, arguments.align.split(",")))
    if unknown := [step for step in align if step not in STEPS]:
        raise AetError(f"--align {unknown[0]}: the steps are {', '.join(STEPS)}")
    if arguments.exclude and arguments.out is None:
        raise AetError("--exclude makes a volume for a trial: give it a name of its own with --out FILE")
    if arguments.atoms is not None and arguments.out is None:
        raise AetError("--atoms makes a volume beside the one that these atoms are of: give it a name of its own with --out FILE")
    options = Options(
        method=arguments.method,
        atoms=arguments.atoms,
        exclude=tuple(arguments.exclude),
        iterations=arguments.iterations,
        residual=arguments.residual,
        align=align,
        axis_deg=arguments.axis_deg,
        axis_offset_px=arguments.axis_offset_px,
        quality=not arguments.no_quality,
        weighted=not arguments.unweighted,
        threads=arguments.threads,
        memory_mib=arguments.memory,
        device=arguments.device,
        silence_s=arguments.silence,
    )
    try:
        print(reconstruct(arguments.series, options, out=arguments.out, overwrite=arguments.overwrite))
    except TooFewProjections as error:
        if not arguments.supervised:
            raise
        print(f"{arguments.series}: no volume: {error}")  # trying again would not help
    return EXIT_OK


def _atoms(arguments: argparse.Namespace) -> int:
    """Find the atoms of a volume and refine them against the projections that it was made from: atoms.h5, atoms.xyz and a picture.

    Where none can be told (filtered projections, too few tilts, nothing resolved, an outdated volume) it says why, and writes nothing.
    """
    if arguments.supervised:
        be_a_child()
    from aet_stream.atoms import note
    from aet_stream.atoms.run import Options, find_atoms

    folder = arguments.reconstruction.absolute().parent
    if arguments.count:
        return _count_atoms(arguments.reconstruction, folder, arguments.pixel_angstrom, supervised=arguments.supervised)
    options = Options(
        elements=tuple(filter(None, (symbol.strip() for symbol in arguments.elements.split(",")))),
        kinds=arguments.kinds,
        pixel_angstrom=arguments.pixel_angstrom,
        threads=arguments.threads,
    )
    if options.kinds and options.elements and options.kinds != len(options.elements):
        raise AetError(f"--kinds {options.kinds} does not go with --elements {arguments.elements}: leave one of them out")
    try:
        print(find_atoms(arguments.reconstruction, arguments.series, options, out=arguments.out, overwrite=arguments.overwrite))
    except NoAtoms as error:
        if not arguments.supervised:
            raise
        note.say_none(folder, str(error))
        print(f"{arguments.reconstruction}: no atoms: {error}")  # trying again would not help
        return EXIT_OK
    if arguments.supervised:
        note.forget(folder)
    return EXIT_OK


def _count_atoms(series: Path, folder: Path, pixel_angstrom: float, *, supervised: bool) -> int:
    from aet_stream.atoms import note
    from aet_stream.atoms.count import count

    try:
        found = count(series, pixel_angstrom)
    except (NoAtoms, TooFewProjections) as error:
        if not supervised:
            raise
        note.say_not_yet(folder, str(error))
        print(f"{series}: no atoms yet: {error}")
        return EXIT_OK
    note.say_count(folder, found)
    print(found.sentence)
    return EXIT_OK


def _preview(arguments: argparse.Namespace) -> int:
    """Make preview.h5 beside a series: binned, one thread, going on from the preview before."""
    if arguments.supervised:
        be_a_child()
    from aet_stream.reconstruct.preview import preview

    print(preview(arguments.series, size_px=arguments.size, iterations=arguments.iterations))
    return EXIT_OK


def _export(arguments: argparse.Namespace) -> int:
    """Write a series or a volume for other programs: MRC or TIFF with .rawtlt, EMD for tomviz, .mat for GENFIRE and RESIRE."""
    from aet_stream.reconstruct.aligned import Aligned
    from aet_stream.reconstruct.export import export

    aligned = None
    if arguments.aligned is not None:
        aligned = Aligned(
            arguments.aligned, arguments.bin, arguments.crop, arguments.normalise, atoms=arguments.atoms, turned=not arguments.no_turns
        )
    elif arguments.bin > 1 or any(arguments.crop) or arguments.normalise or arguments.atoms or arguments.no_turns:
        raise AetError("--bin, --crop, --normalise, --atoms and --no-turns go with --aligned VOLUME.h5")
    if aligned is not None and arguments.keep_excluded:
        raise AetError("--keep-excluded does not go with --aligned: a volume aligns what it was made from")
    options = {"keep_excluded": arguments.keep_excluded, "overwrite": arguments.overwrite}
    for path in export(arguments.source, arguments.target, aligned=aligned, **options):
        print(path)
    return EXIT_OK


def _train(arguments: argparse.Namespace) -> int:
    """Make a network from simulated particles (a run that was stopped goes on with --resume), or fine-tune one on series of your own."""
    from aet_stream.training import finetune, train

    if bool(arguments.model) != bool(arguments.series):
        raise AetError("--from and --series go together: --from MODEL --series FILE...")
    if arguments.model and (ignored := [name for name in ("preset", "threads", "resume") if getattr(arguments, name)]):
        raise AetError(f"--{ignored[0]} does not go with --from: only --steps and --seed do; leave it out")
    if arguments.model:
        words = {"steps": arguments.steps} if arguments.steps else {}
        print(finetune.finetune(arguments.model, arguments.series, arguments.out, seed=arguments.seed or 0, **words))
        return EXIT_OK
    path = train.run(
        arguments.preset or "default",
        arguments.out,
        steps=arguments.steps,
        seed=arguments.seed,
        threads=arguments.threads,
        resume=arguments.resume,
    )
    print(path)
    return EXIT_OK


def _evaluate(arguments: argparse.Namespace) -> int:
    """One table: networks and classical estimates on simulated frames that no training has seen, and on real ones where there are any."""

    from aet_stream.training import evaluate, sets

    if arguments.series:
        return _evaluate_series(arguments)
    if arguments.fit_trust:
        raise AetError("--fit-trust goes with --series")
    unknown = [name for name in arguments.sets if name not in sets.SETS]
    if unknown:
        raise AetError(f"no set {unknown[0]!r}: choose {', '.join(sets.SETS)}")
    report = evaluate.evaluate(arguments.models, frames=arguments.frames, only=arguments.sets, trust_frames=arguments.trust_frames)
    print(evaluate.table(report))
    if arguments.json:
        durable.replace(arguments.json, msgspec.json.format(msgspec.json.encode(report)))
    if arguments.figure:
        evaluate.draw((arguments.models or ["default"])[0], arguments.figure, frames=arguments.frames)
    return EXIT_OK


def _evaluate_series(arguments: argparse.Namespace) -> int:
    from aet_stream.simulate.films import PHYSICS
    from aet_stream.simulate.physical import SERIES_KINDS
    from aet_stream.training import judged_series

    if ignored := [name for name in ("sets", "figure") if getattr(arguments, name)]:
        raise AetError(f"--{ignored[0].rstrip('s')} does not go with --series; leave it out")
    try:
        kinds = judged_series.chosen(arguments.kinds, SERIES_KINDS, "kind of series")
    except ValueError as error:
        raise AetError(f"--kind: {error}") from error
    try:
        physics = judged_series.chosen(arguments.physics, PHYSICS, "physics of films")
    except ValueError as error:
        raise AetError(f"--physics: {error}") from error
    series = judged_series.judged(
        kinds,
        arguments.seeds,
        tilts=arguments.tilts,
        first=arguments.first_seed,
        heights=arguments.heights or [None],
        physics=physics,
    )
    try:
        found = judged_series.marks(arguments.models, series, arguments.keep, only=arguments.estimators)
    except ValueError as error:
        raise AetError(f"--estimator: {error}") from error
    print(judged_series.table(found))
    if arguments.fit_trust:
        from aet_stream.training import calibrate_films

        try:
            rule = calibrate_films.fit(found)
        except ValueError as error:
            raise AetError(f"--fit-trust: {error}") from error
        durable.replace(arguments.fit_trust, msgspec.json.format(msgspec.json.encode(rule)) + b"\n")
    if arguments.json:
        durable.replace(arguments.json, msgspec.json.format(msgspec.json.encode(judged_series.as_builtins(found))))
    return EXIT_OK
