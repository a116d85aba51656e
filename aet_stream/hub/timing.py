"""The hub's clocks, and how patient it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Handed in, so that a test can turn time by hand."""

    now_s: Callable[[], float] = time.monotonic
    unix_s: Callable[[], float] = time.time
    forgotten_s: float = 3.0
    """What a role does not name this long after it was given it got lost on the way: it is given again."""
    crossing_s: float = 3.0
    """A worker may ask for work while our job is on its way to it; after this long it does not know of the job.
    One that has said nothing for as long is dead if another of its name asks."""
    fresh_s: float = 3.0
    """A role that was heard within this time is there."""
    pause_s: float = 2.0
    """After a failing disk: how long before the next try."""
    look_for_closing_s: float = 0.2
    close_budget_s: float = 0.005
    """Spent on closing and folding in one turn."""
    look_for_pruning_s: float = 10.0
    """At most one series is pruned in that time: what was collected over years goes bit by bit."""
    prune_again_s: float = 3600.0
    """Where it could not be."""
