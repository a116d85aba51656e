"""TIA's `.emi` beside its `.ser`: pixels and XML in one file; only the XML is read. It has the stage, which the `.ser` has not."""

from __future__ import annotations

import datetime
import re

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition
from aet_stream.readers import markup
from aet_stream.readers.beside import MONTHS, Asked, Beside, candidate, number


def from_emi(text: str, ask: Asked) -> Beside | None:
    """What the XML says, which TIA writes when it saves. Entities and document types are refused before a parser sees them.

    Raises
    ------
    SourceNotReady : it is not written yet
    SourceError : damaged, or hostile
    """
    parts = [part + "</ObjectInfo>" for part in text.split("</ObjectInfo>") if "<ObjectInfo>" in part]
    if not parts:
        raise SourceNotReady(f"{ask.sidecar.name}: its description is not written yet")
    found = re.search(r"_(\d+)$", ask.path.stem)
    index = 0 if len(parts) == 1 else int(found[1]) - 1 if found else -1
    if not 0 <= index < len(parts):
        return Beside(remark=f"{ask.sidecar.name} describes {len(parts)} objects, _1 to _{len(parts)}, and this is none of them")
    try:
        root = markup.parsed(parts[index], "ObjectInfo")
    except ValueError as error:
        raise SourceError(f"{ask.sidecar.name}: {error}") from error
    said = markup.table(root)
    alpha, unit = said.get("Stage A", ("", ""))
    stage = [candidate(said[label][0], "").tilt_deg for label in ("Stage X", "Stage Y", "Stage Z", "Stage A", "Stage B") if label in said]
    read = any(value != 0 for value in stage)
    tilts = (candidate(alpha, f"{ask.sidecar.name}: Stage A {alpha} {unit}", "rad" if unit == "rad" else "deg"),) if alpha and read else ()
    remark = "" if read or not alpha else f"{ask.sidecar.name}: the stage reads 0 on every axis, so it was not read at all"
    beta = number(said.get("Stage B", ("", ""))[0])
    known = Acquisition(
        tilt_beta_deg=beta if read else None,
        acquired_local=_tia_time(root.findtext("AcquireDate") or ""),
        dwell_time_s=number(root.findtext("AcquireInfo/DwellTimePath")),
        frame_time_s=number(root.findtext("AcquireInfo/FrameTime")),
        detector=(root.findtext("AcquireInfo/CameraNamePath") or "").strip(),
        no_projection=markup.diffraction(said.get("Mode", ("", ""))[0]),
        microscope=said.get("Microscope", ("", ""))[0],
    )
    return Beside(tilts, known, remark)


def _tia_time(text: str) -> str:
    """`Tue Oct 18 18:18:46 2011`, local; ISO without zone."""
    found = re.fullmatch(r"\w{3} (\w{3}) +(\d{1,2}) (\d{2}):(\d{2}):(\d{2}) (\d{4})", text.strip())
    if not found or found[1] not in MONTHS:
        return ""
    try:
        day, hour, minute, second, year = (int(found[index]) for index in (2, 3, 4, 5, 6))
        return datetime.datetime(year, MONTHS.index(found[1]) + 1, day, hour, minute, second).isoformat()
    except ValueError:
        return ""
