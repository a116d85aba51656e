"""Where the tilt axis lies: said by setting or file, applied where volumes are made, doubted where the projections contradict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.ndimage import center_of_mass, gaussian_filter

from aet_stream.cli import main
from aet_stream.config import Orientation
from aet_stream.config_file import load
from aet_stream.consistency import about_axis
from aet_stream.monitor.series_cache import SeriesCache
from aet_stream.projection import Array
from aet_stream.readers.child import ReaderChild, turned
from aet_stream.reconstruct.align import align
from aet_stream.reconstruct.axis_search import search
from aet_stream.reconstruct.preview import preview
from aet_stream.reconstruct.registered import Alignment, apply
from aet_stream.reconstruct.run import reconstruct
from aet_stream.reconstruct.volume_file import VOLUME
from aet_stream.simulate import writers
from aet_stream.simulate.formation import splat
from aet_stream.simulate.particle import KINDS, make_particle
from tests.rehearsal import Rehearsal
from tests.test_reconstruct import place_of, quick, write_series

TILTS_DEG = np.linspace(-70, 70, 29)
#: (across the axis, above the middle of its slice, along the axis from the middle, brightness), px: no turn makes them their mirror image.
ATOMS = ((-13.0, -4.0, -10.0, 1.0), (9.0, -7.0, -3.0, 2.0), (3.0, 10.0, 4.0, 3.0), (-4.0, -9.0, 12.0, 4.0))


def images(
    points: Array, weights: Array, axis_deg: float, *, shape: tuple[int, int] = (64, 64), jitter_px: float = 0.0, sigma_px: float = 2.0
) -> Array:
    """(tilts, y, x): points (across the axis, along it, above), px, about an axis as IMOD has it.

    In IMOD's view x counts to the right and y upwards, and the first row of a file is the lowest; the axis is turned from the vertical
    counterclockwise. A point is seen at (across cos(tilt) + above sin(tilt)) from the axis, to its right where that is upright.
    """
    turn, (height, width) = np.radians(axis_deg), shape
    to_right, along = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    rng, views = np.random.default_rng(5), []
    for tilt in np.radians(TILTS_DEG):
        across = points[:, 0] * np.cos(tilt) + points[:, 2] * np.sin(tilt)
        x, y = across * to_right[:, None] + points[:, 1] * along[:, None] + rng.uniform(-jitter_px, jitter_px, (2, 1))
        views.append(splat(np.stack([y + (height - 1) / 2, x + (width - 1) / 2]), weights, shape))
    return np.stack([gaussian_filter(view, sigma_px, mode="constant") for view in views])


def atoms(axis_deg: float, **how: tuple[int, int]) -> Array:
    across, above, along, weight = np.array(ATOMS).T
    return images(np.stack([across, along, above], 1), 100 * weight, axis_deg, **how)


def particle(kind: str, axis_deg: float, noise: float, *, seed: int = 0, size_px: int = 80) -> Array:
    """A random particle, drifting by up to 3 px, with noise (a share of its brightest places) and a slope left over."""
    rng = np.random.default_rng(seed)
    made = make_particle(rng, kind=kind, atoms=2000)
    points = made.positions_nm * (0.28 * size_px / np.linalg.norm(made.positions_nm, axis=1).max())
    views = images(points, np.ones(len(points)), axis_deg, shape=(size_px, size_px), jitter_px=3, sigma_px=0.8)
    top = np.percentile(views, 99)
    slopes = 0.03 * top * rng.normal(size=(len(views), 2)) @ (np.mgrid[:size_px, :size_px] / size_px - 0.5).reshape(2, -1)
    return (views + slopes.reshape(views.shape) + rng.normal(0, noise * top, views.shape)).astype(np.float32)


def series_of(folder: Path, views: Array, axis_deg: float = float("nan")) -> Path:
    return write_series(folder / "s" / "series.h5", views, TILTS_DEG, tilt_axis_deg=np.full(len(views), axis_deg))


def assert_in_place(volume: Array) -> None:
    """Every atom where it belongs, so the hand is right, too."""
    for across, above, along, _ in ATOMS:
        there = place_of(volume, across, above, (len(volume) - 1) / 2 + along)
        assert there == pytest.approx((across, above, (len(volume) - 1) / 2 + along), abs=0.3)


# -- said, and applied ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis_deg", [90.0, 12.0, 85.3, -30.0, 180 - 12.0])
def test_a_volume_is_made_about_the_axis_that_the_series_says(tmp_path: Path, axis_deg: float) -> None:
    """Any angle, as IMOD counts it: the same specimen with the same hand comes out; the file says what was done."""
    with h5py.File(reconstruct(series_of(tmp_path, atoms(axis_deg), axis_deg), quick(15))) as file:
        assert_in_place(file[VOLUME][()])
        assert file["reconstruction"].attrs["axis_deg"] == axis_deg
        assert file["reconstruction/quality"].attrs["axis_doubt"] == ""


def test_half_a_turn_from_it_is_the_other_hand(tmp_path: Path) -> None:
    """Which no projection can tell: the mirror image explains them as well."""
    with h5py.File(reconstruct(series_of(tmp_path, atoms(12.0), 12.0 - 180), quick(15))) as file:
        assert_in_place(file[VOLUME][()][::-1, ::-1, ::-1])


def test_a_wide_image_with_its_axis_along_x_makes_a_high_volume(tmp_path: Path) -> None:
    """Nothing is cut off: slices are as many as the image is wide."""
    with h5py.File(reconstruct(series_of(tmp_path, atoms(90.0, shape=(48, 80)), 90.0), quick(15))) as file:
        assert file[VOLUME].shape == (80, 48, 48)
        assert_in_place(file[VOLUME][()])


def test_raw_and_clean_are_never_resampled(tmp_path: Path) -> None:
    """What was stored is there byte by byte after the volume was made."""
    series = series_of(tmp_path, atoms(85.3), 85.3)
    before = series.read_bytes()
    reconstruct(series, quick(2))
    preview(series, size_px=32)
    assert series.read_bytes() == before


def test_alignment_refines_what_is_said() -> None:
    """An axis at 87 degrees that is said to lie at 85.3, projections that drifted: both are found."""
    views = particle("fcc", 87.0, 0.01)
    found = align(views, TILTS_DEG, ("common-line", "center-of-mass", "axis-angle"), axis_deg=85.3)
    assert found.axis_deg == pytest.approx(87.0, abs=0.7)
    assert list(found.residuals.values())[-1] < 0.7 * found.residuals["start"]


def test_one_turn_after_another_is_one_turn() -> None:
    """Two alignments, one found after the other was applied, as one."""
    rng, views = np.random.default_rng(2), atoms(0.0)
    first, then = (Alignment(rng.uniform(-3, 3, (29, 2)), axis_deg) for axis_deg in (40.0, -7.0))
    once, twice = apply(views, first.then(then)), apply(apply(views, first), then)
    assert np.abs(once - twice).max() < 0.02 * views.max()


@pytest.mark.parametrize("words", [["--axis-deg", "12", "--align", ""], ["--axis-deg", "12", "--axis-offset-px", "3.5", "--align", ""]])
def test_the_axis_can_be_said_by_hand(tmp_path: Path, words: list[str]) -> None:
    """Where it lies, and how far right of the middle; the word of the moment overrules the series."""
    moved = Alignment(np.tile([0.0, 3.5], (29, 1))) if "--axis-offset-px" in words else Alignment(np.zeros((29, 2)))
    views = apply(apply(atoms(0.0), moved), Alignment(np.zeros((29, 2)), -12.0))
    series = series_of(tmp_path, views, 85.3)
    assert main(["reconstruct", str(series), "--iterations", "15", "--no-quality", *words]) == 0
    with h5py.File(series.with_name("reconstruction.h5")) as file:
        assert_in_place(file[VOLUME][()])


def test_the_last_word_of_a_series_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A setting that was put right in the middle of it."""
    said = np.where(np.arange(29) < 20, 85.3, 12.0)
    said[-3:] = np.nan
    series = write_series(tmp_path / "s" / "series.h5", atoms(12.0), TILTS_DEG, tilt_axis_deg=said)
    with h5py.File(reconstruct(series, quick(2))) as file:
        assert file["reconstruction"].attrs["axis_deg"] == 12
    assert "said to lie at 12 to 85.3 deg: the last word is 12" in caplog.text


@pytest.mark.parametrize(
    ("turn", "stated_deg"), [("", 85.3), ("t", 85.3), ("t", -30.0), ("y", 85.3), ("x", -30.0), ("tx", 40.0), ("yx", 40.0)]
)
def test_what_a_file_states_turns_with_its_pixels(turn: str, stated_deg: float) -> None:
    """As a line: the axis of the transposed or flipped images is found where it is said to lie."""
    names = {"t": "transpose", "y": "flip_y", "x": "flip_x"}
    axis_deg = Orientation(**{names[letter]: True for letter in turn}).axis_deg(stated_deg)
    found = search(turned(particle("hcp", stated_deg, 0.01, size_px=64), turn), TILTS_DEG, axis_deg)
    assert found.found_deg == pytest.approx(axis_deg, abs=1.5)
    assert not found.contradicts


def test_a_setting_overrules_the_file() -> None:
    """And where nobody says anything, nothing is known."""
    assert Orientation(tilt_axis_deg=3, transpose=True).axis_deg(85.3) == 3
    assert np.isnan(Orientation().axis_deg(None))
    assert load(None, ["orientation.tilt_axis_deg=-30"]).orientation.tilt_axis_deg == -30


@pytest.mark.parametrize(
    ("word", "right"), [("north", "choose one of file, a number"), ("181", "expected a number <= 180"), ("[1]", "number or text")]
)
def test_a_setting_that_is_no_angle_is_refused(word: str, right: str) -> None:
    """With what would be right."""
    from aet_stream.errors import ConfigError

    with pytest.raises(ConfigError, match=f"orientation.tilt_axis_deg = .*{right}"):
        load(None, [f"orientation.tilt_axis_deg={word}"])


# -- from file to volume ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderChild]:
    child = ReaderChild(timeout_s=60, memory_mib=4096, max_file_mib=64)
    yield child
    child.close()


def write_mrc(folder: Path, views: Array, axis_deg: float) -> Path:
    """A stack as SerialEM writes it, the mdoc beside it with the axis in its title."""
    folder.mkdir(parents=True)
    (folder / "np.mrc").write_bytes(writers.mrc((views + 0.01).astype("<f4"), 0.0, 0.04))
    sections = "".join(f"[ZValue = {image}]\nTiltAngle = {tilt:.3f}\n\n" for image, tilt in enumerate(TILTS_DEG))
    title = f"[T = SerialEM: somewhere]\n\n[T =     Tilt axis angle = {axis_deg}, binning = 1  spot = 8  camera = 0]\n\n"
    (folder / "np.mrc.mdoc").write_text(f"PixelSpacing = 0.4\nImageFile = np.mrc\n\n{title}{sections}")
    return folder / "np.mrc"


def test_an_axis_in_an_mdoc_reaches_the_volume(tmp_path: Path, reader: ReaderChild) -> None:
    """Read, recorded with every projection, applied; what the file stated stands beside it."""
    write_mrc(tmp_path / "in" / "s", atoms(85.3), 85.3)
    with Rehearsal(tmp_path, reader) as daemon:
        daemon.run()
    series = tmp_path / "out" / "s" / "series.h5"
    with h5py.File(series) as file:
        assert (file["/aet/projection/tilt_axis_deg"][()] == 85.3).all()
        assert (file["/aet/projection/tilt_axis_stated_deg"][()] == 85.3).all()
    with h5py.File(reconstruct(series, quick(15))) as file:
        assert_in_place(file[VOLUME][()])


@pytest.mark.parametrize(
    ("words", "said"),
    [([], r"tilt axis +85.3 deg from the vertical  (its file says 85.3)"),
     (["--set", "orientation.transpose=true"], "tilt axis +4.7 deg from the vertical  (its file says 85.3)"),
     (["--set", "orientation.tilt_axis_deg=84"], "tilt axis +84.0 deg from the vertical  (orientation.tilt_axis_deg)")],
)  # fmt: skip
def test_check_says_where_the_axis_is_taken_to_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """And who says so."""
    assert main(["check", str(write_mrc(tmp_path / "s", atoms(85.3), 85.3)), *words]) == 0
    assert said in capsys.readouterr().out


def test_the_centre_of_mass_is_followed_across_the_axis() -> None:
    """With the axis along x it moves along y: no drift is seen in what only turns."""
    centres = {axis_deg: np.array([center_of_mass(view) for view in atoms(axis_deg)]) for axis_deg in (0.0, 90.0)}
    upright, lying = (about_axis(yx[:, 1], yx[:, 0], np.full(len(yx), axis_deg)) for axis_deg, yx in centres.items())
    for one, other in zip(upright, lying, strict=True):
        np.testing.assert_allclose(other - other.mean(), one - one.mean(), atol=0.05)
    across, along = about_axis(np.array([3.0]), np.array([4.0]), np.array([np.nan]))
    assert (across, along) == ([3.0], [4.0])


# -- doubted ----------------------------------------------------------------------------------------------------------------------------

WRONG = [(kind, axis_deg, noise) for kind, axis_deg in zip(KINDS, (90.0, 12.0, 85.3, -30.0, 90.0), strict=True) for noise in (0.01, 0.1)]


@pytest.mark.parametrize(("kind", "axis_deg", "noise"), WRONG)
def test_an_axis_elsewhere_is_found_out(kind: str, axis_deg: float, noise: float) -> None:
    """With the figure that separates: where the profiles agree they differ several times less than where settings have the axis."""
    found = search(particle(kind, axis_deg, noise), TILTS_DEG)
    assert found.contradicts, found
    assert (found.found_deg - axis_deg + 90) % 180 - 90 == pytest.approx(0, abs=3)
    assert found.misfit_said > 3 * found.misfit_found


@pytest.mark.parametrize(("kind", "axis_deg", "noise"), WRONG)
def test_an_axis_that_is_where_it_is_said_to_be_is_not_doubted(kind: str, axis_deg: float, noise: float) -> None:
    """Whatever the particle, drift, noise and a slope that is left over notwithstanding; nor one that is a few degrees off."""
    views = particle(kind, axis_deg, noise, seed=1)
    for said_deg in (axis_deg, axis_deg + 4):
        found = search(views, TILTS_DEG, said_deg)
        assert not found.contradicts, found


def test_what_looks_the_same_from_everywhere_tells_nothing() -> None:
    """A ball off the axis: any direction will do, so none is doubted."""
    ball = images(np.array([(4.0, 3.0, 2.0)]), np.ones(1), 0.0, sigma_px=6)
    for said_deg in (0.0, 45.0, 90.0):
        assert not search(ball, TILTS_DEG, said_deg).contradicts


@pytest.mark.parametrize("views", [np.zeros((29, 64, 64)), np.zeros((5, 64, 64)), np.ones((29, 9, 300))])
def test_where_nothing_can_be_seen_nothing_is_said(views: Array) -> None:
    """Empty frames, few of them, very flat ones."""
    assert not search(views.astype(np.float32), np.linspace(-60, 60, len(views))).contradicts


def test_the_doubt_is_told_wherever_the_volume_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log of `reconstruct`, the volume's note and figures, the preview, the page's data and the report; never only left out."""
    series = series_of(tmp_path, particle("amorphous", 12.0, 0.05))
    path, words = reconstruct(series, quick(3)), "The tilt axis does not lie at 0 deg, where it is said to"
    assert words in caplog.text
    with h5py.File(path) as file:
        judged = file["reconstruction/quality"].attrs
        assert judged["note"].startswith(words)
        assert judged["axis_doubt"].startswith(words)
        assert judged["axis_found_deg"] == pytest.approx(12, abs=1.5)
        assert f"Say --axis-deg {judged['axis_found_deg']:.0f}, and orientation.tilt_axis_deg" in caplog.text
        assert judged["axis_misfit"] > 3 * judged["axis_misfit_found"]
        assert judged["axis_sigmas"] > 4
    about = SeriesCache(tmp_path).volume("s")
    assert about is not None
    assert about["axis_doubt"].startswith(words)
    path.unlink()
    with h5py.File(preview(series)) as file:
        assert file.attrs["axis_doubt"].startswith(words)
    about = SeriesCache(tmp_path).volume("s")
    assert about is not None
    assert about["axis_doubt"].startswith(words)


def test_a_volume_about_the_axis_that_was_found_is_not_doubted(tmp_path: Path) -> None:
    """The remedy that is named is one."""
    series = series_of(tmp_path, particle("amorphous", -30.0, 0.05))
    with h5py.File(reconstruct(series, quick(3))) as file:
        found = file["reconstruction/quality"].attrs["axis_found_deg"]
    assert main(["reconstruct", str(series), "--iterations", "3", "--no-quality", "--axis-deg", f"{found:.0f}"]) == 0
    with h5py.File(series.with_name("reconstruction.h5")) as file:
        assert file["reconstruction/quality"].attrs["axis_doubt"] == ""
        assert file["reconstruction"].attrs["axis_deg"] == pytest.approx(-30, abs=2)
