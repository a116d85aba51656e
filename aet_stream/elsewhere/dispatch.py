"""The dispatcher, within the relay: assigns a free helper to a step, and passes on what they say to each other.

It reads no file and keeps nothing. Each end hears once a second that the other is there; who is lost is told to the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aet_stream.errors import WireError
from aet_stream.messages import (
    Assigned,
    Chunk,
    Fetch,
    FromRelay,
    FromStep,
    Gone,
    HelperPlease,
    HelperReady,
    Pulse,
    Refusal,
    TaskDone,
    TaskOff,
    Working,
)
from aet_stream.status import PRODUCTS, StepName
from aet_stream.transport import OFFLOAD, Door

logger = logging.getLogger(__name__)

SETTLE_S = 5.0
"""So long a helper may take to hear of its task."""
FromHelper = Working | Fetch | Chunk | TaskDone


@dataclass(slots=True)
class KnownHelper:
    """One that was let in."""

    name: str
    key: str
    takes: tuple[StepName, ...]
    compress: bool
    at: str
    """Key of the task that it is at without its step."""
    since: float = field(default_factory=time.monotonic)
    """When it began what it does, or to be free: monotonic."""
    step: bytes = b""
    """Whom it works for; empty: nobody."""
    doing: str = ""


class Dispatcher:
    """Helpers elsewhere, steps here."""

    def __init__(self, output_root: Path, send: Callable[[bytes, FromRelay], bool]) -> None:
        """`send`: to a helper; False: the link to it is lost."""
        self.door: Door[FromStep] = Door(output_root, OFFLOAD, FromStep)
        self._send = send
        self._helpers: dict[bytes, KnownHelper] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._helpers

    def __len__(self) -> int:
        return len(self._helpers)

    @property
    def doing(self) -> dict[str, str]:
        """Name of each helper -> what it does; empty: nothing."""
        return {helper.name: helper.doing for helper in self._helpers.values()}

    # -- helpers ------------------------------------------------------------------------------------------------------------------

    def hear_ready(self, peer: bytes, name: str, key: str, ready: HelperReady) -> None:
        """A helper is free: a new one, or one that has lost its step."""
        helper = self._helpers.get(peer)
        if helper is None:
            if any(other.name == name for other in self._helpers.values()):
                return  # its last link is not known to be lost yet: it says so again
            helper = self._helpers[peer] = KnownHelper(name, key, ready.takes, ready.compress, ready.at)
            logger.info("%s is let in, and takes %s", name, ", ".join(PRODUCTS[step] for step in ready.takes))
        elif helper.step:
            if time.monotonic() - helper.since < SETTLE_S:
                return  # said before it heard of its task
            self._part(helper, tell_helper=False)
        helper.takes, helper.at = ready.takes, ready.at

    def hear_helper(self, peer: bytes, message: FromHelper) -> None:
        """Pass it on."""
        helper = self._helpers[peer]
        if helper.step and not self.door.send(helper.step, message):
            self._step_is_gone(helper)

    def look(self, keys: Iterable[str]) -> None:
        """Once a second: who is still there, and still on the list of keys?"""
        allowed = set(keys)
        for peer, helper in list(self._helpers.items()):
            if helper.key not in allowed:
                self._send(peer, Refusal(text="this computer's key was taken off the list"))
                self._lose(peer, "its key was taken off the list")
            elif not self._send(peer, Pulse(hub_id="")):
                self._lose(peer, "the link to it is lost")
            elif helper.step and not self.door.send(helper.step, Pulse(hub_id="")):
                self._step_is_gone(helper)

    def _step_is_gone(self, helper: KnownHelper) -> None:
        """That it needs its helper no more may be the last that it has said: otherwise another may want what was made."""
        step = helper.step
        self.turn()
        if helper.step == step:
            self._part(helper, tell_step=False)

    def _lose(self, peer: bytes, reason: str) -> None:
        helper = self._helpers.pop(peer)
        logger.warning("%s: %s", helper.name, reason)
        if helper.step:
            self.door.send(helper.step, Gone())

    def _part(self, helper: KnownHelper, *, tell_helper: bool = True, tell_step: bool = True) -> None:
        """They have nothing to do with each other any more."""
        if tell_step:
            self.door.send(helper.step, Gone())
        if tell_helper:
            self._send(next(peer for peer, each in self._helpers.items() if each is helper), Gone())
        helper.step, helper.doing, helper.since = b"", "", time.monotonic()

    # -- steps --------------------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Hear steps."""
        for heard in self.door.receive(0.0):
            if isinstance(heard, WireError):
                logger.warning("refused a message: %s", heard)
                continue
            step, message, _ = heard
            if isinstance(message, HelperPlease):
                self._hear_please(step, message)
                continue
            peer = next((peer for peer, helper in self._helpers.items() if helper.step == step), None)
            if peer is None:
                self.door.send(step, Gone())  # it was a relay before us that brought them together
            else:
                self._send(peer, message)
                if isinstance(message, TaskOff):
                    self._part(self._helpers[peer], tell_helper=False, tell_step=False)

    def _hear_please(self, step: bytes, please: HelperPlease) -> None:
        for helper in self._helpers.values():
            if helper.step == step:
                self._part(helper, tell_step=False)  # it wants another
        able = [helper for helper in self._helpers.values() if please.step in helper.takes and helper.name not in please.avoid]
        free = [helper for helper in able if not helper.step and helper.at in ("", please.key)]
        made = PRODUCTS[please.step]
        if not free:
            self.door.send(step, Refusal(text=f"{len(able)} helper(s) busy" if able else f"no helper that takes {made} is let in"))
            return
        best = min(free, key=lambda helper: (helper.at != please.key, helper.since))
        best.step, best.at, best.doing, best.since = step, "", f"{made} of {please.series}", time.monotonic()
        logger.info("series=%s %s: %s does it", please.series, made, best.name)
        self.door.send(step, Assigned(helper=best.name, compress=best.compress))

    def close(self) -> None:
        for helper in self._helpers.values():
            if helper.step:
                self.door.send(helper.step, Gone())
        self.door.close()
