"""Workers elsewhere: who is let in, who is not, and what becomes of a projection whose worker or link is lost."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import zmq
from zmq.utils import z85

from aet_stream import __version__
from aet_stream.cli import main
from aet_stream.config_file import load
from aet_stream.denoise.estimators import model_sha256
from aet_stream.elsewhere.curve import RelayLink
from aet_stream.elsewhere.keys import Key, KeyRing, load_key, make_key
from aet_stream.elsewhere.relay import Relay
from aet_stream.errors import ConfigError, NotRunning, WireError
from aet_stream.messages import WIRE_VERSION, Beat, Done, Gone, Hello, Job, Ready, Refusal, Welcome
from aet_stream.projection import Quality, VisitKey
from aet_stream.status import RelayHeard, RelayStatus, WatchStatus, WorkerStatus
from aet_stream.transport import HubSocket, encode
from tests.harness import ENVIRONMENT, Daemon, known_image, put, wait_for
from tests.proxy import free_port
from tests.test_queue import CLEAN, Desk, done

LAPLACE = model_sha256("laplace")
READY = Ready(name="gpu", model_sha256=LAPLACE, wire=WIRE_VERSION, version=__version__)
JOB = Job(job_id="1", series="s", visit=VisitKey("p", 0, "1"))


class Scene:
    """A relay that turns when the test waits, the hub as the test plays it, and computers that know their way in, or do not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        words = {"relay.listen": f"tcp://127.0.0.1:{self.port}", "output.root": folder / "out", "denoise.model": "laplace"}
        self.config = load(None, [f"{key}={value}" for key, value in words.items()])
        self.ring = KeyRing(self.config)
        self.hub = HubSocket(folder / "out")
        self.heard: list[tuple[bytes, Any, Any]] = []
        """What the hub was told of workers."""
        self.status = RelayStatus()
        """What the relay says of itself."""
        self.relay = Relay(self.config)
        self.relay.start()
        self.links: list[RelayLink] = []

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def let_in(self, name: str = "lab2") -> Key:
        key = make_key(self.folder / f"{name}.key")
        self.ring.allow(name, key.public)
        return key

    def link(self, key: Key, *, relay_key: str = "") -> RelayLink:
        self.links.append(RelayLink(self.address, key, relay_key or self.ring.own().public, name="gpu"))
        return self.links[-1]

    def turn(self) -> None:
        self.relay.step()
        self.relay.beat()
        for heard in self.hub.receive(0.0):
            assert not isinstance(heard, WireError)
            if isinstance(heard[1], Beat) and isinstance(heard[1].said, RelayHeard):
                self.status = heard[1].said.status
            else:
                self.heard.append(heard)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        def turned() -> Any:
            self.turn()
            return condition()

        return wait_for(turned, what=what)

    def says(self, link: RelayLink, kind: type) -> Any:
        """The next of this kind that a worker hears."""
        return self.wait(lambda: next((message for message, _ in link.receive(0.0) if isinstance(message, kind)), None), kind.__name__)

    def at_work(self, key: Key) -> tuple[RelayLink, bytes]:
        """A worker of which the hub knows, and what it is to the hub."""
        link, before = self.link(key), len(self.heard)

        def known() -> bool:
            link.send(READY)
            return len(self.heard) > before

        self.wait(known, "the hub to hear of a worker")
        return link, self.heard[-1][0]

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.relay.close()
        self.hub.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.close()


# -- keys -------------------------------------------------------------------------------------------------------------------------


def test_keys_are_made_shown_let_in_and_forbidden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands that the documentation prints; secret files are their owner's, whatever the umask."""
    monkeypatch.setattr("aet_stream.cli.set_up_logging", lambda *words, **more: None)
    settings = ["--set", f"output.root={tmp_path / 'out'}", "--set", "relay.listen=tcp://0.0.0.0:8572"]
    before = os.umask(0)
    try:
        assert main(["keys", "new", str(tmp_path / "worker.key")]) == 0
        assert main(["keys", "show", *settings]) == 0
    finally:
        os.umask(before)
    secrets = [tmp_path / "worker.key", tmp_path / "out/run/keys/relay.key"]
    assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600, 0o600]
    public = load_key(secrets[0]).public
    said = capsys.readouterr().out
    assert f"keys allow NAME {public}" in said
    assert "nobody is let in yet" in said
    assert main(["keys", "allow", "lab2", public, *settings]) == 0
    relay = load_key(secrets[1]).public
    assert f"aet-stream worker --connect tcp://HOST:8572 --server-key {relay}\n" in capsys.readouterr().out
    assert main(["keys", "allow", "lab2", public, *settings[:2], "--set", "relay.listen=tcp://10.0.0.7:99"]) == 0
    assert "aet-stream worker --connect tcp://10.0.0.7:99 " in capsys.readouterr().out
    assert main(["keys", "show", *settings]) == 0
    assert f"let in: lab2 {public}" in capsys.readouterr().out
    assert main(["keys", "forbid", "lab2", *settings]) == 0
    assert main(["keys", "forbid", "lab2", *settings]) == 2
    assert "no computer is called 'lab2'; let in are: none" in capsys.readouterr().err
    assert main(["keys", "new", str(tmp_path / "worker.key")]) == 2
    assert not [path for path in secrets if load_key(path).secret.hex() in said]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_types_the_service_can_read(tmp_path: Path) -> None:
    """Key, list and their folders are of the output folder's owner."""
    os.chown(tmp_path, 12345, 12345)
    ring = KeyRing(load(None, [f"output.root={tmp_path}"]))
    ring.allow("lab2", ring.own().public)
    assert {path.stat().st_uid for path in (ring.key_file, ring.list_file, ring.key_file.parent, tmp_path / "run")} == {12345}


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [(None, 0o600, "no key yet; make it"), ("nonsense\n", 0o600, "holds no key"), ("ab" * 32, 0o640, "can be read by others: chmod 600")],
)
def test_a_key_file_that_will_not_do_is_refused(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    """With the remedy."""
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        load_key(path)


@pytest.mark.parametrize("line", ["lab2", "lab2 abc", "a/b " + "0" * 64, f"one {'1' * 64}\ntwo {'1' * 64}", f"x {'1' * 64}\nx {'2' * 64}"])
def test_a_wrong_line_of_the_list_lets_nobody_in(scene: Scene, line: str) -> None:
    """It is said, and no half of a list counts."""
    key = scene.let_in()
    scene.ring.list_file.write_text(scene.ring.list_file.read_text() + line + "\n")
    with pytest.raises(ConfigError):
        scene.ring.allowed()
    link = scene.link(key)
    scene.wait(lambda: not link.send(READY) and scene.status.strangers, "a refusal")
    assert not scene.heard


def test_a_worker_elsewhere_can_be_nothing_but_a_worker(scene: Scene) -> None:
    """What it says of itself is told under its name and computer; that it is the watch is not passed on."""
    link, _ = scene.at_work(scene.let_in())
    link.beat(WatchStatus(root_there=False))
    link.beat(WorkerStatus(model="laplace", host="elsewhere", done=3))
    scene.wait(lambda: any(isinstance(heard[1], Beat) for heard in scene.heard), "what it says of itself")
    (beat,) = [heard[1] for heard in scene.heard if isinstance(heard[1], Beat)]
    assert (beat.name, beat.said.status) == ("lab2:gpu", WorkerStatus(model="laplace", host="lab2", done=3))


# -- strangers --------------------------------------------------------------------------------------------------------------------


def plain(kind: int = zmq.DEALER, **options: Any) -> zmq.Socket[bytes]:
    found: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    found.setsockopt(zmq.LINGER, 0)
    for name, value in options.items():
        setattr(found, name, value)
    return found


def stranger(scene: Scene, kind: str) -> zmq.Socket[bytes]:
    """A ZeroMQ peer that should not be let in, and that sends what a worker would."""
    public, secret = zmq.curve_keypair()
    listed = scene.let_in("listed")
    server = z85.encode(bytes.fromhex(scene.ring.own().public))
    other, _ = zmq.curve_keypair()
    mine = z85.encode(bytes.fromhex(listed.public))
    options: dict[str, dict[str, Any]] = {
        "no key": {},
        "plain": {"plain_username": b"lab2", "plain_password": b"secret"},
        "unknown key": {"curve_serverkey": server, "curve_publickey": public, "curve_secretkey": secret},
        "wrong server key": {"curve_serverkey": other, "curve_publickey": mine, "curve_secretkey": z85.encode(listed.secret)},
        "another's public key": {"curve_serverkey": server, "curve_publickey": mine, "curve_secretkey": secret},
    }
    return plain(**options[kind])


@pytest.mark.parametrize("kind", ["no key", "plain", "unknown key", "wrong server key", "another's public key"])
def test_a_stranger_is_not_heard(scene: Scene, kind: str) -> None:
    """Nothing of it reaches the hub, nothing is sent to it, and a worker beside it works."""
    peer = stranger(scene, kind)
    events = peer.get_monitor_socket()
    peer.connect(scene.address)
    for message in (Hello(wire=WIRE_VERSION, version=__version__), READY):
        peer.send_multipart(encode(message))
    failed = (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        zmq.EVENT_DISCONNECTED,
    )
    seen: set[int] = set()

    def refused() -> bool:
        while events.poll(0):
            seen.add(struct.unpack("=hi", events.recv_multipart()[0])[0])
        return bool(seen & set(failed))

    scene.wait(refused, "the handshake to fail")
    _, to_hub = scene.at_work(scene.let_in())
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in seen
    assert {heard[0] for heard in scene.heard} == {to_hub}
    assert not peer.poll(0)
    peer.disable_monitor()
    events.close()
    peer.close()


PRINTED = re.findall(r"^aet-stream .*$", (Path(__file__).parent.parent / "docs" / "elsewhere.md").read_text(), re.MULTILINE)
GARBAGE = {"half open": b"", "HTTP": b"GET / HTTP/1.1\r\n\r\n", "random": os.urandom(4096)}
GARBAGE["a greeting and no more"] = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(48)


@pytest.mark.parametrize("what", GARBAGE.values(), ids=GARBAGE)
def test_garbage_and_half_open_connections_are_closed(scene: Scene, what: bytes) -> None:
    """At the latest when the time for a handshake is over."""
    _, to_hub = scene.at_work(scene.let_in())
    with socket.create_connection(("127.0.0.1", scene.port)) as peer:
        peer.setblocking(False)
        with contextlib.suppress(ConnectionError):
            peer.sendall(what)

        def closed() -> bool:
            try:
                return not peer.recv(4096)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        scene.wait(closed, "the connection to end")
    before = len(scene.heard)
    scene.wait(lambda: scene.links[0].send(READY) and len(scene.heard) > before, "the worker to be heard")
    assert {heard[0] for heard in scene.heard} == {to_hub}


def test_a_key_that_is_taken_off_the_list_ends_its_link(scene: Scene) -> None:
    """At once, with a word; what it had is given back to the hub. Another key goes on, and a new one comes in without a restart."""
    link, to_hub = scene.at_work(scene.let_in())
    other, _ = scene.at_work(scene.let_in("lab3"))
    scene.ring.forbid("lab2")
    with pytest.raises(WireError, match="taken off the list"):
        scene.says(link, Job)
    scene.wait(lambda: any(peer == to_hub and isinstance(message, Gone) for peer, message, _ in scene.heard), "the hub to hear of it")
    before = len(scene.heard)
    scene.wait(lambda: other.send(READY) and len(scene.heard) > before, "the other to be heard")


# -- those that are let in --------------------------------------------------------------------------------------------------------


def test_a_worker_is_told_how_to_work_and_its_pixels_go_both_ways(scene: Scene) -> None:
    """Settings and model hash from there; its name from its key, whatever it calls itself; every bit as it was sent."""
    link, to_hub = scene.at_work(scene.let_in())
    link.send(Hello(wire=WIRE_VERSION, version=__version__))
    welcome = scene.says(link, Welcome)
    assert (welcome.host, welcome.denoise, welcome.model_sha256) == ("lab2", scene.config.denoise, LAPLACE)
    assert (scene.heard[0][1].name, scene.heard[0][1].host) == ("lab2:gpu", "lab2")
    pixels = known_image(1)
    scene.hub.send(to_hub, JOB, pixels)
    got: list[Any] = scene.wait(lambda: [each for each in link.receive(0.0) if isinstance(each[0], Job)], "the job")
    assert got[0][0].job_id == "1"
    assert np.array_equal(got[0][1], pixels)
    link.send(Done(job_id="1", quality=Quality("m", "0"), network_s=0.1), pixels.astype("<f4"))
    answer = scene.wait(lambda: next((heard for heard in scene.heard if isinstance(heard[1], Done)), None), "the answer")
    assert np.array_equal(answer[2], pixels.astype("<f4"))


OTHER = msgspec.structs.replace


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Hello(wire=WIRE_VERSION - 1, version="0.0.9"), rf"version 0.0.9 .* is there; install aet-stream {__version__} on both"),
        (Hello(wire=WIRE_VERSION, version="0.0.9"), rf"version 0.0.9 .* is there; install aet-stream {__version__} on both"),
        (OTHER(READY, wire=WIRE_VERSION + 1), rf"install aet-stream {__version__} on both"),
        (OTHER(READY, model_sha256="0" * 64), rf"the model there is 0{{12}}, here it is laplace \({LAPLACE[:12]}\)"),
        (OTHER(READY, name="../x\n"), "--name"),
        (JOB, f"Job is not for the relay; install aet-stream {__version__} on both"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused_with_the_remedy(scene: Scene, message: Any, words: str) -> None:
    """It hears why, and the hub never hears of it."""
    link = scene.link(scene.let_in())
    scene.wait(lambda: link.send(message), "a connection")
    with pytest.raises(WireError, match=words):
        scene.says(link, Job)
    assert not scene.heard


def test_what_is_no_message_is_refused_and_counts_for_nobody_else(scene: Scene) -> None:
    """A worker of a far future, or gone mad, with a key of the list."""
    key = scene.let_in()
    mad = plain(
        curve_serverkey=z85.encode(bytes.fromhex(scene.ring.own().public)),
        curve_publickey=z85.encode(bytes.fromhex(key.public)),
        curve_secretkey=z85.encode(key.secret),
    )
    mad.connect(scene.address)
    for frames in ([b"garbage"], [b"x"] * 10_000, [b""], [msgspec.msgpack.encode({"kind": "hello", "wire": 99, "version": "9", "new": 1})]):
        mad.send_multipart(frames)
        refusal = msgspec.msgpack.decode(scene.wait(lambda: mad.poll(0) and mad.recv(), "a refusal"), type=Refusal)
        assert f"install aet-stream {__version__} on both computers" in refusal.text
    scene.at_work(scene.let_in("lab3"))
    assert {heard[1].name for heard in scene.heard} == {"lab3:gpu"}
    mad.close()


def test_joining_in_vain_says_what_seems_to_be_wrong(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the list, another key of the relay's, nobody there."""
    monkeypatch.setattr("aet_stream.elsewhere.curve.JOIN_S", 1.5)
    key = make_key(scene.folder / "k")
    cases = {
        f"there, run `aet-stream keys allow NAME {key.public}`": scene.link(key),
        "another key than --server-key says": scene.link(key, relay_key=make_key(scene.folder / "x").public),
        "nobody answers": RelayLink(f"tcp://127.0.0.1:{free_port()}", key, key.public, name="gpu"),
    }
    for words, link in cases.items():
        with pytest.raises(NotRunning, match=words):
            link.join(scene.turn)
        link.close()
    scene.links.clear()


# -- in the hub -------------------------------------------------------------------------------------------------------------------


def test_a_lost_link_is_forgiven_three_times(tmp_path: Path) -> None:
    """Handed out again at once and not charged; after that it counts like a death, and the visit is quarantined in the end."""
    desk = Desk(tmp_path)
    desk.offer("a")
    for loss in range(7):
        peer = f"w{loss}".encode()
        for _ in range(3):  # the last try is alone, after a pause
            desk.clock.advance(1.0)
            if job := desk.job(peer, asking=Ready(name="lab2:gpu", model_sha256="0", wire=WIRE_VERSION, host="lab2")):
                break
        assert job is not None, loss
        desk.hear(Gone(), peer=peer)
        row = desk.core.ledger.visit(1)
        assert row["attempts"] == max(0, loss - 2), loss
    assert desk.core.ledger.visit(1)["state"] == "quarantined"
    assert "the link to lab2:gpu was lost over it" in desk.core.ledger.visit(1)["reason"]
    desk.core.close()


def test_a_relay_that_dies_is_no_death_of_its_workers(tmp_path: Path) -> None:
    """Its successor speaks for the same worker on another link: what it had is handed out anew, and not charged. The answer counts once."""
    desk = Desk(tmp_path)
    desk.offer("a")
    elsewhere = Ready(name="lab2:gpu", model_sha256="0", wire=WIRE_VERSION, host="lab2")
    first = desk.job(b"one", asking=elsewhere)
    assert first is not None
    desk.clock.advance(4.0)
    second = desk.job(b"two", asking=elsewhere)
    assert second is not None
    assert second.job_id != first.job_id
    for job in (first, second):
        desk.hear(done(job), CLEAN, peer=b"two")
    desk.run()
    row = desk.core.ledger.visit(1)
    assert (row["state"], row["attempts"]) == ("stored", 0)
    tally = desk.core.status().workers["lab2:gpu"]
    assert (tally.host, tally.done, tally.lost) == ("lab2", 1, 1)
    desk.core.close()


# -- real processes, real hosts ---------------------------------------------------------------------------------------------------


class Station:
    """A daemon that lets workers in, and such workers, each with a key of its own and nothing of the daemon's disk."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", *before: str, **settings: Any) -> None:
        self._folder, self._before = folder, before
        self.port = free_port()
        self.address = f"tcp://{host}:{self.port}"
        self.daemon = Daemon(folder / "station", relay__listen=self.address, **settings)
        self._settings = folder / "config.toml"
        self._settings.write_text(f'[output]\nroot = "{self.daemon.out}"\n[relay]\nlisten = "{self.address}"\n')
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log = folder / "workers.txt"

    def start(self) -> None:
        with self.daemon.log.open("a") as log:
            command = [*self._before, *self.daemon.command("run", *self.daemon.set)]
            self.daemon.process = subprocess.Popen(command, stderr=log, stdout=log, text=True, env=ENVIRONMENT)

    def worker(self, name: str, *before: str, fault: str = "") -> subprocess.Popen[bytes]:
        """Started on another computer, whose key is let in; waits until the hub knows of it."""
        self._join("worker", name, *before, fault=fault)
        self.wait(lambda status: f"{name}:gpu0" in self.let_in(status), f"{name} to be let in")
        return self.workers[-1]

    def helper(self, name: str, *before: str) -> None:
        """The same for heavy steps."""
        self._join("helper", name, *before)
        self.wait(lambda status: f"{name}:big" in self._relay(status).get("helpers", {}), f"{name} to be let in")

    def _join(self, kind: str, name: str, *before: str, fault: str = "") -> None:
        home = self._folder / name
        home.mkdir()
        environment = {**ENVIRONMENT, "AET_STREAM_FAILPOINT": fault, "HOME": str(home)}
        made = self._type("new", environment)
        public = re.search(r"allow NAME (\w+)", made)
        assert public is not None
        allowed = self._type("allow", environment, {"lab2": name, "PUBLIC-KEY": public[1]})
        server_key = re.search(r"--server-key (\w+)", allowed)
        assert server_key is not None
        words = self._words(kind, {"tcp://HOST:8572": self.address, "RELAY-KEY": server_key[1]})
        with self.log.open("ab") as log:
            self.workers.append(subprocess.Popen([*before, *words], stderr=log, env=environment, cwd=home))

    def _words(self, kind: str, put_in: dict[str, str]) -> list[str]:
        """The command of this kind that the documentation prints, with what a person would put in."""
        (printed,) = [line for line in PRINTED if kind in line.split()[1:3]]
        put_in = {"config.toml": str(self._settings), **put_in}
        words = [re.sub("|".join(map(re.escape, put_in)), lambda found: put_in[found[0]], word) for word in shlex.split(printed)[1:]]
        return [sys.executable, "-m", "aet_stream", *words]

    def _type(self, kind: str, environment: dict[str, str], put_in: dict[str, str] | None = None) -> str:
        words = self._words(kind, {"~": environment["HOME"], **(put_in or {})})
        return subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout

    @staticmethod
    def _relay(status: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = status["roles"].get("relay", {}).get("status", {})
        return found

    def let_in(self, status: dict[str, Any]) -> list[str]:
        found: list[str] = self._relay(status).get("workers", [])
        return found

    def close_series(self) -> Path:
        """Its volume, once there is one."""
        assert self.daemon.ask("close", "s").returncode == 0
        volume = self.daemon.out / "s" / "reconstruction.h5"
        done = "series=s series.closed -> reconstruct: done"
        wait_for(lambda: done in self.daemon.log.read_text(), limit_s=180, what=f"{volume}: {self.daemon.log.read_text()[-2000:]}")
        return volume

    def wait(self, condition: Callable[[dict[str, Any]], Any], what: str, limit_s: float = 60.0) -> Any:
        def met() -> Any:
            return condition(self.daemon.status())

        try:
            return wait_for(met, limit_s=limit_s, what=what)
        except AssertionError as error:
            logs = [log.read_text()[-2500:] for log in (self.daemon.log, self.log) if log.exists()]
            raise AssertionError("\n".join([str(error), *logs])) from None

    def stored(self, count: int, limit_s: float = 90.0) -> None:
        self.wait(lambda status: status["totals"]["stored"] == count, f"{count} stored", limit_s)

    def rows(self) -> dict[str, np.ndarray]:
        with h5py.File(self.daemon.out / "s" / "series.h5") as file:
            return {name: file[f"/aet/projection/{name}"][()] for name in ("path", "worker", "attempts", "clean_crc32")}

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.process.terminate()
            self.daemon.process.wait(30)


def fill(station: Station, first: int, last: int) -> None:
    for index in range(first, last):
        put(station.daemon.root / "s", index, 2.0 * index)


def fill_until(station: Station, first: int, met: Callable[[dict[str, Any]], Any], what: str) -> int:
    """Projections from `first` on until the workers' tallies are so, however fast the station's own worker is; how many there are then."""
    for count in range(first + 8, first + 88, 8):
        fill(station, count - 8, count)
        status = station.wait(lambda status, count=count: (met(status["workers"]) or status["totals"]["stored"] == count) and status, what)
        if met(status["workers"]):
            return count
    raise AssertionError(f"{what}: never, in {count} projections: {status['workers']}")


def has_done(name: str, more_than: int = 0) -> Callable[[dict[str, Any]], bool]:
    return lambda workers: workers.get(name, {}).get("done", 0) > more_than


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_who_dies_or_hangs_elsewhere_costs_nothing(tmp_path: Path) -> None:
    """A worker that is killed, one that hangs, and the relay itself: another does what they had, once, and nothing is charged.

    The rows say who did what, and workers whose relay was killed are let in by the next.
    """
    station = Station(tmp_path)
    try:
        station.start()
        station.worker("dying", fault="worker.received=kill")
        station.worker("hanging", fault="worker.received=hang")
        both_lost = {("dying:gpu0", 0, 1), ("hanging:gpu0", 0, 1)}
        count = fill_until(
            station, 0, lambda all: both_lost <= {(name, tally["done"], tally["lost"]) for name, tally in all.items()}, "both lost"
        )
        worker = station.worker("lab3")
        before = station.daemon.pid("relay")
        os.kill(before, signal.SIGKILL)
        after = station.daemon.pid("relay", other_than=before)
        station.wait(lambda status: status["roles"]["relay"]["pid"] == after and station.let_in(status) == ["lab3:gpu0"], "lab3 to be back")
        count = fill_until(station, count, has_done("lab3:gpu0"), "lab3 is back, and gets work")
        station.stored(count)
        assert station.daemon.status()["workers"]["lab3:gpu0"]["turn_s"] > 0
        rows = station.rows()
        assert {b"worker-0", b"lab3:gpu0"} == set(rows["worker"])
        assert not rows["attempts"].any()
        assert len(set(rows["path"])) == count
        assert worker.poll() is None
        text = station.daemon.ask("status").stdout
        assert re.search(r"  lab3:gpu0: background, \d done, \d.\d\d s each, \d.\d\d s of it computing\n", text)
        assert "  dying:gpu0: gone, 0 done, 1 given to another, link lost\n" in text
    finally:
        station.close()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: 10.77.0.1 and 10.77.0.2."""
    names = tuple(f"aet-{os.getpid()}-{side}" for side in "ab")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for host, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{host}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        pytest.skip(f"no network namespaces can be made here: {getattr(error, 'stderr', error)!r}")
    yield names  # type: ignore[misc]
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextlib.contextmanager
def cut_while(station: Station, here: str, cut_s: float) -> Iterator[None]:
    """The cable is out for so long, from when a helper has begun with a volume."""

    def cut() -> None:
        wait_for(lambda: "series=s volume: begins" in station.log.read_text(), limit_s=60, what="the helper to begin")
        ip("-n", here, "link", "set", "cable", "down")
        time.sleep(cut_s)
        ip("-n", here, "link", "set", "cable", "up")

    cutting = threading.Thread(target=cut)
    if cut_s:
        cutting.start()
    yield
    if cut_s:
        cutting.join(60)


def elsewhere(folder: Path, host: str) -> tuple[str, ...]:
    """What makes a command one of another computer: its network, and nothing of the station's disk."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    hidden = f'mount -t tmpfs none {folder / "station"} && exec "$@"'
    return ("ip", "netns", "exec", host, "unshare", "--mount", "sh", "-c", hidden, "sh")


def test_a_series_and_its_volume_by_another_computer(tmp_path: Path, two_hosts: tuple[str, str]) -> None:
    """Without a shared disk: projections by its worker, the volume by its helper."""
    here, there = two_hosts
    settings = {"reconstruct__on_close": True, "reconstruct__quality": False, "reconstruct__align": [], "reconstruct__iterations": 5}
    station = Station(tmp_path, "10.77.0.1", "ip", "netns", "exec", here, **settings)
    try:
        station.start()
        station.worker("lab2", *elsewhere(tmp_path, there))
        station.helper("lab3", *elsewhere(tmp_path, there))
        count = fill_until(station, 0, has_done("lab2:gpu0"), "work done there")
        station.stored(count)
        assert b"lab2:gpu0" in set(station.rows()["worker"])
        with h5py.File(station.close_series()) as file:
            assert file["reconstruction/rows"].shape == (count,)
        assert station.daemon.log.read_text().count("series=s volume by lab3:big in") == 1
    finally:
        station.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("tilts", "cut_s"), [pytest.param(16, 0.0, marks=pytest.mark.thorough), pytest.param(60, 20.0, marks=pytest.mark.slow)]
)
def test_two_hosts_without_a_shared_disk_and_the_link_between_them_is_cut(
    tmp_path: Path, two_hosts: tuple[str, str], tilts: int, cut_s: float
) -> None:
    """One worker there is killed, and the link cut while the other works: the series is complete, nothing doubled, nothing charged.

    Then the volume is made there (in the long campaign the link is cut again): value by value the one that is made here.
    """
    here, there = two_hosts
    other_host = elsewhere(tmp_path, there)
    station = Station(tmp_path, "10.77.0.1", "ip", "netns", "exec", here, reconstruct__on_close=True)
    try:
        station.start()
        station.worker("doomed", *other_host, fault="worker.received=kill")
        station.worker("lab2", *other_host, fault="worker.received=slow+")
        count = fill_until(
            station, 0, lambda all: has_done("lab2:gpu0")(all) and all["doomed:gpu0"]["lost"], "work done there, and a worker lost"
        )
        ip("-n", here, "link", "set", "cable", "down")
        cut_at = time.monotonic()
        fill(station, count, count := count + tilts // 2)
        station.wait(lambda status: not station.let_in(status), "the relay to notice")
        wait_for(lambda: time.monotonic() - cut_at > cut_s, limit_s=60, what="the time to pass")
        ip("-n", here, "link", "set", "cable", "up")
        station.wait(lambda status: "lab2:gpu0" in station.let_in(status), "the worker to be back")
        station.stored(count)
        before = station.daemon.status()["workers"]["lab2:gpu0"]["done"]
        count = fill_until(station, count, has_done("lab2:gpu0", more_than=before), "more work done there")
        station.stored(count)
        rows = station.rows()
        assert len(set(rows["path"])) == len(rows["path"]) == count
        assert not rows["attempts"].any()
        assert set(rows["worker"]) == {b"worker-0", b"lab2:gpu0"}
        workers = station.daemon.status()["workers"]
        assert workers["doomed:gpu0"]["lost"] == 1
        station.helper("lab3", *other_host)
        with cut_while(station, here, cut_s):
            volume = station.close_series()
        assert station.daemon.log.read_text().count("series=s volume by lab3:big in") == 1
        assert ("lab3:big is lost" in station.daemon.log.read_text()) == bool(cut_s)
        series = volume.with_name("series.h5")
        assert station.daemon.ask("reconstruct", str(series), "--out", str(tmp_path / "here.h5")).returncode == 0
        with h5py.File(volume) as one, h5py.File(tmp_path / "here.h5") as other:
            for name in ("volume", "residuals", "shifts_px", "quality/fsc", "quality/residual_per_tilt"):
                assert np.array_equal(one[f"reconstruction/{name}"][()], other[f"reconstruction/{name}"][()], equal_nan=True), name
        assert station.daemon.ask("verify", str(series)).returncode == 0
    finally:
        station.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_connections_exhaust_the_relay_alone(tmp_path: Path) -> None:
    """A series goes on while they are held, however few descriptors there are; afterwards a worker is let in again."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 11_000:
        pytest.skip(f"only {before[1]} descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    station = Station(tmp_path, "127.0.0.1", "prlimit", "--nofile=1024:1024")
    peers: list[socket.socket] = []
    try:
        station.start()
        station.worker("lab2")
        pids = station.daemon.role_pids()
        for number in range(10_000):
            peer = socket.socket()
            peer.setblocking(False)
            peers.append(peer)
            with contextlib.suppress(BlockingIOError):
                peer.connect(("127.0.0.1", station.port))
            if number % 1000 == 999:
                put(station.daemon.root / "s", number // 1000, 2.0 * (number // 1000))
        station.stored(10)
        for peer in peers:
            peer.close()
        station.worker("lab3")
        station.stored(fill_until(station, 10, has_done("lab3:gpu0"), "work for who was let in since"))
        assert {name: pid for name, pid in station.daemon.role_pids().items() if name != "relay"} == {
            name: pid for name, pid in pids.items() if name != "relay"
        }
        assert b"lab3:gpu0" in set(station.rows()["worker"])
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        station.close()
