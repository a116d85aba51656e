"""`film.h5`: the films of a series as they have been seen so far, and what they change about each projection. Beside the series, replaced
whole; what stands in it stands in the edition as well (below `/maker`), once there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aet_stream import __version__, durable, hdf5
from aet_stream.layout import LIBVER
from aet_stream.projection import Array

VERSION = 1

Told = dict[str, tuple[Array, str]]
"""Name -> (values, what they are)"""


def write(path: Path, told: Told, facts: Mapping[str, Any]) -> None:
    """Replace the file.

    Raises
    ------
    OutputFull : the disk does not take it
    """
    with durable.replacing(path, "film") as draft, hdf5.writing(draft, libver=LIBVER) as file:
        for name, (values, meaning) in told.items():
            file.create_dataset(name, data=values).attrs["meaning"] = meaning
        file.attrs.update({**facts, "version": VERSION, "software": f"aet_stream {__version__}"})


def read(path: Path, *names: str) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """(values by name, facts): of all names, or of these; None where there is none that can be read, or of another version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if int(file.attrs["version"]) != VERSION:
                return None
            wanted = names or tuple(_datasets(file))
            facts = {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}
            return {name: file[name][()] for name in wanted}, facts
    except (OSError, KeyError, RuntimeError, ValueError):
        return None


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found
