"""How good and how fast the built-in solver is, on a particle whose projections are known exactly. Not a test: run it by hand.

    python -m tests.bench_reconstruct [--size 256] [--iterations 50] [--threads 2]

An fcc sphere of Gaussian atoms, 60 tilts from -70 to +70 degrees, analytic projections without noise. Printed are the relative
error |found - truth| / |truth| inside the cylinder that all tilts see, the median distance of atoms found from where they are, CPU
seconds, wall seconds and peak memory. Where tomopy imports, its SIRT does the same iterations.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import solver, stopping, tomopy_backend
from aet_stream.reconstruct.projector import Pieces

REFERENCE_PX = 256
LATTICE_PX, RADIUS_PX, SIGMA_PX = 13.0, 85.0, 1.9


def fcc_sphere(size_px: int) -> Array:
    """(atoms, 3) float64: x, y (along the tilt axis), z in pixels from the middle; 4729 atoms at 256 px."""
    scale = size_px / REFERENCE_PX
    cells = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3, indexing="ij"), -1).reshape(-1, 3)
    atoms = (cells[:, None] + np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])).reshape(-1, 3) * LATTICE_PX
    atoms = atoms[np.linalg.norm(atoms, axis=1) <= RADIUS_PX]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))  # no zone axis along the beam
    return atoms @ turn.T * scale


def gaussians(places: Array, shape: tuple[int, ...], sigma_px: float) -> Array:
    """The sum of Gaussians of height 1 at `places` (atoms, axes), sampled at pixel centres: no grid is involved in where they are."""
    *planes, rows, columns = (
        np.exp(-((np.arange(edge)[:, None] - at) ** 2) / (2 * sigma_px**2)).astype(np.float32)
        for edge, at in zip(shape, places.T, strict=True)
    )
    return np.stack([(plane * rows) @ columns.T for plane in planes[0]]) if planes else rows @ columns.T


def project(atoms: Array, tilts_deg: Array, size_px: int, sigma_px: float) -> Array:
    """(tilts, y, x) float32 line integrals."""
    middle, (x, y, z) = (size_px - 1) / 2, atoms.T
    views = []
    for tilt in np.radians(tilts_deg):
        places = np.stack([y, x * np.cos(tilt) + z * np.sin(tilt)], 1) + middle
        views.append(gaussians(places, (size_px, size_px), sigma_px) * np.float32(sigma_px * np.sqrt(2 * np.pi)))
    return np.stack(views)


def relative_error(found: Array, truth: Array) -> float:
    """Inside the cylinder around the tilt axis that stays in view."""
    middle = (truth.shape[1] - 1) / 2
    row, column = np.mgrid[: truth.shape[1], : truth.shape[2]] - middle
    inside = row**2 + column**2 <= (truth.shape[1] / 2) ** 2
    return float(np.linalg.norm((found - truth)[:, inside]) / np.linalg.norm(truth[:, inside]))


def atom_error_px(found: Array, places: Array, sigma_px: float) -> float:
    """Median 3-D distance between atoms and the parabola's peak nearest to them, after a blur of a third of their width.

    Looked at is what lies nearer to an atom than half the way to its neighbours, and within 3 px.
    """
    smooth = gaussian_filter(found, sigma_px / 3)
    apart_px = float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))
    offsets = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    offsets = offsets[np.linalg.norm(offsets, axis=1) < max(1.5, min(3 * 3**0.5, apart_px / 2))]
    distances = []
    for place in places:
        near = np.rint(place).astype(int) + offsets
        peak = near[np.argmax(smooth[tuple(near.T)])]
        fine = peak.astype(float)
        for axis, step in enumerate(np.eye(3, dtype=int)):
            low, mid, high = (np.log(max(smooth[tuple(peak + k * step)], 1e-6)) for k in (-1, 0, 1))
            fine[axis] += 0.5 * (low - high) / (low - 2 * mid + high) if low + high < 2 * mid else 0
        distances.append(np.linalg.norm(fine - place))
    return float(np.median(distances))


def stopping_rule(views: Array, truth: Array, tilts_deg: Array) -> None:
    """With noise (Poisson, 20 counts per unit, and Gaussian, 0.3): the error where the rule stops, and the least along the path.

    The path is followed on every eighth slice; slices do not know of each other.
    """
    rng = np.random.default_rng(0)
    noisy = (rng.poisson(np.maximum(views, 0) * 20) / 20 + rng.normal(0, 0.3, views.shape)).astype(np.float32)
    cpu = time.process_time()
    chosen = stopping.choose_iterations(noisy, tilts_deg)
    cpu = time.process_time() - cpu
    some = slice(3, None, 8)
    pieces = Pieces(tilts_deg, views.shape[2], None, tilts_at_once=len(tilts_deg))
    wanted = truth[some, pieces.inside].T
    path = solver.steps(pieces, solver.as_rays(noisy[:, some]), 70)
    errors = [float(np.linalg.norm(voxels - wanted) / np.linalg.norm(wanted)) for voxels, _ in path]
    best = int(np.argmin(errors))
    words = f"noise: the rule stops at {chosen} with error {errors[chosen - 1]:.4f}; least {errors[best]:.4f} at {best + 1}"
    print(f"{words}: {100 * (errors[chosen - 1] / errors[best] - 1):.1f} % above  (rule: CPU {cpu:.1f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=REFERENCE_PX)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    given = parser.parse_args()
    sigma = SIGMA_PX * given.size / REFERENCE_PX
    atoms, tilts_deg, middle = fcc_sphere(given.size), np.linspace(-70, 70, 60), (given.size - 1) / 2
    places = np.stack([atoms[:, 1] + middle, middle - atoms[:, 2], atoms[:, 0] + middle], 1)
    truth = gaussians(places, (given.size,) * 3, sigma)
    views = project(atoms, tilts_deg, given.size, sigma)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu, wall = time.process_time(), time.perf_counter()
    solution = solver.solve(views, tilts_deg, iterations=given.iterations, threads=given.threads)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{given.size}^3 voxels, {len(tilts_deg)} tilts, {len(atoms)} atoms, {given.iterations} iterations")
    print(f"relative error {relative_error(solution.volume, truth):.3f}  atoms {atom_error_px(solution.volume, places, sigma):.3f} px")
    print(f"CPU {cpu:.1f} s  wall {wall:.1f} s  peak memory {peak_mib:.0f} MiB ({before_mib:.0f} before)")
    print(f"residual {solution.residuals[-1]:.4f} of the projections", flush=True)
    beside_tomopy(views, tilts_deg, given.iterations, given.threads, cpu, lambda volume: relative_error(volume, truth))
    stopping_rule(views, truth, tilts_deg)


def beside_tomopy(views: Array, tilts_deg: Array, iterations: int, threads: int, ours_s: float, error_of: Callable[[Array], float]) -> None:
    """The same iterations of tomopy's SIRT, where there is one."""
    try:
        tomopy = tomopy_backend.load()
    except ReconstructionError:
        return
    cpu = time.process_time()
    volume = tomopy_backend.solve(views, tilts_deg, algorithm="sirt", iterations=iterations, threads=threads, tomopy=tomopy)
    cpu = time.process_time() - cpu
    words = f"relative error {error_of(volume):.3f}, CPU {cpu:.1f} s, {cpu / ours_s:.1f} times ours"
    print(f"tomopy {tomopy.__version__}, sirt, {iterations} iterations: {words}", flush=True)


if __name__ == "__main__":
    main()
