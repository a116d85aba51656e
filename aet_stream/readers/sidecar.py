"""Text files beside an image that say its tilt: SerialEM `.mdoc` (one section per image) and `.rawtlt` (one angle per line)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from aet_stream.errors import SourceNotReady
from aet_stream.projection import Candidate

_MAX_BYTES = 16 << 20
_SECTION = re.compile(r"^\[(\w+)\s*=\s*(.*?)\]\s*$")
_PAIR = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$")


def sidecar_names(path: str) -> tuple[str, ...]:
    """Where a sidecar of this image would lie; both `x.mrc.mdoc` and `x.mdoc` are in use."""
    stem = str(PurePosixPath(path).with_suffix(""))
    return f"{path}.mdoc", f"{stem}.mdoc", f"{stem}.rawtlt"


def tilt_from_sidecar(path: Path, image: int, images: int) -> Candidate | None:
    """What the sidecar says about one image, if there is one.

    Raises
    ------
    SourceNotReady : the sidecar is there but not whole yet
    """
    for name in sidecar_names(str(path)):
        sidecar = Path(name)
        try:
            if sidecar.stat().st_size > _MAX_BYTES:
                continue
            text = sidecar.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if sidecar.suffix == ".mdoc":
            return _from_mdoc(text, sidecar, path, image)
        return _from_rawtlt(text, sidecar, image, images)
    return None


def parse_mdoc(text: str) -> list[dict[str, str]]:
    """Sections of an mdoc file in order; `_kind` is ZValue or FrameSet, `_value` what stands behind it."""
    sections: list[dict[str, str]] = []
    for line in text.splitlines():
        section, pair = _SECTION.match(line), _PAIR.match(line)
        if section:
            sections.append({"_kind": section[1], "_value": section[2]})
        elif pair and sections:
            sections[-1][pair[1]] = pair[2]
    return sections


def _from_mdoc(text: str, sidecar: Path, path: Path, image: int) -> Candidate | None:
    if not text.endswith("\n"):
        raise SourceNotReady(f"{sidecar.name}: its last line is not finished")
    for section in parse_mdoc(text):
        of_image = section["_kind"] == "ZValue" and section["_value"] == str(image)
        frames = section.get("SubFramePath", "").replace("\\", "/").rsplit("/", 1)[-1]
        of_frames = section["_kind"] == "FrameSet" and frames == path.name
        if (of_image or of_frames) and "TiltAngle" in section:
            return _candidate(section["TiltAngle"], f"{sidecar.name}: TiltAngle = {section['TiltAngle']}")
    return None


def _from_rawtlt(text: str, sidecar: Path, image: int, images: int) -> Candidate | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != images:
        return None  # its lines cannot be told to belong to these images: it says nothing
    return _candidate(lines[image], f"{sidecar.name}: {lines[image]}")


def _candidate(number: str, said: str) -> Candidate:
    """What cannot be read as a number becomes NaN, which holds the projection."""
    try:
        return Candidate("sidecar", said, float(number.replace(",", ".")))
    except ValueError:
        return Candidate("sidecar", said, float("nan"))
