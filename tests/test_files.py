"""Files without a daemon: `aet-stream denoise`, and what a script calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

import aet_stream
from aet_stream.cli import main
from aet_stream.readers import SUFFIXES
from aet_stream.simulate.microscope import shots
from aet_stream.simulate.writers import WRITERS, velox
from aet_stream.transport import ask
from tests.harness import ENVIRONMENT, known_image, plain_rows, put, running, wait_for
from tests.test_store import filled

FORMATS = Path(os.environ.get("AET_STREAM_TEST_DATA", "/nowhere"), "formats")
WORDS = ["--set", "denoise.model=laplace"]


def one_of_each(folder: Path) -> None:
    """A file of every format that is simulated, and every real one at hand, in a folder of its own: its sidecars come with it."""
    images = np.stack([known_image(index) for index in range(len(WRITERS))])
    for index, shot in enumerate(shots(images, np.arange(len(images)) * 3.0, 0.05, list(WRITERS), [])):
        own = folder / f"simulated_{index}"
        own.mkdir(parents=True)
        (own / shot.name).write_bytes(shot.content)
        if shot.sidecar:
            (own / shot.sidecar[0]).write_bytes(shot.sidecar[1])
    for kind in FORMATS.glob("*"):
        shutil.copytree(kind, folder / f"real_{kind.name}")


@pytest.mark.thorough
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["laplace", pytest.param("default", marks=pytest.mark.slow)])
def test_denoise_gives_what_the_daemon_stores_of_every_format(tmp_path: Path, model: str) -> None:
    """Raw and clean of every image that the daemon stores of these files, byte for byte; clean = raw - background."""
    one_of_each(tmp_path / "in")
    assert_same_as_stored(tmp_path, model)


def test_denoise_gives_what_the_daemon_stores_with_the_network(tmp_path: Path) -> None:
    """A stack, a frame of one pixel per block and one of more, odd edges: in both programs the same pixels go through the same network."""
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "stack_+1.0deg.npy", known_image(1, 40)[None])
    for index, (kind, size_px) in enumerate((("tiff", 64), ("mrc", 30), ("npy", 200))):
        put(folder, index, 3.0 * index + 2, kind=kind, pixels=known_image(index, size_px)[:, 5:])
    assert_same_as_stored(tmp_path, "default")


def assert_same_as_stored(folder: Path, model: str) -> None:
    """The daemon and `denoise`, on what lies in `folder`/in."""
    stored, files = by_the_daemon(folder, model), folder / "in"
    sources = {path.name: str(path.relative_to(files)) for path in files.rglob("*") if path.suffix.lower() in SUFFIXES}
    main(
        ["denoise", *(str(files / path) for path in sources.values()), "--out", str(folder / "denoised"), "--set", f"denoise.model={model}"]
    )
    results = [*(folder / "denoised").iterdir()]
    assert len(stored) >= len(results) > 3
    assert sum(same_as_stored(path, sources[path.stem], stored) for path in results) == len(stored)


def by_the_daemon(folder: Path, model: str) -> dict[tuple[str, int], tuple[float, bytes, bytes]]:
    """What it stores of the files in `folder`/in, each a series of its own; those without a tilt get one each."""
    with running(folder, series__by="file", denoise__model=model) as daemon:
        while True:
            wait_for(lambda: daemon.status().get("idle_for_s", 0) > 2, limit_s=200, what="the daemon to have nothing to do")
            untilted = [row["id"] for row in daemon.status()["held"] if row["reason"].startswith("no tilt angle")]
            if not untilted:
                break
            for number in untilted:
                ask(daemon.out, "release", {"ids": [number], "tilt_deg": float(number % 140 - 70)})
        return {key: row for series in daemon.out.glob("*/series.h5") for key, row in plain_rows(series).items()}


def same_as_stored(path: Path, source: str, stored: dict[tuple[str, int], tuple[float, bytes, bytes]]) -> int:
    """How many images of a result the daemon has stored, too."""
    count = 0
    with h5py.File(path, "r") as file:
        for group in [file, *(group for name, group in file.items() if isinstance(group, h5py.Group) and name != "quality")]:
            for row, image in enumerate(group["image"][()]):
                raw, clean = group["raw"][row], group["clean"][row]
                assert (group["background"][row] == raw.astype(np.float32) - clean).all()
                if (source, image) in stored:
                    assert (raw.tobytes(), clean.tobytes()) == stored[source, image][1:], (source, image)
                    count += 1
    return count


def test_a_stack_becomes_one_file_that_anybody_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A MATLAB stack with its angles: images in their order, tilts and figures beside them; read again as MATLAB users would store it."""
    stack = np.stack([known_image(index) for index in range(3)], axis=-1)
    savemat(tmp_path / "np1.mat", {"projections": stack, "angles": np.array([-10.0, 0.0, 12.5])})
    assert main(["denoise", str(tmp_path / "np1.mat"), "--out", str(tmp_path / "out"), *WORDS]) == 0
    assert f"3 images -> {tmp_path / 'out' / 'np1.mat.h5'}" in capsys.readouterr().out
    with h5py.File(tmp_path / "out" / "np1.mat.h5", "r") as file:
        assert (np.moveaxis(file["raw"][()], 0, 2) == loadmat(tmp_path / "np1.mat")["projections"]).all()
        assert file["tilt_deg"][()].tolist() == [-10, 0, 12.5]
        assert (file["background"][()] == file["raw"][()] - file["clean"][()]).all()
        assert (file["quality/trust"][()] > 0).all()
        assert set(file["quality/model"][()]) == {b"laplace"}
        assert (file.attrs["model"], len(file.attrs["model_sha256"])) == ("laplace", 64)


def test_images_of_another_shape_stand_in_a_group_of_their_own(tmp_path: Path) -> None:
    """Two detectors of different size in one Velox file: both are there, neither is cut."""
    path, other = tmp_path / "two.emd", tmp_path / "other.emd"
    path.write_bytes(velox(known_image(1), 5.0, 0.1))
    other.write_bytes(velox(known_image(2, 80)[:48], 5.0, 0.1, detectors=("BF",)))
    with h5py.File(path, "r+") as file, h5py.File(other, "r") as more:
        more.copy(f"Data/Image/{0:032x}", file["Data/Image"], name=f"{1:032x}")
    code = main(["denoise", str(path), "--out", str(tmp_path), *WORDS])
    with h5py.File(tmp_path / "two.emd.h5", "r") as file:
        shapes = {
            name: group["raw"].shape
            for name, group in [
                ("", file),
                *((name, group) for name, group in file.items() if isinstance(group, h5py.Group) and "raw" in group),
            ]
        }
    assert (code, shapes) == (0, {"": (1, 64, 64), "48x80 uint16": (1, 48, 80)})


def test_what_is_no_projection_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second signal of a file has pixels of 1/m: the first is written and read, and that is all that was asked for."""
    path = tmp_path / "two.emd"
    path.write_bytes(velox(known_image(1), 5.0, 0.1, detectors=("HAADF", "Camera")))
    with h5py.File(path, "r+") as file:
        metadata = file[f"Data/Image/{1:032x}/Metadata"]
        text = metadata[:, 0].tobytes().rstrip(b"\0").replace(b'"m"', b'"1/m"')
        metadata[:, 0] = np.frombuffer(text.ljust(len(metadata), b"\0"), np.uint8)
    assert main(["denoise", str(path), "--out", str(tmp_path), *WORDS]) == 0
    shown = capsys.readouterr()
    assert "1 image -> " in shown.out
    assert "image 1 is left out: no projection" in shown.err
    assert len(aet_stream.read(path)) == aet_stream.denoise_file(path, tmp_path / "one.h5", model="laplace") == 1


def test_what_cannot_be_read_is_said_in_one_line_and_the_rest_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file beside a sound one, and a stack with one image that is none: exit code 1, a line each, all else on disk."""
    good = put(tmp_path, 1, 5.0)
    (tmp_path / "cut.tif").write_bytes(good.read_bytes()[:200])
    stack = np.stack([known_image(index).astype("<f4") for index in range(3)])
    stack[1, 5, 5] = np.nan
    np.save(tmp_path / "stack.npy", stack)
    words = ["denoise", *(str(tmp_path / name) for name in ("cut.tif", "stack.npy", good.name)), "--out", str(tmp_path / "out"), *WORDS]
    assert main(words) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("aet-stream denoise: cut.tif: ")
    assert errors[1].endswith("stack.npy: image 1: 1 of 4096 pixels are not finite")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{good.name}.h5", "stack.npy.h5"]
    with h5py.File(tmp_path / "out" / "stack.npy.h5", "r") as file:
        assert file["image"][()].tolist() == [0, 2]
        assert np.isnan(file["tilt_deg"][()]).all()
        assert b"no tilt angle" in file["remark"][0]


def test_nothing_is_overwritten_unasked_and_no_two_results_share_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before any work; a file that is not there, and a folder, too."""
    one, out = put(tmp_path / "a", 1, 5.0), tmp_path / "out"
    other = tmp_path / "b" / one.name
    other.parent.mkdir()
    shutil.copy(one, other)
    for files, said in (
        ([one, other], "another FILE of this name"),
        ([tmp_path / "a"], "a folder: name the files in it"),
        ([tmp_path / "no.tif"], "there is no such file"),
    ):
        assert main(["denoise", *map(str, files), "--out", str(out), *WORDS]) == 1
        assert said in capsys.readouterr().err
    assert not out.exists()
    words = ["denoise", str(one), "--out", str(out), *WORDS]
    assert [main(words), main(words), main([*words, "--overwrite"])] == [0, 1, 0]
    assert "is there already; say --overwrite" in capsys.readouterr().err


def test_the_package_costs_nothing_until_its_names_are_used() -> None:
    """No numpy and no torch at import; no torch for reading, only for networks; a dozen names at most, all of them there."""
    script = """
import sys, aet_stream
assert not {"numpy", "torch", "h5py"} & set(sys.modules), "loaded at import"
assert all(hasattr(aet_stream, name) for name in aet_stream.__all__)
assert "torch" not in sys.modules, "torch for nothing"
"""
    subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, timeout=60, check=True)
    assert len(aet_stream.__all__) <= 12
    with pytest.raises(AttributeError, match="no attribute 'denoised'"):
        aet_stream.denoised  # noqa: B018


def test_what_a_script_calls_gives_what_the_daemon_does(tmp_path: Path) -> None:
    """An image read, subtracted, written; wrong ones refused in words."""
    path = put(tmp_path, 1, 5.0)
    (image,) = aet_stream.read(path)
    assert image.acquisition.tilt_deg == 5
    assert (image.pixels == known_image(1)).all()
    result = aet_stream.subtract(image.pixels, model="laplace")
    assert aet_stream.denoise_file(path, tmp_path / "one.h5", model="laplace") == 1
    with h5py.File(tmp_path / "one.h5", "r") as file:
        assert file["clean"][0].tobytes() == result.clean.tobytes()
        assert file["quality/expected_error"][0] == result.quality.expected_error
    for wrong, said in ((np.zeros((2, 4, 4)), "shape"), (np.full((4, 4), np.nan), "16 pixels are not finite"), (np.array(["a"]), "type")):
        with pytest.raises(ValueError, match=said):
            aet_stream.subtract(wrong)
    with pytest.raises(aet_stream.AetError, match="no such network"):
        aet_stream.subtract(image.pixels, model="nonsense")


def test_a_series_is_opened_and_reconstructed_by_the_same_names(tmp_path: Path) -> None:
    """The room `reconstruct` and the function are one name, whichever was loaded first."""
    import aet_stream.reconstruct.run

    filled(tmp_path, 4)
    with aet_stream.open_series(tmp_path / "s" / "series.h5") as series:
        assert sorted(series.tilts_deg) == [0, 3, 6, 9]
    volume = aet_stream.reconstruct(tmp_path / "s" / "series.h5", iterations=2, align=(), out=tmp_path / "v.h5")
    with h5py.File(volume, "r") as file:
        assert np.isfinite(file["reconstruction/volume"][()]).all()
    assert callable(aet_stream.reconstruct.run.reconstruct)
