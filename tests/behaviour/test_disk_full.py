"""The disk fills up, or is slow: intake waits, nothing is quarantined for it, and everything goes on."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import durable, failpoints, hdf5
from aet_stream.errors import OutputFull
from aet_stream.service import EXIT_DISK
from tests.harness import ENVIRONMENT, Daemon, plain_rows, put, running, wait_for


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_pauses_intake_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    """Full at commit: said in one line and in the status; after room is made every projection is stored once."""
    daemon = Daemon(tmp_path)
    out = small_disk / "out"
    daemon.set += ["--set", f"output.root={out}"]
    daemon.out = out
    daemon.start()
    try:
        put(daemon.root / "np", 0, 0.0, size_px=128)
        daemon.wait_for_totals(stored=1)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        for index in range(1, 6):
            put(daemon.root / "np", index, float(index), size_px=128)
        status = wait_for(lambda: (found := daemon.status()).get("paused") and found, what="the daemon to say that the disk is full")
        assert "No space left" in status["paused"] or "full" in status["paused"]
        assert status["totals"]["stored"] == 1
        assert len(plain_rows(out / "np" / "series.h5")) == 1
        filler.unlink()
        daemon.wait_for_totals(stored=6, quarantined=0, held=0)
        wait_for(lambda: not daemon.status().get("paused"), what="the pause to end")
        assert len(plain_rows(out / "np" / "series.h5")) == 6
        assert "nothing is lost" in daemon.log.read_text()
    finally:
        assert daemon.stop() == 0


def test_intake_waits_before_the_disk_is_full(tmp_path: Path, small_disk: Path) -> None:
    """What is kept free stays free, for closing too: said in the status; the series can be closed meanwhile; with room, all are stored."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(4 << 20))
    daemon = Daemon(tmp_path, output__keep_free_mib=2)
    daemon.out = small_disk / "out"
    daemon.set += ["--set", f"output.root={daemon.out}"]
    daemon.start()
    try:
        for index in range(3):
            put(daemon.root / "first", index, 3.0 * index, size_px=256)
        daemon.wait_for_totals(stored=3)
        for index in range(17):
            put(daemon.root / "second", 3 + index, 3.0 * index, size_px=256)
        status = wait_for(lambda: (found := daemon.status()).get("paused") and found, what="the daemon to say that it waits")
        assert "output.keep_free_mib" in status["paused"]

        def at_rest() -> int:
            status = daemon.status()
            flying = sum(status["queue"][where] for where in ("wanted", "waiting", "working", "done"))
            on_disk = len(list(daemon.out.glob("*/projections/*.h5")))
            return on_disk if not flying and on_disk == status["totals"]["stored"] else 0

        stored = wait_for(at_rest, what="what was accepted to be stored")
        assert 3 < stored < 20
        free = shutil.disk_usage(small_disk).free
        assert daemon.ask("close", "first").returncode == 0
        assert free > shutil.disk_usage(small_disk).free > 2 << 20
        assert daemon.status()["totals"]["stored"] == stored
        assert len(plain_rows(daemon.out / "first" / "series.h5")) == 3
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        daemon.wait_for_totals(stored=20, quarantined=0, held=0)
        assert not daemon.status()["paused"]
        said = daemon.log.read_text()
        assert "No space left" not in said
        assert said.count("nothing more is accepted") == said.count("intake goes on")
    finally:
        assert daemon.stop() == 0


@pytest.mark.parametrize("rest_bytes", [-2 << 20, 8 << 10], ids=["in the middle of its frames", "after them"])
def test_a_series_waits_to_be_closed_until_there_is_room(tmp_path: Path, small_disk: Path, rest_bytes: int) -> None:
    """On a disk that takes a part of its one file the hub lives, says so, and keeps the series open and readable; with room it closes."""
    daemon = Daemon(tmp_path, output__keep_free_mib=0)
    daemon.out = small_disk / "out"
    daemon.set += ["--set", f"output.root={daemon.out}"]
    daemon.start()
    try:
        for index in range(12):
            put(daemon.root / "np", index, 3.0 * index, size_px=256)
        daemon.wait_for_totals(stored=12)
        hub, free_bytes = daemon.pid("hub"), 12 * 256 * 256 * (2 + 4) + rest_bytes
        _leave(small_disk, free_bytes)
        closing = subprocess.Popen(daemon.command("close", "np", *daemon.set), env=ENVIRONMENT)
        status = wait_for(lambda: (found := daemon.status()).get("paused") and found, what="the daemon to say that the disk is full")
        assert "No space left" in status["paused"]
        assert daemon.pid("hub") == hub
        assert len(plain_rows(daemon.out / "np" / "series.h5")) == 12
        (small_disk / "filler").unlink()
        assert closing.wait(60) == 0
        assert daemon.pid("hub") == hub
        assert len(plain_rows(daemon.out / "np" / "series.h5")) == 12
        assert not list(daemon.out.rglob("*.tmp"))
    finally:
        assert daemon.stop() == 0


@pytest.mark.thorough
def test_a_slow_disk_makes_nobody_lose_a_lease_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each projection takes the disk longer than a worker may be silent: the hub hears what was said meanwhile before it judges."""
    monkeypatch.setitem(ENVIRONMENT, failpoints.VARIABLE, "projection.written=slow+")
    with running(tmp_path, queue__lease_s=1.0, denoise__workers=2) as daemon:
        for index in range(6):
            put(daemon.root / "np", index, float(index))
        status = daemon.wait_for_totals(stored=6, quarantined=0, held=0, limit_s=90)
        assert status["latency"]["stages"]["commit"]["p50_s"] > failpoints.SLOW_S
        rows = plain_rows(daemon.out / "np" / "series.h5")
        assert sorted(tilt for tilt, _, _ in rows.values()) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert "the worker was silent" not in daemon.log.read_text()


def _leave(folder: Path, free_bytes: int) -> None:
    """Fill a disk but for so much."""
    with (folder / "filler").open("wb", buffering=0) as file:
        while (more := shutil.disk_usage(folder).free - free_bytes) > 0:
            file.write(bytes(min(more, 1 << 20)))


def _refused(out: Path, *words: object) -> str:
    """What one command says that finds a full disk: one line, with the exit code of that, and nothing half-written in `out`."""
    there = set(out.rglob("*")) if out.exists() else set()
    command = [sys.executable, "-m", "aet_stream", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False)
    said = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert done.returncode == EXIT_DISK, done.stderr
    assert len(said) == 1, done.stderr
    assert "No space left" in said[0]
    assert "make room" in said[0]
    assert {path for path in out.rglob("*") if path.is_file()} <= there
    return said[0]


def test_commands_say_in_one_line_that_the_disk_is_full(tmp_path: Path, small_disk: Path) -> None:
    """Where only a part fits: the file is named, and neither a part of it nor a draft is left."""
    stack = tmp_path / "stack.npy"
    np.save(stack, np.random.default_rng(0).poisson(100, (8, 256, 256)).astype(np.uint16))
    volume = tmp_path / "reconstruction.h5"
    with h5py.File(volume, "w") as file:
        file["reconstruction/volume"] = np.ones((96, 96, 96), np.float32)
        file["reconstruction"].attrs.update(voxel_size_nm=0.1, edition=1)
    _leave(small_disk, 1 << 20)
    assert "stack.npy.h5" in _refused(small_disk, "denoise", stack, "--out", small_disk)
    simulate = ("simulate", "--size", 64, "--tilts", 60, "--cadence", 0)
    assert "particle.h5" in _refused(small_disk, *simulate, "--out", small_disk / "watched")
    for suffix in (".emd", ".tif"):
        target = small_disk / f"volume{suffix}"
        assert str(target) in _refused(small_disk, "export", volume, target)


def test_what_hdf5_writes_only_when_it_closes_is_refused_alike(small_disk: Path) -> None:
    """Many small datasets on a full disk, after which HDF5 itself crashes: named error, old file whole, no draft; and later all is well."""
    path = small_disk / "many.h5"

    def write(count: int) -> None:
        with durable.replacing(path) as draft, hdf5.writing(draft) as file:
            for number in range(count):
                file.create_dataset(f"{number}", data=np.arange(900.0)).attrs["number"] = number

    write(3)
    _leave(small_disk, 1 << 20)
    for _ in range(3):
        with pytest.raises(OutputFull, match=r"many\.h5: No space left"):
            write(1000)
    assert sorted(file.name for file in small_disk.iterdir()) == ["filler", "many.h5"]
    with h5py.File(path) as file:
        assert len(file) == 3
    (small_disk / "filler").unlink()
    write(1000)
    with h5py.File(path) as file:
        assert all(file[f"{number}"].attrs["number"] == number for number in range(1000))
