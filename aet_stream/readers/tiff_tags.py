"""What instruments write into TIFF tags of their own: DigitalMicrograph, ImageJ, TVIPS, JEOL SightX.

The plain resolution tags are about printing, not about the sample, and are believed only beside ImageJ's unit.
"""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition
from aet_stream.readers import pixel_size_nm

_DM_UNITS, _DM_SCALES, _DM_TREE = (65003, 65004), (65009, 65010), 65027
_MAX_XML = 1 << 20


def acquisition(path: Path, file: Any, page: Any, *, single: bool) -> Acquisition:
    """What the tags of one page say. Tilts of the whole file are believed only when it holds a single image."""
    tags = {tag.code: tag.value for tag in page.tags}
    description = str(tags.get(270, ""))
    if _DM_SCALES[0] in tags:
        said = _digital_micrograph(path, tags)
    elif getattr(file, "tvips_metadata", None):
        said = _tvips(file.tvips_metadata)
    elif "<TemReporter" in description[:2000]:
        said = _jeol(path, description)
    else:
        said = Acquisition(pixel_size_nm=_imagej(file, tags), reader="tiff")
    return said if single else msgspec.structs.replace(said, tilt_deg=None, tilt_raw="", tilt_beta_deg=None)


def _imagej(file: Any, tags: dict[int, Any]) -> float | None:
    unit = str((getattr(file, "imagej_metadata", None) or {}).get("unit", "")).replace("\\u00B5", "µ")
    if not unit or 282 not in tags or 283 not in tags:
        return None
    along_y, along_x = (tags[code][1] / tags[code][0] if tags[code][0] else 0.0 for code in (283, 282))
    return pixel_size_nm((along_y, unit), (along_x, unit))


def _digital_micrograph(path: Path, tags: dict[int, Any]) -> Acquisition:
    from aet_stream.readers.dm import number_of, tags_of, utc_of

    along_x, along_y = ((float(tags.get(scale, 0)), str(tags.get(unit, ""))) for scale, unit in zip(_DM_SCALES, _DM_UNITS, strict=True))
    tree: Any = {}
    if isinstance(tags.get(_DM_TREE), bytes):
        try:
            tree = tags_of(path, tags[_DM_TREE])
        except (SourceError, SourceNotReady):
            tree = {}

    def find(*names: str) -> Any:
        value: Any = tree
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    alpha = find("Microscope Info", "Stage Position", "Stage Alpha")
    return Acquisition(
        tilt_deg=number_of(alpha),
        tilt_raw="" if number_of(alpha) is None else f"Stage Alpha {alpha!r} deg",
        tilt_beta_deg=number_of(find("Microscope Info", "Stage Position", "Stage Beta")),
        pixel_size_nm=pixel_size_nm(along_y, along_x),
        acquired_utc=utc_of(find("DataBar", "Acquisition Time (OS)")),
        detector=str(find("DataBar", "Signal Name") or find("DataBar", "Device Name") or ""),
        microscope=str(find("Microscope Info", "Microscope") or ""),
        reader="tiff",
    )


def _tvips(tvips: dict[str, Any]) -> Acquisition:
    """TemStagePosition is x, y, z, alpha, beta; SpecimenTiltAngle has a scale nobody knows and is not believed."""
    stage = tvips.get("TemStagePosition")
    alpha = float(stage[3]) if stage is not None and len(stage) > 4 and math.isfinite(stage[3]) else None
    size = float(tvips.get("PixelSizeX") or 0)
    date, time = int(tvips.get("Date") or 0), int(tvips.get("Time") or 0)
    local = ""
    if date:  # year, month, day packed from high to low (132122901 is 2016-09-21); seconds of the day
        try:
            day = datetime.datetime(date >> 16, date >> 8 & 0xFF, date & 0xFF)
            local = (day + datetime.timedelta(seconds=time % 86400)).isoformat()
        except ValueError:
            local = ""
    return Acquisition(
        tilt_deg=alpha,
        tilt_raw="" if alpha is None else f"TemStagePosition[3] {alpha!r} deg",
        pixel_size_nm=pixel_size_nm((size, "nm"), (size, "nm")),
        acquired_local=local,
        detector=str(tvips.get("CameraType", "") or "")[:64],
        microscope=str(tvips.get("TemType", "") or "")[:64],
        reader="tiff",
    )


def _jeol(path: Path, description: str) -> Acquisition:
    """SightX writes a report in XML; entities and document types are refused."""
    from xml.etree import ElementTree

    if len(description) > _MAX_XML or "<!" in description:
        raise SourceError(f"{path.name}: an XML description that is too long or defines entities")
    try:
        root = ElementTree.fromstring(description[description.index("<TemReporter") :].rstrip("\0 \r\n"))
    except ElementTree.ParseError as error:
        raise SourceError(f"{path.name}: a damaged XML description: {error}") from error
    alpha_text = _first(root, r"GonioStage/StagePosition/TX$")
    try:
        alpha = float(alpha_text) if alpha_text else None
    except ValueError:
        alpha = None
    when = _first(root, r"DateTime$")
    try:
        moment = datetime.datetime.fromisoformat(when) if when else None
    except ValueError:
        moment = None
    aware = moment is not None and moment.tzinfo is not None
    return Acquisition(
        tilt_deg=alpha,
        tilt_raw="" if alpha is None else f"GonioStage TX {alpha_text} deg",
        acquired_utc=moment.astimezone(datetime.UTC).isoformat() if moment is not None and aware else "",
        acquired_local=moment.isoformat() if moment is not None and not aware else "",
        microscope="JEOL",
        reader="tiff",
    )


def _first(root: Any, pattern: str) -> str:
    """Text of the first element whose path of names ends like that."""
    stack = [(root, root.tag)]
    while stack:
        element, name = stack.pop()
        if re.search(pattern, name):
            return str(element.text or "").strip()
        stack += [(child, f"{name}/{child.tag.rsplit('}', 1)[-1]}") for child in reversed(element)]
    return ""
