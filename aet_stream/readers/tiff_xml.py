"""What instruments write into a TIFF as XML or as lines of text: JEOL SightX, OME, and FEI's programs.

OME: Goldberg et al., Genome Biology 6 (2005) R47; lengths are in micrometres unless a unit stands beside them. FEI: tag 34683 (TIA, MAPS,
and later programs) and 34682 are XML, 34680 and 34682 of older ones sections of `key=value`; no published description.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import msgspec

from aet_stream.projection import Acquisition
from aet_stream.readers import markup, no_space, pixel_size_nm

FEI_TAGS = (34683, 34682, 34680)
_NUMBER = r"(?:/(?:value|numericvalue))?"
_WIDTH = rf"(?:pixels?size/(?:x|width)|pixelwidth){_NUMBER}"
_HEIGHT = rf"(?:pixels?size/(?:y|height)|pixelheight){_NUMBER}"
_ALPHA_RAD = r"(?:stageposition/tilt/alpha|stage/position/a|stage/alphatilt)"
"""FEI's schema counts radians; the table of labels that TIA writes has units."""


def jeol(description: str) -> Acquisition:
    """SightX's report. Its name for the function of the lenses says whether the camera saw a diffraction pattern."""
    texts = markup.leaves(markup.parsed(description, "TemReporter"))
    alpha = markup.first(texts, "GonioStage/StagePosition/TX")
    utc, local = moment_of(markup.first(texts, "DateTime"))
    diffraction = next((text for name, text in texts.items() if _is_mode(name) and re.match(r"\W*(uu)?diff", text, re.IGNORECASE)), "")
    return Acquisition(
        tilt_deg=number_of(alpha),
        tilt_raw="" if number_of(alpha) is None else f"GonioStage TX {alpha} deg",
        acquired_utc=utc,
        acquired_local=local,
        no_projection=f"a diffraction pattern: the mode of the microscope is {diffraction!r}" if diffraction else "",
        microscope="JEOL",
        reader="tiff",
    )


def _is_mode(name: str) -> bool:
    """An element or attribute that names a mode of the microscope: FunctionMode, ImagingMode, ModeString, Mode/Name, ..."""
    return re.search(r"mode[^/]*(/(name|text|value|label|string))?$", name, re.IGNORECASE) is not None


def ome(description: str, height: int, width: int) -> Acquisition:
    """OME-XML of the whole file: the pixel size of the images of this size, if there is one."""
    root, sizes, units = markup.parsed(description, "OME"), [], list[str]()
    for pixels in (element for element in root.iter() if markup.plain(element) == "Pixels"):
        said = pixels.attrib
        if (said.get("SizeY"), said.get("SizeX")) == (str(height), str(width)):
            units += [said.get(f"PhysicalSize{axis}Unit", "µm") for axis in "YX"]
            along_y, along_x = (
                (number_of(said.get(f"PhysicalSize{axis}")) or 0.0, said.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "YX"
            )
            sizes.append(pixel_size_nm(along_y, along_x))
    dates = [element.text or "" for element in root.iter() if markup.plain(element) == "AcquisitionDate"]
    one, (utc, local) = len(set(sizes)) == 1, moment_of(dates[0] if len(dates) == 1 else "")
    return Acquisition(
        pixel_size_nm=sizes[0] if one else None,
        acquired_utc=utc,
        acquired_local=local,
        no_projection=no_space(*units),
        reader="tiff",
        remark="" if one or not sizes else "OME metadata of images with several pixel sizes",
    )


def fei(texts: list[str]) -> Acquisition:
    """What the texts of FEI's tags say of size, tilt, time and detector; the first that says something of each is heard."""
    said = Acquisition(reader="tiff")
    for text in texts:
        found = _fei_xml(text) if text.lstrip("\ufeff \r\n").startswith("<") else _fei_sections(text)
        empty = [name for name in said.__struct_fields__ if getattr(said, name) in (None, "", ())]
        empty += ["tilt_unit"] if said.tilt_deg is None else []
        said = msgspec.structs.replace(said, **{name: getattr(found, name) for name in empty})
    return said


def _fei_sections(text: str) -> Acquisition:
    """Lines of `key=value` below `[Section]`; the stage of these programs is that of a scanning microscope, and no tilt of a series."""
    keys = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    width, height = (number_of(keys.get(f"Pixel{edge}")) or 0.0 for edge in ("Width", "Height"))
    return Acquisition(pixel_size_nm=pixel_size_nm((height, "m"), (width, "m")), reader="tiff")


def _fei_xml(text: str) -> Acquisition:
    start = re.search(r"<([A-Za-z]\w*)[\s>]", text)
    if start is None:
        return Acquisition(reader="tiff")
    root = markup.parsed(text, start[1])
    texts, rows = markup.leaves(root), markup.table(root)
    tilt, raw, unit = _fei_tilt(texts, rows)
    steps = [(number_of(markup.first(texts, edge)) or 0.0, _unit(texts, edge)) for edge in (_HEIGHT, _WIDTH)]
    mode, (utc, local) = rows.get("Mode", ("", ""))[0], moment_of(markup.first(texts, "acquisition(?:start)?datetime"))
    return Acquisition(
        tilt_deg=tilt,
        tilt_raw=raw,
        tilt_unit=unit,
        pixel_size_nm=pixel_size_nm(steps[0], steps[1]),
        acquired_utc=utc,
        acquired_local=local,
        detector=markup.first(texts, "detectorname") or markup.first(texts, "binaryresult/detector"),
        no_projection=markup.diffraction(mode) or no_space(*(step_unit for _, step_unit in steps)),
        microscope=rows.get("Microscope", ("", ""))[0] or markup.first(texts, "instrumentmodel"),
        reader="tiff",
    )


def _fei_tilt(texts: dict[str, str], rows: dict[str, tuple[str, str]]) -> tuple[float | None, str, str]:
    """(degrees, as found, unit). A stage that reads 0 on every axis was not read."""
    stage = [number_of(value) for label, (value, _) in rows.items() if label.startswith("Stage ")]
    value, unit = rows.get("Stage A", ("", ""))
    if number_of(value) is not None and any(stage):
        number = float(value)
        return (math.degrees(number), f"Stage A {value} rad", "rad") if unit == "rad" else (number, f"Stage A {value} {unit}", "deg")
    radians = number_of(markup.first(texts, _ALPHA_RAD))
    return (None, "", "deg") if radians is None else (math.degrees(radians), f"alpha {radians!r} rad", "rad")


def _unit(texts: dict[str, str], edge: str) -> str:
    """The unit that stands at or beside a length; metres where none does."""
    place = next((name for name in texts if re.search(rf"{edge}$", name, re.IGNORECASE)), "")
    beside = (f"{place}@unit", f"{place}@Unit", f"{place.rsplit('/', 1)[0]}/unit", f"{place.rsplit('/', 1)[0]}/Unit")
    return next((texts[name] for name in beside if name in texts), "m")


def number_of(text: Any) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def moment_of(text: str) -> tuple[str, str]:
    """(in UTC, local) of an ISO 8601 time: one with a zone is absolute, one without is local; empty where it is none."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return "", ""
    return ("", moment.isoformat()) if moment.tzinfo is None else (moment.astimezone(datetime.UTC).isoformat(), "")
