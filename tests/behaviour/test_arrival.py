"""However a file arrives, it is taken whole, once, with the pixels that were meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.errors import SourceNotReady
from aet_stream.readers import SUFFIXES
from aet_stream.simulate.writers import emi, mdoc, mrc, npy, ser, tiff, velox
from aet_stream.watch.settle import Settling
from tests.harness import ENVIRONMENT, known_image, put
from tests.watching import Bench


class Mode:
    """Somebody who brings a file in some way; `pause` is his slowness."""

    def __init__(self, folder: Path, aside: Path, pause_s: float) -> None:
        self.folder, self.aside, self.pause_s = folder, aside, pause_s

    def wait(self) -> None:
        if self.pause_s:
            threading.Event().wait(self.pause_s)

    def whole(self, index: int) -> bytes:
        return tiff(known_image(index), 0.0, 0.1)

    def written(self, index: int) -> None:
        (self.folder / "x_+1.00deg.tif").write_bytes(self.whole(index))

    def renamed_into_place(self, index: int) -> None:
        draft = self.folder / "x_+1.00deg.tif.part"
        draft.write_bytes(self.whole(index))
        self.wait()
        draft.rename(self.folder / "x_+1.00deg.tif")

    def as_rsync_does(self, index: int) -> None:
        draft = self.folder / ".x_+1.00deg.tif.Ab3xQ9"
        draft.write_bytes(self.whole(index)[:5000])
        self.wait()
        draft.write_bytes(self.whole(index))
        os.utime(draft, (1e9, 1e9))
        draft.rename(self.folder / "x_+1.00deg.tif")

    def slowly_in_one_go(self, index: int) -> None:
        whole = self.whole(index)
        with (self.folder / "x_+1.00deg.tif").open("wb") as file:
            for start in range(0, len(whole), 3000):
                file.write(whole[start : start + 3000])
                file.flush()
                self.wait()

    def appended_and_reopened(self, index: int) -> None:
        whole = self.whole(index)
        for start in range(0, len(whole), 4000):
            with (self.folder / "x_+1.00deg.tif").open("ab") as file:
                file.write(whole[start : start + 4000])
            self.wait()

    def copied_with_old_times(self, index: int) -> None:
        source = self.aside / f"old{self.folder.name}.tif"
        source.write_bytes(self.whole(index))
        os.utime(source, (1e9, 1e9))
        shutil.copy2(source, self.folder / "x_+1.00deg.tif")

    def moved_in(self, index: int) -> None:
        source = self.aside / f"moved{self.folder.name}.tif"
        source.write_bytes(self.whole(index))
        self.wait()
        source.rename(self.folder / "x_+1.00deg.tif")

    def hard_linked(self, index: int) -> None:
        source = self.aside / f"linked{self.folder.name}.tif"
        source.write_bytes(self.whole(index))
        os.utime(source, (1e9, 1e9))
        (self.folder / "x_+1.00deg.tif").hardlink_to(source)

    def folder_moved_in(self, index: int) -> None:
        source = self.aside / f"folder{self.folder.name}"
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "x_+1.00deg.tif").write_bytes(self.whole(index))
        self.wait()
        source.rename(self.folder / "in")

    def new_folders_at_once(self, index: int) -> None:
        deep = self.folder / "a" / "b" / "c"
        deep.mkdir(parents=True)
        (deep / "x_+1.00deg.tif").write_bytes(self.whole(index))

    def preallocated(self, index: int) -> None:
        whole = npy(known_image(index), 0.0, 0.1)
        with (self.folder / "x_+1.00deg.npy").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, len(whole))
            for start in range(0, len(whole), 3000):
                file.write(whole[start : start + 3000])
                file.flush()
                self.wait()

    def through_a_memory_map(self, index: int) -> None:
        image = known_image(index)
        mapped = np.lib.format.open_memmap(self.folder / "x_+1.00deg.npy", mode="w+", dtype=image.dtype, shape=image.shape)
        for row in range(0, 64, 16):
            mapped[row : row + 16] = image[row : row + 16]
            self.wait()

    def hdf5_piece_by_piece(self, index: int) -> None:
        path = self.folder / "x.emd"
        source = self.aside / f"{self.folder.name}.emd"
        source.write_bytes(velox(known_image(index), 1.0, 0.1))
        with h5py.File(source, "r") as old, h5py.File(path, "w") as new:
            data = old["Data/Image/" + "0" * 32]
            group = new.create_group("Data/Image/" + "0" * 32)
            group.create_dataset("Metadata", data=data["Metadata"][()])
            made = group.create_dataset("Data", (64, 64, 1), "<u2", chunks=(16, 64, 1))
            for row in range(0, 64, 16):
                made[row : row + 16] = data["Data"][row : row + 16]
                new.flush()
                self.wait()

    def sidecar_later(self, index: int) -> None:
        (self.folder / "x.mrc").write_bytes(mrc(known_image(index), 0.0, 0.1))
        self.wait()
        (self.folder / "x.mrc.mdoc").write_bytes(mdoc("x.mrc", [1.0], 0.1))

    def description_later(self, index: int) -> None:
        (self.folder / "x_1.ser").write_bytes(ser(known_image(index), 0.0, 0.1))
        self.wait()
        with (self.folder / "x.emi").open("wb") as file:
            file.write(emi(1.0)[:300])
            file.flush()
            self.wait()
            file.write(emi(1.0)[300:])

    def in_capitals(self, index: int) -> None:
        (self.folder / "X_+1.00DEG.MRC").write_bytes(mrc(known_image(index), 0.0, 0.1))
        self.wait()
        (self.folder / "X_+1.00DEG.MDOC").write_bytes(mdoc("X", [1.0], 0.1))

    def as_windows_over_smb(self, index: int) -> None:
        """Full size first, then stalls, times that stand still or go back, the name in its own case."""
        whole = self.whole(index)
        path = self.folder / "X_+1.00deg.TIF"
        with path.open("wb") as file:
            file.truncate(len(whole))
            for start in range(0, len(whole), 3000):
                file.write(whole[start : start + 3000])
                file.flush()
                os.utime(path, (1.6e9, 1.6e9))
                self.wait()

    def retaken(self, index: int) -> None:
        self.written(index + 500)
        self.wait()
        self.written(index)

    def gone_and_back(self, index: int) -> None:
        for _ in range(5):
            self.written(index)
            (self.folder / "x_+1.00deg.tif").unlink()
        self.wait()
        self.written(index)

    def with_doubles(self, index: int) -> None:
        (self.folder / "x.mrc.mdoc").write_bytes(mdoc("x.mrc", [1.0], 0.1))
        (self.folder / "x_override.mrc.mdoc").write_bytes(mdoc("x.mrc", [55.0], 0.1))
        (self.folder / "x_override.mrc").write_bytes(mrc(known_image(index + 700), 0.0, 0.1))
        (self.folder / "~x.tmp").write_bytes(b"x")
        (self.folder / "x.mrc").write_bytes(mrc(known_image(index), 0.0, 0.1))


MODES = [name for name in vars(Mode) if not name.startswith("_") and name not in ("wait", "whole")]


@pytest.mark.parametrize("pause_s", [0.0, 0.35], ids=["fast", "slow"])
@pytest.mark.parametrize("events", [True, False], ids=["events", "polling"])
def test_every_way_to_arrive(tmp_path: Path, events: bool, pause_s: float) -> None:
    """21 ways at once: each file's meant pixels are taken exactly once, at its tilt, and nothing else is but a retake's first state."""
    aside = tmp_path / "aside"
    aside.mkdir()
    assert len(MODES) >= 15
    with Bench(tmp_path, f"watch.events={str(events).lower()}") as bench:
        for name in MODES:
            (bench.root / name).mkdir()
        failures: list[Exception] = []

        def bring(way: Callable[[int], None], index: int) -> None:
            try:
                way(index)
            except Exception as error:  # noqa: BLE001 - shown below, whatever it is
                failures.append(error)

        workers = [
            threading.Thread(target=bring, args=(getattr(Mode(bench.root / name, aside, pause_s), name), index))
            for index, name in enumerate(MODES)
        ]
        for worker in workers:
            worker.start()
        bench.until(lambda: not any(worker.is_alive() for worker in workers))
        assert not failures
        wanted = {name: known_image(index) for index, name in enumerate(MODES)}

        def arrived() -> set[str]:
            return {path.split("/")[0] for (path, _), found in bench.taken.items() if found[-1][0].hold is None}

        bench.until(lambda: arrived() == set(MODES))
        bench.rest()
        for (path, _image), found in bench.taken.items():
            name = path.split("/")[0]
            message, pixels = found[-1]
            assert np.array_equal(pixels, wanted[name]), path
            assert (message.candidates[0].tilt_deg, message.hold) == (1.0, None), path
            early = [p for _, p in found if not np.array_equal(p, wanted[name])]
            assert not early or name == "retaken", f"{path}: {len(early)} early states taken"
        assert len(bench.taken) == len(MODES), sorted(bench.taken)
        assert not [refusal for refusal in bench.refused if refusal.why == "bad"]


def test_a_symbolic_link_is_refused_aloud(tmp_path: Path) -> None:
    """It may point anywhere, so it is not followed; but nobody waits in vain for its image without being told."""
    with Bench(tmp_path, "watch.incomplete_s=0") as bench:
        (tmp_path / "elsewhere.tif").write_bytes(tiff(known_image(1), 0.0, 0.1))
        (bench.root / "x_+1.00deg.tif").symlink_to(tmp_path / "elsewhere.tif")
        (bench.root / "folder").symlink_to(tmp_path)
        bench.until(lambda: bench.refused)
        bench.rest()
        assert [(refusal.visit.path, refusal.why) for refusal in bench.refused] == [("x_+1.00deg.tif", "bad")]
        assert "copy the file here" in str(bench.refused[0].reason)
        assert not bench.taken


def test_a_file_replaced_while_it_is_queued_is_read_in_its_new_state(tmp_path: Path) -> None:
    """Offered in one state, replaced, then wanted: refused, offered anew, and the new pixels come under the new stamp."""
    with Bench(tmp_path, want=False) as bench:
        path = bench.root / "s" / "x_+1.00deg.tif"
        path.parent.mkdir()
        path.write_bytes(tiff(known_image(1), 0.0, 0.1))
        bench.until(lambda: bench.offered)
        first = dict(bench.offered)
        draft = path.with_name("x.part")
        draft.write_bytes(tiff(known_image(2), 0.0, 0.1))
        draft.replace(path)
        bench.until(lambda: bench.offered != first)
        bench.want = True
        draft.write_bytes(tiff(known_image(3), 0.0, 0.1))
        draft.replace(path)
        bench.until(lambda: bench.taken)
        bench.rest()
        ((message, pixels),) = bench.taken["s/x_+1.00deg.tif", 0]
        assert np.array_equal(pixels, known_image(3))
        assert message.visit.stamp == bench.offered["s/x_+1.00deg.tif", 0]


def test_whoever_asks_for_an_old_state_is_told_of_the_new_one_again(tmp_path: Path) -> None:
    """A hub that has lost sight of the new state hears of it with each such question, and no oftener."""
    with Bench(tmp_path, want=False) as bench:
        path = put(bench.root / "s", 0, 5.0)
        name = f"s/{path.name}"
        bench.until(lambda: bench.offered)
        old = bench.offered.pop((name, 0))
        path.write_bytes(tiff(known_image(1), 5.0, 0.1))
        bench.until(lambda: bench.offered)
        new = bench.offered.pop((name, 0))
        assert new != old
        for _ in range(2):
            bench.ask(name, old)
            bench.until(lambda: bench.offered.get((name, 0)))
            assert bench.offered.pop((name, 0)) == new
            scans = bench.watch.rhythm.scans
            bench.until(lambda scans=scans: bench.watch.rhythm.scans >= scans + 2)
            assert not bench.offered
        bench.ask(name, new)
        bench.until(lambda: bench.taken)
        assert np.array_equal(bench.pixels(name), known_image(1))
        assert [refusal.why for refusal in bench.refused] == ["later", "later"]


def test_a_new_file_is_noticed_at_once(tmp_path: Path) -> None:
    """Closed by its writer and whole: no settling wait. Counted in turns of the loop, not in seconds."""
    with Bench(tmp_path, "watch.settle_s=30", "watch.scan_s=30") as bench:
        bench.until(lambda: bench.status.hub_id)
        (bench.root / "x_+1.00deg.tif").write_bytes(tiff(known_image(1), 0.0, 0.1))
        scans = bench.watch.rhythm.scans
        bench.until(lambda: bench.taken, limit_s=20)
        assert bench.watch.rhythm.scans == scans


def test_pixels_that_cannot_be_read_are_tried_less_and_less_and_put_aside(tmp_path: Path) -> None:
    """The header is fine, the pixels give an error each time (a bad sector): no endless circle."""
    with Bench(tmp_path, "watch.incomplete_s=2") as bench:
        tries: list[float] = []

        def fails(*_: object, **__: object) -> object:
            tries.append(time.monotonic())
            raise SourceNotReady("Input/output error")

        bench.reader.read_visit = fails  # type: ignore[method-assign,assignment]
        put(bench.root / "s", 0, 1.0)
        bench.until(lambda: any(refused.why == "bad" for refused in bench.refused), limit_s=30)
        assert "Input/output error (unchanged for " in str(bench.refused[-1].reason)
        assert 2 <= len(tries) < 15


def test_a_log_that_is_written_beside_costs_no_scans(tmp_path: Path) -> None:
    """An event of a file that is neither image nor sidecar means nothing."""
    with Bench(tmp_path, "watch.scan_s=600") as bench:
        put(bench.root / "s", 0, 1.0)
        bench.until(lambda: bench.taken)
        scans = bench.watch.rhythm.scans
        for index in range(20):
            (bench.root / "s" / "microscope.log").write_text("x" * index)
            bench.turn()
        put(bench.root / "s", 1, 2.0)
        bench.until(lambda: len(bench.taken) == 2)
        assert bench.watch.rhythm.scans == scans


def test_a_watched_folder_that_comes_back_is_listened_to_again(tmp_path: Path) -> None:
    """Deleted and made anew (or unmounted and mounted): events tell of the new one."""
    with Bench(tmp_path, "watch.scan_s=0.2") as bench:
        bench.until(lambda: bench.status.hub_id)
        bench.root.rmdir()
        bench.until(lambda: not bench.watch.status().root_there)
        bench.root.mkdir()
        bench.until(lambda: bench.watch.status().root_there)
        bench.watch.rhythm.due_at += 600
        put(bench.root / "s", 0, 1.0)
        bench.until(lambda: bench.taken, limit_s=20)


NO_INOTIFY_LEFT = """
import logging, os, resource, sys
from pathlib import Path
from aet_stream.watch.events import Hints
logging.basicConfig(format="%(message)s")
hints = Hints()
free = os.open(os.devnull, os.O_RDONLY)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
print(*(hints.start(Path(sys.argv[1])) for _ in range(3)))
"""


def test_without_an_inotify_instance_files_are_found_by_scanning_and_it_is_said_once(tmp_path: Path) -> None:
    """As on a machine whose other programs have them all: no death of the watch, and no line for every time that it is tried."""
    command = [sys.executable, "-c", NO_INOTIFY_LEFT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    assert done.stdout.split() == ["False"] * 3, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"no file system events for {tmp_path} (")
    assert said.endswith("the periodic scan alone finds files")


def test_a_file_that_kills_its_reader_three_times_is_put_aside_and_others_go_on(tmp_path: Path) -> None:
    """Death by memory at each look: one record, and the next file is read by a new child."""
    with Bench(tmp_path, "watch.reader_memory_mib=700", "watch.incomplete_s=600") as bench:
        for name in ("huge_+1.00deg.npy", "huge_+3.00deg.npy", "huge_+4.00deg.npy"):
            with (bench.root / name).open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (8000, 8000)})
                file.truncate(128 + 8000 * 8000 * 8)
        (bench.root / "good_+2.00deg.npy").write_bytes(npy(known_image(1), 0.0, 0.1))
        bench.until(lambda: bench.taken and len(bench.refused) == 3)
        assert ("good_+2.00deg.npy", 0) in bench.taken
        for refusal in bench.refused:
            assert refusal.why == "bad"
            assert "3 reading processes died" in str(refusal.reason)


def test_a_blank_file_is_taken_after_the_grace_and_flagged(tmp_path: Path) -> None:
    """All zeros, whole by its header: waited for, named while it waits, then taken with a flag; its neighbour does not wait."""
    with Bench(tmp_path, "watch.zero_grace_s=3") as bench:
        (bench.root / "blank_+1.00deg.npy").write_bytes(npy(np.zeros((32, 32), "<u2"), 0.0, 0.1))
        (bench.root / "good_+2.00deg.npy").write_bytes(npy(known_image(1), 0.0, 0.1))
        bench.until(lambda: ("good_+2.00deg.npy", 0) in bench.taken)
        assert "zero_grace_s" in bench.watch.status().waiting_for["blank_+1.00deg.npy"]
        bench.until(lambda: ("blank_+1.00deg.npy", 0) in bench.taken)
        assert bench.taken["blank_+1.00deg.npy", 0][0][0].drift.flag == "the last 1024 pixels are zero"
        assert not bench.refused


def test_a_tilt_counts_when_its_line_is_finished(tmp_path: Path) -> None:
    """The image comes while half the number is written: it waits; a line that nobody finishes is believed after watch.settle_s."""
    (tmp_path / "good.npy").write_bytes(npy(known_image(0), 0.0, 0.1))
    with Bench(tmp_path, "watch.settle_s=3") as bench:
        bench.reader.probe(tmp_path / "good.npy")  # the reading process has started
        for name in ("a", "b"):
            (bench.root / f"{name}.csv").write_text("tilt\n-1")
            os.utime(bench.root / f"{name}.csv", (time.time() + 2.5, time.time() + 2.5))  # their writer's clock is ahead
            (bench.root / f"{name}.npy").write_bytes(npy(known_image(ord(name)), 0.0, 0.1))
        bench.until(lambda: "no end yet" in bench.status.waiting_for.get("a.npy", ""))
        with (bench.root / "a.csv").open("a") as file:
            file.write("2.5\n")
        bench.until(lambda: len(bench.taken) == 2)
        assert [len(found) for found in bench.taken.values()] == [1, 1]
        assert (bench.tilt("a.npy"), bench.tilt("b.npy")) == (-12.5, -1.0)


class Vanishing(Settling):
    """A folder one file of which is removed while it is listed."""

    def excluded(self, name: str) -> bool:
        if name.startswith("draft"):
            (self.root / name).unlink()
        return super().excluded(name)


def test_a_file_that_vanishes_hides_no_other(tmp_path: Path) -> None:
    """Drafts come and go while a folder is listed: all that stays is seen."""
    for index in range(20):
        (tmp_path / f"draft{index}.npy").touch()
        (tmp_path / f"x{index}.npy").touch()
    settling = Vanishing(tmp_path, exclude=(), settle_s=1.0, suffixes=SUFFIXES)
    settling.scan(0.0)
    assert len(settling.candidates) == 20


def test_a_folder_that_cannot_be_listed_keeps_its_files_and_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """Rights taken away: its files have not vanished, and the log says so. Root gives up its rights for a moment to see it."""
    with tempfile.TemporaryDirectory() as name:
        shut = Path(name) / "shut"
        shut.mkdir()
        (shut / "x.npy").touch()
        Path(name).chmod(0o755)
        settling = Settling(Path(name), exclude=(), settle_s=1.0, suffixes=SUFFIXES)
        settling.scan(0.0)
        shut.chmod(0o000)
        me = os.geteuid()
        try:
            if me == 0:
                os.seteuid(65534)
            assert [settling.scan(1.0), settling.scan(2.0)] == [[], []]
        finally:
            os.seteuid(me)
        assert [record.getMessage() for record in caplog.records] == [f"{shut} cannot be looked at (Permission denied): see to its rights"]
        assert settling.unreadable == {"shut"}
        shutil.rmtree(shut)
        assert settling.scan(3.0) == ["shut/x.npy"]


def test_a_broken_file_is_refused_in_one_state_however_its_folders_log_grows(tmp_path: Path) -> None:
    """A loose table gains a line with every image: that is no news of a file that nobody can read; its own sidecar is."""
    with Bench(tmp_path, "watch.incomplete_s=0.5") as bench:
        (bench.root / "broken_+1.00deg.npy").write_bytes(b"not npy at all")
        for index in range(3):
            with (bench.root / "log.csv").open("a") as file:
                file.write(f"x{index}.npy,{index}\n" if index else "file,tilt\n")
            done = len(bench.refused)
            bench.until(lambda done=done: len(bench.refused) > done)
        assert len({refusal.visit.stamp for refusal in bench.refused}) == 1
        (bench.root / "broken_+1.00deg.csv").write_text("tilt\n1\n")
        bench.until(lambda: len({refusal.visit.stamp for refusal in bench.refused}) == 2)
