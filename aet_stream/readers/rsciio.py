"""The door to RosettaSciIO (GPL-3.0, installed by whoever wants it, off unless `readers.enabled` names it): a few more formats of electron
microscopy. It knows nothing of completeness: such files are taken when they have stood still.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, no_space, pixel_size_nm

#: Suffix -> module of RosettaSciIO. A list of our own: its automatic choice would try forty readers on any file.
MODULES = {
    ".mib": "quantumdetector",
    ".tvips": "tvips",
    ".prz": "pantarhei",
    ".hspy": "hspy",
    ".nxs": "nexus",
    ".sur": "digitalsurf",
}
SUFFIXES = frozenset(MODULES)


class Rsciio:
    """The first signal whose last two axes are an image; all axes before count images."""

    def __init__(self, path: Path, size: int) -> None:
        try:
            module = importlib.import_module(f"rsciio.{MODULES[path.suffix.lower()]}")
        except ImportError as error:
            raise SourceError(f"{path.name}: readers.enabled names rsciio, but it cannot be imported: {error}") from error
        signals: list[dict[str, Any]] = module.file_reader(str(path))
        fitting = [signal for signal in signals if np.ndim(signal["data"]) >= 2]
        if not fitting:
            raise SourceError(f"{path.name}: holds no image")
        self._path = path
        self._axes = fitting[0]["axes"]
        pixels = np.asarray(fitting[0]["data"])
        self._images = pixels.reshape(-1, *pixels.shape[-2:])
        count, height, width = self._images.shape
        self.probe = checked_probe(path, "rsciio", count, height, width, pixels.dtype.str)

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        return finished(self._path, self._images[image])

    def acquisition(self, image: int) -> Acquisition:
        steps = [(float(axis.get("scale", 0)), str(axis.get("units") or "")) for axis in self._axes]
        size = pixel_size_nm(*steps[-2:]) if len(steps) > 1 else None
        others = [unit for _, unit in steps[:-2]]
        return Acquisition(pixel_size_nm=size, no_projection=no_space(*(unit for _, unit in steps[-2:]), others=others), reader="rsciio")


open_source = Rsciio
