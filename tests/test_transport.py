"""The queue's border: what belongs on it goes through unchanged, what does not is refused and counted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from aet_stream.errors import NotRunning, WireError
from aet_stream.messages import ArraySpec, Beat, Chunk, Done, FromStep, Job, Pulse, Ready, TaskOff
from aet_stream.projection import RAW_DTYPES, Quality, VisitKey
from aet_stream.status import WatchStatus
from aet_stream.transport import OFFLOAD, TURN_MESSAGES, Door, EventStream, HubLink, HubSocket, ask, encode
from tests.harness import wait_for

READY = Ready(name="w", model_sha256="0")
DONE = Done(job_id="1", quality=Quality("m", "0"), network_s=0.1)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubSocket]:
    socket = HubSocket(tmp_path)
    yield socket
    socket.close()


@pytest.fixture
def link(tmp_path: Path, hub: HubSocket) -> Iterator[HubLink]:
    found = HubLink(tmp_path, name="w")
    wait_for(lambda: found.send(READY), what="a connection")
    next_heard(hub)
    yield found
    found.close()


def next_heard(hub: HubSocket) -> object:
    return wait_for(lambda: next(iter(hub.receive(0.1)), None), what="a message")


@pytest.mark.parametrize("dtype", sorted(RAW_DTYPES))
def test_pixels_arrive_as_they_were_sent(hub: HubSocket, link: HubLink, dtype: str) -> None:
    """Every dtype, odd shapes, read-only at the other end."""
    pixels = np.arange(35).reshape(5, 7).astype(dtype)
    assert link.send(DONE, pixels)
    _, message, found = next_heard(hub)  # type: ignore[misc]
    assert message.job_id == "1"
    assert found.dtype == pixels.dtype
    assert np.array_equal(found, pixels)
    assert not found.flags.writeable


def spoiled(**wrong: object) -> list[bytes]:
    pixels = np.zeros((4, 4), "<u2")
    header = msgspec.structs.replace(DONE, array=ArraySpec("<u2", 4, 4, 0))
    good = encode(DONE, pixels)
    spec = msgspec.structs.replace(msgspec.msgpack.decode(good[0], type=Done).array, **wrong)  # type: ignore[type-var]
    return [msgspec.msgpack.encode(msgspec.structs.replace(header, array=spec)), bytes(good[1])]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"garbage"], "unreadable header"),
        ([b""], "unreadable header"),
        ([b"x" * (2 << 20)], "header of"),
        ([msgspec.msgpack.encode({"kind": "unknown"})], "unreadable header"),
        ([msgspec.msgpack.encode(Pulse(hub_id="x"))], "not for the hub"),
        ([msgspec.msgpack.encode(READY), b"extra"], "do not belong together"),
        ([b"x"] * 10_000, "parts"),
        (spoiled(dtype="|O8"), "dtype"),
        (spoiled(dtype="<c8"), "dtype"),
        (spoiled(height=0), "shape"),
        (spoiled(height=1 << 40, width=1 << 40), "shape"),
        (spoiled(height=5), "do not make"),
        (spoiled(crc32=1), "checksum"),
    ],
)
def test_what_breaks_the_rules_is_refused_and_the_next_message_arrives(
    tmp_path: Path, hub: HubSocket, link: HubLink, frames: list[bytes], words: str
) -> None:
    """Nothing is allocated on a stranger's word; a good peer is not disturbed."""
    peer = zmq.Context.instance().socket(zmq.DEALER)
    peer.connect(f"ipc://{tmp_path / 'run' / 'hub'}")
    peer.send_multipart(frames)
    error = next_heard(hub)
    assert isinstance(error, WireError)
    assert words in str(error)
    assert hub.refused == 1
    link.send(READY)
    assert next_heard(hub)[1] == READY  # type: ignore[index]
    peer.close(linger=0)


def test_a_turn_ends_however_much_arrives(hub: HubSocket, link: HubLink) -> None:
    """At both ends; what is left comes in the next."""
    assert link.send(READY)
    peer = next_heard(hub)[0]  # type: ignore[index]
    names = [str(index) for index in range(2 * TURN_MESSAGES)]
    for name in names:
        assert link.send(msgspec.structs.replace(READY, name=name))
        assert hub.send(peer, Job(job_id=name, series="s", visit=VisitKey("p", 0, "1")))
    turns: list[Callable[[], list[str]]] = [
        lambda: [heard[1].name for heard in hub.receive(5.0)],  # type: ignore[index, union-attr]
        lambda: [message.job_id for message, _ in link.receive(5.0)],  # type: ignore[union-attr]
    ]
    for turn in turns:
        found: list[str] = []
        while len(found) < len(names):
            now = turn()
            assert 0 < len(now) <= TURN_MESSAGES
            found += now
        assert found == names


def test_an_oversize_array_is_refused_before_it_is_sent() -> None:
    """A peer would drop it and hang up without a word."""
    with pytest.raises(WireError, match="at most"):
        encode(DONE, np.broadcast_to(np.zeros(1, "<f8"), (8193, 8193)))


def test_a_message_to_a_peer_that_left_is_known_to_be_lost(hub: HubSocket) -> None:
    """The hub takes the job back instead of waiting for it."""
    assert not hub.send(b"nobody", Job(job_id="1", series="s", visit=VisitKey("p", 0, "1")))


def test_a_role_notices_a_new_hub(tmp_path: Path) -> None:
    """After a restart of the hub the link reconnects, and its pulse says that it is another one."""
    link = HubLink(tmp_path, name="watch")
    for name in ("one", "two"):
        hub = HubSocket(tmp_path)

        def beaten(hub: HubSocket = hub, name: str = name) -> bool:
            link.beat(WatchStatus())
            for heard in hub.receive(0.05):
                if not isinstance(heard, WireError) and isinstance(heard[1], Beat):
                    hub.send(heard[0], Pulse(hub_id=name))
            list(link.receive(0.05))
            return link.hub_id == name

        wait_for(beaten, what=f"hub {name}")
        hub.close()
    link.close()


LAST_WORDS = """
import os, sys, pathlib
from aet_stream.messages import Chunk, TaskOff
from aet_stream.transport import StepLink
link = StepLink(pathlib.Path(sys.argv[1]), name="volume of s")
while not link.send(Chunk(sha256="0", offset=0, data=b"", crc32=0)):
    pass
for number in range(1, 100):
    link.send(Chunk(sha256="0", offset=number, data=bytes(1 << 18), crc32=0))
link.send(TaskOff(key="k"))
link.close()
os.execv("/bin/true", ["true"])
"""


def test_what_a_step_says_last_is_heard_though_it_becomes_another_process(tmp_path: Path) -> None:
    """That it needs its helper no more: otherwise that keeps the files for a minute."""
    door: Door[FromStep] = Door(tmp_path, OFFLOAD, FromStep)
    try:
        subprocess.run([sys.executable, "-c", LAST_WORDS, str(tmp_path)], check=True, timeout=60)
        heard: list[object] = []
        while new := [each[1] for each in door.receive(5.0) if not isinstance(each, WireError)]:
            heard += new
            if isinstance(new[-1], TaskOff):
                break
    finally:
        door.close()
    assert [message.offset for message in heard[:-1] if isinstance(message, Chunk)] == list(range(100))
    assert isinstance(heard[-1], TaskOff)


def test_nothing_piles_up_while_there_is_no_hub(tmp_path: Path) -> None:
    """Sending says no; the hub will ask again."""
    link = HubLink(tmp_path, name="watch")
    assert not link.send(READY)
    link.close()


def test_a_deep_output_folder_works(tmp_path: Path) -> None:
    """A socket address holds 107 bytes; folders may be deeper."""
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    hub, link = HubSocket(deep), HubLink(deep, name="watch")
    wait_for(lambda: link.send(READY), what="a connection")
    assert next_heard(hub)[1] == READY  # type: ignore[index]
    hub.close()
    link.close()


def test_events_reach_whoever_listens(tmp_path: Path, hub: HubSocket) -> None:
    """Topic and content, as JSON."""
    stream = EventStream(tmp_path, "status")

    def heard() -> list[tuple[str, dict]]:
        hub.publish("other", {"x": 1})
        hub.publish("status", {"a": [1, 2]})
        return list(stream.receive(0.05))

    assert wait_for(heard)[0] == ("status", {"a": [1, 2]})
    stream.close()


def test_asking_without_a_daemon_says_so(tmp_path: Path) -> None:
    """At once, with the remedy: where none has ever been, and where one has ended."""
    for _ in range(2):
        with pytest.raises(NotRunning, match=r"no daemon is running .* `aet-stream run`"):
            ask(tmp_path, "status", timeout_s=60)
        HubSocket(tmp_path).close()
