"""All that the hub decides, without lock or socket: it hears messages and pixels, takes turns, and yields what is to be sent.

Whole once it is made: the ledger is open, the disk consistent, and what the hub before left behind waits to be read again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import msgspec

from aet_stream import __version__
from aet_stream.config import Config, Sink, shareable
from aet_stream.errors import AetError, OutputFull, StoreError, WireError
from aet_stream.hub.archive import Archive, open_ledger
from aet_stream.hub.closing import Closing
from aet_stream.hub.commands import Commands
from aet_stream.hub.crash_guard import CrashGuard
from aet_stream.hub.endings import Endings
from aet_stream.hub.events import Events
from aet_stream.hub.in_flight import InFlight, Subtracted
from aet_stream.hub.intake import Intake
from aet_stream.hub.ledger import summary
from aet_stream.hub.left_out import LeftOut
from aet_stream.hub.odd import Odd
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.outgoing import Letter, News, Outgoing
from aet_stream.hub.retention import Retention
from aet_stream.hub.room import Room
from aet_stream.hub.storing import Storing
from aet_stream.hub.timing import Timing
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
    Gone,
    Job,
    NoReader,
    NotAcquired,
    Offer,
    Older,
    Pulse,
    Ready,
    Reply,
    SeriesEnd,
    ToHub,
    Want,
    Working,
)
from aet_stream.naming import series_of
from aet_stream.projection import Array
from aet_stream.readers.plan import load_plan, missing
from aet_stream.status import AnyHeard, HubHeard, Status, TriggerHeard, WatchHeard, WatchStatus

logger = logging.getLogger(__name__)


class Core:
    """The only writer of everything under output.root."""

    def __init__(
        self,
        config: Config,
        *,
        sinks: Mapping[str, Sink] | None = None,
        timing: Timing | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Take up what is on the disk.

        Parameters
        ----------
        sinks : who acts upon events, by name; None: as the settings say
        alive : called now and then while something takes long, so that nobody thinks the process hangs
        """
        self.config = config
        self.root = config.output_root
        self.hub_id = os.urandom(6).hex()
        self.refused = 0
        """Messages that broke the rules."""
        self.paused = ""
        """What the disk said when it last failed."""
        self._timing = timing = timing or Timing()
        self._plan = load_plan(config.angle.plan)
        self._roles: dict[str, tuple[float, AnyHeard]] = {}
        self._paused_until_s = 0.0
        self._busy_at_s = timing.now_s()
        self._outgoing = outgoing = Outgoing()
        self.ledger, fresh = open_ledger(self.root)
        if fresh:
            logger.info("new ledger in %s", self.root)
        sinks = config.sinks if sinks is None else sinks
        self.outbox = Outbox(self.ledger.db, sinks, unix_s=timing.unix_s)
        self.archive = Archive(
            self.root,
            self.ledger,
            self.outbox,
            CrashGuard(self.root, alive),
            fold_rows=config.output.fold_rows,
            expected=config.series.expected,
            milestone_deg=config.preview.every_deg,
            config=msgspec.json.encode(shareable(msgspec.to_builtins(config))).decode(),
        )
        self.archive.recover()
        queue, named = config.queue, partial(series_of, root_name=config.watch_root.name, rules=config.series)
        self.in_flight = InFlight(queue.credit, queue.credit_mib << 20, queue.lease_s, named, self.hub_id)
        # each projection twice, in a file of its own and in that of its series
        closing_bytes = lambda: self.archive.closing_bytes() + 2 * self.in_flight.nbytes()  # noqa: E731
        self.room = Room(self.root, config.output.keep_free_mib, closing_bytes)
        self.endings = Endings(queue, self.ledger, self.outbox, self.in_flight, self.root / "quarantine", outgoing, timing)
        self.odd = Odd(self.ledger, self.archive, self.endings)
        self.intake = Intake(config, self.ledger, self.archive, self.room, self.in_flight, self.endings, outgoing, timing)
        self.left_out = LeftOut(config, self.ledger, outgoing, timing)
        self.workers = Workers(self.in_flight, self.endings, outgoing, timing)
        self.events = Events(config, sinks, self.ledger, self.outbox, outgoing, timing)
        self.closing = Closing(config, self.ledger, self.archive, self.in_flight, self.events, outgoing, timing)
        self.retention = Retention(config.output, self.ledger, self.archive, self.outbox, self.closing.coming, timing)
        self.storing = Storing(config, self.ledger, self.archive, self.in_flight, self.intake, self.endings, self.closing, outgoing, timing)
        self.commands = Commands(
            config,
            self.ledger,
            self.outbox,
            self.endings,
            self.closing,
            self.archive,
            self.retention,
            status=self.status,
            idle_for_s=self.idle_for_s,
        )
        with self.ledger.transaction():
            self.outbox.start()
        self._take_up()

    def _take_up(self) -> None:
        """Visits that no offer will name: left by the hub before us, or stored once and damaged since."""
        for visit in self.archive.to_read_again():
            self.endings.take_up(visit)

    # -- turns ------------------------------------------------------------------------------------------------------------------

    @property
    def at_work(self) -> bool:
        """Is there something to do at once, whatever is heard?"""
        return bool(self.in_flight.all(Subtracted)) or self.archive.working_on()

    def turn(self) -> Iterator[Letter | News]:
        """Hand out what waits, bring what is done to the disk, tell what happened; each is yielded when it may be sent."""
        self._guarded(self.workers.expire)
        self._guarded(self.events.expire)
        self.workers.assign()
        yield from self._outgoing.taken()
        if self._timing.now_s() < self._paused_until_s:
            return
        before = self._paused_until_s
        steps = (
            self.storing.commit,
            self.storing.publish,
            self.odd.look,
            self.intake.grant,
            self.closing.close_series,
            self.retention.prune,
            self._take_up,
        )
        for step in steps:
            self._guarded(step)  # every step, though one before it failed: one series that cannot be written stops no other
            yield from self._outgoing.taken()
        if self._paused_until_s == before:
            self.paused = ""

    def _guarded(self, work: Callable[[], None]) -> None:
        """When the disk fails, intake waits and nothing is dropped: what was said is said again."""
        try:
            work()
        except (OutputFull, StoreError) as error:
            if not self.paused:
                logger.error("%s: intake waits until the disk takes it; nothing is lost", error)
            self.paused, self._paused_until_s = str(error), self._timing.now_s() + self._timing.pause_s

    def undelivered(self, letter: Letter) -> None:
        """Nobody was there to take it."""
        if isinstance(letter.message, Want):
            self.intake.watch_left(letter.peer)
        elif isinstance(letter.message, Job):
            self.workers.left(letter.message)

    def close(self, *, sound: bool = False) -> list[Letter | News]:
        """Store what is in hand; closing and folding start again at the next start. `sound`: nothing unforeseen has happened."""
        self._guarded(self.storing.commit)
        self._guarded(lambda: self.storing.publish(at_once=True))
        self.archive.close()
        self.ledger.close(sound=sound)
        return self._outgoing.taken()

    # -- hearing ----------------------------------------------------------------------------------------------------------------

    def hear(self, peer: bytes, message: ToHub, pixels: Array | None = None) -> list[Letter | News]:
        """Take note of what a role or a person says; returns what is to be sent at once."""
        self._guarded(lambda: self._hear(peer, message, pixels))
        return self._outgoing.taken()

    def refuse(self, error: WireError) -> None:
        """A message that is none."""
        self.refused += 1
        logger.warning("refused a message: %s", error)

    def _hear(self, peer: bytes, message: ToHub, pixels: Array | None) -> None:
        match message:
            case Beat():
                self._hear_beat(peer, message)
            case Offer():
                self.intake.hear_offer(message)
            case Acquired() if pixels is not None:
                self.intake.hear_acquired(message, pixels)
                self.odd.look()  # before the next one is judged
            case NotAcquired():
                self.intake.hear_not_acquired(message)
            case Older():
                self.left_out.hear_older(peer, message)
            case NoReader():
                self.left_out.hear_no_reader(message)
            case SeriesEnd():
                self.closing.hear_end(message)
            case Ready():
                self.workers.hear_ready(peer, message)
            case Working():
                self.workers.hear_working(message)
            case Done() if pixels is not None:
                self.workers.hear_done(message, pixels)
            case Failed():
                self.workers.hear_failed(message)
            case Gone():
                self.workers.hear_gone(peer)
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
        self._roles[beat.name] = (self._timing.now_s(), beat.said)
        self._outgoing.send(peer, Pulse(hub_id=self.hub_id, newer_than_s=self.left_out.limit_s))
        if isinstance(beat.said, WatchHeard):
            self.closing.hear_watch(peer)
            self.intake.hear_watch(peer, set(beat.said.status.asked))
        if isinstance(beat.said, TriggerHeard):
            self.events.hear_trigger(peer, beat.said.status.deliveries)

    def _hear_command(self, peer: bytes, command: Command) -> None:
        try:
            text, data = self.commands.obey(command.name, command.arguments)
            self._outgoing.send(peer, Reply(ok=True, text=text, data=data))
        except AetError as error:
            self._outgoing.send(peer, Reply(ok=False, text=str(error)))

    # -- telling ----------------------------------------------------------------------------------------------------------------

    def idle_for_s(self) -> float:
        """Since when nothing has been under way, anywhere from the watched folder to the disk."""
        now_s = self._timing.now_s()
        heard_at_s, said = self._roles.get("watch", (-1e9, None))
        watch = said.status if isinstance(said, WatchHeard) and now_s - heard_at_s <= self._timing.fresh_s else WatchStatus()
        watch_rests = watch.hub_id == self.hub_id and not watch.busy
        if self.in_hand() or not watch_rests:
            self._busy_at_s = now_s
        return now_s - self._busy_at_s

    def in_hand(self) -> bool:
        """Is anything offered, on its way, or not yet brought to the disk?"""
        flying = len(self.in_flight) or self.in_flight.backlog
        return bool(flying or self.archive.unpublished() or self.archive.working_on() or self.paused)

    def _planned_missing(self) -> dict[str, list[float]]:
        """Tilts of the plan that an open series lacks."""
        if not self._plan:
            return {}
        tolerance_deg = self.config.angle.plan_tolerance_deg
        open_now = self.ledger.series(state="open", limit=50)
        taken_deg = {series["name"]: self.archive.tilts_deg(series["name"]) if series["stored"] else [] for series in open_now}
        return {name: missing(tilts_deg, self._plan, tolerance_deg) for name, tilts_deg in taken_deg.items()}

    def status(self) -> Status:
        """Everything, whole; nobody has to remember what was said before."""
        now_s = self._timing.now_s()
        roles: dict[str, AnyHeard] = {
            name: msgspec.structs.replace(said, age_s=round(now_s - heard_at_s, 2)) for name, (heard_at_s, said) in self._roles.items()
        }
        roles["hub"] = HubHeard(pid=os.getpid())
        return Status(
            hub_id=self.hub_id,
            t=self._timing.unix_s(),
            version=__version__,
            watch_root=str(self.config.watch_root),
            output_root=str(self.root),
            roles=roles,
            **msgspec.structs.asdict(summary(self.ledger)),
            planned_missing_deg=self._planned_missing(),
            queue=self.in_flight.counts(),
            workers={name: tally.told() for name, tally in self.workers.tallies.items()},
            idle_for_s=round(self.idle_for_s(), 2),
            paused=self.paused or self.room.complaint,
            disk_free_bytes=shutil.disk_usage(self.root).free,
            refused_messages=self.refused,
        )
