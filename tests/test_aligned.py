"""Projections in register for other programs: read by mrcfile, numpy and scipy, moved as IMOD would, made into the same volume."""

from __future__ import annotations

from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from scipy.io import loadmat
from scipy.ndimage import map_coordinates

from aet_stream.cli import main
from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import solver
from aet_stream.reconstruct.aligned import Aligned
from aet_stream.reconstruct.export import export
from aet_stream.reconstruct.registered import Alignment, apply
from aet_stream.reconstruct.run import Options, reconstruct
from aet_stream.reconstruct.volume_file import VOLUME
from tests.test_reconstruct import place_of
from tests.test_tilt_axis import ATOMS, TILTS_DEG, atoms, series_of

AXIS_DEG = 60.0
ITERATIONS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a series in no order of tilts, about a turned axis, whose wide projections have drifted; with its volume."""
    drift = Alignment(np.random.default_rng(3).uniform(-2, 2, (len(TILTS_DEG), 2)))
    views = apply(atoms(AXIS_DEG, shape=(60, 70)), drift)
    series = series_of(tmp_path_factory.mktemp("aligned"), views, AXIS_DEG)
    order = np.random.default_rng(7).permutation(len(views))
    with h5py.File(series, "r+") as file:
        for name in ("/exchange/data", "/exchange/theta", "/aet/projection/clean_crc32"):
            file[name][...] = file[name][()][order]
    reconstruct(series, Options(iterations=ITERATIONS, align=("common-line", "center-of-mass"), quality=False))
    return series.parent


def aligned(folder: Path, target: Path, **how: object) -> Path:
    export(folder / "series.h5", target, aligned=Aligned(folder / "reconstruction.h5", **how))  # type: ignore[arg-type]
    return target


def mrc(path: Path) -> Array:
    with mrcfile.open(path) as file:
        return np.array(file.data)


def by_imod(stack: Array, lines: Array, shape: tuple[int, int]) -> Array:
    """Each image moved by its line of an `.xf`, as IMOD's man pages have it: from the middle of the image, rows counted upwards.

    X' = A11 X + A12 Y + DX, Y' = A21 X + A22 Y + DY.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    middle, new_middle = (np.array(stack.shape[1:]) - 1) / 2, (np.array(shape) - 1) / 2
    moved = []
    for image, (a11, a12, a21, a22, dx, dy) in zip(stack, lines, strict=True):
        to = np.stack([columns - new_middle[1] - dx, rows - new_middle[0] - dy])
        x, y = np.tensordot(np.linalg.inv([[a11, a12], [a21, a22]]), to, axes=1)
        moved.append(map_coordinates(image, [y + middle[0], x + middle[1]], order=3, mode="nearest"))
    return np.stack(moved)


def test_what_others_make_of_it_is_the_same_volume(folder: Path, tmp_path: Path) -> None:
    """The plain stack, moved by the `.xf` as IMOD would, is the aligned one; and that gives the volume, without any word of ours."""
    stack = mrc(aligned(folder, tmp_path / "aligned.mrc"))
    export(folder / "series.h5", tmp_path / "plain.mrc")
    again = by_imod(mrc(tmp_path / "plain.mrc"), np.loadtxt(tmp_path / "aligned.xf"), stack.shape[1:])
    assert np.abs(again - stack).max() < 0.01 * stack.max()
    tilts_deg = np.loadtxt(tmp_path / "aligned.tlt")
    np.testing.assert_allclose(tilts_deg, TILTS_DEG, atol=1e-4)
    with h5py.File(folder / "reconstruction.h5") as file:
        volume = file[VOLUME][()]
    made = solver.solve(np.ascontiguousarray(stack[:, ::-1]), tilts_deg, iterations=ITERATIONS).volume
    assert stack.shape[1:] == (70, 60)
    np.testing.assert_allclose(made, volume, atol=0.01 * volume.max())
    middle = np.average(ATOMS, axis=0, weights=[atom[3] for atom in ATOMS])  # which the alignment puts onto the axis
    for across, above, along, _ in ATOMS:
        there = (across - middle[0], above - middle[1], 34.5 + along)
        assert place_of(made, *there)[:2] == pytest.approx(there[:2], abs=0.6)


def test_the_plain_stack_says_where_its_axis_lies(folder: Path, tmp_path: Path) -> None:
    """In the words of SerialEM that IMOD looks for, in the view that IMOD has: rows upwards, so turned the other way than in the series."""
    export(folder / "series.h5", tmp_path / "plain.mrc")
    with mrcfile.open(tmp_path / "plain.mrc") as file:
        assert "Tilt axis angle = -60.00" in " ".join(file.get_labels())
    with mrcfile.open(aligned(folder, tmp_path / "aligned.mrc")) as file:
        assert "tilt axis along y" in " ".join(file.get_labels())


@pytest.mark.parametrize(("width", "height", "bin_by"), [(47, 50, 1), (48, 57, 2), (59, 70, 3)])
def test_cropped_and_binned_about_the_axis(folder: Path, tmp_path: Path, width: int, height: int, bin_by: int) -> None:
    """Odd or even, the axis stays in the middle: each point is where it was, in larger pixels."""
    path = aligned(folder, tmp_path / "small.mrc", bin=bin_by, crop_px=(width, height))
    with mrcfile.open(path) as file:
        assert file.voxel_size.x == pytest.approx(0.4 * bin_by)
    stack = mrc(path)
    assert stack.shape[1:] == (height // bin_by, width // bin_by)
    volume = solver.solve(np.ascontiguousarray(stack[:, ::-1]), TILTS_DEG, iterations=20).volume
    seen = volume.sum(axis=(0, 1)) @ (np.arange(volume.shape[2]) - (volume.shape[2] - 1) / 2) / volume.sum()
    across = np.average([atom[0] for atom in ATOMS], weights=[atom[3] for atom in ATOMS])
    with h5py.File(folder / "reconstruction.h5") as file:
        whole = file[VOLUME][()]
    found = whole.sum(axis=(0, 1)) @ (np.arange(whole.shape[2]) - (whole.shape[2] - 1) / 2) / whole.sum()
    assert across == pytest.approx(found, abs=0.6)
    assert seen * bin_by == pytest.approx(found, abs=0.35)


def test_every_projection_of_one_total(folder: Path, tmp_path: Path) -> None:
    """Normalised, with the mean of all as it was."""
    before, after = (mrc(aligned(folder, tmp_path / f"{yes}.mrc", normalised=yes)).sum(axis=(1, 2)) for yes in (False, True))
    assert np.ptp(before) > 0
    np.testing.assert_allclose(after, before.mean(), rtol=1e-5)


def test_the_pair_that_genfire_and_resire_take(folder: Path, tmp_path: Path) -> None:
    """`projections` (x from its end, y, tilt) and `angles`, three Euler angles each, the tilt in the middle; TIFF has the same images.

    Of an odd number of pixels: of an even one their middle is another (tests/test_exports.py).
    """
    aligned(folder, tmp_path / "p.mat", crop_px=(59, 69))
    aligned(folder, tmp_path / "p.tif", crop_px=(59, 69))
    projections, angles = loadmat(tmp_path / "p.mat")["projections"], loadmat(tmp_path / "p_angles.mat")["angles"]
    np.testing.assert_allclose(angles, np.stack([0 * TILTS_DEG, TILTS_DEG, 0 * TILTS_DEG], 1), atol=1e-9)
    np.testing.assert_array_equal(projections[::-1].transpose(2, 1, 0), tifffile.imread(tmp_path / "p.tif"))
    assert {path.name for path in tmp_path.iterdir()} == {"p.mat", "p_angles.mat", "p.tif", "p.tlt", "p.xf"}


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file that was written is named; what goes with --aligned goes with nothing else."""
    words = ["export", str(folder / "series.h5"), str(tmp_path / "a.st")]
    assert main([*words, "--aligned", str(folder / "reconstruction.h5"), "--bin", "2", "--crop", "40x60", "--normalise"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("a.st", "a.tlt", "a.xf")]
    assert mrc(tmp_path / "a.st").shape == (29, 30, 20)
    assert main([*words, "--bin", "2", "--overwrite"]) == 1
    assert "go with --aligned VOLUME.h5" in capsys.readouterr().err


@pytest.mark.parametrize(("how", "words"), [({"bin": 64}, "take a smaller --bin"), ({"volume": Path("none.h5")}, "no such file")])
def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path, how: dict[str, object], words: str) -> None:
    """By name."""
    with pytest.raises(ReconstructionError, match=words):
        export(folder / "series.h5", tmp_path / "a.mrc", aligned=Aligned(**{"volume": folder / "reconstruction.h5", **how}))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_volume_of_other_projections_is_refused(folder: Path, tmp_path: Path) -> None:
    """One that came later, for example; and a volume itself has no projections."""
    other = series_of(tmp_path, atoms(0.0))
    with pytest.raises(ReconstructionError, match="was made from other projections than the series holds now"):
        export(other, tmp_path / "a.mrc", aligned=Aligned(folder / "reconstruction.h5"))
    with pytest.raises(ReconstructionError, match="is a volume: name the series"):
        export(folder / "reconstruction.h5", tmp_path / "a.mrc", aligned=Aligned(folder / "reconstruction.h5"))
