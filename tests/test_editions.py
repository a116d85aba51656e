"""Editions of a series' background: made by a child, taken over, shown, shown no more; judged by plain HDF5."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import edition, layout
from aet_stream.config import Command
from aet_stream.edition import Covered, Edition, Maker
from aet_stream.errors import AetError, StoreError
from aet_stream.hub.archive import Archive, open_ledger
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.projection import Quality
from aet_stream.reasons import why
from aet_stream.series import Series
from tests.harness import known_image
from tests.old_hdf5 import found_by, found_by_h5py, unpacked
from tests.test_store import arrival, made

MAKER = Maker("reprocess", "nine", "9" * 64, {"fusion": True})
REMOVED = {1: 7.0, 2: 9.0, 3: 11.0}
"""What an edition of these tests takes away."""
EVENTS = ("series.closed", "series.revised", "edition.done", "edition.chosen", "projection.excluded", "projection.restored")


def opened(root: Path) -> tuple[Archive, Ledger]:
    ledger, _ = open_ledger(root)
    outbox = Outbox(ledger.db, {"command": Command(argv=("true",), events=EVENTS)})
    archive = Archive(root, ledger, outbox, CrashGuard(root), fold_rows=4, expected=0, config="{}")
    archive.recover()
    return archive, ledger


def work(archive: Archive) -> None:
    """Until nothing is left to do."""
    while archive.working_on():
        archive.work(1.0)


def stored(root: Path, count: int = 3, *, closed: bool = False) -> tuple[Archive, Ledger]:
    """A series `s` of `count` projections."""
    root.mkdir(exist_ok=True)
    archive, ledger = opened(root)
    archive.commit("s", [arrival(ledger, made(index)) for index in range(count)])
    archive.publish("s")
    if closed:
        archive.begin_close("s")
        work(archive)
    return archive, ledger


def write_edition(root: Path, maker: Maker = MAKER, removed: float = REMOVED[2], rows: Sequence[int] | None = None) -> Path:
    """As a child does it; `rows`: those that it is to have, all by default."""
    with Series(root / "s" / "series.h5") as series:
        covered = edition.covered(series)
        chosen = range(len(series)) if rows is None else rows
        with edition.writing(root / "s", "s", maker, [covered[row] for row in chosen], series.shape) as draft:
            for row in chosen:
                clean = series.raw(row).astype("<f4") - np.float32(removed)
                draft.row(clean, Quality(maker.model, maker.model_sha256, trust=0.25), estimate="film", because=f"row {row}")
            draft.extra("film/map_nm", np.arange(24.0).reshape(2, 3, 4), units="nm")
    return edition.made_path(root / "s", maker.key)


def taken(archive: Archive, root: Path, maker: Maker = MAKER, removed: float = REMOVED[2], *, use: bool = False) -> int:
    """One more edition, taken over by the hub; its number."""
    write_edition(root, maker, removed)
    assert archive.take("s", maker.key, use=use) is None
    work(archive)
    number = archive.take("s", maker.key, use=use)
    assert number is not None
    return number


def shown(root: Path) -> list[int]:
    """The edition of each row by plain HDF5, every row checked to be raw - background of that one."""
    with h5py.File(root / "s" / "series.h5") as file:
        editions = file["/aet/projection/edition"][()].tolist()
        for row, number in enumerate(editions):
            clean, raw = file["/exchange/data"][row], file["/aet/raw"][row]
            assert np.array_equal(clean, raw.astype("<f4") - np.float32(REMOVED[number])), row
            assert file["/aet/projection/clean_crc32"][row] == layout.crc32(clean)
            assert file["/aet/projection/model"][row] == (b"none" if number == 1 else b"nine")
            assert np.array_equal(raw, known_image(int(Path(file["/aet/projection/path"][row].decode()).stem), 32))
    return editions


def sound(root: Path) -> None:
    with Series(root / "s" / "series.h5") as series:
        assert list(series.doubts()) == []


def told(ledger: Ledger) -> list[str]:
    rows = ledger.db.execute("SELECT event, data FROM event WHERE event LIKE 'edition%' OR event LIKE 'series%' ORDER BY seq")
    return [f"{row['event']} {json.loads(row['data']).get('edition', '')}".strip() for row in rows]


def with_edition(root: Path, *, closed: bool = False) -> tuple[Archive, Ledger]:
    """As `stored`, and edition 2 is shown; made once, and copied for each test."""
    first = root.parent / f"edition_2_shown{'_closed' * closed}"
    if not first.exists():
        archive, ledger = stored(first, closed=closed)
        taken(archive, first, use=True)
        ledger.close()
    shutil.copytree(first, root, dirs_exist_ok=True)
    return opened(root)


# -- the file ---------------------------------------------------------------------------------------------------------------------------


def test_an_edition_says_all_that_its_maker_has_said(tmp_path: Path) -> None:
    """Rows with their quality, which estimate was taken and why; what else its maker wants kept, a map of the film for example."""
    stored(tmp_path)[1].close()
    with Edition(write_edition(tmp_path)) as found:
        assert found.about.key == MAKER.key
        assert found.about.settings == MAKER.settings
        assert [row.quality.trust for row in found.rows.values()] == [0.25] * 3
        assert [(row.estimate, row.because) for row in found.rows.values()] == [("film", f"row {row}") for row in range(3)]
        assert found.extras() == ["film/map_nm"]
        assert np.array_equal(found.extra("film/map_nm"), np.arange(24.0).reshape(2, 3, 4))
        assert found.doubts() == []


def test_every_flipped_bit_of_an_edition_is_noticed(tmp_path: Path) -> None:
    """In the pixels, the rows, what its maker kept: or nothing that anybody reads has changed."""
    stored(tmp_path, 1)[1].close()
    path = write_edition(tmp_path)
    content, noticed = path.read_bytes(), 0
    with Edition(path) as found:
        truth = found.about, found.rows, found.clean(0).tobytes(), found.extra("film/map_nm").tobytes()
    damaged = tmp_path / "damaged.h5"
    for position in range(0, len(content), 293):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            with Edition(damaged) as found:
                wrong = found.doubts()
                seen = (found.about, found.rows, found.clean(0).tobytes(), found.extra("film/map_nm").tobytes()) if not wrong else ()
        except StoreError:
            wrong, seen = ["cannot be opened"], ()
        noticed += bool(wrong)
        assert wrong or repr(seen) == repr(truth), position
    assert noticed > 9


@pytest.mark.parametrize("fault", ["a row is missing", "one row too many", "another shape", "not finite"])
def test_half_an_edition_never_gets_its_name(tmp_path: Path, fault: str) -> None:
    """Nor does any that cannot be right."""
    covered = [Covered(number, "f" * 64, 1) for number in range(2)]
    quality, image = Quality("nine", "9" * 64), np.zeros((4, 5), np.float32)
    rows = {"a row is missing": [image], "one row too many": [image] * 3, "another shape": [image.T], "not finite": [image + np.nan]}[fault]

    def write() -> None:
        with edition.writing(tmp_path, "s", MAKER, covered, (4, 5)) as draft:
            for clean in rows:
                draft.row(clean, quality)

    with pytest.raises(StoreError):
        write()
    assert list((tmp_path / "editions").iterdir()) == []


def test_the_same_maker_of_the_same_rows_is_found_again(tmp_path: Path) -> None:
    """Another model, another setting or one more row is another edition."""
    stored(tmp_path)[1].close()
    path = write_edition(tmp_path)
    with Series(tmp_path / "s" / "series.h5") as series:
        covered = edition.covered(series)
    assert edition.find(tmp_path / "s", MAKER, covered) == path
    assert edition.find(tmp_path / "s", MAKER, covered[:2]) == path
    assert edition.find(tmp_path / "s", MAKER, [*covered, Covered(7, "f" * 64, 1)]) is None
    assert edition.find(tmp_path / "s", MAKER, [Covered(0, "0" * 64, 1)]) is None
    assert edition.find(tmp_path / "s", Maker("reprocess", "nine", "9" * 64, {"fusion": False}), covered) is None
    assert edition.find(tmp_path / "s", Maker("reprocess", "nine", "8" * 64, MAKER.settings), covered) is None


# -- taken over and shown -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [False, True])
def test_another_edition_is_shown_and_shown_no_more(tmp_path: Path, closed: bool) -> None:
    """Every edition's bytes stay what they were; the file says of each row which it is; the world hears of it in order, once."""
    archive, ledger = stored(tmp_path, closed=closed)
    before = shown(tmp_path)
    assert before == [1, 1, 1]
    assert taken(archive, tmp_path) == 2
    assert shown(tmp_path) == before
    edition_bytes = (tmp_path / "s" / "editions" / "02.h5").read_bytes()
    for number in (2, 1, 2):
        archive.use("s", number)
        work(archive)
        assert archive.use("s", number)
        assert shown(tmp_path) == [number] * 3
        sound(tmp_path)
    assert (tmp_path / "s" / "editions" / "02.h5").read_bytes() == edition_bytes
    each = ["edition.chosen {}", "series.revised {}"] if closed else ["edition.chosen {}"]
    assert told(ledger) == [
        *(["series.closed"] if closed else []), "edition.done 2", *(words.format(n) for n in (2, 1, 2) for words in each),
    ]  # fmt: skip
    ledger.close()


def test_a_row_that_comes_later_shows_edition_1(tmp_path: Path) -> None:
    """Until the edition is made anew, under its own number, with all rows; the closed file mixes no other way than it says."""
    archive, ledger = with_edition(tmp_path)
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert shown(tmp_path) == [2, 2, 2, 1]
    archive.begin_close("s")
    work(archive)
    assert shown(tmp_path) == [2, 2, 2, 1]
    sound(tmp_path)
    other = Maker("reprocess", "nine", "9" * 64, {"again": 1})
    assert taken(archive, tmp_path, other, REMOVED[3], use=True) == 3
    assert shown(tmp_path) == [3, 3, 3, 3]
    sound(tmp_path)
    ledger.close()


def test_the_same_maker_again_renews_its_edition(tmp_path: Path) -> None:
    """More rows have come since: the newer file counts, never the older one of the same maker."""
    archive, ledger = with_edition(tmp_path)
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    write_edition(tmp_path)
    numbers = []
    while (number := archive.take("s", MAKER.key, use=True)) is None:
        numbers.append(archive.decisions("s").edition)
        archive.work(1e-5)
    assert (number, set(numbers)) == (3, {2, 3})
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        assert file["/aet/projection/edition"][()].tolist() == [3] * 4
    assert told(ledger) == ["edition.done 2", "edition.chosen 2", "edition.done 3", "edition.chosen 3"]
    ledger.close()


def test_an_edition_covers_what_it_covers(tmp_path: Path) -> None:
    """Its maker left a row out; that one shows edition 1, and what is shown of the others comes from where it lies in the edition."""
    archive, ledger = stored(tmp_path, 12)
    while archive.working_on("s") or not (tmp_path / "s" / "projections" / "segment_000000_000004.h5").exists():
        archive.work(1.0)
    write_edition(tmp_path, rows=[11, 0, 1, 2, 5, 6, 4])
    archive.take("s", MAKER.key, use=True)
    work(archive)
    assert shown(tmp_path) == [2, 2, 2, 1, 2, 2, 2, 1, 1, 1, 1, 2]
    archive.begin_close("s")
    work(archive)
    assert shown(tmp_path) == [2, 2, 2, 1, 2, 2, 2, 1, 1, 1, 1, 2]
    sound(tmp_path)
    ledger.close()


def test_an_old_library_reads_the_closed_file_of_any_edition(tmp_path: Path) -> None:
    """HDF5 1.8 and 1.10, as MATLAB has them; and the edition's own file."""
    with_edition(tmp_path, closed=True)[1].close()
    libraries = unpacked("2.6.0", tmp_path / "old")
    for name in ("series.h5", "editions/01.h5", "editions/02.h5"):
        found = found_by(libraries, tmp_path / "s" / name)
        assert found["datasets"] == found_by_h5py(tmp_path / "s" / name)


@pytest.mark.parametrize("fault", ["damaged", "of other projections", "of another size"])
def test_an_edition_that_is_not_this_series_own_is_refused(tmp_path: Path, fault: str) -> None:
    """It is set aside, whoever asks hears why, and nothing else has changed."""
    archive, ledger = stored(tmp_path)
    path = write_edition(tmp_path)
    if fault == "damaged":
        content = bytearray(path.read_bytes())
        at = content.find((known_image(1, 32).astype("<f4") - 9).tobytes())
        content[at + 40] ^= 1
        path.write_bytes(content)
    else:
        size = (32, 32) if fault == "of other projections" else (8, 8)
        covered = [Covered(0, "0" * 64 if size == (32, 32) else made(0).record.sha256, made(0).record.checksums["raw"])]
        with edition.writing(tmp_path / "s", "s", MAKER, covered, size) as draft:
            draft.row(np.zeros(size, np.float32), Quality("nine", "9" * 64))
    archive.take("s", MAKER.key, use=True)
    work(archive)
    with pytest.raises(AetError, match="checksum" if fault == "damaged" else "not those of s"):
        archive.take("s", MAKER.key, use=True)
    with pytest.raises(AetError, match="no finished edition"):
        archive.take("s", MAKER.key, use=True)
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    assert shown(tmp_path) == [1, 1, 1]
    assert told(ledger) == []
    ledger.close()


def test_an_edition_that_is_not_there_cannot_be_shown(tmp_path: Path) -> None:
    archive, ledger = stored(tmp_path)
    awkward = "Größe 'A' & \"b\""
    with pytest.raises(AetError, match="no edition 2"):
        archive.use("s", 2)
    assert archive.use("s", 1)
    with pytest.raises(AetError, match=re.escape(f"`aet-stream editions {shlex.quote(awkward)}` lists")):
        archive.use(awkward, 9)
    ledger.close()


# -- losses -------------------------------------------------------------------------------------------------------------------------------


def loss_of_ledger(root: Path) -> None:
    (root / "ledger.sqlite").unlink()


def loss_of_decisions(root: Path) -> None:
    (root / "s" / "decisions.json").unlink()


def damaged_decisions(root: Path) -> None:
    (root / "s" / "decisions.json").write_bytes(b'{"edition": "tw')


def loss_of_series(root: Path) -> None:
    (root / "s" / "series.h5").unlink()


def old_decisions_in_series(root: Path) -> None:
    """A kill came between the decision and series.h5."""
    (root / "s" / "decisions.json").write_text('{"chosen_at":1.0,"edition":2}')
    archive, ledger = opened(root)
    archive.use("s", 1)
    work(archive)
    ledger.close()
    (root / "s" / "decisions.json").write_text('{"chosen_at":3.0,"edition":2}')


@pytest.mark.parametrize("loss", [loss_of_ledger, loss_of_decisions, damaged_decisions, loss_of_series, old_decisions_in_series])
@pytest.mark.parametrize("closed", [False, True])
def test_what_was_decided_outlives_the_loss_of_any_one_file(tmp_path: Path, closed: bool, loss: Callable[[Path], None]) -> None:
    """The same edition is shown after the next start, all agree, and the same event has the same name as before."""
    archive, ledger = with_edition(tmp_path, closed=closed)
    names = {row["event_id"] for row in ledger.db.execute("SELECT event_id FROM event WHERE event = 'edition.done'")}
    ledger.close()
    loss(tmp_path)
    archive, ledger = opened(tmp_path)
    work(archive)
    assert shown(tmp_path) == [2, 2, 2]
    sound(tmp_path)
    assert {row["event_id"] for row in ledger.db.execute("SELECT event_id FROM event WHERE event = 'edition.done'")} == names
    assert archive.decisions("s").edition == 2
    again = told(ledger)
    ledger.close()
    archive, ledger = opened(tmp_path)
    assert not archive.working_on()
    assert told(ledger) == again
    ledger.close()


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_an_open_series_whose_edition_is_lost_goes_back_to_edition_1(tmp_path: Path, damage: str) -> None:
    """Never NaN, never a wrong pixel: noticed at the next start, or when the series is closed, and told."""
    archive, ledger = with_edition(tmp_path)
    path = tmp_path / "s" / "editions" / "02.h5"
    content = bytearray(path.read_bytes())
    content[content.find((known_image(1, 32).astype("<f4") - 9).tobytes()) + 40] ^= 1
    {"gone": path.unlink, "cut": lambda: path.write_bytes(content[:999]), "flipped": lambda: path.write_bytes(content)}[damage]()
    archive.begin_close("s")
    work(archive)
    archive.begin_close("s")
    work(archive)
    assert shown(tmp_path) == [1, 1, 1]
    sound(tmp_path)
    assert "edition.chosen 1" in told(ledger)
    ledger.close()


def test_a_lost_edition_is_written_anew_from_the_closed_series(tmp_path: Path) -> None:
    """Needed when a late projection comes: the closed file has its pixels."""
    archive, ledger = with_edition(tmp_path, closed=True)
    (tmp_path / "s" / "editions" / "02.h5").unlink()
    ledger.close()
    archive, ledger = opened(tmp_path)
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert shown(tmp_path) == [2, 2, 2, 1]
    sound(tmp_path)
    with Edition(tmp_path / "s" / "editions" / "02.h5") as found:
        assert found.about.key == MAKER.key
    ledger.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_edition_1_outlives_its_projection_files(tmp_path: Path, restarted: bool) -> None:
    """Somebody deletes them while another edition is shown: its own file has all of it, and it is chosen again without them. A late
    projection has them written anew, as they were."""
    archive, ledger = stored(tmp_path, closed=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s" / "projections").iterdir()}
    taken(archive, tmp_path, use=True)
    if restarted:
        ledger.close()
    shutil.rmtree(tmp_path / "s" / "projections")
    sound(tmp_path)
    with Edition(tmp_path / "s" / "editions" / "01.h5") as first, Series(tmp_path / "s" / "series.h5") as series:
        assert first.doubts() == []
        for row in range(3):
            assert np.array_equal(first.clean(row), made(row).planes["clean"])
            assert np.array_equal(series.first(row)[0], first.clean(row))
    if restarted:
        archive, ledger = opened(tmp_path)
    archive.use("s", 1)
    work(archive)
    assert shown(tmp_path) == [1, 1, 1]
    sound(tmp_path)
    assert layout.projection_files(tmp_path / "s") == {}
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert shown(tmp_path) == [1, 1, 1, 1]
    sound(tmp_path)
    after = {path.name: path.read_bytes() for path in (tmp_path / "s" / "projections").iterdir()}
    assert after.pop("000003.h5")
    assert after == before
    ledger.close()


def test_a_reader_that_never_closes_sees_the_edition_that_it_opened(tmp_path: Path) -> None:
    archive, ledger = with_edition(tmp_path)
    with h5py.File(tmp_path / "s" / "series.h5") as old:
        archive.use("s", 1)
        work(archive)
        archive.begin_close("s")
        work(archive)
        for row in range(3):
            assert np.array_equal(old["/exchange/data"][row], made(row).planes["raw"].astype("<f4") - 9)
    ledger.close()


def test_a_projection_that_comes_while_an_edition_is_shown_is_stored_at_once(tmp_path: Path) -> None:
    """The closed file that is being written is given up; the series is open again, and shows what was chosen."""
    archive, ledger = stored(tmp_path, closed=True)
    assert taken(archive, tmp_path) == 2
    archive.use("s", 2)
    archive.work(1e-5)
    assert archive.working_on("s")
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert shown(tmp_path) == [2, 2, 2, 1]
    work(archive)
    assert told(ledger) == ["series.closed", "edition.done 2", "edition.chosen 2"]
    assert not list((tmp_path / "s").rglob(".*.tmp"))
    ledger.close()


def test_the_rows_of_a_closed_series_come_into_memory_piece_by_piece(tmp_path: Path) -> None:
    """Thousands take their time; a late projection of the series does not wait for it, and is there afterwards."""
    archive, ledger = stored(tmp_path, closed=True)
    assert archive.fetching("s")
    archive.work(0.0)
    archive.work(0.0)
    assert archive.fetching("s")
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert not archive.fetching("s")
    work(archive)
    assert len(archive.store("s").records) == 4
    ledger.close()


# -- a person's word ----------------------------------------------------------------------------------------------------------------------


def asides(root: Path) -> list[str]:
    """Of each row by plain HDF5 why it does not count, empty where it does; those of the last two columns agree with the first."""
    with h5py.File(root / "s" / "series.h5") as file:
        excluded, reasons, times = (file[f"/aet/projection/{name}"][()] for name in ("excluded", "excluded_reason", "excluded_utc"))
        assert file["/aet/series"].attrs["excluded"] == excluded.sum()
    assert [bool(time) for time in times] == [bool(reason) for reason in reasons] == excluded.astype(bool).tolist()
    return [reason.decode() for reason in reasons]


@pytest.mark.parametrize("closed", [False, True])
def test_what_a_person_excludes_counts_no_more_until_it_is_restored(tmp_path: Path, closed: bool) -> None:
    """The row stays with its pixels, reason and time; the same word twice changes nothing; the world hears of each once."""
    archive, ledger = stored(tmp_path, closed=closed)
    for _ in range(2):
        archive.exclude("s", [1], why("by_person", text="out of focus"))
        work(archive)
    assert asides(tmp_path) == ["", "out of focus", ""]
    assert archive.tilts_deg("s") == [0.0, 6.0]
    assert read_input_rows(tmp_path) == [0, 2]
    sound(tmp_path)
    for _ in range(2):
        archive.restore("s", [1])
        work(archive)
    assert asides(tmp_path) == ["", "", ""]
    assert archive.decisions("s").aside[1].restored_at > 0
    assert shown(tmp_path) == [1, 1, 1]
    with pytest.raises(AetError, match="no projection 7"):
        archive.exclude("s", [7], why("by_person", text="none"))
    rows = ledger.db.execute(
        "SELECT event, data FROM event WHERE event LIKE 'projection.%ed' AND event != 'projection.stored' ORDER BY seq"
    )
    events = [(row["event"], json.loads(row["data"])["number"]) for row in rows]
    assert events == [("projection.excluded", 1), ("projection.restored", 1)]
    assert told(ledger) == (["series.closed", "series.revised 1", "series.revised 1"] if closed else [])
    ledger.close()


def read_input_rows(root: Path) -> list[int]:
    """Which rows a volume would be made from; of two it says that they are too few."""
    with Series(root / "s" / "series.h5") as series:
        return np.flatnonzero(series.counting).tolist()


@pytest.mark.parametrize("loss", [loss_of_ledger, loss_of_decisions, loss_of_series])
@pytest.mark.parametrize("closed", [False, True])
def test_what_a_person_said_outlives_the_loss_of_any_one_file(tmp_path: Path, closed: bool, loss: Callable[[Path], None]) -> None:
    archive, ledger = stored(tmp_path, closed=closed)
    archive.exclude("s", [0, 2], why("by_person", text="the beam was off"))
    archive.restore("s", [2])
    work(archive)
    ledger.close()
    loss(tmp_path)
    archive, ledger = opened(tmp_path)
    work(archive)
    assert asides(tmp_path) == ["the beam was off", "", ""]
    sound(tmp_path)
    ledger.close()
