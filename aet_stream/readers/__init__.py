"""One file per format: how to see that a file is complete, how many images it holds, what it says about each, and how to read one.

Completeness is header arithmetic: a reader says how many bytes the header asks for, and whether they are there. Files are opened for
reading only, never locked, never changed. Everything here runs in a child process with limits (child.py).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from aet_stream.errors import ConfigError, SourceError, SourceGone, SourceNotReady
from aet_stream.projection import RAW_DTYPES, Acquisition, Array

T = TypeVar("T")

MAX_EDGE_PX = 8192
MAX_IMAGES = 20_000
MAX_FRAMES = 256

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
    ".dm5": "dm5",
    ".mat": "mat",
    ".ser": "ser",
    ".emd": "emd",
    ".h5": "h5",
    ".hdf5": "h5",
    ".nhdf": "h5",
    ".ndata": "nion",
}
SUFFIXES = frozenset(FORMATS)
PLUGINS = "aet_stream.readers"
"""Entry point group: an object with `SUFFIXES` and `open_source`, as the modules here have."""

_CONTENTS = (
    (b"II*\0", "TIFF", ".tif .tiff"), (b"MM\0*", "TIFF", ".tif .tiff"), (b"II+\0", "BigTIFF", ".tif .tiff"),
    (b"\x93NUMPY", "NumPy", ".npy"), (b"\x89HDF\r\n\x1a\n", "HDF5", ".emd .mat .h5 .hdf5 .nhdf .dm5"), (b"MATLAB", "MATLAB", ".mat"),
    (b"\0\0\0\3", "DM3", ".dm3 .dm4"), (b"\0\0\0\4", "DM4", ".dm3 .dm4"), (b"II\x97\1", "SER", ".ser"), (b"PK\3\4", "ZIP", ".ndata"),
    (b"\x89PNG", "PNG", ""), (b"\xff\xd8\xff", "JPEG", ""),
)  # fmt: skip
"""(first bytes, what begins so, how such files are called)."""


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds, known without decoding a pixel."""

    reader: str
    images: int
    """Whole images that are there: visits to a tilt."""
    shape: tuple[int, int]
    """(height, width) in pixels, of the largest image."""
    dtype: str
    frames: int = 1
    """Frames of one image that the file itself groups, at most."""
    announced: int = 0
    """Images that the header promises; more than `images` while the file grows."""
    partial: int = 0
    """Bytes of one image more, which is not whole."""
    container: bool = False
    """The instrument appends to such files: each image has a state of its own, and what is there may be taken before the rest comes."""
    bottom_up: bool = False
    """The file's last row is the first one of the image."""
    by_columns: bool = False
    """The file has the image column by column."""
    sealed: bool = False
    """What stands behind the pixels was checked (or they are compressed): a tail of zeros is real."""

    @property
    def promised(self) -> int:
        """Images that are there or will be: the name of a file says nothing about one of several, even while only one is there."""
        return max(self.images, self.announced)

    @property
    def nbytes_per_image(self) -> int:
        return self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize * self.frames


class Source(Protocol):
    """A file whose header has been understood. Holds no open file between calls."""

    @property
    def probe(self) -> Probe: ...

    def acquisition(self, image: int) -> Acquisition:
        """What the file says about one image; no pixels are read."""

    def frames(self, image: int) -> Array:
        """(frames, height, width) of one image, native dtype, little-endian; nearly always one frame."""


Opener = Callable[[Path, int], Source]
"""(path, size) -> Source. SourceNotReady: bytes that the header asks for are missing. SourceError: it can never be right."""

_openers: dict[str, Opener] = {}


def open_source(path: Path, max_bytes: int = 8 << 30) -> Source:
    """Understand a file's header.

    Raises
    ------
    SourceGone, SourceNotReady, SourceError
    """
    size = regular_size(path, max_bytes)
    suffix = path.suffix.lower()
    if suffix in _openers:
        return _openers[suffix](path, size)
    name = FORMATS.get(suffix)
    if name is None:
        known = ", ".join(sorted({*FORMATS, *_openers}))
        raise SourceError(f"{path.name}: no reader for {path.suffix or 'files without a suffix'}; known: {known}")
    opener: Opener = importlib.import_module(f"aet_stream.readers.{name}").open_source
    try:
        return opener(path, size)
    except SourceError as error:
        raise SourceError(f"{error}{_looks_like(path)}") from error


def load_plugins(names: Iterable[str]) -> frozenset[str]:
    """Enable readers of other packages by the name of their entry point; returns every suffix that is known then.

    Raises
    ------
    ConfigError : no such reader is installed
    """
    for name in names:
        if name == "rsciio":  # ours, but named like the others: nothing of it is imported unless it is asked for
            rsciio = importlib.import_module("aet_stream.readers.rsciio")
            _openers.update(dict.fromkeys(rsciio.SUFFIXES, rsciio.open_source))
            continue
        found = list(importlib.metadata.entry_points(group=PLUGINS, name=name))
        if not found:
            known = ", ".join(["rsciio", *sorted(entry.name for entry in importlib.metadata.entry_points(group=PLUGINS))])
            raise ConfigError(f"readers.enabled names {name!r}, but no such reader is installed (installed: {known})")
        plugin = found[0].load()
        _openers.update(dict.fromkeys((suffix.lower() for suffix in plugin.SUFFIXES), plugin.open_source))
    return SUFFIXES | _openers.keys()


def _looks_like(path: Path) -> str:
    """What the first bytes say a refused file is, when that is something else than its name."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, kind, suffixes in _CONTENTS:
        if head.startswith(magic):
            return "" if path.suffix.lower() in suffixes.split() else f" (its content looks like {kind})"
    return ""


def stat_stamp(entry: os.stat_result) -> str:
    """State of a file on disk."""
    return f"{entry.st_size}.{entry.st_mtime_ns}.{entry.st_ino}"


def path_stamp(path: Path) -> str:
    """The same of what lies at a path; empty: nothing."""
    try:
        return stat_stamp(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return ""


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
        raise SourceError(f"{path.name}: a link, pipe or device, not a regular file: copy the file here, or link it hard")
    if entry.st_size > max_bytes:
        raise SourceError(f"{path.name}: {entry.st_size} bytes; watch.max_file_mib allows {max_bytes >> 20} MiB")
    if entry.st_size == 0:
        raise SourceNotReady(f"{path.name}: still empty")
    return entry.st_size


def need(path: Path, have: int, wanted: int, what: str) -> None:
    """The completeness rule: `wanted` bytes have to be there."""
    if have < wanted:
        raise SourceNotReady(f"{path.name}: {what} needs {wanted} bytes, {have} are there")


def checked_probe(path: Path, reader: str, images: int, height: int, width: int, dtype: str, **more: int | bool) -> Probe:
    """A probe within what we can carry."""
    if not (1 <= images <= MAX_IMAGES and 1 <= height <= MAX_EDGE_PX and 1 <= width <= MAX_EDGE_PX):
        raise SourceError(f"{path.name}: {images} image(s) of {height} x {width} px; at most {MAX_IMAGES} of {MAX_EDGE_PX} x {MAX_EDGE_PX}")
    if min(height, width) == 1:
        raise SourceError(f"{path.name}: {height} x {width} px is a line or a spectrum, not a projection")
    if not 1 <= more.get("frames", 1) <= MAX_FRAMES:
        raise SourceError(f"{path.name}: {more['frames']} frames per image; at most {MAX_FRAMES}")
    return Probe(reader, images, (height, width), little(path, np.dtype(dtype)).str, **more)  # type: ignore[arg-type]


def little(path: Path, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The same type, little-endian; half floats become single ones, integers of 64 bits those of 32, which hold every count.

    Raises
    ------
    SourceError : complex, RGB, text and the like are no projections
    """
    dtype = np.dtype({("f", 2): "<f4", ("i", 8): "<i4", ("u", 8): "<u4"}.get((dtype.kind, dtype.itemsize), dtype.newbyteorder("<")))
    if dtype.str not in RAW_DTYPES:
        raise SourceError(f"{path.name}: pixels of type {dtype} are no projection")
    return dtype


def finished(path: Path, pixels: Array) -> Array:
    """(frames, height, width) ready to travel: C order, little-endian, all finite. A single (height, width) is one frame."""
    dtype = little(path, pixels.dtype)
    if pixels.dtype.itemsize == 8 > dtype.itemsize and pixels.size:
        least, most, held = int(pixels.min()), int(pixels.max()), np.iinfo(dtype.name)
        if least < held.min or most > held.max:
            raise SourceError(f"{path.name}: pixels from {least} to {most}, more than {held.bits} bits hold: save them as float64")
    pixels = np.ascontiguousarray(pixels, dtype=dtype)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3:
        raise SourceError(f"{path.name}: an image with {pixels.ndim} dimensions")
    if pixels.dtype.kind == "f":
        bad = int(pixels.size - np.isfinite(pixels).sum())
        if bad:
            raise SourceError(f"{path.name}: {bad} of {pixels.size} pixels are not finite")
    return pixels


def image_in_range(path: Path, image: int, images: int) -> None:
    if not 0 <= image < images:
        raise SourceError(f"{path.name}: image {image} asked for, there are {images}")


_UNIT_NM = {
    "m": 1e9, "mm": 1e6, "µm": 1e3, "μm": 1e3, "um": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "nm": 1.0, "n_m": 1.0,
    "nanometer": 1.0, "å": 0.1, "a": 0.1, "pm": 1e-3, "p_m": 1e-3, "u_m": 1e3,
}  # fmt: skip


_SIZES_NM = (1e-4, 1e6)
"""Pixels of electron microscopes lie between a tenth of a picometre and a millimetre; metres are no pixel size."""


def is_length(unit: str) -> bool:
    return unit.strip().lower().replace("angstrom", "a") in _UNIT_NM


def pixel_size_nm(along_y: tuple[float, str], along_x: tuple[float, str]) -> float | None:
    """Pixel size from two (value, unit) calibrations; None unless both are lengths as microscopes have them, and agree within 1 %."""
    sizes = []
    for value, unit in (along_y, along_x):
        factor = _UNIT_NM.get(unit.strip().lower().replace("angstrom", "a"))
        if factor is None or not _SIZES_NM[0] < value * factor < _SIZES_NM[1]:
            return None
        sizes.append(value * factor)
    return sizes[1] if abs(sizes[0] - sizes[1]) <= 0.01 * sizes[1] else None


_RECIPROCAL = re.compile(r"1?\s*/\s*\w|\w.*(-\s*1[)}]?|⁻¹)$")
_ANGLE = re.compile(r"[mµμu]?_?rad(ians?)?$", re.IGNORECASE)
_ENERGY = re.compile(r"[mk]?_?e_?v$", re.IGNORECASE)


def no_space(*units: str, others: Iterable[str] = ()) -> str:
    """Why an image whose own axes have these units is no projection of the specimen, in words; empty where they do not say so.

    Parameters
    ----------
    others : units of further axes: a tilt may be in radians, a spectrum is none of projections
    """
    own, other = ([unit.strip(" \0[]") for unit in these] for these in (units, others))
    for unit in own:
        if _RECIPROCAL.match(unit) or _ANGLE.match(unit):
            return f"a diffraction pattern: an axis of its image is in {unit}"
    energy = next((unit for unit in own + other if _ENERGY.match(unit)), "")
    return f"a spectrum: an axis is in {energy}" if energy else ""


def understood(remarks: list[str], what: str, ask: Callable[[], T], otherwise: T) -> T:
    """What `ask` finds beside the pixels. What cannot be understood there costs no pixel: it is not known, and `remarks` say so.

    Raises
    ------
    SourceNotReady, SourceGone : it is not written yet, or gone
    """
    try:
        return ask()
    except (SourceNotReady, SourceGone, MemoryError):
        raise
    except Exception as error:  # whatever format libraries raise over what somebody else wrote
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        remarks.append(f"{what} cannot be understood, and not known: {str(error)[:160] or type(error).__name__}")
        return otherwise


def utc(unix_s: float) -> str:
    """Unix seconds as ISO 8601 in UTC; empty for what is no time of an electron microscope (before 1980, after 2100)."""
    import datetime

    if not 315_532_800 < unix_s < 4_102_444_800:
        return ""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat()
