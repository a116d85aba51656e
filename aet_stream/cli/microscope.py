"""A microscope to try it with: simulated, or an old acquisition again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aet_stream.cli.common import Add, folder, number_from, series_name, whole, whole_from
from aet_stream.errors import AetError
from aet_stream.service import EXIT_OK

if TYPE_CHECKING:
    from aet_stream.simulate.series import SimulatedSeries


def add_commands(add: Add) -> None:
    simulate = add("simulate", _simulate, "a microscope that writes a tilt series file by file", config=False)
    simulate.add_argument(
        "--particle",
        default="random",
        help="random, fcc, hcp, decahedron, icosahedron, amorphous, rod, twin, cube, octahedron or plate (default: random)",
    )
    simulate.add_argument(
        "--background",
        default="thin-film",
        metavar="KIND",
        help="things that turn with the particle: thin-film, edge, halo, 100-counts, growing-halo, two-films, everything, one-side, strong,"
        " hole, several, off-axis, carbon, mid-plane, blob, shell, thick-film; or what does not turn: independent, blend, film, gaussian,"
        " unseen (default: thin-film)",
    )
    simulate.add_argument(
        "--flakes", action="store_true", help="a film of flakes and droplets below a particle of a shape that no network has learned from"
    )
    simulate.add_argument("--tilts", type=whole_from(1, 10_000), default=60, metavar="N", help="how many (default: 60)")
    simulate.add_argument("--range", type=number_from(0, 90), default=70.0, metavar="DEG", help="largest tilt (default: 70)")
    simulate.add_argument(
        "--size", type=whole_from(8, 4096), default=256, metavar="PX", help="of a frame (default: 256); above 512 the truth has no volume"
    )
    simulate.add_argument(
        "--atoms", type=whole_from(0, 1_000_000), default=0, metavar="N", help="about how many, at least 10 (0: 1,000 to 50,000)"
    )
    simulate.add_argument(
        "--multislice", action="store_true", help="images by multislice theory (abTEM): minutes each, kept for the next time"
    )
    simulate.add_argument(
        "--dose",
        type=number_from(1, 25_000),
        metavar="COUNTS",
        help="counts in the brightest pixel of the particle (default: what the kind has, mostly 1000)",
    )
    simulate.add_argument("--name", type=series_name, default="particle", help="name of the series: a folder under DIR")
    replay = add("replay", _replay, "an old acquisition again at true cadence", config=False)
    replay.add_argument("source", type=Path, metavar="DIR", help="folder of images, or one stack")
    replay.add_argument(
        "--angles",
        type=Path,
        metavar="FILE",
        help="tilts in degrees, one per image in the order of their names, where the source has none: .rawtlt, .npy or .mat",
    )
    replay.add_argument("--speed", type=number_from(0.001, 1e6), default=1.0, metavar="X", help="this many times faster than the cadence")
    replay.add_argument("--name", type=series_name, help="name of the series (default: that of the source)")
    replay.add_argument("--shuffle", action="store_true", help="let the projections arrive out of order")
    for command in (simulate, replay):
        command.add_argument("--out", type=folder, required=True, metavar="DIR", help="the watched folder")
        command.add_argument(
            "--format", default="tiff", help="tiff, npy, mrc, dm3, dm4, mat, ser, velox, emd; several with commas (default: tiff)"
        )
        command.add_argument(
            "--cadence", type=number_from(0, 86_400), default=1.0, metavar="S", help="seconds between projections (default: 1)"
        )
        command.add_argument(
            "--pieces", type=whole_from(1, 1_000_000), default=1, metavar="N", help="write each file in this many slow pieces (default: 1)"
        )
        command.add_argument("--seed", type=whole, default=0)
        command.add_argument(
            "--fault",
            action="append",
            default=[],
            metavar="KIND",
            help="what goes wrong: truncated, nan, garbage, duplicate, noangle, conflict or empty; may be repeated",
        )


def _simulate(arguments: argparse.Namespace) -> int:
    """Write a simulated tilt series into DIR/NAME file by file, and the truth into DIR.truth/NAME.h5 beside it."""
    from aet_stream.simulate import microscope

    truth = microscope.truth_path(arguments.out, arguments.name)
    try:
        series = _simulated(arguments, truth.with_suffix(".multislice"))
        files = microscope.shots(series.raw, series.tilts_deg, series.pixel_size_nm, arguments.format.split(","), arguments.fault)
        microscope.write_truth(truth, series)
        count = _expose(files, arguments, arguments.name)
    except ValueError as error:
        raise AetError(str(error)) from error
    print(f"{count} files in {arguments.out / arguments.name}, truth in {truth}")
    return EXIT_OK


def _simulated(arguments: argparse.Namespace, kept: Path) -> SimulatedSeries:
    import numpy as np

    from aet_stream.simulate.backgrounds import KINDS
    from aet_stream.simulate.physical import SERIES_KINDS, physical_series
    from aet_stream.simulate.series import simulate_series

    tilts_deg = np.round(np.linspace(-arguments.range, arguments.range, arguments.tilts), 2)
    alike = {"size_px": arguments.size, "particle": arguments.particle, "atoms": arguments.atoms, "dose": arguments.dose}
    alike |= {"multislice": kept if arguments.multislice else None}
    if arguments.background in SERIES_KINDS:
        return physical_series(
            arguments.background, arguments.seed, tilts_deg, physics="flakes" if arguments.flakes else "clouds", with_volume=True, **alike
        )
    if arguments.background not in KINDS:
        raise ValueError(f"background {arguments.background!r}: choose one of {', '.join([*SERIES_KINDS, *KINDS])}")
    if arguments.flakes:
        raise ValueError(f"--flakes: not with --background {arguments.background}, which does not turn; leave it out")
    return simulate_series(seed=arguments.seed, tilts_deg=tilts_deg, kind=arguments.background, **alike)


def _replay(arguments: argparse.Namespace) -> int:
    """Write an old acquisition (a folder of images, or one stack) into the watched folder again, file by file."""
    from aet_stream.simulate import microscope, replay

    source = arguments.source.resolve()
    target = arguments.out / (arguments.name or (source.name if source.is_dir() else source.stem))
    if target.resolve().is_relative_to(source):
        raise AetError(f"{target} is the source, or in it: choose another --out or --name")
    if target.is_dir() and any(target.iterdir()):
        raise AetError(f"{target} is not empty, and a series of its own is needed: choose another --name, or empty it")
    images, tilts_deg, pixel_size_nm = replay.load(arguments.source, arguments.angles)
    try:
        files = list(microscope.shots(images, tilts_deg, pixel_size_nm, arguments.format.split(","), arguments.fault))  # type: ignore[arg-type]
    except ValueError as error:
        raise AetError(str(error)) from error
    order = microscope.arrival(len(files), shuffle=arguments.shuffle, seed=arguments.seed)
    count = _expose((files[index] for index in order), arguments, target.name)
    print(f"{count} files in {target}")
    return EXIT_OK


def _expose(files: Any, arguments: argparse.Namespace, name: str) -> int:
    from aet_stream.simulate import microscope

    cadence_s = arguments.cadence / getattr(arguments, "speed", 1.0)
    return microscope.write(arguments.out / name, files, cadence_s=cadence_s, pieces=arguments.pieces)
