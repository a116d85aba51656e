"""`aet-stream top`: one glance in a terminal, for those who sit at the far end of an SSH connection."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from aet_stream.monitor import words
from aet_stream.naming import shown

_SIGNS = {"ok": ("● all well", "bold green"), "attention": ("▲ please look", "bold yellow"), "trouble": ("■ not working", "bold red")}
_STAGES = {"settle": "settling", "read": "reading", "queue": "queue", "network": "background", "commit": "to disk", "total": "in all"}
FEW = 6
"""Of what is held or quarantined, so many are named."""


def glance(status: dict[str, Any], *, expected: int = 0) -> RenderableType:
    """The hub's status as a screenful; an empty one means that no daemon answers."""
    if not status:
        return Panel(Text("no daemon answers: start one with `aet-stream run`", style="bold red"), title="aet-stream")
    troubles, concerns = words.troubles(status, 0.0), words.concerns(status)
    sign, style = _SIGNS["trouble" if troubles else "attention" if concerns else "ok"]
    head = Text.assemble((sign, style), "  ", words.sentence(status, expected=expected))
    worries = Text(shown("; ".join([*troubles, *concerns])), style="red" if troubles else "yellow")
    notes = [Text(note, style="dim") for note in words.notes(status)]
    queue = "  ".join(f"{count} {name}" for name, count in status.get("queue", {}).items())
    parts: list[RenderableType] = [
        head,
        *([worries] if worries.plain else []),
        Text(f"queue: {queue}", style="dim"),
        *notes,
        _series(status),
    ]
    stages = status.get("latency", {}).get("stages", {})
    return Panel(Group(*parts, *([_pace(stages)] if stages else []), *_put_aside(status)), title="aet-stream", title_align="left")


def _series(status: dict[str, Any]) -> Table:
    table = Table("series", "state", "tilts", "held", "last tilt", box=None, header_style="dim", pad_edge=False)
    for row in status.get("series", [])[:8]:
        tilt = "" if row["last_tilt_deg"] is None else f"{row['last_tilt_deg']:+.2f}°"
        aside = row["held"] + row["quarantined"]
        table.add_row(Text(shown(row["name"])), row["state"], str(row["tilts"]), str(aside or ""), tilt)
    return table


def _pace(stages: dict[str, dict[str, float]]) -> Table:
    table = Table("stage", "median", "99 %", box=None, header_style="dim", pad_edge=False)
    for key, name in _STAGES.items():
        if key in stages:
            table.add_row(name, f"{stages[key]['p50_s']:.3f} s", f"{stages[key]['p99_s']:.3f} s")
    return table


def _put_aside(status: dict[str, Any]) -> list[RenderableType]:
    """The last few held or quarantined, the newest first, each with the command that helps."""
    lines: list[RenderableType] = []
    rows = sorted(words.remedies(status), key=lambda row: row["ended_at"], reverse=True)
    for row in rows[:FEW]:
        style = "yellow" if row["state"] == "held" else "red"
        lines.append(Text(shown(f"{row['state']} {row['path']}: {row['reason']}"), style=style))
        if row["command"]:
            lines.append(Text(f"    {row['command']}"))
    older = len(rows[FEW:]) + words.unlisted(status)
    if older:
        lines.append(Text(f"and {older} older ones: see aet-stream status", style="dim"))
    return lines
