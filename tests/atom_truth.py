"""What the benches of atoms share: series whose atoms are known, somebody else's and simulated; how found atoms are judged."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.spatial import cKDTree

from aet_stream.atoms.run import stage_for
from aet_stream.atoms.source import Source
from aet_stream.atoms.trace import Rules, Traced, trace
from aet_stream.atoms.views import to_angstrom
from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.input import Input
from aet_stream.reconstruct.registered import Alignment, apply
from aet_stream.simulate.particle import make_particle
from tests.atom_series import WIDTH_ANGSTROM, counted

REACH_ANGSTROM = 1.0
KEEP = Path("bench/atoms")
"""Volumes are kept here from run to run: a folder that git does not see."""
PUBLISHED_AXES = np.array([(0, 1, 0), (-1, 0, 0), (0, 0, -1)], float)
TILTS_DEG = {"180": np.arange(0, 180, 3.0), "70": np.linspace(-70, 70, 60)}


@dataclass(frozen=True, slots=True)
class Truth:
    """A series and its atoms."""

    name: str
    images: Array
    """(tilts, y, x) float32 counts; the pedestal of the vacuum is taken off"""
    tilts_deg: Array
    pixel_angstrom: float
    axis_px: float
    places: Array
    """(n, 3) angstrom as `atoms.h5` has them, or in a frame of their own (`framed`)"""
    numbers: Array
    """(n,) atomic numbers, 0: all one"""
    axes: Array | None = None
    """(3, 3): how x, y, z of `places` lie in our frame, where scale and offset, which nobody states, are to be found by matching"""

    @property
    def alignment(self) -> Alignment:
        middle = (self.images.shape[2] - 1) / 2
        return Alignment(np.tile([0.0, middle - self.axis_px], (len(self.images), 1)))

    def source(self, iterations: int, *, anew: bool = False, threads: int = 0) -> Source:
        """With its volume, made anew or kept from before."""
        path = KEEP / f"{self.name}_{iterations}.npy"
        if path.exists() and not anew:
            volume = np.load(path)
        else:
            registered = apply(self.images, self.alignment)
            volume = solver.solve(registered, self.tilts_deg, iterations=iterations, threads=threads).volume
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, volume)
        rows = np.arange(len(self.images))
        given = Input(self.images, self.tilts_deg, rows, self.pixel_angstrom / 10, self.name, 0.0)
        return Source(volume, given, self.alignment, self.pixel_angstrom, 0, self.name)


@dataclass(frozen=True, slots=True)
class Score:
    """One to one, the nearest first, within REACH_ANGSTROM."""

    recall: float
    precision: float
    rmsd_angstrom: float
    found: int
    true: int
    per_axis: tuple[float, float, float]
    species: dict[int, float]
    """Atomic number -> share of its atoms found, and named where kinds are told apart"""
    wrong: int
    """Missed and false."""

    def __str__(self) -> str:
        named = "" if len(self.species) < 2 else "  " + " ".join(f"Z={z}: {share:.3f}" for z, share in self.species.items())
        rates = f"recall {self.recall:.4f}  precision {self.precision:.4f}  RMSD {self.rmsd_angstrom:.3f} A"
        return f"{rates}  ({self.found:,} of {self.true:,}){named}"


def rms(values: Array) -> float:
    """NaN of none."""
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")


def one_to_one(found: Array, places: Array, reach: float = REACH_ANGSTROM) -> tuple[Array, Array]:
    """(which of found, which of places), the nearest pairs first."""
    pairs = cKDTree(found).sparse_distance_matrix(cKDTree(places), reach, output_type="ndarray")
    free_one, free_other = np.ones(len(found), bool), np.ones(len(places), bool)
    one, other = [], []
    for i, j in pairs[["i", "j"]][np.argsort(pairs["v"])].tolist():
        if free_one[i] and free_other[j]:
            free_one[i] = free_other[j] = False
            one.append(i)
            other.append(j)
    return np.array(one, int), np.array(other, int)


def judge(found: Array, truth: Truth, kinds: Array | None = None) -> Score:
    """Of (n, 3) angstrom, with (n,) kinds if they are to be named rightly, too."""
    places = in_frame(truth, found) if truth.axes is not None else truth.places
    one, other = one_to_one(found, places)
    away = found[one] - places[other]
    named = np.zeros(len(places), bool)
    order = {number: kind for kind, number in enumerate(sorted(set(truth.numbers.tolist()), reverse=True))}
    right = np.ones(len(one), bool) if kinds is None else kinds[one] == np.array([order[int(z)] for z in truth.numbers[other]])
    named[other[right]] = True
    return Score(
        len(one) / len(places),
        len(one) / max(1, len(found)),
        rms(np.linalg.norm(away, axis=1)),
        len(found),
        len(places),
        (rms(away[:, 0]), rms(away[:, 1]), rms(away[:, 2])),
        {number: float(named[truth.numbers == number].mean()) for number in order},
        len(places) + len(found) - 2 * len(one),
    )


def as_the_authors(found: Array, truth: Truth) -> tuple[float, float, float]:
    """(recall, precision, RMSD) with the authors' matching: each found atom to the nearest true one in reach, which may be used twice."""
    places = in_frame(truth, found) if truth.axes is not None else truth.places
    distance, which = cKDTree(places).query(found, distance_upper_bound=REACH_ANGSTROM)
    there = np.isfinite(distance)
    return len(set(which[there])) / len(places), float(there.mean()), float(np.sqrt((distance[there] ** 2).mean()))


def in_frame(truth: Truth, found: Array) -> Array:
    """True places in the frame of found ones: offset and scale by closest points; how axes follow each other is fixed."""
    centred, middle = truth.places - truth.places.mean(axis=0), found.mean(axis=0)
    tree, matrix = cKDTree(found), truth.axes
    some = np.random.default_rng(0).permutation(len(centred))[:1500]
    trials = [middle + shift for shift in itertools.product((-0.6, 0, 0.6), repeat=3)]
    offset = min(trials, key=lambda trial: float(np.median(tree.query(centred[some] @ matrix.T + trial)[0])))
    for _ in range(30):
        distance, which = tree.query(centred @ matrix.T + offset)
        close = distance < 0.87
        full = np.linalg.lstsq(np.c_[centred[close], np.ones(close.sum())], found[which[close]], rcond=None)[0]
        matrix, offset = full[:3].T, full[3]
    framed: Array = centred @ matrix.T + offset
    return framed


def oracle(truth: Truth, source: Source, threads: int = 0) -> tuple[Array, Array]:
    """((n, 3) angstrom, (n,) kinds): refined from the true places, nothing added, pruned or merged."""
    stage = stage_for(source, np.zeros(len(truth.images), bool), threads)
    pixel = truth.pixel_angstrom
    x, y, z = (truth.places / pixel).T
    try:
        traced: Traced = trace(
            stage,
            np.stack([-y, x, z], axis=1),
            weights_of(truth.numbers),
            pixel_angstrom=pixel,
            neighbour_angstrom=_nearest(truth.places),
            width_angstrom=WIDTH_ANGSTROM,
            kinds=len(set(truth.numbers.tolist())),
            rules=Rules(rounds=2, presence=-1.0, merge=0.0, near=0.0, pressed=0.0, alone=0, turns=False),
        )
    finally:
        stage.close()
    return to_angstrom(traced.model.places, pixel), traced.model.kinds


def _nearest(places: Array) -> float:
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))


def weights_of(numbers: Array, heaviest: float = 1.0) -> Array:
    """(n,) counts by atomic number, as the simulator has them (formation.py)."""
    weights: Array = heaviest * (np.maximum(numbers, 1) / max(1, int(numbers.max()))) ** 1.7
    return weights


def published(name: str) -> Truth:
    """np1_dose8e3, np1_dose1.6e5 or np2_dose8e3 of `simulated-np`: multislice, not ours."""
    folder = Path(os.environ["AET_STREAM_TEST_DATA"]) / "simulated-np"
    images = loadmat(str(folder / f"{name}.mat"))["Trunc_projections_forBM3D"].transpose(2, 1, 0).astype(np.float32)
    tilts_deg = loadmat(str(folder / "angles_deg.mat"))["Angle"][:, 1].astype(float)
    if name.startswith("np2"):
        places, pixel, axis = np.loadtxt(folder / "np2_atoms.txt")[:, 1:4], 0.347, 145.0
    else:
        lines = [line.replace("%", " ").split() for line in (folder / "np1_atoms.txt").read_text().splitlines()][2:]
        places, pixel, axis = np.array([[float(word) for word in line[1:4]] for line in lines]), 0.195, 64.0
    return Truth(name, images - 1, tilts_deg, pixel, axis, places, np.zeros(len(places), int), PUBLISHED_AXES)


def simulated(
    kind: str,
    elements: tuple[int, ...],
    atoms: int,
    seed: int,
    tilts: str,
    *,
    counts: float = 14.3,
    pixel_angstrom: float = 0.347,
    around_px: int = 12,
    film: float = 0.0,
) -> Truth:
    """A particle of the simulator, every atom a Gaussian of so many counts for the heaviest; with 14.3 as np2 at 8e3, with 286 as at 1.6e5.

    Parameters
    ----------
    kind : as the simulator has them; `core-shell`: an fcc crystal, the first element within 0.7 of its radius, the second around it
    around_px : of vacuum, at least
    film : counts per pixel of what lies behind, known and subtracted: with half of `counts` a small particle is as noisy as the middle of
        np2, which is three times as thick
    """
    core = kind == "core-shell"
    particle = make_particle(np.random.default_rng(seed), kind="fcc" if core else kind, atoms=atoms, elements=elements)
    places = particle.positions_nm.astype(float) * 10 * np.array([1, -1, 1])  # ours: y upwards
    numbers = particle.atomic_number
    if core:
        radius = np.linalg.norm(places, axis=1)
        numbers = np.where(radius < 0.7 * radius.max(), elements[0], elements[1])
    size_px = int(2 * np.abs(places).max() / pixel_angstrom + 2 * around_px) // 2 * 2
    weights, tilts_deg = weights_of(numbers, counts), TILTS_DEG[tilts]
    images = counted(places, weights, tilts_deg, size_px=size_px, seed=seed, pixel_angstrom=pixel_angstrom, vacuum=1 + film)
    name = f"{kind}_{'-'.join(map(str, elements))}_{atoms}_{seed}_{tilts}_{counts:g}" + (f"_{film:g}" if film else "")
    return Truth(name, images, TILTS_DEG[tilts], pixel_angstrom, (size_px - 1) / 2, places, numbers)
