"""Many files at once, lost events, and a quiet folder: nothing missed, nothing doubled, and little to do when nothing happens."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from aet_stream.simulate.writers import npy
from aet_stream.watch.events import network_file_system
from aet_stream.watch.rhythm import Rhythm
from tests.harness import known_image, put, running
from tests.watching import Bench, WatchProcess


def burst(root: Path, files: int, per_folder: int) -> set[str]:
    """As fast as this machine can, into new nested folders; each with pixels of its own."""
    content = bytearray(npy(known_image(0, 16), 0.0, 0.1))
    names = set()
    for index in range(files):
        folder = root / f"s{index // per_folder:04d}" / "a" / "b"
        if index % per_folder == 0:
            folder.mkdir(parents=True, exist_ok=True)
        content[-4:] = (index + 1).to_bytes(4, "little")[:2] + b"\x07\x07"
        content[-8:-4] = (index + 1).to_bytes(4, "big")
        path = folder / f"x_{index:05d}_{index % 140 - 70:+d}deg.npy"
        path.write_bytes(content)
        names.add(path.relative_to(root).as_posix())
    return names


def offered_once(watch: WatchProcess, names: set[str]) -> None:
    assert watch.paths == names
    assert len(watch.offers) == len(names)
    assert set(watch.offers.values()) == {1}


def test_400_files_into_new_folders_are_each_offered_once(tmp_path: Path) -> None:
    """Folders newer than the watches on them: what no event told of, the scan finds."""
    with WatchProcess(tmp_path) as watch:
        names = burst(watch.root, 400, 20)
        watch.until(lambda: len(watch.paths) >= 400 and watch.status.files and not watch.status.moving)
        offered_once(watch, names)


def test_what_is_asked_for_comes_while_thousands_wait_to_be_looked_into(tmp_path: Path) -> None:
    """The first row needs a few folders and a few looks, no scan; its workers do not wait until all have been looked into."""
    burst(tmp_path / "in", 2000, 100)
    with Bench(tmp_path, "watch.scan_s=600", want=False) as bench:
        bench.until(lambda: bench.offered)
        assert bench.watch.rhythm.scans == 0
        bench.until(lambda: len(bench.offered) >= 40)
        for path, image in [*bench.offered][:40]:
            bench.ask(path, bench.offered[path, image], image)
        bench.until(lambda: len(bench.taken) == 40)
        assert len(bench.offered) < 2000


@pytest.mark.parametrize("by", ["folder", "path_pattern"])
def test_a_large_tree_is_begun_with_whole_series_in_their_order(tmp_path: Path, by: str) -> None:
    """What is offered before the first scan comes as it was written, whatever the disk lists first; where names decide, after a scan."""
    names = burst(tmp_path / "in", 2000, 100)
    for age, name in enumerate(sorted(names, reverse=True)):
        os.utime(tmp_path / "in" / name, (1.7e9 + age, 1.7e9 + age))
    with Bench(tmp_path, "watch.scan_s=600", f"series.by={by}", r"series.pattern=(?P<series>s\d+)/") as bench:
        bench.until(lambda: bench.offered)
        assert bench.watch.rhythm.scans == (0 if by == "folder" else 1)
        late = {f"{next(iter(bench.offered))[0]}.later_+1deg.npy", "new/x_+2deg.npy"}
        for name in late:
            (bench.root / name).parent.mkdir(exist_ok=True)
            (bench.root / name).write_bytes(npy(known_image(1, 16), 0.0, 0.1))
        bench.until(lambda: len(bench.taken) == len(names | late))
        assert set(bench.times().values()) == {1}
        assert {path for path, _ in bench.taken} == names | late
    for folder in {name.partition("/")[0] for name in names}:
        mine = [path for path, _ in bench.taken if path.startswith(f"{folder}/") and path in names]
        assert mine == sorted(mine, reverse=True)


def test_lost_events_are_made_up_for_by_a_scan(tmp_path: Path) -> None:
    """The process is stopped while the kernel's queue overflows; afterwards every file is found, once."""
    with WatchProcess(tmp_path, "watch.scan_s=600") as watch:
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        watch.process.send_signal(signal.SIGSTOP)
        one = watch.root / "noise.txt"
        for _ in range(limit // 2 + 1):  # made, closed, removed: at least two events each
            one.touch()
            one.unlink()
        names = burst(watch.root, 300, 300)
        watch.process.send_signal(signal.SIGCONT)
        watch.until(lambda: len(watch.paths) >= 300 and watch.status.files and not watch.status.moving)
        offered_once(watch, names)
        assert "events were lost" in watch.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("files", "per_folder"), [(2000, 20), (2000, 1), (20_000, 100)])
def test_a_burst_of_thousands(tmp_path: Path, files: int, per_folder: int) -> None:
    """0 missed, 0 doubled; prints how long until all were offered."""
    with WatchProcess(tmp_path) as watch:
        began = time.monotonic()
        names = burst(watch.root, files, per_folder)
        written_s = time.monotonic() - began
        watch.until(lambda: len(watch.paths) >= files and watch.status.files and not watch.status.moving, limit_s=600)
        offered_once(watch, names)
        took_s = time.monotonic() - began
        print(f"\n{files} files in {files // per_folder} new folders: written in {written_s:.1f} s, all offered after {took_s:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_overflow_of_10000_files(tmp_path: Path) -> None:
    """The watch stands still while 10,000 files are written: 0 missed, 0 doubled."""
    with WatchProcess(tmp_path, "watch.scan_s=600") as watch:
        (watch.root / "s0000" / "a" / "b").mkdir(parents=True)
        names = burst(watch.root, 1, 1)
        watch.until(lambda: watch.paths)  # the folder is known: from now on each of its files makes events
        watch.process.send_signal(signal.SIGSTOP)
        names |= burst(watch.root, 10_000, 10_000)
        watch.process.send_signal(signal.SIGCONT)
        took_s = watch.until(lambda: len(watch.paths) >= 10_000 and watch.status.files and not watch.status.moving, limit_s=600)
        assert watch.paths == names
        assert [key[0] for key, count in watch.offers.items() if count > 1] == []
        assert len(watch.offers) == 10_001  # the first file was written anew
        lost = "events were lost" in watch.log.read_text()
        print(f"\noverflow {'happened' if lost else 'did not happen'}: all offered after {took_s:.1f} s")
        assert lost


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_files_at_full_speed_end_in_their_series(tmp_path: Path) -> None:
    """Through the whole daemon: every file one row, none twice."""
    with running(tmp_path) as daemon:
        began = time.monotonic()
        names = burst(daemon.root, 2000, 100)
        status = daemon.wait_for_totals(stored=2000, limit_s=1500)
        assert (status["totals"]["duplicates"], status["totals"]["held"], status["totals"]["quarantined"]) == (0, 0, 0)
        print(f"\n{len(names)} files stored after {time.monotonic() - began:.0f} s")


def test_scans_are_rare_while_events_tell_everything() -> None:
    """Quiet and listening: scans of 0.2 s grow rarer, down to one in 20 s. Polling, or after a miss: as often as configured."""
    rhythm, news = Rhythm(2.0), time.monotonic()
    rhythm.cost_s, rhythm.listening = 0.2, True
    rhythm.event(news)
    assert [rhythm.pause_s(news + after_s) for after_s in (0, 2, 12, 30, 2000)] == pytest.approx([2, 2, 6, 15, 20])
    rhythm.cost_s = 5.0
    assert rhythm.pause_s(news + 2000) == 60
    rhythm.missed(news + 100)
    rhythm.cost_s = 0.2
    assert [rhythm.pause_s(news + after_s) for after_s in (100, 159, 160)] == pytest.approx([2, 2, 20])
    rhythm.listening = False
    assert rhythm.pause_s(news + 2000) == 2


def test_only_files_of_which_no_event_told_make_scans_frequent(tmp_path: Path) -> None:
    """What a scan finds before its event is taken was not missed; with the observer deaf, it was."""
    with Bench(tmp_path, "watch.scan_s=0.05") as bench:
        rhythm = bench.watch.rhythm
        put(bench.root / "s", 0, 1.0)
        bench.until(lambda: bench.taken)
        bench.rest()
        assert rhythm.missed_at < 0
        bench.watch.hints.take = lambda: []  # type: ignore[method-assign]
        put(bench.root / "s", 1, 2.0)
        bench.until(lambda: len(bench.taken) == 2 and rhythm.missed_at > 0)


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:4 / /data rw,x - nfs4 server:/x rw\n", "nfs4"),
        ("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:4 / /data/micro\\040scope rw - cifs //pc/x rw\n", ""),
        ("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:4 / /data rw shared:1 - fuse.sshfs pc:/x rw\n", "fuse.sshfs"),
        ("1 0 8:1 / / rw - nfs4 x rw\n2 1 0:4 / /data rw - xfs /dev/sdb rw\n", ""),
    ],
)
def test_network_shares_are_polled(tmp_path: Path, mounts: str, kind: str) -> None:
    """The longest mount point above the folder decides; names with blanks are understood."""
    table = tmp_path / "mountinfo"
    table.write_text(mounts)
    assert network_file_system(Path("/data/session"), table) == kind
    assert network_file_system(Path("/data/micro scope/x"), table) == ("cifs" if "cifs" in mounts else kind)


def test_a_blip_of_the_folder_doubles_nothing(tmp_path: Path) -> None:
    """The share goes away and comes back: every file is there again, in the same state, and nothing is taken twice."""
    with Bench(tmp_path) as bench:
        for index in range(5):
            (bench.root / f"x_{index:+d}deg.npy").write_bytes(npy(known_image(index, 16), 0.0, 0.1))
        bench.until(lambda: len(bench.taken) == 5)
        states = dict(bench.offered)
        bench.root.rename(tmp_path / "away")
        bench.until(lambda: bench.status.hub_id and not bench.status.root_there)
        (tmp_path / "away").rename(bench.root)
        bench.until(lambda: bench.status.root_there)
        bench.rest()
        assert bench.offered == states
        assert np.array_equal(bench.pixels("x_+3deg.npy"), known_image(3, 16))


@pytest.mark.parametrize("how", ["gone", "failing", "one folder"])
def test_what_was_to_be_read_while_the_folder_was_away_is_read_when_it_is_back(tmp_path: Path, how: str) -> None:
    """Nothing is put aside because the share is away, not even what had just arrived; a folder below it may come back unseen."""
    with Bench(tmp_path, "watch.incomplete_s=1", "watch.scan_s=1", want=False) as bench:
        names = [f"s/x_{index:+d}deg.npy" for index in range(6)]
        (bench.root / "s").mkdir()
        for index, name in enumerate(names[:5]):
            (bench.root / name).write_bytes(npy(known_image(index, 16), 0.0, 0.1))
        bench.until(lambda: len(bench.offered) == 5)
        with (bench.root / names[5]).open("wb") as growing:
            growing.write(npy(known_image(5, 16), 0.0, 0.1))
            growing.flush()
            bench.until(lambda: names[5] in bench.watch.status().waiting_for)
            place, away = bench.root / "s" if how == "one folder" else bench.root, tmp_path / "away"
            place.rename(away)
        if how == "failing":
            place.symlink_to(place)  # as a share that answers with an error
        for name in names[:5]:
            bench.ask(name, bench.offered[name, 0])
        bench.want = True
        bench.until(lambda: len(bench.refused) >= 5)
        if how != "one folder":
            over = time.monotonic() + 3
            bench.until(lambda: time.monotonic() > over)
            assert {refusal.why for refusal in bench.refused} == {"later"}
        if how == "failing":
            place.unlink()
        away.rename(place)
        bench.until(lambda: len(bench.taken) == 6, limit_s=20)
