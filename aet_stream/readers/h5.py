"""`.h5` and the like: HDF5 files of several programs, told apart by what they hold. Of an unknown layout nothing is guessed.

Adding a layout: a module with `fits(path, file)` and `open_hdf5(path, file)`, and its name here.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from aet_stream.errors import SourceError
from aet_stream.readers import Source
from aet_stream.readers.hdf5 import opened

LAYOUTS = ("data_exchange", "nion", "dm5", "emd")
_SHOWN = 6
_MAX_OBJECTS = 2000


def open_source(path: Path, size: int) -> Source:
    with opened(path) as file:
        for name in LAYOUTS:
            layout = importlib.import_module(f"aet_stream.readers.{name}")
            if layout.fits(path, file):
                source: Source = layout.open_hdf5(path, file)
                return source
        known = "Data Exchange (/exchange/data), Nion Swift (/data with properties), DM5, EMD"
        raise SourceError(f"{path.name}: an HDF5 file of an unknown layout; known are {known}. It holds {_seen(file)}")


def _seen(file: Any) -> str:
    """The first datasets of a file, in words; bounded, because a damaged file may contain itself."""
    import h5py

    found: list[str] = []
    left = [_MAX_OBJECTS]

    def note(name: str, item: Any) -> bool | None:
        left[0] -= 1
        if isinstance(item, h5py.Dataset):
            found.append(f"/{name} ({' x '.join(map(str, item.shape or ())) or 'one'} {item.dtype})")
        return True if len(found) > _SHOWN or left[0] < 0 else None

    file.visititems(note)
    return ", ".join(found[:_SHOWN]) + (" and more" if len(found) > _SHOWN else "") or "no data"
