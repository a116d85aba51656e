"""series.h5 in other people's programs, by the very lines that docs/reconstruction.md gives; each skips where its program is not installed.

A series as the hub writes it, while it is open (a master over single files) and when it is closed (one file).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from aet_stream.reconstruct.run import Options, reconstruct
from tests.durability import rig
from tests.harness import known_image

README, PAGE = (Path(__file__).parents[1] / name for name in ("README.md", "docs/reconstruction.md"))
CLEAN = np.stack([known_image(index, 32) for index in range(rig.GOOD)]).astype(np.float32) - np.float32(rig.BACKGROUND)
TILTS_DEG = 3.0 * np.arange(rig.GOOD)


@pytest.fixture(scope="module", params=["open", "closed"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = rig.Case(tmp_path_factory.mktemp(request.param), close=request.param == "closed")
    rig.expose(case.folder / "in")
    assert rig.attempt(case) == 0
    series = case.folder / "out" / "s"
    reconstruct(series / "series.h5", Options(iterations=2, align=(), quality=False, threads=1))
    with h5py.File(series / "series.h5") as file:
        assert bool(file["/exchange/data"].is_virtual) != case.close
    return series


def run(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's lines for a program leave behind."""
    if find_spec(program.split(".")[0]) is None:
        pytest.skip(f"{program} is not installed")
    found = re.search(rf"```python\n(import [^`]*\b{re.escape(program)}\b[^`]*)```", PAGE.read_text())
    assert found, f"the page has no lines for {program}"
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(found[1], names)
    return names


def in_order(tilts_deg: Any) -> np.ndarray:
    """Rows by tilt: units arrive in any order."""
    np.testing.assert_allclose(np.sort(tilts_deg), TILTS_DEG, atol=1e-6)
    return np.argsort(tilts_deg)


def recon(tomo: np.ndarray, theta: np.ndarray, *, center: float, algorithm: str, num_iter: int) -> np.ndarray:
    """Stands in for tomopy's, and has no usual number of iterations."""
    return np.zeros((tomo.shape[1], tomo.shape[2], tomo.shape[2]))


def test_the_lines_of_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, one after the other; tomopy's, too, where it is not installed."""
    if find_spec("tomopy") is None:
        monkeypatch.setitem(sys.modules, "tomopy", SimpleNamespace(recon=recon))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for lines in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(dedent(lines), names)
    order = in_order(names["tilts_deg"])
    np.testing.assert_array_equal(names["clean"][order], CLEAN)
    assert names["volume"].shape == (32, 32, 32)


@pytest.mark.filterwarnings("ignore")
def test_dxchange(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, neutral white and dark, tilts in radians."""
    found = run("dxchange", folder, monkeypatch)
    order = in_order(np.degrees(found["theta"]))
    np.testing.assert_array_equal(found["projections"][order], CLEAN)
    assert (found["white"] == 1).all()
    assert not found["dark"].any()


@pytest.mark.filterwarnings("ignore")
def test_nxtomo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid NXtomo entry with the same pixels."""
    found = run("nxtomo", folder, monkeypatch)
    order = in_order(found["tilts_deg"])
    np.testing.assert_array_equal(found["projections"][order], CLEAN)


@pytest.mark.filterwarnings("ignore")
def test_hyperspy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of images to scroll through, with its tilts."""
    found = run("hyperspy", folder, monkeypatch)
    signal = found["stack"]
    assert (signal.axes_manager.navigation_size, signal.axes_manager.signal_shape) == (6, (32, 32))
    with h5py.File("series.h5") as file:
        np.testing.assert_array_equal(signal.data, file["/exchange/data"][()])
        np.testing.assert_array_equal(found["tilts_deg"], file["/exchange/theta"][()])
    assert found["volume"].axes_manager.signal_shape == (32, 32)


@pytest.mark.tomopy
@pytest.mark.filterwarnings("ignore")
def test_tomopy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume by its own call."""
    found = run("tomopy", folder, monkeypatch)
    assert found["volume"].shape == (32, 32, 32)
    assert np.isfinite(found["volume"]).all()


@pytest.mark.skipif(shutil.which("octave-cli") is None, reason="Octave is not installed")
def test_octave(folder: Path, tmp_path: Path) -> None:
    """Images, tilts and volume by its own `load`, axes as the page says."""
    (lines,) = re.findall(r"```octave\n(.*?)```", PAGE.read_text(), re.DOTALL)
    keep = f"save('-v7', '{tmp_path / 'found.mat'}', 'data', 'tilts', 'volume');"
    done = subprocess.run(["octave-cli", "--quiet", "--eval", lines + keep], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = loadmat(tmp_path / "found.mat")
    order = in_order(np.ravel(found["tilts"]))
    np.testing.assert_array_equal(np.moveaxis(found["data"], 2, 0)[order], CLEAN)
    with h5py.File(folder / "reconstruction.h5") as file:
        np.testing.assert_array_equal(found["volume"].T, file["reconstruction/volume"][()])
