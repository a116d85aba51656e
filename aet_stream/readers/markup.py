"""XML that instruments write into their files and beside them: read when it is whole and harmless, and nothing but text."""

from __future__ import annotations

import re
from typing import Any

_MAX_LETTERS = 16 << 20
_HOSTILE = re.compile(r"<!\s*(DOCTYPE|ENTITY|ELEMENT|ATTLIST|NOTATION)", re.IGNORECASE)


def parsed(text: str, name: str) -> Any:
    """The element of this name and all that is in it; what stands before and behind it (padding, other texts) does not matter.

    Raises
    ------
    ValueError : it is not whole, or damaged, or too long, or defines entities or document types, which no microscope does
    """
    from xml.etree import ElementTree

    start = re.search(rf"<{name}[\s>/]", text)
    end = text.rfind(f"</{name}>")
    if start is None or end < start.start():
        raise ValueError(f"XML without an end (</{name}>)")
    content = text[start.start() : end + len(name) + 3]
    if len(content) > _MAX_LETTERS:
        raise ValueError(f"XML of {len(content)} letters")
    if _HOSTILE.search(text[: end + 1]):
        raise ValueError("XML that defines entities or document types")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"damaged XML: {error}") from error


def leaves(root: Any) -> dict[str, str]:
    """Every text of an element, by the names that lead to it (without namespaces, separated by `/`); of several the first.

    Attributes stand behind an `@`.
    """
    found: dict[str, str] = {}
    stack = [(root, plain(root))]
    while stack:
        element, name = stack.pop()
        for attribute, value in element.attrib.items():
            found.setdefault(f"{name}@{attribute.rsplit('}', 1)[-1]}", str(value).strip())
        if (element.text or "").strip():
            found.setdefault(name, str(element.text).strip())
        stack += [(child, f"{name}/{plain(child)}") for child in reversed(element) if isinstance(child.tag, str)]
    return found


def plain(element: Any) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rsplit("}", 1)[-1]


def first(texts: dict[str, str], pattern: str) -> str:
    """The first text whose path of names ends like that; letters of any case."""
    return next((text for name, text in texts.items() if re.search(rf"{pattern}$", name, re.IGNORECASE)), "")


def table(root: Any) -> dict[str, tuple[str, str]]:
    """(value, unit) by label, of `Data` elements as FEI's programs write them."""
    rows = {}
    for data in root.iter():
        if plain(data) == "Data":
            row = {plain(child): (child.text or "").strip() for child in data}
            rows[row.get("Label", "")] = (row.get("Value", ""), row.get("Unit", ""))
    return rows


def diffraction(mode: str) -> str:
    """Why an image taken in this mode, as FEI's programs put it into that table, is no projection; empty where it is one.

    `TEM nP SA Zoom Diffraction`; scanned images are always taken with the lenses in diffraction.
    """
    words = mode.upper().split()
    scanned = words[:1] != ["TEM"]
    return "" if scanned or "DIFFRACTION" not in words else f"a diffraction pattern: the mode of the microscope is {mode.strip()!r}"
