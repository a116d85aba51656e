"""The way from the watch to the hub, as the watch needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from aet_stream.messages import AnyMessage, ToHub
from aet_stream.projection import Array
from aet_stream.status import WatchStatus


class Send(Protocol):
    """Says something to the hub; False when there is none, who will ask again."""

    def __call__(self, message: ToHub, pixels: Array | None = None) -> bool: ...


class Link(Protocol):
    """The way to a hub, and what its pulse last said (transport.HubLink)."""

    hub_id: str
    newer_than_s: float

    def send(self, message: ToHub, pixels: Array | None = None) -> bool: ...
    def beat(self, status: WatchStatus) -> bool: ...
    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]: ...
