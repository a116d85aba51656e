"""`watch.newer_than`: from when on files are wanted."""

from __future__ import annotations

import datetime
import re

from aet_stream.errors import ConfigError

_SECONDS = {"s": 1, "min": 60, "h": 3600, "hour": 3600, "d": 86_400, "day": 86_400, "w": 604_800, "week": 604_800}


def limit_s(text: str, first_start_s: float) -> float:
    """Unix seconds before which a file is older than wanted; 0 for none.

    Parameters
    ----------
    text : "" (everything), "start", a date or time as ISO 8601 writes it (local, unless it says otherwise), or how long before the first
        start: "12 h", "30 d", "2 weeks"
    first_start_s : when the daemon first started on this output: unix seconds

    Raises
    ------
    ConfigError : it is none of these
    """
    if text in ("", "start"):
        return first_start_s if text else 0.0
    if duration := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.lower()):
        each_s = _SECONDS.get(duration[2]) or _SECONDS.get(duration[2].removesuffix("s"))
        if each_s:
            return max(0.0, first_start_s - float(duration[1]) * each_s)
    try:
        return max(0.0, datetime.datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise ConfigError(f'watch.newer_than {text!r}: write "start", a date like "2026-11-29", or a time before it like "30 d"') from None
