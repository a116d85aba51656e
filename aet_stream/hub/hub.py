"""The hub's turn: hear what roles and people say, commit what is done, hand out what waits, tell what happened."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
from typing import Any, TextIO

import msgspec
import numpy as np

from aet_stream import __version__, layout
from aet_stream.config import Config
from aet_stream.errors import AetError, AlreadyRunning, OutputFull, StoreError, WireError
from aet_stream.hub import quarantine
from aet_stream.hub.archive import Archive, open_ledger, series_of
from aet_stream.hub.commands import obey
from aet_stream.hub.flights import Flight, Flights, Pending
from aet_stream.hub.ledger import candidates_json, outcome
from aet_stream.layout import Record
from aet_stream.messages import (
    WIRE_VERSION,
    Acquired,
    Beat,
    Command,
    Done,
    Event,
    EventDone,
    EventPlease,
    Failed,
    Job,
    NotAcquired,
    Offer,
    Pulse,
    Ready,
    Reply,
    ToHub,
    Want,
    Working,
)
from aet_stream.projection import Array
from aet_stream.transport import HubSocket, run_folder

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
PAUSE_S = 2.0
"""After a failing disk: how long before the next try."""
TURN_S = 0.05
FORGOTTEN_S = 3.0
"""A unit that watch no longer names this long after it was asked for got lost on the way: ask again."""
SAME_TILT_DEG = 0.01


class Hub:
    """The only writer of everything under output.root."""

    name = "hub"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.output_root
        self.hub_id = os.urandom(6).hex()
        self.flights = Flights(config.queue.credit, config.queue.credit_mib << 20, config.queue.lease_s)
        self.close_asked: set[str] = set()
        self._config_json = msgspec.json.encode(config).decode()
        self._config_sha256 = hashlib.sha256(self._config_json.encode()).hexdigest()
        self._lock: TextIO | None = None
        self._socket: HubSocket | None = None
        self._roles: dict[str, tuple[bytes, float, Beat]] = {}
        self._watch: bytes = b""
        self._idle_workers: dict[bytes, str] = {}
        self._worker_peers: dict[str, bytes] = {}
        self._done: list[Flight] = []
        self._unpublished: dict[str, list[tuple[int, Record, dict[str, float]]]] = {}
        self._published_at = 0.0
        self._paused_until = 0.0
        self.paused = ""
        self._busy_at = time.monotonic()
        self._event_leases: dict[str, float] = {}
        """Event -> when the trigger last said that it works on it."""

    # -- life -------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self.ledger, fresh = open_ledger(self.root)
        self.archive = Archive(
            self.root,
            self.ledger,
            fold_rows=self.config.output.fold_rows,
            expected=self.config.series.expected,
            close_events=("reconstruct",) if self.config.reconstruct.on_close else (),
            config=self._config_json,
        )
        if fresh:
            logger.info("new ledger in %s", self.root)
        self.archive.recover()
        with self.ledger.transaction():
            self.ledger.unlease_events()
        now = time.time()
        for row in self.ledger.ready():
            self._queue_again(row["path"], row["image"], row["stamp"], 1 << 20, now, now, attempts=row["attempts"])
        self._socket = HubSocket(self.root)

    def _take_lock(self) -> None:
        path = run_folder(self.root) / "writer.lock"
        self._lock = path.open("w")
        until = time.monotonic() + LOCK_WAIT_S  # a hub whose supervisor was killed needs up to 2 s to end
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise AlreadyRunning(f"another aet-stream writes to {self.root}: stop it, or choose another output.root") from None
                time.sleep(0.1)

    @property
    def socket(self) -> HubSocket:
        if self._socket is None:
            raise AetError("the hub has not been started")
        return self._socket

    def step(self) -> None:
        for heard in self.socket.receive(0.0 if self._done or self.archive.working_on() else TURN_S):
            if isinstance(heard, WireError):
                logger.warning("refused a message: %s", heard)
            else:
                self._hear(*heard)
        self._expire()
        if time.monotonic() >= self._paused_until:
            self._write()
        self._assign()

    def _write(self) -> None:
        """All that needs the disk; when it fails, intake waits and nothing is dropped."""
        try:
            self._commit()
            self._publish()
            self._grant()
            self._close_series()
            self.paused = ""
        except OutputFull as error:
            if not self.paused:
                logger.error("%s: intake waits until there is room; nothing is lost", error)
            self.paused, self._paused_until = str(error), time.monotonic() + PAUSE_S
        except StoreError as error:
            logger.error("%s", error)
            self.paused, self._paused_until = str(error), time.monotonic() + PAUSE_S

    def beat(self) -> None:
        self.socket.publish("status", self.status())

    def close(self) -> None:
        if self._socket is not None:
            if self._unpublished or self._done:
                self._published_at = 0.0
                self._write()  # finish the commit in hand
            self.archive.close()
            self._socket.close()
            self.ledger.close()
        if self._lock is not None:
            self._lock.close()

    # -- hearing ----------------------------------------------------------------------------------------------------------------

    def _hear(self, peer: bytes, message: ToHub, pixels: Array | None) -> None:
        try:
            match message:
                case Beat():
                    self._hear_beat(peer, message)
                case Offer():
                    self._hear_offer(message)
                case Acquired() if pixels is not None:
                    self._hear_acquired(message, pixels)
                case NotAcquired():
                    self._hear_not_acquired(message)
                case Ready():
                    self._hear_ready(peer, message)
                case Working():
                    if flight := self.flights.find_job(message.job_id):
                        flight.deadline = time.monotonic() + self.config.queue.lease_s
                case Done() if pixels is not None:
                    self._hear_done(message, pixels)
                case Failed():
                    self._hear_failed(message)
                case EventPlease():
                    self._lease_event(peer)
                case EventDone():
                    self._end_event(message)
                case Command():
                    self._hear_command(peer, message)
                case _:
                    logger.warning("refused a %s without pixels", type(message).__name__)
        except OutputFull as error:  # the ledger's disk: what was said is said again
            logger.error("%s: intake waits until there is room; nothing is lost", error)
            self.paused, self._paused_until = str(error), time.monotonic() + PAUSE_S

    def _hear_beat(self, peer: bytes, beat: Beat) -> None:
        if beat.wire != WIRE_VERSION:
            logger.error("%s speaks version %d of the queue, this hub %d: install the same aet_stream", beat.name, beat.wire, WIRE_VERSION)
            return
        self._roles[beat.name] = (peer, time.monotonic(), beat)
        self.socket.send(peer, Pulse(hub_id=self.hub_id))
        if beat.role == "watch":
            self._watch = peer
            self._find_forgotten({(path, image) for path, image in beat.status.get("asked", [])})
        if beat.role == "trigger":
            for event_id in self._event_leases.keys() & set(beat.status.get("events", [])):
                self._event_leases[event_id] = time.monotonic()

    def _find_forgotten(self, asked: set[tuple[str, int]]) -> None:
        """Units that watch does not know of: it was started anew, or the question got lost. Nobody died over them."""
        for flight in self.flights:
            if flight.state == "wanted" and flight.key not in asked and time.time() - flight.asked_at > FORGOTTEN_S:
                self._again(flight)

    def _hear_offer(self, offer: Offer) -> None:
        now = time.time()
        for file in offer.files:
            ended = self.ledger.ended(file.path, file.stamp)
            for image in range(file.images):
                if image not in ended:
                    self.flights.offer(Pending(file.path, image, file.stamp, file.nbytes, file.closed_at, now))

    def _hear_acquired(self, acquired: Acquired, raw: Array) -> None:
        flight = self.flights.find(acquired.path, acquired.image, acquired.stamp)
        if flight is None:
            return  # an answer to a question that has been taken back
        row = self.ledger.unit(flight.unit_id)
        person = None if row is None else row["person_tilt_deg"]
        flight.acquired, flight.raw, flight.acquired_at = acquired, raw, time.time()
        if person is not None:
            flight.tilt_deg, flight.tilt_source = float(person), "person"
        elif acquired.candidates and not acquired.hold:
            flight.tilt_deg, flight.tilt_source = acquired.candidates[0].tilt_deg, acquired.candidates[0].source
        else:
            self._end(flight, "held", acquired.hold or "no source names a tilt angle")
            return
        if not self._known_already(flight):
            flight.state, flight.nbytes = "waiting", raw.nbytes + raw.size * 4

    def _known_already(self, flight: Flight) -> bool:
        """End the flight if its pixels have a row, or cannot have one."""
        if flight.acquired is None or flight.raw is None:
            return False
        unpublished = self._unpublished.get(flight.series, [])
        rows = [(r["path"], r["image"], r["number"], r["tilt_deg"]) for r in self.ledger.same_pixels(flight.series, flight.acquired.sha256)]
        rows += [(r.path, r.image, r.number, r.tilt_deg) for _, r, _ in unpublished if r.sha256 == flight.acquired.sha256]
        for path, image, number, tilt_deg in rows:
            same_tilt = abs(tilt_deg - flight.tilt_deg) <= SAME_TILT_DEG
            if (path, image) == flight.key and same_tilt:
                self._end(flight, "same", f"projection {number}: the file was touched, its pixels were not")
            elif (path, image) == flight.key and flight.tilt_source != "person":
                self._end(
                    flight, "held", f"stored as projection {number} at {tilt_deg:g} deg, but its sources now say {flight.tilt_deg:g} deg"
                )
            elif same_tilt:
                self._end(flight, "duplicate", f"same pixels and tilt as {path} image {image} (projection {number})")
            else:
                continue
            return True
        misfit = self.archive.store(flight.series).misfit(flight.raw)
        if misfit:
            self._end(flight, "held", misfit)
        return bool(misfit)

    def _hear_not_acquired(self, message: NotAcquired) -> None:
        flight = self.flights.find(message.path, message.image, message.stamp)
        if flight is None and message.why == "bad":
            flight = self._unasked(message)
        if flight is None:
            return
        match message.why:
            case "died":
                self._charge(flight, message.reason)
            case "later":
                self._end(flight, "dropped", message.reason)
            case "bad":
                self._end(flight, "quarantined", message.reason)
            case "gone":
                self._end(flight, "quarantined", f"source_gone: {message.reason}")

    def _unasked(self, message: NotAcquired) -> Flight | None:
        """A file so broken that watch could not even offer it."""
        if self.ledger.ended(message.path, message.stamp):
            return None
        now = time.time()
        self.flights.offer(Pending(message.path, message.image, message.stamp, 0, now, now))
        pending = self.flights.backlog.get((message.path, message.image))
        return None if pending is None else self._launch(pending)

    def _hear_ready(self, peer: bytes, ready: Ready) -> None:
        before = self._worker_peers.get(ready.name)
        if before not in (None, peer):
            self._lose_worker(before or b"", f"{ready.name} died over it")
        self._worker_peers[ready.name] = peer
        for flight in self.flights.held_by(peer):
            if time.time() - flight.leased_at < FORGOTTEN_S:
                return  # it asked before our job reached it
            logger.warning("%s does not know of %s any more: handed out again", ready.name, flight.path)
            self.flights.unlease(flight)
        self._idle_workers[peer] = ready.name

    def _lose_worker(self, peer: bytes, reason: str) -> None:
        self._idle_workers.pop(peer, None)
        for flight in self.flights.held_by(peer):
            self._charge(flight, reason)

    def _hear_done(self, done: Done, clean: Array) -> None:
        flight = self.flights.find_job(done.job_id)
        if flight is None or flight.raw is None:
            return  # late or double: its lease had run out
        if clean.shape != flight.raw.shape or clean.dtype != np.dtype("<f4"):
            self._charge(flight, f"the worker answered with {clean.shape} of {clean.dtype} for {flight.raw.shape}")
            return
        flight.state, flight.done, flight.clean, flight.done_at = "done", done, clean, time.time()
        self._done.append(flight)

    def _hear_failed(self, failed: Failed) -> None:
        flight = self.flights.find_job(failed.job_id)
        if flight is not None:
            logger.error("%s: the worker failed: %s", flight.path, failed.reason)
            self._charge(flight, failed.reason)

    def _hear_command(self, peer: bytes, command: Command) -> None:
        try:
            text, data = obey(self, command.name, command.arguments)
            self.socket.send(peer, Reply(ok=True, text=text, data=data))
        except AetError as error:
            self.socket.send(peer, Reply(ok=False, text=str(error)))

    # -- ends and second tries ----------------------------------------------------------------------------------------------------

    def _end(self, flight: Flight, state: str, reason: str) -> None:
        """The unit leaves memory without a row of its own."""
        sha256 = flight.acquired.sha256 if flight.acquired else None
        tilt = flight.tilt_deg if np.isfinite(flight.tilt_deg) else None
        if state == "quarantined":
            row = self.ledger.unit(flight.unit_id)
            attempts = 0 if row is None else row["attempts"]
            folder = self.root / "quarantine"
            quarantine.write(
                folder,
                unit_id=flight.unit_id,
                series=flight.series,
                path=flight.path,
                image=flight.image,
                reason=reason,
                attempts=attempts,
            )
        with self.ledger.transaction():
            self.ledger.end(flight.unit_id, state, reason=reason, sha256=sha256, tilt_deg=tilt)
            if state in ("same", "duplicate"):
                self.ledger.settle_older(flight.unit_id)
        self.flights.land(flight)
        if state not in ("same", "dropped"):
            level = logging.INFO if state == "duplicate" else logging.WARNING
            logger.log(level, "%s: %s image %d: %s", state, flight.path, flight.image, reason)
            self.socket.publish(
                f"projection.{state}", {"id": flight.unit_id, "series": flight.series, "path": flight.path, "reason": reason}
            )

    def _charge(self, flight: Flight, reason: str) -> None:
        """Something died over this unit: once too often and it is put aside."""
        with self.ledger.transaction():
            attempts = self.ledger.charge(flight.unit_id)
        logger.warning("%s image %d: %s (try %d)", flight.path, flight.image, reason, attempts)
        if attempts > self.config.queue.attempts:
            self._end(flight, "quarantined", f"{reason}; tried {attempts} times, the last time alone")
        else:
            self._again(flight, attempts=attempts)

    def _again(self, flight: Flight, *, attempts: int = 0) -> None:
        self.flights.land(flight)
        self._queue_again(flight.path, flight.image, flight.stamp, flight.nbytes, flight.closed_at, flight.offered_at, attempts=attempts)

    def _queue_again(self, path: str, image: int, stamp: str, nbytes: int, closed_at: float, offered_at: float, *, attempts: int) -> None:
        alone = attempts >= self.config.queue.attempts
        not_before = time.monotonic() + self.config.queue.alone_pause_s if alone else 0.0
        self.flights.offer(Pending(path, image, stamp, nbytes, closed_at, offered_at, not_before, alone))

    def read_again(self, unit_id: int, tilt_deg: float | None) -> None:
        """A person wants this unit once more."""
        row = self.ledger.unit(unit_id)
        if row is None or row["state"] not in ("held", "quarantined", "ready"):
            state = "unknown" if row is None else row["state"]
            raise AetError(f"unit {unit_id} is {state}: only held and quarantined ones can be released or queued again")
        with self.ledger.transaction():
            self.ledger.released(unit_id, tilt_deg)
        quarantine.remove(self.root / "quarantine", row["path"], row["image"])
        now = time.time()
        self._queue_again(row["path"], row["image"], row["stamp"], 1 << 20, now, now, attempts=0)

    def _expire(self) -> None:
        now = time.monotonic()
        for flight in self.flights:
            if flight.state == "working" and now > flight.deadline:
                self._idle_workers.pop(flight.worker, None)
                self._charge(flight, f"the worker was silent for {self.config.queue.lease_s:g} s")
        for event_id, since in list(self._event_leases.items()):
            if now - since > self.config.queue.lease_s:
                del self._event_leases[event_id]
                with self.ledger.transaction():
                    self.ledger.end_event(event_id, "pending", "the trigger was silent")

    # -- handing out --------------------------------------------------------------------------------------------------------------

    def _grant(self) -> None:
        """Ask watch for as many units as the credit allows; the ledger knows of it first."""
        if not self._watch:
            return
        chosen = self.flights.grantable(time.monotonic())
        if not chosen:
            return
        with self.ledger.transaction():
            flights = [self._launch(pending, in_transaction=True) for pending in chosen]
        for flight in flights:
            if not self.socket.send(self._watch, Want(path=flight.path, stamp=flight.stamp, image=flight.image)):
                self._watch = b""  # gone; its successor will say so
                return

    def _launch(self, pending: Pending, *, in_transaction: bool = False) -> Flight:
        series = series_of(pending.path, self.config.watch_root.name)
        if in_transaction:
            unit_id = self.ledger.want(series, pending.path, pending.image, pending.stamp)
        else:
            with self.ledger.transaction():
                unit_id = self.ledger.want(series, pending.path, pending.image, pending.stamp)
        flight = Flight(
            unit_id=unit_id,
            series=series,
            path=pending.path,
            image=pending.image,
            stamp=pending.stamp,
            nbytes=pending.nbytes,
            closed_at=pending.closed_at,
            offered_at=pending.offered_at,
            asked_at=time.time(),
            alone=pending.alone,
        )
        self.flights.launch(flight)
        return flight

    def _assign(self) -> None:
        """Give waiting projections to workers that asked."""
        while self._idle_workers and (flight := self.flights.waiting()):
            peer = next(iter(self._idle_workers))
            del self._idle_workers[peer]
            self.flights.lease(flight, peer, self.hub_id, now=time.monotonic(), unix_now=time.time())
            job = Job(job_id=flight.job_id, series=flight.series, path=flight.path, image=flight.image)
            if not self.socket.send(peer, job, flight.raw):
                self.flights.unlease(flight)  # the worker has left; nobody died over the unit

    # -- storing ------------------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Bring what is done to the disk; what the disk does not take stays in hand."""
        by_series: dict[str, list[Flight]] = {}
        for flight in self._done:
            by_series.setdefault(flight.series, []).append(flight)
        for name, flights in by_series.items():
            fresh = [flight for flight in flights if not self._known_already(flight)]
            self._done = [flight for flight in self._done if flight in fresh or flight.series != name]
            seen: set[tuple[str, float]] = set()
            batch: list[tuple[Flight, Record]] = []
            for flight in fresh:
                twin = (flight.acquired.sha256 if flight.acquired else "", round(flight.tilt_deg, 2))
                if twin not in seen:  # a copy that flew beside it is a duplicate next turn, when this one has its row
                    seen.add(twin)
                    batch.append((flight, self._record(flight, self.archive.store(name).next_number + len(batch))))
            stored = self.archive.commit(name, [(record, *flight.pixels()) for flight, record in batch]) if batch else 0
            for flight, record in batch[:stored]:
                self._done.remove(flight)
                self.flights.land(flight)
                self._unpublished.setdefault(name, []).append((flight.unit_id, record, {**_stages(flight), "done_at": flight.done_at}))
            if stored < len(batch):
                raise OutputFull(f"{self.root / name}: the disk took {stored} of {len(batch)} projections")

    def _record(self, flight: Flight, number: int) -> Record:
        acquired, done, raw, clean = flight.acquired, flight.done, flight.raw, flight.clean
        if acquired is None or done is None or raw is None or clean is None:
            raise StoreError(f"{flight.path}: not done yet")
        known = acquired.acquisition
        quality: dict[str, Any] = msgspec.structs.asdict(done.quality)
        known_times: dict[str, Any] = {f"{stage}_s": seconds for stage, seconds in _stages(flight).items()}
        row = self.ledger.unit(flight.unit_id)
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
            closed_at=flight.closed_at,
            **known_times,
            **quality,
            attempts=0 if row is None else row["attempts"],
            software=__version__,
            config_sha256=self._config_sha256,
        )

    def _publish(self) -> None:
        """Make stored projections readable and tell of them; under load, not more often than `output.group_s`."""
        if not self._unpublished or time.monotonic() - self._published_at < self.config.output.group_s:
            return
        for name in list(self._unpublished):
            units = self._unpublished[name]
            self.archive.publish(name, units)
            del self._unpublished[name]
            for _, record, stages in units:
                quarantine.remove(self.root / "quarantine", record.path, record.image)  # if an earlier state of the file was there
                self._tell_stored(record, stages)
        self._published_at = time.monotonic()

    def _tell_stored(self, record: Record, stages: dict[str, float]) -> None:
        times = " ".join(f"{stage} {stages[stage]:.3f}" for stage in ("settle", "read", "queue", "network", "commit", "total"))
        warning = "  BLANK: nothing to see in it" if record.blank else ""
        trust = "" if record.trust != record.trust else f" trust {record.trust:.2f}"
        logger.info(
            "series=%s projection=%d tilt=%+.2f deg (%s)%s %s[%d]: %s s%s",
            record.series,
            record.number,
            record.tilt_deg,
            record.tilt_source,
            trust,
            record.path,
            record.image,
            times,
            warning,
        )
        self.socket.publish("projection.stored", {"record": msgspec.structs.asdict(record), "stages": stages})

    def _close_series(self) -> None:
        """Begin to close what is due; go on with what has begun."""
        now, flying = time.time(), {flight.series for flight in self.flights} | set(self._unpublished)
        flying |= {series_of(path, self.config.watch_root.name) for path, _ in self.flights.backlog}
        idle_s, expected = self.config.series.idle_close_s, self.config.series.expected
        if time.monotonic() - self._published_at > 0.2 or self.close_asked:
            for series in self.ledger.series():
                name, stored = series["name"], series["stored"]
                if series["state"] != "open" or not stored or name in flying:
                    continue
                full = expected and stored >= expected
                idle = idle_s and now - series["last_at"] > idle_s
                if name in self.close_asked or full or idle:
                    self.archive.begin_close(name)
        for name in self.archive.work(TURN_S):
            self.close_asked.discard(name)
            logger.info("series=%s closed: one verified file, %s", name, self.root / name / layout.SERIES_FILE)
            self.socket.publish("series.closed", {"series": name, "path": str(self.root / name / layout.SERIES_FILE)})

    # -- events for the trigger ---------------------------------------------------------------------------------------------------

    def _lease_event(self, peer: bytes) -> None:
        row = self.ledger.next_event()
        if row is None:
            return
        with self.ledger.transaction():
            attempt = self.ledger.lease_event(row["event_id"])
        self._event_leases[row["event_id"]] = time.monotonic()
        self.socket.send(peer, Event(event_id=row["event_id"], event=row["event"], series=row["series"], attempt=attempt))

    def _end_event(self, message: EventDone) -> None:
        self._event_leases.pop(message.event_id, None)
        row = self.ledger.event(message.event_id)
        if row is None:
            return
        failed = row["attempts"] >= self.config.reconstruct.attempts
        state = "done" if message.ok else "failed" if failed else "pending"
        with self.ledger.transaction():
            self.ledger.end_event(message.event_id, state, message.detail, pause_s=0.0 if message.ok else 2.0 ** row["attempts"])
        logger.log(logging.INFO if message.ok else logging.ERROR, "series=%s %s: %s", row["series"], row["event"], message.detail)
        if message.ok:
            self.socket.publish(f"{row['event']}.done", {"series": row["series"], "event_id": message.event_id, "detail": message.detail})

    # -- telling ------------------------------------------------------------------------------------------------------------------

    def idle_for_s(self) -> float:
        """Since when nothing has been under way, anywhere from the watched folder to the disk."""
        now = time.monotonic()
        _, heard_at, beat = self._roles.get("watch", (b"", -1e9, None))
        watch_rests = beat is not None and now - heard_at < 3 and beat.status.get("hub_id") == self.hub_id and not beat.status.get("busy")
        busy = len(self.flights) or self.flights.backlog or self._done or self._unpublished or self.archive.working_on() or self.paused
        if busy or not watch_rests:
            self._busy_at = now
        return now - self._busy_at

    def status(self) -> dict[str, Any]:
        """Everything, whole; nobody has to remember what was said before."""
        now = time.monotonic()
        roles = {
            name: {"role": beat.role, "pid": beat.pid, "age_s": round(now - heard_at, 2), "status": beat.status}
            for name, (_, heard_at, beat) in self._roles.items()
            if now - heard_at < 3600
        }
        roles["hub"] = {"role": "hub", "pid": os.getpid(), "age_s": 0.0, "status": {}}
        return {
            "hub_id": self.hub_id,
            "t": time.time(),
            "version": __version__,
            "watch_root": str(self.config.watch_root),
            "output_root": str(self.root),
            "roles": roles,
            **outcome(self.ledger),
            "queue": self.flights.counts(),
            "idle_for_s": round(self.idle_for_s(), 2),
            "paused": self.paused,
            "disk_free_bytes": shutil.disk_usage(self.root).free,
            "refused_messages": self.socket.refused,
        }


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
