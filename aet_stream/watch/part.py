"""What those parts of a watch have in common that have files read."""

from __future__ import annotations

from dataclasses import dataclass

from aet_stream.config import Config
from aet_stream.readers.child import ReaderChild
from aet_stream.watch.link import Send
from aet_stream.watch.rhythm import Rhythm
from aet_stream.watch.settle import Settling
from aet_stream.watch.visits import Visits
from aet_stream.watch.witness import Witness


@dataclass
class Part:
    """All of it is the watch's own."""

    config: Config
    reader: ReaderChild
    witness: Witness
    settling: Settling
    visits: Visits
    rhythm: Rhythm
    send: Send
