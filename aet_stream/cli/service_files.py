"""aet-stream as a service of systemd."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from aet_stream import installing
from aet_stream.cli.common import Add, settings


def add_commands(add: Add) -> None:
    put = add("install-service", _install, "make it a service of systemd")
    put.add_argument("--units", choices=("all-in-one", "roles", "elsewhere"), default="all-in-one", help="which (docs/operations.md)")
    put.add_argument("--instance", type=_instance, metavar="NAME", help="one of several microscopes on this computer")
    take = add("uninstall-service", _uninstall, "take the units away again; settings and series stay", config=False)
    for each in (put, take):
        each.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        each.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="into another root, to look at or for an image")


def _instance(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,32}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits and _ are needed")
    return text


def _install(arguments: argparse.Namespace) -> int:
    """Make the user, the settings, the output folder and the units, saying each thing; what is there of yours stays as it is.

    The settings are those of --config and --set, written to /etc/aet-stream unless there are some.
    """
    place = installing.Place(arguments.root.absolute())
    steps = installing.install(settings(arguments), arguments.units, arguments.instance or "", place)
    return _carry_out(steps, arguments)


def _uninstall(arguments: argparse.Namespace) -> int:
    """Stop and remove the units of aet-stream. Settings, series and the user stay."""
    return _carry_out(installing.uninstall(installing.Place(arguments.root.absolute())), arguments)


def _carry_out(steps: Iterator[installing.Step], arguments: argparse.Namespace) -> int:
    installing.carry_out(steps, print, dry_run=arguments.dry_run)
    if arguments.dry_run:
        print("a dry run: nothing has been done; without --dry-run it will be", file=sys.stderr)
    return 0
