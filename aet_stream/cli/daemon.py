"""The daemon: everything under one supervisor, or one role alone."""

from __future__ import annotations

import argparse
import sys

import msgspec

from aet_stream import config_file
from aet_stream.cli.common import Add, settings
from aet_stream.config import Config
from aet_stream.doctor.settings import troubles
from aet_stream.service import Role, Stop, serve, set_up_logging


def add_commands(add: Add) -> None:
    run = add("run", _run, "everything under one supervisor")
    run.add_argument("--until-idle", type=float, metavar="SECONDS", help="close open series after this long without work, then end")
    run.add_argument(
        "--strict", action="store_true", help="exit code 3 if anything was quarantined, held, failed or put off by its receiver"
    )
    for name in ("watch", "hub", "worker", "trigger", "monitor"):
        role = add(name, _role, f"the {name} alone")
        role.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
        role.add_argument("--name", default="worker-0" if name == "worker" else name, help="name among roles of the same kind")


def _run(arguments: argparse.Namespace) -> int:
    """Run watch, hub, workers, trigger and monitor under one supervisor until SIGTERM or Ctrl-C.

    With --until-idle it closes the open series once nothing has come for that long, waits for their reconstruction and ends.
    A receiver that says "again later" is not waited for: the next run tells it.
    """
    from aet_stream import supervisor

    config = settings(arguments)
    for line in troubles(config):
        print(f"warning: {line}", file=sys.stderr)
    return supervisor.run(config, until_idle_s=arguments.until_idle, strict=arguments.strict, verbose=arguments.verbose)


def _role(arguments: argparse.Namespace) -> int:
    """Run one role alone, as systemd or other hosts do."""
    if arguments.supervised:
        config = msgspec.json.decode(sys.stdin.buffer.read(), type=Config)
    else:
        config = settings(arguments)
        config_file.require_folders(config)
    set_up_logging(arguments.name, verbose=arguments.verbose)
    return serve(_make_role(arguments.command, arguments.name, config), Stop())


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
