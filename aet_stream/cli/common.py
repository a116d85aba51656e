"""What every command needs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from aet_stream import config_file
from aet_stream.config import Config
from aet_stream.errors import ConfigError

Command = Callable[[argparse.Namespace], int]


class Add(Protocol):
    """Adds one command; `config` False: it has no settings."""

    def __call__(self, name: str, run: Command, text: str, *, config: bool = True) -> argparse.ArgumentParser: ...


def settings(arguments: argparse.Namespace) -> Config:
    """From --config and --set."""
    return config_file.load(arguments.config, arguments.set)


def output_root(arguments: argparse.Namespace) -> Path:
    """Where the daemon of these settings writes."""
    config = settings(arguments)
    if not config.output.root:
        raise ConfigError("output.root is not set: say --config FILE or --set output.root=FOLDER")
    return config.output_root


def whole(text: str) -> int:
    """A number of something, 0 or more."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is needed")
    return value


def whole_from(least: int, most: int) -> Callable[[str], int]:
    """A type for arguments: a whole number between two, both allowed."""

    def number(text: str) -> int:
        if not least <= (value := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text}: {least:,} to {most:,} is needed")
        return value

    return number


def number_from(least: float, most: float) -> Callable[[str], float]:
    """A type for arguments: a number between two, both allowed."""

    def number(text: str) -> float:
        if not least <= (value := float(text)) <= most:  # NaN is not
            raise argparse.ArgumentTypeError(f"{text}: {least:,} to {most:,} is needed")
        return value

    return number


def size(text: str) -> tuple[int, int]:
    """(width, height) in pixels: 512x400, or 512 for both."""
    width, _, height = text.lower().partition("x")
    try:
        found = int(width), int(height or width)
    except ValueError:
        found = (0, 0)
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a size in pixels like 512x400 is needed")
    return found


def series_name(text: str) -> str:
    """The name of one folder, not a way to another."""
    if text in ("", ".", "..") or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: a folder name without / is needed")
    return text


def new_file(text: str) -> Path:
    """A file to be written, in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: a file in a folder that exists and may be written to is needed")
    return path


def picture(text: str) -> Path:
    """The same, of a kind that can be drawn."""
    if not text.endswith((".png", ".pdf", ".svg")):
        raise argparse.ArgumentTypeError(f"{text}: a name ending in .png, .pdf or .svg is needed")
    return new_file(text)


_OF_FILES = (".h5", ".hdf5", ".safetensors", ".pt", ".json", ".mrc", ".tif", ".tiff", ".emd", ".npy")


def folder(text: str) -> Path:
    """A folder to write to, there already or to be made."""
    path = Path(text)
    there = next(level for level in (path, *path.absolute().parents) if os.access(level, os.F_OK))
    if there != path and path.suffix.lower() in _OF_FILES:
        raise argparse.ArgumentTypeError(f"{text}: the name of a file, and a folder is needed: say {path.with_suffix('')}")
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: {there} is not a folder that may be written to; choose another")
    return path


def share(text: str) -> float:
    """From 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share from 0 to 1 is needed")
    return value
