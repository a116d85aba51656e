"""Heavy steps on another computer: the same volume as here; whatever a helper does wrong costs time alone."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from aet_stream import __version__, compression, lifeline
from aet_stream.config_file import load
from aet_stream.denoise.estimators import model_sha256
from aet_stream.edition import Edition
from aet_stream.elsewhere import offload, transfer
from aet_stream.elsewhere.curve import RelayLink
from aet_stream.elsewhere.dispatch import Dispatcher
from aet_stream.elsewhere.helper import Helper
from aet_stream.elsewhere.keys import KeyRing, make_key
from aet_stream.elsewhere.offload import Offload
from aet_stream.elsewhere.relay import Relay
from aet_stream.elsewhere.steps import STEPS
from aet_stream.elsewhere.transfer import CHUNK_BYTES, FileReceiver, FileSender
from aet_stream.errors import WireError
from aet_stream.messages import (
    WIRE_VERSION,
    Beat,
    Chunk,
    Fetch,
    FileSpec,
    HelperPlease,
    HelperReady,
    Job,
    Pulse,
    Refusal,
    Task,
    TaskDone,
    TaskOff,
)
from aet_stream.naming import VOLUME_FILE
from aet_stream.projection import VisitKey
from aet_stream.simulate.physical import physical_series
from aet_stream.simulate.writers import tiff
from aet_stream.status import RelayStatus
from aet_stream.transport import HubSocket, StepLink, decode, encode
from tests.atom_series import PIXEL_ANGSTROM, counted, fcc
from tests.harness import ENVIRONMENT, known_image, wait_for
from tests.proxy import free_port
from tests.test_relay import Station
from tests.test_store import CLOSED, made, opened

FAST = {"reconstruct.iterations": 1, "reconstruct.quality": False, "reconstruct.align": [], "reconstruct.threads": 1, "queue.lease_s": 3}


@contextmanager
def turning(turn: Callable[[], Any]) -> Iterator[None]:
    """In a thread of its own, until the block ends."""
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            turn()

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


class Place:
    """A workstation with a closed series, and a relay that helpers come to."""

    def __init__(self, folder: Path, tilts: int = 8, size_px: int = 64) -> None:
        self.folder, self.out = folder, folder / "out"
        self.address = f"tcp://127.0.0.1:{free_port()}"
        words = {"relay.listen": self.address, "output.root": str(self.out), "denoise.model": "laplace", **FAST}
        self.config = load(None, [f"{key}={json.dumps(value)}" for key, value in words.items()])
        store = opened(self.out)
        store.commit([made(index, size_px=size_px) for index in range(tilts)])
        list(store.close(CLOSED))
        self.ring = KeyRing(self.config)
        self.open = ExitStack()
        self.hub = self.open.enter_context(_closing(HubSocket(self.out)))
        self._relay = ExitStack()
        self.open.push(self._relay)
        self.start_relay()

    def start_relay(self) -> None:
        """Another one, if there is one already."""
        self._relay.close()
        relay = self._relay.enter_context(_closing(Relay(self.config)))
        relay.start()

        def turn() -> None:
            relay.step()
            relay.beat()

        self._relay.enter_context(turning(turn))

    def link(self, name: str) -> RelayLink:
        """Of a computer that is let in."""
        key = make_key(self.folder / f"{name}.key")
        self.ring.allow(name, key.public)
        return RelayLink(self.address, key, self.ring.own().public, name=name)

    def helper(self, name: str = "big", **more: Any) -> Path:
        """One that works; returns the folder in which it does."""
        spool, link = self.folder / f"{name}.spool", self.link(name)
        takes = ("reconstruct", "film", "atoms")
        helper = Helper(self.config, name="h", spool=spool, elsewhere=lambda: link, **{"takes": takes, **more})
        self.open.enter_context(_closing(helper))
        helper.start()
        self.open.enter_context(turning(helper.step))
        self.wait_for(f"{name}:h")
        return spool

    def wait_for(self, helper: str) -> None:
        """Until the relay tells the hub of it."""

        def there() -> bool:
            beats = [
                heard[1].said.status for heard in self.hub.receive(0.1) if not isinstance(heard, WireError) and isinstance(heard[1], Beat)
            ]
            return any(helper in status.helpers for status in beats if isinstance(status, RelayStatus))

        wait_for(there, what=helper)

    def faulty(self, behave: Behave, name: str = "faulty") -> None:
        """One that does what it likes with its task."""
        link = self.open.enter_context(_closing(self.link(name)))
        tasks: list[Task] = []

        def turn() -> None:
            if not tasks:
                link.send(HelperReady(name="h", takes=("reconstruct",), wire=WIRE_VERSION, version=__version__))
            for message, _ in link.receive(0.1):
                tasks.extend([message] if isinstance(message, Task) else [])
                if tasks and isinstance(message, Task | Fetch):
                    for answer in behave(tasks[-1], message):
                        link.send(answer)

        self.open.enter_context(turning(turn))
        self.wait_for(f"{name}:h")

    def have_it_made(self) -> bool:
        step = Offload(self.config, "reconstruct", "s")
        try:
            return step.have_it_made()
        finally:
            step.close()

    def command(self) -> tuple[list[str], bytes]:
        """As the trigger starts it."""
        return lifeline.command("aet_stream.elsewhere.offload", "reconstruct", "s"), msgspec.json.encode(self.config)


Behave = Callable[[Task, Task | Fetch], list[Any]]


@contextmanager
def _closing(what: Any) -> Iterator[Any]:
    try:
        yield what
    finally:
        what.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Place]:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(offload, "PATIENCE_S", 15.0)
    monkeypatch.setattr(offload, "LOST_WITHIN_S", 0.0)
    found = Place(tmp_path)
    with found.open:
        yield found


def volume(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        found = {name: file[f"reconstruction/{name}"][()] for name in ("volume", "residuals", "tilts_deg", "shifts_px", "rows")}
        return {**found, "digest": file["reconstruction"].attrs["series_digest"], "method": file["reconstruction"].attrs["method"]}


@pytest.mark.parametrize("noticed_by", ["pulse", "helper"])
def test_the_last_word_of_a_step_is_heard_before_it_is_given_up(noticed_by: str, tmp_path: Path) -> None:
    """It has what it wanted, says so and goes; that it is gone is noticed before that is read. The helper would have kept for a minute what
    nobody wants."""
    sent: list[object] = []

    def send(_: bytes, message: object) -> bool:
        sent.append(message)
        return True

    with closing(Dispatcher(tmp_path, send)) as dispatcher, closing(StepLink(tmp_path, name="volume of s")) as step:
        dispatcher.hear_ready(b"h", "big:h", "key", HelperReady(name="h", takes=("reconstruct",), wire=WIRE_VERSION, version=""))
        assert wait_for(lambda: step.send(HelperPlease(key="k", step="reconstruct", series="s")))
        wait_for(lambda: dispatcher.turn() or dispatcher.doing["big:h"], what="the step to have its helper")
        step.send(TaskOff(key="k"))
        step.close()
        done = TaskDone(key="k", ok=True, detail="", files=())
        stirs = {"pulse": lambda: dispatcher.look(["key"]), "helper": lambda: dispatcher.hear_helper(b"h", done)}[noticed_by]
        wait_for(lambda: stirs() or not dispatcher.doing["big:h"], what="the step to be missed")
    assert [message for message in sent if not isinstance(message, Pulse)] == [TaskOff(key="k")]


def test_a_volume_made_elsewhere_is_the_one_made_here(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Value by value; a step that was killed is found under way by the next; the ordinary command ends it; nothing is left anywhere."""
    shutil.copytree(place.out / "s", tmp_path / "here" / "s")
    subprocess.run(STEPS["reconstruct"].command(place.config, tmp_path / "here" / "s"), check=True, env=ENVIRONMENT)
    spool = place.helper()
    words, settings = place.command()
    killed = subprocess.Popen(words, stdin=subprocess.PIPE, env=ENVIRONMENT)
    assert killed.stdin is not None
    killed.stdin.write(settings)
    killed.stdin.close()
    wait_for(lambda: "series=s volume: begins" in caplog.text, what="the helper to begin")
    killed.kill()
    killed.wait()
    done = subprocess.run(words, input=settings, check=True, capture_output=True, env=ENVIRONMENT, timeout=60)
    said = done.stderr.decode()
    assert "volume by big:h in" in said
    assert "holds this volume already" in said
    assert caplog.text.count("series=s volume: begins") == 1
    one, other = volume(place.out / "s" / VOLUME_FILE), volume(tmp_path / "here" / "s" / VOLUME_FILE)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert (place.out / "s" / "reconstruction.png").exists()
    wait_for(lambda: not list(spool.iterdir()), what="the helper to tidy up")
    assert not list((place.out / "run" / "offload.d").iterdir())
    assert {path.name for path in (place.out / "s").iterdir()} == {"series.h5", "projections", VOLUME_FILE, "reconstruction.png"}


def test_without_a_helper_it_is_done_here(place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At once: nobody is let in, none takes volumes, all are busy, no relay runs, the series is open."""
    began = time.monotonic()
    with monkeypatch.context() as patient:
        patient.setattr(offload, "ASK_AGAIN_S", 60.0)
        assert not place.have_it_made()
    assert time.monotonic() - began < 30
    assert "no helper that takes volume is let in: it is done here" in caplog.text
    place.helper(takes=("atoms",))
    assert not place.have_it_made()
    place.faulty(lambda task, said: [], "busy")
    with _closing(Offload(place.config, "reconstruct", "s")) as first, turning(lambda: first.have_it_made()):
        wait_for(lambda: "busy:h does it" in caplog.text, what="it to be busy")
        assert not place.have_it_made()
        assert "1 helper(s) busy: it is done here" in caplog.text
    shutil.rmtree(place.out / "s")
    opened(place.out).write_master(CLOSED)
    words, settings = place.command()
    done = subprocess.run(words, input=settings, check=False, capture_output=True, env=ENVIRONMENT, timeout=60)
    assert b"is done here" in done.stderr


VOLUME = FileSpec(VOLUME_FILE, 3, hashlib.sha256(b"abc").hexdigest())
CHUNK = Chunk(sha256=VOLUME.sha256, offset=0, data=b"abc", crc32=zlib.crc32(b"abc"))


def sends(task: Task, said: Task | Fetch, *, chunk: Chunk = CHUNK, file: FileSpec = VOLUME) -> list[Any]:
    """A helper that has made something at once, and hands over this chunk of it."""
    return [TaskDone(key=task.key, ok=True, detail="done", files=(file,))] if isinstance(said, Task) else [chunk]


FAULTY: dict[str, Behave] = {
    "silent for": lambda task, said: [],
    "out of memory": lambda task, said: [TaskDone(key=task.key, ok=False, detail="out of memory")],
    "it made nothing": lambda task, said: [TaskDone(key=task.key, ok=True, detail="done")],
    "nobody has asked for '../../evil'": lambda task, said: sends(task, said, file=FileSpec("../../evil", 3, VOLUME.sha256)),
    "is not what was announced": lambda task, said: sends(
        task, said, file=FileSpec(VOLUME_FILE, 3, "0" * 64), chunk=msgspec.structs.replace(CHUNK, sha256="0" * 64)
    ),
    "chunk 0 of reconstruction.h5 is damaged": lambda task, said: sends(task, said, chunk=msgspec.structs.replace(CHUNK, data=b"abd")),
    "of reconstruction.h5 is damaged": lambda task, said: sends(task, said, chunk=msgspec.structs.replace(CHUNK, data=b"abc" * 9)),
    "decompresses to another size": lambda task, said: sends(
        task, said, chunk=msgspec.structs.replace(CHUNK, compressed=True, data=zlib.compress(bytes(10**7)))
    ),
    "cannot be decompressed": lambda task, said: sends(task, said, chunk=msgspec.structs.replace(CHUNK, compressed=True)),
    "no chunk 1 of": lambda task, said: [Fetch(sha256=task.files[0].sha256, offset=1)],
    "no chunk 0 of 0": lambda task, said: [Fetch(sha256="0" * 64, offset=0)],
}


@pytest.mark.parametrize("words", FAULTY)
def test_a_helper_that_is_faulty_costs_its_job_alone(place: Place, caplog: pytest.LogCaptureFixture, words: str) -> None:
    """It is said why, it is not asked again for this task, and nothing of it is left."""
    place.faulty(FAULTY[words])
    before = sorted(place.out.rglob("*"))
    assert not place.have_it_made()
    assert words in caplog.text
    assert sorted(path for path in place.out.rglob("*") if path.name != "offload.d") == before
    assert not (place.folder / "evil").exists()


def test_another_helper_does_what_the_first_could_not(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The faulty one is asked first, because it has waited longer."""
    place.faulty(FAULTY["out of memory"])
    place.faulty(sends, "big")
    assert place.have_it_made()
    assert "faulty:h does it" in caplog.text
    assert "volume by big:h" in caplog.text


def test_a_step_that_fails_there_leaves_its_helper_free(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """As it would fail here; nobody needs to be waited for."""
    place.config = msgspec.structs.replace(place.config, reconstruct=msgspec.structs.replace(place.config.reconstruct, method="none"))
    spool = place.helper()
    assert not place.have_it_made()
    assert "volume: big:h: exit code 1" in caplog.text
    wait_for(lambda: not list(spool.iterdir()), limit_s=5, what="the helper to be free")


def test_what_is_not_the_wanted_volume_is_made_here(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Whole, its checksum right, and no volume of this series: the ordinary command sees that."""
    place.faulty(sends)
    words, settings = place.command()
    done = subprocess.run(words, input=settings, check=True, capture_output=True, env=ENVIRONMENT, timeout=60)
    assert b"volume by faulty:h" in done.stderr
    assert volume(place.out / "s" / VOLUME_FILE)["volume"].shape == (64, 64, 64)


@pytest.mark.parametrize("compress", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_a_transfer_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compress: bool
) -> None:
    """The relay is killed while the series is on its way: what had come is not sent again."""
    caplog.set_level(logging.INFO)
    sent: list[tuple[str, int]] = []
    under_way, chunk_of = threading.Event(), FileSender.chunk

    def counted(self: FileSender, wanted: Fetch) -> Chunk:
        sent.append((wanted.sha256, wanted.offset))
        if len(sent) == 6:
            under_way.set()
        return chunk_of(self, wanted)

    monkeypatch.setattr(transfer.FileSender, "chunk", counted)
    monkeypatch.setattr(transfer, "IN_FLIGHT", 2)
    place = Place(tmp_path, tilts=24, size_px=128)
    with place.open:
        place.helper(compress=compress)
        made_it: list[bool] = []
        once = threading.Thread(target=lambda: made_it.append(place.have_it_made()))
        once.start()
        assert under_way.wait(20)
        place.start_relay()
        once.join(60)
        assert made_it == [True]
    chunks = -(-(place.out / "s" / "series.h5").stat().st_size // CHUNK_BYTES)
    sha256 = hashlib.sha256((place.out / "s" / "series.h5").read_bytes()).hexdigest()
    of_series = [offset for name, offset in sent if name == sha256]
    assert {*of_series} == {number * CHUNK_BYTES for number in range(chunks)}
    assert chunks > 3 * transfer.IN_FLIGHT
    assert len(of_series) <= chunks + transfer.IN_FLIGHT
    assert volume(place.out / "s" / VOLUME_FILE)["rows"].shape == (24,)


def test_a_helper_of_another_version_is_refused(place: Place) -> None:
    """With the remedy, as a worker is; and one whose key is taken off the list is told."""
    link = place.open.enter_context(_closing(place.link("lab2")))
    ready = HelperReady(name="h", takes=("reconstruct",), wire=WIRE_VERSION, version="0.0.9")

    def refusal() -> str:
        link.send(ready)
        try:
            list(link.receive(0.1))
        except WireError as error:
            return str(error)
        return ""

    assert f"version 0.0.9 of aet-stream (queue {WIRE_VERSION}) is there; install aet-stream {__version__}" in wait_for(refusal)
    ready = msgspec.structs.replace(ready, version=__version__)
    wait_for(lambda: not refusal(), what="it to be let in")
    place.ring.forbid("lab2")
    wait_for(lambda: "taken off the list" in refusal(), what="the end")


@pytest.mark.parametrize(
    "wrong",
    [
        {"series": "../s"},
        {"key": "../x"},
        {"files": (FileSpec("../series.h5", 3, "0" * 64),)},
        {"files": (FileSpec("series.h5", 1 << 60, "0" * 64),)},
        {"step": "atoms"},
    ],
)
def test_a_task_that_is_none_is_not_begun(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Not even by the relay that it trusts is a helper made to write outside its folder, or more than it has room for."""
    answers: list[Any] = []

    class Played:
        heard_at, compress = 0.0, False

        def join(self, alive: Callable[[], None]) -> Any:
            return Refusal(text="")

        def receive(self, timeout_s: float) -> list[Any]:
            task = Task(key="0" * 64, step="reconstruct", series="s", settings=load(None, []), files=(), makes=())
            return [(msgspec.structs.replace(task, **wrong), None)]

        def send(self, message: Any) -> bool:
            answers.append(message)
            return True

        def close(self) -> None: ...

    link: Any = Played()
    link.join = lambda alive: type("Welcome", (), {"host": "x"})
    helper = Helper(load(None, []), name="h", takes=("reconstruct",), spool=tmp_path / "spool", elsewhere=lambda: link)
    helper.start()
    helper.step()
    (refused,) = [answer for answer in answers if isinstance(answer, TaskDone)]
    assert not refused.ok
    assert not [*(tmp_path / "spool").iterdir()]
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]
    helper.close()


# -- chunks and compression --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("compress", [False, True])
def test_files_arrive_as_they_were(tmp_path: Path, nbytes: int, compress: bool) -> None:
    """Also one that is replaced on the way; what is there already is not asked for."""
    content = np.random.default_rng(0).integers(0, 40, nbytes, dtype=np.uint8).tobytes()
    (tmp_path / "f").write_bytes(content)
    sending = FileSender(tmp_path, ["f"], compress=compress)
    (tmp_path / "new").write_bytes(b"another")
    (tmp_path / "new").replace(tmp_path / "f")
    coming = FileReceiver(tmp_path / "there", sending.files[0])
    most = 0
    while not coming.done:
        wanted = list(coming.wanted())
        most = max(most, len(wanted))
        for fetch in wanted:
            coming.take(sending.chunk(fetch))
            coming.take(sending.chunk(fetch))  # said twice, it counts once
    assert most <= transfer.IN_FLIGHT
    assert (tmp_path / "there" / "f").read_bytes() == content
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["f"]
    assert FileReceiver(tmp_path / "there", sending.files[0]).done
    sending.close()


def test_pixels_are_compressed_without_loss(tmp_path: Path) -> None:
    """On the wire they are fewer bytes; a compressed frame that claims to be larger than it may is refused before it is opened."""
    job = Job(job_id="1", series="s", visit=VisitKey("p", 0, "1"))
    import zmq

    for pixels in (known_image(1, 256), np.sqrt(known_image(2, 256)).astype("<f4"), np.stack([known_image(3).astype("<f4")] * 2)):
        frames = [zmq.Frame(bytes(part)) for part in encode(job, pixels, compress=True)]
        assert len(frames[1]) < 0.95 * pixels.nbytes
        _, back = decode(frames)
        assert back is not None
        assert np.array_equal(back, pixels)
        assert back.dtype == pixels.dtype
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype("|u1")
    assert len(encode(job, noise, compress=True)[1]) == noise.nbytes
    header = msgspec.msgpack.decode(bytes(frames[0]))
    header["array"] |= {"height": 8192, "width": 8192, "planes": 1000}
    with pytest.raises(WireError, match="do not make"):
        decode([zmq.Frame(msgspec.msgpack.encode(header)), frames[1]])
    with pytest.raises(WireError):
        compression.decompress(compression.compress(bytes(1000), 4), 999, 4)


def test_a_worker_over_a_slow_link(place: Place) -> None:
    """It says that it wants pixels compressed; jobs and answers then are, and are the same pixels."""
    from aet_stream.messages import Done, Ready
    from aet_stream.projection import Quality

    link = place.open.enter_context(_closing(place.link("lab2")))
    link.compress = True
    ready = Ready(name="w", model_sha256=model_sha256("laplace"), wire=WIRE_VERSION, version=__version__, compress=True)
    pixels = known_image(1, 256)

    def known() -> bytes:
        link.send(ready)
        return next((heard[0] for heard in place.hub.receive(0.1) if not isinstance(heard, WireError) and isinstance(heard[1], Ready)), b"")

    peer = wait_for(known, what="the hub to know it")
    place.hub.send(peer, Job(job_id="1", series="s", visit=VisitKey("p", 0, "1")), pixels)
    message, got = wait_for(lambda: next((each for each in link.receive(0.1) if isinstance(each[0], Job)), None), what="the job")
    assert message.array.compressed
    assert np.array_equal(got, pixels)
    link.send(Done(job_id="1", quality=Quality("m", "0"), network_s=0.1), pixels.astype("<f4"))
    heard = wait_for(lambda: next((each for each in place.hub.receive(0.1) if isinstance(each[1], Done)), None), what="the answer")  # type: ignore[index]
    assert np.array_equal(heard[2], pixels.astype("<f4"))


# -- films and atoms, in a real daemon ------------------------------------------------------------------------------------------------


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Callable[..., Station]]:
    """A daemon, and a helper that is let in, of another home."""
    found: list[Station] = []

    def start(**settings: Any) -> Station:
        found.append(Station(tmp_path, **settings))
        found[-1].start()
        found[-1].helper("lab3")
        return found[-1]

    yield start
    for each in found:
        each.close()


def shoot(station: Station, images: np.ndarray, tilts_deg: np.ndarray, pixel_nm: float) -> Path:
    """A microscope that writes these; the folder of the closed series."""
    folder = station.daemon.root / "s"
    folder.mkdir(parents=True)
    for index, (image, tilt) in enumerate(zip(images, tilts_deg, strict=True)):
        (folder / f"p_{index:03d}_{tilt:+.2f}deg.tif").write_bytes(tiff(image.astype("<u2"), float(tilt), pixel_nm))
    station.stored(len(images))
    assert station.daemon.ask("close", "s").returncode == 0
    return station.daemon.out / "s"


def done_elsewhere(station: Station, made: str, event: str) -> None:
    """Once, and taken by the ordinary command."""

    def said(words: str) -> bool:
        return words in station.daemon.log.read_text()

    station.wait(lambda _: said(event), f"{made}; {station.daemon.log.read_text()[-2000:]}", 200)
    assert station.daemon.log.read_text().count(f"series=s {made} by lab3:big in") == 1
    assert not said(f"series=s {made} is done here")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_films_made_elsewhere_are_those_made_here(station: Callable[..., Station], tmp_path: Path) -> None:
    """The edition is taken over by the hub and shown; pixel by pixel the one that is made here."""
    tilts_deg = np.array([-64.0, -33, 2, 35, 68])
    settings = {"film__enabled": True, "film__while_growing": False, "film__tilts_each_side": 2, "film__memory_mib": 256}
    here = station(**settings)
    folder = shoot(here, physical_series("halo", 101, tilts_deg, size_px=64).raw, tilts_deg, 0.1)
    (tmp_path / "copy" / "s").mkdir(parents=True)
    shutil.copy(folder / "series.h5", tmp_path / "copy" / "s")
    done_elsewhere(here, "films", "series=s series.closed -> film: done")
    with h5py.File(folder / "series.h5") as file:
        assert file["/aet/series"].attrs["edition"] == 2
    words = [word.replace("__", ".") for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "aet_stream", "film", str(tmp_path / "copy" / "s"), "--keep", "--set", "denoise.model=laplace", *words]
    subprocess.run(command, check=True, env=ENVIRONMENT, timeout=400)
    (made_here,) = (tmp_path / "copy" / "s" / "editions").glob("made_*.h5")
    with Edition(made_here) as one, Edition(folder / "editions" / "02.h5") as other:
        assert one.about.key == other.about.key
        assert [row.clean_crc32 for row in one.rows.values()] == [row.clean_crc32 for row in other.rows.values()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_atoms_made_elsewhere_are_those_made_here(station: Callable[..., Station], tmp_path: Path) -> None:
    """After a volume that was made there too."""
    places, tilts_deg = fcc(6.3), np.arange(-75, 76, 6.0)
    settings = {"denoise__model": "constant", "reconstruct__on_close": True, "reconstruct__iterations": 30, "reconstruct__align": []}
    here = station(**settings, reconstruct__quality=False, atoms__enabled=True, atoms__elements=["Au"], atoms__while_growing=False)
    images = counted(places, np.full(len(places), 60.0), tilts_deg, size_px=48) + 1
    folder = shoot(here, images, tilts_deg, PIXEL_ANGSTROM / 10)
    done_elsewhere(here, "volume", "series=s series.closed -> reconstruct: done")
    done_elsewhere(here, "atoms", "series=s reconstruction.done -> atoms: done")
    out = tmp_path / "atoms.h5"
    done = here.daemon.ask("atoms", str(folder / VOLUME_FILE), "--elements", "Au", "--out", str(out))
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "atoms.h5") as one, h5py.File(out) as other:
        assert len(one["atoms/weights"]) == len(places)
        for name in ("angstrom", "weights"):
            assert np.array_equal(one[f"atoms/{name}"][()], other[f"atoms/{name}"][()])
    assert {"atoms.xyz", "atoms.png"} < {path.name for path in folder.iterdir()}
