"""The only door to ZeroMQ: the hub's two sockets, the roles' link to it, and what a frame must look like.

A message is one header frame (msgpack, at most 1 MiB) and at most one pixel frame. Parts, sizes, dtype, shape and checksum are
checked before an array is made of a buffer. Memory is bounded by the hub's credit, not by high-water marks: those count messages.
"""

from __future__ import annotations

import functools
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from aet_stream import compression
from aet_stream.errors import AetError, NotRunning, WireError
from aet_stream.messages import WIRE_VERSION, AnyMessage, ArraySpec, Beat, Command, Pulse, Reply, ToHub
from aet_stream.projection import RAW_DTYPES, Array
from aet_stream.status import RoleStatus, heard

OFFLOAD = "offload"
"""Where steps find the relay, beside the hub's socket."""
TURN_MESSAGES = 64
"""So many are taken in one turn, however much arrives: the rest is there in the next."""
ASK_AGAIN_S = 0.1
MAX_HEADER_BYTES = 1 << 20
MAX_EDGE_PX = 8192
MAX_ARRAY_BYTES = MAX_EDGE_PX * MAX_EDGE_PX * 8

_Said = TypeVar("_Said")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def run_folder(output_root: Path) -> Path:
    """Where sockets and locks of one output folder live; made if absent, open to its owner only.

    It is the output folder's owner's: root may type a command before the service has been started for the first time.

    Raises
    ------
    OSError : it cannot be made, and what to do about it
    """
    folder = output_root / "run"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        said = f"{error.strerror}; output.root has to be a folder that this user may make and write to"
        raise OSError(error.errno, said, error.filename) from error
    if os.geteuid() == 0 and (owner := output_root.stat()).st_uid != folder.stat().st_uid:
        os.chown(folder, owner.st_uid, owner.st_gid)
    return folder


def _endpoint(output_root: Path, name: str) -> str:
    path = run_folder(output_root) / name
    if len(os.fsencode(path)) < 100:
        return f"ipc://{path}"
    # A Unix socket address holds 107 bytes; deep output folders are reached through an open descriptor of theirs.
    return f"ipc:///proc/self/fd/{_descriptor(path.parent)}/{name}"


@functools.cache
def _descriptor(folder: Path) -> int:
    """One per folder, for as long as we live: a socket connects again through it."""
    return os.open(folder, os.O_PATH | os.O_CLOEXEC)


def encode(message: AnyMessage, pixels: Array | None = None, *, compress: bool = False) -> list[Any]:
    """Frames for one message; the pixel frame is the array's own memory, or with `compress` its bytes compressed where they get fewer.

    Raises
    ------
    WireError : the array is larger than a peer would take
    """
    if pixels is None:
        return [_encoder.encode(message)]
    if pixels.nbytes > MAX_ARRAY_BYTES:
        raise WireError(f"pixels of {pixels.nbytes} bytes; the queue takes at most {MAX_ARRAY_BYTES} ({MAX_EDGE_PX} px square)")
    import numpy as np  # only with pixels: most processes send and receive none

    pixels = np.ascontiguousarray(pixels)
    planes = pixels.shape[0] if pixels.ndim == 3 else 1
    spec = ArraySpec(pixels.dtype.str, pixels.shape[-2], pixels.shape[-1], zlib.crc32(pixels.data), planes)
    buffer: Any = pixels.data.cast("B")
    if compress and len(smaller := compression.compress(buffer, pixels.itemsize)) < len(buffer):
        buffer, spec = smaller, msgspec.structs.replace(spec, compressed=True)
    return [_encoder.encode(msgspec.structs.replace(message, array=spec)), buffer]


def decode(frames: list[zmq.Frame]) -> tuple[AnyMessage, Array | None]:
    """The message and its pixels: a read-only (height, width) view of the frame, or (planes, height, width) when there are several.

    Raises
    ------
    WireError : says which rule was broken
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(f"{len(frames)} parts; a message has one or two")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise WireError(f"header of {len(frames[0])} bytes; at most {MAX_HEADER_BYTES}")
    try:
        message: AnyMessage = _decoder.decode(frames[0].buffer)
    except msgspec.MsgspecError as error:
        raise WireError(f"unreadable header: {error}") from error
    spec = message.array
    if (spec is None) != (len(frames) == 1):
        raise WireError("header and pixel frame do not belong together")
    if spec is None:
        return message, None
    return message, _array(spec, frames[1])


def _array(spec: ArraySpec, frame: zmq.Frame) -> Array:
    import numpy as np

    if spec.dtype not in RAW_DTYPES:
        raise WireError(f"dtype {spec.dtype!r} is not one of {sorted(RAW_DTYPES)}")
    if not (0 < spec.height <= MAX_EDGE_PX and 0 < spec.width <= MAX_EDGE_PX):
        raise WireError(f"shape ({spec.height}, {spec.width}); edges are 1..{MAX_EDGE_PX} px")
    itemsize = np.dtype(spec.dtype).itemsize
    nbytes = spec.planes * spec.height * spec.width * itemsize
    if spec.planes < 1 or nbytes > MAX_ARRAY_BYTES or (len(frame) != nbytes and not spec.compressed):
        raise WireError(f"{len(frame)} bytes do not make {spec.planes} x ({spec.height}, {spec.width}) of {spec.dtype}")
    buffer = compression.decompress(frame.buffer, nbytes, itemsize) if spec.compressed else frame.buffer
    if zlib.crc32(buffer) != spec.crc32:
        raise WireError("the pixels' checksum is wrong")
    shape = (spec.height, spec.width) if spec.planes == 1 else (spec.planes, spec.height, spec.width)
    pixels = np.frombuffer(buffer, dtype=spec.dtype).reshape(shape)
    pixels.flags.writeable = False  # it is the message itself
    return pixels


def new_socket(kind: int, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> zmq.Socket[bytes]:
    """With the limits of all of ours; of this process's context, or another."""
    socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
    socket.setsockopt(zmq.LINGER, 500)  # at the end: time for what was just sent to leave, never longer
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_ARRAY_BYTES)
    return socket


class Door(Generic[_Said]):
    """A ROUTER for processes of this computer that want something of this one."""

    def __init__(self, output_root: Path, name: str, kinds: Any) -> None:
        """
        Parameters
        ----------
        name : of the socket, below `run` of the output folder
        kinds : of messages that are for us: a union of them
        """
        self._folder, self._name, self._kinds = run_folder(output_root), name, kinds
        self._router = new_socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else messages to a peer that left vanish silently
        self._router.bind(_endpoint(output_root, name))
        self.refused = 0
        """Messages that broke the rules."""

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For `wait`."""
        return self._router

    def receive(self, timeout_s: float) -> Iterator[tuple[bytes, _Said, Array | None] | WireError]:
        """All that is waiting, after at most `timeout_s`; a broken message comes as its error."""
        if not self._router.poll(round(timeout_s * 1000)):
            return
        for _ in range(TURN_MESSAGES):
            try:
                peer, *frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                message, pixels = decode(frames)
                if not isinstance(message, self._kinds):
                    raise WireError(f"{type(message).__name__} is not for the {self._name}")
            except WireError as error:
                self.refused += 1
                yield error
            else:
                yield peer.bytes, message, pixels

    def send(self, peer: bytes, message: AnyMessage, pixels: Array | None = None) -> bool:
        """True if the peer was there to take it."""
        try:
            self._router.send_multipart([peer, *encode(message, pixels)], zmq.NOBLOCK, copy=pixels is None)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self) -> None:
        """And take the address away: who asks later need not wait for an answer."""
        self._router.close()
        (self._folder / self._name).unlink(missing_ok=True)


class HubSocket(Door[ToHub]):
    """The hub's end: for everybody who talks to it, and a PUB that tells what happened."""

    def __init__(self, output_root: Path) -> None:
        super().__init__(output_root, "hub", ToHub)
        self._publisher = new_socket(zmq.PUB)
        self._publisher.bind(_endpoint(output_root, "events"))

    def publish(self, topic: str, what: dict[str, Any]) -> None:
        """Tell whoever listens; nobody has to."""
        self._publisher.send_multipart([topic.encode(), msgspec.json.encode(what)])

    def close(self) -> None:
        super().close()
        self._publisher.close()
        (self._folder / "events").unlink(missing_ok=True)


class Link:
    """A role's end: a DEALER that beats, and notices when the hub is a new one."""

    def __init__(self, dealer: zmq.Socket[bytes], endpoint: str, *, name: str, wake_fd: int | None = None) -> None:
        self.name = name
        self.hub_id = ""
        self.newer_than_s = 0.0
        """What its pulse says."""
        self.heard_at = time.monotonic()
        """When anything came, a pulse too."""
        self.compress = False
        """Pixels are compressed on their way: the link is slow."""
        self._dealer = dealer
        self._dealer.setsockopt(zmq.IMMEDIATE, 1)  # with nobody there, nothing piles up
        self._dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        self._dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._dealer.connect(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._dealer, zmq.POLLIN)
        if wake_fd is not None:
            self._poller.register(wake_fd, zmq.POLLIN)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For `wait`."""
        return self._dealer

    def send(self, message: AnyMessage, pixels: Array | None = None) -> bool:
        """True if it is on its way; False when there is no hub. Then the hub will ask again: nothing is lost."""
        try:
            self._dealer.send_multipart(encode(message, pixels, compress=self.compress), zmq.NOBLOCK, copy=pixels is None)
        except zmq.Again:
            return False
        return True

    def beat(self, status: RoleStatus) -> bool:
        return self.send(Beat(name=self.name, wire=WIRE_VERSION, said=heard(status, os.getpid())))

    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]:
        """What the hub says within `timeout_s`; earlier when the wake descriptor stirs. Pulses are noted, not passed on."""
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        for _ in range(TURN_MESSAGES if self._dealer in ready else 0):
            try:
                frames = self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            message, pixels = decode(frames)
            self.heard_at = time.monotonic()
            if isinstance(message, Pulse):
                self.hub_id, self.newer_than_s = message.hub_id, message.newer_than_s
            else:
                yield message, pixels

    def close(self) -> None:
        self._dealer.close()


class HubLink(Link):
    """To the hub of the same computer."""

    def __init__(self, output_root: Path, *, name: str, wake_fd: int | None = None) -> None:
        dealer = new_socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, f"{name}.{os.getpid()}.{os.urandom(3).hex()}".encode())
        super().__init__(dealer, _endpoint(output_root, "hub"), name=name, wake_fd=wake_fd)


class StepLink(Link):
    """A step's end, to the relay of the same computer."""

    def __init__(self, output_root: Path, *, name: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        dealer = new_socket(zmq.DEALER, self._context)
        dealer.setsockopt(zmq.LINGER, 1000)
        super().__init__(dealer, _endpoint(output_root, OFFLOAD), name=name)

    def close(self) -> None:
        """Wait until what was said last has left: the process may end, or become another, with the next line."""
        super().close()
        self._context.term()


def wait(ends: Iterable[zmq.Socket[bytes]], timeout_s: float) -> None:
    """Until something has come to one of these, or for `timeout_s`."""
    poller = zmq.Poller()
    for end in ends:
        poller.register(end, zmq.POLLIN)
    poller.poll(round(timeout_s * 1000))


def ask(output_root: Path, name: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 10.0) -> dict[str, Any]:
    """One command of a person to the hub, and its answer.

    Raises
    ------
    NotRunning : nobody answers in time
    AetError : the hub says no, and why
    """
    if not (output_root / "run" / "hub").exists():
        raise NotRunning(f"no daemon is running for {output_root}: start one with `aet-stream run`")
    link = HubLink(output_root, name="person")
    try:
        link._dealer.setsockopt(zmq.SNDTIMEO, round(timeout_s * 1000))
        link._dealer.send_multipart(encode(Command(name=name, arguments=arguments or {})))
        for message, _ in link.receive(timeout_s):
            if isinstance(message, Reply):
                if not message.ok:
                    raise AetError(message.text)
                return {"text": message.text, **message.data}
    except zmq.Again:
        pass
    finally:
        link.close()
    raise NotRunning(f"no daemon answers for {output_root} within {timeout_s:g} s: start one with `aet-stream run`")


def ask_until_done(output_root: Path, name: str, arguments: dict[str, Any], *, beat: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The same again and again, as long as the hub works on it; its last answer. `beat`: called in between."""
    while (answer := ask(output_root, name, arguments)).get("state") in ("working", "closing"):
        beat()
        time.sleep(ASK_AGAIN_S)
    return answer


def hand_over(endpoint: str, event_id: str, content: bytes, *, timeout_s: float) -> None:
    """Send (id, content) to a REP socket and wait until it answers with the id.

    Raises
    ------
    AetError : no such endpoint, no answer in time, or another one
    """
    socket = new_socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDTIMEO, round(timeout_s * 1000))
    socket.setsockopt(zmq.RCVTIMEO, round(timeout_s * 1000))
    try:
        socket.connect(endpoint)
        socket.send_multipart([event_id.encode(), content])
        answer = socket.recv_multipart()
    except zmq.Again as error:
        raise AetError(f"{endpoint}: no answer within {timeout_s:g} s") from error
    except zmq.ZMQError as error:
        raise AetError(f"zeromq.endpoint {endpoint}: {error}") from error
    finally:
        socket.close()
    if answer != [event_id.encode()]:
        raise AetError(f"{endpoint}: the answer is not the event's id")


class EventStream:
    """What the hub publishes, newest last; for viewers and scripts."""

    def __init__(self, output_root: Path, *topics: str) -> None:
        self._subscriber = new_socket(zmq.SUB)
        for topic in topics or ("",):
            self._subscriber.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._subscriber.connect(_endpoint(output_root, "events"))

    def fileno(self) -> int:
        """Becomes readable when something may have come; then `receive` until now, or it will not again."""
        return int(self._subscriber.getsockopt(zmq.FD))

    def receive(self, timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """(topic, content) of all that is waiting, after at most `timeout_s`."""
        if not self._subscriber.poll(round(timeout_s * 1000)):
            return
        while True:
            try:
                topic, content = self._subscriber.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield topic.decode(), msgspec.json.decode(content)

    def close(self) -> None:
        self._subscriber.close()
