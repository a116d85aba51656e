"""What each sink does about an event: a command of ours, one of yours, a webhook, a ZeroMQ peer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from aet_stream import lifeline
from aet_stream.config import Config
from aet_stream.elsewhere.steps import STEPS, atoms_pixel
from aet_stream.messages import Event
from aet_stream.naming import SERIES_FILE
from aet_stream.status import StepName
from aet_stream.transport import hand_over
from aet_stream.trigger import webhook
from aet_stream.work import CallWork, ChildWork, Outcome, Work

Begin = Callable[[Event], Work]


def told(event: Event) -> bytes:
    """What every receiver outside is given: one JSON object."""
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"id": event.event_id, "event": event.event, "series": event.series, "at": at, "data": event.data}).encode()


def configured(config: Config) -> dict[str, Begin]:
    """How each configured sink begins a delivery."""
    return {sink: partial(SINKS[sink], config) for sink in config.sinks}


def _ours(config: Config, event: Event, name: str, *words: str, timeout_s: float, file: str = SERIES_FILE) -> Work:
    """One of our own commands on the series, or another file of its folder, in a child, after everything else there is to do."""
    argv = lifeline.command("aet_stream", name, str(_series_file(config, event).with_name(file)), "--supervised", *words)
    # One thread, also of the libraries that numpy brings: whatever else there is to do goes first.
    modest = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return ChildWork(argv, timeout_s=timeout_s, again_s=config.trigger.again_s, environment=modest)


def _series_file(config: Config, event: Event) -> Path:
    return config.output_root / event.series / SERIES_FILE


def _step(name: StepName) -> Callable[[Config, Event], Work]:
    """A heavy step: on another computer, where a helper is let in, else here."""

    def begin(config: Config, event: Event) -> Work:
        step, settings = STEPS[name], getattr(config, name)
        growing = event.event in settings.only_while_growing
        folder = _series_file(config, event).parent
        if growing:
            return _ours(config, event, name, *_WHILE_GROWING[name](config), timeout_s=settings.timeout_s)
        given: dict[str, Any] = {"timeout_s": settings.timeout_s, "again_s": config.trigger.again_s, "environment": step.environment}
        if not config.relay.listen:
            return ChildWork(step.command(config, folder), **given)
        argv = lifeline.command("aet_stream.elsewhere.offload", name, event.series)
        return ChildWork(argv, stdin=msgspec.json.encode(config), **given)

    return begin


_WHILE_GROWING: dict[str, Callable[[Config], list[str]]] = {
    "film": lambda config: [*STEPS["film"].words(config), "--growing"],
    "atoms": lambda config: ["--count", *atoms_pixel(config)],
}
"""Light versions of them, while a series grows."""


def _preview(config: Config, event: Event) -> Work:
    settings = config.preview
    words = ["--size", str(settings.size_px), "--iterations", str(settings.iterations)]
    return _ours(config, event, "preview", *words, timeout_s=settings.timeout_s)


def _report(config: Config, event: Event) -> Work:
    words = [f"--set=advice.{key}={json.dumps(value)}" for key, value in msgspec.to_builtins(config.advice).items()]
    return _ours(config, event, "report", *words, timeout_s=config.report.timeout_s)


def _command(config: Config, event: Event) -> Work:
    environment = {
        **os.environ,
        "AET_EVENT": event.event,
        "AET_EVENT_ID": event.event_id,
        "AET_SERIES": event.series,
        "AET_SERIES_FILE": str(_series_file(config, event)),
        "AET_OUTPUT_ROOT": str(config.output_root),
        "AET_ATTEMPT": str(event.attempt),
    }
    environment.pop("NOTIFY_SOCKET", None)
    argv, timeout_s = list(config.command.argv), config.command.timeout_s
    return ChildWork(argv, timeout_s=timeout_s, again_s=config.trigger.again_s, stdin=told(event), environment=environment)


def _webhook(config: Config, event: Event) -> Work:
    url, timeout_s = config.webhook.url, config.webhook.timeout_s

    def call() -> Outcome:
        secret = webhook.secret_of(config.webhook.secret_file)  # anew: it may be mended or changed while we run
        return webhook.post(url, secret, event.event_id, told(event), timeout_s=timeout_s, again_s=config.trigger.again_s)

    return CallWork(call, timeout_s=timeout_s)


def _zeromq(config: Config, event: Event) -> Work:
    endpoint, timeout_s = config.zeromq.endpoint, config.zeromq.timeout_s

    def call() -> Outcome:
        hand_over(endpoint, event.event_id, told(event), timeout_s=timeout_s)
        return Outcome(True, "acknowledged")

    return CallWork(call, timeout_s=timeout_s)


SINKS: dict[str, Callable[[Config, Event], Work]] = {
    "film": _step("film"),
    "reconstruct": _step("reconstruct"),
    "atoms": _step("atoms"),
    "preview": _preview,
    "report": _report,
    "command": _command,
    "webhook": _webhook,
    "zeromq": _zeromq,
}
"""By the name of their table in the settings, which says what they are given, how often, and what they make (`config.Sink`)."""
