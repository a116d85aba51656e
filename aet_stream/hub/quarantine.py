"""Quarantine: a record a person understands, never the source file itself."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from aet_stream import durable


def record_path(folder: Path, path: str, image: int) -> Path:
    """Where the record of one unit lies: readable, and unique whatever signs the path has."""
    readable = re.sub(r"[^\w.+-]+", "_", path)[-80:]
    return folder / f"{readable}-{image:04d}-{hashlib.sha256(path.encode()).hexdigest()[:8]}.json"


def write(folder: Path, *, unit_id: int, series: str, path: str, image: int, reason: str, attempts: int) -> None:
    """Write (or renew) the record of one unit.

    Raises
    ------
    OutputFull : the disk does not take it
    """
    target = record_path(folder, path, image)
    with durable.disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "id": unit_id,
        "series": series,
        "path": path,
        "image": image,
        "reason": reason,
        "attempts": attempts,
        "quarantined_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "remedy": f"mend or replace the file and it is read again by itself; or: aet-stream requeue {unit_id}",
    }
    durable.replace(target, json.dumps(content, indent=2).encode())


def remove(folder: Path, path: str, image: int) -> None:
    """The unit has been dealt with."""
    record_path(folder, path, image).unlink(missing_ok=True)
