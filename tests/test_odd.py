"""A survey at another magnification, or of another detector, in a series: it never binds the projections; judged by plain HDF5."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from aet_stream import failpoints, layout
from aet_stream.cli import main
from aet_stream.errors import AetError, NewerLayout, StoreError
from aet_stream.messages import Job, Want
from aet_stream.projection import Acquisition, sha256_of
from aet_stream.reasons import why
from aet_stream.series import Series
from aet_stream.service import EXIT_STRICT
from tests.harness import Daemon, known_image, put
from tests.old_hdf5 import found_by, found_by_h5py, unpacked
from tests.test_queue import Desk, done, ready

KINDS = ("size", "pixel size", "detector")
SURVEY = "survey"
NM, SURVEY_NM = 0.05, 0.4


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.core.close()


def expose(desk: Desk, name: str, kind: str = "", *, tilt_deg: float, index: int) -> None:
    """One image; of `kind` if it is a survey."""
    prepare(desk, name, kind, tilt_deg=tilt_deg, index=index)
    desk.store(name)


def prepare(desk: Desk, name: str, kind: str = "", *, tilt_deg: float, index: int) -> None:
    """What watch will find in it."""
    path = f"s/{name}.tif"
    desk.pixels[path] = known_image(index, 64 if kind == "size" else 32)
    size_nm = {"size": SURVEY_NM, "pixel size": SURVEY_NM}.get(kind, NM)
    desk.known[path] = Acquisition(pixel_size_nm=size_nm, detector="BF" if kind == "detector" else "HAADF")
    desk.tilts_deg[path] = tilt_deg


def series_of(desk: Desk, kind: str, place: int, count: int = 4) -> None:
    """`count` projections, the survey before the one at `place`."""
    for index in range(count):
        if index == place:
            expose(desk, SURVEY, kind, tilt_deg=0.0, index=90)
        expose(desk, f"p{index}", tilt_deg=3.0 * index, index=index)
    if place >= count:
        expose(desk, SURVEY, kind, tilt_deg=0.0, index=90)


def rows(root: Path) -> dict[str, bool]:
    """Name of each row of series.h5 -> does it count? Every row's pixels and the file as a whole are checked."""
    path, found = root / "s" / "series.h5", dict[str, bool]()
    with h5py.File(path) as file:
        data, excluded = file["/exchange/data"], file["/aet/projection/excluded"][()]
        for row, name in enumerate(file["/aet/projection/path"][()]):
            stem = Path(name.decode()).stem
            truth = known_image(90 if stem == SURVEY else int(stem[1:]), data.shape[1])
            assert np.array_equal(data[row], truth)
            assert np.array_equal(file["/aet/raw"][row], truth)
            found[stem] = not excluded[row]
        keys = file["/entry1/tomo_entry/instrument/detector/image_key"][()].tolist()
        assert keys == [0 if counts else 3 for counts in found.values()]
        assert file.attrs["layout_version"] == (
            3 if ("decisions" in file["/aet/series"].attrs and excluded.any()) or "apart" in file["/aet"] else 2
        )
    with Series(path) as series:
        assert list(series.doubts()) == []
    return found


def voxel_nm(root: Path) -> float:
    with h5py.File(root / "s" / "series.h5") as file:
        return round(float(file["/entry1/tomo_entry/instrument/detector/x_pixel_size"][()]) * 1e9, 6)


def events(desk: Desk) -> list[tuple[str, int, str]]:
    found = desk.core.ledger.db.execute(
        "SELECT event, data FROM event WHERE event IN ('projection.excluded', 'projection.restored') ORDER BY seq"
    )
    said = [(row["event"], json.loads(row["data"])) for row in found]
    return [(event, data["number"], data["code"]) for event, data in said]


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_while_the_disk_fails_is_not_set_aside_for_a_survey(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The survey is set aside, and what it held cannot be released yet: one on its way is the first that counts, and they follow."""
    failing = iter([OSError(errno.EIO, "Input/output error")])

    def reach(place: str) -> None:
        if place == "again.commit" and (error := next(failing, None)):
            raise error

    monkeypatch.setattr(failpoints, "reach", lambda place, *more: reach(place))
    expose(desk, SURVEY, kind, tilt_deg=0.0, index=90)
    expose(desk, "p0", tilt_deg=0.0, index=0)
    for index in (1, 2):
        prepare(desk, f"p{index}", tilt_deg=3.0 * index, index=index)
    desk.offer("p1", "p2")
    desk.turn()
    wanted = [letter for letter in desk.sent if isinstance(letter.message, Want)]
    for letter in wanted:
        desk.sent = [letter]
        desk.answer()
        desk.hear(ready())
        desk.turn()
    assert next(failing, None) is None
    for _, job in desk.taken(Job):
        desk.hear(done(job), desk.pixels[job.visit.path].astype("<f4"))
    desk.clock.advance(10)
    desk.run()
    assert {name for name, counts in rows(tmp_path).items() if counts} == {"p0", "p1", "p2"}
    assert events(desk) == [("projection.excluded", 0, "odd")]


def test_what_is_on_its_way_does_not_take_the_place_of_the_survey(tmp_path: Path, desk: Desk) -> None:
    """Two agree against it while another detector's image comes, and more waits: the two are judged first, as `check` foretells."""
    expose(desk, SURVEY, "pixel size", tilt_deg=0.0, index=90)
    expose(desk, "p0", tilt_deg=0.0, index=0)
    for index in (1, 2, 3):
        prepare(desk, f"p{index}", "detector" if index == 2 else "", tilt_deg=3.0 * index, index=index)
    desk.offer("p1", "p2", "p3")
    desk.turn()
    for letter in [letter for letter in desk.sent if isinstance(letter.message, Want)]:
        desk.sent = [letter]
        desk.answer()
        desk.hear(ready())
        desk.turn()
        for _, job in desk.taken(Job):
            desk.hear(done(job), desk.pixels[job.visit.path].astype("<f4"))
    desk.run()
    assert rows(tmp_path) == {SURVEY: False, "p0": True, "p1": True, "p3": True}
    assert desk.state("p2") == "held"
    assert events(desk) == [("projection.excluded", 0, "odd")]


@pytest.mark.parametrize("turns_between", [False, True], ids=["all at once", "with turns"])
def test_images_that_are_on_their_way_together_are_judged_in_their_order(tmp_path: Path, desk: Desk, turns_between: bool) -> None:
    """Handed over at once, and done in reverse order by many workers: as one by one. The second detector is held, not the first."""
    kinds = ["size", "", "", "detector", "", "detector"]
    for index, kind in enumerate(kinds):
        prepare(desk, f"p{index}", kind, tilt_deg=3.0 * index, index=index)
    desk.offer(*(f"p{index}" for index in range(len(kinds))))
    while desk.core.in_hand():
        desk.turn()
        desk.answer()
        for number in range(len(kinds)):
            desk.hear(ready(f"w{number}"), peer=f"w{number}".encode())
        desk.turn()
        for _, job in reversed(desk.taken(Job)):
            desk.hear(done(job), desk.pixels[job.visit.path].astype("<f4"))
            if turns_between:
                desk.turn()
    assert events(desk) == [("projection.excluded", 0, "odd")]
    assert {name for name, counts in rows(tmp_path).items() if counts} == {"p1", "p2", "p4"}
    assert [desk.state(name) for name in ("p3", "p5")] == ["held", "held"]


def close(desk: Desk) -> None:
    desk.obey("close", series="s")
    desk.clock.advance(60)
    desk.run()
    assert desk.core.ledger.series("s")[0]["state"] == "closed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 2, 4], ids=["first", "in the middle", "last"])
def test_the_series_is_whole_wherever_the_survey_comes(tmp_path: Path, desk: Desk, kind: str, place: int) -> None:
    """First: it is set aside, keeps its number and its pixels. Later: it is held. Open, closed, and after a start with no ledger."""
    series_of(desk, kind, place)
    projections = dict.fromkeys([f"p{index}" for index in range(4)], True)
    expected = projections if place else {**({} if kind == "size" else {SURVEY: False}), **projections}

    def check() -> None:
        assert rows(tmp_path) == expected
        assert voxel_nm(tmp_path) == NM
        totals = desk.core.ledger.totals()
        assert (totals.stored, totals.held, totals.odd) == ((5, 0, 1) if place == 0 else (4, 1, 0))
        (status,) = desk.core.status().series
        assert (status.tilts, status.excluded) == (4, 0 if place else 1)

    check()
    assert [event[:2] for event in events(desk)] == ([] if place else [("projection.excluded", 0)])
    close(desk)
    check()
    desk.core.close()
    (tmp_path / "ledger.sqlite").unlink()
    desk.restart()
    desk.offer(SURVEY)
    desk.run()
    check()


def test_what_no_row_can_show_is_kept_whole(tmp_path: Path, desk: Desk) -> None:
    """A survey of another size: in its projection file, and in the closed file, which brings all of them back."""
    series_of(desk, "size", 0)
    close(desk)
    folder = tmp_path / "s"
    with h5py.File(folder / "series.h5") as file:
        group = file["/aet/apart/000000"]
        assert np.array_equal(group["raw"], known_image(90, 64))
        assert (group.attrs["path"], group.attrs["tilt_deg"], group.attrs["number"]) == (f"s/{SURVEY}.tif", 0.0, 0)
    desk.core.close()
    before = {path.name: path.read_bytes() for path in (folder / "projections").iterdir()}
    shutil.rmtree(folder / "projections")
    desk.restart()
    expose(desk, "p4", tilt_deg=12.0, index=4)
    assert rows(tmp_path) == dict.fromkeys([f"p{index}" for index in range(5)], True)
    after = {path.name: path.read_bytes() for path in (folder / "projections").iterdir()}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_readers_see_meanwhile(tmp_path: Path, desk: Desk, kind: str) -> None:
    """The survey is a row at once, as any first image is; one stands against one; from the second on it does not count."""
    expose(desk, SURVEY, kind, tilt_deg=0.0, index=90)
    assert rows(tmp_path) == {SURVEY: True}
    expose(desk, "p0", tilt_deg=0.0, index=0)
    assert (rows(tmp_path), desk.state("p0")) == ({SURVEY: True}, "held")
    with h5py.File(tmp_path / "s" / "series.h5") as old:  # somebody who keeps it open
        expose(desk, "p1", tilt_deg=3.0, index=1)
        assert np.array_equal(old["/exchange/data"][0], known_image(90, 64 if kind == "size" else 32))
    assert rows(tmp_path) == {**({} if kind == "size" else {SURVEY: False}), "p0": True, "p1": True}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (dict(tilt_deg=3.0, index=0), dict(tilt_deg=3.0, index=1)),  # one tilt: two surveys, perhaps
        (dict(tilt_deg=0.0, index=0), dict(tilt_deg=3.0, index=0)),  # the same pixels
    ],
)
def test_two_that_may_be_surveys_themselves_set_nothing_aside(tmp_path: Path, desk: Desk, first: dict, second: dict) -> None:  # type: ignore[type-arg]
    expose(desk, SURVEY, "size", tilt_deg=0.0, index=90)
    for name, said in (("p0", first), ("p1", second)):
        expose(desk, name, **said)
    assert rows(tmp_path) == {SURVEY: True}


def test_two_that_do_not_agree_set_nothing_aside(tmp_path: Path, desk: Desk) -> None:
    """Three magnifications, one image each: a person has to say something."""
    expose(desk, SURVEY, "size", tilt_deg=0.0, index=90)
    for index, size_px in ((0, 32), (1, 48)):
        desk.pixels[f"s/p{index}.tif"], desk.tilts_deg[f"s/p{index}.tif"] = known_image(index, size_px), 3.0 * index
        desk.store(f"p{index}")
    assert rows(tmp_path) == {SURVEY: True}
    assert desk.core.ledger.totals().held == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_tie_is_a_persons_to_break(tmp_path: Path, desk: Desk, kind: str) -> None:
    """Two surveys first, at two tilts: both count, the projections are held until a person excludes what does not belong."""
    desk.pixels["s/p9.tif"] = known_image(9, 64 if kind == "size" else 32)
    for name, tilt_deg, index in ((SURVEY, 0.0, 90), ("p9", 30.0, 9)):
        expose(desk, name, kind, tilt_deg=tilt_deg, index=index)
    for index in range(3):
        expose(desk, f"p{index}", tilt_deg=3.0 * index, index=index)
    assert rows(tmp_path) == {SURVEY: True, "p9": True}
    assert desk.core.ledger.totals().held == 3
    desk.obey("exclude", ids=["s:0", "s:1"], reason="surveys")
    desk.run()
    gone = {} if kind == "size" else {SURVEY: False, "p9": False}
    assert rows(tmp_path) == {**gone, **dict.fromkeys(["p0", "p1", "p2"], True)}
    assert (voxel_nm(tmp_path), desk.core.ledger.totals().odd) == (NM, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_has_the_last_word_on_an_odd_one(tmp_path: Path, desk: Desk, kind: str) -> None:
    """Restored, it counts beside the others, binds nobody, is not set aside again; one of another size cannot be, and why is said."""
    series_of(desk, kind, 0)
    if kind == "size":
        with pytest.raises(AetError, match="64 x 64 px of uint16, and the series 32 x 32 px"):
            desk.obey("restore", ids=["s:0"])
        desk.obey("exclude", ids=["s:0"], reason="a survey, and that is right")
        desk.run()
        assert (desk.core.ledger.totals().odd, desk.core.ledger.excluded("s")) == (0, 1)
        return
    desk.obey("restore", ids=["s:0"])
    desk.run()
    expose(desk, "p4", tilt_deg=12.0, index=4)
    expose(desk, "survey2", kind, tilt_deg=15.0, index=91)
    assert rows(tmp_path) == dict.fromkeys([SURVEY, "p0", "p1", "p2", "p3", "p4"], True)
    assert desk.state("survey2") == "held"
    assert events(desk) == [("projection.excluded", 0, "odd"), ("projection.restored", 0, "odd")]


def test_what_a_person_has_said_to_be_a_projection_is_never_odd(tmp_path: Path, desk: Desk) -> None:
    """Restored while it is alone: two against it are held."""
    expose(desk, SURVEY, "size", tilt_deg=0.0, index=90)
    for name in ("exclude", "restore"):
        desk.obey(name, ids=["s:0"], reason="by mistake")
        desk.run()
    for index in range(3):
        expose(desk, f"p{index}", tilt_deg=3.0 * index, index=index)
    assert rows(tmp_path) == {SURVEY: True}
    assert desk.core.ledger.totals().held == 3


def test_one_that_a_person_released_is_never_odd(tmp_path: Path, desk: Desk) -> None:
    desk.holds[f"s/{SURVEY}.tif"] = why("no_tilt", because="")
    expose(desk, SURVEY, "size", tilt_deg=0.0, index=90)
    desk.obey("release", ids=[1], tilt_deg=0.0)
    desk.run()
    for index in range(2):
        expose(desk, f"p{index}", tilt_deg=3.0 * index, index=index)
    assert rows(tmp_path) == {SURVEY: True}


def test_a_closed_series_of_one_survey_opens_for_its_projections(tmp_path: Path, desk: Desk) -> None:
    """It fell silent after the survey; what comes later sets it aside all the same."""
    expose(desk, SURVEY, "size", tilt_deg=0.0, index=90)
    close(desk)
    for index in range(2):
        expose(desk, f"p{index}", tilt_deg=3.0 * index, index=index)
    assert rows(tmp_path) == {"p0": True, "p1": True}
    close(desk)
    assert rows(tmp_path) == {"p0": True, "p1": True}


def test_decisions_that_are_lost_with_series_h5_cost_no_projection(tmp_path: Path, desk: Desk) -> None:
    """Nobody knows any more that the survey is odd: it goes into quarantine as a stranger, the many stay."""
    series_of(desk, "size", 0)
    desk.core.close()
    for name in ("decisions.json", "series.h5"):
        (tmp_path / "s" / name).unlink()
    desk.restart()
    desk.run()
    assert rows(tmp_path) == dict.fromkeys([f"p{index}" for index in range(4)], True)
    assert desk.state(SURVEY) == "held"


def test_versions_from_before_are_told_that_they_know_too_little(tmp_path: Path, desk: Desk) -> None:
    """They read `layout_version` of series.h5 and of projection files, and leave alone what is beyond theirs."""
    series_of(desk, "size", 0)
    versions = []
    for path in [tmp_path / "s" / "series.h5", *sorted((tmp_path / "s" / "projections").iterdir())]:
        with h5py.File(path) as file:
            versions.append(int(file.attrs["layout_version"]))
    assert versions == [3, 2, 3, 3, 3, 3]
    with h5py.File(tmp_path / "s" / "projections" / "000001.h5", "r+") as file:
        file.attrs["layout_version"] = layout.LAYOUT_VERSION + 1
    with pytest.raises(NewerLayout):
        layout.read_projection(str(tmp_path / "s" / "projections" / "000001.h5"))


def test_a_flipped_bit_of_what_no_row_shows_is_noticed(tmp_path: Path, desk: Desk) -> None:
    series_of(desk, "size", 0)
    close(desk)
    path = tmp_path / "s" / "series.h5"
    for work in (lambda group: group["raw"].__setitem__((3, 3), 1), lambda group: group.attrs.__setitem__("tilt_deg", 1.0)):
        sound = path.read_bytes()
        with h5py.File(path, "r+") as file:
            work(file["/aet/apart/000000"])
        with Series(path) as series:
            assert list(series.doubts())
        path.write_bytes(sound)
    with pytest.raises(StoreError), h5py.File(path) as file:
        layout.apart_planes(file, msgspec.structs.replace(layout.apart(file)[0], checksums={"raw": 1}))


def test_an_old_library_reads_the_closed_file(tmp_path: Path, desk: Desk) -> None:
    series_of(desk, "size", 0)
    close(desk)
    path = tmp_path / "s" / "series.h5"
    assert found_by(unpacked("2.6.0", tmp_path / "old"), path)["datasets"] == found_by_h5py(path)
    assert sha256_of(known_image(90, 64)) == layout.apart(h5py.File(path))[0].sha256


def test_check_foretells_what_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the rules of the hub; what is judged again is said as it ends."""
    put(tmp_path / "in" / "np", 0, 0.0, size_px=96)
    for index in range(1, 4):
        put(tmp_path / "in" / "np", index, 3.0 * index)
    main(["check", str(tmp_path / "in")])
    said = capsys.readouterr().out
    assert "would be set aside: odd: 96 x 96 px of uint16, but two after it agree on 64 x 64 px of uint16" in said
    assert "in all: 3 would be stored, 1 would be set aside" in said
    assert "held" not in said


def test_a_whole_daemon_sets_a_survey_aside_and_strict_says_so(tmp_path: Path) -> None:
    """Until a person has said the same: then there is nothing left to look at."""
    daemon = Daemon(tmp_path, denoise__model="constant")
    for index, size_px in ((90, 96), (0, 64), (1, 64), (2, 64)):
        put(daemon.root / "np", index, 0.0 if index == 90 else 3.0 * index, size_px=size_px)
    assert daemon.run("--until-idle", "0.5", "--strict") == EXIT_STRICT
    with h5py.File(daemon.out / "np" / "series.h5") as file:
        assert file["/exchange/data"].shape == (3, 64, 64)
        assert sorted(file["/aet/projection/number"][()].tolist()) == [1, 2, 3]
        assert file["/aet/apart/000000"].attrs["path"] == "np/image_090_+0.00deg.tif"
    daemon.start().wait_for_totals(stored=4)
    assert "ODD" in daemon.ask("status").stdout
    assert "no file can hold it beside the others" in daemon.ask("restore", "np:0").stderr
    assert daemon.ask("exclude", "np:0", "--reason", "a survey").returncode == 0
    assert daemon.status()["totals"]["odd"] == 0
    assert daemon.stop() == 0
