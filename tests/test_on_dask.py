"""`aet-stream batch --scheduler`: a real Dask scheduler, real workers, and whoever of them is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import h5py
import pytest

from aet_stream import failpoints
from aet_stream.series import Series
from tests.archives import archive, batch, done, here, plan, row, said, states, tall, volume_said
from tests.harness import ENVIRONMENT, Daemon, wait_for

pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="no distributed is installed")


class Cluster:
    """A scheduler, and workers of one thread each; they end with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "scheduler.json"
        self._started = 0
        self._scheduler: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """The scheduler."""
        self._scheduler.append(self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"))
        self.address = str(wait_for(self._said, limit_s=120, what="the scheduler's address"))

    def _said(self) -> str:
        """The scheduler's address, once its file is whole."""
        try:
            return str(json.loads(self._file.read_text())["address"])
        except (FileNotFoundError, json.JSONDecodeError):
            return ""

    def _start(self, role: str, *words: str, fault: str = "") -> subprocess.Popen[bytes]:
        self._started += 1
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--scheduler-file", str(self._file), *words]
        with (self._folder / f"{role}{self._started}.log").open("wb") as log:
            return subprocess.Popen(command, env={**ENVIRONMENT, failpoints.VARIABLE: fault}, stdout=log, stderr=log, cwd=self._folder)

    def add(self, fault: str = "") -> None:
        """One more worker, in which something is to go wrong (failpoints.py)."""
        words = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self._folder))
        self.workers.append(self._start("worker", *words, fault=fault))

    def replace(self) -> None:
        """SIGKILL to the worker that has been there longest; another comes, as a nanny or a job of Slurm would have it."""
        gone = self.workers.pop(0)
        gone.kill()
        gone.wait()
        self.add()

    def end(self) -> None:
        for process in (*self.workers, *self._scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.end()


def stamps(out: Path) -> dict[Path, int]:
    """Of all that a stage writes."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("series.h5", "done.json")}


@pytest.mark.timeout(400)
def test_workers_of_a_cluster_make_what_processes_of_this_computer_make(tmp_path: Path, cluster: Cluster) -> None:
    cluster.add()
    names, mine, there = archive(tmp_path / "in", 3), tmp_path / "mine", tmp_path / "there"
    here(plan(mine, model="laplace"), tmp_path / "in")
    ran = done(there, tmp_path / "in", "--scheduler", cluster.address, limit_s=300)
    assert states(there) == dict.fromkeys(names, "done")
    assert cluster.address in ran.stderr
    for name in names:
        assert said(there / name / "series.h5") == said(mine / name / "series.h5"), name


@pytest.mark.thorough
@pytest.mark.timeout(400)
def test_workers_share_a_large_volume_and_one_is_killed_over_its_slab(tmp_path: Path, cluster: Cluster) -> None:
    """Two take its slabs; what one had written when it was killed is gone on with by another. The file is that of one computer."""
    from distributed import Client, get_task_stream

    settings = tall(tmp_path / "in" / "np")
    here(plan(tmp_path / "mine", *settings, model="laplace"), tmp_path / "in")
    cluster.add()
    cluster.add(fault="slab.renamed@3=kill")
    words = [word for setting in settings for word in ("--set", setting)]
    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
        with get_task_stream(client) as stream:
            run = subprocess.Popen([*batch(tmp_path / "there", tmp_path / "in", "--scheduler", cluster.address), *words], env=ENVIRONMENT)
            assert cluster.workers[1].wait(200) == -signal.SIGKILL
            assert run.wait(200) == 0
    took = [(task["key"], task["worker"]) for task in stream.data if "-slices-" in task["key"]]
    assert len({key for key, _ in took}) == 6
    assert len({worker for _, worker in took}) == 2
    assert len(set(took)) == len(took)  # only what the dead one had answered, and nobody had heard, may be asked again: of the other
    assert volume_said(tmp_path / "there" / "np" / "reconstruction.h5") == volume_said(tmp_path / "mine" / "np" / "reconstruction.h5")
    assert not list((tmp_path / "there" / "np").glob(".*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_forty_series_whoever_is_killed(tmp_path: Path, cluster: Cluster) -> None:
    """Three workers and the client, in the middle of it: every series once, as the daemon makes it. Another model redoes all of them."""
    daemon = Daemon(tmp_path)
    names, out = archive(daemon.root, 40), tmp_path / "batch"
    assert daemon.run("--until-idle", "2", limit_s=1500) == 0, daemon.log.read_text()
    cluster.add()
    cluster.add()
    words = (daemon.root, "--scheduler", cluster.address)

    def have(count: int) -> bool:
        return len(list(out.glob(".batch/*/done.json"))) >= count

    client = subprocess.Popen(batch(out, *words), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    for count in (2, 8):
        wait_for(lambda count=count: have(count), limit_s=900, what=f"{count} series")
        cluster.replace()
    wait_for(lambda: have(14), limit_s=900, what="14 series")
    client.kill()
    client.wait()
    client = subprocess.Popen(batch(out, *words), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    wait_for(lambda: have(24), limit_s=900, what="24 series")
    cluster.replace()
    assert client.wait(1500) == 0
    for name in names:
        assert said(out / name / "series.h5") == said(daemon.out / name / "series.h5"), name
        with Series(out / name / "series.h5") as series:
            assert list(series.doubts()) == [], name
    assert all(row(out, name)["projections"] == 5 for name in names)
    before = stamps(out)
    done(out, *words, limit_s=900)
    assert set(states(out).values()) == {"up to date"}
    assert stamps(out) == before
    done(out, *words, model="polynomial", limit_s=1500)
    assert set(states(out).values()) == {"done"}
    for name in names:
        with h5py.File(out / name / "series.h5", "r") as file:
            assert set(file["/aet/projection/edition"][()]) == {2}, name
