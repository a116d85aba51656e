"""Ill-mannered workers, units and clocks: slow, dead, late, twice, wrong, of another version; and what kills whoever takes it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from aet_stream import durable
from aet_stream.config import Angle, Config, Orientation, Output, Queue, Series
from aet_stream.errors import AetError, OutputFull
from aet_stream.hub import workers
from aet_stream.hub.archive import Archive, open_ledger
from aet_stream.hub.commands import obey
from aet_stream.hub.flights import Flights
from aet_stream.hub.intake import Intake
from aet_stream.hub.ledger import outcome
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.outcomes import Outcomes
from aet_stream.hub.storing import Storing
from aet_stream.hub.workers import Workers
from aet_stream.layout import superseded
from aet_stream.messages import WIRE_VERSION, Acquired, Beat, Done, Failed, FileOffer, Job, NotAcquired, Offer, Ready, Want, Working
from aet_stream.monitor.words import remedies
from aet_stream.projection import Acquisition, Candidate, Quality, Subtracted, sha256_of
from aet_stream.transport import HubSocket
from aet_stream.watch.angle import resolve
from aet_stream.worker import Worker
from tests.harness import known_image, wait_for
from tests.test_store import made

PIXELS = known_image(0, 32)
CLEAN = PIXELS.astype("<f4")
READY = Ready(name="w", model_sha256="0", wire=WIRE_VERSION)


class Desk:
    """The hub without its socket: what it sends is kept in a list."""

    def __init__(self, root: Path, *, lease_s: float = 30.0) -> None:
        rules = Queue(lease_s=lease_s, attempts=3, alone_pause_s=0.0)
        self.config = Config()
        self.sent: list[tuple[bytes, Any]] = []
        self.ledger, _ = open_ledger(root)
        outbox = Outbox(self.ledger.db, {})
        self.archive = Archive(root, self.ledger, outbox, fold_rows=256, expected=0, config="{}")
        self.flights = Flights(rules.credit, rules.credit_mib << 20, rules.lease_s)
        self.outcomes = Outcomes(rules, self.ledger, outbox, self.flights, root / "quarantine", lambda topic, what: None)
        self.intake = Intake(self.config, self.ledger, self.archive, self.flights, self.outcomes, self._send)
        self.workers = Workers("hub", self.flights, self.outcomes, self._send)
        tell = lambda topic, what: None  # noqa: E731
        self.storing = Storing(self.config, self.ledger, self.archive, self.flights, self.intake, self.outcomes, tell)
        self.pixels: dict[str, np.ndarray] = {}
        self.known: dict[str, Acquisition] = {}
        """What watch finds in a file; otherwise PIXELS, and nothing said of them."""
        self.tilts_deg: dict[str, float] = {}
        self.holds: dict[str, str] = {}
        """What watch says of the tilt; otherwise 5 degrees, and nothing against it."""
        self.doubts: dict[str, str] = {}
        """What watch says of the file as a whole."""
        self.intake.hear_watch(b"watch", set())

    def _send(self, peer: bytes, message: Any, pixels: Any = None) -> bool:
        self.sent.append((peer, message))
        return True

    def offer(self, *names: str, stamp: str = "1", folder: str = "s") -> None:
        self.intake.hear_offer(Offer(files=tuple(FileOffer(f"{folder}/{name}.tif", ((0, stamp),), 2048, 1e9) for name in names)))

    def acquire(self) -> None:
        """Watch answers whatever is wanted."""
        self.intake.grant()
        for _, want in [item for item in self.sent if isinstance(item[1], Want)]:
            pixels = self.pixels.get(want.path, PIXELS)
            answer = Acquired(
                path=want.path,
                stamp=want.stamp,
                image=0,
                sha256=sha256_of(pixels),
                acquisition=self.known.get(want.path, Acquisition()),
                candidates=(Candidate("filename", "", self.tilts_deg.get(want.path, 5.0)),),
                hold=self.holds.get(want.path, ""),
                doubt=self.doubts.get(want.path, ""),
            )
            self.intake.hear_acquired(answer, pixels)
        self.sent = [item for item in self.sent if not isinstance(item[1], Want)]

    def job(self, peer: bytes = b"w1", ready: Ready = READY) -> Job | None:
        """The work that a worker gets when it asks."""
        self.acquire()
        self.workers.hear_ready(peer, ready)
        self.workers.assign()
        jobs = [message for to, message in self.sent if isinstance(message, Job) and to == peer]
        self.sent.clear()
        return jobs[-1] if jobs else None

    def store(self, *names: str, stamp: str = "1") -> None:
        """Offer files, have a worker subtract each, and store what can be stored."""
        self.offer(*names, stamp=stamp)
        self.finish(len(names))

    def take_up(self) -> None:
        """As the hub does with what the ledger calls ready."""
        for row in self.ledger.ready():
            self.outcomes.take_up(row["path"], row["image"], row["stamp"], row["attempts"])
        self.finish(len(self.flights.backlog))

    def finish(self, count: int, *, commit: bool = True) -> None:
        for number in range(count):
            job = self.job(f"w{number}".encode(), Ready(name=f"w{number}", model_sha256="0", wire=WIRE_VERSION))
            if job is not None:
                self.workers.hear_done(done(job), CLEAN)
        while commit and self.workers.done:
            self.storing.commit(self.workers.done)
        self.storing.publish(at_once=True)

    def state(self, name: str = "a", folder: str = "s") -> str:
        row = self.ledger.db.execute("SELECT state FROM unit WHERE path = ? ORDER BY id DESC", (f"{folder}/{name}.tif",)).fetchone()
        return str(row["state"])


def done(job: Job) -> Done:
    return Done(job_id=job.job_id, quality=Quality("none", "0"), network_s=0.0)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.ledger.close()


def test_a_silent_worker_loses_its_lease_and_its_late_result_is_dropped(desk: Desk) -> None:
    """Another worker gets the projection; only that one's result counts, and only once."""
    desk.offer("a")
    first = desk.job()
    assert first is not None
    next(iter(desk.flights)).deadline = time.monotonic() - 1
    desk.workers.expire()
    second = desk.job(b"w2", Ready(name="w2", model_sha256="0", wire=WIRE_VERSION))
    assert second is not None
    assert second.job_id != first.job_id
    desk.workers.hear_done(done(first), CLEAN)
    assert desk.workers.done == []
    desk.workers.hear_done(done(second), CLEAN)
    desk.workers.hear_done(done(second), CLEAN)
    assert len(desk.workers.done) == 1


def test_signs_of_life_keep_a_lease(desk: Desk) -> None:
    """A slow worker is not a dead one."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    flight = next(iter(desk.flights))
    flight.deadline = time.monotonic() - 1
    desk.workers.hear_working(Working(job_id=job.job_id))
    desk.workers.expire()
    assert flight.state == "working"


def test_results_for_nobody_do_nothing(desk: Desk) -> None:
    """A job that never was, or of the hub before."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    for stranger in ("", "hub.99", "otherhub.0"):
        desk.workers.hear_done(Done(job_id=stranger, quality=Quality("none", "0"), network_s=0.0), CLEAN)
        desk.workers.hear_failed(Failed(job_id=stranger, reason="x"))
    assert desk.workers.done == []
    assert next(iter(desk.flights)).state == "working"


def test_a_broken_new_state_waits_for_the_result_of_the_old_one(desk: Desk) -> None:
    """The file is replaced by a broken one while a worker has it: what was read is stored, then the new state is asked for."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    desk.intake.hear_not_acquired(NotAcquired(path="s/a.tif", stamp="2", image=0, why="bad", reason="cut off"))
    desk.workers.hear_done(done(job), CLEAN)
    (flight,) = desk.workers.done
    assert flight.stamp == "1"
    desk.flights.land(flight)
    desk.intake.grant()
    assert [message.stamp for _, message in desk.sent if isinstance(message, Want)] == ["2"]


def test_a_new_state_is_not_lost_when_a_worker_dies_over_the_old_one(desk: Desk) -> None:
    """The file changed while a worker had it: the new state, which waits, is read and stored; the old one is not asked for again."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    desk.offer("a", stamp="2")
    desk.workers.hear_failed(Failed(job_id=job.job_id, reason="it died"))
    desk.intake.grant()
    assert [message.stamp for _, message in desk.sent if isinstance(message, Want)] == ["2"]
    desk.finish(1)
    assert desk.archive.store("s").holds("s/a.tif", 0, "2")
    assert desk.ledger.ready() == []


def test_requeueing_a_file_that_was_mended_loses_nothing(desk: Desk) -> None:
    """More quarantined files than fit into memory are mended and, to be sure, queued again: every one is read as it is now."""
    names = [f"{index:02d}" for index in range(20)]
    for name in names:
        desk.pixels[f"s/{name}.tif"] = known_image(int(name), 32)
        desk.intake.hear_not_acquired(NotAcquired(path=f"s/{name}.tif", stamp="1", image=0, why="bad", reason="cut off"))
    desk.offer(*names, stamp="2")
    obey(desk, "requeue", {"ids": [row["id"] for row in desk.ledger.in_state("quarantined")]})  # type: ignore[arg-type]
    for _ in names:
        desk.finish(1)
    assert all(desk.archive.store("s").holds(f"s/{name}.tif", 0, "2") for name in names)
    assert desk.ledger.in_state("quarantined") == []


@pytest.mark.parametrize("clean", [CLEAN[:5], CLEAN.astype("<f8"), np.full_like(CLEAN, np.nan)], ids=["shape", "dtype", "NaN"])
def test_a_wrong_result_is_charged_and_not_stored(desk: Desk, clean: np.ndarray) -> None:
    """Another shape or type, or numbers that are none: tried again, and after that put aside with the reason."""
    desk.offer("a")
    for _ in range(4):
        job = desk.job()
        assert job is not None
        desk.workers.hear_done(done(job), clean)
        assert desk.workers.done == []
    assert desk.state() == "quarantined"
    assert "the worker answered" in next((desk.outcomes.folder).glob("*.json")).read_text()


def test_a_projection_that_kills_every_worker_ends_in_quarantine(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three deaths, one more try alone, then aside; what stands beside it goes on."""
    desk.offer("bomb")
    for number in range(4):
        job = desk.job(f"w{number}".encode())
        assert job is not None
        assert job.path == "s/bomb.tif"
        monkeypatch.setattr(workers, "CROSSING_S", 0.0)  # it is silent for long enough
        desk.workers.hear_ready(f"w{number + 1}".encode(), READY)  # its successor under the same name
    assert desk.state("bomb") == "quarantined"
    desk.offer("good")
    good = desk.job(b"w9")
    assert good is not None
    assert good.path == "s/good.tif"


def test_a_text_that_hdf5_cannot_hold_costs_one_file(desk: Desk) -> None:
    """A NUL in what a file says of its detector: put aside with the words; what came before, beside and after it is stored."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abcd")}
    desk.known = {"s/c.tif": Acquisition(detector="HAADF\0\xcc")}
    desk.store("a")
    desk.store("b", "c", "d")
    assert [desk.state(name) for name in "abcd"] == ["stored", "stored", "quarantined", "stored"]
    assert "detector 'HAADF" in next(desk.outcomes.folder.glob("*.json")).read_text()
    assert not list((desk.archive.root / "s" / "projections").glob(".*"))


def test_a_name_that_is_written_again_and_again_loses_no_image(desk: Desk) -> None:
    """`latest` is copied or renamed after each image: the copies are duplicates until it changes, and rows from then on."""
    images = [known_image(index, 32) for index in range(3)]
    for number, image in enumerate(images):
        desk.pixels |= {"s/latest.tif": image, f"s/copy_{number}.tif": image}
        desk.store("latest", stamp=str(number))
        desk.store(f"copy_{number}")
        assert desk.state(f"copy_{number}") == "duplicate"
        desk.take_up()
    assert [desk.state(f"copy_{number}") for number in range(3)] == ["stored", "stored", "duplicate"]
    desk.store("latest", stamp="touched")
    records = desk.archive.store("s").records
    counted = sorted(record.sha256 for record, old in zip(records, superseded(records), strict=True) if not old)
    assert counted == sorted(sha256_of(image) for image in images)
    assert len(records) == 5


def test_a_series_is_full_when_as_many_images_are_there_as_rows_that_count(desk: Desk) -> None:
    """A tilt that is taken again under the same name does not end the series before its last one, nor count for plan or coverage."""
    desk.storing._config = Config(series=Series(expected=3, idle_close_s=0))
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    desk.store("a", "b")
    desk.pixels["s/b.tif"] = known_image(7, 32)
    desk.store("b", stamp="2")
    assert len(desk.archive.store("s").records) == 3
    assert desk.storing._due() == []
    assert len(desk.archive.tilts_deg("s")) == outcome(desk.ledger)["series"][0]["tilts"] == 2
    desk.store("c")
    assert desk.storing._due() == ["s"]


def test_a_file_that_is_restored_counts_again(desk: Desk) -> None:
    """Overwritten by mistake and taken back from a copy elsewhere: its first pixels are a new row, what came between is superseded."""
    for number, index in enumerate((0, 7, 0, 0)):
        desk.pixels["s/a.tif"] = known_image(index, 32)
        desk.store("a", stamp=str(number))
    records = desk.archive.store("s").records
    assert [record.sha256 for record in records] == [sha256_of(known_image(index, 32)) for index in (0, 7, 0)]
    assert superseded(records) == [True, True, False]
    assert desk.state() == "same"


def test_a_series_whose_folder_cannot_be_written_stops_no_other(desk: Desk) -> None:
    """A file lies where its folder belongs: it waits, with what the system says of it, while the other series goes on."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    (desk.archive.root / "s").touch()
    desk.offer("a")
    desk.offer("b", folder="t")
    desk.finish(2, commit=False)
    with pytest.raises(OutputFull, match=r"s/projections: (Not a directory|File exists)"):
        desk.storing.commit(desk.workers.done)
    desk.storing.publish(at_once=True)
    assert [flight.path for flight in desk.workers.done] == ["s/a.tif"]
    assert desk.state("b", folder="t") == "stored"
    (desk.archive.root / "s").unlink()
    desk.finish(0)
    assert desk.state("a") == "stored"


def test_a_unit_is_booked_in_the_series_that_it_is_stored_in(desk: Desk) -> None:
    """It was held when other settings named another series: `status` counts it where it lies, and both series can be closed."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("ab")}
    with desk.ledger.transaction():
        desk.ledger.end(desk.ledger.want("elsewhere", "s/b.tif", 0, "1"), "held")
    desk.store("a")
    desk.outcomes.read_again(desk.outcomes.waiting(1), 7.0)
    desk.finish(1)
    assert {row["name"]: row["stored"] for row in desk.ledger.series()} == {"s": 2, "elsewhere": 0}
    desk.archive.begin_close("elsewhere")
    assert not desk.archive.working_on("elsewhere")


def test_a_second_worker_of_the_same_name_is_refused_while_the_first_lives(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Started by hand beside the daemon's: nothing is charged to what the first one has; its silence makes the second its successor."""
    desk.offer("a")
    job, now = desk.job(), time.monotonic()
    assert job is not None
    for turn in range(10):
        monkeypatch.setattr(time, "monotonic", lambda turn=turn: now + turn)
        desk.workers.hear_working(Working(job_id=job.job_id))
        assert desk.job(b"second") is None
    assert [record.getMessage() for record in caplog.records] == [
        "two workers are called w: the second gets no work; start it with another --name"
    ]
    monkeypatch.setattr(time, "monotonic", lambda: now + 20)
    desk.workers.hear_ready(b"second", READY)
    assert desk.job(b"second") is not None
    assert desk.ledger.ready()[0]["attempts"] == 1


@pytest.mark.parametrize("ids", [[1, 777], [1, 10**19], [1, -1], [1, "2"]])
def test_a_command_with_a_number_that_is_none_changes_nothing(desk: Desk, ids: list[Any]) -> None:
    """One wrong number among right ones: refused, and the right ones wait as before."""
    with desk.ledger.transaction():
        desk.ledger.end(desk.ledger.want("s", "s/a.tif", 0, "1"), "held")
    for arguments in ({"ids": ids}, {"ids": ids, "tilt_deg": 3.0}):
        with pytest.raises(AetError):
            obey(desk, "release" if "tilt_deg" in arguments else "requeue", arguments)  # type: ignore[arg-type]
    assert desk.state() == "held"


def test_a_detector_that_was_mistyped_can_be_read_after_all(desk: Desk) -> None:
    """Its images were another detector's; a person corrects the setting and queues them again."""
    desk.known = {"s/a.tif": Acquisition(detector="HAADF")}
    desk.intake._rules = Series(detector="HADF")
    desk.store("a")
    assert desk.state() == "other"
    desk.intake._rules = Series(detector="HAADF")
    obey(desk, "requeue", {"ids": [1]})  # type: ignore[arg-type]
    desk.finish(1)
    assert desk.state() == "stored"


def test_a_file_that_is_gone_can_be_put_out_of_quarantine(desk: Desk) -> None:
    """It vanished before it was read, which is told; a person who queues it again knows."""
    for state in ("quarantined", "gone"):
        desk.offer("a")
        desk.intake.grant()
        desk.intake.hear_not_acquired(NotAcquired(path="s/a.tif", stamp="1", image=0, why="gone", reason="no such file"))
        assert desk.state() == state
        assert len(list(desk.outcomes.folder.glob("*.json"))) == (state == "quarantined")
        if state == "quarantined":
            obey(desk, "requeue", {"ids": [1]})  # type: ignore[arg-type]
    desk.store("a")
    assert desk.state() == "stored"


def test_rows_of_different_hand_do_not_mix(desk: Desk) -> None:
    """The setting was changed between two starts, in the middle of a series: held, with what to do."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("ab")}
    desk.store("a")
    desk.intake._turn = Orientation(flip_x=True).letters
    desk.store("b")
    assert [desk.state(name) for name in "ab"] == ["stored", "held"]
    assert "orientation 'x', but the series has ''" in desk.ledger.in_state("held")[0]["reason"]


@pytest.mark.parametrize("hold", ["no source names a tilt angle", ""])
def test_what_a_person_has_judged_is_not_held_again_when_its_file_is_touched(desk: Desk, hold: str) -> None:
    """As a share does that comes back with other inodes. Something new that is said of its tilt, or new pixels, are for a person again."""
    desk.holds["s/a.tif"] = "not yet known"
    desk.offer("a")
    desk.acquire()
    desk.outcomes.read_again(desk.outcomes.waiting(desk.ledger.in_state("held")[0]["id"]), -34.5)
    desk.finish(1)
    assert desk.state() == "stored"
    desk.holds["s/a.tif"] = hold
    desk.store("a", stamp="2")
    assert (desk.state(), desk.ledger.in_state("held")) == ("same", [])
    desk.tilts_deg["s/a.tif"] = 7.0
    desk.store("a", stamp="3")
    assert desk.state() == "held"


def test_series_of_the_same_name_in_another_watched_folder_do_not_mix(desk: Desk) -> None:
    """watch.root was changed between two starts, names were used again: nothing is superseded, unless a person says that it is the same."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    desk.store("a")
    desk.intake.root = "/another"
    desk.pixels["s/a.tif"] = known_image(7, 32)
    desk.offer("a", "b", stamp="2")
    desk.finish(1)
    assert [desk.state(name) for name in "ab"] == ["held", "held"]
    held = {row["path"]: row for row in desk.ledger.in_state("held")}
    assert "now it is /another: put it into a folder of another name" in held["s/b.tif"]["reason"]
    desk.outcomes.read_again(desk.outcomes.waiting(held["s/b.tif"]["id"]), 5.0)
    desk.finish(1)
    desk.store("c", stamp="2")
    assert [desk.state(name) for name in "abc"] == ["held", "stored", "stored"]


def test_images_that_fly_together_are_compared_with_one_another(desk: Desk) -> None:
    """The first row knows no magnification and no detector: the next that does decides, not all that a worker had at once."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abcdef")}
    desk.known |= {"s/b.tif": Acquisition(pixel_size_nm=0.05), "s/c.tif": Acquisition(pixel_size_nm=0.02)}
    desk.known |= {"s/d.tif": Acquisition(detector="BF"), "s/e.tif": Acquisition(detector="HAADF")}
    desk.store("a", "b", "c", "d", "e", "f")
    assert [desk.state(name) for name in "abcdef"] == ["stored", "stored", "held", "stored", "held", "stored"]


HAADF, BF = Acquisition(detector="HAADF"), Acquisition(detector="BF")
OBJECTIONS = {
    "none": resolve(Acquisition(), (), "b.tif", 1, Angle()),
    "unit": resolve(Acquisition(tilt_deg=1.0, tilt_unit="?"), (), "b.tif", 1, Angle()),
    "number": resolve(Acquisition(), (), "b_neg12deg.tif", 1, Angle()),
    "range": resolve(Acquisition(tilt_deg=500.0), (), "b.tif", 1, Angle()),
    "apart": resolve(Acquisition(tilt_deg=1.0), (Candidate("sidecar", "2 px of 3.csv: 3 deg", 3.0),), "b.tif", 1, Angle()),
    "plan": resolve(Acquisition(tilt_deg=1.0), (), "b.tif", 1, Angle(), plan=(2.0,)),
}


@pytest.mark.parametrize("case", ["size", "turn", "detector", "root", "tilt", "magnification", "doubt", *OBJECTIONS])
def test_the_remedy_shown_for_whatever_is_held_helps(desk: Desk, case: str) -> None:
    """Each hold that there is, as it is made: a release where that is said, a new reading once the setting named is right, or a folder."""
    desk.pixels = {"s/b.tif": known_image(1, 32)}
    desk.known = {"s/a.tif": replace(HAADF, pixel_size_nm=0.05), "s/b.tif": HAADF}
    desk.store("a")
    name = "a" if case == "tilt" else "b"
    match case:
        case "size":
            desk.pixels["s/b.tif"] = desk.pixels["t/b.tif"] = PIXELS.astype("<u4")
        case "turn":
            desk.intake._turn = "x"
        case "detector":
            desk.known["s/b.tif"] = BF
        case "root":
            desk.intake.root = "/another"
        case "tilt":
            desk.tilts_deg["s/a.tif"] = 8.0
        case "magnification":
            desk.known["s/b.tif"] = replace(HAADF, pixel_size_nm=0.02)
        case "doubt":
            desk.doubts["s/b.tif"] = "all 6 images of the file say 0 deg"
        case _:
            desk.holds["s/b.tif"] = OBJECTIONS[case][1]
    desk.store(name, stamp="2")
    (held,) = desk.ledger.in_state("held")
    (row,) = remedies({"held": [dict(held)]})
    release = {"ids": [held["id"]], "tilt_deg": 8.0}
    if not row["command"].startswith(f"aet-stream release {held['id']} --angle"):
        obey(desk, "release", release)  # type: ignore[arg-type]
        desk.finish(1)
        assert desk.state(name) == "held"
    if case == "size":
        assert not row["command"]
        assert "folder" in row["remedy"]
        desk.offer(name, folder="t")
        desk.finish(1)
        assert desk.state(name, "t") == "stored"
    elif case in ("turn", "detector"):
        assert row["command"] == f"aet-stream requeue {held['id']}"
        assert ("orientation.*" if case == "turn" else "series.detector") in row["remedy"]
        desk.intake._turn, desk.intake._rules = "", Series(detector="BF" if case == "detector" else "")
        obey(desk, "requeue", {"ids": [held["id"]]})  # type: ignore[arg-type]
        desk.finish(1)
        assert desk.state(name) == "stored"
    else:
        obey(desk, "release", release)  # type: ignore[arg-type]
        desk.finish(1)
        assert desk.state(name) == "stored"
        assert ("only if" in row["remedy"]) == (case in ("root", "magnification"))


def test_a_worker_of_another_version_gets_no_work(desk: Desk) -> None:
    """It might understand something else by the same words."""
    desk.offer("a")
    assert desk.job(b"old", Ready(name="old", model_sha256="0")) is None
    assert desk.job(b"new", Ready(name="new", model_sha256="0", wire=WIRE_VERSION)) is not None


def test_a_worker_with_another_model_is_named(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """It works, each projection says by which model; and the log says so once."""
    for _ in range(3):
        desk.workers.hear_ready(b"1", Ready(name="w1", model_sha256="a" * 64, wire=WIRE_VERSION))
        desk.workers.hear_ready(b"2", Ready(name="w2", model_sha256="b" * 64, wire=WIRE_VERSION))
    assert [record.getMessage() for record in caplog.records if "another model" in record.getMessage()] == [
        "w2 has another model (bbbbbbbbbbbb) than was used so far"
    ]


def test_a_clock_that_is_set_moves_no_lease(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back or forth: nothing expires, nothing is asked for twice."""
    desk.offer("a", "b")
    desk.intake.grant()
    real = time.time
    for step_s in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda step_s=step_s: real() + step_s)
        desk.intake.hear_watch(b"watch", set())
        assert [flight.state for flight in desk.flights] == ["wanted", "wanted"]
    job = desk.job()
    assert job is not None
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    desk.workers.expire()
    desk.workers.hear_ready(b"w1", READY)
    assert desk.flights.find_job(job.job_id) is not None


def test_a_unit_that_is_stored_already_is_not_asked_for(desk: Desk) -> None:
    """Offered again by a new watch between its commit and the ledger's knowing: the files know it."""
    record, raw, clean = made(1)
    desk.archive.commit("s", [(record, raw, clean)])
    desk.offer("1")
    assert desk.flights.backlog
    desk.intake.grant()
    assert desk.sent == []
    assert not desk.flights.backlog


def test_a_worker_that_subtracts_for_long_is_there_all_the_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of one subtraction the hub hears its beat, and whoever started it the watchdog; once a second."""
    hub = HubSocket(tmp_path)
    heard: list[Any] = []
    peers: list[bytes] = []
    began = time.monotonic()

    def count(kind: type) -> int:
        for item in hub.receive(0.05):
            assert isinstance(item, tuple)
            peers.append(item[0])
            heard.append(item[1])
        return sum(isinstance(message, kind) for message in heard)

    class Slow:
        name, sha256 = "slow", "0"

        def warm_up(self) -> None: ...

        def subtract(self, pixels: np.ndarray, *, beat: Callable[[], None]) -> Subtracted:
            def known_to_live() -> bool:
                beat()
                return min(count(Beat), count(Working)) >= 2

            wait_for(known_to_live, what="two beats out of one subtraction")
            assert inbox.recv(4096).startswith(b"WATCHDOG=1\nX_AET_ROLE=w\n")
            return Subtracted(CLEAN, Quality("slow", "0"))

    worker = Worker(Config(output=Output(root=str(tmp_path))), name="w", denoiser=Slow())  # type: ignore[arg-type]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        worker.start()
        try:
            wait_for(lambda: worker.step() or count(Ready), what="the worker to ask")
            assert hub.send(peers[0], Job(job_id="1", series="s", path="s/a.tif", image=0), PIXELS)
            wait_for(lambda: worker.step() or count(Done), what="its answer")
        finally:
            worker.close()
            hub.close()
    assert sum(isinstance(message, Working) for message in heard) <= 2 + time.monotonic() - began


def test_ten_thousand_waiting_files_take_little_memory(desk: Desk) -> None:
    """They wait where they are: only as many as the credit allows are asked for."""
    desk.offer(*(f"{index:05d}" for index in range(10_000)))
    desk.intake.grant()
    assert len(desk.flights) == 8
    assert len(desk.flights.backlog) == 9992


def test_what_is_asked_all_the_time_takes_no_longer_for_all_that_was_ever_stored(desk: Desk) -> None:
    """Status once a second, what is due to be closed five times, one series with every commit; counted in steps of SQLite's machine."""

    def closed(first: int, end: int) -> None:
        with desk.ledger.transaction():
            for name in (f"s{n:04d}" for n in range(first, end)):
                desk.ledger.db.execute("INSERT INTO series (name, state, opened_at, last_at) VALUES (?, 'closed', 0, 0)", (name,))
                desk.ledger.db.executemany(
                    "INSERT INTO unit (series, path, image, stamp, state, number, first_at) VALUES (?, ?, 0, '', 'stored', ?, 0)",
                    [(name, f"{name}/{number}", number) for number in range(20)],
                )

    def steps(*asked: Callable[[], object]) -> list[int]:
        counted = []
        for ask in asked:
            turns: list[None] = []
            desk.ledger.db.set_progress_handler(lambda turns=turns: turns.append(None), 10)
            ask()
            desk.ledger.db.set_progress_handler(None, 0)
            counted.append(len(turns))
        return counted

    asked = (lambda: outcome(desk.ledger), desk.storing.close_series, lambda: desk.archive._about("s0007", None))
    closed(0, 60)
    before = steps(*asked)
    closed(60, 900)
    desk.storing._looked_at = 0.0
    after = steps(*asked)
    assert all(now < 4 * then + 500 for now, then in zip(after, before, strict=True)), (before, after)


def test_a_failing_disk_is_waited_for(tmp_path: Path) -> None:
    """Whatever it says: the data stay in hand."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputFull):
        durable.replace(tmp_path / "file" / "below", b"x")
