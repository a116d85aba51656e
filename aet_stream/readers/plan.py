"""A tilt plan: a CSV file of the tilts that are meant to be taken, one per line or in a column named tilt, angle or alpha."""

from __future__ import annotations

import math
from pathlib import Path

from aet_stream.errors import ConfigError
from aet_stream.readers.beside import candidate
from aet_stream.readers.tables import rows_of, tilt_column
from aet_stream.reasons import Reason, why

_MAX_BYTES = 1 << 20


def load_plan(path: str) -> tuple[float, ...]:
    """The planned tilts in degrees; none for an empty path.

    Raises
    ------
    ConfigError : unreadable, or a line without an angle
    """
    if not path:
        return ()
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            names, rows = rows_of(file.read(_MAX_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"angle.plan {path}: {error}") from error
    column, unit = tilt_column(names)
    if column < 0 or not rows:
        raise ConfigError(f"angle.plan {path}: no column named tilt, angle or alpha, or no lines")
    planned = []
    for row in rows:
        tilt = candidate(row[column] if column < len(row) else "", "", unit).tilt_deg
        if not math.isfinite(tilt):
            raise ConfigError(f"angle.plan {path}: {','.join(row)!r} is no tilt")
        planned.append(tilt)
    return tuple(planned)


def unplanned(tilt_deg: float, plan: tuple[float, ...], tolerance_deg: float) -> Reason | None:
    """Why a tilt is not in the plan, or None."""
    if not plan:
        return None
    nearest = min(plan, key=lambda planned: abs(planned - tilt_deg))
    if abs(nearest - tilt_deg) <= tolerance_deg:
        return None
    return why("unplanned", tilt_deg=tilt_deg, nearest_deg=nearest, tolerance_deg=tolerance_deg)


def missing(taken_deg: list[float], plan: tuple[float, ...], tolerance_deg: float) -> list[float]:
    """Planned tilts that nobody has taken yet."""
    return [planned for planned in plan if not any(abs(taken - planned) <= tolerance_deg for taken in taken_deg)]
