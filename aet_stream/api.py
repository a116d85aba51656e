"""What a script or a notebook calls: `import aet_stream`, then these names. None needs a daemon; torch is loaded when it is first used.

Errors of files, settings and networks are `AetError`, one line that says what to do about it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from aet_stream.config import Config, Denoise
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.errors import AetError, NoProjection
from aet_stream.files import SourceImage, read_images
from aet_stream.files import denoise_file as _denoise_file
from aet_stream.projection import Acquisition, Array, Projection, Quality, Subtracted
from aet_stream.readers.child import ReaderHere
from aet_stream.reconstruct import reconstruct
from aet_stream.series import Series

__all__ = [
    "Acquisition", "AetError", "Projection", "Quality", "Series", "Subtracted",
    "denoise_file", "open_series", "read", "reconstruct", "subtract",
]  # fmt: skip


def read(path: str | Path) -> list[Projection]:
    """Every image of a file that is a projection, of any format that is read; averaged and checked as the daemon does by default.

    Returns
    -------
    One Projection for each: `pixels` (height, width) counts in the detector's dtype, and `acquisition` with tilt (degrees), pixel size (nm)
    and all else that the file and what lies beside it say; None or empty where they say nothing, or do not agree.

    Raises
    ------
    AetError : the file, or one of its images, cannot be read
    """
    projections = []
    for image in read_images(Path(path), ReaderHere(Config()), Config()):
        if isinstance(image, SourceImage):
            projections.append(image.projection)
        elif not isinstance(image, NoProjection):
            raise image
    return projections


def subtract(image: Array, *, model: str = "default", device: str = "auto", fusion: bool = True) -> Subtracted:
    """Remove the background of one image: clean = raw - background, nothing clipped or masked.

    Parameters
    ----------
    image : (height, width), any real dtype, finite; detector counts
    model : "default", "dncnn-2019", a classical estimator ("laplace", "expert", ...), or a path to weights
    device : "auto", "cpu", "cuda" or "cuda:N"
    fusion : weigh the network against what vacuum and lattice fringes say

    Returns
    -------
    Subtracted : `clean` (height, width) float32, counts; `quality` with the expected error in counts, a trust from 0 to 1, and more

    Raises
    ------
    ValueError : the image is not two-dimensional, real and finite
    AetError : there is no such model or device
    """
    pixels = np.asarray(image)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biuf" or min(pixels.shape) < 2:
        raise ValueError(f"an image of shape {pixels.shape} and type {pixels.dtype}: one (height, width) of real numbers is needed")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(pixels))} pixels are not finite: mend them first")
    return _denoiser(model, device, fusion).subtract(pixels)


@lru_cache(maxsize=4)
def _denoiser(model: str, device: str, fusion: bool) -> Denoiser:
    return Denoiser(Denoise(model=model, device=device, fusion=fusion))


def denoise_file(path: str | Path, target: str | Path, *, model: str = "default", device: str = "auto", fusion: bool = True) -> int:
    """Write raw, clean, background and quality of every image of a file to an HDF5 file, as `aet-stream denoise` does; returns how many.

    Parameters
    ----------
    target : replaced if it is there, once the new one is whole
    model, device, fusion : as for `subtract`

    Raises
    ------
    AetError : the file, or one of its images, cannot be read; those that can are written all the same
    """
    settings = Config(denoise=Denoise(model=model, device=device, fusion=fusion))
    denoiser = _denoiser(model, device, fusion)
    count, complaints = _denoise_file(Path(path), Path(target), ReaderHere(settings), denoiser, settings)
    for complaint in complaints:
        if not isinstance(complaint, NoProjection):
            raise complaint
    return count


def open_series(path: str | Path) -> Series:
    """A `series.h5` of the daemon, growing or closed; use it in a `with` block. Its frames are read one by one and checked.

    Raises
    ------
    AetError : it is no tilt series of ours, or damaged
    """
    return Series(Path(path))
