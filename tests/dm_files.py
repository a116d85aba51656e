"""DigitalMicrograph files tag by tag, with whatever an odd program may put into them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

CODES = {"<i2": (2, 1), "<f4": (6, 2), "|u1": (10, 6), "<i4": (3, 7), "|i1": (9, 9), "<u2": (4, 10), "<u4": (5, 11), "<f8": (7, 12)}
"""dtype -> (code of a value, code of an image's type)."""
RGB = 23


class Raw(bytes):
    """A whole entry as it stands in the file."""


class DmFile:
    """One way to write: DM3 with numbers of 4 bytes, or DM4 with 8 and the length of every entry."""

    def __init__(self, version: int) -> None:
        self.wide = version == 4
        self.version = version

    def number(self, value: int) -> bytes:
        return struct.pack(">Q" if self.wide else ">I", value)

    def entry(self, kind: int, name: str, content: bytes, *, length: int | None = None) -> Raw:
        known = self.number(len(content) if length is None else length) if self.wide else b""
        return Raw(bytes([kind]) + struct.pack(">H", len(name)) + name.encode("latin-1") + known + content)

    def group(self, tags: dict[str, Any] | Sequence[Any], *, count: int | None = None) -> bytes:
        """A dict has names, a list has none; `count` entries are announced."""
        named = tags.items() if isinstance(tags, dict) else (("", tag) for tag in tags)
        body = b"".join(tag if isinstance(tag, Raw) else self.tag(name, tag) for name, tag in named)
        return b"\1\0" + self.number(len(tags) if count is None else count) + body

    def tag(self, name: str, value: Any) -> Raw:
        if isinstance(value, (dict, list)):
            return self.entry(20, name, self.group(value))
        if isinstance(value, np.ndarray):
            return self.entry(21, name, self.value([20, CODES[value.dtype.str][0], value.size], value.tobytes()))
        if isinstance(value, str):
            return self.entry(21, name, self.value([20, 4, len(value)], value.encode("utf-16-le")))
        if isinstance(value, float):
            return self.entry(21, name, self.value([7], struct.pack("<d", value)))
        return self.entry(21, name, self.value([5], struct.pack("<I", value)))

    def value(self, info: list[int], data: bytes) -> bytes:
        return b"%%%%" + self.number(len(info)) + b"".join(map(self.number, info)) + data

    def image(self, pixels: np.ndarray, tags: Any, axes: Sequence[tuple[float, float, str]] = (), *, kind: int = 0) -> dict[str, Any]:
        """An entry of ImageList; `axes` (scale, origin, unit), x first."""
        axes = axes or [(0.05, 0.0, "nm"), (0.05, 0.0, "nm")]
        calibrations = [{"Scale": float(scale), "Origin": float(origin), "Units": unit} for scale, origin, unit in axes]
        return {
            "ImageData": {
                "Calibrations": {"Dimension": calibrations},
                "Data": pixels,
                "DataType": kind or CODES[pixels.dtype.str][1],
                "Dimensions": list(pixels.shape[::-1]),
            },
            "ImageTags": tags,
        }

    def file(self, tags: Any, *, count: int | None = None, more_length: int = 0, end: bytes = bytes(8)) -> bytes:
        """`more_length`: how many bytes more than Gatan's programs the header counts."""
        tree = self.group(tags, count=count)
        return struct.pack(">I", self.version) + self.number(len(tree) + more_length) + struct.pack(">I", 1) + tree + end


def stage(alpha_deg: float) -> dict[str, Any]:
    return {"Microscope Info": {"Stage Position": {"Stage Alpha": float(alpha_deg)}}}
