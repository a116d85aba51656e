"""An old acquisition again: its images, read by our own readers, written anew file by file at a cadence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aet_stream.config import Angle
from aet_stream.errors import SourceError
from aet_stream.projection import Array
from aet_stream.readers.angle import resolve
from aet_stream.readers.angle_array import tilts_deg
from aet_stream.readers.frames import combine
from aet_stream.readers.hdf5 import opened
from aet_stream.readers.looking import Sources, Unit, look
from aet_stream.readers.sidecar import is_loose, is_sidecar

_MAX_BYTES = 8 << 30
_RULES = Angle()


def load(source: Path, angles: Path | None) -> tuple[list[Array], Array, float | None]:
    """(images, tilts in degrees, pixel size in nm or None) of a folder of files or one stack; 2 comes before 10 in their names.

    Parameters
    ----------
    angles : where the tilts are when the source does not say: text with one per line, .npy, or .mat ((N,) or (N, 3), tilt second)

    Raises
    ------
    SourceError : no images; a tilt that the daemon would hold by its own settings; angles that may be meant for other images
    """
    if not source.exists():
        raise SourceError(f"{source}: no such file or folder")
    beside = sorted(source.iterdir(), key=_natural) if source.is_dir() else [source]
    files = [path for path in beside if not is_sidecar(path.name)]
    loose = tuple(path for path in (beside if source.is_dir() else source.parent.iterdir()) if is_loose(path.name))
    found = [one for path in files for one in _images(path, loose)]
    if not found:
        raise SourceError(f"{source}: no images to replay")
    given = load_angles(angles) if angles else np.full(len(found), np.nan)
    if len(given) != len(found):
        raise SourceError(f"{angles}: {len(given)} tilts for {len(found)} images")
    if angles and (moved := [path.name for path, other in zip(files, sorted(files), strict=True) if path != other]):
        raise SourceError(
            f"{angles} gives tilts by position, and {moved[0]} has one place by number and another by letter: give numbers leading zeros, "
            "or say the tilts in a table beside the images (.csv with the columns file and tilt)"
        )
    tilts = [_tilt(path, unit, promised, tilt) for (path, unit, promised, _), tilt in zip(found, given.tolist(), strict=True)]
    return [_narrow(pixels) for *_, pixels in found], np.array(tilts), _pixel_size(source, [unit for _, unit, *_ in found])


def _natural(path: Path) -> list[str | int]:
    """Numbers in a name count as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _images(path: Path, loose: tuple[Path, ...]) -> Iterator[tuple[Path, Unit, int, Array]]:
    """(file, what is said of the image, images that the file promises, pixels) of every visit."""
    sources = Sources(_MAX_BYTES)
    seen = look(sources, path, loose, lenient=True)
    source = sources.open(path, loose).source
    for unit in seen.units:
        pixels, _, _ = combine(source.frames(unit.image), unit.acquisition.scan_rotation_deg, keep="none", max_shift=0.25)
        yield path, unit, seen.probe.promised, pixels


def _tilt(path: Path, unit: Unit, promised: int, given_deg: float) -> float:
    """What the image says as the daemon hears it; or what is given (no NaN), which must not contradict that."""
    stated, hold = resolve(unit.acquisition, unit.tilts, path.name, promised, _RULES, remark=unit.remark)
    if np.isnan(given_deg):
        if hold:
            raise SourceError(f"{path} image {unit.image}: {hold}; give the tilts of all images with --angles FILE")
        return stated[0].tilt_deg
    if not hold and abs(stated[0].tilt_deg - given_deg) > _RULES.tolerance_deg:
        said = f"its {stated[0].source} says {stated[0].tilt_deg:g} deg ({stated[0].raw!r})"
        raise SourceError(
            f"{path} image {unit.image}: --angles says {given_deg:g} deg, but {said}: correct one of them, or leave --angles out"
        )
    return given_deg


def _pixel_size(source: Path, units: list[Unit]) -> float | None:
    """Of all images; None unless every one says it."""
    sizes = [unit.acquisition.pixel_size_nm for unit in units]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    if max(known) > 1.01 * min(known):
        raise SourceError(f"{source}: pixels from {min(known):g} to {max(known):g} nm: replay images of each size by themselves")
    return known[0]


def _narrow(pixels: Array) -> Array:
    """Doubles that are singles in disguise become singles, which every format can hold."""
    single = pixels.astype("<f4") if pixels.dtype == np.float64 else pixels
    return single if np.array_equal(single, pixels) else pixels


def load_angles(path: Path) -> Array:
    """(n,) degrees from text, .npy or .mat.

    Raises
    ------
    SourceError : not a list of angles
    """
    from scipy.io.matlab import MatReadError

    try:
        if path.suffix == ".mat":
            values = _first_numbers(path)
        elif path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.loadtxt(path)
        values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (OSError, ValueError, EOFError, StopIteration, MatReadError) as error:
        raise SourceError(f"{path}: no list of angles: {error}") from error
    if values.ndim == 2 and values.shape[1] == 3:
        tilts, _, remark = tilts_deg(str(path), values, len(values))
        if tilts is None:
            raise SourceError(remark)
        values = tilts
    values = values.ravel()
    if not np.isfinite(values).all():
        raise SourceError(f"{path}: no list of angles: not all of them are finite")
    return values


def _first_numbers(path: Path) -> Array:
    """The first numeric variable of a .mat file, of version 5 or 7.3."""
    import h5py
    from scipy.io import loadmat

    if h5py.is_hdf5(path):
        with opened(path) as file:
            return next(item[()].T for item in file.values() if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf")
    return next(v for k, v in loadmat(str(path)).items() if not k.startswith("_") and np.asarray(v).dtype.kind in "iuf")
