"""The tilt angle of one image, from what the file, its sidecar and its name say. Nothing is guessed: no agreement, no angle."""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath

from aet_stream.config import Angle
from aet_stream.projection import Acquisition, Candidate


def from_name(path: str, rules: Angle) -> Candidate | None:
    """What the file name says, by the configured expression."""
    name = PurePosixPath(path).name
    match = re.search(rules.filename_regex, name) if rules.filename_regex else None
    if match is None:
        return None
    try:
        return Candidate("filename", match.group(0), float(match["angle"].replace(",", ".")))
    except (ValueError, AttributeError):
        return Candidate("filename", match.group(0), math.nan)


def resolve(acquisition: Acquisition, sidecar: Candidate | None, path: str, images: int, rules: Angle) -> tuple[tuple[Candidate, ...], str]:
    """Every statement about the tilt in order of precedence, and why it must wait for a person (or an empty string).

    Parameters
    ----------
    images : how many images the file holds; the name of a stack says nothing about any single one
    """
    found = [] if acquisition.tilt_deg is None else [Candidate("metadata", acquisition.tilt_raw, acquisition.tilt_deg)]
    found += [] if sidecar is None else [sidecar]
    name = from_name(path, rules) if images == 1 else None
    found += [] if name is None else [name]
    stated = tuple(Candidate(c.source, c.raw, c.tilt_deg * rules.scale + 0.0) for c in found)
    return stated, _objection(stated, rules)


def _objection(stated: tuple[Candidate, ...], rules: Angle) -> str:
    if not stated:
        return "no tilt angle in metadata, sidecar or file name"
    for c in stated:
        if not math.isfinite(c.tilt_deg):
            return f"the {c.source} says {c.raw!r}, which is no number"
        if not rules.min_deg <= c.tilt_deg <= rules.max_deg:
            return f"the {c.source} says {c.raw!r}: {c.tilt_deg:g} deg is outside {rules.min_deg:g}..{rules.max_deg:g}"
    if max(c.tilt_deg for c in stated) - min(c.tilt_deg for c in stated) > rules.tolerance_deg:
        said = ", ".join(f"{c.source} {c.tilt_deg:g} deg ({c.raw!r})" for c in stated)
        return f"sources disagree by more than {rules.tolerance_deg:g} deg: {said}"
    return ""
