"""A heavy step, offloaded: have its files made on another computer, if a helper is free, then become the ordinary command.

That one finds its work done, by what it knows of its own input and options, or does it. So whatever goes wrong here costs time alone.

python -m aet_stream.elsewhere.offload STEP SERIES, with the settings on standard input
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from aet_stream import durable
from aet_stream.config import Config
from aet_stream.elsewhere.steps import FIRST_EDITION, STEPS, shared
from aet_stream.elsewhere.transfer import FileReceiver, FileSender
from aet_stream.errors import AetError, WireError
from aet_stream.messages import (
    AnyMessage,
    Assigned,
    Chunk,
    Fetch,
    FileSpec,
    Gone,
    HelperPlease,
    Refusal,
    Task,
    TaskDone,
    TaskOff,
    Working,
)
from aet_stream.naming import SERIES_FILE
from aet_stream.service import be_a_child, set_up_logging
from aet_stream.status import PRODUCTS, StepName
from aet_stream.transport import StepLink, run_folder

logger = logging.getLogger(__name__)

TURN_S = 0.2
ASK_AGAIN_S = 1.0
NOBODY_S = 4.0
"""Without a word there is no relay."""
LOST_WITHIN_S = 10.0
"""Until the relay has noticed for certain that a link is lost: who is silent for longer hangs."""
PATIENCE_S = 40.0
"""So long a helper that was lost is waited for, or another: longer than a cable is out by mistake."""
LOSSES = 5
"""More, and it is done here."""


class Lost(AetError):
    """The helper, the relay, or the link to either."""


class Failed(AetError):
    """The helper could not do it, hangs, or says what makes no sense."""


class Offload:
    """One step of one series."""

    def __init__(self, config: Config, step: StepName, series: str) -> None:
        """
        Raises
        ------
        AetError, OSError : it cannot be done elsewhere: a file that it needs is not there, or is no single one
        """
        self._config, self._name, self._series = config, step, series
        self._folder = config.output_root / series
        names = _needs(step, self._folder)
        self._sending = FileSender(self._folder, names)
        settings, makes = shared(config), _makes(config, step)
        said = msgspec.json.encode([step, series, settings, makes, self._sending.files])
        self._task = Task(
            key=hashlib.sha256(said).hexdigest(), step=step, series=series, settings=settings, files=self._sending.files, makes=makes
        )
        self._keep = run_folder(config.output_root) / "offload.d" / f"{step}.{hashlib.sha256(series.encode()).hexdigest()[:16]}"
        self._link = StepLink(config.output_root, name=f"{step} of {series}")
        self._heard_at = time.monotonic()

    def have_it_made(self) -> bool:
        """True when its files are in place; False: it is to be done here."""
        avoid: list[str] = []
        until, lost = 0.0, 0
        while lost <= LOSSES and (helper := self._find(avoid, until)):
            began = time.monotonic()
            try:
                self._with_helper()
                logger.info("series=%s %s by %s in %.1f s", self._series, PRODUCTS[self._name], helper, time.monotonic() - began)
                return True
            except Lost:
                lost, until = lost + 1, time.monotonic() + PATIENCE_S
                logger.warning("series=%s %s: %s is lost", self._series, PRODUCTS[self._name], helper)
            except (Failed, WireError) as error:
                avoid.append(helper)
                logger.warning("series=%s %s: %s: %s", self._series, PRODUCTS[self._name], helper, error)
        return False

    def _find(self, avoid: list[str], until: float) -> str:
        """A helper's name; empty: there is none."""
        began = time.monotonic()
        while True:
            sent = self._link.send(HelperPlease(key=self._task.key, step=self._name, series=self._series, avoid=tuple(avoid)))
            again_at, said = time.monotonic() + (ASK_AGAIN_S if sent else TURN_S), ""  # the relay is not reached yet
            while time.monotonic() < again_at:
                for message, _ in self._link.receive(TURN_S):
                    if isinstance(message, Assigned):
                        self._heard_at, self._sending.compress = time.monotonic(), message.compress
                        return message.helper
                    if isinstance(message, Refusal):
                        said = message.text
                if said and time.monotonic() > until:
                    return self._nobody(said)
            if not said and time.monotonic() > max(until, began + NOBODY_S):
                return self._nobody("no relay answers")

    def _nobody(self, why: str) -> str:
        logger.info("series=%s %s: %s: it is done here", self._series, PRODUCTS[self._name], why)
        return ""

    def _with_helper(self) -> None:
        """
        Raises
        ------
        Lost, Failed, WireError : nothing has been put in place
        """
        self._tell(self._task)
        made = self._until_made()
        if not made.ok:
            raise Failed(made.detail)
        if unasked := [file.name for file in made.files if file.name not in self._task.makes]:
            raise Failed(f"nobody has asked for {unasked[0]!r:.80}")
        if self._task.makes[0] not in (file.name for file in made.files):
            raise Failed(f"it made nothing ({made.detail})")
        self._fetch(made.files)
        self._put_in_place([file.name for file in made.files])
        self._tell(TaskOff(key=self._task.key))

    def _until_made(self) -> TaskDone:
        while True:
            for message in self._heard():
                if isinstance(message, Fetch):
                    self._tell(self._sending.chunk(message))
                elif isinstance(message, TaskDone) and message.key == self._task.key:
                    return message

    def _fetch(self, files: tuple[FileSpec, ...]) -> None:
        for file in files:
            coming = FileReceiver(self._keep, file)
            while not coming.done:
                for fetch in coming.wanted():
                    self._tell(fetch)
                for message in self._heard():
                    if isinstance(message, Chunk):
                        coming.take(message)
                    elif isinstance(message, TaskDone) and not message.ok:
                        raise Failed(message.detail)

    def _put_in_place(self, names: list[str]) -> None:
        """The one by which it is known to be done comes last, so that never the old rest is taken for its."""
        main = self._task.makes[0]
        for name in self._task.makes[1:]:
            (self._folder / name).unlink(missing_ok=True)
        for name in [*(name for name in names if name != main), main]:
            durable.make_folder((self._folder / name).parent)
            durable.put_in_place(self._keep / name, self._folder / name)

    def _tell(self, message: Task | Fetch | Chunk | TaskOff) -> None:
        self._link.send(message)

    def _heard(self) -> Iterator[AnyMessage]:
        for message, _ in self._link.receive(TURN_S):
            if isinstance(message, Gone):
                raise Lost
            if isinstance(message, Working | TaskDone | Fetch | Chunk):
                self._heard_at = time.monotonic()
            yield message
        silent_s = time.monotonic() - self._heard_at
        if time.monotonic() - self._link.heard_at > NOBODY_S:
            raise Lost
        if silent_s > max(self._config.queue.lease_s, LOST_WITHIN_S):
            raise Failed(f"silent for {silent_s:.0f} s")

    def close(self) -> None:
        """A helper that is still at it may stop."""
        self._tell(TaskOff(key=self._task.key))
        self._link.close()
        self._sending.close()
        shutil.rmtree(self._keep, ignore_errors=True)


def _needs(step: StepName, folder: Path) -> list[str]:
    """The files that it reads.

    Raises
    ------
    AetError : the series is still in many files, or one is missing
    """
    from aet_stream.series import Series

    with Series(folder / SERIES_FILE) as series:
        if not series.closed:
            raise AetError(f"series {folder.name} is open: its projections are in files of their own")
        other = series.edition != 1
    if step == "film" and other and not (folder / FIRST_EDITION).exists():
        raise AetError(f"{folder / FIRST_EDITION} is not there, and another edition is shown")
    return [*STEPS[step].needs, *(name for name in STEPS[step].uses if (folder / name).exists())]


def _makes(config: Config, step: StepName) -> tuple[str, ...]:
    """The files that it leaves: of an edition, under the name of its maker."""
    if step != "film":
        return STEPS[step].makes
    from aet_stream.denoise.denoiser import Denoiser
    from aet_stream.film import run

    key = run.maker_of(Denoiser(config.denoise)).key
    return tuple(name.replace("*", key) for name in STEPS[step].makes)


def main(step: StepName, series: str) -> None:
    """Both ways, and never back: the process becomes that of the ordinary command."""
    set_up_logging("trigger")
    be_a_child()
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=Config)
    try:
        offload = Offload(config, step, series)
        try:
            offload.have_it_made()
        finally:
            offload.close()
    except (AetError, OSError) as error:
        logger.warning("series=%s %s is done here: %s", series, PRODUCTS[step], error)
    except KeyboardInterrupt:
        sys.exit(130)
    command = STEPS[step].command(config, config.output_root / series)
    command[command.index("aet_stream.lifeline") + 1] = str(os.getppid())
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]
