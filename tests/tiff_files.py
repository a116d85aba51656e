"""TIFF files page by page and tag by tag, with whatever an odd program may put into them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

Tag = tuple[int, str | int, bytes | int]
"""(tag, type, value): numbers by their type; bytes of type "s" are text, those of "pixels" the image."""


def page(pixels: np.ndarray, *tags: Tag, marked: int = 0) -> list[Tag]:
    """The entries of one page's directory, in order."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    own: list[Tag] = [
        (254, 4, marked), (256, 4, width), (257, 4, height), (258, 3, pixels.dtype.itemsize * 8), (259, 3, 1),
        (262, 3, 2 if samples == 3 else 1), (273, "pixels", pixels.tobytes()), (277, 3, samples), (278, 4, height), (279, 4, pixels.nbytes),
        (339, 3, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]),
    ]  # fmt: skip
    given = {tag for tag, _, _ in tags}
    return sorted([*(entry for entry in own if entry[0] not in given), *tags], key=lambda entry: entry[0])


def tiff(*pages: list[Tag]) -> bytes:
    """Pages one behind the other, each before its directory; every byte of the tags is as given."""
    out, link = bytearray(b"II*\0\0\0\0\0"), 4
    for entries in pages:
        rows = [_row(out, *entry) for entry in entries]
        out += bytes(len(out) % 2)
        struct.pack_into("<I", out, link, len(out))
        out += struct.pack("<H", len(rows)) + b"".join(rows)
        link = len(out)
        out += bytes(4)
    return bytes(out)


def _row(out: bytearray, tag: int, kind: str | int, value: Any) -> bytes:
    """One entry of a directory; what does not fit into it is put into the file before."""
    if isinstance(value, int):
        return struct.pack("<HHII", tag, kind, 1, value)
    at = len(out)
    out += value
    if kind == "pixels":
        return struct.pack("<HHII", tag, 4, 1, at)
    code = 2 if kind == "s" else kind
    if len(value) <= 4:
        return struct.pack("<HHI", tag, code, len(value)) + value.ljust(4, b"\0")
    return struct.pack("<HHII", tag, code, len(value), at)
