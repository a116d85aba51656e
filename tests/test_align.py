"""Alignment, judged on a particle whose displacements are known, with noise and left-over background; quality figures; export."""

from __future__ import annotations

import tracemalloc
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from scipy.io import loadmat

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import quality, solver
from aet_stream.reconstruct.align import align
from aet_stream.reconstruct.export import export, write_volume
from aet_stream.reconstruct.preview import ALIGN, preview
from aet_stream.reconstruct.projector import reproject
from aet_stream.reconstruct.registered import Alignment, apply, binned
from aet_stream.reconstruct.run import Options, reconstruct
from aet_stream.reconstruct.volume_file import VOLUME
from tests.bench_reconstruct import fcc_sphere, gaussians
from tests.test_reconstruct import BLOBS, TILTS_DEG, quick, views_of, write_series

SIZE_PX, SIGMA_PX = 96, 1.6
TILTS = np.linspace(-70, 70, 41)


def particle(size_px: int) -> Array:
    """An uneven crystal: a sphere would hide a turned axis."""
    atoms = fcc_sphere(256)
    bite = (atoms[:, 0] > 20) & (atoms[:, 1] > 15) & (atoms[:, 2] > 10)
    atoms = atoms[(np.linalg.norm(atoms * [1, 1.25, 1.1], axis=1) < 85) & ~bite]
    return (atoms - atoms.mean(axis=0)) * size_px / 256


def displaced(shifts_px: Array, axis_deg: float, noise: float = 0.05, size_px: int = SIZE_PX) -> Array:
    """Projections of it, moved and turned, with noise and a slope."""
    rng, turn, middle = np.random.default_rng(3), np.radians(axis_deg), (size_px - 1) / 2
    x, y, z = particle(size_px).T
    ramp_y, ramp_x = np.mgrid[:size_px, :size_px] / size_px - 0.5
    views = []
    for tilt, (dy, dx) in zip(np.radians(TILTS), shifts_px, strict=True):
        across = x * np.cos(tilt) + z * np.sin(tilt)
        places = np.stack([across * np.sin(turn) + y * np.cos(turn) - dy, across * np.cos(turn) - y * np.sin(turn) - dx], 1)
        view = gaussians(places + middle, (size_px, size_px), SIGMA_PX)
        top = np.percentile(view, 99)
        view += np.float32(0.02 * top) * (rng.normal() * ramp_x + rng.normal() * ramp_y).astype(np.float32)
        views.append(view + rng.normal(0, noise * top, view.shape).astype(np.float32))
    return np.stack(views)


def errors_px(found: Array, true: Array) -> tuple[float, float]:
    """Root mean square along and across the axis, without what only moves the whole volume."""
    off, tilts = found - true, np.radians(TILTS)
    basis = np.stack([np.cos(tilts), np.sin(tilts)], 1)
    across = off[:, 1] - basis @ np.linalg.lstsq(basis, off[:, 1], rcond=None)[0]
    return float(off[:, 0].std()), float(np.sqrt(np.mean(across**2)))


def test_jitter_is_found_with_a_turned_axis() -> None:
    """Shifts of up to 3 px come back to 0.1 px along the axis and 0.25 px across it, half a degree of axis notwithstanding."""
    true = np.random.default_rng(1).uniform(-3, 3, (len(TILTS), 2))
    found = align(displaced(true, 0.5, size_px=64), TILTS)
    along, across = errors_px(found.shifts_px, true)
    assert along < 0.1
    assert across < 0.25
    residuals = list(found.residuals.values())
    assert residuals[-1] < 0.5 * residuals[0]


@pytest.mark.thorough
@pytest.mark.parametrize("axis_deg", [-3.0, 2.0])
def test_a_turned_axis_is_found(axis_deg: float) -> None:
    """To a fifth of a degree, jitter notwithstanding, and the right way round."""
    jitter = np.random.default_rng(2).uniform(-3, 3, (len(TILTS), 2))
    found = align(displaced(jitter, axis_deg, noise=0.005), TILTS, ("common-line", "center-of-mass", "axis-angle"))
    assert found.axis_deg == pytest.approx(axis_deg, abs=0.2)


@pytest.mark.thorough
@pytest.mark.parametrize(("axis_deg", "size_px"), [(0.5, 256), (0.0, 256), (0.0, 96)])
def test_half_a_degree_is_told_from_noise(axis_deg: float, size_px: int) -> None:
    """A particle wide enough to show it, jitter and noise notwithstanding; what noise alone might be is left at nothing."""
    jitter = np.random.default_rng(2).uniform(-3, 3, (len(TILTS), 2))
    found = align(displaced(jitter, axis_deg, size_px=size_px), TILTS, ("axis-angle",))
    assert found.axis_deg == pytest.approx(axis_deg, abs=0.2)
    assert (found.axis_deg == 0) == (axis_deg == 0)


@pytest.mark.thorough
def test_an_error_of_the_background_is_not_taken_for_a_turn() -> None:
    """A dark spot that stays with the image and deepens from tilt to tilt: profiles agree better along a wrong axis, but not well."""
    views = displaced(np.random.default_rng(2).uniform(-3, 3, (len(TILTS), 2)), 0.0, noise=0.005)
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - (SIZE_PX - 1) / 2
    spot = np.exp(-(x**2 + (y - 18) ** 2) / 200) * (views > 0.1 * np.percentile(views, 99))
    views -= (0.1 * np.percentile(views, 99) * TILTS / 70)[:, None, None] * spot
    assert align(views.astype(np.float32), TILTS, ("axis-angle",)).axis_deg == 0


@pytest.mark.thorough
def test_what_is_in_register_stays_there() -> None:
    """Nothing to gain: hardly anything moves."""
    found = align(displaced(np.zeros((len(TILTS), 2)), 0.0), TILTS)
    assert max(errors_px(found.shifts_px, np.zeros((len(TILTS), 2)))) < 0.15
    assert abs(found.axis_deg) < 0.3


@pytest.mark.thorough
def test_an_axis_off_the_middle_is_found() -> None:
    """Half a pixel that all projections share, far below what noise does to each of them, is taken out to a tenth."""
    true = np.tile([0.0, 0.5], (len(TILTS), 1))
    found = align(displaced(true, 0.0), TILTS)
    assert found.shifts_px[:, 1].mean() == pytest.approx(0.5, abs=0.1)
    assert max(errors_px(found.shifts_px, true)) < 0.15


@pytest.mark.parametrize("height", [3, *(pytest.param(height, marks=pytest.mark.thorough) for height in (5, 9))])
def test_very_flat_frames_are_aligned_too(height: int) -> None:
    """Much wider than high: binning leaves rows over."""
    views = np.random.default_rng(1).random((5, height, 300)).astype(np.float32)
    assert apply(views, align(views, np.linspace(-60, 60, 5))).shape == views.shape


@pytest.mark.thorough
def test_steps_can_be_left_out() -> None:
    """Only the common line: nothing moves across the axis, nothing turns. No step: the very same array."""
    true = np.random.default_rng(1).uniform(-3, 3, (len(TILTS), 2))
    views = displaced(true, 0.0)
    found = align(views, TILTS, ("common-line",))
    assert not found.shifts_px[:, 1].any()
    assert found.axis_deg == 0
    assert errors_px(found.shifts_px, true)[0] < 0.2
    assert apply(views, align(views, TILTS, ())) is views


def test_shifts_are_stored_beside_the_volume_and_never_in_the_series(tmp_path: Path) -> None:
    """The series stays as it is, byte by byte; applying what is stored gives the projections the volume was made from."""
    shifts = np.random.default_rng(5).uniform(-2, 2, (29, 2))
    views = apply(views_of(BLOBS, TILTS_DEG), Alignment(-shifts))
    series = write_series(tmp_path / "s" / "series.h5", views, TILTS_DEG)
    before = series.read_bytes()
    with h5py.File(reconstruct(series, Options(iterations=10))) as file:
        group = file["reconstruction"]
        stored = Alignment(group["shifts_px"][()], float(group.attrs["axis_deg"]))
        volume = file[VOLUME][()]
        assert "common-line" in group.attrs["alignment"]
    assert series.read_bytes() == before
    again = solver.solve(apply(views, stored), TILTS_DEG, iterations=10).volume
    np.testing.assert_allclose(volume, again, atol=1e-4)


# -- preview ----------------------------------------------------------------------------------------------------------------------------


def test_flat_frames_have_a_preview(tmp_path: Path) -> None:
    """Frames of a few rows, as a scan of one facet gives, are binned no further than they are high."""
    views = views_of(BLOBS, TILTS_DEG, width=160, height=9)
    with h5py.File(preview(write_series(tmp_path / "s" / "series.h5", views, TILTS_DEG), size_px=16, iterations=2)) as file:
        assert file["volume"].shape[0] == 9


def test_a_preview_turns_about_where_its_views_were_centred(tmp_path: Path) -> None:
    """Of 131 columns one is left over when they are binned by 2: the middle of what remains is not the middle of the frame."""
    rng = np.random.default_rng(1)
    around = tuple((20 * c, 20 * s, z, 1.0) for z in (10.0, 22.0) for c, s in ((1, 0.4), (-1, -0.4), (0.45, -1.1), (-0.45, 1.1)))
    views = views_of(around, TILTS_DEG, width=131, height=32)
    jitter = np.stack([np.zeros(len(TILTS_DEG)), rng.normal(0, 3, len(TILTS_DEG))], axis=1)
    series = write_series(tmp_path / "s" / "series.h5", apply(views, Alignment(jitter)), TILTS_DEG)
    with h5py.File(preview(series, size_px=66, iterations=30)) as file:
        volume = file["volume"][()]
    found = apply(binned(apply(views, Alignment(jitter)), 2), align(binned(apply(views, Alignment(jitter)), 2), TILTS_DEG, ALIGN))
    errors = [float(np.linalg.norm(reproject(volume, TILTS_DEG, axis) - found)) for axis in (32.0, 32.25)]
    assert errors[0] < errors[1]


def test_alignment_takes_no_more_threads_and_memory_than_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for a reconstruction holds for its quick ones, too; a preview has one thread from its beginning to its end."""
    allowed: list[tuple[int, int]] = []

    def plan(shape: tuple[int, int, int], workers: int, limit: int, *, held: int) -> tuple[int, int]:
        allowed.append((workers, limit))
        return planned(shape, workers, limit, held=held)

    planned = solver.plan
    monkeypatch.setattr(solver, "plan", plan)
    series = write_series(tmp_path / "s" / "series.h5", views_of(BLOBS, TILTS_DEG), TILTS_DEG)
    reconstruct(series, Options(iterations=2, quality=False, threads=3, memory_mib=64))
    assert len(allowed) > 5
    assert set(allowed) == {(3, 64 * 2**20)}
    allowed.clear()
    preview(series)
    assert len(allowed) > 2
    assert {workers for workers, _ in allowed} == {1}


# -- quality ----------------------------------------------------------------------------------------------------------------------------


def test_a_bad_projection_is_pointed_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One at a wrong tilt fits worse than the others: file and log name its row."""
    views = views_of(BLOBS, TILTS_DEG)
    views[11] = views_of(BLOBS, np.array([63.0]))[0]
    with h5py.File(reconstruct(write_series(tmp_path / "s" / "series.h5", views, TILTS_DEG), Options(iterations=20, align=()))) as file:
        assert file["reconstruction/quality/suspect_rows"][0] == 11
        assert file["reconstruction/quality/residual_per_tilt"].shape == (29,)
    assert "row 11 at -15.00 deg fits worse" in caplog.text


def test_correlation_knows_signal_from_noise() -> None:
    """Equal volumes correlate fully, independent noise not at all, a blurred signal in noise up to where it is strong."""
    rng = np.random.default_rng(6)
    one, other = rng.normal(size=(2, 24, 32, 32)).astype(np.float32)
    assert quality.shell_correlation(one, one)[1] == pytest.approx(1.0, abs=1e-5)
    assert np.abs(quality.shell_correlation(one, other)[1][3:]).max() < 0.3
    s, y, x = np.indices(one.shape) - 11.5
    blob = 40 * np.exp(-(s * s + y * y + x * x) / 18)
    frequency, correlation = quality.shell_correlation(one + blob, other + blob)
    assert correlation[frequency < 0.06].min() > 0.8
    assert np.abs(correlation[frequency > 0.3]).max() < 0.4


def test_the_figures_stand_in_the_file(tmp_path: Path) -> None:
    """Resolution, missing wedge with a note, correlation curve; left out where they were not asked for."""
    series = write_series(tmp_path / "s" / "series.h5", views_of(BLOBS, TILTS_DEG), TILTS_DEG)
    with h5py.File(reconstruct(series, Options(iterations=10, align=()))) as file:
        group = file["reconstruction/quality"]
        assert group.attrs["missing_wedge_deg"] == pytest.approx(40)
        assert "40 of 180 degrees" in group.attrs["note"]
        assert group["fsc"].shape == group["fsc_per_px"].shape == (9,)
        assert group["fsc"][1] > 0.9
    with h5py.File(reconstruct(series, quick(10))) as file:
        assert file["reconstruction/quality/fsc"].shape == (0,)


def tall_series(folder: Path) -> Path:
    return write_series(folder / "s" / "series.h5", views_of(BLOBS, TILTS_DEG, width=64, height=64), TILTS_DEG)


def test_the_correlation_takes_the_memory_of_two_more_volumes() -> None:
    """Beside the two that it is given; where a volume just fits, nothing is left for ten."""
    one, other = np.random.default_rng(8).normal(size=(2, 80, 96, 96)).astype(np.float32)
    tracemalloc.start()
    quality.shell_correlation(one, other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * one.nbytes


def test_where_memory_is_short_the_brightest_slices_are_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As many as fit beside the volume; file and log say which. The volume itself is the same."""
    series = tall_series(tmp_path)
    options = Options(iterations=5, align=(), threads=1)
    with h5py.File(reconstruct(series, options)) as file:
        whole = file[VOLUME][()]
        assert tuple(file["reconstruction/quality/fsc"].attrs["slices"]) == (0, 64)
        assert "correlation is of slices" not in file["reconstruction/quality"].attrs["note"]
    with h5py.File(reconstruct(series, replace(options, memory_mib=6), out=tmp_path / "small.h5")) as file:
        first, end = file["reconstruction/quality/fsc"].attrs["slices"]
        assert first <= 5
        assert 32 <= end - first < 64
        assert file["reconstruction/quality/fsc"].shape == ((end - first) // 2 + 1,)
        words = f"correlation is of slices {first} to {end - 1} of 64"
        assert words in file["reconstruction/quality"].attrs["note"]
        assert words in caplog.text
        np.testing.assert_array_equal(file[VOLUME], whole)


def test_without_memory_for_its_halves_a_volume_is_not_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is there, with the reason in file and log; asked again with more memory, it is judged."""
    series = tall_series(tmp_path)
    options = Options(iterations=5, align=(), threads=1, memory_mib=4)
    with h5py.File(reconstruct(series, options)) as file:
        assert file["reconstruction/quality/fsc"].shape == (0,)
        assert file["reconstruction/quality/residual_per_tilt"].shape == (29,)
        words = "No correlation of half volumes: 32 slices of 64 x 64 px need 3 MiB beside the volume, 1 may be used: allow more"
        assert words in file["reconstruction/quality"].attrs["note"]
        assert words in caplog.text
    with h5py.File(reconstruct(series, replace(options, memory_mib=0))) as file:
        assert file["reconstruction/quality/fsc"].shape == (33,)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, ReconstructionError])
def test_a_volume_is_kept_before_its_halves_are_made(tmp_path: Path, trouble: type[BaseException]) -> None:
    """What happens to them does not take it away; asked again, it is judged."""
    series, steps = tall_series(tmp_path), []

    def progress(done: int, total: int) -> None:
        steps.append(done)
        if steps.count(total) == 2:  # the end of the first half
            raise trouble

    options = Options(iterations=5, align=(), threads=1)
    with pytest.raises(trouble) if trouble is KeyboardInterrupt else nullcontext():
        reconstruct(series, options, progress=progress)
    with h5py.File(series.with_name("reconstruction.h5")) as file:
        assert file[VOLUME].shape == (64, 64, 64)
        assert file["reconstruction/quality/fsc"].shape == (0,)
        assert "Half volumes have not been compared." in file["reconstruction/quality"].attrs["note"]
    with h5py.File(reconstruct(series, options)) as file:
        assert file["reconstruction/quality/fsc"].shape == (33,)


# -- other programs ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a series in no order of tilts, and its volume."""
    order = np.random.default_rng(7).permutation(29)
    series = write_series(tmp_path_factory.mktemp("x") / "s" / "series.h5", views_of(BLOBS, TILTS_DEG)[order], TILTS_DEG[order])
    reconstruct(series, quick(10))
    return series.parent


def test_a_volume_becomes_mrc_and_tiff(files: Path) -> None:
    """Sections across the beam, with their scale; `--out` with such a name writes it at once."""
    with h5py.File(files / "reconstruction.h5") as file:
        volume = file[VOLUME][()]
    export(files / "reconstruction.h5", files / "v.mrc")
    with mrcfile.open(files / "v.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, volume.transpose(1, 0, 2)[::-1, ::-1])  # first row lowest, first section farthest
        assert mrc.voxel_size.x == pytest.approx(0.4)
        assert mrc.is_volume()
    assert mrcfile.validate(files / "v.mrc")
    assert reconstruct(files / "series.h5", quick(10), out=files / "w.tif") == files / "w.tif"
    np.testing.assert_array_equal(tifffile.imread(files / "w.tif"), volume.transpose(1, 0, 2))
    with tifffile.TiffFile(files / "w.tif") as tif:
        assert tif.imagej_metadata["spacing"] == pytest.approx(0.04)
    assert (files / "w.h5").exists()


def test_a_series_becomes_a_stack_in_the_order_of_tilts(files: Path) -> None:
    """MRC with .rawtlt beside it."""
    assert export(files / "series.h5", files / "s.mrc") == [files / "s.mrc", files / "s.rawtlt"]
    with mrcfile.open(files / "s.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, views_of(BLOBS, TILTS_DEG)[:, ::-1])  # first row lowest
        assert mrc.is_image_stack()
    np.testing.assert_allclose(np.loadtxt(files / "s.rawtlt"), TILTS_DEG, atol=1e-4)


def test_a_series_becomes_what_genfire_loads(files: Path) -> None:
    """`projections` (x from its end, y, tilt) and `angles`, three Euler angles each, the tilt in the middle."""
    export(files / "series.h5", files / "g.mat")
    np.testing.assert_array_equal(loadmat(files / "g.mat")["projections"], views_of(BLOBS, TILTS_DEG).transpose(2, 1, 0)[::-1])
    angles = loadmat(files / "g_angles.mat")["angles"]
    np.testing.assert_allclose(angles, np.stack([0 * TILTS_DEG, TILTS_DEG, 0 * TILTS_DEG], 1))


@pytest.mark.parametrize(("source", "target", "words"), [
    ("series.h5", "x.png", "unknown form"), ("nothing.h5", "x.mrc", "cannot be read"), ("series.h5", "no/x.mrc", "is no folder"),
])  # fmt: skip
def test_exports_that_cannot_be_are_refused(files: Path, source: str, target: str, words: str) -> None:
    """By name."""
    with pytest.raises(ReconstructionError, match=words):
        export(files / source, files / target)


def test_what_a_mat_file_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    """A volume of 1,024 px has 4 GiB, one byte more than MATLAB's format counts: the others are named before any work."""
    with pytest.raises(ReconstructionError, match=r"less than 4096: write \.mrc or \.tif"):
        write_volume(np.broadcast_to(np.float32(1), (1024, 1024, 1024)), 0.05, tmp_path / "v.mat")


@pytest.mark.parametrize("taken", ["taken.mrc", "taken.rawtlt"])
def test_an_export_does_not_replace_what_is_there(files: Path, tmp_path: Path, taken: str) -> None:
    """It may be the microscope's own stack, or its tilts; unless that is asked for."""
    (tmp_path / taken).write_text("the microscope's")
    with pytest.raises(ReconstructionError, match=f"{taken} is there already: choose another name, or say --overwrite"):
        export(files / "series.h5", tmp_path / "taken.mrc")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {taken: "the microscope's"}
    assert len(export(files / "series.h5", tmp_path / "taken.mrc", overwrite=True)) == 2


# -- the growing volume -----------------------------------------------------------------------------------------------------------------


def test_a_preview_goes_on_from_the_one_before(tmp_path: Path) -> None:
    """Orthoslices through the middle, binned, with their scale; a second one is warm; a damaged one before does not matter."""
    views = views_of(BLOBS, TILTS_DEG)
    path = preview(write_series(tmp_path / "s" / "series.h5", views[::2], TILTS_DEG[::2]), size_px=24)
    with h5py.File(path) as file:
        assert {plane: file[f"orthoslices/{plane}"].shape for plane in ("xy", "xz", "yz")} == {"xy": (8, 24), "xz": (24, 24), "yz": (8, 24)}
        assert file["orthoslices/xy"].dtype == np.float32
        assert (file.attrs["tilts"], file.attrs["voxel_size_nm"], file.attrs["warm"]) == (15, pytest.approx(0.08), False)
        assert file.attrs["done_at"].endswith("+00:00")
    series = write_series(tmp_path / "s" / "series.h5", views, TILTS_DEG)
    with h5py.File(preview(series, size_px=24)) as file:
        assert (file.attrs["tilts"], file.attrs["warm"]) == (29, True)
        assert file["orthoslices/xz"][()].max() > 0.3
    path.write_bytes(path.read_bytes()[:500])
    with h5py.File(preview(series, size_px=24)) as file:
        assert not file.attrs["warm"]
    assert sorted(file.name for file in series.parent.iterdir()) == ["preview.h5", "series.h5"]
