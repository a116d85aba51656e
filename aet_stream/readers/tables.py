"""Tilts in columns: one angle per line (`.rawtlt`, `.tlt` of IMOD), and tables (`.csv`) with names."""

from __future__ import annotations

import csv
import functools
import io
import math
import re

from aet_stream.projection import Candidate
from aet_stream.readers.beside import Asked, Beside, candidate

_FILE_COLUMNS = ("file", "filename", "file_name", "name", "path")
_IMAGE_COLUMNS = ("image", "section", "index", "zvalue", "z")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?")
ANGLE_TEXT = re.compile(r"(?:.*[_\-. ])?(?:(?:tilt_?)?angles?|tilts?)(?:[_\-. ].*)?\.(?:txt|dat)")
"""Name, in small letters, of a text that holds angles, of whatever file: it is named where it would fit, and never believed."""
_TILT_COLUMNS = ("tilt", "angle", "alpha", "tilt_angle", "tiltangle", "stage_a", "theta")


def from_lines(text: str, ask: Asked) -> Beside | None:
    """Angles of a stack in the order of its images."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = f"{ask.sidecar.name} has {len(lines)} angle{'s' * (len(lines) != 1)}"
    if not ask.stack.counts(len(lines)):  # they cannot be told to belong to these images: it says nothing
        several = f"{found}, and does not say of which files: a .csv with columns file and tilt would" if ask.stack.promised == 1 else ""
        return Beside(remark=f"{found} for {ask.stack.promised} image(s)" if ask.is_own else several)
    if not ask.is_own:
        return Beside(remark=f"{found}: if they are of this file, call it {ask.path.stem}{ask.sidecar.suffix}")
    return Beside((candidate(lines[ask.image], f"{ask.sidecar.name}: {lines[ask.image]}"),)) if ask.image < len(lines) else None


def from_text(text: str, ask: Asked) -> Beside | None:
    """A text that is called angles and has a line of numbers for each image: which setting or name would take it."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    numbers = all(_NUMBER.fullmatch(cell) for line in lines for cell in line)
    if ask.stack.promised < 2 or not ask.stack.counts(len(lines)) or not numbers:
        return None
    alone = all(len(line) == 1 for line in lines)
    remedy = f"call it {ask.path.stem}.rawtlt" if alone else f"write the tilts alone into {ask.path.stem}.rawtlt, one a line"
    return Beside(remark=f"{ask.sidecar.name} has {len(lines)} lines of numbers: if they are of this file, {remedy}")


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


def from_csv(text: str, ask: Asked) -> Beside | None:
    """Rows of one file, or of many by their names; of a stack by the numbers of its images, or one for each."""
    names, rows = rows_of(text)
    tilt, unit = tilt_column(names)
    file = next((index for index, name in enumerate(names) if name in _FILE_COLUMNS), -1)
    if file < 0 and not ask.is_own:
        return None  # a table about something else
    mine = {ask.path.name.lower(), ask.path.stem.lower()}
    chosen = rows if file < 0 else [row for row in rows if len(row) > file and _base(row[file]) in mine]
    if tilt < 0:
        known = f"{ask.sidecar.name} has columns {', '.join(names)}, and none named tilt, angle or alpha"
        return Beside(remark=known) if file >= 0 and chosen else None
    chosen, doubt = _of_image(names, chosen, ask, named=file >= 0)
    if doubt:
        return Beside(remark=f"{ask.sidecar.name} {doubt}")
    turned = _turned(names, chosen)
    if turned:
        return Beside(remark=f"{ask.sidecar.name} {turned}")
    torn = [row for row in chosen if names and len(row) > len(names)]
    if torn:  # a decimal comma between commas: nobody can say which number is meant
        return Beside((Candidate("sidecar", f"{ask.sidecar.name}: {','.join(torn[0])}", math.nan, unit),))
    said = [candidate(row[tilt], f"{ask.sidecar.name}: {row[tilt]} {unit}", unit) for row in chosen if len(row) > tilt]
    return Beside(tuple(said)) if said else None


def _turned(names: list[str], rows: list[list[str]]) -> str:
    """Why theta of these rows is no tilt: it is one of three Euler angles, and the others are not zero. An empty string where it is one."""
    others = [index for index, name in enumerate(names) if re.match(r"(phi|psi)\b", name)]
    said = [row for row in rows for index in others if len(row) > index and candidate(row[index], "").tilt_deg != 0]
    words = ", ".join(f"{name} {cell}" for name, cell in zip(names, said[0], strict=False)) if said else ""
    return f"holds Euler angles ({words}), which are no turn about one axis" if said else ""


def _base(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].lower()


def _of_image(names: list[str], rows: list[list[str]], ask: Asked, *, named: bool) -> tuple[list[list[str]], str]:
    """(rows of the image, why none can be told to be) out of the rows of its file."""
    images = ask.stack.promised
    section = next((index for index, name in enumerate(names) if name in _IMAGE_COLUMNS), -1)
    numbers = [row[section] if len(row) > section else "" for row in rows] if section >= 0 else []
    if numbers and all(number.isdecimal() for number in numbers):
        return _numbered([int(number) for number in numbers], rows, ask.image, images)
    if named:
        doubt = f"names the file in {len(rows)} row(s), but not which of its {images} images: a column named image would"
        return (rows, "") if images == 1 or not rows else ([], doubt)
    if not ask.stack.counts(len(rows)) or (not names and len(rows[0]) != 1):
        return [], f"has {len(rows)} rows for {images} image(s)"
    return rows[ask.image : ask.image + 1], ""


def _numbered(numbers: list[int], rows: list[list[str]], image: int, images: int) -> tuple[list[list[str]], str]:
    """Rows that say of which image they are, counted from 0; or all of them from 1. Other numbers are of another state of the stack."""
    first = 1 if sorted(numbers) == list(range(1, images + 1)) else 0
    strange = next((number for number in numbers if number >= images + first), None)
    if strange is not None:
        return [], f"speaks of image {strange}, but the file has {images} image(s), 0 to {images - 1}"
    return [row for number, row in zip(numbers, rows, strict=True) if number == image + first], ""
