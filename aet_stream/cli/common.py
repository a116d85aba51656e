"""What every command needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from aet_stream import config as configuration
from aet_stream.config import Config
from aet_stream.errors import ConfigError

Command = Callable[[argparse.Namespace], int]


class Add(Protocol):
    """Adds one command; `config` False: it has no settings."""

    def __call__(self, name: str, run: Command, text: str, *, config: bool = True) -> argparse.ArgumentParser: ...


def settings(arguments: argparse.Namespace) -> Config:
    """From --config and --set."""
    return configuration.load(arguments.config, arguments.set)


def output_root(arguments: argparse.Namespace) -> Path:
    """Where the daemon of these settings writes."""
    config = settings(arguments)
    if not config.output.root:
        raise ConfigError("output.root is not set: say --config FILE or --set output.root=FOLDER")
    return config.output_root
