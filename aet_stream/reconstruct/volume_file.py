"""`reconstruction.h5` and the picture beside it: whether they may be written, whether they are there, written so that nobody sees half."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable, hdf5, nexus
from aet_stream.errors import ReconstructionError
from aet_stream.layout import LIBVER, crc32
from aet_stream.projection import Array
from aet_stream.reconstruct.axis_search import AxisSearch
from aet_stream.reconstruct.figure import draw_summary
from aet_stream.reconstruct.input import Input
from aet_stream.reconstruct.quality import Quality
from aet_stream.reconstruct.registered import Alignment
from aet_stream.reconstruct.slabs import Volume, parts
from aet_stream.reconstruct.turns import TURNS

HDF5 = "hdf5"
_FORMS = {
    ".h5": HDF5, ".hdf5": HDF5, ".mrc": "mrc", ".st": "mrc", ".rec": "mrc", ".map": "mrc", ".tif": "tiff", ".tiff": "tiff", ".emd": "emd",
    ".mat": "mat",
}  # fmt: skip
VOLUME = "/reconstruction/volume"
_ABOUT = "(slice y, row, column); tilt axis along y; row = (N-1)/2 - Y, column = (N-1)/2 + X; seen at (N-1)/2 + X cos(tilt) + Y sin(tilt)"

Facts = dict[str, str | int | float]
"""Attributes of the volume: what it was made from, and how."""


def form_of(path: Path) -> str:
    """What a name's suffix asks for, in upper or lower case: hdf5, mrc, tiff, emd or mat; empty for anything else."""
    return _FORMS.get(path.suffix.lower(), "")


@dataclass(frozen=True, slots=True)
class Result:
    """What is written."""

    volume: Volume
    residuals: Array
    """(iterations,) as a share of the projections; of others than the built-in solver: none"""
    iterations: int
    alignment: Alignment
    quality: Quality
    axis: AxisSearch


def check_target(wanted: Path, target: Path, *, replaces: bool) -> None:
    """Find out now, not after minutes of work. `target`: the volume's HDF5 file, which takes the place of an older volume only.

    What else has its names goes with an older volume; where there is none, it may be the microscope's own.

    Raises
    ------
    ReconstructionError : it cannot be written there, or something would be lost
    """
    if not wanted.parent.is_dir():
        raise ReconstructionError(f"{wanted.parent} is no folder: make it first, or choose another --out")
    picture = target.with_suffix(".png")
    if form_of(wanted) in ("", "mat") or any(path.is_dir() for path in (wanted, target, picture)):
        raise ReconstructionError(
            f"{wanted} cannot take the volume: name a file ending in .h5, .mrc, .tif or .emd, and none that is a folder"
        )
    refuse_to_lose(target, "reconstruction", "a volume", [path for path in (wanted, picture) if path != target], replaces=replaces)


def refuse_to_lose(target: Path, group: str, what: str, beside: Iterable[Path], *, replaces: bool) -> None:
    """An HDF5 file without this group is somebody else's, and so is what lies `beside` where none of ours is.

    Raises
    ------
    ReconstructionError : one of them is there
    """
    try:
        with h5py.File(target, "r", locking=False) as file:
            ours = group in file
    except OSError:
        ours = False  # not there, or damaged: nothing to lose
    else:
        if not ours:
            raise ReconstructionError(f"{target} holds something else than {what}, and would be lost: choose another --out")
    if present := [path for path in beside if path.exists() and not (ours or replaces)]:
        raise ReconstructionError(f"{present[0]} is there already: choose another --out, or say --overwrite")


def is_done(target: Path, identity: Facts) -> bool:
    """Does the file hold the volume of this input, by these options?"""
    try:
        with h5py.File(target, "r", locking=False) as file:
            return all(file["reconstruction"].attrs.get(key, "") == value for key, value in identity.items())
    except (OSError, KeyError, RuntimeError):
        return False  # none, or not one of ours: it is replaced


def save(target: Path, given: Input, result: Result, facts: Facts) -> None:
    """Write it, in one go: nobody sees half of it.

    Raises
    ------
    OutputFull : it cannot be written
    """
    target.with_suffix(".png").unlink(missing_ok=True)  # a picture never shows another volume than the one beside it
    with durable.replacing(target, "volume") as draft, hdf5.writing(draft, libver=LIBVER) as file:
        _write(file, given, result, facts)


def _write(file: h5py.File, given: Input, result: Result, facts: Facts) -> None:
    group = file.create_group("reconstruction")
    dataset, checksum = group.create_dataset("volume", result.volume.shape, np.float32), 0
    for slices, voxels in parts(result.volume):
        dataset[slices] = voxels
        checksum = crc32(voxels, checksum)
    dataset.attrs["crc32"] = np.uint32(checksum)  # what is made from it says from which
    dataset.attrs["description"] = _ABOUT  # NeXus means something else by `axes`
    dataset.attrs["units"] = (
        "arbitrary: gridrec's amplitude depends on the tilts" if facts["method"] == "tomopy:gridrec" else "counts per voxel"
    )
    group["tilts_deg"] = given.tilts_deg
    group["rows"] = given.rows
    group["residuals"] = result.residuals
    if given.weights is not None:
        group["weights"] = given.weights
        group["weights"].attrs["meaning"] = "how much of what is smooth in each projection counted: less where its background may be wrong"
    group["shifts_px"] = result.alignment.shifts_px
    if result.alignment.turns is not None:
        group[TURNS] = result.alignment.turns
        group[TURNS].attrs["meaning"] = (
            "rotation vectors in radians, along [the axis as rows count, X, Z]: how it was turned before the tilt"
        )
    group["shifts_px"].attrs["meaning"] = "[y, x] that each projection was moved by, after it was turned by axis_deg"
    size_nm, software = given.pixel_size_nm, f"aet_stream {__version__}"
    group.attrs.update(facts, iterations_done=result.iterations, voxel_size_nm=size_nm, software=software)
    group.attrs.update(axis_deg=result.alignment.axis_deg, alignment=json.dumps(result.alignment.residuals))
    _write_quality(group.create_group("quality"), given, result.quality, result.axis)
    _write_plot(file, size_nm)


def _write_plot(file: h5py.File, voxel_size_nm: float) -> None:
    """NeXus: the volume over its axes, which viewers open by themselves. To the right, upwards, towards who looks along the beam."""
    group, volume = file["reconstruction"], file[VOLUME]
    group.attrs["NX_class"] = "NXentry"
    data = group.create_group("data")
    data["volume"] = volume
    volume.attrs.update(target=VOLUME, interpretation="image")
    for name, edge_px, sign in zip("yzx", volume.shape, (-1, -1, 1), strict=True):
        data[name] = sign * nexus.positions(edge_px, voxel_size_nm)
        data[name].attrs["units"] = nexus.unit(voxel_size_nm)
    nexus.make_plot(data, "volume", "yzx", title="volume")
    nexus.set_default(file, "reconstruction", "data")


def _write_quality(group: h5py.Group, given: Input, found: Quality, axis: AxisSearch) -> None:
    doubt = f"{axis.sentence} " if axis.contradicts else ""
    group.attrs.update(axis_doubt=doubt.rstrip(), axis_found_deg=axis.found_deg, axis_sigmas=axis.sigmas)
    group.attrs.update(axis_misfit=axis.misfit_said, axis_misfit_found=axis.misfit_found)
    group["residual_per_tilt"] = found.residual_per_tilt
    group["suspect_rows"] = given.rows[found.suspects]
    group["fsc_per_px"], group["fsc"] = found.fsc_per_px, found.fsc
    group["fsc"].attrs["slices"] = found.fsc_slices
    group.attrs["resolution_px"] = found.resolution_px
    group.attrs["resolution_nm"] = found.resolution_px * given.pixel_size_nm
    group.attrs["missing_wedge_deg"] = found.missing_wedge_deg
    group.attrs["note"] = (
        f"{doubt}No projection in {found.missing_wedge_deg:.0f} of 180 degrees: along the beam the volume is blurred by what was not seen,"
        " and the Fourier shell correlation, whose halves miss the same wedge, says nothing about it."
        f"{_less(given)} {found.remark}".rstrip()
    )


def _less(given: Input) -> str:
    """In words, after a sentence."""
    few = 0 if given.weights is None else int(np.sum(given.weights < 0.5))
    return f" {few} of {len(given.rows)} projections count for less than half, because their backgrounds may be wrong." if few else ""


def ensure_picture(target: Path, title: str) -> None:
    """The picture beside it."""
    picture = target.with_suffix(".png")
    if not picture.exists():
        with h5py.File(target, "r", locking=False) as file:
            draw_summary(file["reconstruction"], picture, title=title)
