"""What the core wants said: kept in order until whoever turns it has sent it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aet_stream.messages import FromHub
from aet_stream.projection import Array


@dataclass(frozen=True, slots=True)
class Letter:
    """To one role or person."""

    peer: bytes
    message: FromHub
    pixels: Array | None = None


@dataclass(frozen=True, slots=True)
class News:
    """To whoever listens; nobody has to."""

    topic: str
    what: dict[str, Any]


class Outgoing:
    """Every part of the core puts things in; the core alone takes them out."""

    def __init__(self) -> None:
        self._waiting: list[Letter | News] = []

    def send(self, peer: bytes, message: FromHub, pixels: Array | None = None) -> None:
        self._waiting.append(Letter(peer, message, pixels))

    def tell(self, topic: str, what: dict[str, Any]) -> None:
        self._waiting.append(News(topic, what))

    def taken(self) -> list[Letter | News]:
        """All that was put in since."""
        taken, self._waiting = self._waiting, []
        return taken
