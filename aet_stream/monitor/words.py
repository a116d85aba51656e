"""One glance in words: the same sentences on the page, in the terminal and in /readyz."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from aet_stream.naming import lines_without_reader, shown

STALE_S = 5.0
DISK_LOW_BYTES = 5 << 30
_BUSY_STAGES = ("network", "commit")
"""Stages that occupy somebody; settling, reading (which waits for credit) and queueing are waiting."""


def troubles(status: dict[str, Any], silence_s: float) -> list[str]:
    """Why the daemon is not fit for work; empty when it is."""
    if silence_s > STALE_S:
        return ["the hub is silent"]
    roles = status.get("roles", {})
    fresh = {role["role"] for role in roles.values() if role["age_s"] < STALE_S}
    found = [f"no {role}" for role in ("watch", "worker") if role not in fresh]
    if roles.get("watch", {}).get("status", {}).get("root_there") is False:
        found.append("the watched folder is not there")
    return found + ([f"paused: {status['paused']}"] if status.get("paused") else [])


def concerns(status: dict[str, Any]) -> list[str]:
    """What a person should look at, though work goes on."""
    totals = status.get("totals", {})
    found = [f"{totals[key]} {key}" for key in ("held", "quarantined") if totals.get(key)]
    failed = Counter(row["sink"] for row in status.get("events", {}).get("dead", []))
    found += [f"{sink} failed{f' {times} times' if times > 1 else ''}: see aet-stream events" for sink, times in failed.items()]
    for name, role in status.get("roles", {}).get("supervisor", {}).get("status", {}).get("roles", {}).items():
        if role.get("degraded"):
            found.append(f"{name} {role['degraded']}")
    free = status.get("disk_free_bytes")
    if free is not None and free < DISK_LOW_BYTES:
        found.append(f"{free / 1e9:.1f} GB of disk left")
    return found


def workers(status: dict[str, Any]) -> list[str]:
    """What each worker has done since the hub started, and how fast: with the way there and back, and computing alone."""
    found = []
    for name, tally in sorted(status.get("workers", {}).items()):
        pace = f", {tally['turn_s']:.2f} s each, of them {tally['compute_s']:.2f} s computing" if tally["turn_s"] is not None else ""
        lost = f", {tally['lost']} given to another, link lost" if tally["lost"] else ""
        found.append(f"{name}: {tally['done']} done{pace}{lost}")
    return found


def unfit(doctor: dict[str, Any] | None) -> list[str]:
    """What the doctor found that will not work."""
    results = doctor["results"] if doctor else []
    failed = [result["check"] for result in results if any(finding["state"] == "fail" for finding in result["findings"])]
    return [f"the doctor finds fault with: {', '.join(failed)}"] if failed else []


def notes(status: dict[str, Any], most: int = 4) -> list[str]:
    """What is not taken and nobody has to do anything about: files without a reader by folder, and how many are older than wanted."""
    said = status.get("left_out", {})
    older, rows = said.get("older", 0), said.get("no_reader", [])
    lines = dict(itertools.islice(lines_without_reader(rows).items(), most))
    more = said.get("no_reader_files", 0) - sum(files for folder, _, files in rows if folder in lines)
    found = [f"{older} older files left out (watch.newer_than)"] if older else []
    return [*found, *lines.values(), *([f"{more} more files without a reader in other folders"] if more > 0 else [])]


def current(status: dict[str, Any]) -> dict[str, Any] | None:
    """The series that something came for last."""
    series = [row for row in status.get("series", []) if row.get("stored")]
    return max(series, key=lambda row: row["last_at"], default=None)


def cadence_s(rows: Sequence[dict[str, Any]]) -> float | None:
    """Usual time from one of these projections to the next; None for too few."""
    times = sorted(row["closed_at"] for row in rows if row.get("closed_at") is not None)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
    return statistics.median(gaps) if len(gaps) >= 3 else None


def headroom(status: dict[str, Any], cadence: float | None) -> float | None:
    """How many times faster the microscope could go: cadence over the slowest stage that occupies somebody (median)."""
    stages = status.get("latency", {}).get("stages", {})
    slowest = max((stages[stage]["p50_s"] for stage in _BUSY_STAGES if stage in stages), default=0.0)
    return cadence / slowest if cadence and slowest > 0 else None


def sentence(status: dict[str, Any], *, expected: int = 0, last: dict[str, Any] | None = None) -> str:
    """The state of the acquisition: "tilt 23 of 60, -12.0°, stored 0.4 s after its file was closed; nothing held".

    Parameters
    ----------
    last : the last row of the current series, where it is known
    """
    series = current(status)
    if series is None:
        return f"waiting for the first projection in {shown(status.get('watch_root', 'the watched folder'))}"
    of = f" of {expected}" if expected else ""
    tilt = "" if series.get("last_tilt_deg") is None else f", {series['last_tilt_deg']:+.1f}°"
    total = None if last is None else last.get("total_s")
    after = "" if total is None else f", stored {total:.1f} s after its file was closed"
    text = f"tilt {series['tilts']}{of}{tilt}{after}"
    if series["state"] == "closed":
        text = f"{shown(series['name'])} is closed with {series['tilts']} tilts"
    totals = status.get("totals", {})
    waiting = [f"{totals[state]} {state}" for state in ("held", "quarantined") if totals.get(state)]
    return f"{text}; {', '.join(waiting) or 'nothing held'}"


def output_setting(status: dict[str, Any]) -> str:
    """What makes a command one for this daemon, to be put behind it."""
    return f" --set output.root={shlex.quote(shown(status['output_root']))}" if status.get("output_root") else ""


def unlisted(status: dict[str, Any]) -> int:
    """How many older ones are held or quarantined than the status has room to name."""
    totals = status.get("totals", {})
    return sum(max(0, totals.get(state, 0) - len(status.get(state, []))) for state in ("held", "quarantined"))


def remedies(status: dict[str, Any]) -> list[dict[str, Any]]:
    """What is held or quarantined, the newest first of each, with what to do and the exact command to type."""
    setting = output_setting(status)
    found = []
    for state in ("held", "quarantined"):
        for row in status.get(state, []):
            command = row["command"] and f"aet-stream {row['command'].replace('ID', str(row['id']))}{setting}"
            discard = f"aet-stream discard {row['id']}{setting}" if state == "held" else ""
            found.append(
                {**row, "discard": discard, "path": shown(row["path"]), "series": shown(row["series"]), "state": state, "command": command}
            )
    return found
