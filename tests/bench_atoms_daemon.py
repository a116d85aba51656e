"""From replayed files to atoms: a multislice series of an amorphous particle, with and without a background that the daemon has to remove.

    AET_STREAM_TEST_DATA=... python -m tests.bench_atoms_daemon [--method nesterov-sirt] [--iterations 30] [--background 4] [--only WORD]

The series `simulated-np/np2` goes file by file, as it was recorded, through a running daemon, which makes the volume when it closes the
series. Local maxima, refined by a parabola, are matched to the true atoms within 1 angstrom. Four times: `without` background (a constant
pedestal is subtracted); with a smooth uneven background of so many counts, `removed` by the default network; with the Poisson noise that
such a background brings along, removed likewise (`noisy`); and that with the background subtracted exactly, as if it were `known`. So the
first two, and again the last two under more noise, tell what its removal costs. The tilt axis of this series lies along the images' x:
`orientation.transpose` says so. How the atoms' x, y, z follow the volume's axes is fixed, so that a volume of the wrong hand finds nothing;
scale and offset, which the data do not state, are fitted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.spatial import cKDTree

from aet_stream.projection import Array
from aet_stream.reconstruct.volume_file import VOLUME
from aet_stream.simulate.writers import npy
from tests.harness import Daemon

PIXEL_ANGSTROM = 0.347  # fitted to the atoms; refined below
REACH_ANGSTROM = 1.0
ATOM_AXES = np.array([(1, 0, 0), (0, 0, 1), (0, 1, 0)])
"""The atoms' x runs with the slices, z with the rows, y with the columns."""


def background(count: int, size_px: int, mean: float, seed: int = 0) -> Array:
    """(count, y, x): a slope and a wave, drifting slowly from frame to frame."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size_px, :size_px] / size_px - 0.5
    phases = np.cumsum(rng.normal(0, 0.1, (count, 4)), axis=0) + rng.uniform(0, 6, 4)
    shapes = [1 + 0.5 * np.sin(a) * x + 0.5 * np.cos(b) * y + 0.2 * np.cos(5 * x + c) * np.cos(4 * y + d) for a, b, c, d in phases]
    return mean * np.stack(shapes)


def through_the_daemon(folder: Path, images: Array, tilts_deg: Array, model: str, **settings: object) -> Path:
    """Each image as a file; the path of the volume."""
    wanted = {"orientation__transpose": True, "reconstruct__on_close": True, "reconstruct__quality": False, **settings}
    daemon = Daemon(folder, denoise__model=model, **wanted)
    target = daemon.root / "np"
    target.mkdir(parents=True)
    for index, (image, tilt) in enumerate(zip(images, tilts_deg, strict=True)):
        (target / f"p_{index:03d}_{tilt:+.2f}deg.npy").write_bytes(npy(image, float(tilt), PIXEL_ANGSTROM / 10))
    assert daemon.run("--until-idle", "2", "--strict", limit_s=7200) == 0, daemon.log.read_text()[-2000:]
    return daemon.out / "np" / "reconstruction.h5"


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
    """(3, 3) matrix and offset that bring atoms (angstrom) to voxels: offset by trial, then both by closest points."""
    centred, middle = atoms - atoms.mean(axis=0), found.mean(axis=0)
    tree, matrix = cKDTree(found), ATOM_AXES / PIXEL_ANGSTROM
    some = np.random.default_rng(0).permutation(len(atoms))[:1500]
    trials = [middle + shift for shift in itertools.product((-1.5, 0, 1.5), repeat=3)]
    offset = min(trials, key=lambda trial: float(np.median(tree.query(centred[some] @ matrix.T + trial)[0])))
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
    parser.add_argument("--method", default="nesterov-sirt")
    parser.add_argument("--iterations", type=int, default=30, help="0: the stopping rule, which is after the voxels, not the atoms")
    parser.add_argument("--background", type=float, default=4.0, help="mean counts (the particle has about 10)")
    parser.add_argument("--only", default="", help="without, removed, noisy or known")
    parser.add_argument("--set", default="{}", help="further settings, as JSON")
    given = parser.parse_args()
    data = Path(os.environ["AET_STREAM_TEST_DATA"]) / "simulated-np"
    images = loadmat(str(data / "np2_dose8e3.mat"))["Trunc_projections_forBM3D"].transpose(2, 0, 1).astype("<u2")
    tilts_deg = loadmat(str(data / "angles_deg.mat"))["Angle"][:, 1].astype(float)
    atoms = np.loadtxt(data / "np2_atoms.txt")[:, 1:4]
    extra = background(len(images), images.shape[1], given.background)
    noisy = (images + np.random.default_rng(1).poisson(extra)).astype("<u2")
    cases = {
        "without": (images, "constant"),
        "removed": ((images + extra).astype("<f4"), "default"),
        "noisy": (noisy, "default"),
        "known": ((noisy - extra).astype("<f4"), "constant"),
    }
    settings = {"reconstruct__method": given.method, "reconstruct__iterations": given.iterations, **json.loads(given.set)}
    for title, (stack, model) in cases.items():
        if given.only in ("", title):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as name:
                path = through_the_daemon(Path(name), stack, tilts_deg, model, **settings)
                volume, iterations = h5py.File(path)[VOLUME][()], h5py.File(path)["reconstruction"].attrs["iterations_done"]
            found = peaks(volume)
            matrix, offset = register(found, atoms)
            pixel = float(1 / np.cbrt(abs(np.linalg.det(matrix))))
            words = judge(found, atoms @ matrix.T + offset, pixel)
            took_s = time.monotonic() - began
            print(f"{title}: {given.method}, {iterations} iterations: {words}  pixel {pixel:.4f} A  {took_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
