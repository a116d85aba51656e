"""Killed, or refused by the disk, at every named place of the commit path: the next start makes good whatever happened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aet_stream import failpoints
from tests.durability import matrix, rig
from tests.durability.oracle import judge
from tests.harness import ENVIRONMENT, Daemon, put

pytestmark = pytest.mark.thorough


def check(cell: matrix.Cell, folder: Path) -> matrix.Outcome:
    outcome = matrix.run(cell, folder / "case")
    assert outcome.words == [], f"{cell}\n{(folder / 'case' / 'log.txt').read_text()[-3000:]}"
    shutil.rmtree(folder / "case")
    return outcome


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", sorted({name.split(".")[0] for name in failpoints.NAMES if name not in matrix.ELSEWHERE}))
def test_killed_at_every_place_nothing_is_lost_or_doubled(tmp_path: Path, group: str) -> None:
    """SIGKILL at each place of a group, and a torn file where one is being written, one after the other in the life of one series; each
    place is really reached. Every edition is what it must be, and the last is shown."""
    for fault, code, wrong in matrix.killed_in_turn(group, tmp_path):
        assert wrong == [], fault
        assert code == (0 if fault == "the end" else -9), f"{fault} was never reached"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "ordinal"), [("projection.written", 1), ("master.written", 1), ("decided.draft", 2)])
def test_a_full_disk_is_waited_for(tmp_path: Path, name: str, ordinal: int) -> None:
    """Nothing is lost where a file does not fit, and nobody has to be started anew: the second decision is that an edition is shown."""
    assert check(matrix.Cell(name, ordinal, "ENOSPC"), tmp_path).reached


@pytest.mark.parametrize("name", ["close.written", "fold.written", "first.written", "unpack.written"])
def test_a_spoiled_file_is_not_put_in_place(tmp_path: Path, name: str) -> None:
    """The disk keeps other bytes than it was given: the file is read back before it replaces anything, and written again."""
    assert check(matrix.Cell(name, 1, "spoil"), tmp_path).reached


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cell", matrix.cells(), ids=str)
def test_every_fault_at_every_place(tmp_path: Path, cell: matrix.Cell) -> None:
    """The whole matrix: kill, torn, an exception, ENOSPC, EIO, EACCES; first, second and fifth time; twice in a row."""
    check(cell, tmp_path)


def test_the_oracle_sees_every_kind_of_wrong(tmp_path: Path) -> None:
    """It would be easy to find nothing: each wrong is made once, and named."""
    import h5py

    exposures = rig.expose(tmp_path / "in")
    assert rig.attempt(rig.Case(tmp_path, editions=True)) == 0
    assert judge(tmp_path / "in", tmp_path / "out", exposures, removed=rig.REMOVED).words == []
    sound = tmp_path / "sound"
    shutil.copytree(tmp_path / "out", sound, ignore=shutil.ignore_patterns("run"))  # its sockets

    def wrongs(spoil: object) -> set[str]:
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(sound, tmp_path / "out")
        spoil(tmp_path / "out")  # type: ignore[operator]
        found = judge(tmp_path / "in", tmp_path / "out", exposures, removed=rig.REMOVED, shown="minus eleven", excluded={rig.EXCLUDED})
        return {word.split(":")[0] for word in found.words}

    def edit(work: object) -> object:
        def spoil(out: Path) -> None:
            with h5py.File(out / "s" / "series.h5", "r+") as file:
                work(file)  # type: ignore[operator]

        return spoil

    def put_twice(file: h5py.File) -> None:
        file["/aet/projection/path"][1] = file["/aet/projection/path"][0]
        for name in ("/aet/raw", "/exchange/data", "/exchange/theta"):
            file[name][1] = file[name][0]

    def flip(file: h5py.File) -> None:
        file["/aet/raw"][2, 3, 3] += 1

    def tilt(file: h5py.File) -> None:
        file["/exchange/theta"][1] += 1.0  # whichever came second

    def dirty(file: h5py.File) -> None:
        file["/exchange/data"][1, 4, 4] = float("nan")

    def other(file: h5py.File) -> None:
        file["/aet/projection/edition"][2] = 1

    def of_another_model(file: h5py.File) -> None:
        file["/aet/projection/model"][1] = b"minus nine"
        file["/exchange/data"][1] += 2

    def counts(file: h5py.File) -> None:
        file["/aet/projection/excluded"][...] = 0

    def spoil_edition(name: str) -> object:
        def spoil(out: Path) -> None:
            with h5py.File(out / "s" / name, "r+") as file:
                file["clean"][..., 3, 3] += 1

        return spoil

    def survey_with_other_pixels(file: h5py.File) -> None:
        file["/aet/apart/000000/raw"][3, 3] += 1

    def no_survey(file: h5py.File) -> None:
        del file["/aet/apart/000000"]

    assert wrongs(edit(survey_with_other_pixels)) == {"changed"}
    assert wrongs(edit(no_survey)) == {"not as decided"}
    assert wrongs(lambda out: (out / "s" / "decisions.json").unlink()) == {"not as decided"}
    assert "doubled" in wrongs(edit(put_twice))
    assert "changed" in wrongs(edit(flip))
    assert wrongs(edit(tilt)) == {"wrong tilt"}
    assert wrongs(edit(dirty)) == {"not clean", "another edition"}
    assert wrongs(edit(other)) == {"another edition"}
    assert wrongs(edit(counts)) == {"not as decided"}
    assert wrongs(edit(of_another_model)) == {"another edition"}
    assert wrongs(spoil_edition("editions/01.h5")) == {"edition changed"}
    assert wrongs(spoil_edition("editions/02.h5")) == {"edition changed"}
    assert wrongs(spoil_edition("editions/03.h5")) == {"edition changed", "another edition"}
    assert wrongs(spoil_edition("projections/000002.h5")) == {"edition changed"}
    assert wrongs(lambda out: (out / "s" / "editions" / "03.h5").unlink()) == {"another edition"}
    assert wrongs(lambda out: (out / "s" / "series.h5").unlink()) == {"lost"}
    assert wrongs(lambda out: (out / "s" / "series.h5").write_bytes(b"x")) == {"unreadable", "lost"}
    assert wrongs(lambda out: next((out / "quarantine").glob("*.json")).unlink()) == {"not quarantined"}
    good = exposures[0].path
    assert wrongs(lambda out: (out / "quarantine" / "x.json").write_text(f'{{"path": "{good}"}}')) == {"wrongly quarantined"}
    assert wrongs(lambda out: (out / "s" / ".series.h5.1.tmp").write_bytes(b"")) == {"left over"}
    (tmp_path / "in" / good).write_bytes(b"")
    assert wrongs(lambda out: None) == {"source changed"}


def test_the_oracle_sees_what_pruning_could_lose(tmp_path: Path) -> None:
    """Edition 1 that is nowhere any more, or is another; a file that was to go; and nothing, where nothing is wrong."""
    import h5py

    life = matrix.Life(tmp_path, "prune")
    exposures = life.expose()
    assert life.attempt() == 0
    assert life.words(exposures) == []
    first, projections = (tmp_path / "out" / "s" / name for name in ("editions/01.h5", "projections"))
    (projections / "000003.h5").write_bytes((projections / "000000.h5").read_bytes())  # the survey's
    assert {word.split(":")[0] for word in life.words(exposures)} >= {"not as decided"}
    (projections / "000003.h5").unlink()
    content = first.read_bytes()
    with h5py.File(first, "r+") as file:
        file["projection/model"][0] = b"minus nine"
    assert {word.split(":")[0] for word in life.words(exposures)} == {"edition changed", "edition 1 gone"}
    first.write_bytes(content)
    with h5py.File(first, "r+") as file:
        file["clean"][1, 3, 3] += 1
    assert "edition changed" in {word.split(":")[0] for word in life.words(exposures)}
    first.unlink()
    assert {word.split(":")[0] for word in life.words(exposures)} == {"edition 1 gone"}


def test_a_failpoint_that_does_not_exist_is_refused() -> None:
    """A campaign with a mistyped name would find nothing and prove nothing."""
    run = subprocess.run(
        [sys.executable, "-c", "import aet_stream.failpoints"],
        env={**os.environ, failpoints.VARIABLE: "no.such=kill"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode != 0
    assert "no.such" in run.stderr


def test_off_means_off() -> None:
    """Without the variable a place is an empty function."""
    assert failpoints.reach is failpoints.off


@pytest.mark.timeout(400)
def test_a_watch_that_dies_before_every_second_answer_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, in its own process, again and again."""
    monkeypatch.setitem(ENVIRONMENT, failpoints.VARIABLE, "watch.send@2=kill")
    daemon = Daemon(tmp_path)
    for index in range(4):
        put(daemon.root / "np", index, float(index))
    assert daemon.run("--until-idle", "1", "--strict", limit_s=300) == 0
    assert "was killed by signal 9" in daemon.log.read_text()
