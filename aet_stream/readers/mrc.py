"""MRC2014 images and stacks, growing ones too. Header arithmetic ourselves, pixels through a memory map.

Format: Cheng et al., J. Struct. Biol. 192 (2015) 146. Modes: 0 int8, 1 int16, 2 float32, 6 uint16, 12 float16. What stands between header
and pixels says the tilt of each section: FEI1/FEI2 (by mrcfile), the 128-byte records of Xplore3D and FEI Tomography before 2014, and
SerialEM's 16-bit numbers, called SERI since 2014 (tilt in hundredths of a degree; IMOD's mrc_format.txt). The last two are read from their
published descriptions only.
"""

from __future__ import annotations

import datetime
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import checked_probe, finished, image_in_range, need, pixel_size_nm

_HEADER_BYTES = 1024
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_AXES = (1, 2, 3)
"""MAPC, MAPR, MAPS: columns along x, rows along y, sections along z."""
_LEGACY_BYTES, _LEGACY_RECORDS = 128, 1024
_LEGACY_NUMBERS = (0, 32)
"""Whole and real numbers of a record of 128 bytes, where the header says so; the number of records is a multiple of 1024."""
_SERI_BYTES = {1: 2, 2: 6, 4: 4, 8: 2, 16: 2, 32: 4, 64: 2, 128: 4, 256: 2, 512: 4, 1024: 2}
"""Bits of SerialEM's mask: tilt, place in a montage, stage, magnification, intensity, dose, reserved ones; and how many bytes each has."""
_TEM, _DIFFRACTION = 1, 1
"""Instrument and projection mode of an FEI1/FEI2 record; scanned images (2) are always taken in diffraction."""
_IMOD_STAMP, _IMOD_SIGNED_BYTES = 1146047817, 1
_ALPHA_KNOWN, _BETA_KNOWN = 1 << 7, 1 << 8
"""Bits of the first mask of an FEI1/FEI2 record."""
_OLE_EPOCH = datetime.datetime(1899, 12, 30, tzinfo=datetime.UTC)


class _Header(NamedTuple):
    order: str
    width: int
    height: int
    images: int
    mode: int
    extended_bytes: int
    extended_type: bytes
    numbers: tuple[int, int]
    """Two counts that describe SERI records: bytes per section, and a bit mask of what is in them."""
    cell_angstrom: tuple[float, float]
    sampling: tuple[int, int]
    unsigned_bytes: bool
    """IMOD has written mode 0 without a sign, and says so."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype("u1" if self.mode == 0 and self.unsigned_bytes else f"{self.order}{_MODES[self.mode]}")

    @property
    def offset(self) -> int:
        return _HEADER_BYTES + self.extended_bytes

    @property
    def image_bytes(self) -> int:
        return self.width * self.height * self.dtype.itemsize


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        raw = file.read(_HEADER_BYTES)
    need(path, len(raw), _HEADER_BYTES, "the header")
    order = ">" if raw[212:214] == b"\x11\x11" else "<"
    width, height, images, mode = struct.unpack(f"{order}4i", raw[:16])
    sampling = struct.unpack(f"{order}2i", raw[28:36])
    axes = struct.unpack(f"{order}3i", raw[64:76])
    cell = struct.unpack(f"{order}2f", raw[40:48])
    extended = struct.unpack(f"{order}i", raw[92:96])[0]
    numbers = struct.unpack(f"{order}2h", raw[128:132])
    stamp, flags = struct.unpack(f"{order}2i", raw[152:160])
    unsigned = stamp == _IMOD_STAMP and not flags & _IMOD_SIGNED_BYTES
    if mode not in _MODES:
        raise SourceError(f"{path.name}: MRC mode {mode} is not supported (known: {sorted(_MODES)})")
    if not 0 <= extended <= 1 << 28 or min(width, height) <= 0:
        raise SourceError(f"{path.name}: no MRC header ({width} x {height} px, extended header of {extended} bytes)")
    if axes != _AXES and sorted(axes) == sorted(_AXES):  # anything else is a header that was never filled in
        raise SourceError(f"{path.name}: MRC axes in the order {axes} (MAPC, MAPR, MAPS): write it with columns, rows, sections as 1, 2, 3")
    return _Header(order, width, height, images, mode, extended, raw[104:108], numbers, cell, sampling, unsigned)


class Mrc:
    """An image or a stack. A stack may be shorter than its header says, while it grows: whole images are taken."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._head = head = _header(path)
        announced = head.images
        checked_probe(path, "mrc", announced, head.height, head.width, head.dtype.str)
        need(path, size, head.offset + head.image_bytes, f"one image of {head.height} x {head.width} px")
        ready = min(announced, (size - head.offset) // head.image_bytes)
        partial = (size - head.offset) % head.image_bytes if ready < announced else 0
        self.probe = checked_probe(
            path, "mrc", ready, head.height, head.width, head.dtype.str, announced=announced, partial=partial, container=True
        )
        self._records: Any = None

    def frames(self, image: int) -> Array:
        return finished(self._path, np.array(self._map(image)))

    def _map(self, image: int) -> Array:
        image_in_range(self._path, image, self.probe.images)
        head = self._head
        offset = head.offset + image * head.image_bytes
        return np.memmap(self._path, dtype=head.dtype, mode="r", offset=offset, shape=(head.height, head.width))

    def mark(self, image: int) -> str:
        """State of one image of a stack: a checksum over some 64 of its rows, the last one among them."""
        rows = np.array(self._map(image)[:: -max(1, self._head.height // 64)])
        return f"{zlib.crc32(rows.data):08x}"

    def acquisition(self, image: int) -> Acquisition:
        head = self._head
        sizes = [c / n if n > 0 else 0.0 for c, n in zip(head.cell_angstrom, head.sampling, strict=True)]
        size_nm = pixel_size_nm((sizes[1], "A"), (sizes[0], "A"))
        if size_nm == 0.1:  # exactly 1 angstrom in both directions is what programs write that know of none
            size_nm = None
        if head.extended_type in (b"FEI1", b"FEI2"):
            return self._fei(image, size_nm)
        untyped = head.extended_type.strip(b"\0 ") == b""
        if head.extended_type == b"SERI" or (untyped and _are_seri(*head.numbers)):
            return self._seri(image, size_nm)
        records, rest = divmod(head.extended_bytes, _LEGACY_BYTES)
        if untyped and not rest and records and (records % _LEGACY_RECORDS == 0 or head.numbers == _LEGACY_NUMBERS):
            return self._legacy(image, size_nm)
        return Acquisition(pixel_size_nm=size_nm, reader="mrc")

    def _extended(self, offset: int, count: int) -> bytes:
        """Bytes of the extended header; fewer when it is shorter."""
        count = min(count, self._head.extended_bytes - offset)
        if count <= 0:
            return b""
        with self._path.open("rb") as file:
            file.seek(_HEADER_BYTES + offset)
            return file.read(count)

    def _seri(self, image: int, size_nm: float | None) -> Acquisition:
        """SerialEM: the tilt is the first 16-bit number of a section's record, in 1/100 degree, if bit 0 of the mask says so."""
        each, mask = self._head.numbers
        raw = self._extended(image * each, each) if each >= 2 and mask & 1 else b""
        if len(raw) < 2 or (each > 2 and not any(raw)):  # an empty record says nothing
            return Acquisition(pixel_size_nm=size_nm, reader="mrc")
        hundredths = struct.unpack(f"{self._head.order}h", raw[:2])[0]
        return Acquisition(tilt_deg=hundredths / 100, tilt_raw=f"SERI tilt {hundredths} (1/100 deg)", pixel_size_nm=size_nm, reader="mrc")

    def _legacy(self, image: int, size_nm: float | None) -> Acquisition:
        """Xplore3D and FEI Tomography: records of 32 floats; alpha, beta (degrees), ..., exposure (s) at 32, pixel size (m) at 44."""
        raw = self._extended(image * _LEGACY_BYTES, _LEGACY_BYTES)
        if len(raw) < _LEGACY_BYTES:
            return Acquisition(pixel_size_nm=size_nm, reader="mrc")
        values = struct.unpack(f"{self._head.order}32f", raw)
        alpha, beta, exposure_s, pixel_m = values[0], values[1], values[8], values[11]
        angles = all(math.isfinite(angle) and (angle == 0 or 1e-6 < abs(angle) <= 360) for angle in (alpha, beta))
        if not angles or not any(values[:12]) or not (pixel_m == 0 or 1e-13 < pixel_m < 1e-3):
            return Acquisition(pixel_size_nm=size_nm, reader="mrc")  # empty, or no such record: other programs reserve as much
        return Acquisition(
            tilt_deg=alpha,
            tilt_raw=f"a_tilt {alpha!r} deg",
            tilt_beta_deg=beta,
            pixel_size_nm=pixel_size_nm((pixel_m, "m"), (pixel_m, "m")) or size_nm,
            frame_time_s=exposure_s if 0 < exposure_s < 1e6 else None,
            reader="mrc",
        )

    def _fei(self, image: int, size_nm: float | None) -> Acquisition:
        record = self._fei_record(image)
        if record is None or not any(record.tobytes()):  # an empty record says nothing
            return Acquisition(pixel_size_nm=size_nm, reader="mrc")
        known = int(record["Bitmask 1"]) or _ALPHA_KNOWN | _BETA_KNOWN  # a writer that sets no bit has left the mask out
        tilt = float(record["Alpha tilt"]) if known & _ALPHA_KNOWN else None
        names = record.dtype.names or ()
        modes = (int(record["Instrument mode"]), int(record["Projection mode"]))
        return Acquisition(
            tilt_deg=tilt,
            tilt_raw="" if tilt is None else f"Alpha tilt {tilt!r} deg",
            tilt_beta_deg=float(record["Beta tilt"]) if known & _BETA_KNOWN else None,
            pixel_size_nm=pixel_size_nm((float(record["Pixel size Y"]), "m"), (float(record["Pixel size X"]), "m")) or size_nm,
            acquired_utc=_from_ole(float(record["Timestamp"])),
            dwell_time_s=float(record["Dwell time"]) or None,
            frame_time_s=float(record["Frame time"]) or None if "Frame time" in names else None,
            detector=_text(record, "STEM Detector name") or _text(record, "Camera name"),
            no_projection="a diffraction pattern: the projection mode is 1, not scanned" if modes == (_TEM, _DIFFRACTION) else "",
            microscope=_text(record, "Microscope type"),
            reader="mrc",
        )

    def _fei_record(self, image: int) -> Any:
        """The FEI1/FEI2 record of one section."""
        import mrcfile

        if self._records is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with mrcfile.mmap(self._path, mode="r", permissive=True) as file:
                    records = file.indexed_extended_header
                    self._records = () if records is None else np.array(records)
        return self._records[image] if image < len(self._records) else None


def _are_seri(each: int, mask: int) -> bool:
    """Do the two numbers of a header without a type describe SerialEM's records? Its bytes are then those that the mask asks for."""
    return mask > 0 and not mask & ~sum(_SERI_BYTES) and each == sum(count for bit, count in _SERI_BYTES.items() if mask & bit)


def _text(record: Any, name: str) -> str:
    names = record.dtype.names or ()
    return record[name].decode("ascii", "replace").strip("\0 ") if name in names else ""


def _from_ole(days: float) -> str:
    """Days since 1899-12-30, as FEI's time stamps count."""
    if not 29_000 < days < 73_000:
        return ""
    return (_OLE_EPOCH + datetime.timedelta(days=days)).isoformat(timespec="milliseconds")


open_source = Mrc
