"""Files that travel between two computers in checked chunks, from disk to disk.

Whoever receives asks for the next chunks, so that nothing piles up on the way. What has come is kept under the file's checksum: a transfer
that was cut goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from aet_stream import compression, durable
from aet_stream.errors import WireError
from aet_stream.messages import Chunk, Fetch, FileSpec

CHUNK_BYTES = 256 << 10
_READ_BYTES = 8 << 20
IN_FLIGHT = 8
"""Chunks that a receiver asks for ahead: with more, a slow link would hold more in memory."""


class FileSender:
    """Files that may be fetched, as they were when this was made, whatever takes their names meanwhile."""

    def __init__(self, folder: Path, names: Iterable[str], *, compress: bool = False, beat: Callable[[], None] = lambda: None) -> None:
        """
        Parameters
        ----------
        compress : chunks are compressed, where that makes them smaller
        beat : called now and then while they are read for their checksums

        Raises
        ------
        OSError : one cannot be read
        """
        self.compress, self._beat = compress, beat
        self._files: dict[str, BinaryIO] = {}
        self.files = tuple(self._spec(folder, name) for name in names)

    def _spec(self, folder: Path, name: str) -> FileSpec:
        file = (folder / name).open("rb")
        sha256 = _sha256_of(file, self._beat).hexdigest()
        self._files[sha256] = file
        return FileSpec(name, os.fstat(file.fileno()).st_size, sha256)

    def chunk(self, wanted: Fetch) -> Chunk:
        """
        Raises
        ------
        WireError : there is no such file, or chunk of it
        OSError : it cannot be read
        """
        file = self._files.get(wanted.sha256)
        if file is None or wanted.offset < 0 or wanted.offset % CHUNK_BYTES:
            raise WireError(f"no chunk {wanted.offset} of {wanted.sha256:.12}")
        data = os.pread(file.fileno(), CHUNK_BYTES, wanted.offset)
        crc32 = zlib.crc32(data)
        if self.compress and len(smaller := compression.compress(data, 4)) < len(data):
            return Chunk(sha256=wanted.sha256, offset=wanted.offset, data=smaller, crc32=crc32, compressed=True)
        return Chunk(sha256=wanted.sha256, offset=wanted.offset, data=data, crc32=crc32)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class FileReceiver:
    """One file that comes. It has its name when it is whole, its checksum right, and on the disk."""

    def __init__(self, folder: Path, spec: FileSpec) -> None:
        """What has come of it before is taken up.

        Parameters
        ----------
        folder : where it goes
        """
        self.spec, self._path = spec, folder / spec.name
        self._part = self._path.with_name(f"{self._path.name}.{spec.sha256[:16]}.part")
        durable.make_folder(self._part.parent)
        self.done = self._path.exists() and self._path.stat().st_size == spec.nbytes and self._is_it(self._path)
        there = self._part.stat().st_size if self._part.exists() and not self.done else 0
        self.has_bytes = min(there, spec.nbytes) // CHUNK_BYTES * CHUNK_BYTES
        self._sha256 = hashlib.sha256()
        if self.has_bytes:
            os.truncate(self._part, self.has_bytes)
            with self._part.open("rb") as file:
                self._sha256 = _sha256_of(file)
        self.went_on_at = self.has_bytes
        """What was there already."""
        self._asked_bytes = self.has_bytes
        if not self.done and spec.nbytes == 0:
            self._part.touch()
            self._finish()

    def wanted(self) -> Iterator[Fetch]:
        """The chunks to be asked for now."""
        while not self.done and self._asked_bytes < min(self.spec.nbytes, self.has_bytes + IN_FLIGHT * CHUNK_BYTES):
            yield Fetch(sha256=self.spec.sha256, offset=self._asked_bytes)
            self._asked_bytes += CHUNK_BYTES

    def ask_again(self) -> None:
        """What was asked for and has not come is lost."""
        self._asked_bytes = self.has_bytes

    def take(self, chunk: Chunk) -> None:
        """
        Raises
        ------
        WireError : it is damaged, or the whole file is not what was announced; what has come of it is forgotten
        OSError : it cannot be written
        """
        if chunk.sha256 != self.spec.sha256 or chunk.offset != self.has_bytes or self.done:
            return  # asked for twice, over two links
        wanted = min(CHUNK_BYTES, self.spec.nbytes - chunk.offset)
        data = compression.decompress(chunk.data, wanted, 4) if chunk.compressed else chunk.data
        if len(data) != wanted or zlib.crc32(data) != chunk.crc32:
            raise WireError(f"chunk {chunk.offset} of {self.spec.name} is damaged")
        with self._part.open("ab" if chunk.offset else "wb") as file:
            file.write(data)
        self._sha256.update(data)
        self.has_bytes += len(data)
        durable.sync_now_and_then(self._part, chunk.offset // CHUNK_BYTES, CHUNK_BYTES)
        if self.has_bytes == self.spec.nbytes:
            self._finish()

    def _finish(self) -> None:
        if self._sha256.hexdigest() != self.spec.sha256:
            self._part.unlink()
            raise WireError(f"{self.spec.name} is not what was announced (SHA-256)")
        durable.sync_file(self._part)
        durable.put_in_place(self._part, self._path)
        self.done = True

    def _is_it(self, path: Path) -> bool:
        with path.open("rb") as file:
            return _sha256_of(file).hexdigest() == self.spec.sha256


def _sha256_of(file: BinaryIO, beat: Callable[[], None] = lambda: None) -> hashlib._Hash:
    found = hashlib.sha256()
    while block := file.read(_READ_BYTES):
        found.update(block)
        beat()
    return found
