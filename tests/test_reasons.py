"""Reasons are data: whoever decides by one looks at its code, and what people read is made from it."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import pytest

import aet_stream
from aet_stream.reasons import KINDS, Reason, json_of, reason_of, why


def calls() -> list[tuple[str, str, set[str]]]:
    """(where, code, names of its values) of every reason that the program gives."""
    found = []
    for path in Path(aet_stream.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "why" and node.args:
                names = {keyword.arg or "**" for keyword in node.keywords}
                found.append((f"{path.name}:{node.lineno}", ast.literal_eval(node.args[0]), names))
    return found


def wanted(code: str) -> set[str]:
    """The values that the texts of a kind ask for."""
    return {name for text in KINDS[code] for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_reason_that_is_given_has_all_that_its_text_asks_for() -> None:
    """A sentence that cannot be made would be an error in the middle of a series."""
    given = calls()
    assert {code for _, code, _ in given} <= KINDS.keys()
    assert [(where, wanted(code) - names) for where, code, names in given if "**" not in names and wanted(code) - names] == []


def test_every_kind_is_given_somewhere() -> None:
    """But for the one that stands for the sentences of an earlier version."""
    assert KINDS.keys() - {code for _, code, _ in calls()} == {"noted"}


@pytest.mark.parametrize("reason", [why("copy", path="s/{a}.tif", image=0, number=3), why("again"), why("one_tilt", tilt_deg=-0.5)])
def test_a_reason_is_kept_as_it_is(reason: Reason) -> None:
    """Braces in a file's name are no places for values."""
    assert reason_of(json_of(reason)) == reason
    assert "{a}" in str(reason) or "path" not in reason.values


def test_a_code_of_a_later_version_is_shown_as_it_is() -> None:
    """Instead of an error in `status`."""
    assert str(Reason("film_too_thick", {"nm": 3.5})) == "film_too_thick {'nm': 3.5}"
    assert Reason("film_too_thick").remedy == ""
