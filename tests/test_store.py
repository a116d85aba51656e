"""One series on disk: commit, master, closing, folding, recovery; judged by plain HDF5."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import durable, layout
from aet_stream.cli import main
from aet_stream.config import Reconstruct
from aet_stream.errors import StoreError
from aet_stream.hub.archive import Archive, Arrival, open_ledger
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.master import About
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.store import Draft, SeriesStore
from aet_stream.layout import crc32
from aet_stream.naming import series_of
from aet_stream.projection import sha256_of
from aet_stream.series import Series
from tests.harness import known_image

ABOUT = About(name="s", opened_at=1e9, closed_at=None, generation=0, expected=0, duplicates=0, config="{}")
CLOSED = About(name="s", opened_at=1e9, closed_at=2e9, generation=0, expected=0, duplicates=0, config="{}")


def made(index: int, number: int | None = None, *, size_px: int = 32, **more: object) -> Draft:
    """A projection with known pixels; `more`: values by their names in our files."""
    raw = known_image(index, size_px)
    clean = raw.astype("<f4") - 7
    facts = dict(
        number=index if number is None else number, series="s", path=f"s/{index}.tif", image=0, stamp="1", sha256=sha256_of(raw),
        raw_crc32=crc32(raw), clean_crc32=crc32(clean), tilt_deg=float(3 * index), tilt_source="filename", tilt_candidates="[]",
        model="none", model_sha256="0", settle_s=0.0, read_s=0.0, queue_s=0.0, network_s=0.0, closed_at=1e9,
    ) | more  # fmt: skip
    return Draft(layout.nested(facts), {"raw": raw, "clean": clean})


def opened(folder: Path, fold_rows: int = 256) -> SeriesStore:
    """The store of the series `s` below `folder`, before it has looked at the disk."""
    return SeriesStore(folder / "s", CrashGuard(folder), fold_rows=fold_rows)


def arrival(ledger: Ledger, draft: Draft) -> Arrival:
    """A projection that watch and a worker have brought so far."""
    with ledger.transaction():
        visit_id = ledger.want("s", draft.record.visit)
    return Arrival(visit_id, draft, dict.fromkeys(("settle", "read", "queue", "network"), 0.0), time.time())


def filled(folder: Path, count: int, **more: int) -> SeriesStore:
    store = opened(folder, more.get("fold_rows", 256))
    assert store.commit([made(index) for index in range(count)]) == count
    store.write_master(ABOUT)
    return store


def test_a_master_shows_every_stored_projection_to_plain_readers(tmp_path: Path) -> None:
    """As Data Exchange, as NXtomo, and under our own names: the same pixels."""
    filled(tmp_path, 3)
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        for row in range(3):
            clean = made(row).planes["clean"]
            assert np.array_equal(file["/aet/raw"][row], made(row).planes["raw"])
            for name in ("/exchange/data", "/entry1/tomo_entry/data/data", "/entry1/tomo_entry/instrument/detector/data"):
                assert np.array_equal(file[name][row], clean)
        assert file["/exchange/theta"][()].tolist() == [0, 3, 6]
        assert file["/exchange/data_white"][()].min() == 1
        assert file["/exchange/data_dark"][()].max() == 0
        assert file["/entry1/tomo_entry/definition"][()] == b"NXtomo"
        assert file["/aet/projection/path"][1] == b"s/1.tif"


@pytest.mark.parametrize("name", ["/exchange/data_white", "/exchange/data_dark"])
def test_verify_doubts_neutral_data_that_are_not(tmp_path: Path, name: str) -> None:
    """Other programs divide by the one and subtract the other: a single pixel of them changes every projection."""
    filled(tmp_path, 2)
    path = tmp_path / "s" / "series.h5"
    with h5py.File(path, "r+") as file:
        file[name][0, 3, 5] = 7
    with Series(path) as series:
        (doubt,) = series.doubts()
    assert doubt.startswith(name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a 'name'", "\"a 'name'\""),
        (np.int64(5), "np.int64(5)"),
        (np.uint8(5), "np.uint8(5)"),
        (np.float64(5), "np.float64(5.0)"),
        (np.float64(1795989480.4956903), "np.float64(1795989480.4956903)"),
        (np.float64(1e-5), "np.float64(1e-05)"),
        (np.float64("nan"), "np.float64(nan)"),
        (np.float32(0.1), "np.float32(0.1)"),
        (np.bool_(True), "np.True_"),
        (np.bytes_(b"data"), "np.bytes_(b'data')"),
        (np.array(["rotation_angle", "y", "x"], object), "array(['rotation_angle', 'y', 'x'], dtype=object)"),
    ],
)
def test_what_a_checksum_is_over_is_the_same_under_every_numpy(value: object, words: str) -> None:
    assert layout.spelled(value) == words


@pytest.mark.parametrize("numpy", ["1.26.4", "2.4.6"])
def test_files_verify_that_were_written_when_their_checksum_knew_numpys_version(tmp_path: Path, numpy: str) -> None:
    """The checksums are those that the code before wrote into this file, under either version."""
    with h5py.File(tmp_path / "any.h5", "w") as file:
        file["angle"] = np.array([-1.5, 0.25])
        file["angle"].attrs.update(units="degree", first=0, offset_deg=1e-5, default=np.bytes_(b"data"), axes=["rotation_angle", "y", "x"])
        written = {
            "1.26.4": "2c46e1441666cdffd4f2709f3e1c50e26c3f52ebfd7cd21080e342d2cac220dc",
            "2.4.6": "157223ccfb52612d5d166f8592021bef335e8a0fc3e6a0ddea2d7637c8cf32fa",
        }[numpy]
        assert layout.Contents.are(file, written)
        file["angle"].attrs["first"] = 1
        assert not layout.Contents.are(file, written)


def test_verify_has_no_doubt_about_a_file_that_was_put_back(tmp_path: Path) -> None:
    """Overwritten, then as it was before: three rows of one image, of which one counts. Two that count are doubted."""
    store = opened(tmp_path)
    store.commit([made(index, number, path="s/a.tif", stamp=str(number)) for number, index in enumerate((0, 7, 0))])
    list(store.close(CLOSED))
    path = tmp_path / "s" / "series.h5"
    with Series(path) as series:
        assert series.column("superseded").tolist() == [1, 1, 0]
        assert list(series.doubts()) == []
    with h5py.File(path, "r+") as file:
        file["/aet/projection/superseded"][0] = 0
    with Series(path) as series:
        assert any("stored twice" in doubt for doubt in series.doubts())


@pytest.mark.parametrize("missing", ["/aet/series", "closed_utc"])
def test_verify_refuses_what_is_no_series_of_ours(tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is missing."""
    filled(tmp_path, 1)
    path = tmp_path / "s" / "series.h5"
    with h5py.File(path, "r+") as file:
        if missing == "closed_utc":
            del file["/aet/series"].attrs[missing]
        else:
            del file[missing]
    assert main(["verify", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: " in line
    assert missing in line


def test_a_moved_series_is_still_whole(tmp_path: Path) -> None:
    """Sources are named relative to the master."""
    filled(tmp_path, 2)
    (tmp_path / "s").rename(tmp_path / "elsewhere")
    with Series(tmp_path / "elsewhere" / "series.h5") as series:
        assert list(series.doubts()) == []


def test_a_missing_source_is_an_error_and_never_nan(tmp_path: Path) -> None:
    """Plain HDF5 would show NaN; a new master is refused, and our reader names the row."""
    store = filled(tmp_path, 3)
    before = (tmp_path / "s" / "series.h5").read_bytes()
    (tmp_path / "s" / "projections" / "000001.h5").unlink()
    with pytest.raises(StoreError, match="000001"):
        store.write_master(ABOUT)
    assert (tmp_path / "s" / "series.h5").read_bytes() == before
    with Series(tmp_path / "s" / "series.h5") as series:
        series.clean(0)
        with pytest.raises(StoreError, match="row 1"):
            series.clean(1)


def test_closing_makes_one_contiguous_file_with_the_same_content(tmp_path: Path) -> None:
    """The projection files may go afterwards: everything is in it."""
    store = filled(tmp_path, 4)
    for _ in store.close(CLOSED):
        pass
    for path in (tmp_path / "s" / "projections").iterdir():
        path.unlink()
    with Series(tmp_path / "s" / "series.h5") as series:
        assert series.closed
        assert list(series.doubts()) == []
        assert len(series) == 4


def test_closing_over_a_damaged_projection_leaves_the_series_as_it_was(tmp_path: Path) -> None:
    """A flipped bit is found by its checksum, before anything is replaced."""
    store = filled(tmp_path, 3)
    before = (tmp_path / "s" / "series.h5").read_bytes()
    path = tmp_path / "s" / "projections" / "000002.h5"
    with h5py.File(path) as file:
        at = file["clean"].id.get_offset() + 100
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match="checksum"):
        list(store.close(CLOSED))
    assert (tmp_path / "s" / "series.h5").read_bytes() == before
    assert not list((tmp_path / "s").glob(".*"))


@pytest.mark.parametrize("kind", ["close", "fold"])
def test_no_large_file_is_brought_to_the_disk_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The hub does nothing else meanwhile: it is synced every so many bytes, and the last time when all of it is written."""
    store, sizes = filled(tmp_path, 16, fold_rows=8), [0]
    monkeypatch.setattr(durable, "SYNC_BYTES", 3 * 32 * 32 * 6)

    def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            sizes.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    list(store.close(CLOSED) if kind == "close" else store.fold())
    frames = 16 if kind == "close" else 8
    assert len(sizes) == 2 + frames // 3
    whole = max((tmp_path / "s").rglob("series.h5" if kind == "close" else "segment*")).stat().st_size
    assert sizes[-1] == whole


@pytest.mark.parametrize("kind", ["close", "fold"])
def test_no_frame_is_written_before_its_time(tmp_path: Path, kind: str) -> None:
    """HDF5 would write the fill value of all frames with the first one, and the hub does nothing else meanwhile."""
    store = opened(tmp_path, fold_rows=8)
    store.commit([made(index, size_px=128) for index in range(16)])
    work = store.close(CLOSED) if kind == "close" else store.fold()
    for _ in range(3):
        next(work)
    (draft,) = (tmp_path / "s").rglob(".*.tmp")
    frame_bytes = 128 * 128 * 6
    assert draft.stat().st_blocks * 512 < 5 * frame_bytes
    work.close()


def test_an_abandoned_close_leaves_no_trace(tmp_path: Path) -> None:
    """A late projection interrupts closing at any point."""
    store = filled(tmp_path, 3)
    for steps in range(1, 6):
        work = store.close(CLOSED)
        for _ in range(steps):
            next(work)
        work.close()
        assert not list((tmp_path / "s").glob(".*"))
        assert not store.shown()[1]


def test_a_long_series_spans_few_files(tmp_path: Path) -> None:
    """Old projections are folded into segments; readers see the same rows."""
    store = filled(tmp_path, 9, fold_rows=2)
    while store.needs_folding():
        for _ in store.fold():
            pass
    store.write_master(ABOUT)
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        sources = {source.file_name for source in file["/exchange/data"].virtual_sources()}
        assert sum("segment" in name for name in sources) == 3
        assert len(sources) == 6
    again = opened(tmp_path, 2)
    again.load(store.identities())
    again.write_master(ABOUT)
    with Series(tmp_path / "s" / "series.h5") as series:
        assert list(series.doubts()) == []
        assert len(series) == 9


def test_a_reader_that_never_closes_sees_what_it_opened(tmp_path: Path) -> None:
    """It hinders no commit, no folding, no closing; whoever opens anew sees the newest."""
    store = filled(tmp_path, 2, fold_rows=2)
    with h5py.File(tmp_path / "s" / "series.h5") as old:
        for index in range(2, 5):
            store.commit([made(index)])
            store.write_master(ABOUT)
        list(store.fold())
        store.write_master(ABOUT)
        list(store.close(CLOSED))
        assert old["/exchange/theta"][()].tolist() == [0, 3]
        for row in range(2):
            assert np.array_equal(old["/exchange/data"][row], made(row).planes["clean"])
        with h5py.File(tmp_path / "s" / "series.h5") as new:
            assert new["/exchange/theta"][()].tolist() == [0, 3, 6, 9, 12]


def test_a_series_reads_right_with_few_file_descriptors(tmp_path: Path) -> None:
    """Plain HDF5 shows NaN, without an error, for sources that it may not open; our reader asks for one frame at a time."""
    filled(tmp_path, 40)
    code = """
import resource, sys
import numpy as np
from aet_stream.series import Series
from tests.test_store import made
with Series(sys.argv[1]) as series:
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    for row in range(len(series)):
        assert np.array_equal(series.clean(row), made(row).planes["clean"]), row
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s" / "series.h5")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def archive(folder: Path, fold_rows: int = 256) -> tuple[Archive, Ledger]:
    ledger, _ = open_ledger(folder)
    outbox = Outbox(ledger.db, {"reconstruct": Reconstruct()})
    return Archive(folder, ledger, outbox, CrashGuard(folder), fold_rows=fold_rows, expected=0, config="{}"), ledger


def test_folding_goes_on_while_projections_come(tmp_path: Path) -> None:
    """However fast: what has been copied is not copied again; the segment holds the old rows, the new ones stand behind it."""
    series, ledger = archive(tmp_path, fold_rows=4)
    series.commit("s", [arrival(ledger, made(index)) for index in range(8)])
    series.publish("s")
    series.work(0.0)
    for index in range(8, 12):
        series.work(1e-3)
        draft = made(7, index, path="s/0.tif", stamp="2") if index == 8 else made(index)
        series.commit("s", [arrival(ledger, draft)])
        assert len(list((tmp_path / "s" / "projections").glob(".segment_000000_000004.h5.*.tmp"))) == 1
        series.publish("s")
    series.work(30.0)
    assert (tmp_path / "s" / "projections" / "segment_000000_000004.h5").exists()
    ledger.close()
    with Series(tmp_path / "s" / "series.h5") as found:
        assert found.column("number").tolist() == list(range(12))
        assert list(found.doubts()) == []


@pytest.mark.parametrize("loss", ["ledger", "damaged ledger", "master", "stale master", "damaged master", "nothing"])
def test_everything_is_rebuilt_from_the_projection_files(tmp_path: Path, loss: str) -> None:
    """Ledger or master lost, damaged or old: after a start both agree with the files again."""
    first, ledger = archive(tmp_path)
    for index in range(3):
        assert first.commit("s", [arrival(ledger, made(index))]) == 1
        first.publish("s")
    ledger.close()
    master, path = tmp_path / "s" / "series.h5", tmp_path / "ledger.sqlite"
    match loss:
        case "ledger":
            path.unlink()
        case "damaged ledger":
            path.write_bytes(b"SQLite format 3\0" + bytes(5000))
        case "master":
            master.unlink()
        case "stale master":
            old = opened(tmp_path)
            old.load({})
            old.records.pop()
            old.write_master(ABOUT)
        case "damaged master":
            master.write_bytes(master.read_bytes()[:3000])
    second, ledger = archive(tmp_path)
    second.recover()
    assert set(ledger.stored("s")) == {0, 1, 2}
    assert ledger.ended("s/1.tif") == {(0, "1")}
    with Series(master) as series:
        assert len(series) == 3
        assert list(series.doubts()) == []
    ledger.close()


def test_a_damaged_projection_is_set_aside_and_its_source_read_again(tmp_path: Path) -> None:
    """Never a wrong pixel: the unit goes back to waiting."""
    first, ledger = archive(tmp_path)
    first.store("s").commit([made(index) for index in range(3)])
    path = tmp_path / "s" / "projections" / "000001.h5"
    path.write_bytes(path.read_bytes()[:500])
    ledger.close()
    second, ledger = archive(tmp_path)
    second.recover()
    assert set(ledger.stored("s")) == {0, 2}
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    with Series(tmp_path / "s" / "series.h5") as series:
        assert len(series) == 2
    ledger.close()


def test_a_close_that_the_ledger_missed_is_announced_once(tmp_path: Path) -> None:
    """Killed between the rename and the ledger: the event comes after the next start, and only once."""
    first, ledger = archive(tmp_path)
    first.store("s").commit([made(index) for index in range(3)])
    store = first.store("s")
    store.write_master(ABOUT)
    for _ in store.close(CLOSED):
        pass
    first.recover()
    assert Outbox(ledger.db).figures().pending == 1
    first.recover()
    assert Outbox(ledger.db).figures().pending == 1
    assert [row["state"] for row in ledger.series()] == ["closed"]
    ledger.close()


@pytest.mark.parametrize(
    ("path", "series"),
    [
        ("a/b.tif", "a"),
        ("a/b/c.tif", "a"),
        ("b.tif", "root"),
        ("run/b.tif", "run_"),
        ("quarantine/b.tif", "quarantine_"),
        ("root/b.tif", "root_"),
    ],
)
def test_a_series_is_the_folder_directly_under_the_watched_one(path: str, series: str) -> None:
    """And never one of our own folders."""
    assert series_of(path, "root") == series


def test_large_frames_are_closed_band_by_band_and_checked_to_the_last(tmp_path: Path) -> None:
    """A frame is not one piece of work; the closed file has all of it, and damage in its last rows is found."""
    size_px = 1500  # clean: more than two bands
    store = opened(tmp_path)
    assert store.commit([made(index, size_px=size_px) for index in range(2)]) == 2
    store.write_master(ABOUT)
    path = tmp_path / "s" / "projections" / "000001.h5"
    with h5py.File(path, "r+") as file:
        sound = file["clean"][-1, -1]
        file["clean"][-1, -1] = sound + 1
    with pytest.raises(StoreError, match="checksum of the clean pixels"):
        for _ in store.close(CLOSED):
            pass
    with h5py.File(path, "r+") as file:
        file["clean"][-1, -1] = sound
    pieces = sum(1 for _ in store.close(CLOSED))
    assert pieces > 2 * 2 * (1 + 3)  # frames, read and written, bands of raw and clean
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        for row in range(2):
            assert np.array_equal(file["/aet/raw"][row], made(row, size_px=size_px).planes["raw"])
            assert np.array_equal(file["/exchange/data"][row], made(row, size_px=size_px).planes["clean"])


def test_word_of_a_file_is_left_only_while_it_is_read(tmp_path: Path) -> None:
    """Between two pieces the hub does other things, of which it may die, too."""
    (tmp_path / "run").mkdir()
    said, guard = tmp_path / "run" / "reading", CrashGuard(tmp_path)
    seen: list[str] = []

    def work() -> Generator[None]:
        for _ in range(2):
            seen.append(said.read_text())
            yield

    for _ in guard.pieces(tmp_path / "s" / "a.h5", work()):
        assert not said.exists()
    assert seen == ["s/a.h5"] * 2
