"""An old acquisition again: its images, read by our own readers, written anew file by file at a cadence."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from aet_stream.errors import SourceError
from aet_stream.projection import Array, Projection
from aet_stream.readers import Source, open_source
from aet_stream.readers.frames import combine
from aet_stream.readers.sidecar import SUFFIXES, beside

_MAX_BYTES = 8 << 30


def load(source: Path, angles: Path | None) -> tuple[list[Array], Array, float]:
    """(images, tilts in degrees, pixel size in nm) of a folder of files or one stack.

    Parameters
    ----------
    angles : where the tilts are when the source does not say: text with one per line, .npy, or .mat ((N,) or (N, 3), tilt second)

    Raises
    ------
    SourceError : no images, or no tilt for one of them
    """
    files = sorted(path for path in source.iterdir() if path.suffix.lower() not in SUFFIXES) if source.is_dir() else [source]
    found = [projection for path in files for projection in _images(path)]
    if not found:
        raise SourceError(f"{source}: no images to replay")
    tilts = load_angles(angles) if angles else np.array([_known_tilt(source, i, p) for i, p in enumerate(found)])
    if len(tilts) != len(found):
        raise SourceError(f"{angles}: {len(tilts)} tilts for {len(found)} images")
    sizes = [p.acquisition.pixel_size_nm for p in found if p.acquisition.pixel_size_nm]
    return [_narrow(p.pixels) for p in found], tilts, sizes[0] if sizes else 0.1


def _images(path: Path) -> list[Projection]:
    source = open_source(path, _MAX_BYTES)
    return [_image(path, source, image) for image in range(source.probe.images)]


def _image(path: Path, source: Source, image: int) -> Projection:
    """One visit, its tilt from the file or else from a sidecar."""
    known, said = source.acquisition(image), beside(path, image, source.probe.images)
    if known.tilt_deg is None and said.tilts:
        known = msgspec.structs.replace(known, tilt_deg=said.tilts[0].tilt_deg, tilt_raw=said.tilts[0].raw)
    mean, _, drift = combine(source.frames(image), known.scan_rotation_deg, keep="none", max_shift=0.25)
    return Projection(mean, known, drift)


def _narrow(pixels: Array) -> Array:
    """Doubles that are singles in disguise become singles, which every format can hold."""
    single = pixels.astype("<f4") if pixels.dtype == np.float64 else pixels
    return single if np.array_equal(single, pixels) else pixels


def _known_tilt(source: Path, index: int, projection: Projection) -> float:
    if projection.acquisition.tilt_deg is None:
        raise SourceError(f"{source}: image {index} says no tilt; give them with --angles FILE")
    return projection.acquisition.tilt_deg


def load_angles(path: Path) -> Array:
    """(n,) degrees from text, .npy or .mat.

    Raises
    ------
    SourceError : not a list of angles
    """
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            values = next(v for k, v in loadmat(str(path)).items() if not k.startswith("_") and np.asarray(v).dtype.kind in "iuf")
        elif path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.loadtxt(path)
    except (OSError, ValueError, StopIteration) as error:
        raise SourceError(f"{path}: no list of angles: {error}") from error
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    return values[:, 1] if values.ndim == 2 and values.shape[1] == 3 else values.ravel()
