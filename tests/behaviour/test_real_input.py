"""Real and third-party acquisitions, dropped into a watched folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.cli import main
from aet_stream.config_file import load
from aet_stream.readers.child import ReaderChild
from tests.harness import Daemon, plain_reader, plain_rows, running, wait_for
from tests.rehearsal import Rehearsal

pytestmark = pytest.mark.timeout(300)  # two whole series, one with its volume


def test_a_gatan_stack_gives_91_projections_at_their_tilts(tmp_path: Path, test_data: Path) -> None:
    """(a) A real HAADF stack: 91 rows from -90 to +90 degrees, pixels as in the file."""
    (tmp_path / "in").mkdir()
    shutil.copy(test_data / "real-series" / "HAADF.dm3", tmp_path / "in")
    reader = ReaderChild.of(load(None, []))
    try:
        with Rehearsal(tmp_path, reader, "output.group_s=0.1") as daemon:
            assert daemon.run().core.ledger.totals().stored == 91
    finally:
        reader.close()
    series = tmp_path / "out" / "in" / "series.h5"
    with h5py.File(series) as file:
        assert file["/exchange/data"].shape == (91, 64, 64)
        assert np.allclose(np.sort(file["/exchange/theta"][()]), np.arange(-90, 91, 2))
        assert file["/aet/raw"].dtype == np.uint16
    assert main(["verify", str(series)]) == 0


Replayed = tuple[dict[tuple[str, int], tuple[float, bytes, bytes]], dict[str, int]]
"""Rows of the series, and what a plain reader says that looked on."""
KINDS = ("mrc", pytest.param("tiff", marks=pytest.mark.thorough))


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Callable[[str], Replayed]:
    """(b) Somebody else's series, replayed out of order as MRC with mdoc, or as TIFF with the angle in the name; each once."""
    source = test_data / "simulated-np"

    @cache
    def as_kind(kind: str) -> Replayed:
        daemon = Daemon(
            tmp_path_factory.mktemp(kind),
            reconstruct__on_close=kind == "mrc",
            reconstruct__iterations=2,
            reconstruct__quality=False,
            reconstruct__align=[],
        )
        series = daemon.out / "np1" / "series.h5"
        with plain_reader(series, daemon.log.with_name("reader.json")) as report:
            daemon.start("--until-idle", "3", "--strict")
            done = daemon.ask(
                "replay", str(source / "np1_dose8e3.mat"), "--angles", str(source / "angles_deg.mat"), "--out", str(daemon.root),
                "--format", kind, "--shuffle", "--seed", "3", "--cadence", "0.05", "--name", "np1",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert daemon.process is not None
            assert daemon.process.wait(120) == 0, daemon.log.read_text()[-3000:]
            found = plain_rows(series), report()
        assert daemon.ask("verify", str(series)).returncode == 0
        assert (series.parent / "reconstruction.h5").exists() == (kind == "mrc")
        return found

    return as_kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_series_has_60_rows_at_the_right_tilts(replayed: Callable[[str], Replayed], test_data: Path, kind: str) -> None:
    """(b) Out of order on arrival, yet every image has the tilt it was taken at."""
    from scipy.io import loadmat

    from aet_stream.simulate.replay import load_angles

    images = loadmat(str(test_data / "simulated-np" / "np1_dose8e3.mat"))["Trunc_projections_forBM3D"]
    tilts = load_angles(test_data / "simulated-np" / "angles_deg.mat")
    rows, _ = replayed(kind)
    assert len(rows) == 60
    by_tilt = {round(tilt, 2): np.frombuffer(raw, "<f4").reshape(128, 128) for tilt, raw, _ in rows.values()}
    assert sorted(by_tilt) == sorted(round(float(tilt), 2) for tilt in tilts)
    for index, tilt in enumerate(tilts):
        assert np.array_equal(by_tilt[round(float(tilt), 2)], images[:, :, index])


@pytest.mark.thorough
def test_the_same_pixels_come_out_of_both_formats(replayed: Callable[[str], Replayed]) -> None:
    """(b) What came as MRC and what came as TIFF are the same projections."""
    mrc, tiff = ({round(tilt, 2): (raw, clean) for tilt, raw, clean in replayed(kind)[0].values()} for kind in ("mrc", "tiff"))
    assert mrc == tiff


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_reader_never_met_half_a_series(replayed: Callable[[str], Replayed], kind: str) -> None:
    """(b) All the while a plain reader opened the series 20 times a second: no failure, no NaN, no half-written row."""
    _, report = replayed(kind)
    assert report["bad"] == 0, report
    assert report["opened"] >= 40, report
    assert report["rows"] == 60


def test_blank_images_are_stored_and_named_never_silently_good(tmp_path: Path, test_data: Path) -> None:
    """(c) Real angles, all-zero pixels: three rows, flagged blank, without trust, named by status."""
    with running(tmp_path) as daemon:
        for path in sorted((test_data / "formats" / "dm").glob("BF_00*.dm3")):
            (daemon.root / "bf").mkdir(exist_ok=True)
            shutil.copy(path, daemon.root / "bf")
        daemon.wait_for_totals(stored=3)
        series = daemon.out / "bf" / "series.h5"
        wait_for(lambda: len(plain_rows(series)) == 3, what="three readable rows")
        with h5py.File(series) as file:
            assert np.allclose(np.sort(file["/exchange/theta"][()]), (-72.003, -69.004, -66.004), atol=1e-3)
            assert file["/aet/projection/blank"][()].tolist() == [1, 1, 1]
            assert np.isnan(file["/aet/projection/trust"][()]).all()
        text = daemon.ask("status").stdout
        assert all(f"BF_00{i}.dm3" in text for i in (1, 2, 3))
        assert text.count("BLANK") == 3
