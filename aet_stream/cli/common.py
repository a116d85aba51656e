"""What every command needs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from aet_stream import config as configuration
from aet_stream.config import Config
from aet_stream.errors import AetError, ConfigError

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


def troubles(config: Config) -> Iterator[str]:
    """What would fail only when the first series ends, one line each."""
    if config.webhook.secret_file:
        from aet_stream.trigger import webhook

        try:
            webhook.secret_of(config.webhook.secret_file)
        except ConfigError as error:
            yield str(error)
    if config.command.argv and shutil.which(config.command.argv[0]) is None:
        yield f"command.argv: there is no program {config.command.argv[0]!r} that may be run; say its whole path"
    wanted = config.reconstruct
    if wanted.on_close and (wanted.method != "auto" or wanted.device != "cpu"):
        from aet_stream.reconstruct import run

        try:
            run.check_method(wanted.method, wanted.device)
        except AetError as error:
            yield f"reconstruct.method, reconstruct.device: {error}"


def whole(text: str) -> int:
    """A number of something, 0 or more."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is needed")
    return value


def share(text: str) -> float:
    """From 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share from 0 to 1 is needed")
    return value
