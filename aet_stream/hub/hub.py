"""The hub's role: it takes the output for itself, and carries letters between the socket and the core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

import msgspec

from aet_stream import failpoints, service
from aet_stream.config import Config
from aet_stream.errors import AetError, WireError
from aet_stream.hub import writer_lock
from aet_stream.hub.core import Core
from aet_stream.hub.outgoing import Letter, News
from aet_stream.hub.timing import Timing
from aet_stream.messages import Event, Job, Want
from aet_stream.status import in_words
from aet_stream.transport import HubSocket

TURN_S = 0.05

#: Places that a test can name, before and after a message of this kind is sent.
_BEFORE, _AFTER = {Want: "want.send", Job: "lease.send"}, {Job: "lease.sent", Event: "event.sent"}


@dataclass(frozen=True, slots=True)
class _Open:
    """What there is from start to close."""

    lock: TextIO
    core: Core
    socket: HubSocket


class Hub:
    """Lock, core and socket."""

    name = "hub"

    def __init__(self, config: Config, *, timing: Timing | None = None) -> None:
        self._config = config
        self._timing = timing
        self._open: _Open | None = None
        self._sound = False
        """No step was left by an exception."""

    def start(self) -> None:
        """Take the output for ourselves, make the disk consistent, then open for business."""
        root = self._config.output_root
        with contextlib.ExitStack() as given_back:
            lock = given_back.enter_context(writer_lock.take(root))
            core = Core(self._config, timing=self._timing, alive=lambda: service.still_at_it(self.name))
            self._open = _Open(lock, core, HubSocket(root))
            given_back.pop_all()  # all of it is there: it is ours until `close`

    @property
    def core(self) -> Core:
        return self._opened.core

    @property
    def _opened(self) -> _Open:
        if self._open is None:
            raise AetError("the hub has not been started")
        return self._open

    def step(self) -> None:
        core, self._sound = self.core, False
        for heard in self._opened.socket.receive(0.0 if core.at_work else TURN_S):
            if isinstance(heard, WireError):
                core.refuse(heard)
            else:
                self._post(core.hear(*heard))
        self._post(core.turn())
        self._sound = True

    def beat(self) -> str:
        status = self.core.status()
        self._post([News("status", msgspec.to_builtins(status))])
        return in_words(status)

    def _post(self, outgoing: Iterable[Letter | News]) -> None:
        for each in outgoing:
            if isinstance(each, News):
                self._opened.socket.publish(each.topic, each.what)
                continue
            kind = type(each.message)
            if kind in _BEFORE:
                failpoints.reach(_BEFORE[kind])
            if not self._opened.socket.send(each.peer, each.message, each.pixels):
                self.core.undelivered(each)
            if kind in _AFTER:
                failpoints.reach(_AFTER[kind])

    def close(self) -> None:
        if self._open is not None:
            self._post(self.core.close(sound=self._sound))
            self._open.socket.close()
            self._open.lock.close()
            self._open = None
