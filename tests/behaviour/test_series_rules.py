"""What belongs to a series, in which order, and when it ends."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from aet_stream.config import Series
from aet_stream.config_file import load
from aet_stream.hub.ledger import summary
from aet_stream.layout import Record, acquisition_order, nested, repeats, superseded
from aet_stream.naming import series_of
from aet_stream.readers.child import ReaderChild
from aet_stream.simulate.writers import dm4, mrc, tiff, velox
from tests.containers import frame_mdoc
from tests.harness import known_image, put, running
from tests.rehearsal import Rehearsal
from tests.watching import Bench


def record(number: int, tilt_deg: float, **more: object) -> Record:
    known = {"path": f"{number}.tif", "image": 0, "series": "s", "stamp": "", "sha256": "", "raw_crc32": 0, "clean_crc32": 0}
    known |= {"tilt_source": "", "tilt_candidates": "", "closed_at": float(number), "model": "", "model_sha256": ""}
    return nested({"number": number, "tilt_deg": tilt_deg, **known, **more})


def test_deliberate_repeats_are_marked_and_retakes_are_not() -> None:
    """A second and third image at 0 degrees count 1 and 2, in the order they were taken; a superseded one counts for nothing."""
    assert repeats([record(0, 0.0), record(1, 30.0), record(2, 0.03), record(3, -0.04)]) == [0, 0, 1, 2]
    retaken = [record(0, 0.0, path="a"), record(1, 0.0, path="a"), record(2, 0.0, path="b")]
    assert superseded(retaken) == [True, False, False]
    assert repeats(retaken) == [0, 0, 1]
    joined = [record(0, 5.0, path="b"), record(1, 5.0, path="a", members='[["a",0],["b",0]]')]
    assert superseded(joined) == [True, False]


def test_the_order_of_acquisition_is_the_instruments_own() -> None:
    """By its clock where every record has it, else by when the files were finished; never by arrival or name alone."""
    times = ["2023-01-25T20:12:30", "2023-01-25T20:11:00", "2023-01-25T20:09:30"]
    assert acquisition_order([record(n, 0.0, acquired_utc=t) for n, t in enumerate(times)]) == [2, 1, 0]
    assert acquisition_order([record(n, 0.0, acquired_local=t) for n, t in enumerate(times)]) == [2, 1, 0]
    assert acquisition_order([record(0, 0.0, acquired_utc=times[0]), record(1, 0.0, closed_at=-1.0)]) == [1, 0]


@pytest.mark.parametrize(
    ("path", "rules", "series"),
    [
        ("a/x.tif", Series(), "a"),
        ("a/b/c/x.tif", Series(), "a"),
        ("x.tif", Series(), "root"),
        ("run/x.tif", Series(), "run_"),
        ("root/x.tif", Series(), "root_"),
        ("a/tomo.emd", Series(by="file"), "a~tomo"),
        ("..tif", Series(by="file"), "._"),
        ("...tif", Series(by="file"), ".._"),
        ("tomo.emd", Series(by="file"), "tomo"),
        ("a/np12_+3deg.tif", Series(by="pattern", pattern=r"^(?P<series>np\d+)_"), "np12"),
        ("a/other.tif", Series(by="pattern", pattern=r"^(?P<series>np\d+)_"), "a"),
        ("a/..%_x.tif", Series(by="pattern", pattern=r"^(?P<series>[^_]+)_"), "_"),
    ],
)
def test_which_series_a_file_belongs_to(path: str, rules: Series, series: str) -> None:
    """The folder directly under the watched one, whatever lies deeper; or every file; or a part of the name; never a reserved one."""
    assert series_of(path, "root", rules) == series


@contextmanager
def rehearsing(folder: Path, *settings: str) -> Iterator[Rehearsal]:
    """With a reader that keeps to these settings."""
    reader = ReaderChild.of(load(None, list(settings)))
    try:
        with Rehearsal(folder, reader, *settings) as daemon:
            yield daemon
    finally:
        reader.close()


def states_in(daemon: Rehearsal) -> Counter[str]:
    """How many images ended how, when nothing moves any more."""
    return Counter(ending.state for ending in daemon.run().endings.values())


def test_one_detector_is_used_and_the_others_are_recorded(tmp_path: Path) -> None:
    """HAADF and BF in one file: only the configured one is stored, none is held, a repeat at 0 degrees is marked."""
    folder = tmp_path / "in" / "np"
    folder.mkdir(parents=True)
    for index, tilt in enumerate((0.0, 10.0, 0.0)):
        (folder / f"{index}.emd").write_bytes(velox(known_image(index), tilt, 0.1, detectors=("BF", "HAADF")))
    with rehearsing(tmp_path, "series.detector=haadf") as daemon:
        assert states_in(daemon) == {"stored": 3, "other": 3}
    with h5py.File(tmp_path / "out" / "np" / "series.h5") as file:
        assert sorted(file["/aet/projection/repeat"][()].tolist()) == [0, 0, 1]
        assert set(file["/aet/projection/detector"][()].tolist()) == {b"HAADF"}
        pixels = {file["/aet/raw"][row].tobytes() for row in range(3)}
    assert pixels == {(known_image(index) + 1).astype("<u2").tobytes() for index in range(3)}


def test_images_that_turn_out_to_be_frames_are_held_no_longer(tmp_path: Path) -> None:
    """SerialEM writes the file of frames, and what it is after it: six images without a tilt, then one visit of six frames."""
    folder = tmp_path / "in" / "np"
    folder.mkdir(parents=True)
    (folder / "t.mrc").write_bytes(mrc(np.stack([known_image(0)] * 6), 0.0, 0.1))
    with rehearsing(tmp_path) as daemon:
        assert states_in(daemon) == {"held": 6}
        (folder / "t.mrc.mdoc").write_bytes(frame_mdoc("t.mrc", -12.01, 6, 0.1))
        daemon.run()
        found = daemon.core.ledger.totals()
    assert (found.stored, found.held) == (1, 0)
    with h5py.File(tmp_path / "out" / "np" / "series.h5") as file:
        assert file["/exchange/theta"][()].tolist() == [-12.01]
        assert np.array_equal(file["/aet/raw"][0], known_image(0))


def test_what_does_not_fit_is_held_until_a_person_decides(tmp_path: Path) -> None:
    """Another size, another detector that nobody chose, a tilt that was not planned: each with its reason, and the series goes on."""
    plan = tmp_path / "plan.csv"
    plan.write_text("tilt\n0\n10\n20\n30\n")
    with running(tmp_path, angle__plan=str(plan)) as daemon:
        put(daemon.root / "np", 0, 0.0)
        daemon.wait_for_totals(stored=1)
        put(daemon.root / "np", 1, 10.0, size_px=32)
        put(daemon.root / "np", 2, 15.0)
        put(daemon.root / "np", 3, 20.0)
        status = daemon.wait_for_totals(stored=2, held=2)
        reasons = " | ".join(row["reason"] for row in status["held"])
        assert "but the series has" in reasons
        assert "not in the tilt plan" in reasons
        assert status["planned_missing_deg"] == {"np": [10.0, 30.0]}
        assert "lacks 2 planned tilts: 10, 30" in daemon.ask("status").stdout
        (daemon.root / "det").mkdir()
        (daemon.root / "det" / "a.emd").write_bytes(velox(known_image(5), 0.0, 0.1, detectors=("HAADF",)))
        daemon.wait_for_totals(stored=3)
        (daemon.root / "det" / "b.emd").write_bytes(velox(known_image(6), 10.0, 0.1, detectors=("BF",)))
        status = daemon.wait_for_totals(stored=3, held=3)
        assert any("series.detector" in row["remedy"] for row in status["held"])


def test_a_sentinel_ends_the_series_after_its_last_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The instrument drops END.txt: the series is closed with all that lay there, and again with what comes later."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "in" / "np"
    with rehearsing(tmp_path, "series.sentinel=end.txt", "series.idle_close_s=0") as daemon:
        for index in range(4):
            put(folder, index, float(index))
        (folder / "END.txt").write_text("done")
        assert series_in(daemon) == {"np": ("closed", 4)}
        put(folder, 5, 5.0)
        assert series_in(daemon) == {"np": ("closed", 5)}
        (folder / "END.txt").unlink()
        daemon.run()
        assert "END.txt was taken away" in caplog.text
        put(folder, 6, 6.0)
        put(daemon.root / "other", 7, 7.0)
        assert series_in(daemon) == {"np": ("open", 6), "other": ("open", 1)}
        daemon.until_done("close", series="other")  # where one is closed, all that are due have been
        assert series_in(daemon) == {"np": ("open", 6), "other": ("closed", 1)}


def series_in(daemon: Rehearsal) -> dict[str, tuple[str, int]]:
    """(state, images stored) of each, when nothing moves any more."""
    return {row.name: (row.state, row.stored) for row in summary(daemon.run().core.ledger).series}


def test_a_sentinel_ends_every_series_of_its_folder(tmp_path: Path) -> None:
    """Also where names say which series a file belongs to, and where it comes before the files."""
    folder = tmp_path / "in" / "np"
    folder.mkdir(parents=True)
    (folder / "END.txt").write_text("done")
    for index in range(2):
        put(folder, index, float(index))
    by_name = ("series.by=pattern", "series.pattern=(?P<series>image_00[01])")
    with rehearsing(tmp_path, "series.sentinel=end.txt", "reconstruct.on_close=false", *by_name) as daemon:
        assert series_in(daemon) == {"image_000": ("closed", 1), "image_001": ("closed", 1)}


def test_names_that_cannot_be_folders_are_made_to_fit() -> None:
    """Too long for a file system, the ledger's own, or such that two files would share one."""
    rules = Series(by="file")
    alike = ("a/b_c.mrc", "a_b/c.mrc", "a/b/c.mrc", "a_b_c.mrc", "a~b/c.mrc", "a/b~c.mrc", "a~b~c.mrc")
    assert len({series_of(path, "root", rules) for path in alike}) == len(alike)
    names = [series_of(f"{'x' * 180}/{'y' * 180}{end}.mrc", "root", rules) for end in "ab"]
    assert len(set(names)) == 2
    assert all(len(name.encode()) < 255 for name in names)
    assert series_of("ledger.sqlite/a.tif", "root") == "ledger.sqlite_"


def test_every_file_a_series_of_its_own(tmp_path: Path) -> None:
    """series.by = "file": two stacks in one folder are two series."""
    folder = tmp_path / "in" / "day"
    folder.mkdir(parents=True)
    for name in ("first", "second"):
        images = np.stack([known_image(index + len(name)) for index in range(3)])
        tifffile.imwrite(folder / f"{name}.tif", images, photometric="minisblack")
        (folder / f"{name}.rawtlt").write_text("-3\n0\n3\n")
    with rehearsing(tmp_path, "series.by=file") as daemon:
        assert states_in(daemon) == {"stored": 6}
        assert {path.name for path in daemon.out.iterdir() if (path / "series.h5").exists()} == {"day~first", "day~second"}


def test_a_copy_under_another_name_is_recorded_once_in_the_watch_too(tmp_path: Path) -> None:
    """The watch offers both; that they are the same is the hub's to say. Nested folders belong to the series above them."""
    with Bench(tmp_path) as bench:
        path = put(bench.root / "np" / "deep" / "deeper", 0, 5.0)
        shutil.copy(path, bench.root / "np" / "copy_+5.00deg.tif")
        bench.until(lambda: len(bench.taken) == 2)
        assert len({found[-1][0].sha256 for found in bench.taken.values()}) == 1
        (bench.root / "np" / "third.dm4").write_bytes(dm4(known_image(3), 1.0, 0.1))
        (bench.root / "np" / "fourth_+1.00deg.tif").write_bytes(tiff(known_image(3), 1.0, 0.1))
        bench.until(lambda: len(bench.taken) == 4)
        assert len({found[-1][0].sha256 for found in bench.taken.values()}) == 2
