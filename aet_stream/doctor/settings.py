"""Will the settings do, to the end of a series? What every role would refuse, found before it does."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aet_stream.config import Config
from aet_stream.config_file import require_folders
from aet_stream.doctor.finding import Finding, Station, fail, ok, warn
from aet_stream.errors import AetError, ConfigError


def settings(station: Station) -> Iterator[Finding]:
    """The file, the two folders, and all that would fail only later."""
    if station.refused:
        yield fail(station.refused, "correct that setting; `aet-stream config KEY` explains one")
        return
    source = station.path or "built-in defaults"
    try:
        require_folders(station.config)
    except ConfigError as error:
        yield fail(f"{source}: {error}", "set both folders; `aet-stream config watch.root output.root` explains them")
        return
    wrong = [*_refused(station.config), *troubles(station.config)]
    yield from (fail(line, "correct that setting; `aet-stream config KEY` explains one") for line in wrong)
    if not wrong:
        yield ok(f"{source}: input {station.config.watch_root}, output {station.config.output_root}")


def _refused(config: Config) -> Iterator[str]:
    """What watch and monitor would refuse at their start."""
    from aet_stream.readers import load_plugins
    from aet_stream.readers.plan import load_plan

    attempts: list[Callable[[], Any]] = [lambda: load_plugins(config.readers.enabled), lambda: load_plan(config.angle.plan)]
    if config.monitor.enabled and config.monitor.tls_cert:
        from aet_stream.monitor.security import tls_settings

        attempts.append(lambda: tls_settings(config.monitor))
    for attempt in attempts:
        try:
            attempt()
        except AetError as error:
            yield str(error)


def troubles(config: Config) -> Iterator[str]:
    """What would fail only when the first series ends, one line each."""
    if config.webhook.secret_file:
        from aet_stream.trigger import webhook

        try:
            webhook.secret_of(config.webhook.secret_file)
        except ConfigError as error:
            yield str(error)
    if config.command.argv and shutil.which(config.command.argv[0]) is None:
        yield f"command.argv: there is no program {config.command.argv[0]!r} that may be run; say its whole path"
    wanted = config.reconstruct
    if wanted.on_close and (wanted.method != "auto" or wanted.device != "cpu"):
        from aet_stream.reconstruct import run

        try:
            run.check_method(wanted.method, wanted.device)
        except AetError as error:
            yield f"reconstruct.method, reconstruct.device: {error}"


def secrets(station: Station) -> Iterator[Finding]:
    """Files that nobody else may read: the page's token and key, the webhook's secret."""
    from aet_stream.elsewhere.keys import KeyRing

    config = station.config
    named = {
        "monitor.token_file": config.monitor.token_file,
        "monitor.tls_key": config.monitor.tls_key,
        "webhook.secret_file": config.webhook.secret_file,
    }
    if station.has_output or config.relay.keys:
        named["the relay's key"] = str(KeyRing(config).key_file)
    if station.has_output and not config.monitor.token_file:
        named["the page's token"] = str(config.output_root / "run" / "monitor.token")
    there = {name: path for name, text in named.items() if text and (path := Path(text).expanduser()).exists()}
    open_to_all = {name: path for name, path in there.items() if stat.S_IMODE(path.stat().st_mode) & 0o077}
    for name, path in open_to_all.items():
        yield warn(f"{name}: {path} can be read by others", f"chmod 600 {path}")
    closed_to_us = {name: path for name, path in there.items() if not os.access(path, os.R_OK)}
    for name, path in closed_to_us.items():
        yield fail(f"{name}: {path} cannot be read by this user", f"chown $USER {path}")
    if not (open_to_all or closed_to_us):
        yield ok(f"{len(there)} secret file(s), readable by their owner only" if there else "none in use")
