"""MRC2014 images and stacks. Header arithmetic ourselves, pixels through a memory map, the FEI extended header by mrcfile.

Format: Cheng et al., J. Struct. Biol. 192 (2015) 146. Modes: 0 int8, 1 int16, 2 float32, 6 uint16, 12 float16.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Projection
from aet_stream.readers import Probe, checked_probe, finished, image_in_range, need, pixel_size_nm

_HEADER_BYTES = 1024
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


class _Header(NamedTuple):
    order: str
    width: int
    height: int
    images: int
    mode: int
    extended_bytes: int
    extended_type: bytes
    cell_angstrom: tuple[float, float]
    sampling: tuple[int, int]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(f"{self.order}{_MODES[self.mode]}")

    @property
    def offset(self) -> int:
        return _HEADER_BYTES + self.extended_bytes


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        raw = file.read(_HEADER_BYTES)
    need(path, len(raw), _HEADER_BYTES, "the header")
    order = ">" if raw[212:214] == b"\x11\x11" else "<"
    width, height, images, mode = struct.unpack(f"{order}4i", raw[:16])
    sampling = struct.unpack(f"{order}2i", raw[28:36])
    cell = struct.unpack(f"{order}2f", raw[40:48])
    extended = struct.unpack(f"{order}i", raw[92:96])[0]
    if mode not in _MODES:
        raise SourceError(f"{path.name}: MRC mode {mode} is not supported (known: {sorted(_MODES)})")
    if not 0 <= extended <= 1 << 28 or min(width, height) <= 0:
        raise SourceError(f"{path.name}: no MRC header ({width} x {height} px, extended header of {extended} bytes)")
    return _Header(order, width, height, images, mode, extended, raw[104:108], cell, sampling)


def probe(path: Path, size: int) -> Probe:
    header = _header(path)
    found = checked_probe(path, "mrc", header.images, header.height, header.width, header.dtype.str)
    pixels = header.width * header.height * header.images * header.dtype.itemsize
    need(path, size, header.offset + pixels, f"{header.images} image(s) of {header.height} x {header.width} px")
    return found


def read(path: Path, image: int) -> Projection:
    header = _header(path)
    image_in_range(path, image, header.images)
    shape = (header.images, header.height, header.width)
    pixels = np.memmap(path, dtype=header.dtype, mode="r", offset=header.offset, shape=shape)[image]
    return Projection(finished(path, np.array(pixels)), _acquisition(path, header, image))


def _acquisition(path: Path, header: _Header, image: int) -> Acquisition:
    sizes = [c / n if n > 0 else 0.0 for c, n in zip(header.cell_angstrom, header.sampling, strict=True)]
    size_nm = pixel_size_nm((sizes[1], "A"), (sizes[0], "A"))
    if size_nm == 0.1:  # exactly 1 angstrom in both directions is what programs write that know of none
        size_nm = None
    if header.extended_type not in (b"FEI1", b"FEI2"):
        return Acquisition(pixel_size_nm=size_nm, reader="mrc")
    record = _fei_record(path, image)
    tilt = None if record is None else float(record["Alpha tilt"])
    return Acquisition(
        tilt_deg=tilt,
        tilt_raw="" if tilt is None else f"Alpha tilt {tilt!r} deg",
        pixel_size_nm=size_nm
        if record is None
        else pixel_size_nm((float(record["Pixel size Y"]), "m"), (float(record["Pixel size X"]), "m")),
        dwell_time_s=None if record is None else float(record["Dwell time"]),
        microscope="" if record is None else record["Microscope type"].decode("ascii", "replace").strip("\0 "),
        reader="mrc",
    )


def _fei_record(path: Path, image: int) -> np.void | None:
    """The FEI1/FEI2 record of one section."""
    import mrcfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.mmap(path, mode="r", permissive=True) as file:
            records = file.indexed_extended_header
            return records[image].copy() if records is not None and image < len(records) else None
