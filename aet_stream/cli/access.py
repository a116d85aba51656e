"""Who is let in: keys of this computer and of others."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from aet_stream.cli.common import Add, output_root, settings
from aet_stream.errors import ConfigError

if TYPE_CHECKING:
    from aet_stream.elsewhere.keys import KeyRing


def add_commands(add: Add) -> None:
    keys = add("keys", _keys, "let workers on other computers in")
    keys.add_argument("action", choices=("show", "new", "allow", "forbid"))
    keys.add_argument("words", nargs="*", metavar="WORD", help="what goes with it: new FILE, show [FILE], allow NAME KEY, forbid NAME")


def _keys(arguments: argparse.Namespace) -> int:
    """Make and show keys, and say whose workers are let in.

    On the other computer `keys new FILE` makes its key and prints the public part. Here `keys allow NAME KEY` lets it in under a name, at
    once; `keys forbid NAME` ends that; `keys show` prints the public key of this computer's relay, and who is let in. `keys show FILE`
    prints the public part of any key.
    """
    from aet_stream.elsewhere.keys import load_key, make_key

    match arguments.action, arguments.words:
        case "new", [file]:
            key = make_key(Path(file).expanduser())
            print(
                f"{file}: made, readable by you only. On the computer with the daemon:\n    aet-stream keys allow NAME {quote(key.public)}"
            )
        case "show", [file]:
            print(load_key(Path(file).expanduser()).public)
        case "show", []:
            ring = _ring(arguments)
            print(f"this relay's public key (--server-key): {ring.own().public}")
            print(
                "\n".join(f"let in: {name} {key}" for key, name in ring.allowed().items())
                or "nobody is let in yet: aet-stream keys allow NAME KEY"
            )
        case "allow", [name, key]:
            ring = _ring(arguments)
            ring.allow(name, key)
            print(f"{name} is let in. There:\n    aet-stream worker --connect {_way_in(arguments)} --server-key {quote(ring.own().public)}")
            print("`helper` in the place of `worker` makes volumes, films and atoms; --key FILE, where its key is not the usual file.")
        case "forbid", [name]:
            _ring(arguments).forbid(name)
            print(f"{name} is let in no more")
        case _:
            raise ConfigError("say: keys show [FILE], keys new FILE, keys allow NAME KEY, or keys forbid NAME")
    return 0


def _way_in(arguments: argparse.Namespace) -> str:
    """Where workers come in, as another computer says it; HOST where that is not in the settings."""
    host, _, port = settings(arguments).relay.listen.removeprefix("tcp://").rpartition(":")
    return quote(f"tcp://{'HOST' if host in ('', '*', '0.0.0.0', '[::]') else host}:{port or 'PORT'}")


def _ring(arguments: argparse.Namespace) -> KeyRing:
    from aet_stream.elsewhere.keys import KeyRing

    config = settings(arguments)
    if not config.relay.keys:
        output_root(arguments)
    return KeyRing(config)
