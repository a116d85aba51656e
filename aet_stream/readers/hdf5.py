"""The only door to HDF5 files of instruments: never locked, never held open, nothing followed out of the file.

A plain `h5py.File(path)` makes the instrument's next append fail. So the bytes are copied, the file's state is compared before and after,
and the copy is parsed. A file too large to copy is read through a plain descriptor, which takes no lock either.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.readers import need, stat_stamp

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_COPY_BYTES = 1 << 30
#: deflate, shuffle, fletcher32, n-bit, scale-offset, LZF: what HDF5 and h5py bring themselves.
_FILTERS = frozenset({1, 2, 3, 5, 6, 32000})

_copy: tuple[Path, str, bytes] | None = None


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file's content as h5py shows it.

    Raises
    ------
    SourceNotReady : it changed while it was copied, or bytes are missing
    SourceError : HDF5 cannot read it
    """
    import h5py

    global _copy
    with _content(path) as content:
        try:
            file = h5py.File(content, "r")
        except OSError as error:
            _copy = None
            raise SourceError(f"{path.name}: not a readable HDF5 file: {str(error)[:200]}") from error
        try:
            yield file
        except (OSError, KeyError, RuntimeError, ValueError):
            _copy = None  # it may be of a moment between two writes, under the same time
            raise
        finally:
            file.close()


@contextmanager
def _content(path: Path) -> Iterator[BinaryIO]:
    global _copy  # the last file copied: its images are asked for one after another
    before = path.stat()
    stamp = stat_stamp(before)
    if before.st_size > MAX_COPY_BYTES:
        _copy = None
        complete(path, path, before.st_size)
        with path.open("rb") as file:
            yield file
        return
    if _copy is None or _copy[:2] != (path, stamp):
        _copy = None
        content = path.read_bytes()
        if stat_stamp(path.stat()) != stamp:
            raise SourceNotReady(f"{path.name}: changed while it was copied")
        complete(path, content, len(content))
        _copy = (path, stamp, content)
    yield io.BytesIO(_copy[2])


def complete(path: Path, content: bytes | Path, size: int) -> None:
    """The superblock says where the file ends, and whether a writer has it open (HDF5 file format specification, II.A)."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            block = file.read(1024)
    else:
        block = content[:1024]
    base = 0 if block.startswith(MAGIC) else 512  # MATLAB writes 512 bytes of its own before it
    need(path, len(block), base + 64, "the superblock")
    if block[base : base + 8] != MAGIC:
        raise SourceError(f"{path.name}: not an HDF5 file")
    version = block[base + 8]
    at = base + {0: 40, 1: 44, 2: 28, 3: 28}.get(version, 28)
    need(path, size, struct.unpack("<Q", block[at : at + 8])[0], "the HDF5 file")
    if version == 3 and block[base + 11] & 1:
        raise SourceNotReady(f"{path.name}: its writer still has it open")


def member(path: Path, group: Any, name: str) -> Any:
    """An object inside the file, or None.

    Raises
    ------
    SourceError : the name leads out of the file
    """
    import h5py

    here = group
    for part in name.strip("/").split("/"):
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise SourceError(f"{path.name}: {name} is a link; only data inside the file are read")
        here = here[part]
    return here


def known(path: Path, group: Any, name: str) -> Any:
    """The same for what stands beside the data: a link, or an object that cannot be read, is not known, like one that is not there."""
    try:
        return member(path, group, name)
    except (SourceError, KeyError, OSError, RuntimeError, ValueError):
        return None


def numbers(path: Path, dataset: Any, *, complete_chunks: bool = True) -> Any:
    """The same dataset, once it is known to be plain numbers that lie in this file, whole.

    Raises
    ------
    SourceError : text, objects, data in other files, compression of a plug-in
    SourceNotReady : chunks that have not been written
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iuf":
        raise SourceError(f"{path.name}: {getattr(dataset, 'name', dataset)} holds no plain numbers")
    if dataset.is_virtual or dataset.external:
        raise SourceError(f"{path.name}: {dataset.name} is stored in another file")
    plan = dataset.id.get_create_plist()
    foreign = [plan.get_filter(i)[0] for i in range(plan.get_nfilters()) if plan.get_filter(i)[0] not in _FILTERS]
    if foreign:
        raise SourceError(f"{path.name}: {dataset.name} is compressed by filter {foreign[0]}, which is not supported")
    if complete_chunks and dataset.chunks is not None:
        wanted = 1
        for edge, chunk in zip(dataset.shape, dataset.chunks, strict=True):
            wanted *= -(-edge // chunk)
        there = dataset.id.get_num_chunks()
        if there < wanted:
            raise SourceNotReady(f"{path.name}: {dataset.name} has {there} of {wanted} pieces")
    return dataset


def attribute(item: Any, name: str) -> Any:
    """An attribute as plain Python (text decoded, one-element arrays unpacked), or None: not there, or of a kind that cannot be read."""
    try:
        value: Any = item.attrs.get(name) if item is not None else None
    except (OSError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:  # the letters of their own country, one byte each
        return value.decode("latin-1")
