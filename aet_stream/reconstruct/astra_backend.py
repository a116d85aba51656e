"""ASTRA on a GPU, slice by slice, in the geometry of projector.py, which is ASTRA's own for a centred axis: nothing is shifted or flipped.

Without a GPU its algorithms take ten times as long as the built-in solver, and some calls kill the process: it is refused there.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array

SAFE = ("sirt", "cgls", "sart", "fbp")
_POSITIVE = ("sirt", "sart")
_USUAL = {"sirt": 50, "cgls": 15, "sart": 10, "fbp": 1}


def load() -> ModuleType:
    """The astra module.

    Raises
    ------
    ReconstructionError : it does not import, or finds no GPU
    """
    try:
        astra = importlib.import_module("astra")
    except (ImportError, OSError) as error:
        raise ReconstructionError(
            f"ASTRA does not import ({error}): install it with `pip install 'aet-stream[astra]'`, or use nesterov-sirt"
        ) from error
    if not astra.use_cuda():
        raise ReconstructionError("ASTRA finds no CUDA device it can work on, and is used with one only: use nesterov-sirt")
    return astra


def check(algorithm: str) -> None:
    """Let only known algorithms through.

    Raises
    ------
    ReconstructionError : which there are
    """
    if algorithm not in SAFE:
        raise ReconstructionError(f"astra:{algorithm} is refused: it has not been checked with such data; choose {', '.join(SAFE)}")


def usual_iterations(algorithm: str) -> int:
    """Where none are asked for; of SART, whole sweeps."""
    return _USUAL[algorithm]


def solve(
    projections: Array,
    tilts_deg: Array,
    *,
    algorithm: str,
    iterations: int,
    threads: int = 0,
    astra: ModuleType | None = None,
    gpu: bool = True,
) -> Array:
    """(slice y, row, column) float32.

    Parameters
    ----------
    projections : (tilts, height, width) float32, finite
    threads : takes no effect on a GPU
    astra, gpu : the module to use, and whether on a GPU; for tests

    Raises
    ------
    ReconstructionError : an unknown algorithm, or no ASTRA
    """
    check(algorithm)
    engine = astra or load()
    tilts, height, width = projections.shape
    rays = engine.create_proj_geom("parallel", 1.0, width, np.radians(tilts_deg))
    voxels = engine.create_vol_geom(width, width)
    volume = np.empty((height, width, width), np.float32)
    projector = engine.create_projector("cuda" if gpu else "linear", rays, voxels)
    sinogram, image = engine.data2d.create("-sino", rays), engine.data2d.create("-vol", voxels)
    settings = engine.astra_dict(algorithm.upper() + ("_CUDA" if gpu else ""))
    settings |= {"ProjectorId": projector, "ProjectionDataId": sinogram, "ReconstructionDataId": image}
    if algorithm in _POSITIVE:
        settings["option"] = {"MinConstraint": 0}
    steps = iterations * tilts if algorithm == "sart" else iterations  # one of its iterations is one projection
    try:
        for y in range(height):
            engine.data2d.store(sinogram, np.ascontiguousarray(projections[:, y], np.float32))
            engine.data2d.store(image, 0.0)
            run = engine.algorithm.create(settings)
            engine.algorithm.run(run, steps)
            volume[y] = engine.data2d.get(image)
            engine.algorithm.delete(run)
    finally:
        engine.data2d.delete([sinogram, image])
        engine.projector.delete(projector)
    return volume
