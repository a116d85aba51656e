"""`reprocess`, `editions`, `use`: a whole daemon, a child that is killed, and plain readers that look on all the time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from aet_stream.edition import Edition
from tests.harness import ENVIRONMENT, Daemon, put, wait_for

LOOKER = """
import glob, json, select, sys, zlib, h5py, numpy as np
path, folder, first = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
polls = 0; seen = set(); words = []; files = {}
def crcs(name):
    if name not in files:
        with h5py.File(name, "r") as f:
            files[name] = dict(zip(f["projection/number"][()].tolist(), (zlib.crc32(p.tobytes()) for p in f["clean"][()])))
    return files[name]
print("looking", flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    polls += 1
    try:
        with h5py.File(path, "r") as f:
            clean, raw = f["/exchange/data"], f["/aet/raw"]
            editions, numbers, crc = (f["/aet/projection/" + n][()] for n in ("edition", "number", "clean_crc32"))
            chosen = int(f["/aet/series"].attrs["edition"])
            row = polls % len(numbers)
            pixels = clean[row]
            now = zlib.crc32(pixels.tobytes())
            if now != crc[row] or not np.isfinite(pixels).all(): words.append(f"row {row} is not what it says")
            number, edition = int(numbers[row]), int(editions[row])
            truth = first[str(number)] if edition == 1 else crcs(folder + f"/editions/{edition:02d}.h5")[number]
            if now != truth: words.append(f"row {row} is not of edition {edition}")
            if set(editions.tolist()) - {1, chosen}: words.append(f"editions {editions} beside the chosen {chosen}")
            seen.add(chosen)
    except Exception as error:
        words.append(f"{type(error).__name__}: {error}")
print(json.dumps({"polls": polls, "seen": sorted(seen), "words": words[:20]}), flush=True)
"""


def plain(series: Path, column: str) -> list[object]:
    with h5py.File(series, "r") as file:
        values = file[f"/aet/projection/{column}"][()].tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def reprocessed(daemon: Daemon, *words: str) -> subprocess.Popen[str]:
    command = daemon.command("reprocess", "np", "--model", "polynomial", *words, *daemon.set)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "kills"), [(6, 2), pytest.param(60, 10, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_reprocessing_that_is_killed_again_and_again_leaves_the_series_as_it_was(tmp_path: Path, count: int, kills: int) -> None:
    """Killed at random moments, then let be; chosen, chosen back; readers see one edition or the other, never a mixture unsaid."""
    daemon = Daemon(tmp_path, denoise__model="constant").start()
    series, rng = daemon.out / "np" / "series.h5", random.Random(count)
    for index in range(count):
        put(daemon.root / "np", index, 3.0 * (index % 50), size_px=64)
    daemon.wait_for_totals(stored=count, limit_s=300)
    wait_for(lambda: len(plain(series, "number")) == count)
    first = dict(zip(plain(series, "number"), plain(series, "clean_crc32"), strict=True))
    words = [sys.executable, "-c", LOOKER, str(series), str(series.parent), json.dumps(first)]
    looker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert looker.stdin is not None
    assert looker.stdout is not None
    looker.stdout.readline()
    parts, died = series.parent / "editions", 0

    def rows_made() -> int:
        return len(list(parts.glob(".parts_*/*.h5")))

    for kill in range(kills):
        child = reprocessed(daemon)
        if kill % 2:  # in the middle of the work, as far as it has come
            before = rows_made()
            wait_for(lambda child=child, before=before: rows_made() > before or child.poll() is not None, limit_s=120)
        time.sleep(rng.uniform(0, 0.01 * count if kill % 2 else 0.1 * count))  # a random moment is the point
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
        died += child.returncode == -signal.SIGKILL
        assert set(plain(series, "edition")) == {1}
    assert died >= 1
    done = [reprocessed(daemon).communicate(timeout=600) for _ in range(2)]
    assert [out.split(":")[0] for out, _ in done] == ["edition 2 of np"] * 2, done
    assert [path.name for path in parts.iterdir()] == ["02.h5"]
    with Edition(parts / "02.h5") as edition:
        assert edition.doubts() == []
        assert len(edition.rows) == count
    before = (parts / "02.h5").read_bytes()
    for closed in (False, True):
        for number in (2, 1, 2):
            assert daemon.ask("use", "np", str(number)).returncode == 0
            assert plain(series, "edition") == [number] * count
        if not closed:
            assert daemon.ask("close", "np").returncode == 0
    seen = json.loads(looker.communicate(timeout=60)[0].splitlines()[-1])
    assert (parts / "02.h5").read_bytes() == before
    assert seen["words"] == []
    assert seen["seen"] == [1, 2]
    listed = daemon.ask("editions", "np").stdout.splitlines()
    assert [line[:4] for line in listed] == ["   1", "*  2"]
    assert daemon.ask("verify", str(series)).returncode == 0
    assert daemon.stop() == 0


def test_what_was_said_and_made_outlives_restarts(tmp_path: Path) -> None:
    """exclude, restore, discard: done when readers see it, in an open series and a closed one; `--strict` does not mind what was discarded.
    An edition that is made without a daemon changes nothing, says so, and is taken over by the next start.
    """
    daemon = Daemon(tmp_path, denoise__model="constant").start()
    made, said = daemon.out / "np" / "series.h5", daemon.out / "said" / "series.h5"
    for index in range(3):
        put(daemon.root / "np", index, 3.0 * index)
    for index in range(4):
        put(daemon.root / "said", 10 + index, 3.0 * index)
    put(daemon.root / "said", 19, None)
    held = daemon.wait_for_totals(stored=7, held=1)["held"][0]["id"]
    assert daemon.ask("close", "np").returncode == 0
    exclude_and_discard(daemon, said, held)
    assert daemon.stop() == 0

    before = made.read_bytes()
    child = reprocessed(daemon)
    assert "start one with" in child.communicate(timeout=120)[1]
    assert child.returncode == 1
    assert made.read_bytes() == before
    assert "waits for the daemon" in daemon.ask("editions", "np").stdout

    assert daemon.run("--until-idle", "1", "--strict") == 0
    assert (daemon.out / "np" / "editions" / "02.h5").exists()
    daemon.start()
    daemon.wait_for_totals(stored=7, held=0)
    assert daemon.ask("use", "np", "2").returncode == 0
    assert plain(made, "model") == ["polynomial"] * 3
    assert daemon.ask("use", "np", "3").stderr.startswith("aet-stream use: np has no edition 3")
    assert daemon.ask("use", "nothing", "2").returncode == 1
    assert daemon.ask("restore", "said:1").stdout == "1 projection restored\n"
    assert plain(said, "excluded") == [0, 0, 1, 0]
    assert daemon.ask("restore", str(held)).stdout == "1 will be read again\n"
    daemon.wait_for_totals(stored=7, held=1)
    assert daemon.ask("verify", str(said)).returncode == 0
    assert daemon.stop() == 0
    trial = ("reconstruct", str(said), "--exclude", "0", "--iterations", "1", "--align", "", "--no-quality")
    assert "--out" in daemon.ask(*trial).stderr
    assert "2 of 4 projections" in daemon.ask(*trial, "--out", str(tmp_path / "trial.h5")).stderr


def exclude_and_discard(daemon: Daemon, series: Path, held: int) -> None:
    """Two projections of the series `said`, and the one that is held; with what cannot be asked."""
    assert daemon.ask("exclude", "said:1", "said:7", "--reason", "blurred").stderr.startswith(
        "aet-stream exclude: said has no projection 7"
    )
    assert daemon.ask("exclude", str(held), "--reason", "blurred").stderr.startswith(f"aet-stream exclude: visit {held} is held")
    done = daemon.ask("exclude", "said:1", "said:2", "--reason", "out  of focus")
    assert done.stdout == "2 projections excluded\n", done.stderr
    assert plain(series, "excluded_reason") == ["", "out of focus", "out of focus", ""]
    assert daemon.ask("discard", str(held), "--reason", "an overview").returncode == 0
