"""Is it right? Settings, files, the orientation, a stored series; and what the settings mean."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aet_stream import config_file
from aet_stream.cli.common import Add, folder, settings
from aet_stream.config import Config, Denoise
from aet_stream.doctor.finding import Station
from aet_stream.doctor.settings import troubles
from aet_stream.errors import AetError, ConfigError
from aet_stream.naming import shown
from aet_stream.service import EXIT_FAILED, EXIT_OK, be_a_child

if TYPE_CHECKING:
    from aet_stream.readers.child import ReaderChild


def add_commands(add: Add) -> None:
    config = add("config", _config, "write a config file with comments, or explain settings")
    config.add_argument("keys", nargs="*", metavar="KEY", help="a setting (watch.settle_s) or section (watch) to explain")
    config.add_argument("--changed", action="store_true", help="only what is not as it is by default")
    check = add("check", _check, "validate the settings, and say what would be done with these files")
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files, or folders of files")
    check.add_argument("--series", type=Path, metavar="SERIES.h5", help="with --known: are sign, axis and hand of this series right?")
    check.add_argument("--known", type=Path, metavar="VOLUME.h5", help="the true volume of its specimen: /volume, /reconstruction/volume")
    doctor = add("doctor", _doctor, "is this workstation fit for work? each trouble with its remedy")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.add_argument("--only", action="append", default=[], metavar="CHECK", help="this check alone; may be given several times")
    doctor.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    verify = add("verify", _verify, "checksums, completeness, provenance of a series; non-zero on any doubt", config=False)
    verify.add_argument("series", nargs="+", type=Path, metavar="SERIES.h5")


def _config(arguments: argparse.Namespace) -> int:
    """Write a config file with every setting and what it means, to begin with: aet-stream config > config.toml

    With --config it has that file's values, so that after an upgrade a new file has the new keys too. With KEYs it explains them.
    """
    from aet_stream import config_text

    chosen = settings(arguments)
    if arguments.keys:
        print("\n\n".join(config_text.explain(chosen, key) for key in arguments.keys))
    else:
        print(config_text.as_toml(chosen, only_changed=arguments.changed), end="")
    return EXIT_OK


def _doctor(arguments: argparse.Namespace) -> int:
    """Examine this workstation: folders, disk, memory, GPU, network, ports, services. One line per finding, and what to do about it.

    Run it as the user that the daemon runs as. It writes one small file below output.root, and removes it. Ends with 0 unless something
    failed; what is only a warning is no failure.
    """
    from aet_stream.doctor.examine import CHECKS, examine, report

    if unknown := set(arguments.only) - {named.name for named in CHECKS}:
        raise AetError(f"--only {unknown.pop()!r}: choose of {', '.join(named.name for named in CHECKS)}")
    found, width = [], max(len(named.name) for named in CHECKS)
    for result in examine(_station(arguments), arguments.only):
        found.append(result)
        for finding in [] if arguments.json else result.findings:
            print(shown(f"{'FAIL' if finding.state == 'fail' else finding.state:<4}  {result.check:<{width}} {finding.said}"), flush=True)
            if finding.remedy:
                print(shown(f"{'':<{width + 7}}-> {finding.remedy}"), flush=True)
    whole = report(found)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(whole)).decode())
    return EXIT_FAILED if whole.worst == "fail" else EXIT_OK


def _station(arguments: argparse.Namespace) -> Station:
    if arguments.supervised:
        be_a_child()
        os.nice(10)  # the series goes first
        return Station(msgspec.json.decode(sys.stdin.buffer.read(), type=Config))
    try:
        return Station(settings(arguments), arguments.config)
    except ConfigError as error:
        return Station(Config(), arguments.config, str(error))


def _check(arguments: argparse.Namespace) -> int:
    """Validate the settings; for each FILE (or every file below a folder) say its format, whether it is complete, its series, every
    statement about its tilt, pixel size, time and frames, and what would be done with it and why.

    Ends with 0 only if the settings will do to the end, every file could be stored as it is and SERIES.h5 has the right orientation.
    """
    from aet_stream.foresight import describe_all
    from aet_stream.readers.child import ReaderChild

    config = settings(arguments)
    if config.watch.root and config.output.root:
        config_file.require_folders(config)
        if not config.watch_root.is_dir():
            print(f"watch.root {config.watch_root} is not there (yet): `run` would wait for it")
        _require_output(config.output_root)
    reader = ReaderChild.of(config)
    try:
        _require_roles(config, reader)
        wrong = list(troubles(config))
        for line in wrong:
            print(line)
        if config.watch.root and config.output.root and not wrong:
            print(f"settings are valid; input {config.watch_root}, output {config.output_root}")
        oriented = _is_oriented(arguments.series, arguments.known) if arguments.series or arguments.known else True
        well = describe_all(arguments.files, reader, config, say=print) and oriented and not wrong
        if unset := [f"{key}.root" for key in ("watch", "output") if not getattr(config, key).root]:
            print(f"not set, and needed by `run`: {', '.join(unset)}")
        return EXIT_OK if well else EXIT_FAILED
    finally:
        reader.close()


def _require_output(root: Path) -> None:
    try:
        folder(str(root))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"output.root {error}") from None


def _require_roles(config: Config, reader: ReaderChild) -> None:
    """Refuse what a role of `run` would refuse once it has started.

    Raises
    ------
    AetError : a reader that is not installed, a plan, certificate or network that cannot be loaded, a device that is not there
    """
    from aet_stream.readers.plan import load_plan

    reader.suffixes()
    load_plan(config.angle.plan)
    if config.monitor.enabled and config.monitor.tls_cert:
        from aet_stream.monitor.security import tls_settings

        tls_settings(config.monitor)
    if config.denoise != Denoise():  # loading torch takes seconds
        from aet_stream.denoise.denoiser import Denoiser

        Denoiser(config.denoise)


def _is_oriented(path: Path | None, known: Path | None) -> bool:
    import h5py

    from aet_stream.reconstruct.input import read_input
    from aet_stream.reconstruct.orientation import verdict, ways
    from aet_stream.reconstruct.registered import upright

    if path is None or known is None:
        raise AetError("--series and --known belong together: a series, and the volume of its specimen")
    try:
        with h5py.File(known, "r") as file:
            volume = next(file[name][()] for name in ("volume", "reconstruction/volume") if name in file)
    except (OSError, StopIteration) as error:
        raise AetError(f"{known}: no readable /volume or /reconstruction/volume") from error
    given = read_input(path)
    right, said = verdict(ways(upright(given.projections, given.axis_deg), given.tilts_deg, volume))
    print(f"{path}: {said}")
    return right


def _verify(arguments: argparse.Namespace) -> int:
    """Read every frame of each series and compare it with what was written; one line per doubt."""
    from aet_stream.cli.verifying import verdicts

    sound = True
    for path, verdict in zip(arguments.series, verdicts(arguments.series), strict=True):
        sound = sound and not (verdict.doubts or verdict.refused)
        if verdict.refused:
            print(verdict.refused, file=sys.stderr)
            continue
        print(f"{path}: {verdict.rows} projections, {'closed' if verdict.closed else 'open'}, {len(verdict.doubts)} doubt(s)")
        for doubt in verdict.doubts:
            print(f"  {doubt}")
    return EXIT_OK if sound else EXIT_FAILED
