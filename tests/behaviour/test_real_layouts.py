"""Folders as sites have them: shares with trash and snapshots, users' nested folders, years of old data, formats that nobody reads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aet_stream.cli import main
from aet_stream.config_file import load
from aet_stream.hub.ledger import summary
from aet_stream.hub.left_out import TICK_S
from aet_stream.monitor.words import notes
from aet_stream.readers.child import ReaderChild
from aet_stream.simulate import writers
from tests.harness import known_image, put, wait_for
from tests.mixtures import Image, write_velox
from tests.rehearsal import Rehearsal

YEAR_S = 365 * 86_400


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderChild]:
    child = ReaderChild(timeout_s=60, memory_mib=4096, max_file_mib=64)
    yield child
    child.close()


def series_of(daemon: Rehearsal) -> dict[str, int]:
    """Stored projections of every series that there is."""
    return {row.name: row.stored for row in summary(daemon.core.ledger).series}


def aged(path: Path, years: float) -> Path:
    """Last written so many years ago."""
    os.utime(path, (time.time() - years * YEAR_S,) * 2)
    return path


def tick_of_the_disk(folder: Path) -> None:
    """Wait until what is written now has a later time than all that was written before: a file's times are no finer than that."""
    clock = folder / "clock"
    clock.touch()
    before_s = clock.stat().st_ctime
    wait_for(lambda: clock.touch() or clock.stat().st_ctime > before_s + 2 * TICK_S)


def test_a_share_of_a_file_server_is_one_series_for_each_folder_of_data(tmp_path: Path, reader: ReaderChild) -> None:
    """Synology, QNAP, Windows and NetApp keep trash, thumbnails and snapshots beside the data: none of it is looked at."""
    kept = (
        "#recycle", "@eaDir", "#snapshot/daily.0", "~snapshot", ".snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN/S-1-5-21",
        "System Volume Information", "lost+found", "np1/@eaDir/image_000.tif", "np1/#recycle", "Network Trash Folder", "@tmp",
        "RECYCLED", "found.000", "DfsrPrivate/Deleted", "np1/__MACOSX",
    )  # fmt: skip
    for index, place in enumerate(kept):
        put(tmp_path / "in" / place, index, 1.0 + index)
    for index in range(3):
        put(tmp_path / "in" / "np1", index, float(index))
    with Rehearsal(tmp_path, reader) as daemon:
        assert series_of(daemon.run()) == {"np1": 3}
        assert {path for path, _ in daemon.endings} == {f"np1/image_{index:03d}_{index:+.2f}deg.tif" for index in range(3)}


USERS = [f"{user}/2026-03-0{day}/np1" for user, day in (("alice", 1), ("bob", 1), ("carol", 2))] + ["alice/2026-03-01/np2"]


@pytest.fixture
def users(tmp_path: Path) -> Path:
    for number, place in enumerate(USERS):
        for index in range(2):
            put(tmp_path / "in" / place, 10 * number + index, float(index))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "series"),
    [
        (("series.by=leaf",), {place.replace("/", "~"): 2 for place in USERS}),
        (
            ("series.by=path_pattern", r"series.pattern=^(?P<series>[^/]+/[^/]+/np\d+)/"),
            {place.replace("/", "~"): 2 for place in USERS},
        ),
        (("series.by=path_pattern", r"series.pattern=/(?P<series>np\d+)/"), {"np1": 6, "np2": 2}),
        ((), {"alice": 4, "bob": 2, "carol": 2}),
    ],
)
def test_nested_folders_of_users_are_the_series_that_the_settings_ask_for(
    users: Path, reader: ReaderChild, caplog: pytest.LogCaptureFixture, settings: tuple[str, ...], series: dict[str, int]
) -> None:
    """Two folders called np1 differ; where folders are merged, by the default or by a pattern, it is said aloud, once."""
    with Rehearsal(users, reader, *settings) as daemon:
        assert series_of(daemon.run()) == series
    merged = [record.getMessage() for record in caplog.records if "is made of images in" in record.getMessage()]
    assert len(merged) == sum(count > 2 for count in series.values())
    for sentence in merged:
        assert "2026-03-01/np1" in sentence
        assert f'set series.by = "{"path_pattern" if settings else "leaf"}"' in sentence


def test_check_says_which_nested_folders_would_be_merged(users: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the watched folder, and of one that a person only asks about."""
    main(["check", str(users / "in")])
    said = capsys.readouterr().out
    assert "series alice is made of images in 2 folders (alice/2026-03-01/np1, alice/2026-03-01/np2)" in said
    assert 'if they are not one, set series.by = "leaf"' in said
    assert "series bob is" not in said
    main(["check", str(users / "in"), "--set", "series.by=leaf"])
    said = capsys.readouterr().out
    assert "is made of" not in said
    assert "series alice~2026-03-01~np2" in said


def test_a_sentinel_ends_the_series_of_its_own_folder(users: Path, reader: ReaderChild) -> None:
    """Where every folder of images is a series, those beside it stay open."""
    (users / "in" / USERS[0] / "scan.done").touch()
    with Rehearsal(users, reader, "series.by=leaf", "series.sentinel=*.done", "reconstruct.on_close=false") as daemon:
        daemon.run()
        states = {row.name: row.state for row in summary(daemon.core.ledger).series}
    assert states == {place.replace("/", "~"): "closed" if place == USERS[0] else "open" for place in USERS}


# -- years of data ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Five years of data: two images a year."""
    for year in range(5):
        for index in range(2):
            aged(put(tmp_path / "in" / f"{2021 + year}", 10 * year + index, float(index)), 4.5 - year)
    return tmp_path


@pytest.mark.parametrize(
    ("newer_than", "series", "older"),
    [
        ("", {"2021": 2, "2022": 2, "2023": 2, "2024": 2, "2025": 2}, 0),
        ("start", {}, 10),
        ("1000 d", {"2023": 2, "2024": 2, "2025": 2}, 4),
        (time.strftime("%Y-%m-%d", time.localtime(time.time() - 1 * YEAR_S)), {"2025": 2}, 8),
    ],
)
def test_old_data_are_taken_as_far_as_is_asked_for(
    archive: Path, reader: ReaderChild, caplog: pytest.LogCaptureFixture, newer_than: str, series: dict[str, int], older: int
) -> None:
    """Everything by default; nothing, or what is new enough, where that is said: what is left out is counted, in the log too."""
    with Rehearsal(archive, reader, f"watch.newer_than={newer_than}") as daemon:
        assert series_of(daemon.run()) == series
        status = daemon.core.status()
    assert status.left_out.older == older
    assert notes(status) == ([f"{older} older files left out (watch.newer_than)"] if older else [])
    assert [f"{older} files are older" in record.getMessage() for record in caplog.records].count(True) == bool(older)


def test_check_says_how_much_would_be_left_out(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It describes every file all the same: a person asked about them."""
    assert main(["check", str(archive / "in"), "--set", "watch.newer_than=1000 d"]) == 0
    said = capsys.readouterr().out
    assert "4 of 10 files are older than wanted: those that are there at the first start are left out (watch.newer_than)" in said
    assert "in all: 10 would be stored" in said
    assert main(["check", "--set", "watch.newer_than=yesterday"]) != 0
    assert "watch.newer_than 'yesterday'" in capsys.readouterr().err


def test_what_comes_after_the_first_start_is_never_left_out_whatever_its_time_says(archive: Path, reader: ReaderChild) -> None:
    """Copied with its old time while the daemon runs, or while it is down; what was there from the first stays out, touched or not."""
    with Rehearsal(archive, reader, "watch.newer_than=start") as daemon:
        assert series_of(daemon.run()) == {}
        aged(put(archive / "in" / "copied", 100, 1.0), 3)
        put(archive / "in" / "new", 101, 2.0)
        assert series_of(daemon.run()) == {"copied": 1, "new": 1}
    aged(put(archive / "in" / "brought", 102, 3.0), 2)
    with Rehearsal(archive, reader, "watch.newer_than=start") as daemon:
        assert series_of(daemon.run()) == {"copied": 1, "new": 1, "brought": 1}
        assert daemon.core.status().left_out.older == 10
        old = put(archive / "in" / "2021", 0, 0.0)  # written anew, as it was
        assert series_of(daemon.run())["2021"] == 1
        aged(old, 4.5)
        assert series_of(daemon.run()) == {"copied": 1, "new": 1, "brought": 1, "2021": 1}


def test_what_was_left_out_is_taken_when_a_person_wants_it(archive: Path, reader: ReaderChild) -> None:
    """An earlier date later on: what it reaches is read, the rest stays out; and the other way round, nothing that is stored is lost."""
    for setting, stored, older in (("start", 0, 10), ("800 d", 4, 6), ("", 10, 0), ("start", 10, 0)):
        with Rehearsal(archive, reader, f"watch.newer_than={setting}") as daemon:
            assert sum(series_of(daemon.run()).values()) == stored, setting
            assert daemon.core.status().left_out.older == older, setting


def test_a_limit_that_is_set_later_leaves_out_nothing_that_came_since_the_first_start(archive: Path, reader: ReaderChild) -> None:
    """The daemon ran before without a limit, over another folder; what was brought in its absence counts as new, by the disk's own word."""
    tick_of_the_disk(archive)
    with Rehearsal(archive, reader, 'watch.exclude=["*"]'):
        pass
    tick_of_the_disk(archive)
    aged(put(archive / "in" / "brought", 102, 3.0), 2)
    with Rehearsal(archive, reader, "watch.newer_than=start") as daemon:
        assert series_of(daemon.run()) == {"brought": 1}


# -- formats without a reader ----------------------------------------------------------------------------------------------------


def test_formats_that_nobody_reads_are_named_by_folder(
    tmp_path: Path, reader: ReaderChild, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once in the log (again when they are many more), in status with and without the daemon; notes, settings, small files are none."""
    folder = tmp_path / "in" / "np1"
    put(folder, 0, 1.0)
    for name in ("notes.txt", "settings.json", "report.pdf", "Thumbs.db", "frame.hdr"):
        (folder / name).write_bytes(b"x" * 5000)
    (folder / "small.eer").write_bytes(b"x" * 100)

    def foreign(count: int, suffix: str = ".eer") -> None:
        for index in range(count):
            (folder / f"shot_{index:03d}{suffix}").write_bytes(b"\0" * 2000)

    foreign(12)
    foreign(1, ".mrc.gz")
    with Rehearsal(tmp_path, reader) as daemon:
        daemon.run()
        assert notes(daemon.core.status()) == ["np1: 12 files *.eer, 1 file *.mrc.gz: no reader"]
        foreign(13)
        daemon.run()
        foreign(130)
        daemon.run()
    said = [record.getMessage() for record in caplog.records if "no reader" in record.getMessage()]
    assert said == ["np1: 12 files *.eer, 1 file *.mrc.gz: no reader", "np1: 130 files *.eer, 1 file *.mrc.gz: no reader"]
    assert main(["status", "--set", f"output.root={tmp_path / 'out'}"]) == 0
    assert "LEFT OUT     np1: 130 files *.eer, 1 file *.mrc.gz: no reader" in capsys.readouterr().out
    for path in folder.glob("shot_*"):
        path.unlink()
    with Rehearsal(tmp_path, reader) as daemon:
        assert notes(daemon.run().core.status()) == []


def test_the_report_of_a_series_names_what_nobody_reads_in_its_folder(tmp_path: Path, reader: ReaderChild) -> None:
    """And below it, not in that of another series."""
    for place in ("np1/frames", "np2"):
        (tmp_path / "in" / place).mkdir(parents=True)
        (tmp_path / "in" / place / "a.eer").write_bytes(b"\0" * 2000)
    put(tmp_path / "in" / "np1", 0, 1.0)
    with Rehearsal(tmp_path, reader) as daemon:
        daemon.run()
    report = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "out" / "np1" / "series.h5"), "--out", str(report)]) == 0
    assert "np1/frames: 1 file *.eer: no reader" in report.read_text()
    assert "np2: 1 file" not in report.read_text()


# -- a file as a whole -----------------------------------------------------------------------------------------------------------


def stack(tmp_path: Path, tilts_deg: list[float]) -> Path:
    """A stack that grows, and the tilts beside it."""
    path = tmp_path / "in" / "np1" / "stack.mrc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".rawtlt").write_text("".join(f"{tilt}\n" for tilt in tilts_deg))
    path.write_bytes(writers.mrc(np.stack([known_image(index, 32) for index in range(len(tilts_deg))]), 0.0, 0.05))
    return path


def states(daemon: Rehearsal, path: str) -> list[str]:
    found = daemon.run().endings
    return [found[path, image].state for image in sorted(image for name, image in found if name == path)]


def test_a_growing_stack_whose_tilts_stay_the_same_is_held_until_they_do_not(tmp_path: Path, reader: ReaderChild) -> None:
    """A second image at the first tilt is deliberate; a third one makes a doubt, and another tilt ends it: nothing is lost or doubled."""
    path = "np1/stack.mrc"
    with Rehearsal(tmp_path, reader) as daemon:
        stack(tmp_path, [0.0, 0.0])
        assert states(daemon, path) == ["stored", "stored"]
        stack(tmp_path, [0.0, 0.0, 0.0])
        assert states(daemon, path) == ["same", "same", "held"]
        assert "all images of the file say 0 deg" in daemon.endings[path, 2].reason
        stack(tmp_path, [0.0, 0.0, 0.0, 3.0])
        assert series_of(daemon.run()) == {"np1": 4}
        assert summary(daemon.core.ledger).held == ()


def test_of_several_signals_of_one_detector_a_person_names_the_projection(tmp_path: Path, reader: ReaderChild) -> None:
    """The question says how to answer it; the answer is stored, at the tilt that was given, and the others go on waiting."""
    path = tmp_path / "in" / "np1" / "a.emd"
    path.parent.mkdir(parents=True)
    path.write_bytes(writers.velox(known_image(0, 32), -12.0, 0.05, detectors=("DF4",) * 4))
    with Rehearsal(tmp_path, reader) as daemon:
        assert states(daemon, "np1/a.emd") == ["held"] * 4
        held = summary(daemon.core.ledger).held
        assert all("images 0, 1, 2, 3 of detector DF4" in row.reason for row in held)
        assert {row.command for row in held} == {"release ID --angle -12"}
        wanted = next(row.id for row in held if row.image == 2)
        daemon.core.commands.obey("release", {"ids": [wanted], "tilt_deg": -12.0})
        assert states(daemon, "np1/a.emd") == ["held", "held", "stored", "held"]


@pytest.mark.parametrize(("detector", "states_", "waits"), [("", ["stored"], True), ("HAADF", ["stored", "other"], False)])
def test_a_dark_detector_holds_only_itself_and_nothing_where_it_is_not_wanted(
    tmp_path: Path, detector: str, states_: list[str], waits: bool
) -> None:
    """The chosen image is stored at once, not after watch.zero_grace_s; so it is when it comes last in the file."""
    (tmp_path / "in" / "np1").mkdir(parents=True)
    child = ReaderChild.of(load(None, [f"series.detector={detector}"]))
    image, dark = known_image(0, 32), np.zeros((32, 32), "<u2")
    try:
        with Rehearsal(tmp_path, child, f"series.detector={detector}") as daemon:
            for name, signals in (("a", (("HAADF", image), ("BF", dark))), ("b", (("BF", dark), ("HAADF", image + 1)))):
                images = [[Image(pixels, float(name == "a"), 0.05, detector)] for detector, pixels in signals]
                write_velox(tmp_path / "in" / "np1" / f"{name}.emd", images)
            daemon.run()
            found = {key: ending.state for key, ending in daemon.endings.items()}
        assert (found["np1/a.emd", 0], found["np1/b.emd", 1]) == ("stored", "stored")
        assert [found.get(key) for key in (("np1/a.emd", 1), ("np1/b.emd", 0))] == ([None, None] if waits else ["other", "other"])
        assert [key for key, state in found.items() if state == "waiting"] == ([("np1/a.emd", -1), ("np1/b.emd", -1)] if waits else [])
    finally:
        child.close()
