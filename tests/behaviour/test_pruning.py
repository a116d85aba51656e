"""A whole daemon prunes what it has closed; every command for a series works on what is left, and a late image finds its place."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream import layout
from aet_stream.monitor.series_cache import SeriesCache
from tests.harness import Daemon, known_image, put, running, wait_for


def rows(series: Path) -> dict[str, np.ndarray]:
    with h5py.File(series, "r") as file:
        names = (path.decode().rsplit("/")[-1] for path in file["/aet/projection/path"][()])
        return dict(zip(names, file["/aet/raw"][()], strict=True))


def done(daemon: Daemon, *words: str) -> str:
    answer = daemon.ask(*words)
    assert answer.returncode == 0, f"{words}: {answer.stdout}{answer.stderr}"
    return answer.stdout


def is_pruned(daemon: Daemon) -> bool:
    return any(series["name"] == "np" and series["pruned_at"] for series in daemon.status().get("series", ()))


@pytest.mark.thorough
def test_everything_works_on_a_pruned_series(tmp_path: Path) -> None:
    """verify, editions, reprocess, use, exclude, check, export, reconstruct, report, the page's pixels, batch; and a late image."""
    with running(tmp_path, denoise__model="constant", output__prune=True, output__prune_after_h=0.0) as daemon:
        for index in range(4):
            put(daemon.root / "np", index, 10.0 * index, size_px=64)
        daemon.wait_for_totals(stored=4)
        refused = daemon.ask("prune", "np", "--now")
        assert refused.returncode != 0
        assert "it is open" in refused.stderr
        done(daemon, "close", "np")
        wait_for(lambda: is_pruned(daemon))
        folder = daemon.out / "np"
        series, before = folder / "series.h5", rows(folder / "series.h5")
        assert layout.projection_files(folder) == {}
        assert "has no projection files any more" in done(daemon, "prune", "np")
        assert "closed, pruned" in done(daemon, "status")
        assert "* 1 " in " ".join(done(daemon, "editions", "np").split()) + " "
        done(daemon, "reprocess", "np", "--model", "polynomial", "--use")
        done(daemon, "use", "np", "1")
        done(daemon, "use", "np", "2")
        done(daemon, "exclude", "np:1", "--reason", "dark")
        done(daemon, "restore", "np:1")
        done(daemon, "verify", str(series))
        done(daemon, "check", str(next((daemon.root / "np").iterdir())))
        done(daemon, "export", str(series), str(tmp_path / "stack.mrc"))
        done(daemon, "reconstruct", str(series), "--iterations", "2", "--out", str(tmp_path / "volume.h5"))
        done(daemon, "report", str(series), "--out", str(tmp_path / "report.html"))
        cache = SeriesCache(daemon.out)
        for row in cache.table("np").rows:
            first = cache.in_edition("np", row, 1)
            assert (row["edition"], first["edition"]) == (2, 1)
            assert np.array_equal(cache.pixels("np", first)["raw"], cache.pixels("np", row)["raw"])
            assert cache.difference("np", first, row)["rms"] > 0
        done(daemon, "batch", str(folder), "--set", f"output.root={tmp_path / 'archive'}", "--set", "denoise.model=constant", "--set",
             "film.enabled=false", "--set", "reconstruct.on_close=false", "--workers", "1")  # fmt: skip
        assert rows(tmp_path / "archive" / "np" / "series.h5").keys() == before.keys()
        put(daemon.root / "np", 4, 40.0, size_px=64)
        daemon.wait_for_totals(stored=5)
        wait_for(lambda: len(rows(series)) == 5)
        assert len(layout.projection_files(folder)) == 5
        done(daemon, "verify", str(series))
        done(daemon, "close", "np")
        wait_for(lambda: is_pruned(daemon))
        assert layout.projection_files(folder) == {}
        done(daemon, "verify", str(series))
        after = rows(series)
        assert all(np.array_equal(after[name], raw) for name, raw in before.items())
        assert any(np.array_equal(raw, known_image(4)) for raw in after.values())
    assert daemon.run("--until-idle", "1", "--strict") == 0
