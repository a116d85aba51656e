"""One file, one call."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aet_stream.cli.common import Add, folder, settings
from aet_stream.errors import AetError, NoProjection, OutputFull
from aet_stream.naming import shown
from aet_stream.service import EXIT_FAILED, EXIT_OK


def add_commands(add: Add) -> None:
    denoise = add("denoise", _denoise, "the background of any images or stacks, without a daemon")
    denoise.add_argument("files", nargs="+", type=Path, metavar="FILE", help="images or stacks, of any format that is read")
    denoise.add_argument("--out", type=folder, required=True, metavar="DIR", help="where FILE.h5 of each is written")
    denoise.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _denoise(arguments: argparse.Namespace) -> int:
    """For each FILE write DIR/FILE.h5, which any HDF5 reader opens: raw, clean, background and quality of every image in it, what `run`
    would store.

    Ends with 0 only if every projection in every FILE was written.
    """
    from aet_stream.denoise.denoiser import Denoiser
    from aet_stream.files import denoise_file
    from aet_stream.readers.child import ReaderChild

    config = settings(arguments)
    targets = _targets(arguments.files, arguments.out, overwrite=arguments.overwrite)
    denoiser = Denoiser(config.denoise)
    arguments.out.mkdir(parents=True, exist_ok=True)
    reader, whole = ReaderChild.of(config), True
    try:
        for path, target in targets.items():
            try:
                count, complaints = denoise_file(path, target, reader, denoiser, config, progress=_progress(path))
            except OutputFull:
                raise  # the files that follow would fare no better
            except AetError as error:
                if arguments.debug:
                    raise
                count, complaints = 0, [error]
            if count:
                print(f"{shown(str(path))}: {count} image{'s' * (count > 1)} -> {shown(str(target))}")
            for complaint in complaints:
                print(f"aet-stream denoise: {shown(str(complaint))}", file=sys.stderr)
            whole = whole and all(isinstance(complaint, NoProjection) for complaint in complaints)
    finally:
        reader.close()
    return EXIT_OK if whole else EXIT_FAILED


def _targets(files: list[Path], out: Path, *, overwrite: bool) -> dict[Path, Path]:
    """Where each file's result goes.

    Raises
    ------
    AetError : a file is not there, or two results, or something that is there already, would have one name
    """
    targets = {path: out / f"{path.name}.h5" for path in dict.fromkeys(files)}
    twice = [target for target, count in Counter(targets.values()).items() if count > 1]
    for path, target in targets.items():
        if not path.is_file():
            raise AetError(f"{path}: {'a folder: name the files in it' if path.is_dir() else 'there is no such file'}")
        if target in twice:
            raise AetError(f"{path}: another FILE of this name would be written to {target} too; choose another --out for one of them")
        if target.exists() and not overwrite:
            raise AetError(f"{target} is there already; say --overwrite, or choose another --out")
    return targets


def _progress(path: Path) -> Callable[[int, int], None]:
    """For a person who looks: how many images of a stack are done."""

    def show(done: int, total: int) -> None:
        if total > 1 and sys.stderr.isatty():
            print(f"\r{shown(path.name)}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
