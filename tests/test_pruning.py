"""Projection files of a closed series go when nobody needs them, and everything in them stays; judged by plain HDF5."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import layout
from aet_stream.config import Config, Output
from aet_stream.doctor.finding import Station
from aet_stream.doctor.folders import room
from aet_stream.edition import Edition
from aet_stream.errors import AetError, StoreError
from aet_stream.hub.archive import Archive
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.retention import Retention
from aet_stream.hub.store import Draft
from aet_stream.hub.timing import Timing
from aet_stream.layout import crc32
from aet_stream.monitor import series_cache
from aet_stream.reasons import why
from aet_stream.series import Series
from tests.harness import known_image
from tests.test_editions import opened, shown, sound, stored, taken, work
from tests.test_odd import SURVEY, close, series_of
from tests.test_queue import Desk
from tests.test_store import arrival, made


def pruned(archive: Archive, root: Path) -> None:
    """Prune the series `s`; no projection file is left."""
    archive.begin_prune("s")
    work(archive)
    assert archive.why_unpruned("s") == ""
    assert list((root / "s" / "projections").iterdir()) == []


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "s" / "projections").iterdir())}


def flip(path: Path, pixels: np.ndarray) -> None:
    """One bit of these pixels, wherever they lie in the file."""
    content = bytearray(path.read_bytes())
    content[content.index(pixels.tobytes()) + 100] ^= 1
    path.write_bytes(content)


# -- what goes, and what stays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "restarted"), [(False, False), (True, True)], ids=["edition 1 shown", "edition 2 shown, restarted"])
def test_a_pruned_series_is_as_it_was(tmp_path: Path, *, other: bool, restarted: bool) -> None:
    """series.h5 is the same file; edition 1 has one of its own, is chosen again, a row is excluded, and a late projection brings all files
    back, byte by byte."""
    archive, ledger = stored(tmp_path, 3, closed=True)
    if other:
        taken(archive, tmp_path, use=True)
    series, before = (tmp_path / "s" / "series.h5").read_bytes(), files(tmp_path)
    assert len(before) == 3
    pruned(archive, tmp_path)
    assert (tmp_path / "s" / "series.h5").read_bytes() == series
    assert ledger.pruned_at("s") is not None
    with Edition(tmp_path / "s" / "editions" / "01.h5") as first:
        assert first.doubts() == []
        assert all(np.array_equal(first.clean(number), made(number).planes["clean"]) for number in range(3))
    sound(tmp_path)
    if restarted:
        ledger.close()
        archive, ledger = opened(tmp_path)
        assert not archive.working_on()
    if not other:
        taken(archive, tmp_path, use=True)
    assert shown(tmp_path) == [2] * 3
    archive.use("s", 1)
    work(archive)
    assert shown(tmp_path) == [1] * 3
    archive.exclude("s", [1], why("by_person", text="of another particle"))
    work(archive)
    sound(tmp_path)
    assert files(tmp_path) == {}
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    sound(tmp_path)
    assert shown(tmp_path) == [1] * 4
    assert ledger.pruned_at("s") is None
    after = files(tmp_path)
    assert after.pop("000003.h5")
    assert after == before
    archive.begin_close("s")
    work(archive)
    pruned(archive, tmp_path)
    sound(tmp_path)
    assert shown(tmp_path) == [1] * 4
    ledger.close()


@pytest.mark.parametrize("lost", ["ledger.sqlite", "s/decisions.json"])
def test_a_pruned_series_needs_no_ledger(tmp_path: Path, lost: str) -> None:
    archive, ledger = stored(tmp_path, closed=True)
    taken(archive, tmp_path, use=True)
    pruned(archive, tmp_path)
    ledger.close()
    (tmp_path / lost).unlink()
    archive, ledger = opened(tmp_path)
    work(archive)
    assert shown(tmp_path) == [2] * 3
    assert set(ledger.stored("s")) == {0, 1, 2}
    assert archive.to_read_again() == []
    assert files(tmp_path) == {}
    sound(tmp_path)
    ledger.close()


def test_what_is_kept_beside_a_mean_of_frames_stays(tmp_path: Path) -> None:
    """Single frames are nowhere else: they go into the file of edition 1, also when that was there before, and come back."""
    archive, ledger = stored(tmp_path)
    frames = np.stack([known_image(index, 32) for index in (7, 8, 9)])
    mean = made(3)
    archive.commit("s", [arrival(ledger, Draft(mean.record, mean.planes, {"frames": frames}))])
    archive.publish("s")
    archive.begin_close("s")
    work(archive)
    taken(archive, tmp_path, use=True)  # this has written editions/01.h5
    before = files(tmp_path)
    pruned(archive, tmp_path)
    with h5py.File(tmp_path / "s" / "editions" / "01.h5") as first:
        assert np.array_equal(first["maker/000003/frames"][()], frames)
        assert first["maker/000003/frames"].attrs["crc32"] == crc32(frames)
    archive.commit("s", [arrival(ledger, made(4))])
    archive.publish("s")
    after = files(tmp_path)
    assert after.pop("000004.h5")
    assert after == before
    archive.begin_close("s")
    work(archive)
    pruned(archive, tmp_path)
    with h5py.File(tmp_path / "s" / "editions" / "01.h5") as first:
        assert np.array_equal(first["maker/000003/frames"][()], frames)
        assert len(first["clean"]) == 5
    ledger.close()


def test_what_no_row_shows_keeps_its_file(tmp_path: Path) -> None:
    """A survey of another frame size fits into no edition's file; the rows are pruned, and a late projection finds its series whole."""
    desk = Desk(tmp_path)
    series_of(desk, "size", 0)
    close(desk)
    archive = desk.core.archive
    archive.begin_prune("s")
    work(archive)
    assert [*files(tmp_path)] == ["000000.h5"]
    sound(tmp_path)
    assert archive.store("s").form_apart(0) != ""
    desk.pixels[f"s/{SURVEY}2.tif"] = known_image(50, 32)
    desk.known[f"s/{SURVEY}2.tif"] = desk.known["s/p0.tif"]
    desk.tilts_deg[f"s/{SURVEY}2.tif"] = 40.0
    desk.store(f"{SURVEY}2")
    desk.run()
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        assert len(file["/exchange/theta"]) == 5
    sound(tmp_path)
    desk.core.close()


# -- nothing goes that is not found elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", ["projections/000001.h5", "series.h5", "editions/01.h5"])
def test_nothing_is_removed_while_one_of_three_is_damaged(tmp_path: Path, damaged: str) -> None:
    """A flipped bit that nobody has noticed: projection files are there until it is made good from the others."""
    archive, ledger = stored(tmp_path, closed=True)
    taken(archive, tmp_path, use=True)
    before, planes = files(tmp_path), made(1).planes
    pixels = planes["raw"] if damaged != "editions/01.h5" else planes["clean"]
    flip(tmp_path / "s" / damaged, pixels)
    archive.begin_prune("s")
    while archive.pruning("s"):
        assert {**before, "000001.h5": b""} == {**files(tmp_path), "000001.h5": b""} or damaged == "editions/01.h5"
        archive.work(0.0)
    if damaged == "editions/01.h5":
        assert archive.why_unpruned("s") == ""  # written anew before anything was removed
    else:
        assert "checksum" in archive.why_unpruned("s")
        work(archive)
        sound(tmp_path)
        pruned(archive, tmp_path)
    sound(tmp_path)
    assert shown(tmp_path) == [2] * 3
    archive.use("s", 1)
    work(archive)
    assert shown(tmp_path) == [1] * 3
    assert archive.to_read_again() == []
    ledger.close()


def test_a_disk_without_room_for_edition_1_keeps_the_files_and_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, ledger = stored(tmp_path, closed=True)
    before = files(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("aet_stream.hub.archive.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
        archive.begin_prune("s")
        work(archive)
    assert "edition 1 needs" in archive.why_unpruned("s")
    assert files(tmp_path) == before
    assert not list((tmp_path / "s").rglob(".*.tmp"))
    pruned(archive, tmp_path)
    ledger.close()


def test_an_edition_1_that_is_nowhere_is_doubted(tmp_path: Path) -> None:
    """`verify` of a series whose last copy of edition 1 was deleted; its pixels as they are shown are sound."""
    archive, ledger = stored(tmp_path, closed=True)
    taken(archive, tmp_path, use=True)
    pruned(archive, tmp_path)
    (tmp_path / "s" / "editions" / "01.h5").unlink()
    with Series(tmp_path / "s" / "series.h5") as series:
        (doubt,) = series.doubts()
    assert "edition 1 of 3 projections" in doubt
    ledger.close()


def test_raw_is_kept_where_nobody_can_say_what_edition_1_was(tmp_path: Path) -> None:
    """The same, and a projection comes late: sources are read again, and the closed file with its raw goes to quarantine, not away."""
    archive, ledger = stored(tmp_path, closed=True)
    taken(archive, tmp_path, use=True)
    pruned(archive, tmp_path)
    (tmp_path / "s" / "editions" / "01.h5").unlink()
    closed = (tmp_path / "s" / "series.h5").read_bytes()
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert [path.read_bytes() for path in (tmp_path / "quarantine").glob("s-series.h5-*")] == [closed]
    assert [row["path"] for row in archive.to_read_again()] == ["s/0.tif", "s/1.tif", "s/2.tif"]
    ledger.close()


@pytest.mark.parametrize("pieces", [1, 4, 8, 12])
def test_a_projection_that_comes_while_a_series_is_pruned_finds_it_whole(tmp_path: Path, pieces: int) -> None:
    """Whatever is gone by then comes back."""
    archive, ledger = stored(tmp_path, 4, closed=True)
    before = files(tmp_path)
    archive.begin_prune("s")
    for _ in range(pieces):
        archive.work(0.0)
    assert archive.pruning("s")
    archive.commit("s", [arrival(ledger, made(4))])
    assert not archive.pruning("s")
    archive.publish("s")
    assert shown(tmp_path) == [1] * 5
    after = files(tmp_path)
    assert after.pop("000004.h5")
    assert after == before
    sound(tmp_path)
    ledger.close()


def test_files_are_written_anew_piece_by_piece(tmp_path: Path) -> None:
    """A late projection of a pruned series is durable at once; its series is shown when all its files are there, and others do not wait."""
    archive, ledger = stored(tmp_path, 4, closed=True)
    pruned(archive, tmp_path)
    archive.commit("s", [arrival(ledger, made(4))])
    count = 0
    while archive.unpacking("s"):
        assert archive.unpublished() == {"s"}
        archive.work(0.0)
        count += 1
        assert len(files(tmp_path)) <= 1 + count
    assert count >= 4
    archive.publish("s")
    assert shown(tmp_path) == [1] * 5
    ledger.close()


# -- when ---------------------------------------------------------------------------------------------------------------------------------


class Rested:
    """A closed series, and the rules for it with a clock that is turned by hand."""

    def __init__(self, root: Path, *, prune: bool = True) -> None:
        self.root = root
        self.archive, self.ledger = stored(root, closed=True)
        self.now_s, self.ahead_s, self.coming = 1000.0, 0.0, set[str]()
        self.closed_at = next(iter(self.ledger.unpruned().values()))
        timing = Timing(now_s=lambda: self.now_s, unix_s=lambda: self.closed_at + self.now_s - 1000.0 + self.ahead_s)
        self.outbox = Outbox(self.ledger.db, {})
        rules = Output(prune=prune, prune_after_h=1.0)
        self.retention = Retention(rules, self.ledger, self.archive, self.outbox, lambda: self.coming, timing)
        self.finish_events()

    def finish_events(self) -> None:
        self.ledger.db.execute("UPDATE delivery SET state = 'done'")

    def turn(self, hours: float = 0.0) -> bool:
        """Is it being pruned, or has it been, this much later?"""
        self.now_s += 3600 * hours + 20
        self.retention.prune()
        began = self.archive.pruning("s")
        work(self.archive)
        return began or self.ledger.pruned_at("s") is not None


@pytest.fixture
def rested(tmp_path: Path) -> Iterator[Rested]:
    rested = Rested(tmp_path)
    yield rested
    rested.ledger.close()


def test_by_default_projection_files_stay(tmp_path: Path) -> None:
    rested = Rested(tmp_path, prune=Output().prune)
    assert not rested.turn(hours=1000)
    assert len(files(tmp_path)) == 3
    rested.ledger.close()


def test_a_series_is_pruned_when_its_grace_is_over(rested: Rested) -> None:
    """Until then whoever opened it while it was open can read on; a clock that is set makes nothing older."""
    with h5py.File(rested.root / "s" / "series.h5"):
        assert not rested.turn()
        rested.ahead_s = 7200
        assert not rested.turn(hours=0.9)
    assert len(files(rested.root)) == 3
    assert rested.turn(hours=0.2)
    assert files(rested.root) == {}
    sound(rested.root)


def test_a_series_that_was_opened_again_has_its_grace_again(rested: Rested) -> None:
    rested.archive.commit("s", [arrival(rested.ledger, made(3))])
    rested.archive.publish("s")
    rested.finish_events()
    assert not rested.turn(hours=5)
    rested.archive.begin_close("s")
    work(rested.archive)
    rested.finish_events()
    rested.ledger.db.execute("UPDATE series SET closed_at = ?", (rested.closed_at + rested.now_s - 1000,))
    assert not rested.turn()
    assert rested.turn(hours=1)


def test_a_series_is_not_pruned_while_something_is_to_be_done_with_it(rested: Rested) -> None:
    """A step of the trigger, a projection on its way, an edition to be shown."""
    rested.ledger.db.execute("UPDATE delivery SET state = 'pending'")
    assert not rested.turn(hours=2)
    with pytest.raises(AetError, match="command has not done its part"):
        rested.retention.ask("s", now=True)
    rested.finish_events()
    rested.coming = {"s"}
    assert not rested.turn()
    with pytest.raises(AetError, match="on its way"):
        rested.retention.ask("s", now=True)
    rested.coming = set()
    rested.archive.exclude("s", [1], why("by_person", text="dark"))
    with pytest.raises(AetError, match="being written"):
        rested.retention.ask("s", now=True)
    work(rested.archive)
    rested.finish_events()
    assert rested.turn()


def test_a_person_may_prune_before_its_time(rested: Rested) -> None:
    """If they say that nobody has it open from before; `done` is true."""
    with pytest.raises(AetError, match=r"closed 0\.0 h ago.*--now"):
        rested.retention.ask("s", now=False)
    assert not rested.retention.ask("s", now=True)
    work(rested.archive)
    assert rested.retention.ask("s", now=True)
    assert files(rested.root) == {}


def test_an_open_series_is_never_pruned(tmp_path: Path) -> None:
    """Neither by rule nor by word, nor if somebody should begin with it all the same."""
    rested = Rested(tmp_path)
    rested.archive.commit("s", [arrival(rested.ledger, made(3))])
    rested.archive.publish("s")
    rested.finish_events()
    assert not rested.turn(hours=100)
    with pytest.raises(AetError, match="it is open"):
        rested.retention.ask("s", now=True)
    rested.archive.begin_prune("s")
    work(rested.archive)
    assert "open" in rested.archive.why_unpruned("s")
    assert len(files(tmp_path)) == 4
    assert shown(tmp_path) == [1] * 4
    rested.ledger.close()


def test_what_could_not_be_pruned_is_tried_again_later(rested: Rested, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: a disk that is full stays so for a while, and reading everything costs."""
    with monkeypatch.context() as full:
        full.setattr("aet_stream.hub.archive.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
        assert rested.turn(hours=2)
        assert len(files(rested.root)) == 3
        assert not rested.turn(hours=0.5)
    assert not rested.turn(hours=0.1)
    assert rested.turn(hours=0.5)
    assert files(rested.root) == {}


def test_a_file_that_the_closed_series_does_not_know_is_never_removed(rested: Rested) -> None:
    """It is a projection that was forgotten: taken up as at any start, and the series is open for it."""
    strange = rested.root / "s" / "projections" / "000009.h5"
    strange.write_bytes(layout.projection_image(made(9).record, made(9).planes))
    rested.turn(hours=2)
    assert strange.exists()
    assert shown(rested.root) == [1] * 4
    sound(rested.root)


# -- who looks on -------------------------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_row_of_a_pruned_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long one it has only the last rows at hand, and reads the others one by one."""
    monkeypatch.setattr(series_cache, "ROWS_SHOWN", 1)
    archive, ledger = stored(tmp_path, closed=True)
    taken(archive, tmp_path, use=True)
    pruned(archive, tmp_path)
    cache = series_cache.SeriesCache(tmp_path)
    for number in range(3):
        row = cache.row("s", number)
        assert (row["number"], row["path"], row["edition"]) == (number, f"s/{number}.tif", 2)
        assert np.array_equal(cache.pixels("s", row)["clean"], made(number).planes["raw"].astype("<f4") - 9)
        first = cache.in_edition("s", row, 1)
        assert np.array_equal(cache.pixels("s", first)["clean"], made(number).planes["clean"])
    with pytest.raises(StoreError):
        cache.row("s", 3)
    ledger.close()


def test_doctor_counts_what_a_series_takes_until_it_is_pruned(tmp_path: Path) -> None:
    """So that room for the next one is not foretold from what is left of the last."""
    archive, ledger = stored(tmp_path, closed=True)
    pruned(archive, tmp_path)
    ledger.close()
    left = sum(path.stat().st_size for path in (tmp_path / "s").rglob("*.*"))
    until_then = left + (tmp_path / "s" / "series.h5").stat().st_size
    (found,) = room(Station(Config(output=Output(root=str(tmp_path)))))
    fit = int(re.findall(r"(\d+) more series", found.said)[0])
    assert fit == pytest.approx(shutil.disk_usage(tmp_path).free / until_then, rel=0.02)
