"""The door between computers: a ROUTER that only keys of a list get through (CURVE), and a worker's link to it.

What a stranger sends is never read: before a handshake with a key of the list there is no peer. Whether a computer is still there is TCP's
to find out (keepalive, retransmission): it tells a dead link from a long message and from a worker that thinks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import zmq

from aet_stream import __version__
from aet_stream.elsewhere.keys import Key
from aet_stream.errors import ConfigError, NotRunning, WireError
from aet_stream.messages import WIRE_VERSION, AnyMessage, FromRelay, Hello, Refusal, ToRelay, Welcome
from aet_stream.projection import Array
from aet_stream.transport import TURN_MESSAGES, Link, decode, encode, new_socket

LINK_LOST_S = 5
"""A link whose other end acknowledges nothing for so long is lost."""
HANDSHAKE_S = 2
JOIN_S = 20.0
ASK_S = 0.5
_ZAP = "inproc://zeromq.zap.01"


def _watch_the_link(socket: zmq.Socket[bytes], address: str) -> None:
    """tcp(7): probes after 2 s of silence, every second; what is sent has to be acknowledged, too."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 2)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, LINK_LOST_S - 2)
    socket.setsockopt(zmq.TCP_MAXRT, LINK_LOST_S * 1000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_S * 1000)
    socket.setsockopt(zmq.IPV6, int("[" in address))


class RelaySocket:
    """The relay's end."""

    def __init__(self, listen: str, key: Key, allowed: Callable[[], Mapping[str, str]]) -> None:
        """
        Parameters
        ----------
        allowed : public key -> name of those that are let in; asked at each handshake

        Raises
        ------
        ConfigError : the address cannot be had
        """
        self.strangers = 0
        """Handshakes of keys that are not on the list."""
        self._allowed = allowed
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()  # its own: a context has one list of keys
        self._doorman = new_socket(zmq.REP, self._context)
        self._doorman.bind(_ZAP)
        self._router = new_socket(zmq.ROUTER, self._context)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.CURVE_SERVER, 1)
        self._router.setsockopt(zmq.CURVE_SECRETKEY, key.secret)
        self._router.setsockopt(zmq.ZAP_DOMAIN, b"aet-stream")
        self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        _watch_the_link(self._router, listen)
        try:
            self._router.bind(listen)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"relay.listen {listen}: {error.strerror}; take an address of this computer and a free port") from error
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        """What it is bound to."""

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """For `wait`."""
        return self._router, self._doorman

    def receive(self) -> Iterator[tuple[bytes, str, ToRelay | WireError, Array | None]]:
        """(peer, its public key, message or what is wrong with it, pixels) of what is waiting."""
        self._open_the_door()
        for _ in range(TURN_MESSAGES):
            try:
                peer, *frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            key = str(peer.get("User-Id"))
            try:
                message, pixels = decode(frames)
                if not isinstance(message, ToRelay):
                    raise WireError(f"{type(message).__name__} is not for the relay")
            except WireError as error:
                yield peer.bytes, key, error, None
            else:
                yield peer.bytes, key, message, pixels

    def _open_the_door(self) -> None:
        """Answer libzmq, which asks about every key that shakes hands (ZAP, rfc.zeromq.org/spec/27)."""
        for _ in range(TURN_MESSAGES):
            try:
                version, request, _domain, _address, _identity, mechanism, *credentials = self._doorman.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            key = credentials[0].hex() if mechanism == b"CURVE" and len(credentials) == 1 else ""
            known = key in self._allowed()
            self.strangers += not known
            code, text = (b"200", b"OK") if known else (b"400", b"this key is not on the list")
            self._doorman.send_multipart([version, request, code, text, key.encode() if known else b"", b""])

    def send(self, peer: bytes, message: FromRelay, pixels: Array | None = None, *, compress: bool = False) -> bool:
        """True if the peer is there to take it."""
        try:
            self._router.send_multipart([peer, *encode(message, pixels, compress=compress)], zmq.NOBLOCK, copy=pixels is None)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            if error.errno != zmq.EAGAIN:
                raise
        return True  # EAGAIN: it is there, and slow; what is lost so is said again

    def close(self) -> None:
        self._router.close()
        self._doorman.close()
        self._context.term()


class RelayLink(Link):
    """A worker's end, on another computer."""

    def __init__(self, address: str, key: Key, relay_key: str, *, name: str, compress: bool = False) -> None:
        """
        Parameters
        ----------
        address : tcp://HOST:PORT
        key : of this computer
        relay_key : the public one of the relay: nobody else can take its place
        compress : what is sent is compressed
        """
        self._address, self._key = address, key
        dealer = new_socket(zmq.DEALER)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(relay_key))
        dealer.setsockopt(zmq.CURVE_SECRETKEY, key.secret)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(key.public))
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
        _watch_the_link(dealer, address)
        self._events = dealer.get_monitor_socket()
        try:
            super().__init__(dealer, address, name=name)
            self.compress = compress
        except zmq.ZMQError as error:
            raise ConfigError(f"--connect {address}: {error.strerror}; tcp://HOST:PORT is needed") from error

    def join(self, alive: Callable[[], None]) -> Welcome:
        """Ask how to work there, until somebody answers.

        Parameters
        ----------
        alive : called now and then while we wait

        Raises
        ------
        WireError : we are refused, and why
        NotRunning : nobody lets us in; as far as can be seen, why
        """
        until, seen = time.monotonic() + JOIN_S, set[int]()
        while time.monotonic() < until:
            alive()
            self.send(Hello(wire=WIRE_VERSION, version=__version__))
            for message, _ in self.receive(ASK_S):
                if isinstance(message, Welcome):
                    self._look_no_more()
                    return message
            seen.update(self._happened())
        raise NotRunning(f"{self._address}: {self._cause(seen)}")

    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]:
        """What the relay says within `timeout_s`.

        Raises
        ------
        WireError : it gives us no work, and why
        """
        for message, pixels in super().receive(timeout_s):
            if isinstance(message, Refusal):
                raise WireError(f"{self._address}: {message.text}")
            yield message, pixels

    def _happened(self) -> Iterator[int]:
        from zmq.utils.monitor import recv_monitor_message  # brings asyncio: every worker would pay for it at its start

        with contextlib.suppress(zmq.Again):
            while True:
                yield recv_monitor_message(self._events, zmq.NOBLOCK)["event"]

    def _cause(self, seen: set[int]) -> str:
        if zmq.EVENT_HANDSHAKE_FAILED_AUTH in seen:
            return f"this computer is not let in: there, run `aet-stream keys allow NAME {self._key.public}`"
        if seen & {zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_CONNECTED}:
            return "it has another key than --server-key says (`aet-stream keys show` there prints it), or is no relay of aet-stream"
        return (
            "nobody answers: is that the name or address of the computer, does the daemon run there with relay.listen set, "
            "and does its firewall let this port through?"
        )

    def _look_no_more(self) -> None:
        if not self._events.closed:
            self._dealer.disable_monitor()
            self._events.close()

    def close(self) -> None:
        self._look_no_more()
        super().close()
