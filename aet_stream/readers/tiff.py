"""TIFF and BigTIFF: every page of the same size is one image. Completeness by walking the directories ourselves, pixels by tifffile.

Format: TIFF 6.0 specification (1992); BigTIFF: 8-byte offsets, version 43.
"""

from __future__ import annotations

import importlib.util
import logging
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Array
from aet_stream.readers import MAX_IMAGES, checked_probe, finished, image_in_range, need, understood

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would say, our errors say

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGER_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _STRIP_BYTES = 256, 257, 258, 259, 262, 273, 277, 279
_STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SAMPLE_FORMAT = 278, 322, 323, 324, 325, 339
_NEW_KIND, _OLD_KIND = 254, 255
_WANTED = (
    _NEW_KIND, _OLD_KIND,
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _STRIP_BYTES,
    _STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SAMPLE_FORMAT,
)  # fmt: skip
_MAX_VALUES = 1 << 20
_COMPRESSIONS = {1: "none", 8: "deflate", 32946: "deflate", 32773: "packbits", 34925: "lzma"}
_WITH_CODECS = {5: "lzw", 50000: "zstd"}
"""Lossless ones that tifffile reads where imagecodecs is installed; SerialEM writes lzw."""

Directory = dict[int, tuple[int, ...]]


class _Walk:
    """One pass over the chain of directories."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        head = file.read(16)
        if head[:2] not in (b"II", b"MM"):
            raise SourceError(f"{path.name}: not a TIFF file")
        need(path, size, 8, "the header")
        self.order = "<" if head[:2] == b"II" else ">"
        version = struct.unpack(f"{self.order}H", head[2:4])[0]
        if version not in (42, 43):
            raise SourceError(f"{path.name}: TIFF version {version}")
        self.big = version == 43
        need(path, size, 16 if self.big else 8, "the header")
        self.first = struct.unpack(f"{self.order}{'Q' if self.big else 'I'}", head[8:16] if self.big else head[4:8])[0]

    def bytes_at(self, offset: int, count: int) -> bytes:
        need(self.path, self.size, offset + count, "a directory")
        self.file.seek(offset)
        content = self.file.read(count)
        need(self.path, offset + len(content), offset + count, "a directory")
        return content

    def directories(self) -> list[Directory]:
        need(self.path, 0 if self.first == 0 else 1, 1, "the first directory is not written yet; the file")
        offset, seen, found = self.first, set[int](), list[Directory]()
        while offset:
            if offset in seen or len(found) >= MAX_IMAGES:
                raise SourceError(f"{self.path.name}: its directories form a loop")
            seen.add(offset)
            directory, offset = self._directory(offset)
            found.append(directory)
        return found

    def _directory(self, offset: int) -> tuple[Directory, int]:
        width, entry_bytes, code = (8, 20, "Q") if self.big else (2, 12, "H")
        count = struct.unpack(f"{self.order}{code}", self.bytes_at(offset, width))[0]
        if not 0 < count <= 4096:
            raise SourceError(f"{self.path.name}: a directory of {count} entries")
        link = 8 if self.big else 4
        block = self.bytes_at(offset + width, count * entry_bytes + link)
        directory: Directory = {}
        for position in range(0, count * entry_bytes, entry_bytes):
            self._entry(block[position : position + entry_bytes], directory)
        return directory, struct.unpack(f"{self.order}{'Q' if self.big else 'I'}", block[-link:])[0]

    def _entry(self, entry: bytes, directory: Directory) -> None:
        """Check that a tag's values are inside the file, and keep those we need."""
        inline = 8 if self.big else 4
        tag, kind, count = struct.unpack(f"{self.order}HH{'Q' if self.big else 'I'}", entry[:-inline])
        total = _TYPE_BYTES.get(kind, 1) * count
        offset = struct.unpack(f"{self.order}{'Q' if self.big else 'I'}", entry[-inline:])[0]
        if total > inline:
            need(self.path, self.size, offset + total, f"tag {tag}")
        if tag in _WANTED and kind in _INTEGER_CODES:
            if count > _MAX_VALUES:
                raise SourceError(f"{self.path.name}: tag {tag} has {count} values")
            raw = entry[-inline:][:total] if total <= inline else self.bytes_at(offset, total)
            directory[tag] = struct.unpack(f"{self.order}{count}{_INTEGER_CODES[kind]}", raw)


def _dtype(path: Path, page: Directory) -> str:
    samples = page.get(_SAMPLES, (1,))[0]
    bits = page.get(_BITS, (1,))[0]
    kind = {1: "u", 2: "i", 3: "f"}.get(page.get(_SAMPLE_FORMAT, (1,))[0])
    if samples != 1 or page.get(_PHOTOMETRIC, (1,))[0] not in (0, 1):
        raise SourceError(f"{path.name}: a colour image ({samples} samples per pixel) is no projection")
    if kind is None or bits not in (8, 16, 32, 64):
        raise SourceError(f"{path.name}: {bits}-bit samples of format {page.get(_SAMPLE_FORMAT)}")
    return f"<{kind}{bits // 8}"


def _parts(page: Directory) -> int:
    """How many strips or tiles a compressed page has; of an uncompressed one the bytes are counted."""
    height, width = page[_HEIGHT][0], page[_WIDTH][0]
    if page.get(_COMPRESSION, (1,))[0] == 1:
        return len(page.get(_STRIPS) or page[_TILES])
    if _STRIPS in page:
        return -(-height // (page.get(_STRIP_ROWS, (0,))[0] or height))
    across, down = page.get(_TILE_WIDTH, (0,))[0] or width, page.get(_TILE_HEIGHT, (0,))[0] or height
    return -(-width // across) * -(-height // down)


def _check_compression(path: Path, compression: int) -> None:
    if compression in _WITH_CODECS and importlib.util.find_spec("imagecodecs") is None:
        raise SourceError(
            f"{path.name}: packed with {_WITH_CODECS[compression]}: pip install 'aet-stream[codecs]', then aet-stream requeue"
        )
    if compression not in _COMPRESSIONS | _WITH_CODECS:
        known = sorted({*_COMPRESSIONS.values(), *_WITH_CODECS.values()})
        raise SourceError(f"{path.name}: compression {compression} is not supported (known: {', '.join(known)})")


def _pages(path: Path, size: int) -> tuple[dict[int, Directory], str]:
    """Directories of the images of this file by their place in it, all of one size, and their dtype.

    What a program has marked as a smaller copy or as a mask is none, unless it is like the images.
    """
    with path.open("rb") as file:
        found = dict(enumerate(_Walk(path, file, size).directories()))
    for page in found.values():
        if _WIDTH not in page or _HEIGHT not in page:
            raise SourceError(f"{path.name}: a page without size")
    unmarked = {place: page for place, page in found.items() if not _is_marked(page)} or found
    kind = _kind(next(iter(unmarked.values())))
    pages = {place: page for place, page in found.items() if place in unmarked or _kind(page) == kind}
    for page in pages.values():
        _check_written(path, page, size)
    if any(_kind(page) != kind for page in pages.values()):
        raise SourceError(f"{path.name}: pages of different sizes or types")
    return pages, _dtype(path, next(iter(pages.values())))


def _is_marked(page: Directory) -> bool:
    """NewSubfileType: bit 0 for an image of reduced resolution, bit 2 for a mask; SubfileType, its predecessor: 2 for a reduced one."""
    return bool((page.get(_NEW_KIND) or (0,))[0] & 0b101) or (page.get(_OLD_KIND) or (0,))[0] == 2


def _kind(page: Directory) -> tuple[object, ...]:
    return tuple(page.get(tag, (1,))[0] for tag in (_HEIGHT, _WIDTH, _SAMPLES, _BITS, _SAMPLE_FORMAT))


def _check_written(path: Path, page: Directory, size: int) -> None:
    """Everything that the directory of an image names lies in the file."""
    compression = page.get(_COMPRESSION, (1,))[0]
    _check_compression(path, compression)
    height, width = page[_HEIGHT][0], page[_WIDTH][0]
    uncompressed = height * width * np.dtype(_dtype(path, page)).itemsize
    offsets = page.get(_STRIPS) or page.get(_TILES) or ()
    counts = page.get(_STRIP_BYTES) or page.get(_TILE_BYTES) or ()
    if not counts and compression == 1 and len(offsets) == 1:  # old programs leave it out: it cannot be anything else
        counts = (uncompressed,)
    if not offsets or len(offsets) != len(counts):
        raise SourceError(f"{path.name}: a page without pixels")
    need(path, size, max(o + c for o, c in zip(offsets, counts, strict=True)), "the image")
    wanted, written = _parts(page), sum(o >= 8 and c > 0 for o, c in zip(offsets, counts, strict=True))
    if written < wanted:
        raise SourceNotReady(f"{path.name}: {written} of {wanted} strips or tiles of a page are written")
    if compression == 1 and sum(counts) < uncompressed:
        raise SourceError(f"{path.name}: {sum(counts)} bytes of pixels for {height} x {width} px")
    if compression != 1 and uncompressed > 2000 * max(1, sum(counts)):
        raise SourceError(f"{path.name}: {sum(counts)} compressed bytes cannot be {height} x {width} px")


def _as_many_as_described(path: Path, size: int, pages: dict[int, Directory], dtype: str) -> None:
    """ImageJ, MetaMorph and others keep a whole stack behind one directory and tell of it in their description: refuse to lose it."""
    first = next(iter(pages.values()))
    one = first[_HEIGHT][0] * first[_WIDTH][0] * np.dtype(dtype).itemsize
    if len(pages) > 1 or first.get(_COMPRESSION, (1,))[0] != 1 or size < 2 * one:
        return
    import tifffile

    with tifffile.TiffFile(path) as file:
        images = sum(int(np.prod(series.shape)) for series in file.series) // (first[_HEIGHT][0] * first[_WIDTH][0])
    if images > 1:
        raise SourceError(
            f"{path.name}: its description tells of {images} images, but it has one directory: save each as a page of its own"
        )


class Tiff:
    """Pages of one size and type; what instruments hide in their own tags is understood by tiff_tags.py."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        pages, dtype = _pages(path, size)
        _as_many_as_described(path, size, pages, dtype)
        packed = all(page.get(_COMPRESSION, (1,))[0] != 1 for page in pages.values())
        self._places, first = list(pages), next(iter(pages.values()))
        """Of each image: which page of the file it is."""
        self.probe = checked_probe(path, "tiff", len(pages), first[_HEIGHT][0], first[_WIDTH][0], dtype, sealed=packed)
        self._said: list[Acquisition] = []

    def frames(self, image: int) -> Array:
        import tifffile

        image_in_range(self._path, image, self.probe.images)
        with tifffile.TiffFile(self._path) as file:
            if self._places[image] >= len(file.pages):
                raise SourceError(f"{self._path.name}: page {self._places[image]} asked for, there are {len(file.pages)}")
            return finished(self._path, file.pages[self._places[image]].asarray())

    def acquisition(self, image: int) -> Acquisition:
        image_in_range(self._path, image, self.probe.images)
        if not self._said:  # of all pages at once: each is found through all those before it
            import tifffile

            with tifffile.TiffFile(self._path) as file:
                pages = list(file.pages)
                self._said = [self._of_page(file, pages[place]) for place in self._places]
        return self._said[image]

    def _of_page(self, file: Any, page: Any) -> Acquisition:
        from aet_stream.readers.tiff_tags import acquisition

        remarks: list[str] = []
        single = self.probe.images == 1
        said = understood(remarks, "its tags", lambda: acquisition(self._path, file, page, single=single), Acquisition(reader="tiff"))
        return msgspec.structs.replace(said, remark="; ".join(filter(None, (*remarks, said.remark))))


open_source = Tiff
