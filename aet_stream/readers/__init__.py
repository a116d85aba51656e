"""One file per format: how to see that a file is complete, how many images it holds, and how to read one.

Completeness is header arithmetic: a reader says how many bytes the header asks for, and whether they are there. Files are opened for
reading only, never locked, never changed. Everything here runs in a child process with limits (child.py).
"""

from __future__ import annotations

import importlib
import os
import stat
from pathlib import Path
from typing import Protocol, cast

import msgspec
import numpy as np

from aet_stream.errors import SourceError, SourceGone, SourceNotReady
from aet_stream.projection import RAW_DTYPES, Array, Projection

MAX_EDGE_PX = 8192
MAX_IMAGES = 20_000

#: Suffix -> module in this room. The content decides whether the suffix tells the truth.
FORMATS = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".npy": "npy",
    ".mrc": "mrc",
    ".mrcs": "mrc",
    ".st": "mrc",
    ".map": "mrc",
    ".rec": "mrc",
    ".ali": "mrc",
    ".dm3": "dm",
    ".dm4": "dm",
    ".mat": "mat",
}
SUFFIXES = frozenset(FORMATS)


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a complete file holds, known without decoding a pixel."""

    reader: str
    images: int
    shape: tuple[int, int]
    """(height, width) in pixels."""
    dtype: str

    @property
    def nbytes_per_image(self) -> int:
        return self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize


class Format(Protocol):
    """What a module of this room offers."""

    def probe(self, path: Path, size: int) -> Probe:
        """What a file of `size` bytes holds.

        Raises
        ------
        SourceNotReady : bytes that the header asks for are missing
        SourceError : it can never be right
        """

    def read(self, path: Path, image: int) -> Projection:
        """One image, native dtype, little-endian."""


def format_of(path: Path) -> Format:
    """The module that reads such files.

    Raises
    ------
    SourceError : no reader for this suffix
    """
    name = FORMATS.get(path.suffix.lower())
    if name is None:
        raise SourceError(f"{path.name}: no reader for {path.suffix or 'files without a suffix'}; known: {', '.join(sorted(FORMATS))}")
    return cast(Format, importlib.import_module(f"aet_stream.readers.{name}"))


def regular_size(path: Path, max_bytes: int) -> int:
    """Size of a regular file; links, devices and pipes are refused.

    Raises
    ------
    SourceGone, SourceError, SourceNotReady
    """
    try:
        entry = os.lstat(path)
    except FileNotFoundError as error:
        raise SourceGone(f"{path.name} is gone") from error
    if not stat.S_ISREG(entry.st_mode):
        raise SourceError(f"{path.name}: not a regular file")
    if entry.st_size > max_bytes:
        raise SourceError(f"{path.name}: {entry.st_size} bytes; watch.max_file_mib allows {max_bytes >> 20} MiB")
    if entry.st_size == 0:
        raise SourceNotReady(f"{path.name}: still empty")
    return entry.st_size


def need(path: Path, have: int, wanted: int, what: str) -> None:
    """The completeness rule: `wanted` bytes have to be there."""
    if have < wanted:
        raise SourceNotReady(f"{path.name}: {what} needs {wanted} bytes, {have} are there")


def checked_probe(path: Path, reader: str, images: int, height: int, width: int, dtype: str) -> Probe:
    """A probe within what we can carry."""
    if not (1 <= images <= MAX_IMAGES and 1 <= height <= MAX_EDGE_PX and 1 <= width <= MAX_EDGE_PX):
        raise SourceError(f"{path.name}: {images} image(s) of {height} x {width} px; at most {MAX_IMAGES} of {MAX_EDGE_PX} x {MAX_EDGE_PX}")
    return Probe(reader, images, (height, width), little(path, np.dtype(dtype)).str)


def little(path: Path, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The same type, little-endian; half floats become single ones.

    Raises
    ------
    SourceError : complex, RGB, text and the like are no projections
    """
    dtype = np.dtype("<f4") if dtype == np.float16 else dtype.newbyteorder("<")
    if dtype.str not in RAW_DTYPES:
        raise SourceError(f"{path.name}: pixels of type {dtype} are no projection")
    return dtype


def finished(path: Path, pixels: Array) -> Array:
    """Pixels ready to travel: 2-D, C order, little-endian, all finite."""
    pixels = np.ascontiguousarray(pixels, dtype=little(path, pixels.dtype))
    if pixels.ndim != 2:
        raise SourceError(f"{path.name}: an image with {pixels.ndim} dimensions")
    if pixels.dtype.kind == "f":
        bad = int(pixels.size - np.isfinite(pixels).sum())
        if bad:
            raise SourceError(f"{path.name}: {bad} of {pixels.size} pixels are not finite")
    return pixels


def image_in_range(path: Path, image: int, images: int) -> None:
    if not 0 <= image < images:
        raise SourceError(f"{path.name}: image {image} asked for, there are {images}")


_UNIT_NM = {"m": 1e9, "mm": 1e6, "µm": 1e3, "μm": 1e3, "um": 1e3, "micron": 1e3, "nm": 1.0, "n_m": 1.0, "å": 0.1, "a": 0.1, "pm": 1e-3}


def pixel_size_nm(along_y: tuple[float, str], along_x: tuple[float, str]) -> float | None:
    """Pixel size from two (value, unit) calibrations; None unless both are real lengths that agree within 1 %."""
    sizes = []
    for value, unit in (along_y, along_x):
        factor = _UNIT_NM.get(unit.strip().lower().replace("angstrom", "a"))
        if factor is None or not np.isfinite(value) or value <= 0:
            return None
        sizes.append(value * factor)
    return sizes[1] if abs(sizes[0] - sizes[1]) <= 0.01 * sizes[1] else None
