"""The doctor's findings for the page: `aet-stream doctor` in a process of its own, as this service: same user, sandbox, limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from aet_stream import lifeline
from aet_stream.config import Config

logger = logging.getLogger(__name__)

FIRST_S = 20.0
"""After the start, which is the time for other things."""
AGAIN_S = 600.0
"""After an examination that found something: it may have been mended."""
LONGEST_S = 900.0


class Examination:
    """Now and then."""

    def __init__(self, config: Config, tell: Callable[[dict[str, Any]], None], *, first_s: float = FIRST_S) -> None:
        """
        Parameters
        ----------
        tell : hears every report, as `aet-stream doctor --json` writes it
        """
        self._config = config
        self._tell = tell
        self._first_s = first_s
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._config.monitor.doctor_every_s:
            self._task = loop.create_task(self._go_on())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _go_on(self) -> None:
        wait_s = self._first_s
        while True:
            await asyncio.sleep(wait_s)
            every_s = self._config.monitor.doctor_every_s
            try:
                report = await self._examined()
            except (OSError, TimeoutError, msgspec.MsgspecError) as error:
                logger.warning("the doctor did not come to an end: %s", error or type(error).__name__)
                wait_s = every_s
                continue
            self._tell(report)
            wait_s = every_s if report["worst"] == "ok" else min(AGAIN_S, every_s)

    async def _examined(self) -> dict[str, Any]:
        command = lifeline.command("aet_stream", "doctor", "--supervised", "--json")
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            settings = msgspec.json.encode(self._config)
            said, _ = await asyncio.wait_for(child.communicate(settings), LONGEST_S)
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        report: dict[str, Any] = msgspec.json.decode(said)
        return report
