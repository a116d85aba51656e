"""A volume or a series in the form that other programs load, turned as each of them shows it, so that all show one specimen with one hand.

| form | volume, as an array | series, by rising tilt | shown with |
| --- | --- | --- | --- |
| TIFF | [row, slice y, column] | [tilt, y, column], `.rawtlt` beside it | row 0 on top, page 0 nearest |
| MRC  | the same, pages and rows from their ends | rows from their end, `.rawtlt` beside it | row 0 lowest, section 0 farthest |
| EMD  | [x, y, z] of MRC's | [tilt, column, y]: the tilt axis along x | y up, z towards who looks |
| .mat | [column, slice y, row], both from their ends | `projections` [column from its end, y, tilt], and `angles` | a right angle turned |

MRC: Cheng et al., J. Struct. Biol. 192 (2015) 146: right-handed, the first row the lowest, as IMOD and ChimeraX take it; at a tilt of theta
a point (x, y, z) is seen at x cos(theta) + z sin(theta), as by IMOD's `tilt`. EMD: Berkeley EMD 0.2 in /data/tomography, as tomviz writes
and reads it, which reconstructs about x. Each but .mat says of which edition of the background it is. The two .mat files are those that
GENFIRE and RESIRE ask for (euler.py).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import tifffile
from scipy.io import savemat

from aet_stream import __version__, durable, hdf5
from aet_stream.errors import ReconstructionError
from aet_stream.layout import LIBVER, unreadable
from aet_stream.projection import Array
from aet_stream.reconstruct.aligned import Aligned, in_register
from aet_stream.reconstruct.euler import euler_zyx_deg
from aet_stream.reconstruct.input import Input, read_input
from aet_stream.reconstruct.turns import orientations
from aet_stream.reconstruct.volume_file import HDF5, VOLUME, form_of

logger = logging.getLogger(__name__)

_FORMS = "write .mrc, .st, .rec, .map, .tif, .emd or .mat"
_MAT_BYTES = (1 << 32) - (1 << 16)
"""An array in a .mat file of version 5 counts its bytes by 32 bits, with what stands before it."""
_NOTABLE_PITCH_DEG = 0.1
_MAT_OFF_PX = (0.5, -0.5)
"""Of an even number of pixels GENFIRE and RESIRE take the one after the middle for it; their images are ours turned by a right angle."""
_TIFF_BYTES, _TIFF_PAGE_BYTES = (1 << 32) - (1 << 16), 512
"""A TIFF counts its bytes by 32 bits, what it says about each page among them; a BigTIFF by 64."""


def write_volume(volume: Array, voxel_size_nm: float, target: Path, edition: int = 1) -> None:
    """(slice y, row, column) float32, by the name's suffix; the voxel size goes along where it is known, and the edition.

    Raises
    ------
    ReconstructionError : another suffix, or too large for it
    """
    form = form_of(target)
    _refuse_too_large(volume.nbytes, target)
    sections = np.transpose(volume, (1, 0, 2))
    known_nm = voxel_size_nm if np.isfinite(voxel_size_nm) else 0.0
    with durable.replacing(target) as draft:
        if form == "mrc":
            _write_mrc(sections[::-1, ::-1], known_nm, draft, edition, volume=True)
        elif form == "tiff":
            write_tiff(sections, known_nm, draft, edition)
        elif form == "emd":
            _write_emd(np.transpose(sections[::-1, ::-1]), "xyz", known_nm, draft, edition)
        elif form == "mat":
            volume = np.transpose(volume, (2, 0, 1))[::-1, :, ::-1]
            savemat(str(draft), {"volume": volume, "voxel_size_nm": voxel_size_nm}, appendmat=False)
        else:
            raise ReconstructionError(f"{target}: a volume is not exported to {target.suffix or 'a name without suffix'}; {_FORMS}")


def _write_mrc(pages: Array, pixel_size_nm: float, path: Path, edition: int, *, volume: bool, axis_deg: float = 0.0) -> None:
    """(sections, y, x), the first row lowest. IMOD finds the direction of the tilt axis in a label of the words that SerialEM uses."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(pages, dtype=np.float32))
        if volume:
            file.set_volume()
        else:
            file.set_image_stack()
        file.voxel_size = 10 * pixel_size_nm  # angstrom; 0: not known
        order = "first section farthest" if volume else "tilt axis along y" if not axis_deg else "turned tilt axis"
        file.add_label(f"aet_stream {__version__}: first row lowest, {order}")
        file.add_label(f"edition {edition} of the background")
        if axis_deg:
            file.add_label(f"    Tilt axis angle = {axis_deg:.2f}")


def write_tiff(pages: Array, pixel_size_nm: float, path: Path, edition: int = 1, *, limit_bytes: int = _TIFF_BYTES) -> None:
    """(pages, y, x): ImageJ's dialect, a stack with its scale; a BigTIFF, its scale per cm, where that could not count its bytes."""
    big = pages.nbytes + len(pages) * _TIFF_PAGE_BYTES >= limit_bytes
    form: dict[str, Any] = {"bigtiff": True, "photometric": "minisblack", "resolutionunit": "CENTIMETER"} if big else {"imagej": True}
    metadata: dict[str, Any] = {"axes": "ZYX", "edition": edition}
    if pixel_size_nm:
        metadata |= {"unit": "nm", "spacing": pixel_size_nm}
        form["resolution"] = ((1e7 if big else 1) / pixel_size_nm,) * 2
    tifffile.imwrite(path, pages, metadata=metadata, **form)


def _write_emd(data: Array, axes: Sequence[str], pixel_size_nm: float, path: Path, edition: int, tilts_deg: Array | None = None) -> None:
    """Three axes, slowest first; with tilts the first is theirs. Where the pixel size is not known, lengths are in pixels."""
    with hdf5.writing(path, libver=LIBVER) as file:
        file.attrs.update(version_major=np.uint32(0), version_minor=np.uint32(2))
        group = file.create_group("data/tomography")
        group.attrs.update(emd_group_type=np.uint32(1), edition=edition)
        group.create_dataset("data", data=np.ascontiguousarray(data, dtype=np.float32)).attrs["name"] = "ImageScalars"
        for number, (name, size) in enumerate(zip(axes, data.shape, strict=True), start=1):
            values, unit = np.arange(size) * (pixel_size_nm or 1.0), "[n_m]" if pixel_size_nm else "[px]"
            if number == 1 and tilts_deg is not None:
                values, unit = tilts_deg, "[deg]"
            group.create_dataset(f"dim{number}", data=values.astype(np.float32)).attrs.update(name=name, units=unit)


def export(
    source: Path, target: Path, *, aligned: Aligned | None = None, keep_excluded: bool = False, overwrite: bool = False
) -> list[Path]:
    """Export `series.h5` or `reconstruction.h5`; returns the files that were written.

    Parameters
    ----------
    aligned : write the projections in register, with `.tlt` and `.xf` in place of `.rawtlt`; None: as they are
    keep_excluded : write also the projections that are excluded in the series

    Raises
    ------
    ReconstructionError : the source is neither, the target's suffix says no known form or cannot hold so much, a file is there already,
        or a volume is to be aligned
    """
    if form_of(target) in ("", HDF5):
        raise ReconstructionError(f"{target}: unknown form {target.suffix!r}; {_FORMS}")
    if not target.parent.is_dir():
        raise ReconstructionError(f"{target.parent} is no folder: make it first, or choose another target")
    if not overwrite:
        _refuse_present(target)
    try:
        with h5py.File(source, "r", locking=False) as file:
            if VOLUME in file:
                if aligned is not None:
                    raise ReconstructionError(f"{source} is a volume: name the series whose projections it was made from")
                volume, about = file[VOLUME][()], file["reconstruction"].attrs
                write_volume(volume, float(about["voxel_size_nm"]), target, int(about.get("edition", 1)))
                return [target]
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{source}: cannot be read: {unreadable(error)}") from error
    given = read_input(source, keep_excluded=keep_excluded)
    tilts = [f"{tilt:.4f}\n" for tilt in given.tilts_deg]
    order = np.argsort(given.tilts_deg, kind="stable")
    if aligned is None:
        seen = orientations(given.tilts_deg, np.zeros((len(order), 3)))
        return _export_series(given, order, seen, target, {".rawtlt": tilts}, overwrite=overwrite)
    made = in_register(given, aligned, _MAT_OFF_PX if form_of(target) == "mat" else (0.0, 0.0))
    if form_of(target) != "mat" and made.pitch_deg > _NOTABLE_PITCH_DEG:
        logger.warning(
            "%s: the specimen was turned by up to %.1f deg about the image's x, too: only .mat can say it", target, made.pitch_deg
        )
    tilts = [f"{tilt:.4f}\n" for tilt in made.given.tilts_deg]
    return _export_series(made.given, order, made.orientations, target, {".tlt": tilts, ".xf": made.xf}, overwrite=overwrite)


def _refuse_present(path: Path) -> None:
    """What is there may be the microscope's own: the tilts of a series have the name that its raw stack's have."""
    if path.exists():
        raise ReconstructionError(f"{path} is there already: choose another name, or say --overwrite")


def _refuse_too_large(nbytes: int, target: Path) -> None:
    if form_of(target) == "mat" and nbytes > _MAT_BYTES:
        raise ReconstructionError(f"{target}: {nbytes >> 20} MiB; an array in a .mat file has less than 4096: write .mrc or .tif")


def _export_series(given: Input, order: Array, seen: Array, target: Path, lines: dict[str, list[str]], *, overwrite: bool) -> list[Path]:
    """
    Parameters
    ----------
    order : (tilts,) of the series' rows
    seen : (tilts, 3, 3) orientations (turns.py), row by row
    lines : suffix of a file beside a stack -> what it says of each projection, row by row
    """
    form = form_of(target)
    _refuse_too_large(given.projections.nbytes, target)
    views, tilts_deg, beside = given.projections[order], given.tilts_deg[order], dict[Path, bytes]()
    if form in ("mrc", "tiff"):
        beside = {target.with_suffix(suffix): "".join(said[row] for row in order).encode() for suffix, said in lines.items()}
    elif form == "mat":
        quarters, off_deg = _quarters(float(np.nan_to_num(given.axis_deg)))
        angles_deg = euler_zyx_deg(tilts_deg, seen[order], axis_off_deg=off_deg)
        beside = {target.with_name(f"{target.stem}_angles.mat"): _angles(angles_deg)}
    for path, content in beside.items():
        if not overwrite and not _says(path, content):
            _refuse_present(path)
    size_nm = given.pixel_size_nm if np.isfinite(given.pixel_size_nm) else 0.0
    with durable.replacing(target) as draft:
        if form == "mrc":
            _write_mrc(views[:, ::-1], size_nm, draft, given.edition, volume=False, axis_deg=-float(np.nan_to_num(given.axis_deg)))
        elif form == "mat":
            savemat(str(draft), {"projections": np.rot90(np.moveaxis(views, 0, 2), quarters)}, appendmat=False)
        elif form == "emd":
            _write_emd(np.transpose(views, (0, 2, 1)), ("angles", "y", "x"), size_nm, draft, given.edition, tilts_deg)
        else:
            write_tiff(views, size_nm, draft, given.edition)
    for path, content in beside.items():
        durable.replace(path, content)
    return [target, *beside]


def _says(path: Path, content: bytes) -> bool:
    """Is it what would be written anyway, by an export in another form?"""
    return path.is_file() and path.read_bytes() == content


def _quarters(axis_deg: float) -> tuple[int, float]:
    """(right angles to turn images by, so that the axis lies along the second dimension, or nearly; degrees that it lies off it then)"""
    quarters = round((axis_deg + 90) / 90)
    return quarters, axis_deg + 90 - 90 * quarters


def _angles(angles_deg: Array) -> bytes:
    """A .mat file of (tilts, 3) Euler angles. It holds nothing else: `importdata` gives an array only of a file with one variable."""
    file = io.BytesIO()
    savemat(file, {"angles": angles_deg})
    return file.getvalue()
