"""Ill-mannered workers, visits and clocks: slow, dead, late, twice, wrong, of another version; and what kills whoever takes it."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from aet_stream import durable
from aet_stream.config import Angle, Config, Output
from aet_stream.errors import AetError, OutputFull
from aet_stream.hub.core import Core
from aet_stream.hub.ledger import summary
from aet_stream.hub.outgoing import Letter, News
from aet_stream.hub.timing import Timing
from aet_stream.layout import superseded
from aet_stream.messages import WIRE_VERSION, Acquired, Beat, Done, Failed, FileOffer, Job, NotAcquired, Offer, Ready, ToHub, Want, Working
from aet_stream.monitor.words import remedies
from aet_stream.projection import Acquisition, Candidate, Quality, Subtracted, VisitKey, sha256_of
from aet_stream.readers.angle import resolve
from aet_stream.reasons import Reason
from aet_stream.status import LedgerStatus, WatchStatus, heard
from aet_stream.transport import HubSocket
from aet_stream.worker import Worker
from tests.harness import known_image, wait_for
from tests.test_store import made

PIXELS = known_image(0, 32)
CLEAN = PIXELS.astype("<f4")


def ready(name: str = "w") -> Ready:
    return Ready(name=name, model_sha256="0", wire=WIRE_VERSION)


def ahead(job: Job, name: str = "w") -> Ready:
    """It begins this one, and asks for the next."""
    return replace(ready(name), at=job.job_id)


def done(job: Job) -> Done:
    return Done(job_id=job.job_id, quality=Quality("none", "0"), network_s=0.0)


class Clock:
    """Goes on only when a test says so."""

    def __init__(self) -> None:
        self.now_s, self.unix_s = 1000.0, time.time()

    def advance(self, seconds: float) -> None:
        self.now_s, self.unix_s = self.now_s + seconds, self.unix_s + seconds


class Desk:
    """A real core, and watch and workers as the test plays them; what the core sends is kept in a list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.sent: list[Letter] = []
        self.pixels: dict[str, np.ndarray] = {}
        self.known: dict[str, Acquisition] = {}
        """What watch finds in a file; otherwise PIXELS, and nothing said of them."""
        self.tilts_deg: dict[str, float] = {}
        self.holds: dict[str, Reason | None] = {}
        """What watch says of the tilt; otherwise 5 degrees, and nothing against it."""
        self.doubts: dict[str, Reason] = {}
        """What watch says of the file as a whole."""
        self.core = self._opened({})

    def _opened(self, settings: dict[str, Any]) -> Core:
        tree = {
            "watch": {"root": "/microscope/in"},
            "output": {"root": str(self.root), "group_s": 0.0},
            "queue": {"attempts": 3, "alone_pause_s": 0.0},
        }
        timing = Timing(now_s=lambda: self.clock.now_s, unix_s=lambda: self.clock.unix_s)
        return Core(msgspec.convert(tree | settings, Config), timing=timing)

    def restart(self, **settings: Any) -> None:
        """The hub ends and starts again, with other settings perhaps."""
        self.core.close()
        self.sent.clear()
        self.core = self._opened(settings)

    def post(self, outgoing: Iterable[Letter | News]) -> None:
        self.sent += [each for each in outgoing if isinstance(each, Letter)]

    def hear(self, message: ToHub, pixels: np.ndarray | None = None, peer: bytes = b"w") -> None:
        self.post(self.core.hear(peer, message, pixels))

    def beat(self) -> None:
        """Watch lives, and has nothing left to answer."""
        self.hear(Beat(name="watch", wire=WIRE_VERSION, said=heard(WatchStatus(), 1)), peer=b"watch")

    def turn(self) -> None:
        self.beat()
        self.post(self.core.turn())

    def obey(self, name: str, **arguments: Any) -> None:
        self.core.commands.obey(name, arguments)

    def taken(self, kind: type) -> list[tuple[bytes, Any]]:
        """What was sent of one kind since, and to whom."""
        taken = [(letter.peer, letter.message) for letter in self.sent if isinstance(letter.message, kind)]
        self.sent = [letter for letter in self.sent if not isinstance(letter.message, kind)]
        return taken

    def offer(self, *names: str, stamp: str = "1", folder: str = "s") -> None:
        self.hear(Offer(files=tuple(FileOffer(f"{folder}/{name}.tif", ((0, stamp),), 2048, 1e9) for name in names)), peer=b"watch")

    def answer(self) -> None:
        """Watch answers whatever is wanted."""
        for _, want in self.taken(Want):
            path = want.visit.path
            pixels = self.pixels.get(path, PIXELS)
            answer = Acquired(
                visit=want.visit,
                sha256=sha256_of(pixels),
                acquisition=self.known.get(path, Acquisition()),
                candidates=(Candidate("filename", "", self.tilts_deg.get(path, 5.0)),),
                hold=self.holds.get(path),
                doubt=self.doubts.get(path),
            )
            self.hear(answer, pixels, peer=b"watch")

    def job(self, peer: bytes = b"w", asking: Ready | None = None) -> Job | None:
        """The work that a worker gets when it asks."""
        self.turn()
        self.answer()
        self.hear(asking or ready(), peer=peer)
        self.turn()
        jobs = [job for to, job in self.taken(Job) if to == peer]
        return jobs[-1] if jobs else None

    def run(self) -> None:
        """Watch answers, a worker works, until nothing moves any more."""
        self.sent.clear()
        while True:
            self.clock.advance(0.3)
            self.turn()
            moved = bool(self.sent and [letter for letter in self.sent if isinstance(letter.message, Want | Job)])
            self.answer()
            for _, job in self.taken(Job):
                self.hear(done(job), self.pixels.get(job.visit.path, PIXELS).astype("<f4"))
            self.hear(ready())
            if not moved and not self.core.at_work and (self.core.paused or not self.core.in_hand()):
                return

    def store(self, *names: str, stamp: str = "1", folder: str = "s") -> None:
        """Offer files, have a worker subtract each, and store what can be stored."""
        self.offer(*names, stamp=stamp, folder=folder)
        self.run()

    def attempts(self) -> list[int]:
        """Charged to each visit."""
        return [row["attempts"] for row in self.core.ledger.db.execute("SELECT attempts FROM visit ORDER BY path")]

    def counts(self, state: str) -> int:
        count: int = getattr(self.core.status().queue, state)
        return count

    def stored(self, name: str, stamp: str) -> bool:
        return self.core.archive.store("s").holds(VisitKey(f"s/{name}.tif", 0, stamp))

    def bad(self, name: str, stamp: str = "1", why: str = "bad") -> None:
        """Watch cannot read it."""
        self.hear(
            NotAcquired(visit=VisitKey(f"s/{name}.tif", 0, stamp), why=why, reason=Reason("unreadable", {"error": "cut off"})),
            peer=b"watch",
        )  # type: ignore[arg-type]

    def wanted(self) -> list[str]:
        """The state of each file that watch is asked for now."""
        self.turn()
        return [want.visit.stamp for _, want in self.taken(Want)]

    def state(self, name: str = "a", folder: str = "s") -> str:
        path = f"{folder}/{name}.tif"
        row = self.core.ledger.db.execute("SELECT state FROM visit WHERE path = ? ORDER BY id DESC", (path,)).fetchone()
        return str(row["state"])

    def records(self) -> list[Path]:
        """Of what is in quarantine."""
        return list((self.root / "quarantine").glob("*.json"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.core.close()


def test_a_silent_worker_loses_its_lease_and_its_late_result_is_dropped(desk: Desk) -> None:
    """Another worker gets the projection; only that one's result counts, and only once."""
    desk.offer("a")
    first = desk.job()
    assert first is not None
    desk.clock.advance(31.0)
    second = desk.job(b"w2", ready("w2"))
    assert second is not None
    assert second.job_id != first.job_id
    desk.hear(done(first), CLEAN)
    assert desk.counts("done") == 0
    desk.hear(done(second), CLEAN)
    desk.hear(done(second), CLEAN)
    assert desk.counts("done") == 1
    desk.run()
    assert len(desk.core.archive.store("s").records) == 1


def test_signs_of_life_keep_a_lease(desk: Desk) -> None:
    """A slow worker is not a dead one."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    for _ in range(3):
        desk.clock.advance(20.0)
        desk.hear(Working(job_id=job.job_id))
        desk.turn()
    assert desk.counts("working") == 1


@pytest.fixture
def pair(desk: Desk) -> tuple[Job, Job]:
    """A worker is at the first, and the second waits in its socket."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    desk.offer("a", "b")
    first = desk.job()
    assert first is not None
    second = desk.job(asking=ahead(first))
    assert second is not None
    assert (desk.counts("working"), desk.counts("waiting")) == (1, 1)
    return first, second


def test_a_worker_has_one_more_at_most(desk: Desk, pair: tuple[Job, Job]) -> None:
    """It asks when it begins one; what is said twice brings nothing. Each is stored once, in the time that it was worked on."""
    first, second = pair
    desk.offer("c")
    assert desk.job(asking=ahead(first)) is None
    desk.clock.advance(7.0)
    desk.hear(done(first), CLEAN)
    assert desk.job() is None  # said before the second came out of the socket
    third = desk.job(asking=ahead(second))
    assert third is not None
    desk.clock.advance(2.0)
    desk.hear(done(second), CLEAN)
    desk.hear(ahead(third))
    desk.hear(done(third), CLEAN)
    desk.run()
    records = desk.core.archive.store("s").records
    assert [record.visit.path for record in records] == ["s/a.tif", "s/b.tif", "s/c.tif"]
    assert [round(record.network_s) for record in records] == [7, 2, 0]
    assert desk.attempts() == [0, 0, 0]


def test_what_waits_for_a_slow_worker_stays_its_own(desk: Desk, pair: tuple[Job, Job], caplog: pytest.LogCaptureFixture) -> None:
    """Its signs of life are good for both; and nothing is given to another while it goes from one to the next."""
    first, second = pair
    for _ in range(3):
        desk.clock.advance(20.0)
        desk.hear(Working(job_id=first.job_id))
        assert desk.job(b"w2", ready("w2")) is None
    desk.hear(done(first), CLEAN)
    assert desk.job() is None
    desk.hear(done(second), CLEAN)
    desk.run()
    assert [desk.state(name) for name in "ab"] == ["stored", "stored"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("end", ["dies", "hangs"])
def test_only_what_a_lost_worker_was_at_is_charged(desk: Desk, pair: tuple[Job, Job], end: str) -> None:
    """What waited in its socket goes to the next at once, with no try lost; what the lost one still answers is nobody's."""
    _, second = pair
    desk.hear(ready("w2"), peer=b"w2")
    desk.clock.advance(31.0 if end == "hangs" else 4.0)
    if end == "dies":
        desk.hear(ready(), peer=b"successor")
    desk.turn()
    ((_, again),) = desk.taken(Job)
    assert (again.visit, again.job_id == second.job_id) == (second.visit, False)
    assert desk.attempts() == [1, 0]
    for job in pair:
        desk.hear(Working(job_id=job.job_id))
        desk.hear(done(job), CLEAN)
    assert desk.counts("done") == 0
    desk.hear(done(again), CLEAN)
    desk.run()
    assert len(desk.core.archive.store("s").records) == 2
    assert desk.attempts() == [1, 0]


def test_what_a_lost_worker_had_come_to_is_charged(desk: Desk, pair: tuple[Job, Job]) -> None:
    """The second, once it has begun it: by its asking for the next, or by a sign of life."""
    first, second = pair
    desk.hear(done(first), CLEAN)
    desk.hear(Working(job_id=second.job_id))
    desk.clock.advance(31.0)
    desk.turn()
    assert desk.attempts() == [0, 1]


def test_a_worker_that_knows_of_neither_is_given_both_again(desk: Desk, pair: tuple[Job, Job], caplog: pytest.LogCaptureFixture) -> None:
    """On the same link it says that it has nothing to do, long after they were sent."""
    desk.clock.advance(4.0)
    again = desk.job()
    assert again is not None
    assert again.visit == pair[0].visit
    assert desk.job(asking=ahead(again)).visit == pair[1].visit  # type: ignore[union-attr]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [f"w does not know of s/{n}.tif any more" for n in "ab"]
    assert desk.attempts() == [0, 0]


def test_nothing_waits_behind_a_job_of_nobody(desk: Desk, pair: tuple[Job, Job]) -> None:
    """A worker that was silent for too long goes on with what waited in its socket: until the end of that it gets nothing."""
    desk.clock.advance(31.0)
    desk.turn()
    assert desk.job(asking=ahead(pair[1])) is None
    desk.hear(done(pair[1]), CLEAN)
    assert desk.job() is not None


def test_a_free_worker_comes_first(desk: Desk, pair: tuple[Job, Job]) -> None:
    """One that has asked ahead gets nothing while another has nothing to do."""
    first, second = pair
    desk.hear(done(first), CLEAN)
    desk.hear(ahead(second))
    desk.hear(ready("w2"), peer=b"w2")
    desk.offer("c")
    desk.turn()
    desk.answer()
    desk.turn()
    assert [(peer, job.visit.path) for peer, job in desk.taken(Job)] == [(b"w2", "s/c.tif")]


def test_nothing_waits_for_a_worker_elsewhere(desk: Desk) -> None:
    """It is far, and may be lost: it gets the next when its answer is here, without asking again."""
    elsewhere = replace(ready("lab2:gpu"), host="lab2")
    desk.offer("a", "b")
    first = desk.job(asking=elsewhere)
    assert first is not None
    assert desk.job(asking=replace(elsewhere, at=first.job_id)) is None
    desk.hear(done(first), CLEAN)
    desk.turn()
    assert [job.visit.path for _, job in desk.taken(Job)] == ["s/b.tif"]


def test_a_last_try_has_its_worker_for_itself(desk: Desk) -> None:
    """Nothing waits behind it, and it waits behind nothing, though workers ask ahead."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate(("bomb", "first", "later"))}
    desk.offer("bomb")
    for _ in range(3):
        job = desk.job()
        assert job is not None
        desk.hear(Failed(job_id=job.job_id, reason="it died"))
        if desk.attempts() == [2]:
            desk.offer("first")
    assert job.visit.path == "s/bomb.tif"
    first = desk.job()
    assert first is not None
    assert first.visit.path == "s/first.tif"
    assert desk.job(asking=ahead(first)) is None
    desk.hear(done(first), CLEAN)
    desk.turn()
    bomb = desk.job()
    assert bomb is not None
    assert bomb.visit.path == "s/bomb.tif"
    desk.offer("later")
    assert desk.job(asking=ahead(bomb)) is None
    assert desk.job(b"w2", ready("w2")) is None
    desk.hear(done(bomb), CLEAN)
    desk.run()
    assert [desk.state(name) for name in ("bomb", "first", "later")] == ["stored"] * 3


def test_results_for_nobody_do_nothing(desk: Desk) -> None:
    """A job that never was, or of the hub before."""
    desk.offer("a")
    assert desk.job() is not None
    for stranger in ("", "hub.99", "otherhub.0"):
        desk.hear(Done(job_id=stranger, quality=Quality("none", "0"), network_s=0.0), CLEAN)
        desk.hear(Failed(job_id=stranger, reason="x"))
    assert (desk.counts("done"), desk.counts("working")) == (0, 1)


def test_a_broken_new_state_waits_for_the_result_of_the_old_one(desk: Desk) -> None:
    """The file is replaced by a broken one while a worker has it: what was read is stored, then the new state is asked for."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    desk.bad("a", stamp="2")
    desk.hear(done(job), CLEAN)
    assert desk.wanted() == ["2"]
    assert desk.stored("a", "1")


def test_a_new_state_is_not_lost_when_a_worker_dies_over_the_old_one(desk: Desk) -> None:
    """The file changed while a worker had it: the new state, which waits, is read and stored; the old one is not asked for again."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    desk.offer("a", stamp="2")
    desk.hear(Failed(job_id=job.job_id, reason="it died"))
    assert desk.wanted() == ["2"]
    desk.clock.advance(3.5)  # that letter was lost
    desk.run()
    assert desk.stored("a", "2")
    assert desk.core.ledger.ready() == []


def test_requeueing_a_file_that_was_mended_loses_nothing(desk: Desk) -> None:
    """More quarantined files than fit into memory are mended and, to be sure, queued again: every one is read as it is now."""
    names = [f"{index:02d}" for index in range(20)]
    for name in names:
        desk.pixels[f"s/{name}.tif"] = known_image(int(name), 32)
        desk.bad(name)
    desk.offer(*names, stamp="2")
    desk.obey("requeue", ids=[row.id for row in desk.core.ledger.in_state("quarantined")])
    desk.run()
    assert all(desk.stored(name, "2") for name in names)
    assert desk.core.ledger.in_state("quarantined") == ()


@pytest.mark.parametrize("clean", [CLEAN[:5], CLEAN.astype("<f8"), np.full_like(CLEAN, np.nan)], ids=["shape", "dtype", "NaN"])
def test_a_wrong_result_is_charged_and_not_stored(desk: Desk, clean: np.ndarray) -> None:
    """Another shape or type, or numbers that are none: tried again, and after that put aside with the reason."""
    desk.offer("a")
    for _ in range(4):
        job = desk.job()
        assert job is not None
        desk.hear(done(job), clean)
        assert desk.counts("done") == 0
    assert desk.state() == "quarantined"
    assert "the worker answered" in desk.records()[0].read_text()


def test_planes_that_nobody_knows_are_charged(desk: Desk) -> None:
    """A worker of another make sends other pixels than are kept: none of them is taken for another."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    desk.hear(Done(job_id=job.job_id, quality=Quality("none", "0"), network_s=0.0, planes=("dirty",)), CLEAN)
    assert (desk.counts("done"), desk.core.ledger.visit(1)["attempts"]) == (0, 1)  # type: ignore[index]


def test_a_projection_that_kills_every_worker_ends_in_quarantine(desk: Desk) -> None:
    """Three deaths, one more try alone, then aside; what stands beside it goes on."""
    desk.offer("bomb")
    for number in range(4):
        job = desk.job(f"w{number}".encode())
        assert job is not None
        assert job.visit.path == "s/bomb.tif"
        desk.clock.advance(4.0)  # it is silent for long enough
        desk.hear(ready(), peer=f"w{number + 1}".encode())  # its successor under the same name
    assert desk.state("bomb") == "quarantined"
    desk.offer("good")
    good = desk.job(b"w4")
    assert good is not None
    assert good.visit.path == "s/good.tif"


def test_a_text_that_hdf5_cannot_hold_costs_one_file(desk: Desk) -> None:
    """A NUL in what a file says of its detector: put aside with the words; what came before, beside and after it is stored."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abcd")}
    desk.known = {"s/c.tif": Acquisition(detector="HAADF\0\xcc")}
    desk.store("a")
    desk.store("b", "c", "d")
    assert [desk.state(name) for name in "abcd"] == ["stored", "stored", "quarantined", "stored"]
    assert "detector 'HAADF" in desk.records()[0].read_text()
    assert not list((desk.root / "s" / "projections").glob(".*"))


def test_a_name_that_is_written_again_and_again_loses_no_image(desk: Desk) -> None:
    """`latest` is copied or renamed after each image: the copies are duplicates until it changes, and rows from then on."""
    images = [known_image(index, 32) for index in range(3)]
    for number, image in enumerate(images):
        desk.pixels |= {"s/latest.tif": image, f"s/copy_{number}.tif": image}
        desk.store("latest", stamp=str(number))
        desk.store(f"copy_{number}")
        assert desk.state(f"copy_{number}") == "duplicate"
        desk.run()
    assert [desk.state(f"copy_{number}") for number in range(3)] == ["stored", "stored", "duplicate"]
    desk.store("latest", stamp="touched")
    records = desk.core.archive.store("s").records
    counted = sorted(record.sha256 for record, old in zip(records, superseded(records), strict=True) if not old)
    assert counted == sorted(sha256_of(image) for image in images)
    assert len(records) == 5


def test_a_series_is_full_when_as_many_images_are_there_as_rows_that_count(desk: Desk) -> None:
    """A tilt that is taken again under the same name does not end the series before its last one, nor count for plan or coverage."""
    desk.restart(series={"expected": 3, "idle_close_s": 0})
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    desk.store("a", "b")
    desk.pixels["s/b.tif"] = known_image(7, 32)
    desk.store("b", stamp="2")
    desk.run()
    (series,) = summary(desk.core.ledger).series
    assert (series.stored, series.state) == (3, "open")
    assert len(desk.core.archive.tilts_deg("s")) == series.tilts == 2
    desk.store("c")
    desk.run()
    assert desk.core.ledger.series("s")[0]["state"] == "closed"


def test_a_series_that_closes_waits_for_what_is_in_flight(desk: Desk) -> None:
    """Between two messages the hub does one piece of the closed file; what is being measured does not wait for the whole of it."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    desk.store("a", "b", "c")
    desk.offer("d", folder="t")
    desk.obey("close", series="s")
    turns = 0
    while desk.core.ledger.series("s")[0]["state"] != "closed":
        desk.clock.now_s += 1
        desk.turn()
        turns += 1
    assert turns > 3 * 4  # each row read, written in two planes, and read back


def test_a_file_that_is_restored_counts_again(desk: Desk) -> None:
    """Overwritten by mistake and taken back from a copy elsewhere: its first pixels are a new row, what came between is superseded."""
    for number, index in enumerate((0, 7, 0, 0)):
        desk.pixels["s/a.tif"] = known_image(index, 32)
        desk.store("a", stamp=str(number))
    records = desk.core.archive.store("s").records
    assert [record.sha256 for record in records] == [sha256_of(known_image(index, 32)) for index in (0, 7, 0)]
    assert superseded(records) == [True, True, False]
    assert desk.state() == "same"


def test_a_series_whose_folder_cannot_be_written_stops_no_other(desk: Desk) -> None:
    """A file lies where its folder belongs: it waits, with what the system says of it, while the other series goes on."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    (desk.root / "s").touch()
    desk.offer("a")
    desk.offer("b", folder="t")
    jobs = [desk.job(b"w1", ready("w1")), desk.job(b"w2", ready("w2"))]
    for job in jobs:
        assert job is not None
        desk.hear(done(job), CLEAN)
    desk.turn()
    assert re.search(r"s/projections: (Not a directory|File exists)", desk.core.paused)
    assert desk.counts("done") == 1
    assert desk.state("b", folder="t") == "stored"
    (desk.root / "s").unlink()
    desk.clock.advance(3.0)
    desk.turn()
    assert desk.state("a") == "stored"
    assert desk.core.paused == ""


def test_a_visit_is_booked_in_the_series_that_it_is_stored_in(desk: Desk) -> None:
    """It was held when other settings named another series: `status` counts it where it lies, and both series can be closed."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("ab")}
    ledger = desk.core.ledger
    with ledger.transaction():
        ledger.end(ledger.want("elsewhere", VisitKey("s/b.tif", 0, "1")), "held")
    desk.store("a")
    desk.obey("release", ids=[1], tilt_deg=7.0)
    desk.run()
    assert {row["name"]: row["stored"] for row in ledger.series()} == {"s": 2, "elsewhere": 0}
    with pytest.raises(AetError):
        desk.obey("close", series="elsewhere")
    desk.obey("close", series="s")
    desk.run()
    assert [row["state"] for row in ledger.series("s")] == ["closed"]


def test_a_second_worker_of_the_same_name_is_refused_while_the_first_lives(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Started by hand beside the daemon's: nothing is charged to what the first one has; its silence makes the second its successor."""
    desk.offer("a")
    job = desk.job()
    assert job is not None
    for _ in range(10):
        desk.clock.advance(1.0)
        desk.hear(Working(job_id=job.job_id))
        assert desk.job(b"second") is None
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "two workers are called w: the second gets no work; start it with another --name"
    ]
    desk.clock.advance(20.0)
    desk.hear(ready(), peer=b"second")
    assert desk.job(b"second") is not None
    assert desk.core.ledger.ready()[0]["attempts"] == 1


@pytest.mark.parametrize("ids", [[1, 777], [1, 10**19], [1, -1], [1, "2"]])
def test_a_command_with_a_number_that_is_none_changes_nothing(desk: Desk, ids: list[Any]) -> None:
    """One wrong number among right ones: refused, and the right ones wait as before."""
    ledger = desk.core.ledger
    with ledger.transaction():
        ledger.end(ledger.want("s", VisitKey("s/a.tif", 0, "1")), "held")
    with pytest.raises(AetError):
        desk.obey("requeue", ids=ids)
    with pytest.raises(AetError):
        desk.obey("release", ids=ids, tilt_deg=3.0)
    assert desk.state() == "held"


def test_a_detector_that_was_mistyped_can_be_read_after_all(desk: Desk) -> None:
    """Its images were another detector's; a person corrects the setting and queues them again."""
    desk.known = {"s/a.tif": Acquisition(detector="HAADF")}
    desk.restart(series={"detector": "HADF"})
    desk.store("a")
    assert desk.state() == "other"
    desk.restart(series={"detector": "HAADF"})
    desk.obey("requeue", ids=[1])
    desk.run()
    assert desk.state() == "stored"


def test_a_file_that_is_gone_can_be_put_out_of_quarantine(desk: Desk) -> None:
    """It vanished before it was read, which is told; a person who queues it again knows."""
    for state in ("quarantined", "gone"):
        desk.offer("a")
        desk.turn()
        desk.bad("a", why="gone")
        assert desk.state() == state
        assert len(desk.records()) == (state == "quarantined")
        if state == "quarantined":
            desk.obey("requeue", ids=[1])
    desk.sent.clear()
    desk.store("a")
    assert desk.state() == "stored"


def test_rows_of_different_hand_do_not_mix(desk: Desk) -> None:
    """The setting was changed between two starts, in the middle of a series: held, with what to do."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("ab")}
    desk.store("a")
    desk.restart(orientation={"flip_x": True})
    desk.store("b")
    assert [desk.state(name) for name in "ab"] == ["stored", "held"]
    assert "orientation 'x', but the series has ''" in desk.core.ledger.in_state("held")[0].reason


@pytest.mark.parametrize("hold", [Reason("no_tilt", {"because": ""}), None])
def test_what_a_person_has_judged_is_not_held_again_when_its_file_is_touched(desk: Desk, hold: Reason | None) -> None:
    """As a share does that comes back with other inodes. Something new that is said of its tilt, or new pixels, are for a person again."""
    desk.holds["s/a.tif"] = Reason("no_tilt", {"because": ""})
    desk.store("a")
    desk.obey("release", ids=[desk.core.ledger.in_state("held")[0].id], tilt_deg=-34.5)
    desk.run()
    assert desk.state() == "stored"
    desk.holds["s/a.tif"] = hold
    desk.store("a", stamp="2")
    assert (desk.state(), desk.core.ledger.in_state("held")) == ("same", ())
    desk.tilts_deg["s/a.tif"] = 7.0
    desk.store("a", stamp="3")
    assert desk.state() == "held"


def test_series_of_the_same_name_in_another_watched_folder_do_not_mix(desk: Desk) -> None:
    """watch.root was changed between two starts, names were used again: nothing is superseded, unless a person says that it is the same."""
    desk.pixels = {f"s/{name}.tif": known_image(index, 32) for index, name in enumerate("abc")}
    desk.store("a")
    desk.restart(watch={"root": "/another"})
    desk.pixels["s/a.tif"] = known_image(7, 32)
    desk.store("a", "b", stamp="2")
    assert [desk.state(name) for name in "ab"] == ["held", "held"]
    held = {row.path: row for row in desk.core.ledger.in_state("held")}
    assert "now it is /another" in held["s/b.tif"].reason
    desk.obey("release", ids=[held["s/b.tif"].id], tilt_deg=5.0)
    desk.run()
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
            desk.restart(orientation={"flip_x": True})
        case "detector":
            desk.known["s/b.tif"] = BF
        case "root":
            desk.restart(watch={"root": "/another"})
        case "tilt":
            desk.tilts_deg["s/a.tif"] = 8.0
        case "magnification":
            desk.known["s/b.tif"] = replace(HAADF, pixel_size_nm=0.02)
        case "doubt":
            desk.doubts["s/b.tif"] = Reason("one_tilt", {"tilt_deg": 0.0})
        case _:
            desk.holds["s/b.tif"] = OBJECTIONS[case][1]
    desk.store(name, stamp="2")
    (held,) = desk.core.ledger.in_state("held")
    (row,) = remedies(LedgerStatus(held=(held,)))
    if not row["command"].startswith(f"aet-stream release {held.id} --angle"):
        desk.obey("release", ids=[held.id], tilt_deg=8.0)
        desk.run()
        assert desk.state(name) == "held"
    if case == "size":
        assert not row["command"]
        assert "folder" in row["remedy"]
        desk.offer(name, folder="t")
        desk.run()
        assert desk.state(name, "t") == "stored"
    elif case in ("turn", "detector"):
        assert row["command"] == f"aet-stream requeue {held.id}"
        assert ("orientation.*" if case == "turn" else "series.detector") in row["remedy"]
        desk.restart(series={"detector": "BF" if case == "detector" else ""})
        desk.obey("requeue", ids=[held.id])
        desk.run()
        assert desk.state(name) == "stored"
    else:
        desk.obey("release", ids=[held.id], tilt_deg=8.0)
        desk.run()
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
        desk.hear(Ready(name="w1", model_sha256="a" * 64, wire=WIRE_VERSION), peer=b"1")
        desk.hear(Ready(name="w2", model_sha256="b" * 64, wire=WIRE_VERSION), peer=b"2")
    assert [record.getMessage() for record in caplog.records if "another model" in record.getMessage()] == [
        "w2 has another model (bbbbbbbbbbbb) than was used so far"
    ]


def test_a_clock_that_is_set_moves_no_lease(desk: Desk) -> None:
    """An hour back or forth: nothing expires, nothing is asked for twice."""
    desk.offer("a", "b")
    desk.turn()
    for step_s in (3600.0, -7200.0):
        desk.clock.unix_s += step_s
        desk.turn()
        assert desk.counts("wanted") == 2
    assert desk.job() is not None
    desk.clock.unix_s += 7200.0
    desk.turn()
    desk.hear(ready())
    assert desk.counts("working") == 1


def test_a_series_that_takes_long_to_show_is_shown_less_often(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Rewriting `series.h5` takes two seconds: that is begun again four seconds after its end, though `output.group_s` is a tenth."""
    desk.restart(output={"root": str(desk.root), "group_s": 0.1})
    shown_at_s: list[float] = []

    def takes_two_seconds(said: logging.LogRecord) -> bool:
        shown_at_s.append(desk.clock.now_s)
        desk.clock.advance(2.0)
        return True

    caplog.set_level(logging.INFO, "aet_stream.hub.storing")
    logger = logging.getLogger("aet_stream.hub.storing")
    logger.addFilter(takes_two_seconds)
    try:
        for number, name in enumerate("ab"):
            desk.pixels[f"s/{name}.tif"] = PIXELS + number
            desk.store(name)
        for _ in range(20):
            desk.clock.advance(0.3)
            desk.turn()
    finally:
        logger.removeFilter(takes_two_seconds)
    first_s, second_s = shown_at_s
    assert 4.0 <= second_s - (first_s + 2.0) < 5.0


def test_a_visit_that_is_stored_already_is_not_asked_for(desk: Desk) -> None:
    """Offered again by a new watch between its commit and the ledger's knowing: the files know it."""
    desk.core.archive.store("s").commit([made(1)])
    desk.offer("1")
    assert desk.counts("offered") == 1
    assert desk.wanted() == []
    assert desk.counts("offered") == 0


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
        name, sha256, device = "slow", "0", "cpu"

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
            assert hub.send(peers[0], Job(job_id="1", series="s", visit=VisitKey("s/a.tif", 0, "1")), PIXELS)
            wait_for(lambda: worker.step() or count(Done), what="its answer")
        finally:
            worker.close()
            hub.close()
    assert sum(isinstance(message, Working) for message in heard) <= 2 + time.monotonic() - began


def test_a_worker_asks_for_the_next_before_it_begins(tmp_path: Path) -> None:
    """Two jobs come: it takes one a turn, says which it begins, and says that it has none only when there is none."""
    hub = HubSocket(tmp_path)
    said: list[tuple[type, str]] = []
    peers: list[bytes] = []

    class Quick:
        name, sha256, device = "quick", "0", "cpu"

        def warm_up(self) -> None: ...

        def subtract(self, pixels: np.ndarray, *, beat: Callable[[], None]) -> Subtracted:
            return Subtracted(CLEAN, Quality("quick", "0"))

    def heard() -> int:
        for item in hub.receive(0.05):
            assert isinstance(item, tuple)
            peers.append(item[0])
            said.append((type(item[1]), getattr(item[1], "at", "") or getattr(item[1], "job_id", "")))
        return len(said)

    worker = Worker(Config(output=Output(root=str(tmp_path))), name="w", denoiser=Quick())  # type: ignore[arg-type]
    worker.start()
    try:
        wait_for(lambda: worker.step() or heard(), what="the worker to ask")
        for job_id in "12":
            assert hub.send(peers[0], Job(job_id=job_id, series="s", visit=VisitKey(f"s/{job_id}.tif", 0, "1")), PIXELS)
        said.clear()
        wait_for(lambda: worker.step() or heard() >= 4, what="its answers")
        assert said[:4] == [(Ready, "1"), (Done, "1"), (Ready, "2"), (Done, "2")]
        wait_for(lambda: worker.step() or heard() >= 5, what="it to ask again")
        assert said[4] == (Ready, "")
    finally:
        worker.close()
        hub.close()


def test_ten_thousand_waiting_files_take_little_memory(desk: Desk) -> None:
    """They wait where they are: only as many as the credit allows are asked for."""
    desk.offer(*(f"{index:05d}" for index in range(10_000)))
    desk.turn()
    assert (desk.counts("wanted"), desk.counts("offered")) == (8, 9992)


def test_what_is_asked_all_the_time_takes_no_longer_for_all_that_was_ever_stored(desk: Desk) -> None:
    """Status once a second, what is due to be closed five times, one series with every commit; counted in steps of SQLite's machine."""
    ledger = desk.core.ledger

    def closed(first: int, end: int) -> None:
        with ledger.transaction():
            for name in (f"s{n:04d}" for n in range(first, end)):
                ledger.db.execute("INSERT INTO series (name, state, opened_at, last_at) VALUES (?, 'closed', 0, 0)", (name,))
                ledger.db.executemany(
                    "INSERT INTO visit (series, path, image, stamp, state, number, first_at) VALUES (?, ?, 0, '', 'stored', ?, 0)",
                    [(name, f"{name}/{number}", number) for number in range(20)],
                )

    def steps(*asked: Callable[[], object]) -> list[int]:
        counted = []
        for ask in asked:
            turns: list[None] = []
            ledger.db.set_progress_handler(lambda turns=turns: turns.append(None), 10)
            ask()
            ledger.db.set_progress_handler(None, 0)
            counted.append(len(turns))
        return counted

    asked = (lambda: summary(ledger), desk.core.closing.due, lambda: ledger.series("s0007"))
    closed(0, 60)
    before = steps(*asked)
    closed(60, 900)
    after = steps(*asked)
    assert all(now < 4 * then + 500 for now, then in zip(after, before, strict=True)), (before, after)


def test_a_failing_disk_is_waited_for(tmp_path: Path) -> None:
    """Whatever it says: the data stay in hand."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputFull):
        durable.replace(tmp_path / "file" / "below", b"x")
