"""`aet-stream top`: one glance in a terminal, for those who sit at the far end of an SSH connection."""

from __future__ import annotations

import msgspec
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from aet_stream.monitor import words
from aet_stream.naming import shown
from aet_stream.status import Latency, LedgerStatus, Status

_SIGNS = {"ok": ("● all well", "bold green"), "attention": ("▲ please look", "bold yellow"), "trouble": ("■ not working", "bold red")}
_STAGES = {"settle": "settling", "read": "reading", "queue": "queue", "network": "background", "commit": "to disk", "total": "in all"}
FEW = 6
"""Of what is held, quarantined or odd, so many are named."""


def glance(status: Status | None, *, expected: int = 0) -> RenderableType:
    """The hub's status as a screenful; None means that no daemon answers."""
    if status is None:
        return Panel(Text("no daemon answers: start one with `aet-stream run`", style="bold red"), title="aet-stream")
    troubles, concerns = words.troubles(status, 0.0), words.concerns(status)
    sign, style = _SIGNS["trouble" if troubles else "attention" if concerns else "ok"]
    head = Text.assemble((sign, style), "  ", words.sentence(status, expected=expected))
    worries = Text(shown("; ".join([*troubles, *concerns])), style="red" if troubles else "yellow")
    notes = [Text(note, style="dim") for note in words.notes(status)]
    queue = "  ".join(f"{count} {name}" for name, count in msgspec.structs.asdict(status.queue).items())
    parts: list[RenderableType] = [
        head,
        *([worries] if worries.plain else []),
        Text(f"queue: {queue}", style="dim"),
        *notes,
        _series(status),
    ]
    pace = [_pace(status.latency)] if status.latency.stages else []
    return Panel(Group(*parts, *pace, *_put_aside(status)), title="aet-stream", title_align="left")


def _series(status: LedgerStatus) -> Table:
    table = Table("series", "state", "tilts", "held", "last tilt", box=None, header_style="dim", pad_edge=False)
    for row in status.series[:8]:
        tilt = "" if row.last_tilt_deg is None else f"{row.last_tilt_deg:+.2f}°"
        table.add_row(Text(shown(row.name)), row.state, str(row.tilts), str(row.held + row.quarantined or ""), tilt)
    return table


def _pace(latency: Latency) -> Table:
    table = Table("stage", "median", "99 %", box=None, header_style="dim", pad_edge=False)
    for key, name in _STAGES.items():
        if times := latency.stages.get(key):
            table.add_row(name, f"{times.p50_s:.3f} s", f"{times.p99_s:.3f} s")
    return table


def _put_aside(status: LedgerStatus) -> list[RenderableType]:
    """The last few held, quarantined or odd, the newest first, each with the command that helps."""
    lines: list[RenderableType] = []
    rows = sorted(words.remedies(status), key=lambda row: row["ended_at"], reverse=True)
    for row in rows[:FEW]:
        style = "red" if row["state"] == "quarantined" else "yellow"
        lines.append(Text(shown(f"{row['state']} {row['path']}: {row['reason']}"), style=style))
        if row["command"]:
            lines.append(Text(f"    {row['command']}"))
    older = len(rows[FEW:]) + words.unlisted(status)
    if older:
        lines.append(Text(f"and {older} older ones: see aet-stream status", style="dim"))
    return lines
