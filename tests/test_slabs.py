"""A volume that is too large for memory is made slab by slab: the same volume, a bound on memory, and a kill costs what was in hand."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import failpoints
from aet_stream.errors import ReconstructionError
from aet_stream.reconstruct.run import Options, make_share, reconstruct, share_out
from aet_stream.reconstruct.slabs import SlabFiles
from aet_stream.reconstruct.volume_file import VOLUME
from tests.harness import ENVIRONMENT
from tests.test_reconstruct import views_of, write_series

TILTS_DEG = np.linspace(-70, 70, 7)
"""Fewer than the search for the axis looks at, which takes longer than everything else on such tall frames."""
HEIGHT, WIDTH = 400, 48
VIEWS = views_of(tuple((9 * np.cos(at), 7 * np.sin(at), at, 1.0) for at in range(6, HEIGHT, 9)), TILTS_DEG, width=WIDTH, height=HEIGHT)
#: The volume has 3.5 MiB, of 6 that may be used.
LITTLE = Options(iterations=4, align=(), quality=False, threads=2, memory_mib=6)
PLENTY = replace(LITTLE, memory_mib=200)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume as it is made in memory; its series lies beside it."""
    series = write_series(tmp_path_factory.mktemp("whole") / "gold" / "series.h5", VIEWS, TILTS_DEG)
    return reconstruct(series, replace(PLENTY, quality=True))


@pytest.fixture
def series(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole.with_name("series.h5"), tmp_path))


@pytest.fixture(scope="module")
def ended(whole: Path) -> Path:
    """The slabs of a try that was killed when its third one had just been written."""
    series = Path(shutil.copytree(whole.parent, whole.parent.with_name("killed"), ignore=shutil.ignore_patterns("recon*"))) / "series.h5"
    child = (
        "import sys, pathlib; from aet_stream.reconstruct.run import *;"
        " reconstruct(pathlib.Path(sys.argv[1]), Options(iterations=4, align=(), quality=False, threads=2, memory_mib=6))"
    )
    armed = {**ENVIRONMENT, failpoints.VARIABLE: "slab.renamed@3=kill"}
    assert subprocess.run([sys.executable, "-c", child, str(series)], env=armed, check=False).returncode == -9
    assert not series.with_name("reconstruction.h5").exists()
    return series.with_name(".reconstruction.h5.slabs")


@pytest.fixture
def killed(series: Path, ended: Path) -> Path:
    return Path(shutil.copytree(ended, series.with_name(ended.name)))


def depth(slabs: Path) -> int:
    """Slices of each."""
    return int(sorted(slabs.glob("*.h5"))[1].stem)


def begins_at(caplog: pytest.LogCaptureFixture) -> int:
    """How many slices the last try found there."""
    found = [int(match[1]) for record in caplog.records if (match := re.match(r"(\d+) of 400 slices are there", record.getMessage()))]
    return found[-1] if found else 0


def test_slabs_are_the_whole(series: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same voxels to the last bit, the same figures to rounding; the correlation is of the slices that fit, and says so."""
    with caplog.at_level(logging.INFO):
        made = reconstruct(series, replace(LITTLE, quality=True))
    assert "slab by slab" in caplog.text
    with h5py.File(made) as file, h5py.File(whole) as other:
        np.testing.assert_array_equal(file[VOLUME][()], other[VOLUME][()])
        assert file[VOLUME].attrs["crc32"] == other[VOLUME].attrs["crc32"]
        for name in ("reconstruction/residuals", "reconstruction/quality/residual_per_tilt"):
            np.testing.assert_allclose(file[name][()], other[name][()], rtol=1e-5)
        first, end = file["reconstruction/quality/fsc"].attrs["slices"]
        assert 32 <= end - first < HEIGHT
        assert "memory did not allow more" in file["reconstruction/quality"].attrs["note"]
    assert {path.name for path in series.parent.iterdir()} == {"series.h5", "reconstruction.h5", "reconstruction.png"}


def test_a_kill_costs_the_slabs_in_hand(series: Path, killed: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next try takes up what is there, and makes the volume that one try would have made."""
    there = 3 * depth(killed)
    with caplog.at_level(logging.INFO), h5py.File(reconstruct(series, LITTLE)) as file, h5py.File(whole) as other:
        np.testing.assert_array_equal(file[VOLUME][()], other[VOLUME][()])
        np.testing.assert_allclose(file["reconstruction/residuals"][()], other["reconstruction/residuals"][()], rtol=1e-5)
    assert begins_at(caplog) == there
    assert not killed.exists()


def height(killed: Path, key: str) -> int:
    """How many slices can be gone on with."""
    with contextlib.closing(SlabFiles(killed.with_name("reconstruction.h5"), key, (HEIGHT, WIDTH, WIDTH))) as slabs:
        return slabs.height


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flip(path: Path) -> None:
    """One bit of one voxel, as a disk may."""
    with h5py.File(path) as file:
        offset = file["volume"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_what_is_damaged_is_made_again(killed: Path, damage: Callable[[Path], None]) -> None:
    """And whatever comes after it. Slabs of another volume go, too."""
    there = depth(killed)
    _, damaged, _ = sorted(killed.glob("*.h5"))
    with h5py.File(damaged) as file:
        key = file.attrs["key"]
    damage(damaged)
    assert height(killed, key) == there
    assert height(killed, "of another volume") == 0
    assert not list(killed.glob("*.h5"))


def test_a_volume_made_in_memory_leaves_no_slabs(series: Path, killed: Path) -> None:
    reconstruct(series, PLENTY)
    assert not killed.exists()


def test_slabs_of_a_volume_that_is_there_go(series: Path, killed: Path) -> None:
    """As a kill between the two leaves them: nobody makes that volume again."""
    aside = killed.rename(killed.with_name("aside"))
    reconstruct(series, PLENTY)
    aside.rename(killed)
    reconstruct(series, PLENTY)
    assert not killed.exists()


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """Too wide for the memory there is."""
    series = write_series(tmp_path / "gold" / "series.h5", np.ones((3, 8, 301), np.float32), np.array([-40.0, 0.0, 40.0]))
    with pytest.raises(ReconstructionError, match="may be used"):
        reconstruct(series, replace(LITTLE, memory_mib=1))
    assert list(series.parent.iterdir()) == [series]


def test_two_at_once_do_not_share_slabs(series: Path) -> None:
    with (
        contextlib.closing(SlabFiles(series.with_name("reconstruction.h5"), "of another", (HEIGHT, WIDTH, WIDTH))),
        pytest.raises(ReconstructionError, match="another process makes this volume"),
    ):
        reconstruct(series, LITTLE)


def test_shares_of_whoever_makes_them_are_the_whole(series: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In any order, two at once, one killed half way: it is gone on with. What all of them need is found once, and nothing stays."""
    with caplog.at_level(logging.INFO):
        *shares, last = share_out(series, LITTLE)
        assert len(shares) == 5
        child = (
            "import sys, pathlib; from aet_stream.reconstruct.run import *;"
            " make_share(pathlib.Path(sys.argv[1]), slice(320, 400),"
            " Options(iterations=4, align=(), quality=False, threads=2, memory_mib=6))"
        )
        armed = {**ENVIRONMENT, failpoints.VARIABLE: "slab.renamed@2=kill"}
        assert last == slice(320, 400)
        assert subprocess.run([sys.executable, "-c", child, str(series)], env=armed, check=False).returncode == -9
        with contextlib.closing(SlabFiles(series.with_name("reconstruction.h5"), "", (HEIGHT, WIDTH, WIDTH), share=shares[0])):
            make_share(series, last, LITTLE)
            with pytest.raises(ReconstructionError, match="another process makes this volume"):
                reconstruct(series, LITTLE)
        assert re.search(r"\d+ of 80 slices are there from the try before", caplog.text)
        for slices in reversed(shares):
            make_share(series, slices, LITTLE)
        assert share_out(series, LITTLE) == [*shares, last]
        with h5py.File(reconstruct(series, LITTLE)) as file, h5py.File(whole) as other:
            np.testing.assert_array_equal(file[VOLUME][()], other[VOLUME][()])
    assert begins_at(caplog) == HEIGHT
    assert caplog.text.count("where the tilt axis lies") == 1, "looked for once"
    assert {path.name for path in series.parent.iterdir()} == {"series.h5", "reconstruction.h5", "reconstruction.png"}
    assert share_out(series, LITTLE) == []


def test_only_a_large_volume_is_shared_out(series: Path) -> None:
    assert share_out(series, PLENTY) == []
    assert list(series.parent.iterdir()) == [series]


def test_a_share_says_what_it_misses(series: Path) -> None:
    """As where workers do not reach the same folders."""
    with pytest.raises(ReconstructionError, match="see that all workers reach the same folders"):
        make_share(series, slice(0, 64), LITTLE)
    assert list(series.parent.iterdir()) == [series]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """183 MiB of voxels with 80 MiB to make them in: the process has hardly more than those beside what its libraries take."""
    views = np.random.default_rng(0).random((4, 1200, 200), np.float32)
    series = write_series(tmp_path / "gold" / "series.h5", views, np.array([-40.0, -10.0, 20.0, 50.0]))
    child = (
        "import sys, pathlib, matplotlib.figure; from aet_stream.reconstruct.run import *;"
        " peak = lambda: int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]);"
        " libraries = peak();"
        " reconstruct(pathlib.Path(sys.argv[1]), Options(iterations=1, align=(), quality=False, threads=1, memory_mib=80));"
        " print((peak() - libraries) // 1024)"
    )
    said = subprocess.run([sys.executable, "-c", child, str(series)], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert int(said.stdout) < 100
