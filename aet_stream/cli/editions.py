"""Editions of a series' background: which there are, another one, and which is shown."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from shlex import quote

import msgspec

from aet_stream.cli.common import Add, settings
from aet_stream.errors import AetError, ConfigError, StoreError, TooFewProjections
from aet_stream.naming import shown
from aet_stream.service import EXIT_OK, be_a_child


def add_commands(add: Add) -> None:
    editions = add("editions", _editions, "the backgrounds that a series has, and which one it shows")
    editions.add_argument("series", metavar="SERIES")
    use = add("use", _use, "show another edition of a series from now on")
    use.add_argument("series", metavar="SERIES")
    use.add_argument("edition", type=int, metavar="N", help="as `editions` shows it; 1: what came with each projection")
    film = add("film", _film, "the films behind the particle, from all projections of a series at once: an edition of it")
    film.add_argument("series", metavar="SERIES")
    film.add_argument("--no-use", dest="use", action="store_const", const=False, help="do not show it (default: as film.use says)")
    film.add_argument("--growing", action="store_true", help="no edition: only what the monitor shows, from the model before")
    film.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)  # made for the hub of another computer: it is not handed over
    film.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    reprocess = add("reprocess", _reprocess, "a stored series again from its raw, beside the first result")
    reprocess.add_argument("series", metavar="SERIES")
    reprocess.add_argument("--model", required=True, metavar="MODEL", help="as denoise.model: a name, or a path to weights of your own")
    reprocess.add_argument("--use", action="store_true", help="show it from then on")
    reprocess.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)


def _place(arguments: argparse.Namespace) -> tuple[Path, str]:
    """(output root, name) of the series that is named, or whose series.h5 or folder is."""
    given = Path(arguments.series)
    if given.name == "series.h5" or (given.is_dir() and (given / "series.h5").exists()):
        folder = (given.parent if given.name == "series.h5" else given).absolute()
        return folder.parent, folder.name
    config = settings(arguments)
    if not config.output.root:
        raise ConfigError(
            f"{given}: no series.h5, nor a folder with one; if it is a series' name, say --config FILE or --set output.root=FOLDER"
        )
    return config.output_root, arguments.series


def _series(arguments: argparse.Namespace) -> tuple[Path, str, Path]:
    """(output root, name, file) of the series that is named, which has to be there."""
    root, name = _place(arguments)
    path = root / name / "series.h5"
    if not path.exists():
        raise AetError(f"{path}: there is no such series")
    return root, name, path


def _editions(arguments: argparse.Namespace) -> int:
    """List the editions of a series, from its files: with or without a daemon."""
    from aet_stream import edition, layout
    from aet_stream.series import Series

    root, name = _place(arguments)
    with Series(root / name / layout.SERIES_FILE) as series:
        chosen, rows = series.edition, edition.covered(series)
        lines = [_line(edition.FIRST, chosen, f"{len(rows)} of {len(rows)} rows", "with each projection, as it came")]
        for number, path in layout.edition_files(root / name).items():
            if number == edition.FIRST:
                continue
            try:
                with edition.Edition(path) as found:
                    has = sum(number in found.rows and found.rows[number].covered == row for row in rows for number in (row.number,))
                    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.about.made_at))
                    lines.append(_line(number, chosen, f"{has} of {len(rows)} rows", f"{found.about.made_by}, {found.about.model}, {at}"))
            except StoreError as error:
                lines.append(_line(number, chosen, "DAMAGED", str(error)))
    lines += [f"   waits for the daemon: {key}" for key in edition.made(root / name)]
    print("\n".join(map(shown, lines)))
    return EXIT_OK


def _line(number: int, chosen: int, rows: str, words: str) -> str:
    return f"{'*' if number == chosen else ' '} {number:>2}  {rows:<16}  {words}"


def _use(arguments: argparse.Namespace) -> int:
    """Show this edition in series.h5; done when a reader sees it. A closed series gets a new file, verified and renamed over it."""
    from aet_stream.transport import ask_until_done

    root, name = _place(arguments)
    print(ask_until_done(root, "use", {"series": name, "edition": arguments.edition})["text"])
    return EXIT_OK


def _film(arguments: argparse.Namespace) -> int:
    """What lies behind the particle, where one tilt hides it and another shows it: written to film.h5 beside the series, and made an
    edition of its backgrounds. Done already, it does nothing more.
    """
    if arguments.supervised:
        be_a_child()
    from aet_stream import edition
    from aet_stream.denoise.denoiser import Denoiser
    from aet_stream.film import run

    os.nice(10)  # intake goes first
    config = settings(arguments)
    root, name, path = _series(arguments)
    options = run.Options(config.film.tilts_each_side, config.film.memory_mib)
    try:
        if arguments.growing:
            print(run.see(path, Denoiser(config.denoise), options))
            return EXIT_OK
        _, maker = run.make_edition(path, Denoiser(config.denoise), options)
    except TooFewProjections as error:
        if not arguments.supervised:
            raise
        print(f"{name}: no films: {error}")  # trying again would not help
        return EXIT_OK
    if arguments.keep:
        return EXIT_OK
    use = config.film.use if arguments.use is None else arguments.use
    number = edition.hand_over(root, name, maker, use=use)
    print(f"edition {number} of {name}: {maker.model}" + ("" if use else f"; show it: aet-stream use {quote(name)} {number}"))
    return EXIT_OK


def _reprocess(arguments: argparse.Namespace) -> int:
    """Subtract every projection of a series anew with another model, as one more edition. Stopped, it goes on where it was when it is
    started again; done already, it does nothing more. `aet-stream use` shows it.
    """
    if arguments.supervised:
        be_a_child()
    from aet_stream import edition, reprocess
    from aet_stream.denoise.denoiser import Denoiser
    from aet_stream.reconstruct.progress import ProgressLog

    os.nice(10)  # intake goes first
    root, name, path = _series(arguments)
    wanted = msgspec.structs.replace(settings(arguments).denoise, model=arguments.model)
    denoiser = Denoiser(wanted)
    maker = reprocess.maker_of(wanted)
    reprocess.make_edition(path, denoiser, maker, progress=ProgressLog())
    number = edition.hand_over(root, name, maker, use=arguments.use)
    print(f"edition {number} of {name}: {denoiser.name}" + ("" if arguments.use else f"; show it: aet-stream use {quote(name)} {number}"))
    return EXIT_OK
