"""The relay: lets workers on other computers in, and speaks for each of them with the hub, as if it were here.

Between the network and the hub: strangers can use up its descriptors and time, not the hub's. It keeps nothing: after a restart workers
that ask are let in again, and what they were at is handed out again.
"""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass

import msgspec

from aet_stream import __version__
from aet_stream.config import Config
from aet_stream.denoise.estimators import model_sha256
from aet_stream.elsewhere.curve import RelaySocket
from aet_stream.elsewhere.dispatch import Dispatcher
from aet_stream.elsewhere.keys import NAME, KeyRing
from aet_stream.errors import AetError, WireError
from aet_stream.messages import (
    WIRE_VERSION,
    Beat,
    Chunk,
    Fetch,
    FromRelay,
    Gone,
    Hello,
    HelperReady,
    Job,
    Pulse,
    Ready,
    Refusal,
    TaskDone,
    ToRelay,
    Welcome,
    Working,
)
from aet_stream.projection import Array
from aet_stream.status import RelayStatus, WorkerHeard, in_words
from aet_stream.transport import HubLink, wait

logger = logging.getLogger(__name__)

TURN_S = 0.2
COUNT_S = 1.0
"""So often each worker is sent a pulse, which finds out whether it is still there."""
_SAME_VERSION = f"install aet-stream {__version__} on both computers, and start the worker again"


@dataclass(slots=True)
class Guest:
    """One worker that was let in."""

    name: str
    key: str
    link: HubLink
    """Its own to the hub."""
    compress: bool
    """The link to it is slow."""


class Relay:
    """Carries messages between workers elsewhere and the hub."""

    name = "relay"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._keys = KeyRing(config)
        self._allowed: dict[str, str] = {}
        self._guests: dict[bytes, Guest] = {}
        self._told: set[bytes] = set()
        """Peers that were refused and have heard so."""
        self._model = ""
        self._counted_at = 0.0
        self._socket: RelaySocket | None = None
        self._link: HubLink | None = None
        self._dispatcher: Dispatcher | None = None

    def start(self) -> None:
        """Read the keys, and open the door."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._model = model_sha256(self._config.denoise.model)
        self._look_at_the_list()
        self._socket = RelaySocket(self._config.relay.listen, self._keys.own(), lambda: self._allowed)
        self._link = HubLink(self._config.output_root, name=self.name)
        self._dispatcher = Dispatcher(self._config.output_root, self._send)
        logger.info("workers on other computers: %s, %d key(s) let in", self._socket.address, len(self._allowed))

    def step(self) -> None:
        socket, link, dispatcher = self._open()
        wait([*socket.sockets, link.socket, dispatcher.door.socket, *(guest.link.socket for guest in self._guests.values())], TURN_S)
        self._look_at_the_list()
        for peer, key, message, pixels in socket.receive():
            if isinstance(message, WireError):
                self._refuse(peer, f"{message}; {_SAME_VERSION}")
            else:
                self._hear(peer, key, message, pixels)
        for peer, guest in list(self._guests.items()):
            self._carry(peer, guest)
        dispatcher.turn()
        for _ in link.receive(0):
            pass  # pulses are noted inside
        if time.monotonic() - self._counted_at > COUNT_S:
            self._counted_at = time.monotonic()
            self._count()

    def _open(self) -> tuple[RelaySocket, HubLink, Dispatcher]:
        assert self._socket is not None
        assert self._link is not None
        assert self._dispatcher is not None
        return self._socket, self._link, self._dispatcher

    def _look_at_the_list(self) -> None:
        try:
            self._allowed = dict(self._keys.allowed())
        except AetError as error:
            if self._allowed or self._socket is None:
                logger.error("%s: nobody is let in until then", error)
            self._allowed = {}

    # -- from there to here -------------------------------------------------------------------------------------------------------

    def _hear(self, peer: bytes, key: str, message: ToRelay, pixels: Array | None) -> None:
        host = self._allowed.get(key)
        if host is None:
            return  # no more: `_count` ends its link
        if isinstance(message, Hello):
            if message.wire != WIRE_VERSION or message.version != __version__:
                self._refuse(peer, f"version {message.version} of aet-stream (queue {message.wire}) is there; {_SAME_VERSION}")
            else:
                self._send(peer, Welcome(host=host, denoise=self._config.denoise, model_sha256=self._model))
            return
        if isinstance(message, HelperReady | Fetch | Chunk | TaskDone) or (isinstance(message, Working) and peer not in self._guests):
            self._hear_helper(peer, key, host, message)
            return
        guest = self._guests.get(peer)
        if guest is None:
            if isinstance(message, Ready):
                self._let_in(peer, key, host, message)
            return
        match message:
            case Ready():
                message = msgspec.structs.replace(message, name=guest.name, host=host)
            case Beat(said=WorkerHeard(status=status) as said):
                said = msgspec.structs.replace(said, status=msgspec.structs.replace(status, host=host))
                message = msgspec.structs.replace(message, name=guest.name, said=said)
            case Beat():
                logger.warning("%s says that it is no worker", guest.name)
                return
        guest.link.send(message, pixels)

    def _hear_helper(self, peer: bytes, key: str, host: str, message: HelperReady | Fetch | Chunk | TaskDone | Working) -> None:
        dispatcher = self._open()[2]
        if not isinstance(message, HelperReady):
            if peer in dispatcher:
                dispatcher.hear_helper(peer, message)
            else:
                self._send(peer, Gone())  # it was let in by the relay before us: it says again who it is
        elif peer in dispatcher or not self._unfit(peer, message):
            dispatcher.hear_ready(peer, f"{host}:{message.name}", key, message)

    def _unfit(self, peer: bytes, said: Ready | HelperReady) -> bool:
        """Refuse whoever is of another version, has no name, or is one too many."""
        there = len(self._guests) + len(self._open()[2])
        if said.wire != WIRE_VERSION or said.version != __version__:
            self._refuse(peer, f"version {said.version} of aet-stream (queue {said.wire}) is there; {_SAME_VERSION}")
        elif not NAME.fullmatch(said.name):
            self._refuse(peer, f"--name {said.name!r:.40}: letters, digits and _.- are needed")
        elif there >= self._config.relay.workers:
            self._refuse(peer, f"{there} workers and helpers are let in, no more are allowed (relay.workers)")
        else:
            return False
        return True

    def _let_in(self, peer: bytes, key: str, host: str, ready: Ready) -> None:
        name = f"{host}:{ready.name}"
        if self._unfit(peer, ready):
            return
        if ready.model_sha256 != self._model:
            wanted = f"{self._config.denoise.model} ({self._model[:12]})"
            self._refuse(
                peer, f"the model there is {ready.model_sha256[:12]}, here it is {wanted}: start the worker again, with the same weights"
            )
        elif rival := next((guest for guest in self._guests.values() if guest.name == name), None):
            logger.debug("%s asks on another link: waits until the first is known to be lost", rival.name)
        else:
            self._guests[peer] = Guest(name, key, HubLink(self._config.output_root, name=name), ready.compress)
            logger.info("%s is let in", name)

    def _refuse(self, peer: bytes, text: str) -> None:
        if peer not in self._told:
            logger.warning("a worker elsewhere gets no work: %s", text)
            self._told = {*list(self._told)[-255:], peer}
        self._send(peer, Refusal(text=text))

    # -- from here to there -------------------------------------------------------------------------------------------------------

    def _carry(self, peer: bytes, guest: Guest) -> None:
        for message, pixels in guest.link.receive(0):
            if isinstance(message, Job) and not self._send(peer, message, pixels, compress=guest.compress):
                self._lose(peer, "the link to it is lost")
                return

    def _send(self, peer: bytes, message: FromRelay, pixels: Array | None = None, *, compress: bool = False) -> bool:
        return self._open()[0].send(peer, message, pixels, compress=compress)

    def _count(self) -> None:
        """Who is still there, and still on the list?"""
        for peer, guest in list(self._guests.items()):
            if self._allowed.get(guest.key) != guest.name.partition(":")[0]:
                self._send(peer, Refusal(text="this computer's key was taken off the list"))
                self._lose(peer, "its key was taken off the list")
            elif not self._send(peer, Pulse(hub_id=guest.link.hub_id)):
                self._lose(peer, "the link to it is lost")
        self._open()[2].look(self._allowed)

    def _lose(self, peer: bytes, reason: str) -> None:
        guest = self._guests.pop(peer)
        logger.warning("%s: %s", guest.name, reason)
        guest.link.send(Gone())
        guest.link.close()

    # -- telling ------------------------------------------------------------------------------------------------------------------

    def beat(self) -> str:
        socket, link, dispatcher = self._open()
        workers = tuple(sorted(guest.name for guest in self._guests.values()))
        said = RelayStatus(address=socket.address, strangers=socket.strangers, workers=workers, helpers=dispatcher.doing)
        link.beat(said)
        return in_words(said)

    def close(self) -> None:
        for peer in list(self._guests):
            self._lose(peer, "the relay ends")
        for part in (self._dispatcher, self._socket, self._link):
            if part is not None:
                part.close()
