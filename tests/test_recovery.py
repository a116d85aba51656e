"""After any loss on disk the files are the truth: what is there is taken up, what is gone is read again."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import durable, layout
from aet_stream.cli.verifying import verdicts
from aet_stream.errors import NewerLayout, OutputFull
from aet_stream.hub import quarantine
from aet_stream.hub.archive import Archive, open_ledger
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.store import SeriesStore
from aet_stream.projection import VisitKey, sha256_of
from aet_stream.reasons import why
from aet_stream.series import Series
from aet_stream.transport import run_folder
from tests.harness import known_image, wait_for
from tests.test_store import ABOUT, CLOSED, arrival, made


def opened(root: Path, fold_rows: int = 256, alive: Callable[[], None] = lambda: None) -> tuple[Archive, Ledger]:
    ledger, _ = open_ledger(root)
    return Archive(root, ledger, Outbox(ledger.db, {}), CrashGuard(root, alive), fold_rows=fold_rows, expected=0, config="{}"), ledger


def stored(root: Path, count: int = 3, *, closed: bool = False) -> None:
    """A series of `count` projections as a hub leaves it."""
    root.mkdir(exist_ok=True)
    archive, ledger = opened(root)
    archive.store("s").commit([made(index) for index in range(count)])
    archive.recover()
    if closed:
        archive.begin_close("s")
        while archive.working_on():
            archive.work(1.0)
    ledger.close()


def states(ledger: Ledger) -> dict[str, str]:
    return {row["path"]: row["state"] for row in ledger.db.execute("SELECT path, state FROM visit")}


def recovered(root: Path) -> tuple[Archive, Ledger]:
    archive, ledger = opened(root)
    archive.recover()
    return archive, ledger


def sound(root: Path, rows: int) -> None:
    with Series(root / "s" / "series.h5") as series:
        assert list(series.doubts()) == []
        assert len(series) == rows
        for row, path in enumerate(series.column("path")):
            assert np.array_equal(series.raw(row), known_image(int(Path(path).stem), 32))


def test_a_closed_series_lives_without_its_projection_files(tmp_path: Path) -> None:
    """Somebody deletes them to make room: a start changes nothing, and a late projection is added to all the others."""
    stored(tmp_path, closed=True)
    for path in (tmp_path / "s" / "projections").iterdir():
        path.unlink()
    before = (tmp_path / "s" / "series.h5").read_bytes()
    archive, ledger = recovered(tmp_path)
    assert (tmp_path / "s" / "series.h5").read_bytes() == before
    assert set(ledger.stored("s")) == {0, 1, 2}
    archive.store("s").commit([made(3)])
    archive.recover()
    sound(tmp_path, 4)
    ledger.close()


def test_a_closed_series_stays_one_file_when_it_is_looked_at(tmp_path: Path) -> None:
    """A copy of one of its images arrives and asks for its records; smaller segments than before are configured."""
    stored(tmp_path, 6, closed=True)
    before = (tmp_path / "s" / "series.h5").read_bytes()
    archive, ledger = opened(tmp_path, fold_rows=2)
    archive.recover()
    assert len(archive.store("s").records) == 6
    for _ in range(3):
        archive.work(1.0)
    assert not archive.working_on()
    assert (tmp_path / "s" / "series.h5").read_bytes() == before
    ledger.close()


def test_a_damaged_projection_file_of_a_closed_series_is_written_anew_from_it(tmp_path: Path) -> None:
    """Its source may be long gone; the closed file has it."""
    stored(tmp_path, closed=True)
    path = tmp_path / "s" / "projections" / "000001.h5"
    path.write_bytes(path.read_bytes()[:700])
    archive, ledger = recovered(tmp_path)
    archive.store("s").commit([made(3)])
    archive.recover()
    sound(tmp_path, 4)
    assert archive.to_read_again() == []
    ledger.close()


def test_a_flipped_bit_is_found_at_closing_and_its_source_read_again(tmp_path: Path) -> None:
    """It costs one projection a second reading; the others and the hub go on."""
    stored(tmp_path)
    archive, ledger = recovered(tmp_path)
    path = tmp_path / "s" / "projections" / "000001.h5"
    content = bytearray(path.read_bytes())
    content[content.find(known_image(1, 32).tobytes()) + 100] ^= 1
    path.write_bytes(content)
    archive.begin_close("s")
    while archive.working_on():
        archive.work(1.0)
    assert [row["path"] for row in archive.to_read_again()] == ["s/1.tif"]
    assert states(ledger) == {"s/0.tif": "stored", "s/1.tif": "ready", "s/2.tif": "stored"}
    assert len(list((tmp_path / "quarantine").glob("s-000001*"))) == 1
    sound(tmp_path, 2)
    archive.store("s").commit([made(1, archive.store("s").next_number)])
    archive.recover()
    sound(tmp_path, 3)
    ledger.close()


def test_a_file_that_vanishes_while_the_hub_runs_stops_nothing(tmp_path: Path) -> None:
    """Deleted by a person in mid-series: read again, and what was stored since is published."""
    stored(tmp_path)
    archive, ledger = recovered(tmp_path)
    (tmp_path / "s" / "projections" / "000000.h5").unlink()
    archive.commit("s", [arrival(ledger, made(3))])
    archive.publish("s")
    assert [row["path"] for row in archive.to_read_again()] == ["s/0.tif"]
    assert states(ledger) == {"s/0.tif": "ready", "s/1.tif": "stored", "s/2.tif": "stored", "s/3.tif": "stored"}
    sound(tmp_path, 3)
    ledger.close()


def test_a_number_is_never_used_twice(tmp_path: Path) -> None:
    """The last projection is lost; its number stays its own, for a reader may hold an old master open."""
    stored(tmp_path)
    (tmp_path / "s" / "projections" / "000002.h5").write_bytes(b"")
    archive, ledger = recovered(tmp_path)
    assert archive.store("s").next_number == 3
    ledger.close()


def test_a_ledger_that_names_another_unit_under_a_number_is_corrected(tmp_path: Path) -> None:
    """An old copy of the ledger comes back: the file says whose projection it is."""
    stored(tmp_path)
    archive, ledger = opened(tmp_path)
    with ledger.transaction():
        ledger.db.execute("UPDATE visit SET path = 's/9.tif', sha256 = 'x' WHERE number = 1")
    archive.recover()
    assert states(ledger) == {"s/0.tif": "stored", "s/1.tif": "stored", "s/2.tif": "stored", "s/9.tif": "ready"}
    assert [row["path"] for row in archive.to_read_again()] == ["s/9.tif"]
    ledger.close()


def test_copies_are_read_again_when_their_original_is_lost(tmp_path: Path) -> None:
    """A duplicate, or the touched file itself, may be all that is left of the pixels."""
    stored(tmp_path)
    archive, ledger = opened(tmp_path)
    sha256 = sha256_of(known_image(1, 32))
    with ledger.transaction():
        for path, state in (("s/copy.tif", "duplicate"), ("s/1.tif", "same")):
            ledger.end(ledger.want("s", VisitKey(path, 0, "2")), state, sha256=sha256)
    (tmp_path / "s" / "projections" / "000001.h5").unlink()
    archive.recover()
    waiting = {(row["path"], row["stamp"]) for row in ledger.ready()}
    assert waiting == {("s/1.tif", "1"), ("s/1.tif", "2"), ("s/copy.tif", "2")}
    ledger.close()


def test_a_master_without_any_projection_file_is_taken_away(tmp_path: Path) -> None:
    """Plain readers would see NaN in every row."""
    stored(tmp_path)
    for path in (tmp_path / "s" / "projections").iterdir():
        path.unlink()
    _, ledger = recovered(tmp_path)
    assert not (tmp_path / "s" / "series.h5").exists()
    assert set(states(ledger).values()) == {"ready"}
    ledger.close()


def test_an_open_series_whose_folder_was_taken_away_is_read_again(tmp_path: Path) -> None:
    """A closed one may be moved to where its owner likes."""
    stored(tmp_path / "open")
    stored(tmp_path / "closed", closed=True)
    for name, state in (("open", "ready"), ("closed", "stored")):
        (tmp_path / name / "s").rename(tmp_path / name / "moved away")
        (tmp_path / name / "moved away" / "projections").rename(tmp_path / f"{name} projections")
        (tmp_path / name / "moved away" / "series.h5").unlink()
        _, ledger = recovered(tmp_path / name)
        assert set(states(ledger).values()) == {state}
        ledger.close()


def test_a_foreign_file_with_our_name_is_set_aside(tmp_path: Path) -> None:
    """Another shape, another number, the same unit again: none of them becomes a row."""
    stored(tmp_path)
    folder = tmp_path / "s" / "projections"
    for name, foreign in (("000007.h5", made(7, size_px=16)), ("000009.h5", made(1, 9))):
        (folder / name).write_bytes(layout.projection_image(foreign.record, foreign.planes))
    (folder / "000008.h5").write_bytes((folder / "000001.h5").read_bytes())
    _, ledger = recovered(tmp_path)
    assert set(ledger.stored("s")) == {0, 1, 2}
    assert len(list((tmp_path / "quarantine").iterdir())) == 3
    sound(tmp_path, 3)
    ledger.close()


def test_a_file_that_its_reader_does_not_survive_is_set_aside_by_the_next_hub(tmp_path: Path) -> None:
    """Here one whose reading never ends; without that every hub would die of it again."""
    stored(tmp_path)
    path = tmp_path / "s" / "projections" / "000001.h5"
    path.unlink()
    os.mkfifo(path)
    words = f"from pathlib import Path; from tests.test_recovery import recovered; recovered(Path({str(tmp_path)!r}))"
    hub = subprocess.Popen([sys.executable, "-c", words])
    said = tmp_path / "run" / "reading"
    wait_for(lambda: said.exists() and said.read_text() == "s/projections/000001.h5", what="the hub to read it")
    hub.kill()
    hub.wait()
    CrashGuard(tmp_path, patience_s=1.0).set_aside()
    _, ledger = recovered(tmp_path)
    sound(tmp_path, 2)
    assert states(ledger)["s/1.tif"] == "ready"
    assert [file.name.startswith("s-000001.h5-") for file in (tmp_path / "quarantine").iterdir()] == [True]
    assert not said.exists()
    ledger.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_from_outside_prove_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, systemd or a stray kill ends the process that tries the file: it stays where it is."""
    stored(tmp_path, 3)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell that begins the tests with & has it ignored, and children inherit that
    path = tmp_path / "s" / "projections" / "000001.h5"
    run_folder(tmp_path).joinpath("reading").write_text("s/projections/000001.h5")
    trials = tmp_path / "trials"
    first = f"[ -e {trials} ] || {{ echo one > {trials}; kill -{int(number)} $$; }}; echo more >> {trials}"
    CrashGuard(tmp_path, reader=("sh", "-c", first)).set_aside()
    assert path.exists()
    assert trials.read_text().split() == (["one", "more"] if number == signal.SIGKILL else ["one"])


def test_a_file_that_is_set_aside_is_never_shown_as_zeros(tmp_path: Path) -> None:
    """Whatever kills its reader each time goes; so does the open series.h5 that would read zeros in its place."""
    stored(tmp_path, 3)
    run_folder(tmp_path).joinpath("reading").write_text("s/projections/000001.h5")
    CrashGuard(tmp_path, reader=("sh", "-c", "kill -SEGV $$")).set_aside()
    assert not (tmp_path / "s" / "projections" / "000001.h5").exists()
    assert not (tmp_path / "s" / "series.h5").exists()


def test_a_hub_that_was_killed_while_it_read_suspects_no_sound_file(tmp_path: Path) -> None:
    """It died by chance: whatever it was reading is read by a child, and stays."""
    stored(tmp_path, closed=True)
    for name in (b"s/projections/000001.h5", b"s/series.h5", b"s/gone.h5", b"../elsewhere.h5", b"\xff\xfe s", bytes(99)):
        run_folder(tmp_path).joinpath("reading").write_bytes(name)
        _, ledger = recovered(tmp_path)
        sound(tmp_path, 3)
        assert not (tmp_path / "quarantine").exists()
        assert not (tmp_path / "run" / "reading").exists()
        ledger.close()


def test_a_hub_that_reads_for_long_says_that_it_lives(tmp_path: Path) -> None:
    """At every file of a start, and while a child tries a suspect: who waits for the hub does not take it for one that hangs."""
    stored(tmp_path, 3)
    (tmp_path / "ledger.sqlite").unlink()
    signs: list[float] = []
    archive, ledger = opened(tmp_path, alive=lambda: signs.append(time.monotonic()))
    archive.recover()
    assert len(signs) >= 3
    run_folder(tmp_path).joinpath("reading").write_text("s/projections/000001.h5")
    signs.clear()
    CrashGuard(tmp_path, lambda: signs.append(time.monotonic()), reader=("sh", "-c", "sleep 2.5")).set_aside()
    assert len(signs) >= 3
    ledger.close()


def test_a_series_may_be_called_as_we_call_our_folders(tmp_path: Path) -> None:
    """One named `projections`: nothing above the output folder, which may be another one, is touched."""
    words = run_folder(tmp_path) / "reading"
    words.write_text("somebody else's")
    root = tmp_path / "out"
    root.mkdir()
    archive, ledger = opened(root)
    archive.store("projections").commit([made(0)])
    archive.recover()
    CrashGuard(root).move(root / "projections" / "series.h5")
    archive.recover()
    assert words.read_text() == "somebody else's"
    with Series(root / "projections" / "series.h5") as series:
        assert len(series) == 1
    ledger.close()


def test_what_killed_reconstructions_were_writing_is_removed_when_it_is_nobodys(tmp_path: Path) -> None:
    """Old, and of a process that is gone; one that runs, here or on another machine, keeps its draft."""
    stored(tmp_path, closed=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    drafts = {
        f".reconstruction.h5.{ended.pid}.tmp": 7200, f".report.html.{ended.pid}.tmp": 7200,
        f".preview.h5.{ended.pid}.tmp": 60, f".reconstruction.h5.{os.getpid()}.tmp": 7200, ".of somebody": 7200,
    }  # fmt: skip
    for name, age_s in drafts.items():
        (tmp_path / "s" / name).touch()
        os.utime(tmp_path / "s" / name, (time.time() - age_s,) * 2)
    _, ledger = recovered(tmp_path)
    assert {path.name for path in (tmp_path / "s").glob(".*")} == set(list(drafts)[2:])
    ledger.close()


def test_names_that_are_nearly_ours_are_left_alone(tmp_path: Path) -> None:
    """What a file manager makes of a copy in the same folder."""
    stored(tmp_path)
    folder = tmp_path / "s" / "projections"
    copies = [folder / name for name in ("000001 - Copy.h5", "000001.old.h5", "1.h5", "000001(1).h5")]
    for copy in copies:
        shutil.copy(folder / "000001.h5", copy)
    _, ledger = recovered(tmp_path)
    sound(tmp_path, 3)
    assert all(copy.exists() for copy in copies)
    ledger.close()


def test_a_damaged_closed_file_without_projection_files_is_kept(tmp_path: Path) -> None:
    """It may be all that is left of the series: its sources are read again, and nobody deletes what a specialist could still read."""
    stored(tmp_path, closed=True)
    shutil.rmtree(tmp_path / "s" / "projections")
    series = tmp_path / "s" / "series.h5"
    damaged = bytes(512) + series.read_bytes()[512:]
    series.write_bytes(damaged)
    _, ledger = recovered(tmp_path)
    assert not series.exists()
    assert [file.read_bytes() for file in (tmp_path / "quarantine").glob("s-series.h5-*")] == [damaged]
    assert set(states(ledger).values()) == {"ready"}
    ledger.close()


def test_an_output_folder_may_be_moved(tmp_path: Path) -> None:
    """Nothing in it knows where it lies: open and closed series go on, and no source is read again."""
    for name, closed in (("open", False), ("closed", True)):
        stored(tmp_path / name, closed=closed)
        (tmp_path / name).rename(tmp_path / f"{name} elsewhere")
        archive, ledger = recovered(tmp_path / f"{name} elsewhere")
        sound(tmp_path / f"{name} elsewhere", 3)
        assert archive.store("s").commit([made(3)]) == 1
        assert set(states(ledger).values()) == {"stored"}
        ledger.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "noise"])
def test_a_damaged_ledger_is_noticed_or_harmless(tmp_path: Path, damage: str) -> None:
    """Cut, flipped, zeroed or overwritten anywhere: afterwards it knows what the files say."""
    stored(tmp_path / "sound", 6)
    content, rng = (tmp_path / "sound" / "ledger.sqlite").read_bytes(), random.Random(damage)
    for case in range(8):
        root = tmp_path / str(case)
        shutil.copytree(tmp_path / "sound", root, ignore=shutil.ignore_patterns("ledger.sqlite*", "run"))
        spoiled, at = bytearray(content), rng.randrange(len(content))
        match damage:
            case "cut":
                del spoiled[at:]
            case "flipped":
                for _ in range(rng.randrange(1, 20)):
                    spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
            case "zeros":
                page = slice(at // 4096 * 4096, at // 4096 * 4096 + 4096)
                spoiled[page] = bytes(len(spoiled[page]))
            case "noise":
                spoiled[at : at + 600] = rng.randbytes(min(600, len(spoiled) - at))
        (root / "ledger.sqlite").write_bytes(spoiled)
        _, ledger = recovered(root)
        sound(root, 6)
        assert set(ledger.stored("s")) == set(range(6))
        ledger.close()


def test_a_ledger_that_was_left_sound_is_read_whole_again_once_it_was_touched(tmp_path: Path) -> None:
    """Its page of projections is spoiled while no hub is there: what the hub before said of it does not count any more."""
    stored(tmp_path, 6)
    ledger, _ = open_ledger(tmp_path)
    (page,) = ledger.db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'visit'").fetchone()
    ledger.close(sound=True)
    ledger, fresh = open_ledger(tmp_path)
    assert not fresh
    ledger.close(sound=True)
    with (tmp_path / "ledger.sqlite").open("r+b") as file:
        file.seek(4096 * (page - 1) + 2048)
        file.write(bytes(2048))
    _, ledger = recovered(tmp_path)
    assert list(tmp_path.glob("ledger.sqlite.damaged-*"))
    assert set(ledger.stored("s")) == set(range(6))
    ledger.close()


def _replace_closed_file(root: Path) -> None:
    (root / "s" / "series.h5").write_bytes(b"no HDF5")


def _put_projection(root: Path) -> None:
    other = SeriesStore(root / "other" / "s", CrashGuard(root), fold_rows=256)
    other.commit([made(index) for index in range(4)])
    (root / "other" / "s" / "projections" / "000003.h5").rename(root / "s" / "projections" / "000003.h5")
    shutil.rmtree(root / "other")


def _lose_a_row(root: Path) -> None:
    with sqlite3.connect(root / "ledger.sqlite") as database:
        database.execute("UPDATE visit SET state = 'ready', number = NULL WHERE number = 1")


@pytest.mark.parametrize(("change", "rows"), [(_replace_closed_file, 3), (_put_projection, 4), (_lose_a_row, 3)])
def test_a_closed_series_that_agreed_is_looked_at_once_it_has_changed(tmp_path: Path, change: Callable[[Path], None], rows: int) -> None:
    """A start does not open every series that was ever closed; whatever is done to its folder, or to the ledger, has it opened again."""
    stored(tmp_path, closed=True)
    for _ in range(2):
        _, ledger = recovered(tmp_path)
        assert list(ledger.agreed()) == ["s"]
        ledger.close()
    change(tmp_path)
    _, ledger = recovered(tmp_path)
    assert set(ledger.stored("s")) == set(range(rows))
    assert ledger.totals().stored == rows
    ledger.close()
    sound(tmp_path, rows)


def test_files_of_the_layout_before_are_taken_up(tmp_path: Path) -> None:
    """Fewer fields, no checksum of the contents: their defaults hold, and the next master is of today."""
    stored(tmp_path)
    for path in (tmp_path / "s" / "projections").iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs["layout_version"] = 1
            del file.attrs["trust"], file.attrs["config_sha256"], file.attrs["record_sha256"]
    (tmp_path / "ledger.sqlite").unlink()
    with h5py.File(tmp_path / "s" / "series.h5", "r+") as file:
        file.attrs["layout_version"] = 1
        del file["/aet/series"].attrs["content_sha256"], file["/aet/projection/trust"]
    with Series(tmp_path / "s" / "series.h5") as series:
        assert list(series.doubts()) == []
    _, ledger = recovered(tmp_path)
    assert set(ledger.stored("s")) == {0, 1, 2}
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        assert "content_sha256" in file["/aet/series"].attrs
    sound(tmp_path, 3)
    ledger.close()


def test_a_field_that_a_later_version_wrote_is_no_damage(tmp_path: Path) -> None:
    """Whoever goes back to this version keeps his series; nor is what somebody adds by hand. A field that was changed is."""
    stored(tmp_path)
    later, added, changed = (tmp_path / "s" / "projections" / f"00000{number}.h5" for number in range(3))
    with h5py.File(later, "r+") as file:
        file.attrs["a_new_figure"] = 0.25
        known = {name: value for name, value in file.attrs.items() if name not in ("layout_version", "record_sha256")}
        text = "".join(f"{name}={getattr(known[name], 'item', lambda name=name: known[name])()!r};" for name in sorted(known))
        file.attrs["record_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    with h5py.File(added, "r+") as file:
        file.attrs["seen_by"] = "somebody"
    with h5py.File(changed, "r+") as file:
        file.attrs["tilt_deg"] = 77.0
    _, ledger = recovered(tmp_path)
    assert set(ledger.stored("s")) == {0, 1}
    ledger.close()


def test_files_of_a_later_layout_are_refused_and_left_alone(tmp_path: Path) -> None:
    """An old program must not set aside what a new one wrote."""
    stored(tmp_path)
    path = tmp_path / "s" / "projections" / "000001.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["layout_version"] = layout.LAYOUT_VERSION + 1
    archive, ledger = opened(tmp_path)
    with pytest.raises(NewerLayout, match="use the aet_stream that wrote it"):
        archive.recover()
    assert path.exists()
    ledger.close()


def test_a_segment_of_other_content_is_not_used(tmp_path: Path) -> None:
    """Same numbers, other checksums: plain readers would see other pixels."""
    store = SeriesStore(tmp_path / "s", CrashGuard(tmp_path), fold_rows=2)
    store.commit([made(index) for index in range(4)])
    list(store.fold())
    segment = next((tmp_path / "s" / "projections").glob("segment*"))
    with h5py.File(segment, "r+") as file:
        file.attrs["clean_crc32"] = [1, 2]
    again = SeriesStore(tmp_path / "s", CrashGuard(tmp_path), fold_rows=2)
    again.load({})
    again.write_master(ABOUT)
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        assert not any("segment" in source.file_name for source in file["/exchange/data"].virtual_sources())


def test_a_locked_ledger_is_waited_for_and_not_set_aside(tmp_path: Path) -> None:
    """Somebody looks into it with another program: that is no damage."""
    stored(tmp_path)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputFull, match="locked"):
        open_ledger(tmp_path)
    other.execute("ROLLBACK")
    other.close()
    assert not list(tmp_path.glob("*damaged*"))
    ledger, fresh = open_ledger(tmp_path)
    assert not fresh
    assert set(ledger.stored("s")) == {0, 1, 2}
    ledger.close()


def test_quarantine_is_swept_at_start(tmp_path: Path) -> None:
    """Drafts of a killed hub go, and records of units that were stored after all; the others stay."""
    stored(tmp_path)
    folder = tmp_path / "quarantine"
    for path in ("s/1.tif", "s/bad.tif"):
        quarantine.write(folder, VisitKey(path, 0, "1"), visit_id=1, series="s", reason=why("unreadable", error="cut"), attempts=0)
    (folder / ".x.json.1.tmp").write_bytes(b"{")
    _, ledger = recovered(tmp_path)
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["s_bad.tif"]
    ledger.close()


def test_a_record_of_any_file_name_can_be_written(tmp_path: Path) -> None:
    """A file name takes 255 bytes, and a sign up to four."""
    quarantine.write(
        tmp_path, VisitKey("s/" + "電" * 80 + ".tif", 0, "1"), visit_id=1, series="s", reason=why("unreadable", error="cut"), attempts=0
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_a_source_that_comes_back_is_read(tmp_path: Path) -> None:
    """Gone when it was asked for, and there again in the same state: quarantine was no end."""
    ledger, _ = open_ledger(tmp_path)
    with ledger.transaction():
        ledger.end(ledger.want("s", VisitKey("s/0.tif", 0, "1")), "quarantined", reason=why("gone", error="0.tif is gone"))
        ledger.end(ledger.want("s", VisitKey("s/1.tif", 0, "1")), "quarantined", reason=why("unreadable", error="cut"))
    assert ledger.ended("s/0.tif") == set()
    assert ledger.ended("s/1.tif") == {(0, "1")}
    ledger.close()


def test_new_folders_are_synced_into_the_ones_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not take the folder away in which a synced file lies."""
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    durable.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


@pytest.mark.thorough
@pytest.mark.parametrize("step", [331, pytest.param(5, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_verify_notices_whatever_byte_is_flipped(tmp_path: Path, step: int) -> None:
    """One bit of every `step`-th byte of a closed file, in turn: noticed, or nothing that anybody reads has changed."""
    store = SeriesStore(tmp_path / "s", CrashGuard(tmp_path), fold_rows=256)
    store.commit([made(1, 0, size_px=8)])
    list(store.close(CLOSED))
    path = tmp_path / "s" / "series.h5"
    content, truth = path.read_bytes(), everything(path)
    noticed, silent = 0, []
    positions = list(range(0, len(content), step))
    for some in (positions[start : start + 200] for start in range(0, len(positions), 200)):
        flipped = [_flipped(content, position, tmp_path / f"{position}.h5") for position in some]
        for position, damaged, verdict in zip(some, flipped, verdicts(flipped, patience_s=10.0), strict=True):
            sound = not (verdict.doubts or verdict.refused)
            noticed += not sound
            if sound and everything(damaged) != truth:
                silent.append(position)
            damaged.unlink()
    assert silent == []
    assert noticed > 10


def _flipped(content: bytes, position: int, path: Path) -> Path:
    """A copy in which one bit is another one."""
    flipped = bytearray(content)
    flipped[position] ^= 1 << (position % 8)
    path.write_bytes(flipped)
    return path


def test_verify_outlives_what_kills_or_hangs_its_reader(tmp_path: Path) -> None:
    """A file that is never done being read, here a pipe without a writer, has a verdict, and so has the one behind it."""
    store = SeriesStore(tmp_path / "s", CrashGuard(tmp_path), fold_rows=256)
    store.commit([made(1, 0, size_px=8)])
    list(store.close(CLOSED))
    endless = tmp_path / "endless.h5"
    os.mkfifo(endless)
    hung, sound = verdicts([endless, tmp_path / "s" / "series.h5"], patience_s=3.0)
    assert "endless.h5: whatever reads it dies or never ends" in hung.refused
    assert (sound.rows, sound.closed, sound.doubts, sound.refused) == (1, True, (), "")


def everything(path: Path) -> dict[str, object]:
    """All that a plain reader can find in a file."""
    found: dict[str, object] = {}

    def add(name: str, item: h5py.HLObject) -> None:
        found[name] = {key: str(value) for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            value = item[()]
            found[name + " value"] = value if isinstance(value, bytes) else (value.tobytes(), value.shape, value.dtype.str)

    with h5py.File(path, "r", locking=False) as file:
        add("/", file["/"])
        file.visititems(add)
    return found
