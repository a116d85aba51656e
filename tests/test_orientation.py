"""Sign, axis and hand, judged on a series of a specimen that is known."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.reconstruct.orientation import verdict, ways
from aet_stream.simulate.formation import project_series, volume
from aet_stream.simulate.particle import Particle
from tests.test_reconstruct import write_series

TILTS = np.linspace(-65, 65, 9)


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, np.ndarray]:
    """(clean projections, volume) of a few atoms without any symmetry."""
    places = np.random.default_rng(4).uniform(-0.7, 0.7, (25, 3))
    particle = Particle(positions_nm=places, atomic_number=np.full(25, 79), kind="loose")
    clean = project_series(particle, TILTS, size_px=48, pixel_size_nm=0.05)
    noise = np.random.default_rng(1).normal(0, clean.std() / 5, clean.shape)
    return clean + noise, volume(particle, size_px=48, pixel_size_nm=0.05)


def test_a_series_that_is_right_is_said_to_be_right(known: tuple[np.ndarray, np.ndarray]) -> None:
    """Even if every frame has drifted elsewhere."""
    clean, truth = known
    drifted = np.stack([np.roll(frame, (index - 4, 3 - index), (0, 1)) for index, frame in enumerate(clean)])
    right, said = verdict(ways(drifted, TILTS, truth))
    assert right, said


@pytest.mark.parametrize(
    ("spoil", "scale", "words"),
    [
        (lambda a: a, -1, ["the sign of angle.scale"]),
        (lambda a: a.swapaxes(1, 2), 1, ["orientation.transpose"]),
        (lambda a: a[:, ::-1], 1, ["orientation.flip_y"]),
        (lambda a: a[:, :, ::-1], 1, ["orientation.flip_x"]),
        (lambda a: a[:, ::-1], -1, ["orientation.flip_y", "angle.scale"]),
    ],
)
def test_what_is_wrong_is_named(known: tuple[np.ndarray, np.ndarray], spoil: object, scale: int, words: list[str]) -> None:
    """Each wrong turn is recognised, and the setting that mends it is named."""
    clean, truth = known
    right, said = verdict(ways(spoil(clean), TILTS * scale, truth))  # type: ignore[operator]
    assert not right
    assert all(word in said for word in words), said
    assert said.count("turn round") == len(words), said


def test_a_symmetric_specimen_tells_nothing() -> None:
    """A ball looks the same in every way: that is said, not guessed."""
    grid = np.mgrid[:32, :32, :32] - 15.5
    ball = (np.sqrt((grid**2).sum(0)) < 8).astype(float)
    right, said = verdict(ways(np.repeat(ball.sum(0)[None], 5, 0), np.linspace(-60, 60, 5), ball))
    assert not right
    assert "cannot tell" in said


def test_check_says_it_of_a_stored_series(tmp_path: Path, known: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    """`check --series --known`: right as it was stored, wrong when the known volume is mirrored; both files are needed."""
    from aet_stream.cli import main

    clean, truth = known
    for volume_there, code, said in ((truth, 0, "are right"), (truth[:, ::-1], 1, "the sign of angle.scale")):
        words = _series_and_truth(tmp_path, clean, volume_there)
        assert main(words) == code
        assert said in capsys.readouterr().out
    assert main(words[:3]) == 1


@pytest.mark.parametrize("column", ["blank", "superseded"])
def test_what_no_volume_takes_has_no_say(
    tmp_path: Path, known: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str], column: str
) -> None:
    """Blank and superseded rows show nothing of the specimen: with them nobody could tell."""
    from aet_stream.cli import main

    clean, truth = known
    rows = np.arange(len(TILTS)) % 2 == 1
    spoilt = np.where(rows[:, None, None], 0, clean)
    assert main(_series_and_truth(tmp_path, spoilt, truth)) == 1
    assert "cannot tell" in capsys.readouterr().out
    assert main(_series_and_truth(tmp_path, spoilt, truth, **{column: rows.astype(np.uint8)})) == 0


def test_check_forgives_nothing_for_an_orientation_that_is_right(
    tmp_path: Path, known: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings that will not do and files that cannot be stored count beside `--series --known`, too."""
    from aet_stream.cli import main

    words = _series_and_truth(tmp_path, *known)
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no image")
    assert main(words) == 0
    assert main([*words, "--set", "webhook.secret_file=/no/such/file"]) == 1
    assert "/no/such/file" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "broken.tif")]) == 1
    assert "broken.tif" in capsys.readouterr().out


def _series_and_truth(folder: Path, clean: np.ndarray, truth: np.ndarray, **columns: np.ndarray) -> list[str]:
    """A stored series and the volume of its specimen; the words that compare them."""
    write_series(folder / "series.h5", clean.astype(np.float32), TILTS, **columns)
    with h5py.File(folder / "truth.h5", "w") as file:
        file["volume"] = truth
    return ["check", "--series", str(folder / "series.h5"), "--known", str(folder / "truth.h5")]
