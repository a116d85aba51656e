"""Workers of a Dask cluster that do tasks: on other computers, started by whoever runs the cluster. They see the same folders as we do."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from typing import Any

import msgspec

from aet_stream.batch.stages import Outcome, Task, perform_encoded
from aet_stream.errors import AetError, ConfigError

logger = logging.getLogger(__name__)

AHEAD = 2
"""Tasks given for each thread of a worker, so that none waits for us."""
CONNECT_S = 15.0
GPU = "GPU"
"""What a worker calls it that has one: `dask worker --resources "GPU=1"`."""


class OnDask:
    """An engine (`run.Engine`): a scheduler that runs already. What a worker dies over, the scheduler gives to another."""

    def __init__(self, address: str) -> None:
        """Go to a scheduler.

        Raises
        ------
        ConfigError : Dask is not installed
        AetError : nobody is there
        """
        try:
            from distributed import Client
        except ImportError as error:
            raise ConfigError('--scheduler needs Dask: pip install "aet-stream[dask]", here and on every worker') from error
        self._address = address
        try:
            connect: Any = Client
            self._client = connect(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise AetError(
                f"--scheduler {address}: nobody there: start one with `dask scheduler`, and say the address that it prints"
            ) from error
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks: dict[str, tuple[Task, Any]] = {}
        """By the name that Dask has for it."""
        self._given = 0
        logger.info("Dask: %s; its dashboard: %s", address, self._client.dashboard_link)

    def _workers(self) -> dict[str, Any]:
        """Who there is. Losing the scheduler is noticed here."""
        if self._client.status != "running":
            raise AetError(
                f"the scheduler at {self._address} is gone: start one again, and say the same command again; it goes on where it was"
            )
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return workers

    def free(self) -> int:
        threads = sum(int(worker["nthreads"]) for worker in self._workers().values())
        return AHEAD * max(1, threads) - len(self._tasks)

    def submit(self, task: Task) -> None:
        self._given += 1
        slices = "" if task.slices is None else "-slices-{}-{}".format(*task.slices)
        name = f"{task.job.name}-{task.stage}{slices}-{self._given}"
        future = self._client.submit(
            perform_encoded, msgspec.msgpack.encode(task), key=name, pure=False, resources=self._needs(task), priority=self._priority(task)
        )
        self._tasks[name] = task, future
        future.add_done_callback(self._ended.put)

    def _needs(self, task: Task) -> dict[str, float] | None:
        """A GPU, where the cluster says that it has some and the stage can use one."""
        wants = (task.stage == "background" and task.plan.config.denoise.device != "cpu") or (
            task.stage == "volume" and task.plan.config.reconstruct.device != "cpu"
        )
        has = any(GPU in worker.get("resources", {}) for worker in self._workers().values())
        return {GPU: 1} if wants and has else None

    def _priority(self, task: Task) -> int:
        """What is begun is finished first."""
        return task.plan.stages.index(task.stage)

    def finished(self, timeout_s: float) -> list[Outcome]:
        until = time.monotonic() + timeout_s
        ended: list[Any] = []
        with contextlib.suppress(queue.Empty):
            while True:
                ended.append(self._ended.get(timeout=0.0 if ended else max(0.0, until - time.monotonic())))
        self._workers()
        return [self._outcome(future) for future in ended]

    def _outcome(self, future: Any) -> Outcome:
        task, _ = self._tasks.pop(future.key)
        if future.status == "finished":
            return msgspec.msgpack.decode(future.result(), type=Outcome)
        if future.status in ("cancelled", "lost"):
            raise AetError(
                f"the scheduler at {self._address} has dropped {future.key}: say the same command again; it goes on where it was"
            )
        trouble = future.exception()
        words = f"{type(trouble).__name__}: {' '.join(str(trouble).split())}"
        return Outcome(task.job.name, task.stage, error=f"its workers died over it, or are not like this computer: {words}")

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._client.cancel([future for _, future in self._tasks.values()], force=True)
            self._client.close(timeout=2)
