"""aet-stream as a service of systemd: what has to be put where, step by step, each of which says what it does before it does it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Literal

from aet_stream import durable
from aet_stream.config import Config
from aet_stream.config_file import load, require_folders
from aet_stream.config_text import as_toml
from aet_stream.elsewhere.keys import make_key
from aet_stream.errors import AetError

Kind = Literal["all-in-one", "roles", "elsewhere"]

SHIPPED = Path(__file__).parent / "systemd"
USER = "aet-stream"
_PROGRAM = "/opt/aet-stream/bin/aet-stream"
_ROLES = ("hub", "watch", "worker", "trigger", "monitor", "relay")
_COMMON = "aet-stream-.service.d/role.conf"
UNITS = {
    "all-in-one": ("aet-stream.service",),
    "instance": ("aet-stream@.service",),
    "roles": ("aet-stream.target", *(f"aet-stream-{role}.service" for role in _ROLES), _COMMON),
    "elsewhere": ("aet-stream-elsewhere@.service", "aet-stream-helper.service", _COMMON),
}
_NOTHING_YET = "CONNECT=tcp://HOST:8572\nSERVER_KEY=as `aet-stream keys show` prints it there\n"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done."""

    said: str
    do: Callable[[], object] | None = None
    """None: nothing needs to be done."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where it goes."""

    root: Path = Path("/")
    """Another one than `/`, to look at or for an image: no user is made there, and no systemd told."""

    @property
    def here(self) -> bool:
        return self.root == Path("/")

    @property
    def units(self) -> Path:
        return self.root / "etc" / "systemd" / "system"

    @property
    def settings(self) -> Path:
        return self.root / "etc" / "aet-stream"


def install(config: Config, kind: Kind, instance: str, place: Place) -> Iterator[Step]:
    """What has to be done; files of a person's are never replaced, and settings that are there are those of the units.

    Parameters
    ----------
    instance : of several microscopes on one computer; empty: the only one

    Raises
    ------
    ConfigError : the settings will not do
    AetError : this installation cannot be that of a service
    """
    program = Path(sys.executable).with_name("aet-stream")
    if not program.exists():
        raise AetError(f"{program} is not there: install aet-stream into an environment of its own, /opt/aet-stream")
    if program.is_relative_to("/home") or program.is_relative_to("/root"):
        raise AetError(f"{program} lies in a home, which no service may look into: install into /opt/aet-stream")
    if kind != "elsewhere":
        config = _in_force(config, instance, place)
        require_folders(config)
    yield _user(place)
    yield from _settings(config, kind, instance, place)
    for name in UNITS["instance" if instance else kind]:
        text = (SHIPPED / name).read_text(encoding="utf-8").replace(_PROGRAM, str(program))
        yield _file(place.units / name, text, replace=True)
    if kind != "elsewhere":
        folder = f"aet-stream@{instance}.service.d" if instance else "aet-stream-.service.d" if kind == "roles" else "aet-stream.service.d"
        yield _folder(place.root / config.output_root.relative_to("/"), place)
        yield _file(place.units / folder / "paths.conf", f"[Service]\nReadWritePaths={config.output_root}\n", replace=True)
    yield from _reload(place)
    start = {"all-in-one": "aet-stream", "roles": "aet-stream.target", "elsewhere": "aet-stream-elsewhere@0"}[kind]
    units = f"aet-stream@{instance}" if instance else start
    if kind == "roles":
        wanted = [role for role in _ROLES if role != "relay" or config.relay.listen]
        units = " ".join([units, *(f"aet-stream-{role}" for role in wanted)])
    if kind == "elsewhere":
        put = f"then put CONNECT and SERVER_KEY into {place.settings / 'elsewhere.env'}, as `aet-stream keys allow` prints them there"
        yield Step(f"{put}, and start it: systemctl enable --now {units} for a worker, aet-stream-helper for volumes, films and atoms")
        return
    look = f"aet-stream doctor --config {quote(str(_config_file(instance, place)))}"
    yield Step(f"then start it: systemctl enable --now {units}; and look: {look}")


def uninstall(place: Place) -> Iterator[Step]:
    """Units away; settings, series and user stay."""
    known = dict.fromkeys(name for names in UNITS.values() for name in names)
    ours = [place.units / name for name in known] + sorted(place.units.glob("aet-stream*.service.d/paths.conf"))
    there = [path for path in ours if path.exists()]
    if place.here and _systemd_runs() and there:
        yield Step("stop and disable all aet-stream units", _stop)
    for path in there:
        yield Step(f"remove {path}", partial(_remove, path))
    if there:
        yield from _reload(place)
    yield Step(f"left alone: {place.settings}, all series, and the user {USER} (userdel {USER})" if there else "no unit is installed")


def carry_out(steps: Iterator[Step], say: Callable[[str], object], *, dry_run: bool) -> None:
    """Say each step, then do it.

    Raises
    ------
    AetError : a step cannot be done; what has been done is said
    """
    for step in steps:
        say(f"{'would ' if dry_run and step.do else ''}{step.said}")
        if step.do is None or dry_run:
            continue
        try:
            step.do()
        except (OSError, subprocess.CalledProcessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise AetError(f"{step.said}: {said}; with sudo, perhaps? What is said above has been done") from error


def _user(place: Place) -> Step:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        words = ["useradd", "--system", "--home-dir", "/var/lib/aet-stream", "--shell", "/usr/sbin/nologin", USER]
        return Step(f"make the user {USER}", lambda: _run(*words) if place.here else None)
    return Step(f"the user {USER} is there")


def _config_file(instance: str, place: Place) -> Path:
    return place.settings / f"{instance or 'config'}.toml"


def _in_force(config: Config, instance: str, place: Place) -> Config:
    """The settings that are there stay as they are: then the units are for those."""
    there = _config_file(instance, place)
    return load(there, []) if there.exists() else config


def _settings(config: Config, kind: Kind, instance: str, place: Place) -> Iterator[Step]:
    if kind == "elsewhere":
        yield _file(place.settings / "elsewhere.env", _NOTHING_YET, replace=False, secret=place.here)
        yield _key(place.settings / "worker.key", place)
    else:
        yield _file(_config_file(instance, place), as_toml(config), replace=False, secret=place.here)


def _key(path: Path, place: Place) -> Step:
    if path.exists():
        return Step(f"{path} is there, and stays as it is")

    def make() -> None:
        make_key(path)
        if place.here:
            shutil.chown(path, USER, USER)

    return Step(f"make the key {path}; `aet-stream keys show {quote(str(path))}` prints what has to be let in on the other computer", make)


def _file(path: Path, text: str, *, replace: bool, secret: bool = False) -> Step:
    """`secret`: only root and the service may read it."""
    if path.exists() and (not replace or path.read_text(encoding="utf-8") == text):
        return Step(f"{path} {'is as it should be' if replace else 'is there, and stays as it is'}")

    def write() -> None:
        durable.make_folder(path.parent)
        durable.replace(path, text.encode())
        if secret:
            path.chmod(0o640)
            shutil.chown(path, group=USER)

    return Step(f"{'replace' if path.exists() else 'write'} {path}", write)


def _folder(path: Path, place: Place) -> Step:
    if path.exists():
        return Step(f"{path} is there, and belongs to {path.owner()}")

    def make() -> None:
        durable.make_folder(path)
        if place.here:
            shutil.chown(path, USER, USER)

    return Step(f"make {path}, which belongs to {USER}", make)


def _systemd_runs() -> bool:
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def _reload(place: Place) -> Iterator[Step]:
    if place.here and _systemd_runs():
        yield Step("systemctl daemon-reload", lambda: _run("systemctl", "daemon-reload"))


def _stop() -> None:
    """Those that run or have failed, and whatever would start one: a template is disabled with all its instances."""
    for list_them, end_them in (
        (("list-units", "--all", "--state=loaded"), ("stop",)),
        (("list-unit-files",), ("disable",)),
    ):
        listed = _run("systemctl", *list_them, "--plain", "--no-legend", "aet-stream*")
        units = [line.split()[0] for line in listed.splitlines() if line.strip()]
        if units:
            _run("systemctl", *end_them, *units)
    _run("systemctl", "reset-failed", "aet-stream*")


def _remove(path: Path) -> None:
    path.unlink()
    if path.parent.name.endswith(".d") and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
