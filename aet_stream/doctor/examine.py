"""All checks, one after the other, each with a deadline: a share that hangs costs one finding, not the examination."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from aet_stream import __version__
from aet_stream.doctor import folders, machine, settings, surroundings
from aet_stream.doctor.finding import Check, Finding, State, Station, fail

WORST_FIRST: tuple[State, ...] = ("fail", "warn", "ok")


class Named(NamedTuple):
    """One line of the table."""

    name: str
    check: Check
    deadline_s: float = 20.0
    after: str = ""
    """What has to have answered first: no use in waiting for the same dead share again."""


CHECKS = (
    Named("settings", settings.settings, 60.0),
    Named("secrets", settings.secrets),
    Named("watched folder", folders.watched, 15.0),
    Named("clock", folders.clock, after="watched folder"),
    Named("events", folders.events, after="watched folder"),
    Named("layout", folders.layout, 120.0, after="watched folder"),
    Named("output folder", folders.output, 60.0),
    Named("owners", folders.owners, after="output folder"),
    Named("room", folders.room, after="output folder"),
    Named("ledger", folders.ledger, 60.0, after="output folder"),
    Named("descriptors", machine.descriptors),
    Named("memory", machine.memory),
    Named("cores", machine.cores),
    Named("temporary files", machine.temporary),
    Named("background", machine.background, 180.0),
    Named("volumes", machine.volumes, 60.0),
    Named("page", surroundings.page),
    Named("workers elsewhere", surroundings.elsewhere),
    Named("proxies", surroundings.proxies),
    Named("daemon", surroundings.daemon),
    Named("units", surroundings.units),
)


class Result(msgspec.Struct, frozen=True):
    """What one check found."""

    check: str
    findings: tuple[Finding, ...]
    took_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole examination; `worst` is the worst state of all findings."""

    at: str
    """UTC, ISO 8601."""
    host: str
    version: str = __version__
    worst: State
    results: tuple[Result, ...]


def examine(station: Station, only: Iterable[str] = ()) -> Iterator[Result]:
    """Run the checks, or those of these names, one after the other."""
    wanted, silent = set(only), set[str]()
    for named in CHECKS:
        if (not wanted or named.name in wanted) and named.after not in silent:
            began = time.monotonic()
            answered, findings = _within(named, station)
            silent |= set() if answered else {named.name}
            yield Result(named.name, findings, round(time.monotonic() - began, 3))


def report(results: Iterable[Result]) -> Report:
    """All results, and the worst of it."""
    every = tuple(results)
    found = {finding.state for result in every for finding in result.findings}
    worst: State = next((state for state in WORST_FIRST if state in found), "ok")
    return Report(at=datetime.now(UTC).isoformat(timespec="seconds"), host=socket.gethostname(), worst=worst, results=every)


def _within(named: Named, station: Station) -> tuple[bool, tuple[Finding, ...]]:
    """Whether a check answers before its deadline, and what it finds.

    One that hangs is left behind: nothing can end a thread that waits for a dead share.
    """
    found: list[Finding] = []

    def work() -> None:
        try:
            found.extend(named.check(station))
        except Exception as error:  # noqa: BLE001 - a check that fails is a finding
            found.append(fail(f"could not be examined: {type(error).__name__}: {error}", "run it again with --debug, and tell us"))

    thread = threading.Thread(target=work, name=named.name, daemon=True)
    thread.start()
    thread.join(named.deadline_s)
    if thread.is_alive():
        remedy = "something it looks at does not answer: a share whose server is gone (mount it anew), or a driver"
        return False, (*found, fail(f"no answer within {named.deadline_s:g} s", remedy))
    return True, tuple(found)
