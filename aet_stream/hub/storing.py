"""The side that looks at the disk: what is done becomes durable, then readable, then known; full series are closed."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from aet_stream import __version__, failpoints, layout
from aet_stream.config import Config
from aet_stream.errors import OutputFull, StoreError, Unstorable
from aet_stream.hub import quarantine
from aet_stream.hub.archive import Archive
from aet_stream.hub.flights import Flight, Flights
from aet_stream.hub.intake import Intake
from aet_stream.hub.ledger import Ledger, candidates_json
from aet_stream.hub.outcomes import Outcomes, Tell
from aet_stream.layout import Record
from aet_stream.messages import SeriesEnd
from aet_stream.naming import series_of, top_folder

logger = logging.getLogger(__name__)

CLOSE_BUDGET_S = 0.05
LOOK_FOR_CLOSING_S = 0.2


class Storing:
    """Commit, publish, close: in this order, and each only after the one before is on disk."""

    def __init__(
        self, config: Config, ledger: Ledger, archive: Archive, flights: Flights, intake: Intake, outcomes: Outcomes, tell: Tell
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._archive = archive
        self._flights = flights
        self._intake = intake
        self._outcomes = outcomes
        self._tell = tell
        self._published_at = 0.0
        self._looked_at = 0.0
        self._active_at: dict[str, float] = {}
        """Series -> monotonic time of its last projection: a clock that is set must not close a series."""
        self.close_asked: set[str] = set()
        """Series that a person wants closed."""
        self._watch = b""
        self._sentinels: set[str] = set()
        """Where one lies, a series that something late opens again ends again."""
        self._config_sha256 = hashlib.sha256(msgspec.json.encode(config)).hexdigest()

    # -- commit and publish -------------------------------------------------------------------------------------------------------

    def commit(self, done: list[Flight]) -> None:
        """Bring what is done to the disk and take it off the list.

        Raises
        ------
        OutputFull, StoreError : a series does not take all; what it did not take stays on the list, and the others have theirs
        """
        _for_each(dict.fromkeys(flight.series for flight in done), lambda name: self._commit(name, done))

    def _commit(self, name: str, done: list[Flight]) -> None:
        batch = self._batch(name, done)
        try:
            stored = self._archive.commit(name, [(record, *flight.pixels(), flight.extras) for flight, record in batch]) if batch else 0
        except Unstorable as error:  # one file costs one file: the others are tried again at once
            flight = next(flight for flight, record in batch if record.number == error.number)
            self._outcomes.end(flight, "quarantined", str(error))
            done.remove(flight)
            return
        for flight, record in batch[:stored]:
            done.remove(flight)
            self._flights.land(flight)
            stages = {**_stages(flight), "done_at": flight.done_at}
            self._archive.unpublished.setdefault(name, []).append((flight.unit_id, record, stages))

    def _batch(self, name: str, done: list[Flight]) -> list[tuple[Flight, Record]]:
        """What of one series is to be stored now. A copy that flew beside its original waits a turn, and is a duplicate then."""
        batch: list[tuple[Flight, Record]] = []
        seen: set[str] = set()
        first_only = not self._archive.store(name).records  # it decides what fits: size, type, detector
        for flight in [flight for flight in done if flight.series == name]:
            if self._intake.settled(flight):
                done.remove(flight)
                continue
            twin = flight.acquired.sha256 if flight.acquired else ""
            if twin not in seen and not (first_only and batch):
                seen.add(twin)
                batch.append((flight, self._record(flight, self._archive.store(name).next_number + len(batch))))
        return batch

    def _record(self, flight: Flight, number: int) -> Record:
        acquired, done = flight.acquired, flight.done
        if acquired is None or done is None:
            raise StoreError(f"{flight.path}: not done yet")
        raw, clean = flight.pixels()
        known, row = acquired.acquisition, self._ledger.unit(flight.unit_id)
        figures: dict[str, Any] = msgspec.structs.asdict(done.quality)
        figures |= {f"{stage}_s": seconds for stage, seconds in _stages(flight).items()}
        return Record(
            number=number,
            series=flight.series,
            path=flight.path,
            image=flight.image,
            stamp=flight.stamp,
            sha256=acquired.sha256,
            raw_crc32=layout.crc32(raw),
            clean_crc32=layout.crc32(clean),
            tilt_deg=flight.tilt_deg,
            tilt_source=flight.tilt_source,
            tilt_candidates=candidates_json(acquired.candidates),
            pixel_size_nm=_number(known.pixel_size_nm),
            dwell_time_s=_number(known.dwell_time_s),
            acquired_utc=known.acquired_utc,
            detector=known.detector,
            microscope=known.microscope,
            reader=known.reader,
            tilt_beta_deg=_number(known.tilt_beta_deg),
            acquired_local=known.acquired_local,
            frame_time_s=_number(known.frame_time_s),
            scan_rotation_deg=_number(known.scan_rotation_deg[0] if known.scan_rotation_deg else None),
            frames=acquired.drift.frames,
            frames_averaged=acquired.drift.averaged,
            frame_shifts_px=msgspec.json.encode(acquired.drift.shifts_px).decode() if acquired.drift.shifts_px else "",
            drift_doubt_px=acquired.drift.doubt_px,
            members=msgspec.json.encode(acquired.members).decode() if acquired.members else "",
            orientation=self._config.orientation.letters,
            tilt_axis_deg=self._config.orientation.axis_deg(known.tilt_axis_deg),
            flag=acquired.drift.flag,
            closed_at=flight.closed_at,
            attempts=0 if row is None else row["attempts"],
            software=__version__,
            config_sha256=self._config_sha256,
            watch_root=self._intake.root,
            **figures,
        )

    def publish(self, *, at_once: bool = False) -> None:
        """Make stored projections readable and tell of them; under load, not more often than `output.group_s`."""
        unpublished = self._archive.unpublished
        if not unpublished or (not at_once and time.monotonic() - self._published_at < self._config.output.group_s):
            return
        _for_each(list(unpublished), self._publish)
        self._published_at = time.monotonic()
        failpoints.reach("publish.told")

    def _publish(self, name: str) -> None:
        self._archive.publish(name, self._archive.unpublished[name])
        self._active_at[name] = time.monotonic()
        for _, record, stages in self._archive.unpublished.pop(name):
            quarantine.remove(self._archive.root / "quarantine", record.path, record.image)  # if an earlier state of the file was there
            self._tell_stored(record, stages)

    def _tell_stored(self, record: Record, stages: dict[str, float]) -> None:
        """One line per projection, with the time spent in each stage."""
        times = " ".join(f"{stage} {stages[stage]:.3f}" for stage in ("settle", "read", "queue", "network", "commit", "total"))
        trust = "BLANK, nothing to see" if record.blank else f"trust {record.trust:.2f}"
        where = f"series={record.series} projection={record.number} tilt={record.tilt_deg:+.2f} deg ({record.tilt_source})"
        logger.info("%s %s %s[%d]: %s s", where, trust, record.path, record.image, times)
        self._tell("projection.stored", {"record": msgspec.structs.asdict(record), "stages": stages})

    # -- closing ----------------------------------------------------------------------------------------------------------------

    def close_series(self) -> None:
        """Begin to close what is due; go on with what has begun."""
        now = time.monotonic()
        if now - self._looked_at > LOOK_FOR_CLOSING_S:
            self._looked_at = now
            for name in self._due():
                self._archive.begin_close(name)
        for name in self._archive.work(CLOSE_BUDGET_S):
            self.close_asked.discard(name)
            path = self._archive.root / name / layout.SERIES_FILE
            logger.info("series=%s closed: one verified file, %s", name, path)
            self._tell("series.closed", {"series": name, "path": str(path)})

    def hear_end(self, end: SeriesEnd) -> None:
        """A sentinel file ends the series of its folder, as a person would."""
        if end.there:
            logger.info("%s says that the series of its folder has ended", end.path)
            self._sentinels.add(end.path)
        else:
            logger.info("%s was taken away: later projections do not end the series of its folder", end.path)
            self._sentinels.discard(end.path)

    def hear_watch(self, peer: bytes) -> None:
        """Another watch than before tells anew of the sentinels that are there."""
        if peer != self._watch:
            self._watch = peer
            self._sentinels.clear()

    def _due(self) -> list[str]:
        """Open series that are full, silent for long enough, or asked for; never one that something is still coming for."""
        root_name = self._config.watch_root.name
        coming = {flight.series for flight in self._flights} | set(self._archive.unpublished)
        coming |= {series_of(path, root_name, self._config.series) for path, _ in self._flights.backlog}
        rules, due = self._config.series, []
        ended_folders = {top_folder(path) for path in self._sentinels}
        for series in self._ledger.series(state="open"):
            name, stored = series["name"], series["stored"]
            if not stored or name in coming:
                continue
            full = rules.expected and stored >= rules.expected and len(self._archive.tilts_deg(name)) >= rules.expected
            silent = rules.idle_close_s and self._silent_s(name, series["last_at"]) > rules.idle_close_s
            ended = ended_folders and ended_folders & self._ledger.folders(name)
            if name in self.close_asked or ended or full or silent:
                due.append(name)
        return due

    def _silent_s(self, name: str, last_at: float) -> float:
        """Seconds since the last projection; the wall clock counts only for the time before this start."""
        now = time.monotonic()
        return now - self._active_at.setdefault(name, now - max(0.0, time.time() - last_at))


def _for_each(names: Iterable[str], work: Callable[[str], None]) -> None:
    """A series that cannot be written stops no other: its trouble is raised when all have had their turn."""
    trouble: OutputFull | StoreError | None = None
    for name in names:
        try:
            work(name)
        except (OutputFull, StoreError) as error:
            trouble = trouble or error
    if trouble is not None:
        raise trouble


def _stages(flight: Flight) -> dict[str, float]:
    """Seconds spent in each stage before the commit."""
    return {
        "settle": max(0.0, flight.offered_at - flight.closed_at),
        "read": flight.acquired_at - flight.offered_at,
        "queue": flight.leased_at - flight.acquired_at,
        "network": flight.done_at - flight.leased_at,
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
