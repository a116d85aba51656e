"""aet-stream: background-free tilt series for atomic electron tomography, while the microscope is still writing them.

Every command ends with 0 only if it did what it says. Errors are one line that names the file or setting and the remedy; --debug shows
where they came from.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from aet_stream import __version__
from aet_stream import config as configuration
from aet_stream.config import Config
from aet_stream.errors import AetError, ConfigError, NotRunning
from aet_stream.service import EXIT_FAILED, EXIT_OK, Role, Stop, exit_code, serve, set_up_logging, tie_to_parent

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    set_up_logging(parsed.command, verbose=parsed.verbose)
    command: Command = parsed.run
    try:
        return command(parsed)
    except AetError as error:
        if parsed.debug:
            raise
        print(f"aet-stream {parsed.command}: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more")
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML); without it the built-in defaults hold")
    settings.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting, over the file's")

    parser = argparse.ArgumentParser(prog="aet-stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"aet-stream {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, *, config: bool = True) -> argparse.ArgumentParser:
        parents = [common, settings] if config else [common]
        sub = commands.add_parser(name, help=text, description=run.__doc__, parents=parents)
        sub.set_defaults(run=run)
        return sub

    run = add("run", _run, "everything under one supervisor")
    run.add_argument("--until-idle", type=float, metavar="SECONDS", help="close open series after this long without work, then end")
    run.add_argument("--strict", action="store_true", help="exit code 3 if anything was quarantined, held or failed")
    for name in ("watch", "hub", "worker", "trigger", "monitor"):
        role = add(name, _role, f"the {name} alone")
        role.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
        role.add_argument("--name", default="worker-0" if name == "worker" else name, help="name among roles of the same kind")
    status = add("status", _status, "what is in flight, stored, held, quarantined")
    status.add_argument("--json", action="store_true", help="for machines")
    top = add("top", _top, "status that keeps itself up to date, for a terminal")
    top.add_argument("--once", action="store_true", help="show it once and end")
    report = add("report", _report, "one page about a series: what was done, figures, pictures, what was held")
    report.add_argument("series", type=Path, metavar="SERIES.h5")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside the series")
    check = add("check", _check, "validate the settings, and say what would be done with these files")
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files, or folders of files")
    check.add_argument("--series", type=Path, metavar="SERIES.h5", help="with --known: are sign, axis and hand of this series right?")
    check.add_argument("--known", type=Path, metavar="VOLUME.h5", help="the true volume of its specimen: /volume, /reconstruction/volume")
    verify = add("verify", _verify, "checksums, completeness, provenance of a series; non-zero on any doubt", config=False)
    verify.add_argument("series", type=Path, metavar="SERIES.h5")
    close = add("close", _close, "close a series: one contiguous verified file")
    close.add_argument("series", metavar="SERIES")
    requeue = add("requeue", _requeue, "try held or quarantined projections again")
    requeue.add_argument("ids", nargs="+", type=int, metavar="ID")
    release = add("release", _release, "give held projections their tilt angle")
    release.add_argument("ids", nargs="+", type=int, metavar="ID")
    release.add_argument("--angle", type=float, required=True, metavar="DEG")
    events = add("events", _events, "what happened, and who has been told")
    events.add_argument("--failed", action="store_true", help="only what was tried too often")
    events.add_argument("--json", action="store_true", help="for machines")
    resend = add("resend", _resend, "send failed events again")
    resend.add_argument("ids", nargs="*", metavar="EVENT", help="ids as `events` shows them (default: all that failed)")
    _add_microscope_commands(add)
    _add_science_commands(add)
    return parser


def _add_microscope_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    simulate = add("simulate", _simulate, "a microscope that writes a tilt series file by file", config=False)
    simulate.add_argument("--particle", default="random", help="kind of particle (default: a random one)")
    simulate.add_argument("--background", default="film", help="kind of background: film or gaussian (default: film)")
    simulate.add_argument("--tilts", type=int, default=60, metavar="N")
    simulate.add_argument("--range", type=float, default=70.0, metavar="DEG", help="largest tilt (default: 70)")
    simulate.add_argument("--size", type=int, default=256, metavar="PX")
    simulate.add_argument("--atoms", type=int, default=0, metavar="N", help="about how many (0: 1,000 to 50,000)")
    simulate.add_argument(
        "--multislice", action="store_true", help="images by multislice theory (abTEM): minutes each, kept for the next time"
    )
    simulate.add_argument("--dose", type=float, default=2000.0, metavar="COUNTS", help="counts in the brightest pixel (default: 2000)")
    simulate.add_argument("--name", default="particle", help="name of the series: a folder under DIR")
    replay = add("replay", _replay, "an old acquisition again at true cadence", config=False)
    replay.add_argument("source", type=Path, metavar="DIR", help="folder of images, or one stack")
    replay.add_argument("--angles", type=Path, metavar="FILE", help="tilts in degrees, where the source has none: .rawtlt, .npy or .mat")
    replay.add_argument("--speed", type=float, default=1.0, metavar="X", help="this many times faster than the cadence")
    replay.add_argument("--name", default="", help="name of the series (default: that of the source)")
    replay.add_argument("--shuffle", action="store_true", help="let the projections arrive out of order")
    for command in (simulate, replay):
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the watched folder")
        command.add_argument(
            "--format", default="tiff", help="tiff, npy, mrc, dm3, dm4, mat, ser, velox, emd; several with commas (default: tiff)"
        )
        command.add_argument("--cadence", type=float, default=1.0, metavar="S", help="seconds between projections (default: 1)")
        command.add_argument("--pieces", type=int, default=1, metavar="N", help="write each file in this many slow pieces (default: 1)")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--fault", action="append", default=[], metavar="KIND", help="something that goes wrong; may be repeated")


def _add_science_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    reconstruct = add("reconstruct", _reconstruct, "a volume from a series", config=False)
    reconstruct.add_argument("series", type=Path, metavar="SERIES.h5")
    reconstruct.add_argument("--method", default="auto", help="auto, nesterov-sirt or tomopy:ALGORITHM (default: auto)")
    reconstruct.add_argument("--iterations", type=int, default=0, help="default: until noise would make it worse (tomopy: 50)")
    reconstruct.add_argument("--residual", type=float, default=0.0, metavar="R", help="stop where the relative residual is R")
    reconstruct.add_argument(
        "--align", default=None, metavar="STEPS", help="with commas; '' for none (default: all, as config.toml has them)"
    )
    reconstruct.add_argument("--no-quality", action="store_true", help="no half volumes: half the work")
    reconstruct.add_argument("--threads", type=int, default=0, help="0: all cores")
    reconstruct.add_argument("--memory", type=int, default=0, metavar="MIB", help="bound for the built-in solver (0: 4/5 of the machine's)")
    reconstruct.add_argument("--out", type=Path, metavar="FILE", help="default: reconstruction.h5 beside the series; .mrc or .tif as well")
    reconstruct.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    preview = add("preview", _preview, "a small volume of a series that is still growing", config=False)
    preview.add_argument("series", type=Path, metavar="SERIES.h5")
    preview.add_argument("--size", type=int, default=128, metavar="PX", help="bin to at most this width (default: 128)")
    preview.add_argument("--iterations", type=int, default=10)
    preview.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    export = add("export", _export, "a series or a volume for other programs", config=False)
    export.add_argument("source", type=Path, metavar="FILE.h5", help="series.h5 or reconstruction.h5")
    export.add_argument("target", type=Path, metavar="TARGET", help="a name ending in .mrc, .tif or .mat")
    train = add("train", _train, "make a network from simulated particles", config=False)
    train.add_argument("--preset", default="default", help="default, dncnn-2019, or a TOML file of your own")
    train.add_argument("--out", type=Path, required=True, metavar="DIR")
    train.add_argument("--steps", type=int, default=0, metavar="N", help="how many (0: what the preset says)")
    train.add_argument("--seed", type=int, default=None, help="another seed than the preset's")
    train.add_argument("--threads", type=int, default=0, help="0: all cores")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    train.add_argument("--from", dest="model", metavar="MODEL", help="fine-tune this network, a name or a path, on your own microscope")
    train.add_argument("--series", type=Path, nargs="+", default=[], metavar="FILE", help="with --from: stored series whose vacuum teaches")
    evaluate = add("evaluate", _evaluate, "judge networks beside the classical estimates", config=False)
    evaluate.add_argument("models", nargs="*", default=[], metavar="MODEL", help="names or paths (default: all that are shipped)")
    evaluate.add_argument("--frames", type=int, default=48, metavar="N", help="frames per set (default: 48)")
    evaluate.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME", help="only this set; may be repeated")
    evaluate.add_argument(
        "--trust-frames", type=int, default=400, metavar="N", help="hard frames to judge trust by (default: 400; 0: none)"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="all figures as JSON as well")
    evaluate.add_argument("--figure", type=Path, metavar="FILE", help="worst, median and best hard frame of the first network as a picture")


def _settings(arguments: argparse.Namespace) -> Config:
    return configuration.load(arguments.config, arguments.set)


# -- the daemon -----------------------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    """Run watch, hub, workers, trigger and monitor under one supervisor until SIGTERM or Ctrl-C.

    With --until-idle it closes the open series once nothing has come for that long, waits for their reconstruction and ends.
    """
    from aet_stream import supervisor

    return supervisor.run(_settings(arguments), until_idle_s=arguments.until_idle, strict=arguments.strict, verbose=arguments.verbose)


def _role(arguments: argparse.Namespace) -> int:
    """Run one role alone, as systemd or other hosts do."""
    stop = Stop()
    if arguments.supervised:
        config = msgspec.json.decode(sys.stdin.buffer.readline(), type=Config)
        tie_to_parent(stop)
    else:
        config = _settings(arguments)
        configuration.require_folders(config)
    set_up_logging(arguments.name, verbose=arguments.verbose)
    return serve(_make_role(arguments.command, arguments.name, config), stop)


def _make_role(kind: str, name: str, config: Config) -> Role:
    """Each role imports only what it needs."""
    if kind == "hub":
        from aet_stream.hub.hub import Hub

        return Hub(config)
    if kind == "watch":
        from aet_stream.readers.child import ReaderChild
        from aet_stream.watch.watch import Watch

        return Watch(config, ReaderChild.of(config))
    if kind == "worker":
        from aet_stream.worker import Worker

        return Worker(config, name=name)
    if kind == "trigger":
        from aet_stream.trigger.trigger import Trigger

        return Trigger(config)
    from aet_stream.monitor import Monitor

    return Monitor(config)


# -- what a person asks -----------------------------------------------------------------------------------------------------------------


def _output_root(arguments: argparse.Namespace) -> Path:
    config = _settings(arguments)
    if not config.output.root:
        raise ConfigError("output.root is not set: say --config FILE or --set output.root=FOLDER")
    return config.output_root


def _status(arguments: argparse.Namespace) -> int:
    """Show what is in flight, stored, held and quarantined. Works with the daemon down too: then from its ledger alone."""
    from aet_stream.transport import ask

    root = _output_root(arguments)
    try:
        status = {"daemon": "running", **ask(root, "status", timeout_s=2.0)}
    except NotRunning:
        status = {"daemon": "not running", **_from_ledger(root)}
    print(json.dumps(status, indent=2) if arguments.json else _status_text(status))
    return EXIT_OK


def _top(arguments: argparse.Namespace) -> int:
    """Show the state of the acquisition and keep it up to date until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from aet_stream.monitor.terminal import glance
    from aet_stream.transport import ask

    root, expected = _output_root(arguments), _settings(arguments).series.expected

    def now() -> Any:
        try:
            return glance(ask(root, "status", timeout_s=2.0), expected=expected)
        except NotRunning:
            return glance({})

    if arguments.once:
        Console().print(now())
        return EXIT_OK
    with Live(now(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            live.update(now(), refresh=True)


def _report(arguments: argparse.Namespace) -> int:
    """Write a report of a series as one HTML file that any browser can show, print or keep."""
    from aet_stream import durable
    from aet_stream.monitor.report import of_series
    from aet_stream.monitor.shelf import Shelf

    path = arguments.series.absolute()
    if path.name != "series.h5":
        raise AetError(f"{arguments.series}: name the series.h5 of a series")
    root = path.parent.parent
    try:
        status = _from_ledger(root)
    except AetError:
        status = {}  # a series that was copied elsewhere has no ledger
    page = of_series(Shelf(root), path.parent.name, _settings(arguments).advice, status)
    target = arguments.out or path.with_name("report.html")
    durable.replace(target, page.encode())
    print(target)
    return EXIT_OK


def _from_ledger(root: Path) -> dict[str, Any]:
    from aet_stream.hub.ledger import Ledger, outcome

    path = root / "ledger.sqlite"
    if not path.exists():
        raise NotRunning(f"{root} has no ledger: nothing has ever run there; start with `aet-stream run`")
    try:
        ledger = Ledger(path, read_only=True)
        return outcome(ledger)
    except sqlite3.Error as error:
        raise AetError(f"{path}: {error}; `aet-stream run` rebuilds it from the projection files") from error


def _status_text(status: dict[str, Any]) -> str:
    """One glance."""
    totals = status["totals"]
    lines = [f"daemon {status['daemon']}" + (f"  PAUSED: {status['paused']}" if status.get("paused") else "")]
    lines.append("  ".join(f"{count} {name}" for name, count in totals.items()))
    for name, role in sorted(status.get("roles", {}).items()):
        stale = f"  silent for {role['age_s']:.0f} s" if role["age_s"] > 5 else ""
        lines.append(f"  {name:<11} pid {role['pid']}{stale}")
    for series in status["series"][:10]:
        tilt = "" if series["last_tilt_deg"] is None else f", last tilt {series['last_tilt_deg']:+.2f} deg"
        lines.append(f"series {series['name']}: {series['state']}, {series['stored']} stored{tilt}")
    for name, tilts in status.get("planned_missing_deg", {}).items():
        if tilts:
            lines.append(f"  {name} lacks {len(tilts)} planned tilts: {', '.join(f'{tilt:g}' for tilt in tilts[:12])}")
    for path, complaint in status.get("roles", {}).get("watch", {}).get("status", {}).get("waiting_for", {}).items():
        lines.append(f"WAITING      {path}: {complaint or 'for its writer'}")
    total = status["latency"]["stages"].get("total")
    if total:
        stages = ", ".join(f"{name} {figures['p50_s']:.3f}" for name, figures in status["latency"]["stages"].items() if name != "total")
        lines.append(f"file closed to readable: median {total['p50_s']:.3f} s, 99 % {total['p99_s']:.3f} s (median by stage: {stages})")
    for row in status["blank"]:
        lines.append(
            f"BLANK        {row['id']:>5}  {row['path']}[{row['image']}] at {row['tilt_deg']:+.2f} deg: every pixel has the same value"
        )
    for row in status["held"]:
        lines.append(f"HELD         {row['id']:>5}  {row['path']}[{row['image']}]: {row['reason']}")
    for row in status["quarantined"]:
        lines.append(f"QUARANTINED  {row['id']:>5}  {row['path']}[{row['image']}]: {row['reason']}")
    if status["held"]:
        lines.append("give a held projection its angle: aet-stream release ID --angle DEG")
    if status["quarantined"]:
        lines.append("mend or replace a quarantined file and it is read again; or: aet-stream requeue ID")
    for row in status["events"]["dead"]:
        lines.append(f"FAILED       {row['event']} of {row['series']} -> {row['sink']} ({row['attempts']} tries): {row['detail']}")
    if status["events"]["dead"]:
        lines.append("mend the cause and send failed events again: aet-stream resend")
    return "\n".join(lines)


def _close(arguments: argparse.Namespace) -> int:
    """Close a series now: one contiguous file, verified against the projection files, then its reconstruction."""
    from aet_stream.transport import ask

    root, name = _output_root(arguments), arguments.series
    ask(root, "close", {"series": name})
    while ask(root, "close", {"series": name})["state"] != "closed":
        time.sleep(0.1)
    print(f"{name} is closed: {root / name / 'series.h5'}")
    return EXIT_OK


def _requeue(arguments: argparse.Namespace) -> int:
    """Read held or quarantined projections again, for example after mending the file. IDs as `status` shows them."""
    from aet_stream.transport import ask

    print(ask(_output_root(arguments), "requeue", {"ids": arguments.ids})["text"])
    return EXIT_OK


def _release(arguments: argparse.Namespace) -> int:
    """Give held projections the tilt angle that no source could. IDs as `status` shows them."""
    from aet_stream.transport import ask

    print(ask(_output_root(arguments), "release", {"ids": arguments.ids, "tilt_deg": arguments.angle})["text"])
    return EXIT_OK


def _events(arguments: argparse.Namespace) -> int:
    """List the deliveries of the outbox, the latest event first: from the ledger, with or without a daemon."""
    from aet_stream.hub.ledger import Ledger
    from aet_stream.hub.outbox import Outbox

    path = _output_root(arguments) / "ledger.sqlite"
    if not path.exists():
        raise NotRunning(f"{path} is not there: nothing has ever run; start with `aet-stream run`")
    ledger = Ledger(path, read_only=True)
    rows = Outbox(ledger.db).listed("failed" if arguments.failed else None)
    ledger.close()
    if arguments.json:
        print(json.dumps(rows, indent=2))
    for row in [] if arguments.json else rows:
        tries = f"{row['attempts']} tries" if row["attempts"] != 1 else "1 try"
        print(f"{row['event_id']}  {row['event']:<19} {row['series']} -> {row['sink']}: {row['state']}, {tries}  {row['detail']}")
    return EXIT_OK


def _resend(arguments: argparse.Namespace) -> int:
    """Send events again that were put aside after too many tries."""
    from aet_stream.transport import ask

    print(ask(_output_root(arguments), "resend", {"ids": arguments.ids or None})["text"])
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    """Read every frame of a series and compare it with what was written; one line per doubt."""
    from aet_stream.series import Series

    with Series(arguments.series) as series:
        doubts = list(series.doubts())
        state = "closed" if series.closed else "open"
        print(f"{arguments.series}: {len(series)} projections, {state}, {len(doubts)} doubt(s)")
    for doubt in doubts:
        print(f"  {doubt}")
    return EXIT_FAILED if doubts else EXIT_OK


def _check(arguments: argparse.Namespace) -> int:
    """Validate the settings; for each FILE (or every file below a folder) say its format, whether it is complete, its series, every
    statement about its tilt, pixel size, time and frames, and what would be done with it and why.

    Ends with 0 only if every file could be stored as it is.
    """
    from aet_stream.readers.child import ReaderChild
    from aet_stream.watch.describe import describe_all

    config = _settings(arguments)
    for key in ("watch", "output"):
        if not getattr(config, key).root:
            print(f"{key}.root is not set")
    if config.watch.root and config.output.root:
        configuration.require_folders(config)
        if not config.watch_root.is_dir():
            print(f"watch.root {config.watch_root} is not there (yet): `run` would wait for it")
        print(f"settings are valid; input {config.watch_root}, output {config.output_root}")
    if arguments.series or arguments.known:
        return _check_orientation(arguments.series, arguments.known)
    reader = ReaderChild.of(config)
    try:
        return EXIT_OK if describe_all(arguments.files, reader, config, say=print) else EXIT_FAILED
    finally:
        reader.close()


def _check_orientation(path: Path | None, known: Path | None) -> int:
    import h5py

    from aet_stream.reconstruct.orientation import verdict, ways
    from aet_stream.series import Series

    if path is None or known is None:
        raise AetError("--series and --known belong together: a series, and the volume of its specimen")
    try:
        with h5py.File(known, "r") as file:
            volume = next(file[name][()] for name in ("volume", "reconstruction/volume") if name in file)
    except (OSError, StopIteration) as error:
        raise AetError(f"{known}: no readable /volume or /reconstruction/volume") from error
    with Series(path) as series:
        import numpy as np

        right, said = verdict(ways(np.stack([series.clean(row) for row in range(len(series))]), series.tilts_deg, volume))
    print(f"{path}: {said}")
    return EXIT_OK if right else EXIT_FAILED


# -- microscope, network, volume ----------------------------------------------------------------------------------------------------------


def _simulate(arguments: argparse.Namespace) -> int:
    """Write a simulated tilt series into DIR/NAME file by file, and the truth into DIR.truth/NAME.h5 beside it."""
    import numpy as np

    from aet_stream.simulate import microscope
    from aet_stream.simulate.series import simulate_series

    tilts_deg = np.linspace(-arguments.range, arguments.range, arguments.tilts)
    try:
        series = simulate_series(
            seed=arguments.seed,
            tilts_deg=np.round(tilts_deg, 2),
            size_px=arguments.size,
            particle=arguments.particle,
            atoms=arguments.atoms,
            kind=arguments.background,
            dose=arguments.dose,
            multislice=microscope.truth_path(arguments.out, arguments.name).with_suffix(".multislice") if arguments.multislice else None,
        )
        files = microscope.shots(series.raw, series.tilts_deg, series.pixel_size_nm, arguments.format.split(","), arguments.fault)
        truth = microscope.truth_path(arguments.out, arguments.name)
        microscope.write_truth(truth, series)
        count = _expose(files, arguments, arguments.name)
    except ValueError as error:
        raise AetError(str(error)) from error
    print(f"{count} files in {arguments.out / arguments.name}, truth in {truth}")
    return EXIT_OK


def _replay(arguments: argparse.Namespace) -> int:
    """Write an old acquisition (a folder of images, or one stack) into the watched folder again, file by file."""
    from aet_stream.simulate import microscope, replay

    images, tilts_deg, pixel_size_nm = replay.load(arguments.source, arguments.angles)
    order = microscope.arrival(len(images), shuffle=arguments.shuffle, seed=arguments.seed)
    try:
        files = list(microscope.shots(images, tilts_deg, pixel_size_nm, arguments.format.split(","), arguments.fault))  # type: ignore[arg-type]
    except ValueError as error:
        raise AetError(str(error)) from error
    if not arguments.fault:
        files = [files[index] for index in order]
    name = arguments.name or arguments.source.stem
    count = _expose(iter(files), arguments, name)
    print(f"{count} files in {arguments.out / name}")
    return EXIT_OK


def _expose(files: Any, arguments: argparse.Namespace, name: str) -> int:
    from aet_stream.simulate import microscope

    cadence_s = arguments.cadence / getattr(arguments, "speed", 1.0)
    return microscope.write(arguments.out / name, files, cadence_s=cadence_s, pieces=arguments.pieces)


def _reconstruct(arguments: argparse.Namespace) -> int:
    """Make a volume from a series; it lies beside it as reconstruction.h5, with a picture of its central slices."""
    if arguments.supervised:
        tie_to_parent(Stop())
    from aet_stream.reconstruct.align import STEPS
    from aet_stream.reconstruct.run import Options, reconstruct

    align = STEPS if arguments.align is None else tuple(filter(None, arguments.align.split(",")))
    if unknown := [step for step in align if step not in STEPS]:
        raise AetError(f"--align {unknown[0]}: the steps are {', '.join(STEPS)}")
    options = Options(
        method=arguments.method,
        iterations=arguments.iterations,
        residual=arguments.residual,
        align=align,
        quality=not arguments.no_quality,
        threads=arguments.threads,
        memory_mib=arguments.memory,
    )
    print(reconstruct(arguments.series, options, out=arguments.out))
    return EXIT_OK


def _preview(arguments: argparse.Namespace) -> int:
    """Make preview.h5 beside a series: binned, one thread, going on from the preview before."""
    if arguments.supervised:
        tie_to_parent(Stop())
    from aet_stream.reconstruct.preview import preview

    print(preview(arguments.series, size_px=arguments.size, iterations=arguments.iterations))
    return EXIT_OK


def _export(arguments: argparse.Namespace) -> int:
    """Write a series or a volume for other programs: MRC with .rawtlt, TIFF, or MATLAB files as GENFIRE and RESIRE read them."""
    from aet_stream.reconstruct.export import export

    for path in export(arguments.source, arguments.target):
        print(path)
    return EXIT_OK


def _train(arguments: argparse.Namespace) -> int:
    """Make a network from simulated particles (a run that was stopped goes on with --resume), or fine-tune one on series of your own."""
    from aet_stream.training import finetune, train

    if bool(arguments.model) != bool(arguments.series):
        raise AetError("--from and --series go together: --from MODEL --series FILE...")
    if arguments.model:
        words = {"steps": arguments.steps} if arguments.steps else {}
        print(finetune.finetune(arguments.model, arguments.series, arguments.out, seed=arguments.seed or 0, **words))
        return EXIT_OK
    path = train.run(
        arguments.preset,
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
    import msgspec

    from aet_stream.training import evaluate, sets

    unknown = [name for name in arguments.sets if name not in sets.SETS]
    if unknown:
        raise AetError(f"no set {unknown[0]!r}: choose {', '.join(sets.SETS)}")
    report = evaluate.evaluate(arguments.models, frames=arguments.frames, only=arguments.sets, trust_frames=arguments.trust_frames)
    print(evaluate.table(report))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    if arguments.figure:
        evaluate.draw((arguments.models or ["default"])[0], arguments.figure, frames=arguments.frames)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
