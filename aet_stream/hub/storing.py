"""The side that looks at the disk: what is subtracted becomes durable, then readable, then known."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable

import msgspec

from aet_stream import __version__, failpoints, layout
from aet_stream.config import Config
from aet_stream.errors import OutputFull, StoreError, Unstorable
from aet_stream.hub import quarantine
from aet_stream.hub.archive import Archive, Arrival
from aet_stream.hub.closing import Closing
from aet_stream.hub.endings import Endings
from aet_stream.hub.in_flight import InFlight, Subtracted
from aet_stream.hub.intake import Intake
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outgoing import Outgoing
from aet_stream.hub.store import Draft
from aet_stream.hub.timing import Timing
from aet_stream.judging import candidates_json
from aet_stream.layout import Record
from aet_stream.reasons import why

logger = logging.getLogger(__name__)

_SHARE, _SHARE_UNDER_LOAD = 3, 10
"""At most one part in so many of the time goes into rewriting `series.h5`, however long the series; the latter while more is under way."""


class Storing:
    """Commit, then publish, and each only after the one before is on disk."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        archive: Archive,
        in_flight: InFlight,
        intake: Intake,
        endings: Endings,
        closing: Closing,
        outgoing: Outgoing,
        timing: Timing,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._archive = archive
        self._in_flight = in_flight
        self._intake = intake
        self._endings = endings
        self._closing = closing
        self._outgoing = outgoing
        self._timing = timing
        self._published_s, self._took_s = -1e9, 0.0
        """When `series.h5` was last rewritten, and how long that took."""
        self._config_sha256 = hashlib.sha256(msgspec.json.encode(config)).hexdigest()

    def commit(self) -> None:
        """Bring what is subtracted to the disk.

        Raises
        ------
        OutputFull, StoreError : a series does not take all; what it did not take stays in flight, and the others have theirs
        """
        for_each(dict.fromkeys(subtracted.series for subtracted in self._in_flight.all(Subtracted)), self._commit)

    def _commit(self, name: str) -> None:
        batch = self._batch(name)
        try:
            stored = self._archive.commit(name, [arrival for _, arrival in batch]) if batch else 0
        except Unstorable as error:  # one file costs one file: the others are tried again at once
            unstorable = next(subtracted for subtracted, arrival in batch if arrival.draft.record.number == error.number)
            self._endings.end(unstorable, "quarantined", why("unstorable", error=str(error)))
            return
        for subtracted, _ in batch[:stored]:
            self._in_flight.leave(subtracted)

    def _batch(self, name: str) -> list[tuple[Subtracted, Arrival]]:
        """What of one series is to be stored now. A copy that flew beside its original waits a turn, and is a duplicate then."""
        batch: list[tuple[Subtracted, Arrival]] = []
        seen: set[str] = set()
        store = self._archive.store(name)
        for subtracted in self._in_flight.all(Subtracted):
            acquired = subtracted.read.acquired
            if subtracted.series != name:
                continue
            decides = store.rows.learns(acquired)  # what fits: size, type, detector, magnification
            if decides and (self._in_flight.follows(subtracted) or name in self._endings.doubtful):
                break
            if self._intake.settled(subtracted) or acquired.sha256 in seen:
                continue
            seen.add(acquired.sha256)
            record = self._record(subtracted, store.next_number + len(batch))
            draft = Draft(record, subtracted.planes, subtracted.read.extras)
            batch.append((subtracted, Arrival(subtracted.visit_id, draft, subtracted.stages_s(), subtracted.done_at)))
        return batch

    def _record(self, subtracted: Subtracted, number: int) -> Record:
        read, acquired = subtracted.read, subtracted.read.acquired
        row = self._ledger.visit(subtracted.visit_id)
        return Record(
            number=number,
            series=subtracted.series,
            visit=subtracted.key,
            sha256=acquired.sha256,
            checksums={name: layout.crc32(pixels) for name, pixels in subtracted.planes.items()},
            tilt_deg=read.tilt_deg,
            tilt_source=read.tilt_source,
            tilt_candidates=candidates_json(acquired.candidates),
            acquisition=acquired.acquisition,
            drift=acquired.drift,
            quality=subtracted.quality,
            members=acquired.members,
            orientation=self._config.orientation.letters,
            tilt_axis_deg=self._config.orientation.axis_deg(acquired.acquisition.tilt_axis_deg),
            closed_at=subtracted.wanted.offered.closed_at,
            attempts=0 if row is None else row["attempts"],
            worker=subtracted.worker,
            software=__version__,
            config_sha256=self._config_sha256,
            watch_root=self._intake.root,
            **{f"{stage}_s": seconds for stage, seconds in subtracted.stages_s().items()},
        )

    def publish(self, *, at_once: bool = False) -> None:
        """Make stored projections readable and tell of them; under load, not more often than `output.group_s`."""
        names, now_s = self._archive.unpublished(), self._timing.now_s()
        if not names or (not at_once and now_s < self._published_s + self._rest_s()):
            return
        for_each(sorted(names), lambda name: self._publish(name, at_once=at_once))
        self._published_s = self._timing.now_s()
        self._took_s = self._published_s - now_s
        failpoints.reach("publish.told")

    def _rest_s(self) -> float:
        """From one rewriting to the next."""
        group_s, more_comes = self._config.output.group_s, len(self._in_flight) or self._in_flight.backlog
        return max(group_s, ((_SHARE_UNDER_LOAD if more_comes else _SHARE) - 1) * self._took_s) if group_s else 0.0

    def _publish(self, name: str, *, at_once: bool) -> None:
        if not at_once and self._archive.unpacking(name):
            return
        published = self._archive.publish(name)
        self._closing.note_activity(name)
        for record, stages_s in published:
            quarantine.remove(self._archive.root / "quarantine", *record.visit.source)  # if an earlier state of the file was there
            self._tell_stored(record, stages_s)

    def _tell_stored(self, record: Record, stages_s: dict[str, float]) -> None:
        """One line per projection, with the time spent in each stage."""
        times = " ".join(f"{stage} {stages_s[stage]:.3f}" for stage in ("settle", "read", "queue", "network", "commit", "total"))
        trust = "BLANK, nothing to see" if record.quality.blank else f"trust {record.quality.trust:.2f}"
        where = f"series={record.series} projection={record.number} tilt={record.tilt_deg:+.2f} deg ({record.tilt_source})"
        logger.info("%s %s %s[%d]: %s s", where, trust, record.visit.path, record.visit.image, times)
        self._outgoing.tell("projection.stored", {"record": layout.flat(record), "stages": stages_s})


def for_each(names: Iterable[str], work: Callable[[str], None]) -> None:
    """A series that cannot be written stops no other: its trouble is raised when all have had their turn."""
    trouble: OutputFull | StoreError | None = None
    for name in names:
        try:
            work(name)
        except (OutputFull, StoreError) as error:
            trouble = trouble or error
    if trouble is not None:
        raise trouble
