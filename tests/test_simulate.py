"""The simulated microscope: images and volume belong together, files come as an instrument writes them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from aet_stream.cli import main
from aet_stream.errors import AetError, SourceError
from aet_stream.readers.child import ReaderChild
from aet_stream.simulate import microscope, multislice, noise, replay
from aet_stream.simulate.backgrounds import KINDS as BACKGROUNDS
from aet_stream.simulate.backgrounds import background, gaussian
from aet_stream.simulate.formation import project, volume
from aet_stream.simulate.particle import HABITS, KINDS, Particle, make_particle
from aet_stream.simulate.series import simulate_series
from aet_stream.simulate.writers import WRITERS
from tests.harness import Daemon


@pytest.mark.parametrize("kind", KINDS + HABITS)
def test_particles_have_about_the_atoms_asked_for_and_no_two_in_one_place(kind: str) -> None:
    """Every kind; metals' distances."""
    from scipy.spatial import cKDTree

    particle = make_particle(np.random.default_rng(0), kind=kind, atoms=3000, elements=(78, 46))
    assert 800 < len(particle.positions_nm) < 6000
    nearest = cKDTree(particle.positions_nm).query(particle.positions_nm, k=2)[0][:, 1]
    assert nearest.min() > 0.2
    assert set(np.unique(particle.atomic_number)) == {46, 78}


def test_a_projection_is_the_volume_seen_from_its_tilt() -> None:
    """One atom off the axis: where the geometry says, at every tilt; and line sums of the volume at tilt 0."""
    atom = Particle(np.array([[1.0, 0.4, -0.6]], np.float32), np.array([79]), "one")
    for tilt in (-60.0, 0.0, 35.0):
        image = project(atom, tilt, size_px=65, pixel_size_nm=0.1)
        row, column = np.unravel_index(np.argmax(image), image.shape)
        assert row == 32 + 4
        assert column == pytest.approx(32 + 10 * np.cos(np.radians(tilt)) - 6 * np.sin(np.radians(tilt)), abs=0.6)
    solid = volume(atom, size_px=65, pixel_size_nm=0.1)
    assert np.allclose(solid.sum(axis=1), project(atom, 0.0, size_px=65, pixel_size_nm=0.1), atol=1e-5)


def test_the_published_background_is_the_published_one() -> None:
    """gaussian_filter(randn, sigma 10..29) at 256 px: a standard deviation near 0.016."""
    stds = [gaussian(np.random.default_rng(seed), 256).std() for seed in range(20)]
    assert np.mean(stds) == pytest.approx(0.016, abs=0.005)


def test_a_real_filter_makes_the_published_background() -> None:
    """The matrix that stands for the filter gives what scipy's filter gives."""
    from scipy.ndimage import gaussian_filter

    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    sigma = int(again.integers(10, 30))
    expected = gaussian_filter(again.standard_normal((256, 256)).astype(np.float32), sigma)
    assert np.abs(gaussian(rng, 256) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("words", "said"), [({"kind": "sphere"}, "sphere"), ({"elements": (0,)}, "elements"), ({"elements": (1, 2, 3)}, "elements")]
)
def test_a_particle_that_cannot_be_made_is_named(words: dict[str, object], said: str) -> None:
    """With the choices there are."""
    with pytest.raises(ValueError, match=said):
        make_particle(np.random.default_rng(0), **words)  # type: ignore[arg-type]


def test_noise_is_of_the_strength_asked_for() -> None:
    """Poisson at low and high dose, read noise, grain; unsteady lines move rows and nothing else."""
    rng = np.random.default_rng(0)
    flat = np.full((200, 200), 0.5, np.float32)
    for dose in (20.0, 2000.0):
        noisy = noise.counted(rng, flat, dose)
        assert noisy.mean() == pytest.approx(0.5, rel=0.02)
        assert noisy.std() == pytest.approx(np.sqrt(0.5 / dose), rel=0.05)
    assert noise.read(rng, flat, 0.1).std() == pytest.approx(0.1, rel=0.05)
    assert noise.grain(rng, (100, 100), 1.5).std() == pytest.approx(1)
    ramp = np.tile(np.arange(200, dtype=np.float32), (200, 1))
    moved = noise.scan_lines(rng, ramp, 1.0) - ramp
    assert np.abs(np.diff(moved[:, 20:-20], axis=1)).max() < 1e-3
    assert moved[:, 100].std() == pytest.approx(1.0, rel=0.3)


@pytest.mark.filterwarnings("default")  # abTEM's own dependencies warn
def test_multislice_images_look_like_linear_ones_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same geometry, pixel for pixel; a projection that is there is not computed again."""
    pytest.importorskip("abtem", reason="abTEM is not installed: pip install 'aet-stream[multislice]'")
    monkeypatch.setattr(multislice, "SAMPLING_NM", 0.012)
    particle = make_particle(np.random.default_rng(2), kind="fcc", atoms=120, elements=(78,))
    tilts = np.array([20.0])
    image = multislice.project_series(particle, tilts, size_px=32, pixel_size_nm=0.07, folder=tmp_path)[0]
    linear = project(particle, 20.0, size_px=32, pixel_size_nm=0.07)
    agreement = np.corrcoef(image.ravel(), linear.ravel())[0, 1]
    assert agreement > 0.8
    for moved in (np.roll(image, 1, 0), np.roll(image, 1, 1), image.T, image[::-1]):
        assert np.corrcoef(moved.ravel(), linear.ravel())[0, 1] < agreement - 0.1
    monkeypatch.setattr(multislice, "project", None)
    assert np.array_equal(multislice.project_series(particle, tilts, size_px=32, pixel_size_nm=0.07, folder=tmp_path)[0], image)


def test_without_abtem_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no traceback."""
    monkeypatch.setitem(sys.modules, "abtem", None)
    with pytest.raises(AetError, match="multislice"):
        multislice.project(make_particle(np.random.default_rng(0), atoms=1000), 0.0, size_px=16, pixel_size_nm=0.2)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_are_smooth_and_follow_from_their_seed(kind: str) -> None:
    """No detail finer than a few pixels."""
    one, same = (background(np.random.default_rng(5), kind, 128) for _ in range(2))
    assert np.array_equal(one, same)
    assert np.abs(np.diff(one)).max() < 0.2 * max(np.ptp(one), 1e-6)


def test_a_series_is_its_parts(tmp_path: Path) -> None:
    """raw is clean plus background plus counting noise; the truth file holds all of it."""
    series = simulate_series(seed=1, tilts_deg=np.linspace(-60, 60, 5), size_px=64, dose=1000.0)
    difference = series.raw - (series.clean + series.background)
    assert abs(difference.mean()) < 2
    assert difference.std() < 3 * np.sqrt((series.clean + series.background).mean())
    microscope.write_truth(tmp_path / "t.h5", series)
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["volume"].shape == (64, 64, 64)
        assert np.array_equal(file["clean"][()], series.clean)


def test_files_are_written_in_pieces_at_their_cadence(tmp_path: Path) -> None:
    """Each piece is on disk before the next; the waits add up to the cadence."""
    waits: list[float] = []
    sizes: list[int] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        sizes.extend(path.stat().st_size for path in (tmp_path / "s").glob("*") if len(waits) == 1)

    shot = microscope.Shot("a.npy", b"x" * 1000)
    assert microscope.write(tmp_path / "s", iter([shot]), cadence_s=2.0, pieces=4, wait=wait, told=lambda _: None) == 1
    assert sizes == [250]
    assert len(waits) == 5
    assert (tmp_path / "s" / "a.npy").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("fault", sorted(microscope.FAULTS))
def test_every_accident_can_be_had(fault: str) -> None:
    """One more file than without."""
    images, tilts = np.ones((3, 16, 16), "<u2"), np.arange(3.0)
    assert len(list(microscope.shots(images, tilts, 0.1, ["tiff"], [fault]))) == 4
    with pytest.raises(ValueError, match="truncated"):
        list(microscope.shots(images, tilts, 0.1, ["tiff"], ["nonsense"]))


def test_a_replayed_folder_gives_the_same_images_and_tilts(tmp_path: Path) -> None:
    """From any format into any other, through our own readers."""
    images = np.stack([np.random.default_rng(i).poisson(100, (24, 20)) for i in range(4)]).astype("<u2")
    tilts = np.array([-10.0, 0.0, 10.5, 20.0])
    microscope.write(tmp_path / "old", microscope.shots(images, tilts, 0.1, ["mrc", "dm3"], []), told=lambda _: None)
    found, again, pixel_nm = replay.load(tmp_path / "old", None)
    order = np.argsort(again)
    assert np.array_equal(np.stack(found)[order], images)
    assert again[order].tolist() == tilts.tolist()
    assert pixel_nm == pytest.approx(0.1)
    microscope.write(tmp_path / "new", microscope.shots(found, again, pixel_nm, ["npy"], []), told=lambda _: None)  # type: ignore[arg-type]
    reader = ReaderChild(timeout_s=20, memory_mib=2048, max_file_mib=9)
    try:
        pixels = [reader.read(path, 0)[0].pixels for path in sorted((tmp_path / "new").iterdir())]
        assert np.array_equal(np.stack(pixels), np.stack(found))
    finally:
        reader.close()


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("dtype", ["<i2", "<u4", "<f8"])
def test_a_replay_changes_no_number(tmp_path: Path, kind: str, dtype: str) -> None:
    """Pixels of every type, a tilt as the stage was read, the pixel size; what a format cannot hold is refused, with a choice."""
    image = (np.arange(1, 321).reshape(16, 20) + {"<i2": 0, "<u4": 1 << 24, "<f8": 1e-9}[dtype]).astype(dtype)
    if kind == "mrc" and dtype != "<i2":
        with pytest.raises(ValueError, match="choose tiff"):
            list(microscope.shots([image], [-72.0034], 0.05, [kind], []))  # type: ignore[arg-type]
        return
    microscope.write(tmp_path, microscope.shots([image], [-72.0034], 0.05, [kind], []), told=lambda _: None)  # type: ignore[arg-type]
    images, tilts, pixel_nm = replay.load(tmp_path, None)
    assert np.array_equal(images[0], image)
    assert tilts[0] == pytest.approx(-72.0034, abs=1e-9)
    assert pixel_nm == (None if kind in ("npy", "mat") else pytest.approx(0.05))


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.npy", b""), ("x.mat", b""), ("x.npy", WRITERS["npy"](np.array(["a", "b"]), 0, None))],
    ids=["npy", "mat", "text"],
)
def test_angles_that_are_none_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    """Whatever the library that reads them calls it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name}: no list of angles"):
        replay.load_angles(tmp_path / name)


def test_angles_of_either_version_of_matlab_are_read(tmp_path: Path) -> None:
    """Version 7.3 is HDF5 behind a block of MATLAB's own."""
    savemat(tmp_path / "five.mat", {"angles": [-3.0, 0.5]})
    with h5py.File(tmp_path / "seven.mat", "w", userblock_size=512) as file:
        file["angles"] = [[-3.0, 0.5]]
    for name in ("five.mat", "seven.mat"):
        assert replay.load_angles(tmp_path / name).tolist() == [-3.0, 0.5]


def npy_files(folder: Path, names: dict[str, int]) -> dict[str, np.ndarray]:
    """One image per name; its number is in every pixel."""
    folder.mkdir()
    images = {name: np.full((8, 8), number, "<u2") for name, number in names.items()}
    for name, image in images.items():
        (folder / name).write_bytes(WRITERS["npy"](image, 0.0, None))
    return images


def test_a_replay_takes_tilts_from_names_and_tables_as_the_daemon_does(tmp_path: Path) -> None:
    """In the order of the numbers in their names; a table that speaks of many images counts."""
    npy_files(tmp_path / "named", {"img_10_-30.5deg.npy": 10, "img_2_+10deg.npy": 2, "img_1_0deg.npy": 1})
    images, tilts, _ = replay.load(tmp_path / "named", None)
    assert [int(image[0, 0]) for image in images] == [1, 2, 10]
    assert tilts.tolist() == [0.0, 10.0, -30.5]
    npy_files(tmp_path / "table", {"a.npy": 1, "b.npy": 2})
    (tmp_path / "table" / "tilts.csv").write_text("file,tilt\nb.npy,7\na.npy,-3\n")
    assert replay.load(tmp_path / "table", None)[1].tolist() == [-3.0, 7.0]


def test_a_replay_refuses_what_the_daemon_would_hold(tmp_path: Path) -> None:
    """With the file, the reason and the way out: no tilt; sources that disagree; a unit in doubt. Given tilts help, unless contradicted."""
    npy_files(tmp_path / "none", {"a.npy": 1})
    npy_files(tmp_path / "apart", {"a_+10deg.npy": 1})
    (tmp_path / "apart" / "a_+10deg.csv").write_text("tilt\n15\n")
    (tmp_path / "doubt").mkdir()
    savemat(tmp_path / "doubt" / "a.mat", {"projections": np.ones((8, 8, 3)), "angles": np.array([-1.05, 0.0, 1.05])})
    for folder, said in (("none", "no tilt angle"), ("apart", "disagree"), ("doubt", "degrees or radians")):
        with pytest.raises(SourceError, match=rf"{folder}/a.* image 0: .*{said}.*--angles"):
            replay.load(tmp_path / folder, None)
        given = [60.0] if folder != "doubt" else [-60.0, 0.0, 60.0]
        np.savetxt(tmp_path / "tilts.rawtlt", given)
        assert replay.load(tmp_path / folder, tmp_path / "tilts.rawtlt")[1].tolist() == given
    npy_files(tmp_path / "said", {"a_+10deg.npy": 1})
    (tmp_path / "tilts.rawtlt").write_text("60\n")
    with pytest.raises(SourceError, match="60 deg, but its filename says 10 deg"):
        replay.load(tmp_path / "said", tmp_path / "tilts.rawtlt")


def test_angles_by_position_are_refused_where_the_position_is_in_doubt(tmp_path: Path) -> None:
    """img_10 comes after img_2 by number and before it by letter; with leading zeros there is one order."""
    (tmp_path / "tilts.rawtlt").write_text("1\n2\n10\n")
    npy_files(tmp_path / "bare", {"img_1.npy": 1, "img_2.npy": 2, "img_10.npy": 10})
    with pytest.raises(SourceError, match=r"tilts\.rawtlt .*img_2\.npy .*leading zeros"):
        replay.load(tmp_path / "bare", tmp_path / "tilts.rawtlt")
    npy_files(tmp_path / "zeros", {"img_01.npy": 1, "img_02.npy": 2, "img_10.npy": 10})
    images, tilts, _ = replay.load(tmp_path / "zeros", tmp_path / "tilts.rawtlt")
    assert [float(image[0, 0]) for image in images] == tilts.tolist()


def test_a_replay_out_of_order_may_have_accidents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--shuffle with --fault: both."""
    npy_files(tmp_path / "old", {f"a_{number}deg.npy": number for number in range(9)})
    words = ["replay", str(tmp_path / "old"), "--cadence", "0", "--out", str(tmp_path / "new"), "--format", "npy", "--shuffle"]
    assert main([*words, "--fault", "duplicate"]) == 0
    written = re.findall(r"(\w+)_(\d{3})_\S+deg.npy \(", capsys.readouterr().err)
    assert sorted(name for name, _ in written) == ["duplicate"] + ["probe"] * 9
    assert written != sorted(written, key=lambda one: one[1])


def test_a_replay_of_nothing_says_so(tmp_path: Path) -> None:
    """A mistyped source was never there: it is not called gone."""
    with pytest.raises(SourceError, match="old: no such file or folder"):
        replay.load(tmp_path / "old", None)


def test_a_replay_invents_no_pixel_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown stays unknown in every format that can leave it out; the others are refused, with a choice; several sizes are refused."""
    npy_files(tmp_path / "old", {"a_+10deg.npy": 1})
    words = ["replay", str(tmp_path / "old"), "--cadence", "0", "--out", str(tmp_path / "new"), "--format"]
    for kind in sorted(WRITERS):
        if kind in ("ser", "velox", "emd"):
            assert main([*words, kind, "--name", kind]) == 1
            assert "pixel size" in capsys.readouterr().err
        else:
            assert main([*words, kind, "--name", kind]) == 0
            again, tilts, pixel_nm = replay.load(tmp_path / "new" / kind, None)
            assert ([image.tolist() for image in again], tilts.tolist(), pixel_nm) == ([np.ones((8, 8)).tolist()], [10.0], None), kind
    for index, size_nm in enumerate((0.1, 0.2)):
        (tmp_path / "old" / f"b_{index}deg.tif").write_bytes(WRITERS["tiff"](np.ones((8, 8), "<u2"), 0.0, size_nm))
    assert replay.load(tmp_path / "old", None)[2] is None
    (tmp_path / "old" / "a_+10deg.npy").unlink()
    with pytest.raises(SourceError, match=r"0\.1 to 0\.2 nm"):
        replay.load(tmp_path / "old", None)


def test_replays_of_two_folders_are_two_series_and_never_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dot in a folder's name is part of it; the source, or a folder with something in it, is no target."""
    for name in ("2024.11.24_a", "2024.11.24_b"):
        npy_files(tmp_path / name, {"a_+10deg.npy": 1})
        assert main(["replay", str(tmp_path / name), "--cadence", "0", "--out", str(tmp_path / "new")]) == 0
        assert len(list((tmp_path / "new" / name).iterdir())) == 1
    before = sorted(path for path in tmp_path.rglob("*"))
    capsys.readouterr()
    for out, said in ((tmp_path / "new", "not empty"), (tmp_path, "is the source"), (tmp_path / "2024.11.24_a", "in it")):
        assert main(["replay", str(tmp_path / "2024.11.24_a"), "--cadence", "0", "--out", str(out)]) == 1
        assert said in capsys.readouterr().err
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("simulate", "--pieces", ("-1", "0")),
        ("simulate", "--atoms", ("-5", "1e9")),
        ("simulate", "--tilts", ("0", "-1")),
        ("simulate", "--size", ("0", "-3", "5000")),
        ("simulate", "--range", ("nan", "400")),
        ("simulate", "--dose", ("nan", "-100", "1e30", "30000")),
        ("simulate", "--name", ("../evil", "", "..")),
        ("simulate", "--seed", ("-1",)),
        ("replay", "--speed", ("0",)),
        ("train", "--steps", ("-3",)),
        ("train", "--seed", ("-1",)),
        ("train", "--threads", ("-1",)),
        ("evaluate", "--frames", ("-5", "3")),
        ("evaluate", "--trust-frames", ("-1",)),
    ],
)
def test_a_number_out_of_bounds_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, option: str, values: tuple[str, ...]
) -> None:
    """With the name of its option."""
    given = {"replay": [str(tmp_path)], "evaluate": []}.get(command, ["--out", str(tmp_path / "out")])
    for value in values:
        with pytest.raises(SystemExit):
            main([command, *given, option, value])
        assert f"argument {option}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_simulation_into_the_folder_one_is_in_has_its_truth_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the watched folder; few atoms are named; frames above 512 px have no volume."""
    (tmp_path / "watched").mkdir()
    monkeypatch.chdir(tmp_path / "watched")
    words = ["simulate", "--out", ".", "--tilts", "2", "--cadence", "0", "--atoms"]
    assert main([*words, "3"]) == 1
    assert main([*words, "10", "--size", "520", "--name", "large"]) == 0
    assert main([*words, "10", "--size", "16"]) == 0
    with h5py.File(tmp_path / "watched.truth" / "large.h5") as large, h5py.File(tmp_path / "watched.truth" / "particle.h5") as small:
        assert set(small) - set(large) == {"volume"}


def test_the_commands_say_what_is_wrong(tmp_path: Path) -> None:
    """Unknown format, particle, source: one line, exit code 1."""
    daemon = Daemon(tmp_path)
    for words, said in (
        (["simulate", "--out", str(tmp_path / "x"), "--format", "jpg", "--tilts", "3", "--size", "32"], "jpg"),
        (["simulate", "--out", str(tmp_path / "x"), "--particle", "sphere", "--tilts", "3", "--size", "32"], "sphere"),
        (["replay", str(tmp_path / "nothing"), "--out", str(tmp_path / "x")], "nothing"),
        (["reconstruct", str(tmp_path / "nothing.h5")], "nothing.h5"),
        (["verify", str(tmp_path / "nothing.h5")], "nothing.h5"),
    ):
        done = daemon.ask(*words)
        assert done.returncode == 1, words
        assert said in done.stderr
        assert "Traceback" not in done.stderr
