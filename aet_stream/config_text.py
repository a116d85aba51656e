"""Settings in words: config.toml with its comments, and one key explained, from the one place where settings are defined (config.py)."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as kinds

from aet_stream import config
from aet_stream.config import Config
from aet_stream.errors import ConfigError

WIDTH = 118
HEAD = """\
# Settings of aet-stream, as `aet-stream config` writes them: each key with what it means. What is missing has its default.
# A wrong or unknown key refuses to start. One setting for one run: --set section.key=value
"""


def as_toml(settings: Config, *, only_changed: bool = False) -> str:
    """A config file that says these settings, each key under its meaning.

    Parameters
    ----------
    only_changed : leave out what is as it is by default
    """
    tables, usual = msgspec.to_builtins(settings), msgspec.to_builtins(Config())
    lines = [HEAD.rstrip()]
    for section, table in tables.items():
        chosen = {key: value for key, value in table.items() if not only_changed or value != usual[section][key]}
        if not chosen:
            continue
        about, meanings = _words()[section]
        lines += ["", f"[{section}]", *_comment(about)]
        for key, value in chosen.items():
            lines += ["", *_comment(meanings[key]), f"{key} = {toml(value)}"]
    return "\n".join(lines) + "\n"


def explain(settings: Config, name: str) -> str:
    """One key (`watch.settle_s`) or section (`watch`) in words: meaning, value, default, what it may be.

    Raises
    ------
    ConfigError : there is none of that name; the nearest ones are named
    """
    section, _, key = name.partition(".")
    tables, usual = msgspec.to_builtins(settings), msgspec.to_builtins(Config())
    if section not in tables or (key and key not in tables[section]):
        every = [*tables, *(f"{table}.{field}" for table, fields in tables.items() for field in fields)]
        near = [known for known in every if known.endswith(f".{key or section}")] + difflib.get_close_matches(name, every, 3, 0.5)
        raise ConfigError(f"no setting {name!r}; near it: {', '.join(dict.fromkeys(near)) or ', '.join(tables)}")
    about, meanings = _words()[section]
    if not key:
        return "\n\n".join([_block(f"[{section}]", about), *(explain(settings, f"{section}.{one}") for one in tables[section])])
    value, default = tables[section][key], usual[section][key]
    now = "" if value == default else f"; default {toml(default)}"
    return _block(f"{section}.{key} = {toml(value)}{now}", f"{_kind(section, key)}. {meanings[key]}")


def toml(value: Any) -> str:
    """A value as TOML has it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _text(value)
        case dict():
            pairs = (f"{key if re.fullmatch(r'[A-Za-z0-9_-]+', key) else _text(key)} = {toml(one)}" for key, one in value.items())
            return "{ " + ", ".join(pairs) + " }" if value else "{}"
        case _:
            line = "[" + ", ".join(map(toml, value)) + "]"
            if len(line) < WIDTH:
                return line
            return "[\n" + textwrap.indent(textwrap.fill(line[1:-1], WIDTH - 4, break_on_hyphens=False), "    ") + ",\n]"


def _text(value: str) -> str:
    if value.isprintable() and not {"\\", '"'} & set(value):
        return f'"{value}"'
    if value.isprintable() and "'" not in value:
        return f"'{value}'"  # as it is: regular expressions stay legible
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


@cache
def _words() -> dict[str, tuple[str, dict[str, str]]]:
    """Section -> what it is about, and the meaning of each key: the texts below the fields in config.py."""
    classes = {node.name: node for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef)}
    found = {}
    for section, kind in inspect.get_annotations(Config, eval_str=True).items():
        node = classes[kind.__name__]
        found[section] = (inspect.cleandoc(ast.get_docstring(node) or ""), dict(_fields(node)))
    return found


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, inspect.cleandoc(below.value.value)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in _wrapped(text)]


def _wrapped(text: str) -> list[str]:
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)]


def _block(head: str, text: str) -> str:
    return "\n".join([head, *(f"    {line}" for line in _wrapped(text))])


def _kind(section: str, key: str) -> str:
    """What may stand there."""
    tables = {field.name: field.type for field in kinds.type_info(Config).fields}  # type: ignore[attr-defined]
    types = {field.name: field.type for field in tables[section].fields}
    text = _type_in_words(types[key])
    return text[0].upper() + text[1:]


def _type_in_words(kind: kinds.Type) -> str:
    match kind:
        case kinds.BoolType():
            return "true or false"
        case kinds.IntType() | kinds.FloatType():
            whole = "a whole number" if isinstance(kind, kinds.IntType) else "a number"
            limits = {"above": kind.gt, "from": kind.ge, "below": kind.lt, "up to": kind.le}
            return " ".join([whole, *(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)])
        case kinds.LiteralType():
            return "one of " + ", ".join(f"`{value}`" for value in kind.values)
        case kinds.VarTupleType():
            return f"a list, each {_type_in_words(kind.item_type)}"
        case kinds.DictType():
            return f"a table {{ name = value }}, each value {_type_in_words(kind.value_type)}"
        case kinds.UnionType():
            return " or ".join(map(_type_in_words, kind.types))
        case _:
            return "text"
