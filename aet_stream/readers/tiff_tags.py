"""What instruments write into TIFF tags of their own: DigitalMicrograph, ImageJ, TVIPS; what is XML is read by tiff_xml.py.

The plain resolution tags are about printing, not about the sample, and are believed only beside ImageJ's unit.
"""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import msgspec

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition
from aet_stream.readers import no_space, pixel_size_nm, tiff_xml

_MAX_TEXT = 16 << 20
_DM_UNITS, _DM_SCALES, _DM_TREE = (65003, 65004), (65009, 65010), 65027


def acquisition(path: Path, file: Any, page: Any, *, single: bool) -> Acquisition:
    """What the tags of one page say. Tilts of the whole file are believed only when it holds a single image.

    Raises
    ------
    Exception : of any kind, where they are damaged
    """
    tags = {tag.code: tag.value for tag in page.tags}
    description = _text(tags.get(270, ""))
    if _DM_SCALES[0] in tags:
        said = _digital_micrograph(path, tags)
    elif getattr(file, "tvips_metadata", None):
        said = _tvips(file.tvips_metadata)
    elif "<TemReporter" in description[:2000]:
        said = tiff_xml.jeol(description)
    elif any(tag in tags for tag in tiff_xml.FEI_TAGS):
        said = tiff_xml.fei([_stored(file, page.tags[tag]) for tag in tiff_xml.FEI_TAGS if tag in tags])
    elif "<OME" in _text(file.pages[0].tags.valueof(270, "")):  # one text, on the first page, for all of them
        said = tiff_xml.ome(_text(file.pages[0].tags.valueof(270)), *page.shape[:2])
    else:
        said = _imagej(file, tags)
    return said if single else msgspec.structs.replace(said, tilt_deg=None, tilt_raw="", tilt_beta_deg=None)


def _text(value: Any) -> str:
    """A text up to its first NUL, whatever lies behind it."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).partition("\0")[0]


def _stored(file: Any, tag: Any) -> str:
    """The text of a tag as it stands in the file."""
    file.filehandle.seek(tag.valueoffset)
    return _text(file.filehandle.read(min(tag.valuebytecount, _MAX_TEXT)))


def _imagej(file: Any, tags: dict[int, Any]) -> Acquisition:
    unit = str((getattr(file, "imagej_metadata", None) or {}).get("unit", "")).replace("\\u00B5", "µ")
    if not unit or 282 not in tags or 283 not in tags:
        return Acquisition(reader="tiff")
    along_y, along_x = (tags[code][1] / tags[code][0] if tags[code][0] else 0.0 for code in (283, 282))
    return Acquisition(pixel_size_nm=pixel_size_nm((along_y, unit), (along_x, unit)), no_projection=no_space(unit), reader="tiff")


def _digital_micrograph(path: Path, tags: dict[int, Any]) -> Acquisition:
    from aet_stream.readers.dm import no_image, number_of, tags_of, utc_of

    along_x, along_y = ((float(tags.get(scale, 0)), str(tags.get(unit, ""))) for scale, unit in zip(_DM_SCALES, _DM_UNITS, strict=True))
    tree: Any = {}
    remark = ""
    if isinstance(tags.get(_DM_TREE), bytes):
        try:
            tree, remark = tags_of(path, tags[_DM_TREE])
        except (SourceError, SourceNotReady) as error:
            remark = str(error)

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
        no_projection=no_image(find("Meta Data", "Format")) or no_space(along_y[1], along_x[1]),
        microscope=str(find("Microscope Info", "Microscope") or ""),
        reader="tiff",
        remark=remark,
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
