"""The hub's turn: hear what roles and people say, bring what is done to the disk, hand out what waits, tell what happened."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from typing import Any, TextIO

import msgspec

from aet_stream import __version__, durable
from aet_stream.config import Config, shareable
from aet_stream.errors import AetError, AlreadyRunning, OutputFull, StoreError, WireError
from aet_stream.hub.archive import Archive, open_ledger
from aet_stream.hub.commands import obey
from aet_stream.hub.events import Events
from aet_stream.hub.flights import Flights
from aet_stream.hub.intake import Intake
from aet_stream.hub.ledger import outcome
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.outcomes import Outcomes
from aet_stream.hub.storing import Storing
from aet_stream.hub.workers import Workers
from aet_stream.messages import (
    WIRE_VERSION,
    Acquired,
    Beat,
    Command,
    Done,
    EventDone,
    EventPlease,
    Failed,
    NotAcquired,
    Offer,
    Pulse,
    Ready,
    Reply,
    SeriesEnd,
    ToHub,
    Working,
)
from aet_stream.projection import Array
from aet_stream.readers.plan import load_plan, missing
from aet_stream.transport import HubSocket, run_folder

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
PAUSE_S = 2.0
"""After a failing disk: how long before the next try."""
TURN_S = 0.05
FRESH_S = 3.0
"""A role that was heard within this time is there."""


class Hub:
    """The only writer of everything under output.root."""

    name = "hub"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.output_root
        self.hub_id = os.urandom(6).hex()
        self.flights = Flights(config.queue.credit, config.queue.credit_mib << 20, config.queue.lease_s)
        self._lock: TextIO | None = None
        self._socket: HubSocket | None = None
        self._roles: dict[str, tuple[float, Beat]] = {}
        self._paused_until = 0.0
        self.paused = ""
        self._busy_at = time.monotonic()

    # -- life -------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the output for ourselves, make the disk consistent, then open for business."""
        config = self.config
        with durable.disk_errors(self.root):
            durable.make_folder(self.root)
        self._take_lock()
        self.ledger, fresh = open_ledger(self.root)
        if fresh:
            logger.info("new ledger in %s", self.root)
        self.outbox = Outbox(self.ledger.db, config.sinks)
        self.archive = Archive(
            self.root,
            self.ledger,
            self.outbox,
            fold_rows=config.output.fold_rows,
            expected=config.series.expected,
            milestone_deg=config.preview.every_deg,
            config=msgspec.json.encode(shareable(msgspec.to_builtins(config))).decode(),
        )
        self.plan = load_plan(config.angle.plan)
        self.archive.recover()
        self.outcomes = Outcomes(config.queue, self.ledger, self.outbox, self.flights, self.root / "quarantine", self._tell)
        self.intake = Intake(config, self.ledger, self.archive, self.flights, self.outcomes, self._send)
        self.workers = Workers(self.hub_id, self.flights, self.outcomes, self._send)
        self.storing = Storing(config, self.ledger, self.archive, self.flights, self.intake, self.outcomes, self._tell)
        self.events = Events(config, self.ledger, self.outbox, send=self._send, tell=self._tell)
        with self.ledger.transaction():
            self.outbox.start()
        self._take_up()
        self._socket = HubSocket(self.root)

    def _take_up(self) -> None:
        """Units that no offer will name: left by the hub before us, or stored once and damaged since."""
        self.archive.lost = False
        for row in self.ledger.ready():
            self.outcomes.take_up(row["path"], row["image"], row["stamp"], row["attempts"])

    def _take_lock(self) -> None:
        self._lock = (run_folder(self.root) / "writer.lock").open("w")
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

    def _send(self, peer: bytes, message: Any, pixels: Array | None = None) -> bool:
        return self.socket.send(peer, message, pixels)

    def _tell(self, topic: str, what: dict[str, Any]) -> None:
        self.socket.publish(topic, what)

    def step(self) -> None:
        at_once = self.workers.done or self.archive.working_on()
        for heard in self.socket.receive(0.0 if at_once else TURN_S):
            if isinstance(heard, WireError):
                logger.warning("refused a message: %s", heard)
            else:
                self._guarded(lambda heard=heard: self._hear(*heard))
        self._guarded(self._expire)
        if time.monotonic() >= self._paused_until:
            self._write()
        self.workers.assign()

    def _guarded(self, work: Any) -> None:
        """When the disk fails, intake waits and nothing is dropped: what was said is said again."""
        try:
            work()
        except (OutputFull, StoreError) as error:
            if not self.paused:
                logger.error("%s: intake waits until the disk takes it; nothing is lost", error)
            self.paused, self._paused_until = str(error), time.monotonic() + PAUSE_S

    def _expire(self) -> None:
        self.workers.expire()
        self.events.expire()

    def _write(self) -> None:
        """Every step, though one before it failed: one series that cannot be written stops no other."""
        before = self._paused_until
        for step in (lambda: self.storing.commit(self.workers.done), self.storing.publish, self.intake.grant, self.storing.close_series):
            self._guarded(step)
        if self.archive.lost:
            self._take_up()
        while self.archive.called_off:
            self.events.call_off(*self.archive.called_off.pop())
        if self._paused_until == before:
            self.paused = ""

    def beat(self) -> None:
        self._tell("status", self.status())

    def close(self) -> None:
        if self._socket is not None:
            self._guarded(lambda: self.storing.commit(self.workers.done))  # the commit in hand
            self._guarded(lambda: self.storing.publish(at_once=True))
            self.archive.close()
            self._socket.close()
            self.ledger.close()
        if self._lock is not None:
            self._lock.close()

    # -- hearing ----------------------------------------------------------------------------------------------------------------

    def _hear(self, peer: bytes, message: ToHub, pixels: Array | None) -> None:
        match message:
            case Beat():
                self._hear_beat(peer, message)
            case Offer():
                self.intake.hear_offer(message)
            case Acquired() if pixels is not None:
                self.intake.hear_acquired(message, pixels)
            case NotAcquired():
                self.intake.hear_not_acquired(message)
            case SeriesEnd():
                self.storing.hear_end(message)
            case Ready():
                self.workers.hear_ready(peer, message)
            case Working():
                self.workers.hear_working(message)
            case Done() if pixels is not None:
                self.workers.hear_done(message, pixels)
            case Failed():
                self.workers.hear_failed(message)
            case EventPlease():
                self.events.lease(peer, message.sinks)
            case EventDone():
                self.events.hear_done(message)
            case Command():
                self._hear_command(peer, message)
            case _:
                logger.warning("refused a %s without pixels", type(message).__name__)

    def _hear_beat(self, peer: bytes, beat: Beat) -> None:
        if beat.wire != WIRE_VERSION:
            logger.error("%s speaks version %d of the queue, this hub %d: install the same aet_stream", beat.name, beat.wire, WIRE_VERSION)
            return
        self._roles[beat.name] = (time.monotonic(), beat)
        self._send(peer, Pulse(hub_id=self.hub_id))
        if beat.role == "watch":
            self.storing.hear_watch(peer)
            self.intake.hear_watch(peer, {(path, image) for path, image in beat.status.get("asked", [])})
        if beat.role == "trigger":
            self.events.hear_trigger(peer, beat.status.get("deliveries", []))

    def _hear_command(self, peer: bytes, command: Command) -> None:
        try:
            text, data = obey(self, command.name, command.arguments)
            self._send(peer, Reply(ok=True, text=text, data=data))
        except AetError as error:
            self._send(peer, Reply(ok=False, text=str(error)))

    # -- telling ----------------------------------------------------------------------------------------------------------------

    def idle_for_s(self) -> float:
        """Since when nothing has been under way, anywhere from the watched folder to the disk."""
        now = time.monotonic()
        heard_at, beat = self._roles.get("watch", (-1e9, None))
        said = {} if beat is None or now - heard_at > FRESH_S else beat.status
        watch_rests = said.get("hub_id") == self.hub_id and not said.get("busy")
        here = len(self.flights) or self.flights.backlog or self.archive.unpublished or self.archive.working_on() or self.paused
        if here or not watch_rests:
            self._busy_at = now
        return now - self._busy_at

    def _planned_missing(self) -> dict[str, list[float]]:
        """Tilts of the plan that an open series lacks."""
        if not self.plan:
            return {}
        tolerance_deg = self.config.angle.plan_tolerance_deg
        open_now = self.ledger.series(state="open", limit=50)
        taken_deg = {series["name"]: self.archive.tilts_deg(series["name"]) if series["stored"] else [] for series in open_now}
        return {name: missing(tilts_deg, self.plan, tolerance_deg) for name, tilts_deg in taken_deg.items()}

    def status(self) -> dict[str, Any]:
        """Everything, whole; nobody has to remember what was said before."""
        now = time.monotonic()
        roles = {
            name: {"role": beat.role, "pid": beat.pid, "age_s": round(now - heard_at, 2), "status": beat.status}
            for name, (heard_at, beat) in self._roles.items()
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
            "planned_missing_deg": self._planned_missing(),
            "queue": self.flights.counts(),
            "idle_for_s": round(self.idle_for_s(), 2),
            "paused": self.paused,
            "disk_free_bytes": shutil.disk_usage(self.root).free,
            "refused_messages": self.socket.refused,
        }
