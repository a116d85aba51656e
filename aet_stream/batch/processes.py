"""Processes of this computer that do tasks, one each. A process that dies costs only what it had in hand, which another is given."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from multiprocessing.connection import Connection, Pipe, wait

import msgspec

from aet_stream import lifeline
from aet_stream.batch.stages import Outcome, Task, perform_encoded
from aet_stream.errors import AetError
from aet_stream.service import keep_freed_memory, set_up_logging

logger = logging.getLogger(__name__)

DEATHS = 3
"""Of processes over one task, before it is given up."""
STARTS_IN_VAIN = 3
"""Processes that end before they have done anything, one after the other, before the run is given up."""


class _Worker:
    """One process, and what it has in hand."""

    def __init__(self, number: int, *, verbose: bool) -> None:
        self.number, self.did = number, 0
        self.task: Task | None = None
        self.pipe, theirs = Pipe()
        argv = lifeline.command(__name__, str(theirs.fileno()), str(number), str(int(verbose)))
        one = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=one)

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it is dead: that is heard of soon
            self.pipe.send_bytes(msgspec.msgpack.encode(task))

    def stop(self) -> None:
        self.process.kill()  # whatever it is in the middle of goes on from there
        self.process.wait()
        self.pipe.close()


class Processes:
    """An engine (`run.Engine`) of `count` processes, which end with this one."""

    def __init__(self, count: int, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._workers = [_Worker(number, verbose=verbose) for number in range(count)]
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._in_vain = 0
        self._waiting: list[Task] = []
        """Whose worker has died."""

    @property
    def pids(self) -> dict[int, str]:
        """Of each process, and the series that it works on; empty: none."""
        return {worker.process.pid: "" if worker.task is None else worker.task.job.name for worker in self._workers}

    def free(self) -> int:
        return sum(worker.task is None for worker in self._workers) - len(self._waiting)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.task is None and self._waiting:
                worker.give(self._waiting.pop(0))

    def finished(self, timeout_s: float) -> list[Outcome]:
        heard = wait([worker.pipe for worker in self._workers], timeout_s)
        outcomes = []
        for place, worker in enumerate(self._workers):
            if worker.pipe not in heard:
                continue
            try:
                outcomes.append(msgspec.msgpack.decode(worker.pipe.recv_bytes(), type=Outcome))
                worker.task, worker.did, self._in_vain = None, worker.did + 1, 0
            except (EOFError, OSError):
                outcomes += self._died(place, worker)
        self._hand_out()
        return outcomes

    def _died(self, place: int, worker: _Worker) -> list[Outcome]:
        """Another takes its place; its task is done again, unless that has killed too many."""
        code, task = worker.process.wait(), worker.task
        worker.pipe.close()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        logger.warning("process %d %s%s", worker.number, how, "" if task is None else f" over {task.job.name} ({task.stage}); it goes on")
        self._in_vain += not worker.did and code >= 0
        if self._in_vain >= STARTS_IN_VAIN:
            raise AetError(f"{STARTS_IN_VAIN} processes ended before they had done anything (the last {how}): see their messages above")
        self._workers[place] = _Worker(worker.number, verbose=self._verbose)
        if task is None:
            return []
        self._deaths[task.job.name, task.stage] += 1
        if self._deaths[task.job.name, task.stage] < DEATHS:
            self._waiting.append(task)
            return []
        words = f"{DEATHS} processes died over it (the last {how}): is there too little memory? Fewer --workers need less"
        return [Outcome(task.job.name, task.stage, error=words)]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


def _serve(pipe: Connection, number: int, verbose: bool) -> None:
    """The child: does tasks until its parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    set_up_logging(f"batch-{number}", verbose=verbose)
    if not verbose:
        logging.getLogger().setLevel(logging.WARNING)
    keep_freed_memory()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(perform_encoded(pipe.recv_bytes()))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "1")
