"""Quarantine: a record a person understands, never the source file itself."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aet_stream import durable, failpoints
from aet_stream.projection import VisitKey
from aet_stream.reasons import Reason


def record_path(folder: Path, path: str, image: int) -> Path:
    """Where the record of one image lies: readable, and unique whatever signs the path has."""
    readable = re.sub(r"[^\w.+-]+", "_", path, flags=re.ASCII)[-80:]
    return folder / f"{readable}-{image:04d}-{hashlib.sha256(path.encode()).hexdigest()[:8]}.json"


def write(folder: Path, visit: VisitKey, *, visit_id: int, series: str, reason: Reason, attempts: int) -> None:
    """Write (or renew) the record of one visit.

    Raises
    ------
    OutputFull : the disk does not take it
    """
    target = record_path(folder, *visit.source)
    with durable.disk_errors(target):
        durable.make_folder(folder)
    content: dict[str, Any] = {
        "id": visit_id,
        "series": series,
        "path": visit.path,
        "image": visit.image,
        "reason": str(reason),
        "code": reason.code,
        "values": reason.values,
        "attempts": attempts,
        "quarantined_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "remedy": f"{reason.remedy}: aet-stream {reason.command.replace('ID', str(visit_id))}" if reason.command else reason.remedy,
    }
    durable.replace(target, json.dumps(content, indent=2).encode(), "quarantine")


def remove(folder: Path, path: str, image: int) -> None:
    """The image has been dealt with."""
    failpoints.reach("quarantine.remove", folder)
    record_path(folder, path, image).unlink(missing_ok=True)


def left_over(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """(file, path, image) of every record, and drafts of a killed hub with an empty path."""
    for file in folder.glob("*") if folder.is_dir() else ():
        if durable.is_temporary(file.name):
            yield file, "", 0
        elif file.suffix == ".json":
            try:
                content = json.loads(file.read_bytes())
                yield file, str(content["path"]), int(content["image"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not ours
