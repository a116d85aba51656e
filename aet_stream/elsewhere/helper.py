"""The helper: does heavy steps of the trigger on another computer, with the same commands, in a folder of its own.

Files come and go in chunks (transfer.py). It keeps the task that it is at, by its key: a step that has lost the link finds it done, or
under way, for as long as KEEP_S.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from aet_stream import __version__
from aet_stream.config import Config
from aet_stream.elsewhere import steps
from aet_stream.elsewhere.curve import RelayLink
from aet_stream.elsewhere.steps import STEPS
from aet_stream.elsewhere.transfer import FileReceiver, FileSender
from aet_stream.errors import AetError, ConfigError, WireError
from aet_stream.messages import WIRE_VERSION, Chunk, Fetch, Gone, HelperReady, Task, TaskDone, TaskOff, Working
from aet_stream.service import still_at_it
from aet_stream.status import PRODUCTS, StepName
from aet_stream.work import ChildWork

logger = logging.getLogger(__name__)

TURN_S = 0.2
SAY_S = 0.5
LOST_S = 10.0
"""Without a word from the relay, the link is lost."""
LEFT_S = 3600.0
KEEP_S = 60.0
"""So long a task is kept whose step has gone."""
_NAME = re.compile(r"(?:editions/)?[\w][\w.-]*", re.ASCII)


class TaskRun:
    """A task under way: files that come, then a process, then files that go."""

    def __init__(self, task: Task, spool: Path, settings: Config) -> None:
        """
        Raises
        ------
        WireError : the task is none
        OSError : the disk does not take it
        """
        if "/" in task.series or task.series in ("", ".", "..") or not re.fullmatch("[0-9a-f]{64}", task.key):
            raise WireError(f"no series is called {task.series!r:.80}")
        if wrong := [file.name for file in task.files if not _NAME.fullmatch(file.name)]:
            raise WireError(f"no file of a series is called {wrong[0]!r:.80}")
        self.task = task
        self._base, self._settings = spool / task.key, settings
        self._folder = self._base / task.series
        needed = sum(file.nbytes for file in task.files)
        spool.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(spool).free) < 2 * needed:
            raise OSError(f"{spool}: {free >> 20} MiB are free, {2 * needed >> 20} are needed")
        self._coming = [FileReceiver(self._folder, file) for file in task.files]
        self._work: ChildWork | None = None
        self._going: FileSender | None = None
        self.made: TaskDone | None = None

    def resume(self) -> None:
        """Another link: what was on its way is lost."""
        for each in self._coming:
            each.ask_again()

    def wanted(self) -> list[Fetch]:
        """Chunks to ask for now: of one file after the other."""
        coming = next((each for each in self._coming if not each.done), None)
        return [] if coming is None else list(coming.wanted())

    def take(self, chunk: Chunk) -> None:
        for each in self._coming:
            each.take(chunk)

    def chunk(self, wanted: Fetch) -> Chunk:
        """
        Raises
        ------
        WireError : nothing of that name is to be had
        """
        if self._going is None:
            raise WireError("nothing has been made yet")
        return self._going.chunk(wanted)

    def turn(self, beat: Callable[[], None], *, compress: bool) -> None:
        """Start the process once all files are there, and see what it has made.

        Parameters
        ----------
        beat : called while that takes long
        compress : files go compressed
        """
        if self.made is not None or not all(each.done for each in self._coming):
            return
        step = STEPS[self.task.step]
        if self._work is None:
            settings = getattr(self._settings, self.task.step)
            logger.info("series=%s %s: begins", self.task.series, PRODUCTS[self.task.step])
            command = step.command(self._settings, self._folder, *step.alone)
            self._work = ChildWork(command, timeout_s=settings.timeout_s, again_s=1.0, environment=step.environment)
        outcome = self._work.outcome()
        if outcome is None:
            return
        logger.info("series=%s %s: %s", self.task.series, PRODUCTS[self.task.step], outcome.detail)
        there = [name for name in self.task.makes if (self._folder / name).is_file()]
        self._going = FileSender(self._folder, there if outcome.ok else [], compress=compress, beat=beat)
        self.made = TaskDone(key=self.task.key, ok=outcome.ok, detail=outcome.detail, files=self._going.files)

    def close(self) -> None:
        """Nothing is left of it."""
        if self._work is not None:
            self._work.stop()
        if self._going is not None:
            self._going.close()
        shutil.rmtree(self._base, ignore_errors=True)


class Helper:
    """One task at a time."""

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        takes: tuple[StepName, ...],
        spool: Path,
        elsewhere: Callable[[], RelayLink],
        compress: bool = False,
    ) -> None:
        """
        Parameters
        ----------
        spool : where tasks are done; what lies there is the helper's, and removed
        elsewhere : makes the link to the relay
        compress : files are compressed on their way from here
        """
        self.name = name
        self._config, self._takes, self._spool, self._elsewhere, self._compress = config, takes, spool, elsewhere, compress
        self._link: RelayLink | None = None
        self._run: TaskRun | None = None
        self._with_step = False
        self._said_at = self._parted_at = time.monotonic()

    def start(self) -> None:
        """Make sure of a place to work, and find the relay."""
        try:
            self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in self._spool.iterdir():
                if time.time() - left.stat().st_mtime > LEFT_S:
                    shutil.rmtree(left)  # of a helper before us that was killed; a newer one may be gone on with
        except OSError as error:
            raise ConfigError(f"--spool {self._spool}: {error.strerror}: a folder on a local disk is needed") from error
        link = self._link = self._elsewhere()
        welcome = link.join(lambda: still_at_it(self.name))
        logger.info("let in as %s:%s, for %s", welcome.host, self.name, ", ".join(PRODUCTS[step] for step in self._takes))

    def step(self) -> None:
        assert self._link is not None
        for message, _ in self._link.receive(TURN_S if self._run is None else TURN_S / 4):
            match message:
                case Task():
                    self._take(message)
                case Fetch():
                    self._send_chunk(message)
                case Chunk():
                    self._keep(message)
                case TaskOff():
                    self._forget("done")
                case Gone() if self._run is not None and self._run.made is not None and not self._run.made.ok:
                    self._forget("nobody wants it again")
                case Gone():
                    self._part()
        self._go_on()
        self._say()

    def _go_on(self) -> None:
        now, run = time.monotonic(), self._run
        if self._with_step and self._link is not None and now - self._link.heard_at > LOST_S:
            self._part()
        if run is None:
            return
        try:
            before = run.made
            run.turn(self._at_it, compress=self._compress)
            if self._with_step:
                self._ask(run)
                if run.made is not None and before is None:
                    self._tell(run.made)
        except (AetError, OSError) as error:
            self._fail(str(error))
        if not self._with_step and now - self._parted_at > KEEP_S:
            self._forget("its step is gone")

    def _ask(self, run: TaskRun) -> None:
        for fetch in run.wanted():
            self._tell(fetch)

    def _say(self) -> None:
        if time.monotonic() - self._said_at < SAY_S:
            return
        self._said_at = time.monotonic()
        key = "" if self._run is None else self._run.task.key
        if self._with_step:
            self._tell(Working(job_id=key))
        else:
            self._tell(
                HelperReady(name=self.name, takes=self._takes, wire=WIRE_VERSION, version=__version__, at=key, compress=self._compress)
            )

    def _at_it(self) -> None:
        """Within what takes long."""
        self._say()
        still_at_it(self.name)

    def _tell(self, message: HelperReady | Working | Fetch | Chunk | TaskDone) -> None:
        assert self._link is not None
        self._link.send(message)

    # -- what the step says ---------------------------------------------------------------------------------------------------------

    def _take(self, task: Task) -> None:
        self._with_step = True
        run = self._run
        if run is not None and run.task.key != task.key:
            self._forget("another is wanted")
            run = None
        try:
            if task.step not in self._takes:
                raise WireError(f"{PRODUCTS[task.step]} are not taken here (--takes)")
            if run is None:
                self._run = run = TaskRun(task, self._spool, steps.as_told(task.settings, self._config))
            run.resume()
            if run.made is not None:
                self._tell(run.made)
        except (AetError, OSError) as error:
            logger.error("series=%s %s: %s", task.series, PRODUCTS[task.step], error)
            self._tell(TaskDone(key=task.key, ok=False, detail=str(error)))

    def _send_chunk(self, wanted: Fetch) -> None:
        try:
            if self._run is not None:
                self._tell(self._run.chunk(wanted))
        except (AetError, OSError) as error:
            self._fail(str(error))

    def _keep(self, chunk: Chunk) -> None:
        if self._run is None:
            return
        try:
            self._run.take(chunk)
            self._ask(self._run)
        except (AetError, OSError) as error:
            self._fail(str(error))

    def _fail(self, detail: str) -> None:
        assert self._run is not None
        self._tell(TaskDone(key=self._run.task.key, ok=False, detail=detail))
        self._forget(detail)

    def _part(self) -> None:
        if self._with_step:
            self._with_step, self._parted_at, self._said_at = False, time.monotonic(), 0.0

    def _forget(self, why: str) -> None:
        if self._run is not None:
            logger.info("series=%s %s: %s", self._run.task.series, PRODUCTS[self._run.task.step], why)
            self._run.close()
            self._run = None
        self._part()

    def beat(self) -> str:
        if self._run is None:
            return f"free for {', '.join(PRODUCTS[step] for step in self._takes)}"
        return f"{PRODUCTS[self._run.task.step]} of {self._run.task.series}"

    def close(self) -> None:
        if self._run is not None:
            self._run.close()
        if self._link is not None:
            self._link.close()
