"""The tilt angle of one image, from what the file, its sidecars and its name say. Nothing is guessed: no agreement, no angle."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import msgspec

from aet_stream.config import Angle
from aet_stream.projection import Acquisition, Candidate
from aet_stream.readers.plan import unplanned
from aet_stream.reasons import Reason, why

_NUMBER = re.compile(r"(?P<lead>.*?)(?P<sign>[+-]?)(?P<number>\d+(?:[p.,]\d+)?)")
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_LINKS_BEFORE, _LINKS_AFTER = ("angle", "by", "of", "size"), ("tilt", "angle")
"""Words that hand a number on to the one before or after them: `rotation_angle_90deg`, `step size 2deg`, `2deg_tilt_step`."""
_LEAD = re.compile(r"([^\W\d_]+)[\W_]*\d")
_PLAIN_WORDS = ("", "tilt", "alpha", "angle")


def from_name(path: str, rules: Angle) -> tuple[Candidate, ...]:
    """What the file name says, by the configured expression; more than one statement where it matches more than once.

    What is no plain number is one that is not a number, which holds the projection.
    """
    name = PurePosixPath(path).name
    found = [_named(match, rules) for match in re.finditer(rules.filename_regex, name)] if rules.filename_regex else []
    return tuple({repr(candidate.tilt_deg): candidate for candidate in found}.values())


def _named(match: re.Match[str], rules: Angle) -> Candidate:
    value = _number((match.groupdict().get("sign") or "") + (match["angle"] or ""), rules.signs)
    tilt_deg, no_tilt = math.degrees(value) if rules.filename_unit == "rad" else value, _no_tilt(match, rules)
    return Candidate("filename", no_tilt or match.group(0), tilt_deg, "" if no_tilt else rules.filename_unit)


def _no_tilt(match: re.Match[str], rules: Angle) -> str:
    """`2deg_step`, `scan_90deg`, `rot-12deg`: the number with the word beside it that makes it none, or an empty string."""
    text, words = match.string, [word for word in rules.no_tilt_words if word != rules.axis]
    before = _word_beside(reversed([*_TOKEN.finditer(text, 0, match.start())]), words, _LINKS_BEFORE)
    after = _word_beside(_TOKEN.finditer(text, match.end()), words, _LINKS_AFTER)
    lead = _LEAD.match(match["angle"] or "")
    if before:
        return text[before.start() : match.end()]
    if after:
        return text[match.start() : after.end()]
    return match.group(0) if lead and lead[1].lower() in words else ""


def _word_beside(tokens: Iterable[re.Match[str]], words: Sequence[str], links: Sequence[str]) -> re.Match[str] | None:
    """The nearest token, if it is one of the words; through words that are mere links to it."""
    for token in tokens:
        if token[0].lower() in words:
            return token
        if token[0].lower() not in links:
            return None
    return None


def _number(text: str, signs: dict[str, str]) -> float:
    """-12.5, -12,5, n12.5, n12p5, tilt-12.5: a letter may stand for the sign, a `p` between digits for the decimal point.

    NaN where it may be meant otherwise: the hyphen in 3-12 may be a minus or not, and so may the word in neg12.
    """
    found = _NUMBER.fullmatch(text.replace("\u2212", "-"))
    if found is None:
        return math.nan
    lead, sign = found["lead"], found["sign"]
    if not sign and lead.lower() in signs:
        lead, sign = "", signs[lead.lower()]
    clear = lead[-1].isalpha() or (lead[-1].isdigit() and sign == "+") if sign and lead else lead.lower() in _PLAIN_WORDS
    return float(f"{sign}{re.sub('[p,]', '.', found['number'])}") if clear else math.nan


def from_metadata(acquisition: Acquisition, rules: Angle) -> tuple[Candidate, ...]:
    """What the file itself says about the axis that is tilted."""
    beta = rules.axis == "beta"
    tilt = acquisition.tilt_beta_deg if beta else acquisition.tilt_deg
    if tilt is None:
        return ()
    raw, unit = f"beta {tilt:g} deg" if beta else acquisition.tilt_raw, "deg" if beta else acquisition.tilt_unit
    if rules.metadata_unit != "file" and not beta:
        number = math.radians(tilt) if unit == "rad" else tilt
        tilt, unit = math.degrees(number) if rules.metadata_unit == "rad" else number, rules.metadata_unit
    return (Candidate("metadata", raw, tilt, unit),)


def resolve(
    acquisition: Acquisition,
    sidecars: tuple[Candidate, ...],
    path: str,
    images: int,
    rules: Angle,
    *,
    remark: str = "",
    plan: tuple[float, ...] = (),
) -> tuple[tuple[Candidate, ...], Reason | None]:
    """Every statement about the tilt in order of precedence, and why it must wait for a person (or None).

    Parameters
    ----------
    images : how many images the file holds; the name of a stack says nothing about any single one
    remark : why a source that is there says nothing
    """
    said = {
        "metadata": from_metadata(acquisition, rules),
        "sidecar": sidecars,
        "filename": from_name(path, rules) if images == 1 else (),
    }
    found = [candidate for source in rules.order for candidate in said[source]]
    stated = tuple(msgspec.structs.replace(c, tilt_deg=c.tilt_deg * rules.scale + 0.0) for c in found)
    return stated, _objection(stated, rules, remark) or unplanned(stated[0].tilt_deg, plan, rules.plan_tolerance_deg)


def _objection(stated: tuple[Candidate, ...], rules: Angle, remark: str) -> Reason | None:
    because = f" ({remark})" if remark else ""
    if not stated:
        return why("no_tilt", because=because)
    for c in stated:
        if c.unit == "?":
            return why("tilt_unit", source=c.source, raw=repr(c.raw))
        if not math.isfinite(c.tilt_deg):
            return why("tilt_no_number", source=c.source, raw=repr(c.raw), because=because)
        if not rules.min_deg <= c.tilt_deg <= rules.max_deg:
            limits = {"min_deg": rules.min_deg, "max_deg": rules.max_deg}
            return why("tilt_out_of_range", source=c.source, raw=repr(c.raw), tilt_deg=c.tilt_deg, **limits)
    if max(c.tilt_deg for c in stated) - min(c.tilt_deg for c in stated) > rules.tolerance_deg:
        said = ", ".join(f"{c.source} {c.tilt_deg:g} deg ({c.raw!r})" for c in stated)
        return why("tilts_disagree", tolerance_deg=rules.tolerance_deg, stated=said)
    if not any(c.unit for c in stated):
        return why("tilt_word", source=stated[0].source, raw=repr(stated[0].raw))
    return None
