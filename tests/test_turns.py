"""A specimen that turned about all axes: its volume, and what is exported, by the turns that its atoms found."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat
from scipy.ndimage import map_coordinates
from scipy.sparse import csr_array
from scipy.spatial.transform import Rotation

from aet_stream.atoms.run import find_atoms
from aet_stream.cli import main
from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.projector import reproject
from aet_stream.reconstruct.run import Options, reconstruct
from aet_stream.reconstruct.turns import one_after, orientations, poses
from aet_stream.reconstruct.volume_file import VOLUME
from tests.atom_series import PIXEL_ANGSTROM, counted, fcc, series_of

TILTS_DEG = np.arange(-75, 76, 6.0)
PLACES = fcc(6.3)
TURNS = np.random.default_rng(1).normal(0, np.radians(1.5), (len(TILTS_DEG), 3))
SIZE_PX = 50
COUNTS = 2000.0


@pytest.fixture(scope="module")
def wobbled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crystal that wobbled by 1.5 degrees about every axis, some projections by 5 in all: series, volume, atoms."""
    images = counted(PLACES, np.full(len(PLACES), COUNTS), TILTS_DEG, size_px=SIZE_PX, turns=TURNS)
    series = series_of(tmp_path_factory.mktemp("turns") / "s" / "series.h5", images, TILTS_DEG)
    find_atoms(reconstruct(series, Options(iterations=30, quality=False, align=())))
    return series.parent


def sharpness(volume: Array, places: Array) -> float:
    """Mean of what stands at the atoms, over the highest in the volume's own distribution: blurred atoms are lower.

    places : (n, 3) [slice, row, column]
    """
    return float(map_coordinates(volume, places.T, order=1).mean() / np.sqrt(np.mean(volume.astype(float) ** 2)))


def voxels(turn: Rotation) -> Array:
    """Where the atoms lie in a volume, turned as one by the mean of all turns, which no projection tells from a turn of the specimen."""
    x, y, z = turn.apply(PLACES).T / PIXEL_ANGSTROM
    return np.stack([-y, -z, x], axis=1) + (SIZE_PX - 1) / 2


def of(path: Path) -> Array:
    with h5py.File(path) as file:
        found: Array = file[VOLUME][()]
        return found


MEAN_TURN = Rotation.from_rotvec(TURNS.mean(axis=0))


def test_a_volume_by_the_turns_that_atoms_found(wobbled: Path) -> None:
    """It explains the projections better, and its atoms are sharper; atoms found of it know how it was turned, and say the same."""
    made = wobbled / "turned.h5"
    words = ["reconstruct", str(wobbled / "series.h5"), "--atoms", str(wobbled / "atoms.h5"), "--iterations", "30", "--no-quality"]
    assert main([*words, "--out", str(made)]) == 0
    before, after = (sharpness(of(path), voxels(MEAN_TURN)) for path in (wobbled / "reconstruction.h5", made))
    assert after > before
    residuals = []
    for path in (wobbled / "reconstruction.h5", made):
        with h5py.File(path) as file:
            residuals.append(file["reconstruction/quality/residual_per_tilt"][()].mean())
    assert residuals[1] < 0.7 * residuals[0]
    own = TURNS - TURNS.mean(axis=0)
    for path in (wobbled / "atoms.h5", find_atoms(made, wobbled / "series.h5", out=wobbled / "again.h5")):
        with h5py.File(path) as file:
            turns = np.radians(file["atoms/tilts/turns_deg"][()])
            assert file["atoms/tilts/left_out"][()].sum() <= 1
        assert ((turns - turns.mean(axis=0) - own) ** 2).mean() < 0.03 * (own**2).mean()


def by_their_geometry(folder: Path, name: str, iterations: int = 12) -> tuple[Array, float]:
    """((x, y, z), residual relative to the projections) of a volume with nothing but the pair of files and the geometry of RESIRE.

    By accelerated gradient descent with positivity, bilinear, about the middle at N / 2 + 1.
    """
    projections, angles = loadmat(folder / f"{name}.mat")["projections"], loadmat(folder / f"{name}_angles.mat")["angles"]
    edges = (projections.shape[0], projections.shape[1], projections.shape[0])
    place = np.stack(np.meshgrid(*[np.arange(edge) - edge // 2 for edge in edges], indexing="ij"), -1).reshape(-1, 3)
    matrices, measured = [], []
    for image, zyx in zip(np.moveaxis(projections, 2, 0), angles, strict=True):
        seen = place @ Rotation.from_euler("ZYX", zyx, degrees=True).as_matrix()[:, :2] + np.array(image.shape) // 2  # rows of R' p
        low = np.floor(seen).astype(int)
        rays, weights, columns = [], [], []
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            at = low + corner
            weight = np.prod(1 - np.abs(seen - at), axis=1)
            inside = np.all((at >= 0) & (at < image.shape), axis=1)
            rays.append((at[:, 0] * image.shape[1] + at[:, 1])[inside])
            weights.append(weight[inside])
            columns.append(np.flatnonzero(inside))
        parts = (np.concatenate(weights).astype(np.float32), (np.concatenate(rays), np.concatenate(columns)))
        matrices.append(csr_array(parts, shape=(image.size, len(place))))
        measured.append(image.ravel())
    volume = np.zeros(len(place), np.float32)
    length = sum(float((matrix @ np.ones(len(place), np.float32)).max()) for matrix in matrices)
    before = volume
    for step in range(iterations):
        ahead = volume + np.float32(max(0, step - 1) / (step + 2)) * (volume - before)
        missing = sum(matrix.T @ (image - matrix @ ahead) for matrix, image in zip(matrices, measured, strict=True))
        before, volume = volume, np.maximum(ahead + missing / length, 0)
    residual = np.linalg.norm([matrix @ volume - image for matrix, image in zip(matrices, measured, strict=True)])
    return volume.reshape(edges), float(residual / np.linalg.norm(measured))


def test_what_is_exported_reconstructs_better_elsewhere(wobbled: Path, tmp_path: Path) -> None:
    """By default with the turns, as three Euler angles: by code that knows their geometry and nothing of ours, atoms come out sharper."""
    words = ["export", str(wobbled / "series.h5")]
    aligned = ["--aligned", str(wobbled / "reconstruction.h5"), "--crop", "44x44"]
    assert main([*words, str(tmp_path / "turned.mat"), *aligned]) == 0
    assert main([*words, str(tmp_path / "flat.mat"), *aligned, "--no-turns"]) == 0
    x, y, z = MEAN_TURN.apply(PLACES).T / PIXEL_ANGSTROM
    theirs = np.stack([-x, -y, z], axis=1) + 22
    (before, flat), (after, turned) = (by_their_geometry(tmp_path, name) for name in ("flat", "turned"))
    assert turned < 0.85 * flat
    assert sharpness(after, theirs) > sharpness(before, theirs)
    assert not loadmat(tmp_path / "flat_angles.mat")["angles"][:, [0, 2]].any()
    assert np.abs(loadmat(tmp_path / "turned_angles.mat")["angles"][:, 2]).max() > 0.5


def test_a_stack_is_turned_back_as_far_as_one_axis_goes(wobbled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rolls are in the images and in their `.xf`, tilts in the `.tlt`; what only three angles say is said."""
    assert main(["export", str(wobbled / "series.h5"), str(tmp_path / "a.mrc"), "--aligned", str(wobbled / "reconstruction.h5")]) == 0
    assert "about the image's x, too: only .mat can say it" in capsys.readouterr().err
    tilts_deg, xf = np.loadtxt(tmp_path / "a.tlt"), np.loadtxt(tmp_path / "a.xf")
    rolls_deg = np.degrees(np.arctan2(xf[:, 1], xf[:, 0]))
    own = np.degrees(TURNS - TURNS.mean(axis=0))
    assert np.corrcoef(tilts_deg - TILTS_DEG, own[:, 1])[0, 1] > 0.9
    about_the_beam = own[:, 2] * np.cos(np.radians(TILTS_DEG)) - own[:, 0] * np.sin(np.radians(TILTS_DEG))
    assert abs(np.corrcoef(rolls_deg, about_the_beam)[0, 1]) > 0.95


def test_atoms_of_another_volume_turn_nothing(wobbled: Path, tmp_path: Path) -> None:
    """Named, they are refused; beside it, they are left aside."""
    folder = Path(shutil.copytree(wobbled, tmp_path / "s"))
    reconstruct(folder / "series.h5", Options(iterations=5, quality=False, align=()))
    words = ["export", str(folder / "series.h5"), "--aligned", str(folder / "reconstruction.h5")]
    assert main([words[0], words[1], str(tmp_path / "a.mat"), *words[2:]]) == 0
    assert not loadmat(tmp_path / "a_angles.mat")["angles"][:, 0].any()
    assert main([words[0], words[1], str(tmp_path / "b.mat"), *words[2:], "--atoms", str(folder / "atoms.h5")]) == 1
    with h5py.File(folder / "atoms.h5", "r+") as file:
        file["atoms/tilts/turns_deg"][...] = 0
    with pytest.raises(ReconstructionError, match="found no turns"):
        reconstruct(folder / "series.h5", Options(atoms=folder / "atoms.h5"), out=tmp_path / "v.h5")


def test_turn_and_tilt_are_roll_tilt_and_pitch() -> None:
    """Where any place is seen, exactly: the image turned back and stretched, then a tilt about the axis, and a shift by depth."""
    rng = np.random.default_rng(2)
    turns, tilts_deg, places = rng.normal(0, 0.1, (7, 3)), rng.uniform(-180, 180, 7), rng.normal(0, 9, (40, 3))
    found = poses(tilts_deg, turns, stretched=True)
    assert np.abs(found.tilts_deg - tilts_deg).max() < 30
    for seen, roll, tilt, pitch in zip(
        orientations(tilts_deg, turns), found.rolls, np.radians(found.tilts_deg), found.pitches, strict=True
    ):
        along, x, z = places.T
        depth = z * np.cos(tilt) - x * np.sin(tilt)
        ours = np.stack([along + pitch * depth, x * np.cos(tilt) + z * np.sin(tilt)])
        np.testing.assert_allclose(roll @ ours, (places @ seen[:2].T).T, atol=1e-9)
    twice = orientations(np.zeros(7), one_after(turns, turns[::-1]))
    np.testing.assert_allclose(twice, orientations(np.zeros(7), turns[::-1]) @ orientations(np.zeros(7), turns), atol=1e-9)


def test_the_solver_sees_slices_through_each_other() -> None:
    """A point comes back where it is from projections whose axis was tilted towards who looks; and is seen there again."""
    tilts_deg = np.arange(-70, 71, 10.0)
    pitches = np.tan(np.radians(np.random.default_rng(3).normal(0, 3, len(tilts_deg))))
    volume = np.zeros((31, 31, 31), np.float32)
    volume[12, 6, 22] = volume[20, 25, 9] = 1
    views = reproject(volume, tilts_deg, pitches=pitches)
    rows = views.sum(axis=2) @ np.arange(31) / views.sum(axis=(1, 2))
    theta = np.radians(tilts_deg)
    depth = np.mean([9 * np.cos(theta) - 7 * np.sin(theta), -10 * np.cos(theta) + 6 * np.sin(theta)], axis=0)
    np.testing.assert_allclose(rows, 16 + pitches * depth, atol=1e-4)
    found = solver.solve(views, tilts_deg, iterations=40, pitches=pitches).volume
    brightest = np.stack(np.unravel_index(np.argsort(found.ravel())[-2:], found.shape), axis=1)
    assert sorted(brightest.tolist()) == [[12, 6, 22], [20, 25, 9]]
