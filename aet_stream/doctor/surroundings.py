"""What is around the program: ports, proxies, systemd, and a daemon that runs already."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from aet_stream import __version__
from aet_stream.doctor.finding import Finding, Station, fail, ok, warn
from aet_stream.errors import AetError
from aet_stream.status import MonitorHeard, RelayHeard, Status

UNITS = Path("/etc/systemd/system")
STALE_S = 5.0


def _status(station: Station) -> Status | None:
    """Of the daemon of these settings; None without one."""
    from aet_stream.transport import ask

    if not station.has_output:
        return None
    try:
        return msgspec.convert(ask(station.config.output_root, "status", timeout_s=3.0), Status)
    except AetError:
        return None


def page(station: Station) -> Iterator[Finding]:
    """The port of the page: free, or ours."""
    where = station.config.monitor
    if not where.enabled:
        return
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((where.host, where.port))
        except OSError as error:
            monitor = status.roles.get("monitor") if (status := _status(station)) else None
            url = monitor.status.url if isinstance(monitor, MonitorHeard) else ""
            if urlsplit(url).port == where.port:
                yield ok(f"{url}, of the daemon that runs")
            else:
                remedy = (
                    "set monitor.port to a free one (0: any; `ss -ltnp` says who has it), or monitor.host to an address of this computer"
                )
                yield fail(f"{where.host} port {where.port}: {error.strerror}", remedy)
        else:
            yield ok(f"{where.host} port {where.port} is free")


def elsewhere(station: Station) -> Iterator[Finding]:
    """Workers on other computers: the key, the list, the port, and who is let in now."""
    from aet_stream.elsewhere.keys import KeyRing

    listen = station.config.relay.listen
    if not (listen and station.has_output):
        yield ok("none are let in (relay.listen is empty)")
        return
    ring = KeyRing(station.config)
    try:
        if ring.key_file.exists():
            ring.own()
        known = ring.allowed()
    except AetError as error:
        yield fail(str(error), "correct that; the relay then starts by itself")
        return
    if not known:
        yield warn(f"{listen}: no computer is let in", "aet-stream keys allow NAME KEY, with what `aet-stream keys new FILE` printed there")
    relay = status.roles.get("relay") if (status := _status(station)) else None
    if isinstance(relay, RelayHeard):
        yield ok(f"{listen}: {len(known)} computer(s) may come in; there now: {', '.join(relay.status.workers) or 'none'}")
        return
    host, _, port = listen.removeprefix("tcp://").rpartition(":")
    with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host.strip("[]"), int(port)))
        except OSError as error:
            yield fail(
                f"{listen}: {error.strerror or error}", "take a free port (`ss -ltnp` says who has it), and an address of this computer"
            )
        else:
            yield ok(f"{listen} is free; {len(known)} computer(s) may come in")


def proxies(station: Station) -> Iterator[Finding]:
    """Proxy variables, which send requests for this very computer, and a webhook's, elsewhere."""
    import urllib.request

    if not (found := {name: value for name, value in urllib.request.getproxies_environment().items() if name in ("http", "https", "all")}):
        yield ok("no proxy variables")
        return
    named = ", ".join(f"{name}_proxy={urlsplit(value).hostname or value}" for name, value in found.items())
    hosts = [station.config.monitor.host] if station.config.monitor.enabled else []
    hosts += [host] if (host := urlsplit(station.config.webhook.url).hostname) else []
    sent_away = [host for host in hosts if not urllib.request.proxy_bypass(host)]
    if sent_away:
        yield warn(
            f"{named}: requests for {', '.join(sent_away)} go there", f"export no_proxy=localhost,127.0.0.1,::1,{','.join(sent_away)}"
        )
    else:
        yield ok(f"{named}; not for {', '.join(hosts) or 'us'} (no_proxy)")


def daemon(station: Station) -> Iterator[Finding]:
    """Does one run, of this version, with all its roles?"""
    if not station.has_output:
        return
    status = _status(station)
    if status is None:
        yield ok("none runs for this output folder")
        return
    if status.version != __version__:
        yield warn(f"version {status.version} runs, {__version__} is installed", "restart it: systemctl restart aet-stream")
    if status.paused:
        yield fail(f"it waits: {status.paused}", "make room on the disk of output.root, or mend it: it goes on by itself")
    silent = [name for name, role in status.roles.items() if role.age_s > STALE_S]
    degraded = [f"{name} {child.degraded}" for name, child in status.children.items() if child.degraded]
    if silent or degraded:
        yield fail(
            f"it runs, but {', '.join([*degraded, *(f'{name} is silent' for name in silent)])}",
            "its log says why: journalctl -u aet-stream",
        )
    elif not status.paused:
        yield ok(f"version {status.version} runs, {len(status.roles)} roles")


def units(station: Station) -> Iterator[Finding]:
    """Units under /etc/systemd/system: what they start, as whom, where they may write, and how they fare."""
    found = sorted(path for path in UNITS.glob("aet-stream*.service") if path.is_file())
    if not found:
        yield ok("no aet-stream unit is installed: started by hand")
        return
    for unit in found:
        text = "\n".join(
            path.read_text(encoding="utf-8", errors="replace") for path in (unit, *sorted(unit.with_name(f"{unit.name}.d").glob("*.conf")))
        )
        yield from _unit(station, unit.name, text)


def _unit(station: Station, name: str, text: str) -> Iterator[Finding]:
    program = _last(text, "ExecStart").split(" ")[0].lstrip("-@:+!")
    wrong = False
    if program and not os.access(program, os.X_OK):
        wrong = True
        yield fail(
            f"{name}: {program} is not there, or may not be run",
            "install into that place, or correct ExecStart=; then systemctl daemon-reload",
        )
    elif _last(text, "ProtectHome") in ("yes", "true", "tmpfs"):
        weights = station.config.denoise.model if " worker " in _last(text, "ExecStart") else ""
        for path, remedy in {program: "install into /opt/aet-stream", weights: "put the weights into /opt or /srv: denoise.model"}.items():
            if path.startswith(("/home/", "/root/", "~")):
                wrong = True
                yield fail(f"{name}: {path} lies in a home, which ProtectHome= hides", remedy)
    user = _last(text, "User")
    if user and "%" not in user and not _there(user):
        wrong = True
        yield fail(f"{name}: there is no user {user}", f"useradd --system {user}, or systemd-sysusers")
    writable = re.findall(r"\S+", " ".join(re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE)))
    root = station.config.output_root
    if station.has_output and _last(text, "ProtectSystem") == "strict" and str(station.path) in text and not _covered(root, writable):
        wrong = True
        yield fail(f"{name}: it may not write to {root}", f"systemctl edit {name}: [Service] ReadWritePaths={root}")
    if state := _state(name):
        wrong = True
        yield fail(f"{name}: {state}", f"journalctl -u {name} says why; mend it, then systemctl reset-failed {name} and start it")
    if not wrong:
        yield ok(f"{name}: {program}{f' as {user}' if user else ''}")


def _last(text: str, key: str) -> str:
    """The value that counts: the last one."""
    return next(reversed(re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)), "").strip()


def _there(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _covered(root: Path, writable: list[str]) -> bool:
    places = [Path(word.lstrip("-+")) for word in writable if not word.startswith("%")] + [Path("/var/lib/aet-stream")]
    return any(root.is_relative_to(place) for place in places)


def _state(name: str) -> str:
    """Why systemd says that it failed; empty if it does not, or there is no systemd."""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return ""
    command = ["systemctl", "show", name, "--property=ActiveState,Result,StatusText"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return f"failed ({said.get('Result')}) {said.get('StatusText', '')}".strip() if said.get("ActiveState") == "failed" else ""
