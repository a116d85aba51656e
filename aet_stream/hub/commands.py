"""What a person may ask of the running hub."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aet_stream.errors import AetError

if TYPE_CHECKING:
    from aet_stream.hub.hub import Hub


def obey(hub: Hub, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Do what was asked; returns a sentence and data.

    Raises
    ------
    AetError : it cannot be done, and why
    """
    match name:
        case "status":
            return "", hub.status()
        case "idle":
            return "", _idle(hub)
        case "close":
            return _close(hub, str(arguments.get("series", "")))
        case "requeue":
            return _again(hub, arguments.get("ids", []), None)
        case "release":
            return _again(hub, arguments.get("ids", []), _tilt(hub, arguments.get("tilt_deg")))
        case "resend":
            return _resend(hub, arguments.get("ids"))
    raise AetError(f"the hub knows no command {name!r}")


def _resend(hub: Hub, names: Any) -> tuple[str, dict[str, Any]]:
    with hub.ledger.transaction():
        count = hub.outbox.resend(names)
    if names and not count:
        raise AetError(f"{', '.join(names)}: no failed delivery of that name; `aet-stream events --failed` lists them")
    return f"{count} will be sent again", {}


def _idle(hub: Hub) -> dict[str, Any]:
    series, events, totals = hub.ledger.series(state="open"), hub.outbox.figures(), hub.ledger.totals()
    put_off = hub.outbox.put_off()
    return {
        "idle_for_s": hub.idle_for_s(),
        "open": [row["name"] for row in series if row["stored"]],
        "unfinished_events": events["pending"] - put_off,
        "put_off_events": put_off,
        "failed_events": events["failed"],
        **totals,
    }


def _close(hub: Hub, name: str) -> tuple[str, dict[str, Any]]:
    series = next(iter(hub.ledger.series(name)), None)
    if series is None or not series["stored"]:
        known = ", ".join(row["name"] for row in hub.ledger.series(limit=10)) or "none yet"
        raise AetError(f"no series {name!r} with stored projections; known: {known}")
    if series["state"] == "closed":
        return f"{name} is closed already", {"state": "closed"}
    hub.storing.close_asked.add(name)
    return f"closing {name}", {"state": "closing"}


def _again(hub: Hub, ids: list[Any], tilt_deg: float | None) -> tuple[str, dict[str, Any]]:
    if not ids or not all(isinstance(unit_id, int) and 0 <= unit_id < 1 << 63 for unit_id in ids):
        raise AetError(f"{ids!r}: give the numbers that `aet-stream status` shows")
    for row in [hub.outcomes.waiting(unit_id) for unit_id in ids]:  # all or none
        hub.outcomes.read_again(row, tilt_deg)
    return f"{len(ids)} will be read again", {}


def _tilt(hub: Hub, value: Any) -> float:
    limits = hub.config.angle
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not limits.min_deg <= value <= limits.max_deg:
        raise AetError(f"tilt {value!r}: give degrees between {limits.min_deg:g} and {limits.max_deg:g}")
    return float(value)
