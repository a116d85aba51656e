"""Files as instruments write them, one image each, in every format that we read."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np

from aet_stream.projection import Array

_DM_PIXELS = {"<i2": 1, "<f4": 2, "|u1": 6, "<i4": 7, "|i1": 9, "<u2": 10, "<u4": 11, "<f8": 12}
_DM_CODES = {"<i2": 2, "<f4": 6, "|u1": 10, "<i4": 3, "|i1": 9, "<u2": 4, "<u4": 5, "<f8": 7}
_MRC_MODES = {"|i1": 0, "<i2": 1, "<f4": 2, "<u2": 6}

Tag = tuple[str, object]


def tiff(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """TIFF with ImageJ's calibration; it has no place for a tilt."""
    import tifffile

    buffer = io.BytesIO()
    per_nm = 1 / pixel_size_nm
    tifffile.imwrite(buffer, pixels, imagej=pixels.dtype.str in ("|u1", "<u2", "<f4"), resolution=(per_nm, per_nm), metadata={"unit": "nm"})
    return buffer.getvalue()


def npy(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """NumPy's own format; it has no place for a tilt."""
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def mrc(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """MRC2014 (Cheng et al. 2015); (y, x) or (images, y, x). The tilt belongs into an mdoc."""
    if pixels.dtype.str not in _MRC_MODES:
        pixels = pixels.astype("<f4")
    stack = pixels if pixels.ndim == 3 else pixels[None]
    images, height, width = stack.shape
    size = (width * pixel_size_nm * 10, height * pixel_size_nm * 10, float(images))
    header = bytearray(1024)
    struct.pack_into("<10i", header, 0, width, height, images, _MRC_MODES[pixels.dtype.str], 0, 0, 0, width, height, images)
    struct.pack_into("<6f3i", header, 40, *size, 90.0, 90.0, 90.0, 1, 2, 3)
    struct.pack_into("<3f", header, 76, float(stack.min()), float(stack.max()), float(stack.mean()))
    struct.pack_into("<i", header, 108, 20140)
    header[208:216] = b"MAP \x44\x44\0\0"
    return bytes(header) + np.ascontiguousarray(stack).tobytes()


def mdoc(name: str, tilts_deg: list[float], pixel_size_nm: float) -> bytes:
    """SerialEM's text beside an MRC file, one section per image."""
    lines = [f"PixelSpacing = {pixel_size_nm * 10:.4f}", f"ImageFile = {name}", ""]
    for index, tilt in enumerate(tilts_deg):
        lines += [f"[ZValue = {index}]", f"TiltAngle = {tilt!r}", f"PixelSpacing = {pixel_size_nm * 10:.4f}", ""]
    return ("\n".join(lines) + "\n").encode()


def mat(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """MATLAB version 5: the image and its angle."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"projections": pixels, "angles": np.array([tilt_deg])})
    return buffer.getvalue()


def dm3(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """DigitalMicrograph 3 with the stage's alpha."""
    return _dm(pixels, tilt_deg, pixel_size_nm, wide=False)


def dm4(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """DigitalMicrograph 4 with the stage's alpha."""
    return _dm(pixels, tilt_deg, pixel_size_nm, wide=True)


WRITERS: dict[str, Callable[[Array, float, float], bytes]] = {
    "tiff": tiff,
    "npy": npy,
    "mrc": mrc,
    "dm3": dm3,
    "dm4": dm4,
    "mat": mat,
}
SUFFIX = {"tiff": ".tif", "npy": ".npy", "mrc": ".mrc", "dm3": ".dm3", "dm4": ".dm4", "mat": ".mat"}
#: Formats that carry the tilt themselves; for the others the file name or a sidecar does.
KNOWS_TILT = frozenset({"dm3", "dm4", "mat"})


def _dm(pixels: Array, tilt_deg: float, pixel_size_nm: float, *, wide: bool) -> bytes:
    """The tag tree as far as a reader of projections needs it."""
    calibration = [("Scale", float(pixel_size_nm)), ("Origin", 0.0), ("Units", "nm")]
    image: list[Tag] = [
        ("ImageData", [
            ("Calibrations", [("Dimension", [("", calibration) for _ in pixels.shape])]),
            ("Data", pixels),
            ("DataType", _DM_PIXELS[pixels.dtype.str]),
            ("Dimensions", [("", edge) for edge in reversed(pixels.shape)]),
        ]),
        ("ImageTags", [("Microscope Info", [("Stage Position", [("Stage Alpha", float(tilt_deg))])])]),
    ]  # fmt: skip
    tree = _dm_group([("ImageList", [("", image)])], wide)
    number = ">Q" if wide else ">I"
    return struct.pack(">I", 4 if wide else 3) + struct.pack(number, len(tree)) + struct.pack(">I", 1) + tree + bytes(8)


def _dm_group(tags: list[Tag], wide: bool) -> bytes:
    body = b"".join(_dm_tag(name, value, wide) for name, value in tags)
    return b"\x01\x00" + struct.pack(">Q" if wide else ">I", len(tags)) + body


def _dm_tag(name: str, value: object, wide: bool) -> bytes:
    content = _dm_group(value, wide) if isinstance(value, list) else _dm_value(value, wide)
    head = bytes([20 if isinstance(value, list) else 21]) + struct.pack(">H", len(name)) + name.encode("latin-1")
    return head + (struct.pack(">Q", len(content)) if wide else b"") + content


def _dm_value(value: object, wide: bool) -> bytes:
    if isinstance(value, np.ndarray):
        info, data = [20, _DM_CODES[value.dtype.str], value.size], np.ascontiguousarray(value).tobytes()
    elif isinstance(value, str):
        info, data = [20, 4, len(value)], value.encode("utf-16-le")
    elif isinstance(value, float):
        info, data = [7], struct.pack("<d", value)
    else:
        info, data = [5], struct.pack("<I", value)
    number = ">Q" if wide else ">I"
    return b"%%%%" + struct.pack(number, len(info)) + b"".join(struct.pack(number, word) for word in info) + data
