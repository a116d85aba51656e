"""What stands beside an image: SerialEM `.mdoc`, `.rawtlt` (one angle per line), `.csv`, and TIA's `.emi` beside a `.ser`.

A sidecar belongs to an image by its name (`x.mrc.mdoc`, `x.mdoc`), or names the image inside (a loose one, for many images of a folder).
Doubles that end in `_override` are ignored.
"""

from __future__ import annotations

import csv
import datetime
import errno
import functools
import io
import math
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.projection import Acquisition, Candidate
from aet_stream.readers import pixel_size_nm, stat_stamp

SUFFIXES = (".mdoc", ".rawtlt", ".csv", ".emi")
#: Of these, one file may speak of many images.
LOOSE = (".mdoc", ".csv")
_MAX_BYTES = 16 << 20
_MAX_EMI_BYTES = 512 << 20
_NOT_THERE = (errno.ENOENT, errno.ENAMETOOLONG)
_SECTION = re.compile(r"^\[(\w+)\s*=\s*(.*?)\]\s*$")
_PAIR = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$")
_TILT_AXIS = re.compile(r"Tilt axis angle\s*=\s*([+-]?[\d.]+)", re.IGNORECASE)
"""In a title of SerialEM: `[T =     Tilt axis angle = 85.3, binning = 4  spot = 8  camera = 2]`."""
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_FILE_COLUMNS = ("file", "filename", "file_name", "name", "path")
_IMAGE_COLUMNS = ("image", "section", "index", "zvalue", "z")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?")
_TILT_COLUMNS = ("tilt", "angle", "alpha", "tilt_angle", "tiltangle", "stage_a", "theta")


class Beside(msgspec.Struct, frozen=True):
    """What all sidecars together say about one image."""

    tilts: tuple[Candidate, ...] = ()
    known: Acquisition = Acquisition()
    remark: str = ""
    """Why a sidecar that is there says no tilt."""

    def completing(self, said: Acquisition) -> Acquisition:
        """The file's own words, and the sidecars' where it has none."""
        empty = {name: getattr(self.known, name) for name in said.__struct_fields__ if getattr(said, name) in (None, "", ())}
        return msgspec.structs.replace(said, **empty)


def sidecar_names(path: str) -> tuple[str, ...]:
    """Where a sidecar of this image would lie; both `x.mrc.mdoc` and `x.mdoc` are in use, and Windows does not care about case."""
    pure = PurePosixPath(path)
    stem = str(pure.with_suffix(""))
    names = [f"{path}.mdoc", f"{stem}.mdoc", f"{stem}.rawtlt", f"{path}.csv", f"{stem}.csv"]
    if pure.suffix.lower() == ".ser":
        names += [f"{re.sub(r'_[0-9]+$', '', stem)}.emi"]
    return tuple(dict.fromkeys(other for name in names for other in (name, _upper(name))))


def _upper(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{suffix.upper()}"


def ignored(name: str) -> bool:
    """`_override` doubles carry the tilts of other images."""
    return "_override" in PurePosixPath(name).name.lower()


def beside(path: Path, image: int, images: int, loose: Iterable[Path] = (), *, settle_s: float = 0.0) -> Beside:
    """What the sidecars say about one image.

    Parameters
    ----------
    loose : sidecars of the same folder that belong to no image by name
    settle_s : a text whose last line has no end may still be written, until it has stood still for so many seconds

    Raises
    ------
    SourceNotReady : a sidecar is there but not whole yet, or cannot be read now
    SourceError : a sidecar is hostile
    """
    own = [Path(name) for name in sidecar_names(str(path)) if not ignored(name)]
    found = [said for sidecar, is_own in [(p, True) for p in own] + [(p, False) for p in loose if not ignored(p.name)]
             if (said := _one(sidecar, path, image, images, is_own, settle_s)) is not None]  # fmt: skip
    if not found:
        return Beside()
    known = found[0].known
    for other in found[1:]:
        known = other.completing(known)
    return Beside(tuple(tilt for said in found for tilt in said.tilts), known, next((said.remark for said in found if said.remark), ""))


def _one(sidecar: Path, path: Path, image: int, images: int, is_own: bool, settle_s: float) -> Beside | None:
    try:
        entry = sidecar.lstat()
        if unread := _unread(sidecar, entry):
            return Beside((candidate("", sidecar.name),), remark=f"{sidecar.name} {unread}")
        text = _text(sidecar, entry)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        remedy = ": give the daemon's user the right to read it" if isinstance(error, PermissionError) else ""
        raise SourceNotReady(f"{sidecar.name}: {error.strerror}{remedy}") from error
    said = _said(text, sidecar, path, image, images, is_own)
    written = text.endswith("\n") or abs(time.time() - entry.st_mtime) >= settle_s
    if not written and (is_own or said != _said(text[: text.rfind("\n") + 1], sidecar, path, image, images, is_own)):
        raise SourceNotReady(f"{sidecar.name}: its last line has no end yet; believed as it is after {settle_s:g} s (watch.settle_s)")
    return said


def _said(text: str, sidecar: Path, path: Path, image: int, images: int, is_own: bool) -> Beside | None:
    match sidecar.suffix.lower():
        case ".mdoc":
            return _from_mdoc(text, sidecar, path, image, is_own)
        case ".csv":
            return _from_csv(text, sidecar, path, image, images, is_own)
        case ".emi":
            return _from_emi(text, sidecar, path)
    return _from_rawtlt(text, sidecar, image, images)


_texts: dict[Path, tuple[str, str]] = {}


def _unread(sidecar: Path, entry: os.stat_result) -> str:
    """Why a sidecar that is there is not read, which holds the projection; or an empty string."""
    limit = _MAX_EMI_BYTES if sidecar.suffix.lower() == ".emi" else _MAX_BYTES
    if not stat.S_ISREG(entry.st_mode):
        return "is a link or folder, not a regular file: copy the file here, or rename it"
    return f"has {entry.st_size} bytes, at most {limit} are read: shorten it, or rename it" if entry.st_size > limit else ""


def _text(sidecar: Path, entry: os.stat_result) -> str:
    """Content of a small text file, kept as long as the file stays as it is."""
    stamp = stat_stamp(entry)
    if sidecar in _texts and _texts[sidecar][0] == stamp:
        return _texts[sidecar][1]
    content = sidecar.read_bytes()
    if sidecar.suffix.lower() == ".emi":  # pixels and XML in one file: keep the XML
        content = b"".join(part + b"\n" for part in re.findall(rb"<ObjectInfo>.{0,1000000}?</ObjectInfo>", content, re.DOTALL)[:64])
    if len(_texts) > 256:
        _texts.clear()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # what Excel and SerialEM write on Windows; every byte is a character of it
        text = content.decode("latin-1")
    _texts[sidecar] = (stamp, text)
    return _texts[sidecar][1]


def candidate(number: str, said: str, unit: str = "deg") -> Candidate:
    """What cannot be read as a number becomes NaN, which holds the projection."""
    try:
        value = float(number.strip().replace(",", "."))
    except ValueError:
        value = math.nan
    return Candidate("sidecar", said, math.degrees(value) if unit == "rad" else value, unit)


# -- mdoc -----------------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def parse_mdoc(text: str) -> list[dict[str, str]]:
    """Sections of an mdoc file in order; `_kind` is ZValue or FrameSet, `_value` what stands behind it. Keys may come in any order."""
    sections: list[dict[str, str]] = [{"_kind": "", "_value": ""}]
    for line in text.splitlines():
        section, pair = _SECTION.match(line), _PAIR.match(line)
        if section:
            sections.append({"_kind": section[1], "_value": section[2]})
        elif pair:
            sections[-1][pair[1]] = pair[2]
    return sections


def _from_mdoc(text: str, sidecar: Path, path: Path, image: int, is_own: bool) -> Beside | None:
    sections = parse_mdoc(text)
    framesets = any(section["_kind"] == "FrameSet" for section in sections)
    for section in sections[1:]:
        named = section["_value"] if section["_kind"] == "Image" else section.get("SubFramePath", "")
        by_name = named.replace("\\", "/").rsplit("/", 1)[-1].lower() == path.name.lower()
        of_image = is_own and not framesets and section["_kind"] == "ZValue" and section["_value"] == str(image)
        if not (by_name or of_image):
            continue
        if "TiltAngle" not in section:
            if section is sections[-1]:
                raise SourceNotReady(f"{sidecar.name}: the section of image {image} has no TiltAngle yet")
            return None
        return Beside(
            (candidate(section["TiltAngle"], f"{sidecar.name}: TiltAngle = {section['TiltAngle']}"),),
            _mdoc_known(section, sections),
        )
    return None


def _mdoc_known(section: dict[str, str], sections: list[dict[str, str]]) -> Acquisition:
    spacing = _number(section.get("PixelSpacing") or sections[0].get("PixelSpacing"))
    titles = " ".join(other["_value"] for other in sections if other["_kind"] == "T")
    axis = _TILT_AXIS.search(titles)
    return Acquisition(
        pixel_size_nm=pixel_size_nm((spacing, "A"), (spacing, "A")) if spacing else None,
        acquired_local=_serialem_time(section.get("DateTime", "")),
        detector=section.get("ChannelName", ""),
        frame_time_s=_number(section.get("ExposureTime")),
        tilt_axis_deg=_number(axis[1]) if axis else None,
    )


def _serialem_time(text: str) -> str:
    """`31-Mar-23  16:24:15` or with four digits, in any language's English; ISO without zone."""
    found = re.fullmatch(r"\s*(\d{1,2})-(\w{3})-(\d{2}|\d{4})\s+(\d{1,2}):(\d{2}):(\d{2}).*", text)
    if not found or found[2].title() not in _MONTHS:
        return ""
    year = int(found[3]) + (2000 if len(found[3]) == 2 else 0)
    try:
        day = datetime.datetime(year, _MONTHS.index(found[2].title()) + 1, int(found[1]), int(found[4]), int(found[5]), int(found[6]))
    except ValueError:
        return ""
    return day.isoformat()


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


# -- one angle per line, tables -----------------------------------------------------------------------------------------------------------


def _from_rawtlt(text: str, sidecar: Path, image: int, images: int) -> Beside | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != images:  # its lines cannot be told to belong to these images: it says nothing
        return Beside(remark=f"{sidecar.name} has {len(lines)} angles for {images} image(s)")
    return Beside((candidate(lines[image], f"{sidecar.name}: {lines[image]}"),))


@functools.lru_cache(maxsize=4)
def rows_of(text: str) -> tuple[list[str], list[list[str]]]:
    """(column names in lower case, rows) of a table separated by semicolons, tabs or commas; no names where the first line is numbers."""
    first = text.split("\n", 1)[0]
    mark = ";" if ";" in first else "\t" if "\t" in first else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=mark) if any(cell.strip() for cell in row)]
    if rows and not any(_NUMBER.fullmatch(cell) for cell in rows[0]):
        return [cell.lower() for cell in rows[0]], rows[1:]
    return [], rows


def tilt_column(names: list[str]) -> tuple[int, str]:
    """(index, unit) of the column of angles; (-1, "") where none says that it is."""
    for index, name in enumerate(names):
        plain = re.sub(r"[\s(\[]*(?:(?:_|\b)(?:deg|degree|degrees|rad|radians)|°)[\])]*$", "", name).strip().replace(" ", "_")
        if plain in _TILT_COLUMNS:
            return index, "rad" if re.search(r"(?:_|\b)rad", name) else "deg"
    return (0, "deg") if not names else (-1, "")


def _from_csv(text: str, sidecar: Path, path: Path, image: int, images: int, is_own: bool) -> Beside | None:
    names, rows = rows_of(text)
    tilt, unit = tilt_column(names)
    file = next((index for index, name in enumerate(names) if name in _FILE_COLUMNS), -1)
    if tilt < 0 or (file < 0 and not is_own):
        return None  # a table about something else
    if file < 0:
        if len(rows) != images or (not names and len(rows[0]) != 1):
            return Beside(remark=f"{sidecar.name} has {len(rows)} rows for {images} image(s)")
        chosen = [rows[image]]
    else:
        section = next((index for index, name in enumerate(names) if name in _IMAGE_COLUMNS), -1)
        mine = {path.name.lower(), path.stem.lower()}
        chosen = [row for row in rows if len(row) > file and row[file].replace("\\", "/").rsplit("/", 1)[-1].lower() in mine]
        if section >= 0:
            chosen = [row for row in chosen if len(row) > section and row[section] == str(image)]
        elif images > 1:
            return None
    torn = [row for row in chosen if names and len(row) > len(names)]
    if torn:  # a decimal comma between commas: nobody can say which number is meant
        return Beside((Candidate("sidecar", f"{sidecar.name}: {','.join(torn[0])}", math.nan, unit),))
    said = [candidate(row[tilt], f"{sidecar.name}: {row[tilt]} {unit}", unit) for row in chosen if len(row) > tilt]
    return Beside(tuple(said)) if said else None


# -- TIA --------------------------------------------------------------------------------------------------------------------------------


def _from_emi(text: str, sidecar: Path, path: Path) -> Beside | None:
    """XML between the pixels, written when TIA saves. Entities and document types are refused before a parser sees them."""
    from xml.etree import ElementTree

    parts = [part + "</ObjectInfo>" for part in text.split("</ObjectInfo>") if "<ObjectInfo>" in part]
    if not parts:
        raise SourceNotReady(f"{sidecar.name}: its description is not written yet")
    number = re.search(r"_(\d+)$", path.stem)
    index = int(number[1]) - 1 if number and len(parts) > 1 else 0
    part = parts[min(max(index, 0), len(parts) - 1)].strip()
    if "<!" in part:
        raise SourceError(f"{sidecar.name}: its XML defines entities, which no microscope does")
    try:
        root = ElementTree.fromstring(part)
    except ElementTree.ParseError as error:
        raise SourceError(f"{sidecar.name}: damaged XML: {error}") from error
    said = {
        (data.findtext("Label") or "").strip(): ((data.findtext("Value") or "").strip(), (data.findtext("Unit") or "").strip())
        for data in root.iterfind("ExperimentalDescription/Root/Data")
    }
    alpha, unit = said.get("Stage A", ("", ""))
    stage = [candidate(said[label][0], "").tilt_deg for label in ("Stage X", "Stage Y", "Stage Z", "Stage A", "Stage B") if label in said]
    read = any(value != 0 for value in stage)
    tilts = (candidate(alpha, f"{sidecar.name}: Stage A {alpha} {unit}", "rad" if unit == "rad" else "deg"),) if alpha and read else ()
    remark = "" if read or not alpha else f"{sidecar.name}: the stage reads 0 on every axis, so it was not read at all"
    beta = _number(said.get("Stage B", ("", ""))[0])
    known = Acquisition(
        tilt_beta_deg=beta if read else None,
        acquired_local=_tia_time(root.findtext("AcquireDate") or ""),
        dwell_time_s=_number(root.findtext("AcquireInfo/DwellTimePath")),
        frame_time_s=_number(root.findtext("AcquireInfo/FrameTime")),
        detector=(root.findtext("AcquireInfo/CameraNamePath") or "").strip(),
        microscope=said.get("Microscope", ("", ""))[0],
    )
    return Beside(tilts, known, remark)


def _tia_time(text: str) -> str:
    """`Tue Oct 18 18:18:46 2011`, local; ISO without zone."""
    found = re.fullmatch(r"\w{3} (\w{3}) +(\d{1,2}) (\d{2}):(\d{2}):(\d{2}) (\d{4})", text.strip())
    if not found or found[1] not in _MONTHS:
        return ""
    try:
        day, hour, minute, second, year = (int(found[index]) for index in (2, 3, 4, 5, 6))
        return datetime.datetime(year, _MONTHS.index(found[1]) + 1, day, hour, minute, second).isoformat()
    except ValueError:
        return ""
