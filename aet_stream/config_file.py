"""Settings from a TOML file and the command line, checked: an error names the file, the key, the value and what would be right."""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
import tomllib
from pathlib import Path
from shlex import quote
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from aet_stream import newer_than
from aet_stream.config import Config, Monitor
from aet_stream.errors import ConfigError

_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": 'text in "quotes"',
    "array": "a list [...]",
    "object": "a [section]",
}
"""What msgspec calls by other names than TOML."""


def load(path: Path | None, overrides: list[str]) -> Config:
    """Settings from a TOML file (or the defaults) and `section.key=value` words, checked.

    Raises
    ------
    ConfigError : names the file or word, the key, the value and what would be right
    """
    tree: dict[str, Any] = {}
    said = [f"--set {word}" for word in overrides]
    name = " ".join([*([str(path)] if path else []), *said]) or "built-in defaults"
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark before the first line
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: there is no such file; `aet-stream config > {quote(str(path))}` writes one with all settings"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
    for word in overrides:
        _override(tree, word)
    try:
        config = msgspec.convert(_with_dates_as_text(tree), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error, tree)}") from error
    return _checked(config, name)


def _with_dates_as_text(tree: dict[str, Any]) -> dict[str, Any]:
    """TOML has dates, and so they need no quotes."""

    def text(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value

    return {name: {key: text(value) for key, value in table.items()} if isinstance(table, dict) else table for name, table in tree.items()}


def _override(tree: dict[str, Any], word: str) -> None:
    match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", word, re.DOTALL)
    if match is None:
        raise ConfigError(f"--set {word!r}: write section.key=value, for example --set denoise.device=cpu")
    section, key, text = match.groups()
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: --set denoise.model=laplace needs no quotes
    table = tree.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"--set {word!r}: {section!r} is not a section")
    table[key] = value


def _explain(error: msgspec.ValidationError, tree: Any) -> str:
    """What is wrong where, and what would be right."""
    found = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*)`)?", str(error), re.DOTALL)
    assert found is not None
    what, key = found.group(1), found.group(2) or ""
    if unknown := re.search(r"unknown field `(.*)`", what, re.DOTALL):
        room = type(getattr(Config(), key)) if key else Config
        known = ", ".join(room.__struct_fields__)
        return f"unknown key `{'.'.join(filter(None, (key, unknown.group(1))))}`; known here: {known}"
    if value := re.fullmatch("Invalid enum value (.*)", what):
        return f"{key} = {value.group(1)}: choose one of {', '.join(_choices(key))}"
    what = re.sub(r"got `str`", "got text", what)
    what = re.sub(r"`([\w |]+)`", lambda kinds: _in_words(kinds[1]), what[0].lower() + what[1:])
    return f"{key} = {_value(tree, key)!r}: {what}"


def _in_words(kinds: str) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds.split(" | "))


def _value(tree: Any, key: str) -> Any:
    """What stands there, or around it."""
    for part in re.findall(r"\w+", key):
        tree = tree[int(part) if isinstance(tree, list) else part]
    return tree


def _choices(key: str) -> tuple[str, ...]:
    """The words that a setting, or each of its list, may be."""
    section, name = re.findall(r"\w+", key)[:2]
    kind = get_type_hints(type(getattr(Config(), section)))[name]
    if float in get_args(kind):
        return (*get_args(get_args(kind)[1]), "a number")
    while get_origin(kind) is not Literal:
        kind = get_args(kind)[0]
    return get_args(kind)


def _is_web_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        labels = (url.hostname or "").split(".")
        return (
            text.isascii()
            and url.scheme in ("http", "https")
            and all(0 < len(label) < 64 for label in labels)
            and not url.username
            and url.port != 0  # asking for the port refuses one that is no number or too large
        )
    except ValueError:
        return False


def _checked(config: Config, name: str) -> Config:
    """What no single field can say for itself."""
    for section, table in msgspec.to_builtins(config).items():
        for key, value in table.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name}: {section}.{key} = {value}: a finite number is needed")
    for key, pattern, group in (
        ("angle.filename_regex", config.angle.filename_regex, "angle"),
        ("frames.pattern", config.frames.pattern, "frame"),
        ("series.pattern", config.series.pattern, "series"),
    ):
        try:
            known = re.compile(pattern).groupindex
        except re.error as error:
            raise ConfigError(f"{name}: {key} is no regular expression: {error}") from error
        if pattern and group not in known:
            raise ConfigError(f"{name}: {key} needs a group named `{group}`: (?P<{group}>...)")
    if config.series.by in ("pattern", "path_pattern") and not config.series.pattern:
        raise ConfigError(f"{name}: series.by is {config.series.by}, but series.pattern is empty")
    newer_than.limit_s(config.watch.newer_than, 0.0)
    if not set(config.angle.signs.values()) <= {"+", "-", ""}:
        raise ConfigError(f"{name}: angle.signs maps letters to + or -, not {config.angle.signs}")
    if not config.angle.order:
        raise ConfigError(f"{name}: angle.order is empty: name at least one of metadata, sidecar, filename")
    if abs(config.angle.scale) != 1:
        raise ConfigError(f"{name}: angle.scale is {config.angle.scale}; only 1 and -1 make sense")
    if config.webhook.url and not _is_web_address(config.webhook.url):
        raise ConfigError(f"{name}: webhook.url {config.webhook.url!r}: write http(s)://host[:port]/path, without a name or password in it")
    if config.zeromq.endpoint and "://" not in config.zeromq.endpoint:
        raise ConfigError(f"{name}: zeromq.endpoint {config.zeromq.endpoint!r}: an address like tcp://127.0.0.1:5599 is needed")
    if config.relay.listen and not re.fullmatch(r"tcp://([\w.-]+|\[[0-9a-fA-F:.]+\]|\*):\d{1,5}", config.relay.listen, re.ASCII):
        raise ConfigError(f"{name}: relay.listen {config.relay.listen!r}: an address like tcp://0.0.0.0:8572 is needed")
    if config.angle.min_deg >= config.angle.max_deg:
        raise ConfigError(f"{name}: angle.min_deg must be below angle.max_deg")
    if config.monitor.host in ("", "0.0.0.0", "::") and not config.monitor.names:
        raise ConfigError(
            f"{name}: monitor.host {config.monitor.host!r} is every address: say in monitor.names under which names it is reached"
        )
    _check_ways_in(config.monitor, name)
    if bool(config.monitor.tls_cert) != bool(config.monitor.tls_key):
        raise ConfigError(f"{name}: monitor.tls_cert and monitor.tls_key belong together: set both or none")
    return config


def _check_ways_in(monitor: Monitor, name: str) -> None:
    """Names, addresses and a path that requests are compared with: what can never match is a mistake."""
    for one in monitor.names:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?|[0-9a-fA-F:.]+", one, re.ASCII):
            raise ConfigError(f"{name}: monitor.names {one!r}: a host name as lab.example is needed, without http://, port or path")
    for one in monitor.trusted_proxies:
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise ConfigError(f"{name}: monitor.trusted_proxies {one!r}: an address or network is needed, as 10.0.0.5: {error}") from error
    if not re.fullmatch(r"(/[\w.~-]*[\w~-])*", monitor.base_path, re.ASCII):
        raise ConfigError(f"{name}: monitor.base_path {monitor.base_path!r}: a path as /aet is needed, with / before it and none behind")


def require_folders(config: Config) -> None:
    """Refuse to start where input and output are not two separate folders.

    Raises
    ------
    ConfigError : a folder is not set, the output lies inside the watched folder, or the other way round
    """
    for key in ("watch", "output"):
        if not getattr(config, key).root:
            raise ConfigError(f"{key}.root is not set: put it into the config file or say --set {key}.root=FOLDER")
    watch, output = config.watch_root.resolve(), config.output_root.resolve()
    if output == watch or output.is_relative_to(watch):
        raise ConfigError(f"output.root {output} lies inside watch.root {watch}: results would be taken for input; choose a folder outside")
    if watch.is_relative_to(output):
        raise ConfigError(f"watch.root {watch} lies inside output.root {output}; choose two separate folders")
