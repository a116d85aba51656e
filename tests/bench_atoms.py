"""From replayed files to atoms: a multislice series of an amorphous particle, with and without a background that the daemon has to remove.

    AET_STREAM_TEST_DATA=... python -m tests.bench_atoms [--iterations 0] [--background 4]

The series `simulated-np/np2` goes file by file through a running daemon; its volume is searched for local maxima, refined by a
parabola, and matched to the true atoms within 1 angstrom. Once as it is (a constant pedestal is subtracted), once with a smooth uneven
background of so many counts and its Poisson noise on top, removed by the default network. Pixel size, orientation and offset, which the
data do not state, are fitted once, to the volume without background.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

from aet_stream.projection import Array
from aet_stream.reconstruct import solver, stopping, tomopy_backend
from aet_stream.reconstruct.run import read_input
from aet_stream.simulate.writers import npy
from tests.harness import Daemon

PIXEL_ANGSTROM = 0.347  # fitted to the atoms; refined below
REACH_ANGSTROM = 1.0


def background(count: int, size_px: int, mean: float, seed: int = 0) -> Array:
    """(count, y, x): a slope and a wave, drifting slowly from frame to frame."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size_px, :size_px] / size_px - 0.5
    phases = np.cumsum(rng.normal(0, 0.1, (count, 4)), axis=0) + rng.uniform(0, 6, 4)
    shapes = [1 + 0.5 * np.sin(a) * x + 0.5 * np.cos(b) * y + 0.2 * np.cos(5 * x + c) * np.cos(4 * y + d) for a, b, c, d in phases]
    return mean * np.stack(shapes)


def through_the_daemon(folder: Path, images: Array, tilts_deg: Array, model: str) -> Path:
    """Each image as a file; the path of the closed series."""
    daemon = Daemon(folder, denoise__model=model)
    target = daemon.root / "np"
    target.mkdir(parents=True)
    for index, (image, tilt) in enumerate(zip(images, tilts_deg, strict=True)):
        (target / f"p_{index:03d}_{tilt:+.2f}deg.npy").write_bytes(npy(image.astype("<u2"), float(tilt), PIXEL_ANGSTROM / 10))
    assert daemon.run("--until-idle", "2", "--strict", limit_s=900) == 0, daemon.log.read_text()[-2000:]
    return daemon.out / "np" / "series.h5"


def peaks(volume: Array) -> Array:
    """(n, 3) voxel coordinates of local maxima that stand out from the rest by Otsu's threshold."""
    smooth = gaussian_filter(volume, 1.2)
    top = (smooth == maximum_filter(smooth, size=5)) & (smooth > 0.05 * smooth.max())
    top[[0, -1]] = top[:, [0, -1]] = top[:, :, [0, -1]] = False
    places = np.argwhere(top)
    heights = smooth[tuple(places.T)]
    places = places[heights > _otsu(heights)]
    fine = places.astype(np.float64)
    for axis, step in enumerate(np.eye(3, dtype=int)):
        low, mid, high = (smooth[tuple((places + k * step).T)] for k in (-1, 0, 1))
        bend = low - 2 * mid + high
        fine[:, axis] += np.where(bend < 0, np.clip(0.5 * (low - high) / np.where(bend < 0, bend, -1), -0.5, 0.5), 0)
    return fine


def _otsu(values: Array) -> float:
    edges = np.quantile(values, np.linspace(0.02, 0.98, 97))
    scores = [np.mean(values < e) * np.mean(values >= e) * (values[values < e].mean() - values[values >= e].mean()) ** 2 for e in edges]
    return float(edges[int(np.argmax(scores))])


def register(found: Array, atoms: Array) -> tuple[Array, Array]:
    """(3, 3) matrix and offset that bring atoms (angstrom) to voxels: axes by trial, then scale and offset by closest points."""
    centred, middle = atoms - atoms.mean(axis=0), found.mean(axis=0)
    tree, best = cKDTree(found), (np.inf, np.eye(3))
    some = np.random.default_rng(0).permutation(len(atoms))[:1500]
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = np.array(signs) / PIXEL_ANGSTROM
            for shift in itertools.product((-1.5, 0, 1.5), repeat=3):
                distance = float(np.median(tree.query(centred[some] @ matrix.T + middle + shift)[0]))
                if distance < best[0]:
                    best, offset = (distance, matrix), middle + shift
    matrix = best[1]
    for _ in range(30):
        distance, which = tree.query(centred @ matrix.T + offset)
        close = distance < 2.5
        full = np.linalg.lstsq(np.c_[centred[close], np.ones(close.sum())], found[which[close]], rcond=None)[0]
        matrix, offset = full[:3].T, full[3]
    return matrix, offset - matrix @ atoms.mean(axis=0)


def judge(found: Array, places: Array, pixel_angstrom: float) -> str:
    """Recall, precision, RMSD of a one-to-one match within reach."""
    distance, which = cKDTree(places).query(found, distance_upper_bound=REACH_ANGSTROM / pixel_angstrom)
    order = np.argsort(distance)
    taken, matched = set(), []
    for index in order[np.isfinite(distance[order])]:
        if which[index] not in taken:
            taken.add(which[index])
            matched.append(distance[index])
    rmsd = pixel_angstrom * float(np.sqrt(np.mean(np.square(matched)))) if matched else float("nan")
    recall, precision = len(matched) / len(places), len(matched) / max(1, len(found))
    return f"recall {recall:.4f}  precision {precision:.4f}  RMSD {rmsd:.3f} A  ({len(found)} peaks)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=0)
    parser.add_argument("--background", type=float, default=4.0, help="mean counts (the particle has about 10)")
    given = parser.parse_args()
    data = Path(os.environ["AET_STREAM_TEST_DATA"]) / "simulated-np"
    images = loadmat(str(data / "np2_dose8e3.mat"))["Trunc_projections_forBM3D"].T  # (tilt, x, y): the tilt axis of these lies along x
    tilts_deg = loadmat(str(data / "angles_deg.mat"))["Angle"][:, 1].astype(float)
    atoms = np.loadtxt(data / "np2_atoms.txt")[:, 1:4]
    extra = background(len(images), images.shape[1], given.background)
    noisy = images + np.random.default_rng(1).poisson(extra)
    methods = ["nesterov-sirt"] + ([] if tomopy_backend.available() else ["tomopy:sirt"])
    frame: tuple[Array, Array] | None = None
    with tempfile.TemporaryDirectory() as name:
        for title, stack, model in (("without background", images, "constant"), ("background removed", noisy, "default")):
            series = read_input(through_the_daemon(Path(name) / model, stack, tilts_deg, model))
            views = series.projections
            for method in methods:
                began = time.process_time()
                if method == "nesterov-sirt":
                    iterations = given.iterations or stopping.choose_iterations(views, series.tilts_deg)
                    volume = solver.solve(views, series.tilts_deg, iterations=iterations).volume
                else:
                    iterations = 50
                    volume = tomopy_backend.solve(views, series.tilts_deg, algorithm="sirt", iterations=iterations)
                found = peaks(volume)
                frame = frame or register(found, atoms)
                pixel = float(1 / np.cbrt(abs(np.linalg.det(frame[0]))))
                words = judge(found, atoms @ frame[0].T + frame[1], pixel)
                cpu_s = time.process_time() - began
                print(f"{title}, {method}, {iterations} iterations: {words}  pixel {pixel:.4f} A  CPU {cpu_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
