"""Images on their way to a viewer: binned, sixteen bits with their range, or a small PNG. Nothing is drawn here."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array

BINS = (1, 2, 4, 8)
_LEVELS = 65535
_FAR_OUT = 100.0
"""A range this many times wider than that of nearly all pixels leaves too few of the levels to them: float32 is sent then."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image as bytes: value = offset + scale * number."""

    body: bytes
    shape: tuple[int, int]
    """(height, width) of what is sent."""
    dtype: str
    """<u2 or <f4."""
    offset: float
    scale: float


def binned(image: Array, factor: int) -> Array:
    """Means of factor x factor pixels, float32; a remainder at the lower and right edge is left out.

    Adding slices is ten times faster than reshape().mean().
    """
    height, width = (edge // factor * factor for edge in image.shape)
    if factor == 1:
        return image
    part = image[:height, :width]
    rows = np.zeros((height // factor, width), np.float32)
    for start in range(factor):
        rows += part[start::factor]
    total = np.zeros((height // factor, width // factor), np.float32)
    for start in range(factor):
        total += rows[:, start::factor]
    total /= factor * factor
    return total


def encode(image: Array) -> Encoded:
    """Sixteen bits a pixel: exact for 8 and 16 bit detectors, else 1/65535 of the range.

    Where a few far-out pixels would eat the levels, float32 is sent.

    Parameters
    ----------
    image : (height, width), any real dtype, finite
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return Encoded(image.astype("<u2").tobytes(), shape, "<u2", 0.0, 1.0)
    low, high = float(image.min()), float(image.max())
    sample = image[:: max(1, shape[0] // 256), :: max(1, shape[1] // 256)]
    inner = float(np.subtract(*np.percentile(sample, (99.5, 0.5))))
    if high - low > _FAR_OUT * max(inner, 1e-30) and high > low:
        return Encoded(image.astype("<f4").tobytes(), shape, "<f4", 0.0, 1.0)
    scale = (high - low) / _LEVELS or 1.0
    # integers minus a float are float64: float32 has no room for a large offset and its counts
    numbers = np.rint((image - low) * np.float32(1 / scale)).clip(0, _LEVELS).astype("<u2")
    return Encoded(numbers.tobytes(), shape, "<u2", low, scale)


def factor_to(edge_px: int, shape: tuple[int, ...]) -> int:
    """By how much to bin for a longer edge of at most `edge_px`, as far as the shorter edge allows."""
    return max(1, min(-(-max(shape) // edge_px), min(shape)))


def reduced(image: Array, edge_px: int) -> Array:
    """The image with its longer edge at most `edge_px` (more if it is very flat), by the mean of whole blocks."""
    return binned(image.astype(np.float32, copy=False), factor_to(edge_px, image.shape))


def grey_png(image: Array, *, percentiles: tuple[float, float] = (0.5, 99.8)) -> bytes:
    """An 8-bit grey PNG (ISO/IEC 15948) with the given percentiles as black and white."""
    low, high = np.percentile(image, percentiles)
    shades = ((image - low) * (255 / max(float(high - low), 1e-30))).clip(0, 255).astype(np.uint8)
    height, width = shades.shape
    lines = np.zeros((height, width + 1), np.uint8)  # every line begins with its filter: 0, none
    lines[:, 1:] = shades
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def tiff(image: Array, *, pixel_size_nm: float, description: str) -> bytes:
    """One image as a TIFF that keeps its numbers (float32 or the detector's own) and its pixel size."""
    import io

    import tifffile

    known = np.isfinite(pixel_size_nm) and pixel_size_nm > 0
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        np.ascontiguousarray(image),
        photometric="minisblack",
        description=description,
        metadata=None,
        resolution=(1e7 / pixel_size_nm, 1e7 / pixel_size_nm) if known else None,
        resolutionunit="CENTIMETER" if known else None,
    )
    return file.getvalue()
