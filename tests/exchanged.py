"""Files as programs of this community hand them to each other: tomviz, tomopy (Data Exchange), Nion Swift, DigitalMicrograph 5, GENFIRE."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aet_stream.projection import Array
from aet_stream.simulate.writers import DM_PIXELS


def _hdf5(fill: Callable[[Any], None]) -> bytes:
    """The bytes of an HDF5 file that `fill` writes into."""
    import h5py

    with h5py.File("made", "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def tomviz(images: Array, tilts_deg: Sequence[float], pixel_size_nm: float, *, axis: int = 0, unit: str = "[deg]") -> bytes:
    """tomviz 2 since its pull request 2049: an EMD with its scalars' name, and a soft link to them beside. `axis` counts the tilts."""

    def fill(file: Any) -> None:
        import h5py

        file.attrs["version_major"], file.attrs["version_minor"] = np.uint32(0), np.uint32(2)
        group = file.create_group("data/tomography")
        group.attrs["emd_group_type"] = np.uint32(1)
        data = group.create_dataset("data", data=np.moveaxis(images, 0, axis))
        data.attrs["name"] = np.bytes_("ImageScalars")
        edges = iter(images.shape[1:])
        for index in range(3):
            angles = np.asarray(tilts_deg) * (math.pi / 180 if "rad" in unit else 1.0)
            values = angles if index == axis else np.arange(next(edges)) * pixel_size_nm
            dim = group.create_dataset(f"dim{index + 1}", data=np.float32(values))
            dim.attrs["name"] = np.bytes_("angles" if index == axis else "xyz"[index])
            dim.attrs["units"] = np.bytes_(unit if index == axis else "[n_m]")
        group.create_group("tomviz_scalars")["ImageScalars"] = h5py.SoftLink("/data/tomography/data")

    return _hdf5(fill)


def data_exchange(images: Array, tilts_deg: Sequence[float], *, axes: str = "theta:y:x", unit: str = "degrees") -> bytes:
    """As tomopy's users have them, with white and dark fields."""

    def fill(file: Any) -> None:
        stacked = np.moveaxis(images, 0, axes.split(":").index("theta"))
        file.create_dataset("exchange/data", data=stacked).attrs["axes"] = axes
        for name, value in (("data_white", 1), ("data_dark", 0)):
            file[f"exchange/{name}"] = np.full((2, *images.shape[1:]), value, images.dtype)
        theta = file.create_dataset("exchange/theta", data=np.radians(tilts_deg) if unit == "rad" else np.asarray(tilts_deg, "f8"))
        theta.attrs["units"] = unit

    return _hdf5(fill)


def _swift(pixels: Array, pixel_size_nm: float, unit: str, more: dict[str, Any]) -> dict[str, Any]:
    """The properties of a data item of Nion Swift, version 13; a stack is a sequence."""
    step = {"offset": 0.0, "scale": pixel_size_nm, "units": unit}
    sequence = [{"offset": 0.0, "scale": 1.0, "units": ""}] * (pixels.ndim - 2)
    return {
        "type": "data-item", "created": "2026-11-29T13:42:24.757855", "data_shape": list(pixels.shape), "data_dtype": pixels.dtype.name,
        "is_sequence": pixels.ndim == 3, "collection_dimension_count": 0, "datum_dimension_count": 2,
        "intensity_calibration": {"offset": 0.0, "scale": 1.0, "units": ""}, "dimensional_calibrations": [*sequence, step, step],
        "timezone_offset": "+0000", "title": "", "version": 13,
        "metadata": {"hardware_source": {"channel_name": "HAADF"}, "scan": {"scan_device_parameters": {"pixel_time_us": 12.0}}},
    } | more  # fmt: skip


def stage_of_swift(tilt: float) -> dict[str, Any]:
    """Where Nion's own instruments have their stage."""
    return {"metadata": {"hardware_source": {"channel_name": "HAADF"}, "instrument": {"ImageScanned": {"StageOutA": tilt}}}}


def ndata(pixels: Array, pixel_size_nm: float, *, unit: str = "nm", **more: Any) -> bytes:
    """Nion Swift's own file: a ZIP file, nothing packed, its directory last. `more` goes into the properties."""
    array, file = io.BytesIO(), io.BytesIO()
    np.save(array, pixels, allow_pickle=False)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.npy", array.getvalue())
        archive.writestr("metadata.json", json.dumps(_swift(pixels, pixel_size_nm, unit, more)))
    return file.getvalue()


def swift_h5(pixels: Array, pixel_size_nm: float, *, name: str = "data", unit: str = "nm", **more: Any) -> bytes:
    """Nion Swift's file for large data, or, with `name` "data/0", what it exports as `.nhdf`."""

    def fill(file: Any) -> None:
        file.create_dataset(name, data=pixels).attrs["properties"] = json.dumps(_swift(pixels, pixel_size_nm, unit, more))

    return _hdf5(fill)


def dm5(pixels: Array, tilt_deg: float, pixel_size_nm: float, *, step_deg: float = 0.0, thumbnail: bool = True) -> bytes:
    """DigitalMicrograph 5: an image, or a stack whose axis goes on from `tilt_deg` in steps; before it, as ever, the thumbnail."""

    def fill(file: Any) -> None:
        number = 1 if thumbnail else 0
        if thumbnail:
            image = file.create_group("ImageList/[0]/ImageData")
            image.attrs["DataType"] = np.uint32(23)
            image["Data"] = np.zeros((6, 8), "<u4")
            image.create_group("Dimensions").attrs.update({"[0]": np.uint32(8), "[1]": np.uint32(6)})
            file.create_group("Thumbnails/[0]").attrs["ImageIndex"] = np.uint32(0)
        file.create_group("DocumentObjectList/[0]").attrs["ImageSource"] = np.uint64(0)
        file.create_group("ImageSourceList/[0]").attrs["ImageRef"] = np.uint32(number)
        image = file.create_group(f"ImageList/[{number}]/ImageData")
        image["Data"] = pixels
        image.attrs["DataType"] = np.uint32(DM_PIXELS[pixels.dtype.str])
        dimensions = image.create_group("Dimensions")
        for index, edge in enumerate(reversed(pixels.shape)):
            scale, origin, unit = (pixel_size_nm, 0.0, b"nm") if index < 2 else (step_deg, -tilt_deg / step_deg, b"deg")
            dimensions.attrs[f"[{index}]"] = np.uint32(edge)
            axis = image.create_group(f"Calibrations/Dimension/[{index}]")
            axis.attrs.update({"Scale": np.float32(scale), "Origin": np.float32(origin), "Units": np.bytes_(unit)})
        tags = file.create_group(f"ImageList/[{number}]/ImageTags")
        tags.create_group("Microscope Info/Stage Position").attrs["Stage Alpha"] = float(tilt_deg)
        tags.create_group("DataBar").attrs.update({"Signal Name": np.bytes_(b"HAADF"), "Acquisition Time (OS)": 131151435970008240.0})

    return _hdf5(fill)


def genfire_angles(tilts_deg: Sequence[float]) -> bytes:
    """The Euler angles beside `projections.mat`, (images, 3)."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"angles": np.c_[np.zeros(len(tilts_deg)), tilts_deg, np.zeros(len(tilts_deg))]})
    return buffer.getvalue()


def genfire_projections(images: Array) -> bytes:
    """(y, x, images) without a word about tilts."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"projections": np.moveaxis(images, 0, 2).astype("<f4")})
    return buffer.getvalue()
