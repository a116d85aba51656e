"""A volume or a series in the form that other programs load.

MRC (Cheng et al., J. Struct. Biol. 192 (2015) 146) and TIFF hold a volume as [z, y, x] = [row, slice y, column]: sections across the
beam, the tilt axis along y, as IMOD and most viewers expect; .mat holds `volume` as (y, x, z). A series becomes an MRC or TIFF stack in the
order of tilts with `.rawtlt` beside it, or the two .mat files that GENFIRE and RESIRE ask for: `projections` (y, x, tilt) and `angles`.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import mrcfile
import numpy as np
import tifffile
from scipy.io import savemat

from aet_stream import durable
from aet_stream.errors import ReconstructionError
from aet_stream.layout import unreadable
from aet_stream.projection import Array
from aet_stream.reconstruct.input import read_input
from aet_stream.reconstruct.volume_file import VOLUME

SUFFIXES = (".mrc", ".tif", ".tiff", ".mat")
_FORMS = "write .mrc, .tif or .mat"
_MAT_BYTES = (1 << 32) - (1 << 16)
"""An array in a .mat file of version 5 counts its bytes by 32 bits, with what stands before it."""


def write_volume(volume: Array, voxel_size_nm: float, target: Path) -> None:
    """(slice y, row, column) float32 as MRC or TIFF, by the name's suffix; the voxel size goes along where it is known.

    Raises
    ------
    ReconstructionError : another suffix, or too large for it
    """
    _refuse_too_large(volume.nbytes, target)
    sections = np.ascontiguousarray(np.transpose(volume, (1, 0, 2)), dtype=np.float32)
    known_nm = voxel_size_nm if np.isfinite(voxel_size_nm) else 0.0
    with durable.replacing(target) as draft:
        if target.suffix == ".mrc":
            _write_mrc(sections, known_nm, draft, volume=True)
        elif target.suffix in (".tif", ".tiff"):
            _write_tiff(sections, known_nm, draft)
        elif target.suffix == ".mat":
            savemat(str(draft), {"volume": np.transpose(volume, (0, 2, 1)), "voxel_size_nm": voxel_size_nm}, appendmat=False)
        else:
            raise ReconstructionError(f"{target}: a volume is not exported to {target.suffix or 'a name without suffix'}; {_FORMS}")


def _write_mrc(pages: Array, pixel_size_nm: float, path: Path, *, volume: bool) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(pages)
        if volume:
            file.set_volume()
        else:
            file.set_image_stack()
        file.voxel_size = 10 * pixel_size_nm  # angstrom; 0: not known


def _write_tiff(pages: Array, pixel_size_nm: float, path: Path) -> None:
    """ImageJ's dialect: a stack of z sections with its scale."""
    if pixel_size_nm:
        per_nm, metadata = 1 / pixel_size_nm, {"axes": "ZYX", "unit": "nm", "spacing": pixel_size_nm}
        tifffile.imwrite(path, pages, imagej=True, metadata=metadata, resolution=(per_nm, per_nm))
    else:
        tifffile.imwrite(path, pages, imagej=True, metadata={"axes": "ZYX"})


def export(source: Path, target: Path, *, overwrite: bool = False) -> list[Path]:
    """Export `series.h5` or `reconstruction.h5`; returns the files that were written.

    Raises
    ------
    ReconstructionError : the source is neither, the target's suffix says no known form or cannot hold so much, or a file is there already
    """
    if target.suffix not in SUFFIXES:
        raise ReconstructionError(f"{target}: unknown form {target.suffix!r}; {_FORMS}")
    if not target.parent.is_dir():
        raise ReconstructionError(f"{target.parent} is no folder: make it first, or choose another target")
    if not overwrite:
        _refuse_present(target)
    try:
        with h5py.File(source, "r", locking=False) as file:
            if VOLUME in file:
                volume, size_nm = file[VOLUME][()], float(file["reconstruction"].attrs["voxel_size_nm"])
                write_volume(volume, size_nm, target)
                return [target]
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{source}: cannot be read: {unreadable(error)}") from error
    return _export_series(source, target, overwrite=overwrite)


def _refuse_present(path: Path) -> None:
    """What is there may be the microscope's own: the tilts of a series have the name that its raw stack's have."""
    if path.exists():
        raise ReconstructionError(f"{path} is there already: choose another name, or say --overwrite")


def _refuse_too_large(nbytes: int, target: Path) -> None:
    if target.suffix == ".mat" and nbytes > _MAT_BYTES:
        raise ReconstructionError(f"{target}: {nbytes >> 20} MiB; an array in a .mat file has less than 4096: write .mrc or .tif")


def _export_series(source: Path, target: Path, *, overwrite: bool) -> list[Path]:
    given = read_input(source)
    _refuse_too_large(given.projections.nbytes, target)
    order = np.argsort(given.tilts_deg, kind="stable")
    views, tilts_deg = given.projections[order], given.tilts_deg[order]
    size_nm = given.pixel_size_nm if np.isfinite(given.pixel_size_nm) else 0.0
    beside = target.with_name(f"{target.stem}_angles.mat") if target.suffix == ".mat" else target.with_suffix(".rawtlt")
    if not overwrite:
        _refuse_present(beside)
    with durable.replacing(target) as draft:
        if target.suffix == ".mrc":
            _write_mrc(views, size_nm, draft, volume=False)
        elif target.suffix == ".mat":
            savemat(str(draft), {"projections": np.transpose(views, (1, 2, 0))}, appendmat=False)
        else:
            _write_tiff(views, size_nm, draft)
    with durable.replacing(beside) as draft:
        if beside.suffix == ".mat":
            # Euler angles ZYX in degrees, one row per projection; the tilt is the middle one.
            angles = np.stack([np.zeros_like(tilts_deg), tilts_deg, np.zeros_like(tilts_deg)], axis=1)
            savemat(str(draft), {"angles": angles}, appendmat=False)
        else:
            draft.write_text("".join(f"{tilt:.4f}\n" for tilt in tilts_deg))
    return [target, beside]
