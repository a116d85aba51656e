"""Archives of old series."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aet_stream.cli.common import Add, settings, whole_from
from aet_stream.errors import ConfigError
from aet_stream.naming import shown
from aet_stream.service import EXIT_FAILED, EXIT_OK, EXIT_STRICT, be_a_child

if TYPE_CHECKING:
    from aet_stream.batch.run import Engine


def add_commands(add: Add) -> None:
    batch = add("batch", _batch, "many old series, without a daemon")
    batch.add_argument("places", nargs="+", type=Path, metavar="DIR", help="folders of series, single stacks, or series of ours")
    batch.add_argument(
        "--workers", type=whole_from(1, 1024), default=None, metavar="N", help="processes of this computer (default: one for each core)"
    )
    batch.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="of a Dask scheduler that runs, as tcp://HOST:8786: its workers do it"
    )
    batch.add_argument("--again", action="store_true", help="read once more what was held or quarantined")
    batch.add_argument("--list", action="store_true", help="only say which series there are, and what is to be done")
    batch.add_argument("--strict", action="store_true", help="exit code 3 if any projection was held, quarantined or set aside")


def _batch(arguments: argparse.Namespace) -> int:
    """Every series in these folders: taken in and closed as `run` would, its volume made; table, batch.html and batch.json say what came
    of each. Stopped or killed, the same command goes on where it was; what is done is left alone; a series whose files, model or settings
    have changed is done again, and only that.

    Ends with 0 only if no series failed.
    """
    be_a_child()  # SIGTERM ends it as Ctrl-C does
    from aet_stream import reprocess
    from aet_stream.batch import jobs, run, stages
    from aet_stream.hub import writer_lock
    from aet_stream.readers.child import ReaderChild
    from aet_stream.reconstruct.memory import machine_bytes

    config = settings(arguments)
    if not config.output.root:
        raise ConfigError("output.root is not set: say --config FILE or --set output.root=FOLDER")
    reader = ReaderChild.of(config)
    try:
        found = jobs.find(arguments.places, config, reader.suffixes())
    finally:
        reader.close()
    for remark in found.remarks:
        print(f"passed over: {shown(remark)}", file=sys.stderr)
    if arguments.scheduler and arguments.workers:
        raise ConfigError("--scheduler and --workers exclude each other: how many workers a cluster has is said where it is started")
    cores = len(os.sched_getaffinity(0))
    workers = arguments.workers or cores
    plan = stages.Plan(
        config,
        stages.wanted(config),
        reprocess.maker_of(config.denoise),
        again=arguments.again,
        shares_volumes=bool(arguments.scheduler),
        threads=1 if arguments.scheduler else max(1, cores // workers),
        memory_mib=0 if arguments.scheduler else max(1, int(0.8 * machine_bytes()) // 2**20 // workers),
    )
    with writer_lock.take(config.output_root):
        batch = run.Run(plan, found.jobs)
        if arguments.list:
            print(batch.listing())
            return EXIT_OK
        try:
            if batch.to_do:
                run.drive(batch, _engine(arguments, min(workers, batch.to_do)))
        finally:
            print(batch.report())
    if any(series.error for series in batch.all):
        return EXIT_FAILED
    put_aside = any(each.held or each.quarantined or each.odd for each in (series.figures for series in batch.all))
    return EXIT_STRICT if arguments.strict and put_aside else EXIT_OK


def _engine(arguments: argparse.Namespace, workers: int) -> Engine:
    if arguments.scheduler:
        from aet_stream.batch.on_dask import OnDask

        return OnDask(arguments.scheduler)
    from aet_stream.batch.processes import Processes

    return Processes(workers, verbose=arguments.verbose)
