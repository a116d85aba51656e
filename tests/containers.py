"""Files that an instrument appends to, tilt by tilt, and MRC files with what stands between header and pixels."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.projection import Array
from aet_stream.simulate.writers import dm_tags, mrc


class StemTomo:
    """The acquisition program of the TEAM microscopes: opens its file, appends one tilt, closes it. Fails where a reader holds a lock.

    `nextset` is raised, and the dataset made longer, before the pixels are written.
    """

    def __init__(
        self, path: Path, *, repeats: int, size_px: int, rotations_deg: tuple[float, ...] = (), stage: str = "NCEM TEAM Stage"
    ) -> None:
        import h5py

        self.path, self._repeats = path, repeats
        with h5py.File(path, "w") as file:
            file.attrs["version"] = 7.3
            raw = file.create_group("data/raw")
            raw.attrs.update(
                {"nextindex": 0, "nextset": 0, "emd_group_type": 1, "rotSetting": 1 if rotations_deg else 0, "dwell time": 1.2e-5}
            )
            shape = (1, repeats, size_px, size_px)
            raw.create_dataset("data", shape, "<u2", maxshape=(None, *shape[1:]), chunks=(1, 1, *shape[2:]))
            for axis, name, unit, values in (
                (1, "Alpha", "degrees", [0.0]),
                (
                    2,
                    "scan rotation" if rotations_deg else "image in set",
                    "degrees" if rotations_deg else "num",
                    rotations_deg or range(repeats),
                ),
                (3, "Y", "n_m", np.arange(size_px) * 0.05),
                (4, "X", "n_m", np.arange(size_px) * 0.05),
            ):
                dim = raw.create_dataset(f"dim{axis}", data=np.array(values, "f4"), maxshape=(None,))
                dim.attrs["name"], dim.attrs["units"] = np.bytes_(name), np.bytes_(unit)
            raw.create_dataset("tiltangles", (1,), "f4", maxshape=(None,))
            raw.create_dataset("imageSetParameters", (6, 1), "f4", maxshape=(6, None))
            raw.create_dataset("imageParameters", (6, 1), "f4", maxshape=(6, None))
            file.create_group("microscope").attrs.update({"name": "TEAM 0.5", "stage type": stage})

    def append(self, frames: Array, tilt_deg: float, *, pause_s: float = 0.0) -> None:
        """One tilt: (repeats, y, x) uint16. `pause_s` between the frames, as slow disks have."""
        import h5py

        with h5py.File(self.path, "a") as file:
            raw: Any = file["data/raw"]
            number = int(raw.attrs["nextset"])
            raw.attrs["nextset"] = number + 1
            for name in ("dim1", "tiltangles"):
                raw[name].resize((number + 1,))
                raw[name][number] = tilt_deg
            raw["imageSetParameters"].resize(number + 1, 1)
            raw["imageSetParameters"][:, number] = (1, 2, 3, tilt_deg, 0, 1.5e9 + 60 * number)
            for repeat, frame in enumerate(frames):
                raw.attrs["nextindex"] = index = int(raw.attrs["nextindex"]) + 1
                raw["data"].resize(number + 1, 0)
                raw["data"][number, repeat] = frame
                raw["imageParameters"].resize(index, 1)
                raw["imageParameters"][:, index - 1] = (number, repeat, 0, 5e-11, 5e-11, 1.5e9)
                if pause_s:
                    file.flush()
                    time.sleep(pause_s)


class SerialEm:
    """SerialEM's stack: pixels appended, then the header's count raised, then the mdoc's section written."""

    def __init__(self, path: Path, pixel_size_nm: float = 0.1) -> None:
        self.path, self._size, self._count = path, pixel_size_nm, 0

    def append(self, image: Array, tilt_deg: float, *, announce_first: bool = False) -> None:
        """One image; `announce_first` raises the count before the pixels are there."""
        if not self._count:
            self.path.write_bytes(mrc(image, 0.0, self._size)[:1024])
        if announce_first:
            self._announce()
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(image).tobytes())
        if not announce_first:
            self._announce()
        with self.path.with_name(f"{self.path.name}.mdoc").open("a") as file:
            if self._count == 1:
                file.write(f"PixelSpacing = {self._size * 10:.4f}\nImageFile = {self.path.name}\n\n")
            file.write(f"[ZValue = {self._count - 1}]\nTiltAngle = {tilt_deg!r}\nDateTime = 31-Mar-23  16:24:15\n\n")

    def _announce(self) -> None:
        self._count += 1
        with self.path.open("r+b") as file:
            for offset in (8, 36):
                file.seek(offset)
                file.write(struct.pack("<i", self._count))


def mrc_fei(images: Array, tilts_deg: list[float], pixel_size_nm: float, *, kind: str = "FEI2") -> bytes:
    """MRC with the extended header of Thermo Fisher's programs since 2014."""
    from mrcfile.dtypes import get_ext_header_dtype

    records = np.zeros(len(images), get_ext_header_dtype(kind.encode(), "<"))
    records["Metadata size"], records["Alpha tilt"], records["Beta tilt"] = records.dtype.itemsize, tilts_deg, 0.5
    records["Pixel size X"] = records["Pixel size Y"] = pixel_size_nm * 1e-9
    records["Timestamp"], records["Dwell time"], records["STEM Detector name"] = 44900.5, 1e-5, b"HAADF"
    return _extended(images, pixel_size_nm, kind.encode(), records.tobytes())


def mrc_legacy(images: Array, tilts_deg: list[float], pixel_size_nm: float) -> bytes:
    """MRC as Xplore3D and FEI Tomography wrote it: 1024 records of 32 floats."""
    records = np.zeros((1024, 32), "<f4")
    records[: len(images), 0], records[: len(images), 1] = tilts_deg, 0.5
    records[: len(images), 8], records[: len(images), 11] = 1.5, pixel_size_nm * 1e-9
    return _extended(images, pixel_size_nm, bytes(4), records.tobytes())


def mrc_seri(images: Array, tilts_deg: list[float], pixel_size_nm: float, *, kind: bytes = b"SERI") -> bytes:
    """MRC with SerialEM's records of 16-bit numbers, the tilt in hundredths of a degree first; before 2014 without a type (b"")."""
    records = np.zeros((len(images), 7 if kind else 3), "<i2")
    records[:, 0] = np.round(np.asarray(tilts_deg) * 100)
    return _extended(images, pixel_size_nm, kind.ljust(4, b"\0"), records.tobytes(), numbers=(records.itemsize * records.shape[1], 1 + 4))


def _extended(images: Array, pixel_size_nm: float, kind: bytes, extended: bytes, numbers: tuple[int, int] = (0, 0)) -> bytes:
    plain = bytearray(mrc(images, 0.0, pixel_size_nm))
    struct.pack_into("<i", plain, 92, len(extended))
    plain[104:108] = kind
    struct.pack_into("<2h", plain, 128, *numbers)
    return bytes(plain[:1024]) + extended + bytes(plain[1024:])


# -- TIFF as instruments write it -------------------------------------------------------------------------------------------------------


def tiff_dm(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """Exported by DigitalMicrograph: calibration in private tags, and its tag tree in another."""
    tree: list[Any] = [("Microscope Info", [("Stage Position", [("Stage Alpha", float(tilt_deg)), ("Stage Beta", 0.5)])]),
            ("DataBar", [("Device Name", "DigiScan"), ("Acquisition Time (OS)", 131151435970008240.0)])]  # fmt: skip
    content = dm_tags(tree)
    extra = [(65003, "s", 0, "nm"), (65004, "s", 0, "nm"), (65009, "d", 1, pixel_size_nm), (65010, "d", 1, pixel_size_nm),
             (65027, "B", len(content), content)]  # fmt: skip
    return _tiff(pixels, extra)


def tiff_tvips(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """EMMENU of TVIPS: one binary record in a private tag."""
    import tifffile

    first, second = np.zeros(1, tifffile.TIFF.TVIPS_HEADER_V1), np.zeros(1, tifffile.TIFF.TVIPS_HEADER_V2)
    first["Version"], first["SpecimenTiltAngle"], second["Magic"] = 2, -70, 0xAAAAAAAA
    second["PixelSizeX"] = second["PixelSizeY"] = pixel_size_nm
    second["Date"], second["Time"] = 132122901, 3661
    second["TemStagePosition"][0, 3:] = tilt_deg, 0.5
    content = first.tobytes() + second.tobytes()
    return _tiff(pixels, [(37706, "B", len(content), content)])


def tiff_jeol(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """SightX of JEOL: a report in XML."""
    xml = (
        '<?xml version="1.0"?><TemReporter><DateTime>2023-04-05T06:07:08+09:00</DateTime><GonioStage><StagePosition>'
        f"<TX>{tilt_deg}</TX></StagePosition></GonioStage></TemReporter>"
    )
    return _tiff(pixels, [], xml)


def tiff_fei(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """FEI's programs for the Titan: a table of labels, and lengths in metres, as XML in a private tag."""
    rows = [("Stage X", 1.5, "um"), ("Stage A", tilt_deg, "deg"), ("Stage B", 0.5, "deg")]
    table = "".join(f"<Data><Label>{label}</Label><Value>{value}</Value><Unit>{unit}</Unit></Data>" for label, value, unit in rows)
    size = f"<PixelsSize><X>{pixel_size_nm * 1e-9}</X><Y>{pixel_size_nm * 1e-9}</Y></PixelsSize>"
    return _tiff(pixels, [(34683, "s", 0, f"<Root>{table}{size}</Root>")])


def tiff_ome(pixels: Array, tilt_deg: float, pixel_size_nm: float) -> bytes:
    """OME-TIFF; it has no place for a tilt."""
    height, width = pixels.shape
    lengths = " ".join(f'PhysicalSize{axis}="{pixel_size_nm}" PhysicalSize{axis}Unit="nm"' for axis in "XY")
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{width}" SizeY="{height}" SizeZ="1" SizeC="1" SizeT="1" '
        f"{lengths}>"
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData/></Pixels></Image></OME>'
    )
    return _tiff(pixels, [], xml)


def _tiff(pixels: Array, extra: list[tuple[int, str, int, Any]], description: str | None = None) -> bytes:
    import io

    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, extratags=[(*tag, True) for tag in extra], description=description, metadata=None)
    return buffer.getvalue()


def frame_mdoc(name: str, tilt_deg: float, frames: int, pixel_size_nm: float, *, kind: str = "FrameSet") -> bytes:
    """SerialEM's text about the file with the frames of one exposure; `kind` is ZValue in the text beside a series."""
    lines = ["Voltage = 300", "", f"[{kind} = 0]", f"TiltAngle = {tilt_deg!r}", f"PixelSpacing = {pixel_size_nm * 10:.4f}"]
    lines += [f"SubFramePath = D:\\frames\\{name}", f"NumSubFrames = {frames}", "DateTime = 31-Mar-23  16:24:15", ""]
    return ("\n".join(lines) + "\n").encode()
