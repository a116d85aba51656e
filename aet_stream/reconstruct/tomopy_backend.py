"""tomopy, when it imports (conda-forge only), made to agree with the built-in solver about where things are.

Its iterative algorithms count the axis in pixel edges (N/2 is the middle), gridrec in pixel centres ((N - 1)/2). gridrec also shifts the
slice by half a pixel (even widths) or one (odd ones), and wraps around unless padded. No logarithm is taken: ADF intensities are linear.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import numpy as np
from scipy.ndimage import shift

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array

SAFE = ("gridrec", "sirt", "art", "bart", "tv")
_WHY_NOT = {
    "mlem": "it needs data without negative values; background-free vacuum has noise around 0",
    "osem": "it divides by zero where the background is 0",
    **dict.fromkeys(("pml_quad", "pml_hybrid", "ospml_quad", "ospml_hybrid"), "it gives NaN where projections are negative"),
    "grad": "it diverges with its default parameters",
    "tikh": "it diverges with its default parameters",
    "fbp": "in tomopy it is back-projection without a filter",
}
_PAD_PX = 32
"""gridrec does not pad widths that are powers of two, and its outermost row and column are undefined: both stay outside."""
_MARGIN_PX = 8
"""What a shift by half a pixel may look at around the slice."""


def load() -> ModuleType:
    """The tomopy module.

    Raises
    ------
    ReconstructionError : it does not import, and how to get it
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parts that are not built are of no use to us
            return importlib.import_module("tomopy")
    except (ImportError, OSError) as error:
        raise ReconstructionError(
            f"tomopy does not import ({error}): install it with conda (environment.yml), or use nesterov-sirt"
        ) from error


def check(algorithm: str) -> None:
    """Let only those through that give sound volumes from background-free projections.

    Raises
    ------
    ReconstructionError : why this one does not
    """
    if algorithm not in SAFE:
        why = _WHY_NOT.get(algorithm, "it has not been checked against data like these")
        raise ReconstructionError(f"tomopy:{algorithm} is refused: {why}; choose {', '.join(SAFE)}")


def usual_iterations(algorithm: str) -> int:
    """Where none are asked for; gridrec, which is direct, takes no notice."""
    return 1 if algorithm == "gridrec" else 50


def solve(
    projections: Array, tilts_deg: Array, *, algorithm: str, iterations: int = 50, threads: int = 0, tomopy: ModuleType | None = None
) -> Array:
    """(slice y, row, column) float32 by one of tomopy's algorithms, in the geometry of solver.py.

    Parameters
    ----------
    projections : (tilts, height, width) float32, finite
    threads : 0: all cores
    tomopy : the module to use; None: the installed one

    Raises
    ------
    ReconstructionError : an algorithm that is not safe for such data, pixels that are not finite, or no tomopy
    """
    check(algorithm)
    engine = tomopy or load()
    data = np.array(projections, dtype=np.float32, order="C")  # a copy: tomopy may write into what it is given
    for row, projection in enumerate(data):
        if not np.isfinite(projection).all():
            raise ReconstructionError(f"row {row} has pixels that are not finite (NaN or infinite): tomopy would spoil whole slices")
    theta = np.radians(np.asarray(tilts_deg, dtype=np.float64))
    cores = threads or len(os.sched_getaffinity(0))
    if algorithm == "gridrec":
        return _gridrec(engine, data, theta, cores)
    volume: Array = engine.recon(
        data, theta, center=data.shape[2] / 2, algorithm=algorithm, num_iter=int(iterations), sinogram_order=False, ncore=cores
    )
    return volume


def _gridrec(engine: ModuleType, data: Array, theta: Array, cores: int) -> Array:
    width = data.shape[2]
    padded = np.pad(data, ((0, 0), (0, 0), (_PAD_PX, _PAD_PX)), mode="edge")
    volume = engine.recon(padded, theta, center=(padded.shape[2] - 1) / 2, algorithm="gridrec", sinogram_order=False, ncore=cores)
    near = slice(_PAD_PX - _MARGIN_PX, _PAD_PX + width + _MARGIN_PX)
    inner = slice(_MARGIN_PX, _MARGIN_PX + width)
    across = (0.5, -0.5) if width % 2 == 0 else (1.0, -1.0)
    return np.stack([shift(one[near, near], across, order=3, mode="nearest")[inner, inner] for one in volume]).astype(np.float32)
