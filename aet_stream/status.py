"""What each role says of itself once a second, and what the hub makes of it: the whole status, which nobody has to remember.

`aet-stream status --json`, `/status.json` and the queue show it in these words. Whoever reads it passes over what it does not know, so
that a daemon of another version can still be asked for its version. Times are unix seconds unless their names say otherwise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

StepName = Literal["film", "reconstruct", "atoms"]
"""Sinks of the trigger whose work another computer can do."""
PRODUCTS: dict[StepName, str] = {"film": "films", "reconstruct": "volume", "atoms": "atoms"}
"""What each makes, in a person's words."""


class StatusPart(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a status."""


class WatchStatus(StatusPart, frozen=True):
    """What the watch sees and waits for."""

    hub_id: str = ""
    """The hub that it has told everything; empty: none yet."""
    busy: bool = False
    """Something is under way that the hub does not know of."""
    asked: tuple[tuple[str, int], ...] = ()
    """(path, image) of what the hub wants and it has not read yet."""
    root: str = ""
    root_there: bool = True
    events: bool = False
    """File system events tell of everything."""
    scan_s: float = 0.0
    scan_every_s: float = 0.0
    files: int = 0
    moving: int = 0
    """Files that are not known to be complete."""
    visits_waiting: int = 0
    waiting_for: dict[str, str] = {}
    """The first of the moving files, and what each lacks."""
    older: int = 0
    unreadable: tuple[str, ...] = ()


class WorkerStatus(StatusPart, frozen=True):
    """With what a worker subtracts, and how often it has."""

    model: str = ""
    model_sha256: str = ""
    device: str = ""
    host: str = ""
    """The computer it works on, as the relay has it; empty: this one."""
    done: int = 0
    failed: int = 0


class TriggerStatus(StatusPart, frozen=True):
    """What the trigger works on."""

    deliveries: tuple[tuple[str, str], ...] = ()
    """(event, sink)."""
    doing: str = ""
    series: dict[str, str] = {}
    """What each sink that is at work is at: sink -> series."""
    finished: int = 0
    failed: int = 0


class RelayStatus(StatusPart, frozen=True):
    """Where workers on other computers come in, and which are there."""

    address: str = ""
    strangers: int = 0
    workers: tuple[str, ...] = ()
    helpers: dict[str, str] = {}
    """Name of each helper -> the step that it does; empty: none."""


class MonitorStatus(StatusPart, frozen=True):
    """Where the page is."""

    url: str = ""
    viewers: int = 0


class ChildStatus(StatusPart, frozen=True):
    """A role as its supervisor sees it."""

    pid: int | None
    state: str
    restarts: int
    degraded: str
    """How it ended, where work goes on without it."""


class SupervisorStatus(StatusPart, frozen=True):
    """All roles, by name."""

    roles: dict[str, ChildStatus] = {}


class Nothing(StatusPart, frozen=True):
    """No status of its own."""


class Heard(StatusPart, frozen=True, kw_only=True, tag_field="role"):
    """One process of the daemon, as it was heard last."""

    pid: int
    age_s: float = 0.0
    """Since then."""


class WatchHeard(Heard, frozen=True, kw_only=True, tag="watch"):
    status: WatchStatus


class WorkerHeard(Heard, frozen=True, kw_only=True, tag="worker"):
    status: WorkerStatus


class TriggerHeard(Heard, frozen=True, kw_only=True, tag="trigger"):
    status: TriggerStatus


class RelayHeard(Heard, frozen=True, kw_only=True, tag="relay"):
    status: RelayStatus


class MonitorHeard(Heard, frozen=True, kw_only=True, tag="monitor"):
    status: MonitorStatus


class SupervisorHeard(Heard, frozen=True, kw_only=True, tag="supervisor"):
    status: SupervisorStatus


class HubHeard(Heard, frozen=True, kw_only=True, tag="hub"):
    status: Nothing = Nothing()


AnyHeard = WatchHeard | WorkerHeard | TriggerHeard | RelayHeard | MonitorHeard | SupervisorHeard | HubHeard
RoleStatus = WatchStatus | WorkerStatus | TriggerStatus | RelayStatus | MonitorStatus | SupervisorStatus


class Totals(StatusPart, frozen=True):
    """How many images ended how."""

    stored: int = 0
    held: int = 0
    quarantined: int = 0
    duplicates: int = 0
    others: int = 0
    discarded: int = 0
    odd: int = 0
    """Of those stored: set aside, because two after it agree on something else."""


class SeriesStatus(StatusPart, frozen=True):
    """One series in figures."""

    name: str
    state: str
    opened_at: float
    last_at: float
    closed_at: float | None
    generation: int
    stored: int
    held: int
    quarantined: int
    duplicates: int
    last_tilt_deg: float | None
    tilts: int
    """What was stored and counts, an image that was taken again under its name once."""
    excluded: int = 0
    """What was stored and does not count, by a person's word or as odd."""
    pruned_at: float | None = None
    """Since when it has no projection files, unix seconds; None: it has them."""


class PutAside(StatusPart, frozen=True):
    """An image that is held, quarantined or set aside as odd, why, and what to do."""

    id: int
    series: str
    path: str
    image: int
    reason: str
    attempts: int
    tilt_deg: float | None
    ended_at: float | None
    code: str
    remedy: str
    command: str


class Blank(StatusPart, frozen=True):
    """A stored image whose every pixel has the same value."""

    id: int
    series: str
    path: str
    image: int
    number: int
    tilt_deg: float


class NotTaken(StatusPart, frozen=True):
    """What of the watched folder is not taken."""

    older: int = 0
    no_reader: tuple[tuple[str, str, int], ...] = ()
    """(folder, how they are called, how many): the first of them."""
    no_reader_files: int = 0


class StageTimes(StatusPart, frozen=True):
    """Of the last projections in one stage."""

    p50_s: float
    p99_s: float
    n: int


class Latency(StatusPart, frozen=True):
    """Where time is spent, by stage."""

    stages: dict[str, StageTimes] = {}


class DeadDelivery(StatusPart, frozen=True):
    """An event that a sink could not be told."""

    event_id: str
    event: str
    series: str
    sink: str
    attempts: int
    detail: str


class Deliveries(StatusPart, frozen=True):
    """The outbox in figures."""

    pending: int = 0
    failed: int = 0
    dead: tuple[DeadDelivery, ...] = ()


class QueueDepth(StatusPart, frozen=True):
    """How many visits are where on their way."""

    offered: int = 0
    wanted: int = 0
    waiting: int = 0
    working: int = 0
    done: int = 0
    credit: int = 0


class WorkerTally(StatusPart, frozen=True):
    """What one worker has done since the hub started."""

    host: str
    done: int
    lost: int
    """Projections given to another because the link to it was lost."""
    turn_s: float | None
    """With the way there and back: median of the latest; None before the first."""
    compute_s: float | None


class LedgerStatus(StatusPart, frozen=True):
    """What the ledger alone tells, with or without a daemon. Lists hold the latest."""

    totals: Totals = Totals()
    series: tuple[SeriesStatus, ...] = ()
    held: tuple[PutAside, ...] = ()
    quarantined: tuple[PutAside, ...] = ()
    odd: tuple[PutAside, ...] = ()
    blank: tuple[Blank, ...] = ()
    left_out: NotTaken = NotTaken()
    latency: Latency = Latency()
    events: Deliveries = Deliveries()


class Status(LedgerStatus, frozen=True):
    """Of a daemon that runs."""

    hub_id: str = ""
    """Empty: no hub has been heard."""
    t: float = 0.0
    version: str = ""
    watch_root: str = ""
    output_root: str = ""
    roles: dict[str, AnyHeard] = {}
    planned_missing_deg: dict[str, list[float]] = {}
    queue: QueueDepth = QueueDepth()
    workers: dict[str, WorkerTally] = {}
    idle_for_s: float = 0.0
    paused: str = ""
    """Why nothing is accepted now."""
    disk_free_bytes: int | None = None
    refused_messages: int = 0

    @property
    def watch(self) -> WatchStatus | None:
        role = self.roles.get("watch")
        return role.status if isinstance(role, WatchHeard) else None

    @property
    def children(self) -> dict[str, ChildStatus]:
        """Roles as their supervisor sees them; none without one."""
        role = self.roles.get("supervisor")
        return role.status.roles if isinstance(role, SupervisorHeard) else {}


def in_words(said: RoleStatus | Status) -> str:
    """What a role, or with the whole status the hub, is at: one short line for `systemctl status`. Empty: nothing to say."""
    match said:
        case Status():
            return _hub_in_words(said)
        case WatchStatus(root_there=False):
            return "the watched folder is not there"
        case WatchStatus():
            return f"{_count(said.moving, 'file')} not complete yet" if said.moving else ""
        case WorkerStatus():
            return f"{said.model} on {said.device}: {said.done} done" + (f", {said.failed} failed" if said.failed else "")
        case TriggerStatus():
            return ", ".join(f"{_product(sink)} of {series} running" for sink, series in said.series.items())
        case RelayStatus():
            there = [_count(len(names), what) for what, names in {"worker": said.workers, "helper": said.helpers}.items() if names]
            return f"{' and '.join(there)} on other computers" if there else ""
        case MonitorStatus():
            return said.url
        case SupervisorStatus():
            return ""


def _hub_in_words(status: Status) -> str:
    queue, growing = status.queue, [series for series in status.series if series.state == "open"]
    words = [f"paused: {status.paused}"] if status.paused else []
    if growing:
        latest = max(growing, key=lambda series: series.last_at)
        flying = queue.wanted + queue.waiting + queue.working + queue.done
        counts = {"in flight": flying, "held": latest.held, "quarantined": latest.quarantined}
        said = [_count(latest.stored, "projection"), *(f"{count} {how}" for how, count in counts.items() if count)]
        more = f" (and {len(growing) - 1} more open)" if len(growing) > 1 else ""
        words += [f"series {latest.name}: {', '.join(said)}{more}"]
    return "; ".join(words) or "no series is open"


def _product(sink: str) -> str:
    return next((made for step, made in PRODUCTS.items() if step == sink), sink)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def heard(status: RoleStatus, pid: int) -> AnyHeard:
    """A role as it is heard now, by what it says."""
    match status:
        case WatchStatus():
            return WatchHeard(pid=pid, status=status)
        case WorkerStatus():
            return WorkerHeard(pid=pid, status=status)
        case TriggerStatus():
            return TriggerHeard(pid=pid, status=status)
        case RelayStatus():
            return RelayHeard(pid=pid, status=status)
        case MonitorStatus():
            return MonitorHeard(pid=pid, status=status)
        case SupervisorStatus():
            return SupervisorHeard(pid=pid, status=status)
