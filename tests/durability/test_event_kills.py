"""Hub or trigger is killed at every step of an event's way to every sink: it arrives all the same, in order, and acts once."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import pytest

from aet_stream import failpoints
from aet_stream.trigger.sinks import SINKS
from tests.durability import rig
from tests.durability.roles import PLACES, Roles
from tests.harness import ENVIRONMENT
from tests.receivers import Program, http_receiver, zmq_receiver
from tests.test_reconstruct import BLOBS, TILTS_DEG, views_of, write_series

pytestmark = pytest.mark.thorough

OUTSIDE = ("webhook", "zeromq", "command")
BESIDE = ("reconstruct", "preview", "report")
ELSEWHERE = ("film", "atoms")
"""Killed in tests of their own: behaviour/test_film.py, test_atoms_step.py."""


def each(sinks: tuple[str, ...], quickly: tuple[str, ...]) -> list[Any]:
    """Every place for every sink; those that `make test` has no time for are slow."""
    return [
        pytest.param(sink, place, marks=[] if sink == OUTSIDE[0] or place in quickly else pytest.mark.slow)
        for sink in sinks
        for place in PLACES
    ]


def test_every_place_of_an_events_way_is_tried() -> None:
    """A new place cannot be forgotten, nor a new sink."""
    assert {*OUTSIDE, *BESIDE, *ELSEWHERE} == set(SINKS)
    assert set(PLACES) == {name for name in failpoints.NAMES if name.startswith("event.")}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("sink", "place"), each(OUTSIDE, ("event.acted",)))
def test_receivers_outside_get_every_event_and_act_once(tmp_path: Path, sink: str, place: str) -> None:
    """Killed at the second event: all three arrive in order, none has an effect twice, and the place was really reached."""
    with ExitStack() as stack:
        if sink == "command":
            program = Program(tmp_path / "program")
            settings: dict[str, Any] = {"argv": program.argv, "timeout_s": 20}
        else:
            receiver = stack.enter_context(http_receiver() if sink == "webhook" else zmq_receiver(tmp_path))
            settings = {"url" if sink == "webhook" else "endpoint": receiver.address, "timeout_s": 5}
        roles = Roles(tmp_path, place, 2, **{sink: {**settings, "events": ["held"]}})
        ids = roles.announce("held", "s", 3)
        roles.until_settled()
        acted = program.effects_in_order if sink == "command" else [event["id"] for event in receiver.effects]
        assert acted == ids
    assert roles.deaths == [f"{PLACES[place]} {-signal.SIGKILL}"]
    assert [state for _, _, state, _ in roles.deliveries()] == ["done"] * 3


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("sink", "place"), each(BESIDE, ("event.acted",)))
def test_files_beside_the_series_are_made(tmp_path: Path, sink: str, place: str) -> None:
    """The child may be lost with the trigger: its file is there at the end, whole, and nothing is left over."""
    series = tmp_path / "out" / "s" / "series.h5"
    rig.expose(tmp_path / "in")
    assert rig.attempt(rig.Case(tmp_path)) == 0
    event, settings, name = {
        "reconstruct": ("series.closed", {"on_close": True, "iterations": 2, "align": [], "quality": False}, "reconstruction.h5"),
        "preview": ("coverage.milestone", {"enabled": True}, "preview.h5"),
        "report": ("series.closed", {"on_close": True}, "report.html"),
    }[sink]
    roles = Roles(tmp_path, place, **{sink: settings})
    roles.announce(event, "s", 1)
    roles.until_settled()
    assert roles.deaths == [f"{PLACES[place]} {-signal.SIGKILL}"]
    assert {state for _, to, state, _ in roles.deliveries() if to == sink} - {"superseded"} == {"done"}
    assert series.with_name(name).stat().st_size > 0
    if name.endswith(".h5"):
        with h5py.File(series.with_name(name)) as file:
            assert len(file) > 0
    assert not [path.name for path in series.parent.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("what", ["reconstruct", "preview"])
@pytest.mark.parametrize("step", ["draft", "synced", "renamed", "durable"])
def test_a_volume_that_is_killed_while_it_is_written_is_whole_or_absent(tmp_path: Path, what: str, step: str) -> None:
    """SIGKILL at each step of its writing: no half file; the next try makes it, or finds it."""
    series = write_series(tmp_path / "s" / "series.h5", views_of(BLOBS, TILTS_DEG), TILTS_DEG)
    options = ["--iterations", "2"] + (["--align", "", "--no-quality"] if what == "reconstruct" else [])
    argv = [sys.executable, "-m", "aet_stream", what, str(series), *options]
    run = subprocess.run(argv, env={**ENVIRONMENT, failpoints.VARIABLE: f"volume.{step}=kill"}, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL
    target = series.with_name("reconstruction.h5" if what == "reconstruct" else "preview.h5")
    assert target.exists() == (step in ("renamed", "durable"))
    if target.exists():
        with h5py.File(target) as file:
            assert len(file) > 0
    assert subprocess.run(argv, env=ENVIRONMENT, check=False).returncode == 0
    with h5py.File(target) as file:
        assert len(file) > 0
