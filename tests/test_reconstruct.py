"""The built-in solver, and the way from `series.h5` to `reconstruction.h5`."""

from __future__ import annotations

import itertools
import re
import resource
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from aet_stream.errors import OutputFull, ReconstructionError
from aet_stream.layout import CLEAN, PER_PROJECTION, THETA, crc32
from aet_stream.projection import Array
from aet_stream.reconstruct import apart, run, solver
from aet_stream.reconstruct.gpu import OnDevice
from aet_stream.reconstruct.memory import machine_bytes
from aet_stream.reconstruct.progress import ProgressLog
from aet_stream.reconstruct.projector import Pieces, reproject
from aet_stream.reconstruct.run import Options, reconstruct
from aet_stream.reconstruct.stopping import choose_iterations, noise_variance
from aet_stream.reconstruct.volume_file import VOLUME
from aet_stream.reconstruct.weights import by_expected_error
from tests.bench_reconstruct import SIGMA_PX as SIGMA_PX_OF_ATOMS
from tests.bench_reconstruct import atom_error_px, fcc_sphere, gaussians

SIGMA_PX = 2.0
TILTS_DEG = np.linspace(-70, 70, 29)
#: (X, Y, slice, height) of the blobs, in pixels from the middle; well apart.
BLOBS = ((9.3, -4.7, 7.0, 1.0), (-8.2, 6.1, 9.0, 2.0), (2.4, 11.6, 8.0, 1.5))
HEIGHT = 17
#: A crowd of them.
MANY = tuple((x + 0.3 * y, y - 0.2 * x, 8.0 + (x + y) % 3 - 1, 1.0) for x in range(-12, 13, 6) for y in range(-12, 13, 6))


def views_of(
    blobs: tuple[tuple[float, ...], ...], tilts_deg: Array, *, width: int = 48, height: int = HEIGHT, axis_px: float | None = None
) -> Array:
    """(tilts, y, x) float32: analytic projections of Gaussian blobs, no grid involved."""
    axis = (width - 1) / 2 if axis_px is None else axis_px
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    theta = np.radians(tilts_deg)[:, None, None]
    views = np.zeros((len(tilts_deg), height, width))
    for x, y, at_slice, peak in blobs:
        seen = axis + x * np.cos(theta) + y * np.sin(theta)
        far = ((columns - seen) ** 2 + (rows - at_slice) ** 2) / (2 * SIGMA_PX**2)
        views += peak * SIGMA_PX * np.sqrt(2 * np.pi) * np.exp(-far)
    return views.astype(np.float32)


def place_of(volume: Array, x: float, y: float, at_slice: float) -> tuple[float, float, float]:
    """(X, Y, slice) of the centre of mass within three sigma of where a blob should be."""
    middle = (volume.shape[1] - 1) / 2
    s, row, column = np.indices(volume.shape)
    near = (s - at_slice) ** 2 + (middle - row - y) ** 2 + (column - middle - x) ** 2 < (3 * SIGMA_PX) ** 2
    weight = volume[near] / volume[near].sum()
    return (float((weight * (column[near] - middle)).sum()), float((weight * (middle - row[near])).sum()), float((weight * s[near]).sum()))


def quick(iterations: int) -> Options:
    """A volume and nothing else."""
    return Options(iterations=iterations, align=(), quality=False)


def write_series(path: Path, views: Array, tilts_deg: Array, **columns: Array) -> Path:
    """The parts of a series that a reconstruction reads."""
    count = len(views)
    facts = {
        "blank": np.zeros(count, np.uint8),
        "superseded": np.zeros(count, np.uint8),
        "pixel_size_nm": np.full(count, 0.04),
        "clean_crc32": np.array([crc32(view) for view in views]),
    }
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file[CLEAN], file[THETA] = views, np.asarray(tilts_deg, np.float64)
        for name, values in (facts | columns).items():
            file[f"{PER_PROJECTION}/{name}"] = values
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "gold" / "series.h5", views_of(BLOBS, TILTS_DEG), TILTS_DEG)


# -- the solver -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [48, 47])
def test_blobs_land_where_the_convention_says(width: int) -> None:
    """A blob at (X, Y) lies at row (N-1)/2 - Y, column (N-1)/2 + X of its slice to a tenth of a pixel, for even and odd widths."""
    volume = solver.solve(views_of(BLOBS, TILTS_DEG, width=width), TILTS_DEG).volume
    assert volume.dtype == np.float32
    assert volume.shape == (HEIGHT, width, width)
    for x, y, at_slice, _ in BLOBS:
        assert place_of(volume, x, y, at_slice) == pytest.approx((x, y, at_slice), abs=0.1)


def test_heights_are_quantitative() -> None:
    """Where all directions are seen, a blob of height 2 comes back with height 2."""
    tilts_deg = np.linspace(-90, 90, 60, endpoint=False)
    volume = solver.solve(views_of(((4.0, -3.0, 8.0, 2.0),), tilts_deg, width=49), tilts_deg).volume
    assert volume[8, 24 + 3, 24 + 4] == pytest.approx(2.0, rel=0.05)


def test_an_axis_between_columns_is_followed() -> None:
    """With the axis 1.3 px off the middle, telling the solver puts the blobs right, and not telling it does not."""
    views = views_of(BLOBS[:1], TILTS_DEG, axis_px=23.5 + 1.3)
    x, y, at_slice, _ = BLOBS[0]
    told, untold = (solver.solve(views, TILTS_DEG, axis_px=axis).volume for axis in (24.8, None))
    assert place_of(told, x, y, at_slice) == pytest.approx((x, y, at_slice), abs=0.1)
    assert place_of(untold, x, y, at_slice) != pytest.approx((x, y, at_slice), abs=0.5)


def test_volume_is_nowhere_negative() -> None:
    """Noise around zero, as background-free vacuum has it, leaves no negative voxel; nor is there anything outside the circle."""
    views = views_of(BLOBS, TILTS_DEG) + np.random.default_rng(1).normal(0, 0.5, (len(TILTS_DEG), HEIGHT, 48)).astype(np.float32)
    volume = solver.solve(views, TILTS_DEG, iterations=10).volume
    assert volume.min() == 0
    assert not volume[:, 0, 0].any()
    assert volume.max() > 0.5


def test_residual_falls() -> None:
    """The residual starts at 1, is down to a hundredth after 50 iterations, and every tenth iteration is better than the one before."""
    residuals = solver.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, iterations=50).residuals
    assert residuals[0] == pytest.approx(1)
    assert (np.diff(residuals[::10]) < 0).all()
    assert residuals[-1] < 0.01


def test_order_of_tilts_does_not_matter() -> None:
    """Projections in any order, with uneven gaps, give the same volume."""
    tilts_deg = np.sort(np.random.default_rng(2).uniform(-75, 75, 20))
    views, order = views_of(BLOBS, tilts_deg), np.random.default_rng(3).permutation(20)
    straight = solver.solve(views, tilts_deg, iterations=20).volume
    shuffled = solver.solve(views[order], tilts_deg[order], iterations=20).volume
    np.testing.assert_allclose(shuffled, straight, atol=1e-4)


def test_slices_do_not_depend_on_slabs() -> None:
    """One thread, many threads and hardly any memory all give the same volume, to the last bit."""
    views = views_of(BLOBS, TILTS_DEG)
    whole = solver.solve(views, TILTS_DEG, iterations=5, threads=1).volume
    for options in ({"threads": 4}, {"threads": 1, "memory_mib": 2}):
        np.testing.assert_array_equal(solver.solve(views, TILTS_DEG, iterations=5, **options).volume, whole)


def test_what_counts_for_less_harms_less() -> None:
    """Backgrounds that were left at steep tilts draw a volume away from the one without; the less, the less these projections count."""
    views = views_of(BLOBS, TILTS_DEG)
    steep = np.abs(TILTS_DEG) > 60
    wrong = views + np.where(steep, np.float32(1.5), np.float32(0))[:, None, None]
    sound = solver.solve(views, TILTS_DEG, iterations=30).volume

    def off(weight: float) -> float:
        weights = np.where(steep, weight, 1.0)
        return float(np.linalg.norm(solver.solve(wrong, TILTS_DEG, iterations=30, weights=weights).volume - sound))

    alike, fifth, hardly = off(1.0), off(0.2), off(0.01)
    assert hardly < fifth < alike
    assert hardly < alike / 2


def test_what_is_fine_counts_whole() -> None:
    """Whatever counts for less: of atoms on a wrong background the background goes, and they stay as sharp."""
    width, tilts_deg = 192, np.linspace(-70, 70, 15)
    views = views_of(((60.0, 0.0, 8.0, 1.0), (-55.0, 20.0, 8.0, 1.0)), tilts_deg, width=width)
    weights = np.where(np.abs(tilts_deg) > 40, 0.1, 1.0)
    whole, less = (solver.solve(views, tilts_deg, iterations=30, weights=each).volume for each in (None, weights))
    assert less.max() > 0.9 * whole.max()
    wrong = views + np.where(weights < 1, np.float32(1.0), np.float32(0))[:, None, None]
    off = [np.linalg.norm(solver.solve(wrong, tilts_deg, iterations=30, weights=each).volume - whole) for each in (None, weights)]
    assert off[1] < 0.5 * off[0]


def test_weights_mean_the_same_wherever_a_volume_is_made() -> None:
    """Slabs, pieces of the projector and turned projections, of turns of nothing, take them alike; and weights of 1 are none."""
    views, weights = views_of(BLOBS, TILTS_DEG), np.linspace(0.1, 0.9, len(TILTS_DEG))
    whole = solver.solve(views, TILTS_DEG, iterations=8, weights=weights).volume
    alike = solver.solve(views, TILTS_DEG, iterations=8, weights=np.ones(len(TILTS_DEG))).volume
    np.testing.assert_array_equal(alike, solver.solve(views, TILTS_DEG, iterations=8).volume)
    assert np.abs(whole - alike).max() > 0.01 * alike.max()
    made = {
        "in pieces": solver.solve(views, TILTS_DEG, iterations=8, weights=weights, memory_mib=2).volume,
        "slabs": np.concatenate([each.volume for each in solver.solve_by_slabs(views, TILTS_DEG, iterations=8, weights=weights)]),
        "turned": solver.solve(views, TILTS_DEG, iterations=8, weights=weights, pitches=np.zeros(len(TILTS_DEG))).volume,
    }
    for name, volume in made.items():
        np.testing.assert_allclose(volume, whole, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("tilts_at_once", [29, 7])
@pytest.mark.parametrize("weights", [None, np.linspace(0.1, 1, 29)], ids=["alike", "weighted"])
def test_the_steps_of_the_gpu_are_those_of_the_cpu(tilts_at_once: int, weights: Array | None) -> None:
    """The same volume and residuals to rounding, from nothing and from a start, with the matrices kept and made anew; torch on the CPU."""
    rays = solver.as_rays(views_of(BLOBS, TILTS_DEG))
    pieces = Pieces(TILTS_DEG, 48, 23.1, tilts_at_once=tilts_at_once, weights=weights)
    start = None
    for _ in range(2):
        path = list(solver.steps(pieces, rays, 8, start=start))
        told = itertools.count()
        voxels, squares = OnDevice(pieces, "cpu").finish(rays, 8, start, partial(next, told))
        np.testing.assert_allclose(voxels, path[-1][0], atol=2e-5)
        np.testing.assert_allclose(squares, [squared for _, squared in path], rtol=1e-4)
        assert next(told) == 8
        start = path[-1][0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_volume() -> None:
    views = views_of(BLOBS, TILTS_DEG)
    volumes = [solver.solve(views, TILTS_DEG, iterations=20, device=device).volume for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*volumes, atol=1e-4)


@pytest.mark.parametrize("device", ["cuda:77", "vacuum"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    """With what to do."""
    with pytest.raises(ReconstructionError, match=rf"reconstruct.device = '{device}' cannot be used .*set it to 'cpu'"):
        solver.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, device=device)


def test_too_little_memory_is_said_beforehand() -> None:
    """A volume that does not fit is refused with what it needs and what to do, before anything is computed."""
    with pytest.raises(ReconstructionError, match=r"needs \d+ MiB of memory, 1 may be used: allow more"):
        solver.solve(views_of(BLOBS, TILTS_DEG, width=160), TILTS_DEG, memory_mib=1)


def test_little_memory_costs_time_not_correctness() -> None:
    """Where the projector does not fit it is made in pieces, with the same result; both keep within their limit of memory."""
    views = views_of(BLOBS, TILTS_DEG, width=96)
    whole = solver.solve(views, TILTS_DEG, iterations=5, threads=1, memory_mib=64)
    pieces = solver.solve(views, TILTS_DEG, iterations=5, threads=1, memory_mib=8)
    np.testing.assert_allclose(pieces.volume, whole.volume, atol=1e-4)
    np.testing.assert_allclose(pieces.residuals, whole.residuals, rtol=1e-4)


def test_an_earlier_volume_gives_a_head_start() -> None:
    """Five iterations from an earlier volume explain the projections better than five from nothing."""
    views = views_of(BLOBS, TILTS_DEG)
    earlier = solver.solve(views[::2], TILTS_DEG[::2], iterations=15).volume
    warm, cold = (solver.solve(views, TILTS_DEG, iterations=5, start=start).residuals[-1] for start in (earlier, None))
    assert warm < 0.5 * cold


def test_reprojection_is_what_was_projected() -> None:
    """A converged volume looks, from every side, like its projections."""
    views = views_of(BLOBS, TILTS_DEG)
    again = reproject(solver.solve(views, TILTS_DEG, iterations=60).volume, TILTS_DEG)
    assert np.linalg.norm(again - views) < 0.01 * np.linalg.norm(views)


def test_the_bench_knows_an_atom_from_its_neighbour() -> None:
    """At 96 px they are 3.4 px apart: in the truth itself, each atom is where it is."""
    atoms, middle, sigma_px = fcc_sphere(96), 47.5, SIGMA_PX_OF_ATOMS * 96 / 256
    places = middle + atoms[np.linalg.norm(atoms, axis=1) < 12]
    assert atom_error_px(gaussians(places, (96,) * 3, sigma_px), places, sigma_px) < 0.05


# -- when to stop -----------------------------------------------------------------------------------------------------------------------


def noisy(sigma: float) -> Array:
    views = views_of(MANY, TILTS_DEG)
    return (views + np.random.default_rng(4).normal(0, sigma, views.shape)).astype(np.float32)


def test_noise_is_seen_in_the_projections() -> None:
    """To three per cent, with a particle in view."""
    assert np.sqrt(noise_variance(noisy(0.5)).mean()) == pytest.approx(0.5, rel=0.03)
    assert np.sqrt(noise_variance(noisy(0.0)).mean()) < 0.05


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_the_rule_stops_close_to_the_best(sigma: float) -> None:
    """On noisy projections the number of iterations chosen without the truth gives an error at most a tenth above the least one."""
    views = noisy(sigma)
    truth = np.zeros((HEIGHT, 48, 48))
    s, row, column = np.indices(truth.shape)
    for x, y, at, peak in MANY:
        truth += peak * np.exp(-((s - at) ** 2 + (23.5 - row - y) ** 2 + (column - 23.5 - x) ** 2) / (2 * SIGMA_PX**2))
    errors = {n: float(np.linalg.norm(solver.solve(views, TILTS_DEG, iterations=n).volume - truth)) for n in range(4, 50, 3)}
    chosen = choose_iterations(views, TILTS_DEG)
    mine = float(np.linalg.norm(solver.solve(views, TILTS_DEG, iterations=chosen).volume - truth))
    assert mine < 1.1 * min(errors.values()), (chosen, errors)


def test_the_rule_keeps_within_its_memory() -> None:
    """The projector is made in pieces where all of it does not fit; the answer is the same."""
    views = views_of(BLOBS, TILTS_DEG, width=96)
    views += np.random.default_rng(0).normal(0, 0.05, views.shape).astype(np.float32)
    assert choose_iterations(views, TILTS_DEG, memory_mib=24) == choose_iterations(views, TILTS_DEG)


def test_the_rule_looks_at_fewer_slices_where_memory_is_short() -> None:
    """What the solver can do, the rule can; frames of two rows show no noise, and are no reason to fail."""
    views = views_of(BLOBS, TILTS_DEG, width=128)
    assert 1 <= choose_iterations(views, TILTS_DEG, memory_mib=24) <= 100
    assert not noise_variance(views[:, 8:10]).any()


def test_the_bound_on_a_gpu_is_none_on_this_machine(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule works on the CPU whatever solves: with a GPU's `memory_mib` it would take more than there is here, or needlessly little."""

    def rule(*given: object, memory_mib: int, **more: object) -> int:
        raise ReconstructionError(f"{memory_mib} MiB for the rule")

    monkeypatch.setattr(run, "choose_iterations", rule)
    monkeypatch.setattr(run, "check_method", lambda method, device: run.BUILT_IN)  # there may be no GPU here
    for device, mib in (("cpu", 500), ("cuda", 0)):
        with pytest.raises(ReconstructionError, match=f"^{mib} MiB"):
            reconstruct(series, Options(align=(), device=device, memory_mib=500))


def test_without_noise_nothing_is_stopped_early() -> None:
    """More iterations stay better, so the most that is allowed is taken; unless a residual is asked for."""
    views = views_of(MANY, TILTS_DEG)
    assert choose_iterations(views, TILTS_DEG, most=60) == 60
    enough = choose_iterations(views, TILTS_DEG, residual=0.05)
    residuals = solver.solve(views, TILTS_DEG, iterations=60).residuals
    assert residuals[enough] == pytest.approx(0.05, rel=0.3)


def test_progress_counts_to_the_end() -> None:
    """Every step is told once, in order, and the last one is the total."""
    told: list[tuple[int, int]] = []
    solver.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, iterations=4, threads=3, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ReconstructionError])
def test_ctrl_c_or_an_error_ends_every_thread_at_its_next_step(error: type[BaseException]) -> None:
    """A volume of many iterations is not worked to its end after somebody has given up; what is heard is why."""
    steps = 0

    def given_up(done: int, total: int) -> None:
        nonlocal steps
        steps = done
        if done == 3:
            raise error

    with pytest.raises(error):
        solver.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, iterations=5000, threads=2, progress=given_up)
    assert steps < 1000


def test_sigterm_ends_a_child_and_leaves_no_draft(series: Path) -> None:
    """As the trigger sends it when a delivery takes too long."""
    words = ["reconstruct", str(series), "--supervised", "--iterations", "100000", "--no-quality", "--align", ""]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "aet_stream", *words], text=True, **pipes) as child:
        assert child.stderr is not None
        while "nesterov-sirt" not in child.stderr.readline():
            assert child.poll() is None
        child.terminate()
        assert child.wait(30) == 130
    assert [path.name for path in series.parent.iterdir()] == ["series.h5"]


def spoiled(row: int, value: float) -> Array:
    views = views_of(BLOBS, TILTS_DEG)
    views[row, 2, 3] = value
    return views


@pytest.mark.parametrize(
    ("views", "tilts_deg", "options", "words"),
    [
        (spoiled(7, np.nan), TILTS_DEG, {}, "row 7: 1 pixels are not finite"),
        (spoiled(4, np.inf), TILTS_DEG, {}, "row 4"),
        (spoiled(0, 0), np.where(np.arange(29) == 5, np.nan, TILTS_DEG), {}, "row 5: its tilt is nan"),
        (spoiled(0, 0), TILTS_DEG[:-1], {}, r"\(29, 17, 48\) projections for \(28,\) tilts"),
        (spoiled(0, 0)[0], TILTS_DEG, {}, "are needed"),
        (spoiled(0, 0)[:2], TILTS_DEG[:2], {}, "2 projections: at least 3"),
        (spoiled(0, 0), TILTS_DEG, {"iterations": 0}, "0 iterations"),
        (spoiled(0, 0), TILTS_DEG, {"axis_px": 48.0}, "axis at column 48.0"),
    ],
)
def test_senseless_input_is_refused_by_name(views: Array, tilts_deg: Array, options: dict[str, float], words: str) -> None:
    """What cannot give a volume is refused, naming the row or the number that is wrong."""
    with pytest.raises(ReconstructionError, match=words):
        solver.solve(views, tilts_deg, **options)


# -- from file to file ------------------------------------------------------------------------------------------------------------------


def test_volume_lies_beside_the_series(series: Path) -> None:
    """The file says all that is needed to use it, blobs are in place, and nothing else is left in the folder."""
    path = reconstruct(series)
    assert sorted(file.name for file in series.parent.iterdir()) == ["reconstruction.h5", "reconstruction.png", "series.h5"]
    with h5py.File(path) as file:
        group, volume = file["reconstruction"], file[VOLUME][()]
        assert group.attrs["method"] == "nesterov-sirt"
        assert group.attrs["iterations_done"] > 20
        assert group.attrs["voxel_size_nm"] == pytest.approx(0.04)
        assert len(group.attrs["series_digest"]) == 64
        assert group.attrs["software"].startswith("aet_stream ")
        assert "tilt axis along y" in file[VOLUME].attrs["description"]
        assert file[VOLUME].attrs["units"] == "counts per voxel"
        np.testing.assert_array_equal(group["tilts_deg"], TILTS_DEG)
        np.testing.assert_array_equal(group["rows"], np.arange(29))
        assert group["residuals"][-1] < 0.02
    for x, y, at_slice, _ in BLOBS:
        assert place_of(volume, x, y, at_slice) == pytest.approx((x, y, at_slice), abs=0.1)


def test_the_same_input_is_not_computed_twice(series: Path) -> None:
    """Asked again, the file stays untouched; other pixels, another tilt or other iterations make a new one."""
    path = reconstruct(series, quick(2))
    first = path.stat()
    assert reconstruct(series, quick(2)).stat().st_ino == first.st_ino
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    digests = set()
    for views, tilts_deg, iterations in (
        (views_of(BLOBS, TILTS_DEG), TILTS_DEG, 3),
        (views_of(BLOBS, TILTS_DEG), TILTS_DEG + 0.5, 3),
        (views_of(BLOBS[:2], TILTS_DEG), TILTS_DEG, 3),
    ):
        before = path.stat().st_mtime_ns
        reconstruct(write_series(series, views, tilts_deg), quick(iterations))
        assert path.stat().st_mtime_ns > before
        with h5py.File(path) as file:
            assert file["reconstruction"].attrs["iterations"] == iterations
            digests.add(file["reconstruction"].attrs["series_digest"])
    assert len(digests) == 3


def test_projections_count_by_how_wrong_they_may_be(tmp_path: Path) -> None:
    """What the series says of an error goes before what the frame alone said; it is written beside the volume, and in words. Another word
    makes another volume, and who wants none of it says so."""
    views, count = views_of(BLOBS, TILTS_DEG), len(TILTS_DEG)
    alone, whole = np.full(count, 0.01), np.full(count, np.nan)
    whole[:3] = 1e3
    path = reconstruct(write_series(tmp_path / "gold" / "series.h5", views, TILTS_DEG, expected_error=alone), quick(2))
    with h5py.File(path) as file:
        assert "weights" not in file["reconstruction"]
    columns = {"expected_error": alone, "expected_error_in_series": whole}
    series = write_series(tmp_path / "gold" / "series.h5", views, TILTS_DEG, **columns)
    with h5py.File(reconstruct(series, quick(2))) as file:
        weights = file["reconstruction/weights"][()]
        assert "3 of 29 projections count for less than half" in file["reconstruction/quality"].attrs["note"]
    assert (weights[:3] < 0.01).all()
    assert (weights[3:] > 0.9).all()
    alike = replace(quick(2), weighted=False)
    with h5py.File(reconstruct(series, alike)) as file:
        assert "weights" not in file["reconstruction"]


def test_half_the_weight_is_at_three_percent_of_the_particles_range() -> None:
    """In any unit; who has said nothing counts whole; where all are alike there are no weights."""
    views, errors = np.zeros((7, 64, 64), np.float32), np.full(7, np.nan)
    views[:, 20:44, 20:44] = 8e-9
    assert by_expected_error(views, errors) is None
    errors[4], errors[5] = 2.4e-10, 0.0
    weights = by_expected_error(views, errors)
    assert weights is not None
    assert weights[4] == pytest.approx(0.5)
    assert weights[5] == weights[6] == 1


def test_a_lost_picture_is_drawn_again(series: Path) -> None:
    """The picture comes back without a new volume."""
    path = reconstruct(series, quick(2))
    before = path.stat().st_mtime_ns
    path.with_suffix(".png").unlink()
    reconstruct(series, quick(2))
    assert path.with_suffix(".png").stat().st_size > 1000
    assert path.stat().st_mtime_ns == before


def test_a_damaged_result_is_replaced(series: Path) -> None:
    """Half a file from elsewhere under that name is no result."""
    series.with_name("reconstruction.h5").write_bytes(b"\x89HDF\r\n\x1a\n and then nothing")
    with h5py.File(reconstruct(series, quick(2))) as file:
        assert file[VOLUME].shape == (HEIGHT, 48, 48)


def test_blank_and_superseded_rows_are_left_out_and_repeats_kept(tmp_path: Path) -> None:
    """A blank and a replaced projection change nothing, even with senseless pixels; a second image at one tilt counts."""
    views, tilts_deg = views_of(BLOBS, TILTS_DEG), TILTS_DEG.copy()
    extra = np.concatenate([np.full((1, HEIGHT, 48), 1e6, np.float32), views, np.full((1, HEIGHT, 48), -1e6, np.float32)])
    marks = np.zeros((2, 31), np.uint8)
    marks[0, 0] = marks[1, -1] = 1
    plain = reconstruct(write_series(tmp_path / "plain" / "series.h5", views, tilts_deg), quick(5))
    tilts_deg = np.concatenate([[0.0], tilts_deg, [tilts_deg[3]]])
    marked = reconstruct(write_series(tmp_path / "more" / "series.h5", extra, tilts_deg, blank=marks[0], superseded=marks[1]), quick(5))
    repeated = reconstruct(write_series(tmp_path / "twice" / "series.h5", views[[*range(29), 14]], TILTS_DEG[[*range(29), 14]]), quick(5))
    with h5py.File(plain) as one, h5py.File(marked) as other, h5py.File(repeated) as third:
        np.testing.assert_array_equal(one[VOLUME], other[VOLUME])
        np.testing.assert_array_equal(other["reconstruction/rows"], np.arange(1, 30))
        assert len(third["reconstruction/rows"]) == 30


def test_wide_and_tall_series_work(tmp_path: Path) -> None:
    """Frames need not be square: height gives the slices, width their edges."""
    for width, height in ((31, 12), (20, 41)):
        views = views_of(((3.0, 2.0, 5.0, 1.0),), TILTS_DEG, width=width, height=height)
        with h5py.File(reconstruct(write_series(tmp_path / f"{width}" / "series.h5", views, TILTS_DEG), quick(3))) as file:
            assert file[VOLUME].shape == (height, width, width)


def test_different_pixel_sizes_give_no_voxel_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the projections disagree about their scale none is guessed, and the log says so."""
    sizes_nm = np.where(np.arange(29) < 10, 0.04, 0.05)
    path = reconstruct(
        write_series(tmp_path / "mixed" / "series.h5", views_of(BLOBS, TILTS_DEG), TILTS_DEG, pixel_size_nm=sizes_nm), quick(2)
    )
    with h5py.File(path) as file:
        assert np.isnan(file["reconstruction"].attrs["voxel_size_nm"])
    assert "pixel sizes between 0.04 and 0.05 nm" in caplog.text


def test_damage_is_named_with_its_row_and_leaves_nothing(tmp_path: Path) -> None:
    """A frame that is not what was written, or not finite, stops the reconstruction; no file appears."""
    views = views_of(BLOBS, TILTS_DEG)
    sums = np.array([crc32(view) for view in views])
    sums[11] += 1
    with pytest.raises(ReconstructionError, match=r"series\.h5: row 11 is missing or damaged"):
        reconstruct(write_series(tmp_path / "damaged" / "series.h5", views, TILTS_DEG, clean_crc32=sums))
    with pytest.raises(ReconstructionError, match=r"series\.h5: row 7 has pixels that are not finite"):
        reconstruct(write_series(tmp_path / "nan" / "series.h5", spoiled(7, np.nan), TILTS_DEG))
    assert [file.name for folder in tmp_path.iterdir() for file in folder.iterdir()] == ["series.h5", "series.h5"]


def test_a_missing_tilt_is_named(tmp_path: Path) -> None:
    """No tilt is no zero."""
    tilts_deg = np.where(np.arange(29) == 5, np.nan, TILTS_DEG)
    with pytest.raises(ReconstructionError, match="row 5 has no tilt"):
        reconstruct(write_series(tmp_path / "lost" / "series.h5", views_of(BLOBS, TILTS_DEG), tilts_deg))


def test_a_disk_that_fails_leaves_the_old_volume(series: Path) -> None:
    """When the disk takes only part of the file, that is said, the volume before it stays whole, and no temporary file is left."""
    path = reconstruct(series, quick(2))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OutputFull, match=r"reconstruction\.h5: File too large"):
            reconstruct(series, quick(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert not list(series.parent.glob(".*"))


@pytest.mark.parametrize(
    ("method", "out", "words"),
    [
        ("magic", None, "method 'magic': choose auto, nesterov-sirt, tomopy:gridrec, tomopy:sirt"),
        ("tomopy:mlem", None, "refused: it needs data without negative values"),
        ("tomopy:", None, "choose auto"),
        ("auto", "nowhere/volume.h5", "nowhere is no folder"),
        ("auto", "series.h5", r"series\.h5 holds something else than a volume"),
        ("auto", "series.mrc", r"series\.h5 holds something else than a volume"),
        ("auto", "volume.png", r"ending in \.h5, \.mrc, \.tif or \.emd"),
    ],
)
def test_mistakes_are_told_before_any_work(series: Path, method: str, out: str | None, words: str) -> None:
    """A wrong method or output name costs no time and says what would be right."""
    before = series.read_bytes()
    with pytest.raises(ReconstructionError, match=words):
        reconstruct(series, Options(method=method), out=out and series.parent / out)
    assert series.read_bytes() == before


@pytest.mark.parametrize(("out", "present"), [("v.mrc", "v.mrc"), ("v.tif", "v.tif"), ("v.mrc", "v.png"), ("v.h5", "v.png")])
def test_a_file_that_may_be_somebody_elses_is_not_replaced(series: Path, out: str, present: str) -> None:
    """It is refused before any work, unless that is asked for; what lies beside a volume of ours belongs to it."""
    target, there = series.with_name(out), series.with_name(present)
    there.write_bytes(b"raw stack")
    with pytest.raises(ReconstructionError, match=rf"{present} is there already: choose another --out, or say --overwrite"):
        reconstruct(series, quick(2), out=target)
    assert there.read_bytes() == b"raw stack"
    assert not series.with_name("v.h5").exists()
    reconstruct(series, quick(2), out=target, overwrite=True)
    assert len(there.read_bytes()) > 1000
    there.write_bytes(b"old")
    reconstruct(series, quick(3), out=target)
    assert len(there.read_bytes()) > 1000


def test_a_picture_without_its_volume_does_not_stop_the_usual_one(series: Path) -> None:
    """Beside a series both names are ours."""
    reconstruct(series, quick(2)).unlink()
    reconstruct(series, quick(2))
    assert series.with_name("reconstruction.h5").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [(Options(residual=0.1, iterations=5), "5 iterations"), (Options(residual=0.1, method="tomopy:sirt"), "tomopy:sirt")],
)
def test_a_residual_that_would_be_ignored_is_refused(series: Path, monkeypatch: pytest.MonkeyPatch, options: Options, words: str) -> None:
    """With a fixed number of iterations, or a library that knows nothing of it."""
    monkeypatch.setattr(apart, "check", lambda method: None)  # as if it were installed
    with pytest.raises(ReconstructionError, match=rf"a residual of 0\.1 to stop at does not go with {words}: leave"):
        reconstruct(series, options)
    assert not series.with_name("reconstruction.h5").exists()


def test_what_is_no_series_is_told(tmp_path: Path) -> None:
    """A missing file, a text file and an HDF5 file of another kind are all refused by name."""
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2, 3]
    (tmp_path / "folder").mkdir()
    for name, why in (("missing.h5", "there is no such file$"), ("folder", "it is a folder; name"), ("text.h5", ""), ("other.h5", "")):
        with pytest.raises(ReconstructionError, match=rf"{name}: cannot be read as a tilt series: {why}"):
            reconstruct(tmp_path / name)


def test_progress_is_logged_with_the_time_left(series: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At least the end is told, in a line that people understand."""
    with caplog.at_level("INFO", logger="aet_stream"):
        reconstruct(series, quick(2))
    assert "29 projections of 17 x 48 px, nesterov-sirt" in caplog.text
    assert "100 %, about 0 s left" in caplog.text


def test_no_time_left_is_foretold_before_it_can_be_known(caplog: pytest.LogCaptureFixture) -> None:
    """What was done before the first step does not count, nor does another solve: steps of 0.1 s promise what they take, or nothing."""
    now = [0.0]
    log, told = ProgressLog(clock=lambda: now[0]), []
    with caplog.at_level("INFO", logger="aet_stream"):
        for total in (200, 100):
            now[0] += 60  # alignment, or the matrices
            for done in range(1, total + 1):
                now[0] += 0.1
                caplog.clear()
                log(done, total)
                told += [(float(left), 0.1 * (total - done)) for left in re.findall(r"about (\d+) s left", caplog.text)]
    assert len(told) >= 5
    assert all(said == pytest.approx(true, abs=1) for said, true in told), told


@pytest.mark.parametrize(
    ("own", "name"), [("0::/system.slice/aet.service\n", "memory.max"), ("4:cpu,memory:/docker/a\n0::/\n", "memory/memory.limit_in_bytes")]
)
def test_a_control_group_bounds_the_memory(tmp_path: Path, own: str, name: str) -> None:
    """Of a service or a container, or of any group around it; without a limit, the machine's."""
    groups, mine = tmp_path / "groups", tmp_path / "own"
    mine.write_text(own)
    limit = groups / name
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    everything = machine_bytes(mine, groups)
    limit.write_text("1048576\n")
    assert machine_bytes(mine, groups) == 1048576 < everything
    inner = limit.parent / own.split(":")[2].split("\n")[0].lstrip("/") / limit.name
    inner.parent.mkdir(parents=True)
    inner.write_text("4096\n")
    assert machine_bytes(mine, groups) == 4096
