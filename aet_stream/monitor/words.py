"""One glance in words: the same sentences on the page, in the terminal and in /readyz."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from aet_stream.naming import lines_without_reader, shown
from aet_stream.status import LedgerStatus, RelayHeard, RelayStatus, SeriesStatus, Status, WatchHeard, WorkerHeard

STALE_S = 5.0
DISK_LOW_BYTES = 5 << 30
_BUSY_STAGES = ("network", "commit")
"""Stages that occupy somebody; settling, reading (which waits for credit) and queueing are waiting."""
_NEEDED = {"watch": WatchHeard, "worker": WorkerHeard}


def troubles(status: Status, silence_s: float) -> list[str]:
    """Why the daemon is not fit for work; empty when it is."""
    if silence_s > STALE_S:
        return ["the hub is silent"]
    fresh = [role for role in status.roles.values() if role.age_s < STALE_S]
    missing = [name for name, kind in _NEEDED.items() if not any(isinstance(role, kind) for role in fresh)]
    found = [f"{name} is starting" if _is_starting(status, name) else f"no {name}" for name in missing]
    if status.watch is not None and not status.watch.root_there:
        found.append("the watched folder is not there")
    return found + ([f"paused: {status.paused}"] if status.paused else [])


def _is_starting(status: Status, name: str) -> bool:
    """For the first time: a worker loads its network for some seconds."""
    lives = [child for role, child in status.children.items() if role.partition("-")[0] == name]
    return any(child.state == "starting" and not child.restarts for child in lives)


def concerns(status: Status) -> list[str]:
    """What a person should look at, though work goes on."""
    found = _put_aside(status)
    failed = Counter(delivery.sink for delivery in status.events.dead)
    found += [f"{sink} failed{f' {times} times' if times > 1 else ''}: see aet-stream events" for sink, times in failed.items()]
    found += [f"{name} {child.degraded}" for name, child in status.children.items() if child.degraded]
    free = status.disk_free_bytes
    if free is not None and free < DISK_LOW_BYTES:
        found.append(f"{free / 1e9:.1f} GB of disk left")
    return found


def _put_aside(status: LedgerStatus) -> list[str]:
    counts = {"held": status.totals.held, "quarantined": status.totals.quarantined, "set aside as odd": status.totals.odd}
    return [f"{count} {state}" for state, count in counts.items() if count]


def crew(status: Status) -> list[dict[str, Any]]:
    """Who works, here and on other computers: what each does now, and what a worker has done since the hub started, and how fast.

    `turn_s` is with the way there and back, `compute_s` without. A helper is named as long as it is there, a worker for ever.
    """
    relay = status.roles.get("relay")
    there = relay.status if isinstance(relay, RelayHeard) else RelayStatus()
    found = []
    for name, tally in sorted(status.workers.items()):
        role = status.roles.get(name)
        here = name in there.workers if tally.host else role is not None and role.age_s < STALE_S
        found.append({"name": name, "does": "background" if here else "gone", **msgspec.structs.asdict(tally)})
    return found + [{"name": name, "does": doing or "helper, free"} for name, doing in sorted(there.helpers.items())]


def workers(status: Status) -> list[str]:
    """The same, a line for each."""
    found = []
    for one in crew(status):
        said = [one["does"]]
        if "done" in one:
            said.append(f"{one['done']} done")
            said += [f"{one['turn_s']:.2f} s each, {one['compute_s']:.2f} s of it computing"] if one["turn_s"] is not None else []
            said += [f"{one['lost']} given to another, link lost"] if one["lost"] else []
        found.append(f"{one['name']}: {', '.join(said)}")
    return found


def unfit(doctor: dict[str, Any] | None) -> list[str]:
    """What the doctor found that will not work."""
    results = doctor["results"] if doctor else []
    failed = [result["check"] for result in results if any(finding["state"] == "fail" for finding in result["findings"])]
    return [f"the doctor finds fault with: {', '.join(failed)}"] if failed else []


def notes(status: LedgerStatus, most: int = 4) -> list[str]:
    """What is not taken and nobody has to do anything about: files without a reader by folder, and how many are older than wanted."""
    older, rows = status.left_out.older, status.left_out.no_reader
    lines = dict(itertools.islice(lines_without_reader(rows).items(), most))
    more = status.left_out.no_reader_files - sum(files for folder, _, files in rows if folder in lines)
    found = [f"{older} older files left out (watch.newer_than)"] if older else []
    return [*found, *lines.values(), *([f"{more} more files without a reader in other folders"] if more > 0 else [])]


def current(status: LedgerStatus) -> SeriesStatus | None:
    """The series that something came for last."""
    return max((series for series in status.series if series.stored), key=lambda series: series.last_at, default=None)


def cadence_s(rows: Sequence[dict[str, Any]]) -> float | None:
    """Usual time from one of these projections to the next; None for too few."""
    times = sorted(row["closed_at"] for row in rows if row.get("closed_at") is not None)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
    return statistics.median(gaps) if len(gaps) >= 3 else None


def headroom(status: LedgerStatus, cadence: float | None) -> float | None:
    """How many times faster the microscope could go: cadence over the slowest stage that occupies somebody (median)."""
    stages = status.latency.stages
    slowest = max((stages[stage].p50_s for stage in _BUSY_STAGES if stage in stages), default=0.0)
    return cadence / slowest if cadence and slowest > 0 else None


def sentence(status: Status, *, expected: int = 0, last: dict[str, Any] | None = None) -> str:
    """The state of the acquisition: "tilt 23 of 60, -12.0°, stored 0.4 s after its file was closed; nothing held".

    Parameters
    ----------
    last : the last row of the current series, where it is known
    """
    series = current(status)
    if series is None:
        return f"waiting for the first projection in {shown(status.watch_root)}"
    of = f" of {expected}" if expected else ""
    tilt = "" if series.last_tilt_deg is None else f", {series.last_tilt_deg:+.1f}°"
    total = None if last is None else last.get("total_s")
    after = "" if total is None else f", stored {total:.1f} s after its file was closed"
    text = f"tilt {series.tilts}{of}{tilt}{after}"
    if series.state == "closed":
        text = f"{shown(series.name)} is closed with {series.tilts} tilts"
    return f"{text}; {', '.join(_put_aside(status)) or 'nothing held'}"


def output_setting(status: LedgerStatus) -> str:
    """What makes a command one for this daemon, to be put behind it."""
    return f" --set output.root={shlex.quote(shown(status.output_root))}" if isinstance(status, Status) and status.output_root else ""


def unlisted(status: LedgerStatus) -> int:
    """How many older ones are held, quarantined or odd than the status has room to name."""
    totals, named = status.totals, (status.held, status.quarantined, status.odd)
    return sum(max(0, count - len(rows)) for count, rows in zip((totals.held, totals.quarantined, totals.odd), named, strict=True))


def remedies(status: LedgerStatus) -> list[dict[str, Any]]:
    """What is held, quarantined or odd, the newest first of each, with what to do and the exact command to type."""
    setting = output_setting(status)
    found = []
    for state, rows in (("held", status.held), ("quarantined", status.quarantined), ("odd", status.odd)):
        for row in rows:
            command = row.command and f"aet-stream {row.command.replace('ID', str(row.id))}{setting}"
            discard = f"aet-stream discard {row.id}{setting}" if state == "held" else ""
            harmless = {"path": shown(row.path), "series": shown(row.series), "state": state, "command": command, "discard": discard}
            found.append({**msgspec.structs.asdict(row), **harmless})
    return found
