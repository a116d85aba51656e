"""`aet-stream batch`: archives through the daemon's parts. What comes of a series is what the daemon makes of it, whoever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from aet_stream.batch.jobs import Found, find
from aet_stream.batch.processes import Processes
from aet_stream.batch.run import Run, drive
from aet_stream.batch.stages import Outcome
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.hub import writer_lock
from aet_stream.series import Series
from aet_stream.service import EXIT_STRICT
from tests.archives import (
    READ,
    Here,
    add,
    alive,
    archive,
    batch,
    children,
    done,
    here,
    jobs,
    plan,
    row,
    said,
    simulated,
    states,
    tall,
    volume_said,
)
from tests.harness import ENVIRONMENT, Daemon, wait_for


def by_state(run: Run) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"did": [], "failed": [], "left": []}
    for series in run.all:
        found["failed" if series.error else "did" if series.did else "left"].append(series.job.name)
    return found


def doubts(path: Path) -> list[str]:
    with Series(path) as series:
        return list(series.doubts())


def column(series: Path, name: str) -> list:
    with h5py.File(series, "r") as file:
        return file[f"/aet/projection/{name}"][()].tolist()


@pytest.mark.thorough
def test_killed_again_and_again_every_series_is_what_the_daemon_makes_of_it_exactly_once(tmp_path: Path) -> None:
    """A process in the middle of a series, then the client; nobody is left behind, and the same command goes on."""
    daemon = Daemon(tmp_path)
    names, out = archive(daemon.root, 5, tilts=6), tmp_path / "batch"
    assert daemon.run("--until-idle", "1") == 0, daemon.log.read_text()
    client = subprocess.Popen(batch(out, daemon.root, "--workers", "2"), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    wait_for(lambda: any(out.glob("np*/projections/*.h5")), what="a first projection")
    first = children(client.pid)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    wait_for(lambda: len(set(children(client.pid)) - set(first)) == 1, what="another in its place")
    left = children(client.pid)
    client.kill()
    client.wait()
    wait_for(lambda: not any(map(alive, left)), limit_s=5, what="the client's processes to end with it")
    assert "5 series" in done(out, daemon.root, "--workers", "2").stdout
    for name in names:
        assert said(out / name / "series.h5") == said(daemon.out / name / "series.h5"), name
        assert doubts(out / name / "series.h5") == [], name
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("series.h5", "done.json")}
    done(out, daemon.root)
    assert set(states(out).values()) == {"up to date"}
    assert before == {path: path.stat().st_mtime_ns for path in before}
    page = (out / "batch.html").read_text()
    assert all(f'href="{name}/series.h5"' in page for name in names)


@pytest.mark.thorough
def test_another_model_redoes_every_series_and_one_more_file_only_its_own(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    names = archive(root, 4, tilts=3)
    assert by_state(here(plan(out), root))["did"] == names
    assert by_state(here(plan(out), root))["left"] == names
    add(root / "np00", 7, 11.0)
    assert by_state(here(plan(out), root))["did"] == ["np00"]
    run = here(plan(out, model="polynomial"), root)
    assert by_state(run)["did"] == names
    denoiser = Denoiser(model="polynomial")
    for name in names:
        with h5py.File(out / name / "series.h5", "r") as file:
            assert set(file["/aet/projection/edition"][()]) == {2}
            for raw, clean in zip(file["/aet/raw"], file["/exchange/data"], strict=True):
                assert np.array_equal(denoiser.subtract(raw).clean, clean)
        assert doubts(out / name / "series.h5") == []
    assert by_state(here(plan(out, model="polynomial"), root))["left"] == names
    assert by_state(here(plan(out), root))["did"] == names
    assert all(set(column(out / name / "series.h5", "edition")) == {1} for name in names), "the first is there still, and shown again"


def test_what_was_read_with_other_settings_is_read_anew_and_the_one_before_is_kept(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    archive(root, 1, tilts=3)
    here(plan(out), root)
    before = said(out / "np00" / "series.h5")
    run = here(plan(out, "orientation.flip_x=true"), root)
    assert run.all[0].did == ["background"]
    remark = run.all[0].figures.remarks[0]
    kept = Path(remark.rpartition(" is ")[2])
    after = said(out / "np00" / "series.h5")
    assert said(kept / "np00" / "series.h5") == before
    for source, found in after.items():
        turned = np.frombuffer(before[source]["raw"], "<u2").reshape(64, 64)[:, ::-1]
        assert turned.tobytes() == found["raw"]


def test_a_closed_series_of_ours_is_taken_as_it_is_and_given_another_background(tmp_path: Path) -> None:
    """Copied into another archive, or where it lies; its own background stays edition 1."""
    root, first, second = tmp_path / "in", tmp_path / "first", tmp_path / "second"
    archive(root, 2, tilts=3)
    here(plan(first), root)
    source = first / "np00" / "series.h5"
    before = said(source)
    shutil.rmtree(first / "np00" / "projections")
    here(plan(second), first / "np00")
    assert said(second / "np00" / "series.h5") == before
    assert by_state(here(plan(second), first / "np00"))["left"] == ["np00"]
    here(plan(second, model="polynomial"), first / "np00")
    assert set(column(second / "np00" / "series.h5", "edition")) == {2}
    assert said(source) == before
    assert by_state(here(plan(first, model="polynomial"), first))["did"] == ["np00", "np01"]
    assert said(source).keys() == before.keys()
    assert set(column(source, "model")) == {b"polynomial"}
    assert doubts(source) == []
    assert by_state(here(plan(first, model="polynomial"), first))["left"] == ["np00", "np01"]


@pytest.mark.thorough
def test_films_and_volume_follow_the_background_and_each_is_redone_with_what_it_rests_on(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    simulated(root / "np", 9)
    volume = ("reconstruct.on_close=true", "reconstruct.iterations=3", "reconstruct.align=[]", "reconstruct.quality=false")
    films = ("film.enabled=true", "film.tilts_each_side=4", *volume)

    def did(*settings: str) -> list[str]:
        run = here(plan(out, *settings, model="laplace"), root)
        assert run.all[0].error == ""
        return list(run.all[0].did)

    def volume_of() -> int:
        with h5py.File(out / "np" / "reconstruction.h5", "r") as file:
            assert np.isfinite(file["/reconstruction/volume"]).all()
            return int(file["/reconstruction"].attrs["edition"])

    series = out / "np" / "series.h5"
    assert did(*films) == ["background", "film", "volume"]
    assert set(column(series, "edition")) == {volume_of()} == {2}
    assert doubts(series) == []
    assert did(*films) == []
    assert did(*films, "reconstruct.iterations=4") == ["volume"]
    assert did(*volume) == ["background", "volume"], "without films: what they are is there still, and not shown"
    assert set(column(series, "edition")) == {volume_of()} == {1}
    assert did(*volume, "atoms.enabled=true") == ["atoms"]
    assert "directions" in json.loads((out / "np" / "atoms.json").read_text())["text"], "as the daemon says it"
    assert did(*volume, "atoms.enabled=true") == []


def test_an_error_costs_its_own_series_and_says_what_would_help(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    archive(root, 1, tilts=3)
    for index in range(3):
        add(root / "nowhere", index, None)
        add(root / "partly", 10 + index, 10.0 * index)
    half = add(root / "partly", 20, 40.0)
    half.write_bytes(half.read_bytes()[:3000])
    ran = done(out, root, "--workers", "1", code=1)
    assert states(out) == {"np00": "done", "nowhere": "failed", "partly": "done"}
    assert "3 held" in row(out, "nowhere")["remarks"][0]
    assert "angle" in row(out, "nowhere")["remarks"][0]
    assert "more_020" in row(out, "partly")["remarks"][0]
    assert (row(out, "partly")["projections"], row(out, "partly")["quarantined"]) == (3, 1)
    assert "nowhere" in ran.stderr
    shutil.rmtree(root / "nowhere")
    half.write_bytes(add(root / "elsewhere", 21, 40.0).read_bytes())
    shutil.rmtree(root / "elsewhere")
    assert "4 projections" in done(out, root, "--workers", "1", "--strict").stderr


class Apart(Here):
    """Workers that do not reach what the one before has prepared."""

    def finished(self, timeout_s: float) -> list[Outcome]:
        outcomes = super().finished(timeout_s)
        for path in outcomes[0].shares and (self.out / "np").glob(".*.slabs/prepared.hdf5"):
            path.unlink()
        return outcomes

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out


def test_an_error_in_a_share_of_a_volume_is_that_of_its_series(tmp_path: Path) -> None:
    """The first that fails ends it, with its remedy; the same again goes on and makes the volume, and nothing is left over."""
    root, out = tmp_path / "in", tmp_path / "out"
    archive(root, 1)
    large = (*tall(root / "np"), "reconstruct.align=[]", "reconstruct.quality=false")
    made = msgspec.structs.replace(plan(out, *large), shares_volumes=True)
    run = Run(made, jobs(made, root))
    drive(run, Apart(out))
    assert by_state(run) == {"failed": ["np"], "did": ["np00"], "left": []}
    assert "volume: slices 0 to 63: " in run.series["np"].error
    assert "see that all workers reach the same folders" in run.series["np"].error
    assert run.series["np"].did == ["background"]
    assert here(made, root).series["np"].did == ["volume"]
    assert not list((out / "np").glob(".*"))
    here(plan(tmp_path / "alone", *large), root / "np")
    assert volume_said(out / "np" / "reconstruction.h5") == volume_said(tmp_path / "alone" / "np" / "reconstruction.h5")


def test_a_survey_that_lies_among_them_is_set_aside_and_said(tmp_path: Path) -> None:
    """It came first, of another frame size: the series is whole without it, and `--strict` fails."""
    out = tmp_path / "out"
    add(tmp_path / "in" / "s", 0, 0.0, size_px=32)
    for index in range(1, 4):
        add(tmp_path / "in" / "s", index, 3.0 * index)
    assert "1 odd" in done(out, tmp_path / "in", "--workers", "1", "--strict", code=EXIT_STRICT).stderr
    assert (row(out, "s")["projections"], row(out, "s")["odd"], row(out, "s")["held"]) == (3, 1, 0)
    assert Series(out / "s" / "series.h5").shape == (64, 64)


def test_what_a_worker_failed_over_is_tried_again_when_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    archive(root, 1, tilts=3)
    subtract, calls = Denoiser.subtract, []

    def failing(self: Denoiser, pixels: np.ndarray, **words: object) -> object:
        calls.append(pixels)
        if np.array_equal(pixels, calls[0]):
            raise MemoryError("of the device")
        return subtract(self, pixels)

    monkeypatch.setattr(Denoiser, "subtract", failing)
    run = here(plan(out), root)
    assert (run.all[0].figures.projections, run.all[0].figures.quarantined) == (2, 1)
    monkeypatch.setattr(Denoiser, "subtract", subtract)
    assert by_state(here(plan(out), root))["left"] == ["np00"]
    run = here(plan(out, again=True), root)
    assert (run.all[0].figures.projections, run.all[0].figures.quarantined) == (3, 0)


def test_ctrl_c_leaves_nobody_behind_and_says_what_is_done(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    archive(root, 6, tilts=3)
    client = subprocess.Popen(
        batch(out, root, "--workers", "1"),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have its background jobs ignore it
    )
    wait_for(lambda: any(out.glob(".batch/*/done.json")), what="one to be done")
    left = children(client.pid)
    os.killpg(client.pid, signal.SIGINT)
    table, errors = client.communicate(timeout=20)
    assert client.returncode == 130
    assert not any(map(alive, left))
    assert "not finished" in table
    assert "Traceback" not in errors
    writer_lock.take(out, wait_s=0).close()


@pytest.mark.thorough
def test_a_process_that_dies_over_one_series_again_and_again_costs_that_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    archive(root, 3, tilts=3)
    made = plan(out)
    monkeypatch.setenv("AET_STREAM_FAILPOINT", "close.checked=kill")
    run = Run(made, jobs(made, root)[:1])
    drive(run, Processes(1))
    assert "3 processes died over it" in run.all[0].error
    monkeypatch.delenv("AET_STREAM_FAILPOINT")
    run = Run(made, jobs(made, root))
    drive(run, Processes(1))
    assert by_state(run)["did"] == ["np00", "np01", "np02"]
    assert len(said(out / "np00" / "series.h5")) == 3


def test_two_series_of_one_name_and_a_folder_that_is_somebody_elses_are_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        archive(tmp_path / place, 2, tilts=3)
    shutil.rmtree(tmp_path / "b" / "np01")
    made = plan(tmp_path / "out")
    run = here(made, tmp_path / "a", tmp_path / "b")
    assert by_state(run)["did"] == ["np01"]
    assert all("all be called np00" in series.error for series in run.all if series.job.name == "np00")
    other = plan(tmp_path / "other")
    here(other, tmp_path / "a")
    shutil.rmtree(tmp_path / "other" / ".batch")
    assert "not by `batch` from these files" in here(other, tmp_path / "a").all[0].error
    with writer_lock.take(tmp_path / "out"):
        ran = done(tmp_path / "out", tmp_path / "a", code=4)
        assert "another aet-stream writes to" in ran.stderr


def test_a_daemon_that_is_started_over_a_finished_batch_knows_all_of_it(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, denoise__model="constant")
    names = archive(tmp_path / "archive", 2, tilts=3)
    here(plan(daemon.out), tmp_path / "archive")
    assert daemon.run("--until-idle", "1", "--strict") == 0, daemon.log.read_text()
    listed = daemon.ask("status", "--json")
    series = {each["name"]: each["state"] for each in msgspec.json.decode(listed.stdout)["series"]}
    assert series == dict.fromkeys(names, "closed")


def test_what_there_is_in_folders_and_files(tmp_path: Path) -> None:
    root = tmp_path / "in"
    archive(root, 4, tilts=3)
    add(root, 1, 5.0)
    (root / "np02" / "raw.eer").write_bytes(bytes(5000))
    config = plan(tmp_path / "out").config
    found: Found = find([root, root / "np01" / "de.h5", root / "np03" / "tomviz.emd"], config, READ)
    assert [job.name for job in found.jobs] == ["de", "in", "np00", "np01", "np02", "np03", "tomviz"]
    assert found.remarks == [f"{root}: np02: 1 file *.eer: no reader"]
    stamps = {job.name: job.stamp for job in found.jobs}
    add(root / "np02", 1, 5.0)
    assert {job.name for job in find([root], config, READ).jobs if stamps[job.name] != job.stamp} == {"np02"}
