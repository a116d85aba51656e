"""The films of a series under SIGKILL of their child, of the trigger and of the hub: edition 1 stays until all of the other is there."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.edition import Edition
from aet_stream.simulate.physical import physical_series
from tests.harness import Daemon, put, running, wait_for
from tests.test_report import children

pytestmark = pytest.mark.timeout(900)
TILTS = np.array([-64.0, -33, 2, 35, 68])
STEPS = ("scan", "register", "join", "draw")
SETTINGS = {"denoise__model": "laplace", "film__enabled": True, "film__while_growing": False, "film__tilts_each_side": 2}
SETTINGS |= {"film__memory_mib": 256, "reconstruct__on_close": False, "trigger__again_s": 0.2}


def pixels_shown(series: Path) -> tuple[int, list[int], list[bytes]]:
    """(edition, that of each row, clean) as any reader has them."""
    with h5py.File(series, "r") as file:
        return (
            int(file["/aet/series"].attrs["edition"]),
            file["/aet/projection/edition"][()].tolist(),
            [p.tobytes() for p in file["/exchange/data"][()]],
        )


def steps_done(daemon: Daemon) -> Counter[str]:
    """How often the child has said each."""
    return Counter(line.rsplit("INFO    ", 1)[-1] for line in daemon.log.read_text().splitlines() if " film " in line)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "places",
    [
        [("child", "register"), ("trigger", "join"), ("hub", "draw")],
        pytest.param(
            [*(("trigger", step) for step in STEPS), ("child", "draw"), *(("hub", step) for step in STEPS)], marks=pytest.mark.slow
        ),
    ],
)
def test_kills_leave_edition_1_until_the_other_is_whole(tmp_path: Path, places: list[tuple[str, str]]) -> None:
    """Wherever in its work: the films are made again, and once."""
    made = physical_series("halo", 101, TILTS, size_px=64)
    with running(tmp_path, **SETTINGS) as daemon:
        for index, (tilt, pixels) in enumerate(zip(TILTS, made.raw, strict=True)):
            put(daemon.root / "np", index, float(tilt), pixels=pixels)
        daemon.wait_for_totals(stored=len(TILTS))
        series = daemon.out / "np" / "series.h5"
        first = pixels_shown(series)
        seen = steps_done(daemon)
        assert daemon.ask("close", "np").returncode == 0
        for who, step in places:
            wait_for(lambda step=step, seen=seen: steps_done(daemon)[step] > seen[step], limit_s=300, what=f"{step}, to kill the {who}")
            seen = steps_done(daemon)
            pid = daemon.pid("trigger" if who == "child" else who)
            victim = wait_for(lambda pid=pid: children(pid, "film"), what="the child")[0] if who == "child" else pid
            os.kill(victim, signal.SIGKILL)
            number, of_rows, clean = pixels_shown(series)
            assert of_rows == [number] * len(TILTS)
            assert number == 2 or clean == first[2]
            if who != "child":
                daemon.pid(who, other_than=pid)
        wait_for(lambda: pixels_shown(series)[0] == 2, limit_s=300, what="the edition of the films")
        wait_for(lambda: daemon.status().get("events", {}).get("pending") == 0, limit_s=60)
        assert pixels_shown(series)[1] == [2] * len(TILTS)
        assert sorted(path.name for path in (series.parent / "editions").iterdir()) == ["01.h5", "02.h5"]
        with Edition(series.parent / "editions" / "02.h5") as edition:
            assert edition.doubts() == []
            assert len(edition.rows) == len(TILTS)
        assert daemon.ask("verify", str(series)).returncode == 0
        assert daemon.ask("use", "np", "1").returncode == 0
        assert pixels_shown(series) == first
