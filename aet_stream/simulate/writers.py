"""Files as instruments write them, one image each, in every format that we read."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable

import numpy as np

from aet_stream.projection import Array

_SER_TYPES = {"|u1": 1, "<u2": 2, "<u4": 3, "|i1": 4, "<i2": 5, "<i4": 6, "<f4": 7, "<f8": 8}
DM_PIXELS = {"<i2": 1, "<f4": 2, "|u1": 6, "<i4": 7, "|i1": 9, "<u2": 10, "<u4": 11, "<f8": 12}
_DM_CODES = {"<i2": 2, "<f4": 6, "|u1": 10, "<i4": 3, "|i1": 9, "<u2": 4, "<u4": 5, "<f8": 7}
_MRC_MODES = {"|i1": 0, "<i2": 1, "<f4": 2, "<u2": 6}

Tag = tuple[str, object]


def tiff(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """TIFF with ImageJ's calibration; it has no place for a tilt."""
    import tifffile

    buffer = io.BytesIO()
    per_nm, words = (None, {}) if pixel_size_nm is None else ((1 / pixel_size_nm, 1 / pixel_size_nm), {"unit": "nm"})
    if pixels.dtype.str in ("|u1", "<u2", "<f4"):
        tifffile.imwrite(buffer, pixels, imagej=True, resolution=per_nm, metadata=words)
    else:  # of other types ImageJ reads what it would not write
        said = "".join(f"{key}={value}\n" for key, value in {"ImageJ": "1.54", **words}.items())
        tifffile.imwrite(buffer, pixels, resolution=per_nm, metadata=None, description=said)
    return buffer.getvalue()


def npy(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """NumPy's own format; it has no place for a tilt."""
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def mrc(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """MRC2014 (Cheng et al. 2015); (y, x) or (images, y, x). The tilt belongs into an mdoc.

    Raises
    ------
    ValueError : it has no type that holds these pixels
    """
    if pixels.dtype.str not in _MRC_MODES:
        single = pixels.astype("<f4")
        if not np.array_equal(single, pixels):
            raise ValueError(
                f"mrc holds no pixels of type {pixels.dtype}, and as float32 these would be others: choose tiff, npy, dm4 or mat"
            )
        pixels = single
    stack = pixels if pixels.ndim == 3 else pixels[None]
    images, height, width = stack.shape
    step = (pixel_size_nm or 0.0) * 10  # 0: not known
    size = (width * step, height * step, float(images))
    header = bytearray(1024)
    struct.pack_into("<10i", header, 0, width, height, images, _MRC_MODES[pixels.dtype.str], 0, 0, 0, width, height, images)
    struct.pack_into("<6f3i", header, 40, *size, 90.0, 90.0, 90.0, 1, 2, 3)
    struct.pack_into("<3f", header, 76, float(stack.min()), float(stack.max()), float(stack.mean()))
    struct.pack_into("<i", header, 108, 20140)
    header[208:216] = b"MAP \x44\x44\0\0"
    return bytes(header) + np.ascontiguousarray(stack).tobytes()


def mdoc(
    name: str, tilts_deg: list[float], pixel_size_nm: float | None, numbers: list[int] | None = None, images: Array | None = None
) -> bytes:
    """SerialEM's text beside an MRC file, one section per image; with its pixels' figures where they are given."""
    spacing = [] if pixel_size_nm is None else [f"PixelSpacing = {pixel_size_nm * 10:.4f}"]
    lines = [*spacing, f"ImageFile = {name}", ""]
    for index, tilt in enumerate(tilts_deg):
        lines += [f"[ZValue = {index if numbers is None else numbers[index]}]", f"TiltAngle = {tilt!r}", *spacing]
        if images is not None:
            least, most, mean = images[index].min(), images[index].max(), images[index].mean(dtype=np.float64)
            lines.append(f"MinMaxMean = {least:g} {most:g} {mean:g}")
        lines.append("")
    return ("\n".join(lines) + "\n").encode()


def mat(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """MATLAB version 5: the image and its angle."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"projections": pixels, "angles": np.array([tilt_deg])})
    return buffer.getvalue()


def dm3(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """DigitalMicrograph 3 with the stage's alpha."""
    return _dm(pixels, tilt_deg, pixel_size_nm, wide=False)


def dm4(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """DigitalMicrograph 4 with the stage's alpha."""
    return _dm(pixels, tilt_deg, pixel_size_nm, wide=True)


def ser(
    pixels: Array, tilt_deg: float, pixel_size_nm: float | None, *, valid: int = 0, total: int = 0, unix_s: int = 1_500_000_000
) -> bytes:
    """TIA's series file; (y, x) or (elements, y, x). The tilt belongs into an emi. `total` elements are announced, `valid` of them hold."""
    stack = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = stack.shape
    total, valid = total or count, valid or count
    description = struct.pack("<iddi", total, 0.0, 1.0, 0) + struct.pack("<i", 6) + b"Number" + struct.pack("<i", 0)
    table_at = 34 + len(description)
    head = struct.pack("<hhhiiiiqi", 0x4949, 0x0197, 0x220, 0x4122, 0x4152, total, valid, table_at, 1)
    first = table_at + total * 16
    each = 50 + stack[0].nbytes
    offsets = [first + index * each if index < count else 0 for index in range(total)]
    tags = [first + count * each + index * 8 if index < count else 0 for index in range(total)]
    step = _known(pixel_size_nm, "ser") * 1e-9
    element = struct.pack("<ddiddihii", 0.0, step, 0, 0.0, step, 0, _SER_TYPES[stack.dtype.str], width, height)
    body = b"".join(element + np.ascontiguousarray(image[::-1]).tobytes() for image in stack)
    times = b"".join(struct.pack("<ii", 0x4152, unix_s + index) for index in range(count))
    return head + description + struct.pack(f"<{2 * total}q", *offsets, *tags) + body + times


def emi(tilt_deg: float, *, unit: str = "deg", stage: tuple[float, float, float] = (1.5, -2.25, 0.125)) -> bytes:
    """TIA's description of a `.ser`, XML among bytes of its own."""
    position = dict(zip(("Stage X", "Stage Y", "Stage Z"), stage, strict=True))
    rows = [("Microscope", "Simulated", "")] + [(label, f"{value:.3f}", "um") for label, value in position.items()]
    rows += [("Stage A", degrees(tilt_deg), unit), ("Stage B", "0.00", unit)]
    data = "".join(f"<Data><Label>{label}</Label><Value>{value}</Value><Unit>{u}</Unit></Data>" for label, value, u in rows)
    xml = (
        f"<ObjectInfo><ExperimentalDescription><Root>{data}</Root></ExperimentalDescription>"
        "<AcquireDate>Tue Oct 18 18:18:46 2011</AcquireDate><AcquireInfo><DwellTimePath>0.000012</DwellTimePath>"
        "<FrameTime>12.5</FrameTime></AcquireInfo></ObjectInfo>"
    )
    return b"JK\0\2" + bytes(60) + xml.encode() + bytes(20)


def velox(
    pixels: Array, tilt_deg: float, pixel_size_nm: float | None, *, detectors: tuple[str, ...] = ("HAADF",), step_deg: float = 0.0
) -> bytes:
    """Velox: HDF5, one group per detector; (y, x) or (frames, y, x), each frame `step_deg` further than the one before."""
    import h5py

    stack = pixels if pixels.ndim == 3 else pixels[None]
    step_nm = _known(pixel_size_nm, "velox")
    with h5py.File("velox", "w", driver="core", backing_store=False) as file:
        for number, detector in enumerate(detectors):
            group = file.create_group(f"Data/Image/{number:032x}")
            group.create_dataset("Data", data=np.moveaxis(stack + stack.dtype.type(number), 0, 2), chunks=(*stack.shape[1:], 1))
            metadata = np.zeros((60000, len(stack)), np.uint8)
            for frame in range(len(stack)):
                text = np.frombuffer(_velox_json(tilt_deg + frame * step_deg, step_nm, detector), np.uint8)
                metadata[: len(text), frame] = text
            group.create_dataset("Metadata", data=metadata, chunks=(60000, 1))
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _velox_json(tilt_deg: float, pixel_size_nm: float, detector: str) -> bytes:
    size = str(pixel_size_nm * 1e-9)
    return json.dumps({
        "Stage": {"AlphaTilt": str(math.radians(tilt_deg)), "BetaTilt": "0.01"},
        "BinaryResult": {"Detector": detector, "PixelSize": {"width": size, "height": size}, "PixelUnitX": "m", "PixelUnitY": "m"},
        "Scan": {"DwellTime": "1.2e-05", "FrameTime": "12.5", "ScanRotation": "0.5"},
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1596041374"}},
        "Instrument": {"InstrumentModel": "Simulated"},
    }).encode()  # fmt: skip


def emd(pixels: Array, tilt_deg: float, pixel_size_nm: float | None) -> bytes:
    """NCEM's single image: Berkeley EMD with the stage's position."""
    import h5py

    step_nm = _known(pixel_size_nm, "emd")
    with h5py.File("emd", "w", driver="core", backing_store=False) as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/single")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=pixels, chunks=pixels.shape)
        for axis, name in ((1, "Y"), (2, "X")):
            dim = group.create_dataset(f"dim{axis}", data=np.arange(pixels.shape[axis - 1]) * step_nm)
            dim.attrs["name"], dim.attrs["units"] = np.bytes_(name), np.bytes_("n_m")
        group.create_dataset("acquisition times", data=1570217141.0)
        stage = file.create_group("stage")
        stage.attrs["position"], stage.attrs["type"] = [1.0, 2.0, 3.0, float(tilt_deg), 4.0], "NCEM TEAM Stage"
        file.create_group("microscope").attrs.update({"name": "TEAM 0.5", "dwell time": 1.2e-5})
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def degrees(tilt_deg: float, *, sign: bool = False) -> str:
    """A tilt as text: two digits behind the point as instruments have them, up to four where it has more."""
    return np.format_float_positional(np.round(tilt_deg, 4) + 0.0, min_digits=2, sign=sign)


def _known(pixel_size_nm: float | None, kind: str) -> float:
    """A format in which every image has a pixel size.

    Raises
    ------
    ValueError : it is not known
    """
    if pixel_size_nm is None:
        raise ValueError(f"{kind} needs a pixel size, and none is known: choose tiff, npy, mrc, dm3, dm4 or mat")
    return pixel_size_nm


WRITERS: dict[str, Callable[[Array, float, float | None], bytes]] = {
    "tiff": tiff,
    "npy": npy,
    "mrc": mrc,
    "dm3": dm3,
    "dm4": dm4,
    "mat": mat,
    "ser": ser,
    "velox": velox,
    "emd": emd,
}
SUFFIX = {
    "tiff": ".tif", "npy": ".npy", "mrc": ".mrc", "dm3": ".dm3", "dm4": ".dm4", "mat": ".mat",
    "ser": ".ser", "velox": ".emd", "emd": ".emd",
}  # fmt: skip
#: Formats that carry the tilt themselves; for the others the file name or a sidecar does.
KNOWS_TILT = frozenset({"dm3", "dm4", "mat", "velox", "emd"})


def _dm(pixels: Array, tilt_deg: float, pixel_size_nm: float | None, *, wide: bool) -> bytes:
    """The tag tree as far as a reader of projections needs it."""
    scale, units = (1.0, "") if pixel_size_nm is None else (float(pixel_size_nm), "nm")
    calibration = [("Scale", scale), ("Origin", 0.0), ("Units", units)]
    image: list[Tag] = [
        ("ImageData", [
            ("Calibrations", [("Dimension", [("", calibration) for _ in pixels.shape])]),
            ("Data", pixels),
            ("DataType", DM_PIXELS[pixels.dtype.str]),
            ("Dimensions", [("", edge) for edge in reversed(pixels.shape)]),
        ]),
        ("ImageTags", [("Microscope Info", [("Stage Position", [("Stage Alpha", float(tilt_deg))])])]),
    ]  # fmt: skip
    return _dm_file([("ImageList", [("", image)])], wide)


def dm_tags(tags: list[Tag]) -> bytes:
    """A tag tree alone, as DigitalMicrograph puts it into a TIFF."""
    return _dm_file(tags, wide=True)


def _dm_file(tags: list[Tag], wide: bool) -> bytes:
    tree = _dm_group(tags, wide)
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
