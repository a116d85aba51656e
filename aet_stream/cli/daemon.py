"""The daemon: everything under one supervisor, or one role alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from aet_stream import config_file
from aet_stream.cli.common import Add, settings
from aet_stream.config import Config
from aet_stream.doctor.settings import troubles
from aet_stream.errors import ConfigError
from aet_stream.service import Role, Stop, serve, set_up_logging
from aet_stream.status import PRODUCTS, StepName

OWN_KEY = Path("~/.config/aet-stream/worker.key")
SPOOL = Path("~/.cache/aet-stream/helper")


def add_commands(add: Add) -> None:
    run = add("run", _run, "everything under one supervisor")
    run.add_argument("--until-idle", type=float, metavar="SECONDS", help="close open series after this long without work, then end")
    run.add_argument(
        "--strict", action="store_true", help="exit code 3 if anything was quarantined, held, failed or put off by its receiver"
    )
    for name in ("watch", "hub", "worker", "trigger", "monitor", "relay"):
        role = add(name, _role, f"the {name} alone")
        role.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
        role.add_argument("--name", default="worker-0" if name == "worker" else name, help="name among roles of the same kind")
        if name == "worker":
            _add_way(role, "with --connect: ", needed=False)
    helper = add("helper", _helper, "make volumes, films and atoms for another computer (docs/elsewhere.md)")
    _add_way(helper, "", needed=True)
    helper.add_argument("--name", default="helper", help="name among those of this computer")
    helper.add_argument(
        "--takes", type=_takes, default=tuple(PRODUCTS), metavar="A,B", help=f"what it makes (default: {','.join(PRODUCTS.values())})"
    )
    helper.add_argument("--spool", type=Path, metavar="DIR", help=f"where it works, on a local disk (default: {SPOOL}/NAME)")


def _add_way(role: argparse.ArgumentParser, when: str, *, needed: bool) -> None:
    role.add_argument("--connect", metavar="tcp://HOST:PORT", required=needed, help="work for the relay of another computer")
    role.add_argument(
        "--server-key", metavar="KEY", required=needed, help=f"{when}its public key, as `aet-stream keys show` prints it there"
    )
    role.add_argument("--key", type=Path, metavar="FILE", default=OWN_KEY, help=f"{when}the key of this computer")
    role.add_argument("--compress", action="store_true", help=f"{when}compress what is sent, both ways: for links below 100 Mbit/s")


def _takes(text: str) -> tuple[StepName, ...]:
    found = tuple(step for step, made in PRODUCTS.items() if made in text.split(","))
    if len(found) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: some of {','.join(PRODUCTS.values())} are needed")
    return found


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
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=Config) if arguments.supervised else settings(arguments)
    set_up_logging(arguments.name, verbose=arguments.verbose)
    if arguments.command == "worker" and arguments.connect:
        return serve(_worker_elsewhere(arguments, config), Stop())
    if not arguments.supervised:
        config_file.require_folders(config)
    return serve(_make_role(arguments.command, arguments.name, config), Stop())


def _worker_elsewhere(arguments: argparse.Namespace, config: Config) -> Role:
    """For the hub of another computer, whose relay says how to work; of our settings only those of [denoise] that say where count."""
    from aet_stream.elsewhere.curve import RelayLink
    from aet_stream.elsewhere.keys import load_key, public_key
    from aet_stream.worker import Worker

    if arguments.server_key is None:
        raise ConfigError("--connect needs --server-key: `aet-stream keys show` prints it there")
    key, server_key = load_key(arguments.key.expanduser()), public_key(arguments.server_key)
    link = lambda: RelayLink(arguments.connect, key, server_key, name=arguments.name, compress=arguments.compress)  # noqa: E731
    return Worker(config, name=arguments.name, elsewhere=link, compress=arguments.compress)


def _helper(arguments: argparse.Namespace) -> int:
    """Do heavy steps for the daemon of another computer: volumes, films, atoms. No shared disk is needed.

    It is let in like a worker (`aet-stream keys`). Of its settings those of devices, threads and memory count; all that results depend on
    is said there.
    """
    from aet_stream.elsewhere.curve import RelayLink
    from aet_stream.elsewhere.helper import Helper
    from aet_stream.elsewhere.keys import load_key, public_key

    set_up_logging(arguments.name, verbose=arguments.verbose)
    config, key, server_key = settings(arguments), load_key(arguments.key.expanduser()), public_key(arguments.server_key)
    link = lambda: RelayLink(arguments.connect, key, server_key, name=arguments.name)  # noqa: E731
    spool = (arguments.spool or SPOOL / arguments.name).expanduser().absolute()
    helper = Helper(config, name=arguments.name, takes=arguments.takes, spool=spool, elsewhere=link, compress=arguments.compress)
    return serve(helper, Stop())


def _make_role(kind: str, name: str, config: Config) -> Role:
    """Each role imports only what it needs."""
    if kind == "hub":
        from aet_stream.hub.hub import Hub

        return Hub(config)
    if kind == "watch":
        from aet_stream.watch.watch import Watch

        return Watch(config)
    if kind == "worker":
        from aet_stream.worker import Worker

        return Worker(config, name=name)
    if kind == "relay":
        from aet_stream.elsewhere.relay import Relay

        return Relay(config)
    if kind == "trigger":
        from aet_stream.trigger.trigger import Trigger

        return Trigger(config)
    from aet_stream.monitor import Monitor

    return Monitor(config)
