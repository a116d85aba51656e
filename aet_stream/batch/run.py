"""A whole archive: hands out what is to be done, stage by stage, and says how it goes. What is done is known from the files alone."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from aet_stream import durable
from aet_stream.batch import stages, summary
from aet_stream.batch.jobs import Job
from aet_stream.batch.stages import Figures, Outcome, Plan, StageName, Task
from aet_stream.errors import OutputFull
from aet_stream.naming import shown

logger = logging.getLogger(__name__)

TURN_S = 0.5
SAY_EVERY_S = 30.0


class Engine(Protocol):
    """Somebody who does tasks, one at a time on each of its workers; what a worker dies over is given to another, a few times."""

    def free(self) -> int:
        """How many tasks more it should have."""

    def submit(self, task: Task) -> None: ...

    def finished(self, timeout_s: float) -> list[Outcome]:
        """What has ended, once there is something, or after so long.

        Raises
        ------
        AetError : nobody is left to do anything, and what would help
        """

    def close(self) -> None:
        """Stop what is being done: it goes on where it was when it is asked for again."""


@dataclass
class Progress:
    """How one series fares."""

    job: Job
    stage: StageName | None = None
    """What is done to it now, or was last."""
    figures: Figures = field(default_factory=Figures)
    """Of all its stages together."""
    error: str = ""
    seconds: float = 0.0
    """Of the stages that this run did."""
    did: list[StageName] = field(default_factory=list)
    nones: list[str] = field(default_factory=list)
    shares: int = 0
    """Of its volume, that are still to be made."""
    ended: bool = False

    def note(self, figures: Figures) -> None:
        """What one more stage says of it."""
        known = {
            name: value for name, value in msgspec.structs.asdict(figures).items() if value is not None and name not in ("none", "remarks")
        }
        self.figures = msgspec.structs.replace(self.figures, **known, remarks=(*self.figures.remarks, *figures.remarks))
        self.nones += [figures.none] if figures.none else []


class Run:
    """One run of `aet-stream batch`."""

    def __init__(self, plan: Plan, jobs: Sequence[Job]) -> None:
        self.plan = plan
        self.series = {job.name: Progress(job) for job in jobs if not job.trouble}
        self.refused = [Progress(job, error=job.trouble, ended=True) for job in jobs if job.trouble]
        self._ready: deque[Task] = deque()
        self._began_at = time.monotonic()
        self._said_at = self._began_at
        self._up_to_date = 0
        for series in self.series.values():
            self._go_on(series, self._ready.append)
        self._up_to_date = sum(series.ended for series in self.series.values())

    @property
    def all(self) -> list[Progress]:
        return sorted([*self.series.values(), *self.refused], key=lambda series: series.job.name)

    @property
    def to_do(self) -> int:
        """Series with something to be done."""
        return len(self.series) - self._up_to_date

    def listing(self) -> str:
        """What is to be done about each series, one line each."""
        return "\n".join(shown(f"{series.job.name}  {_plan_of(series)}  {series.job.root}") for series in self.all)

    def turn(self, engine: Engine) -> bool:
        """Hand out tasks, hear of some; False when all are done.

        Raises
        ------
        OutputFull : the disk does not take any more
        """
        while self._ready and engine.free() > 0:
            engine.submit(self._ready.popleft())
        if not self._left():
            return False
        for outcome in engine.finished(TURN_S):
            self._hear(outcome)
        self._say_now_and_then()
        return True

    def _left(self) -> int:
        return sum(not series.ended for series in self.series.values())

    def _go_on(self, series: Progress, submit: Callable[[Task], None]) -> None:
        """To the next stage that is not up to date; those that are add what they found."""
        stages_left = self.plan.stages[self.plan.stages.index(series.stage) + 1 :] if series.stage else self.plan.stages
        for stage in stages_left:
            series.stage = stage
            if not stages.up_to_date(self.plan, series.job, stage):
                submit(Task(self.plan, series.job, stage))
                return
            series.note(stages.done(self.plan, series.job)[stage].figures)
        series.ended = True

    def _hear(self, outcome: Outcome) -> None:
        series = self.series[outcome.name]
        series.seconds += outcome.seconds
        if outcome.disk:
            raise OutputFull(outcome.error)
        if series.error:  # it has failed over another share
            return
        if outcome.error:
            series.error, series.ended = f"{outcome.stage}: {outcome.error}", True
            self._ready = deque(task for task in self._ready if task.job is not series.job)
            logger.error("%s: %s", shown(outcome.name), shown(series.error))
            return
        if outcome.shares or series.shares:
            self._hear_of_share(series, outcome)
            return
        series.did.append(outcome.stage)
        series.note(outcome.figures)
        self._go_on(series, self._ready.appendleft)  # what is begun is finished first
        if series.ended:
            self._said_at = time.monotonic()
            logger.info("%s: %s; %s", shown(outcome.name), summary.in_words(series), self.how_far())

    def _hear_of_share(self, series: Progress, outcome: Outcome) -> None:
        """A volume is shared out, or one share of it made: after the last it is made of them."""
        if outcome.shares:
            series.shares = len(outcome.shares)
            self._ready.extendleft(Task(self.plan, series.job, outcome.stage, slices) for slices in reversed(outcome.shares))
            return
        series.shares -= 1
        if not series.shares:
            self._ready.appendleft(Task(msgspec.structs.replace(self.plan, shares_volumes=False), series.job, outcome.stage))

    def how_far(self) -> str:
        """In words, with the time that is left if all goes on as it did."""
        mine = [series for series in self.series.values() if series.did or not series.ended]
        ended = [series for series in mine if series.ended]
        text = f"{len(ended)} of {len(mine)}"
        total, so_far = (sum(max(1, series.job.nbytes) for series in some) for some in (mine, ended))
        if not ended or len(ended) == len(mine):
            return text
        left_s = (time.monotonic() - self._began_at) * (total - so_far) / so_far
        return f"{text}, about {summary.duration(left_s)} left"

    def _say_now_and_then(self) -> None:
        if time.monotonic() - self._said_at > SAY_EVERY_S:
            self._said_at = time.monotonic()
            logger.info("%s", self.how_far())

    def report(self) -> str:
        """Write page and figures into the output folder; returns the table."""
        folder = self.plan.config.output_root
        seconds = time.monotonic() - self._began_at
        rows = [summary.Row.of(series) for series in self.all]
        durable.replace(folder / summary.PAGE, summary.page(rows, folder, seconds).encode())
        durable.replace(folder / summary.FIGURES, msgspec.json.format(msgspec.json.encode(rows)))
        return summary.table(rows, sys.stdout.isatty())


def _plan_of(series: Progress) -> str:
    if series.error:
        return f"cannot be done: {series.error}"
    return "up to date" if series.ended else f"from {series.stage} on"


def drive(run: Run, engine: Engine) -> None:
    """Until all is done, or somebody stops it."""
    try:
        while run.turn(engine):
            pass
    finally:
        engine.close()
