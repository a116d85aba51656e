"""A volume by a library of other people's, in a process of its own: it may crash, hang or eat memory, and changes nothing in this one.

A few slices at a time go there and come back: whoever waits sees that it goes on, and a library that hangs is stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from aet_stream import lifeline
from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import astra_backend, tomopy_backend
from aet_stream.reconstruct.solver import Progress, Slab, limit_bytes

BACKENDS: dict[str, ModuleType] = {"tomopy": tomopy_backend, "astra": astra_backend}
SILENCE_S = 900.0
"""A library that has handed nothing over for so long hangs: its slices take seconds, of 2048 px some minutes."""
_WORK = 5e8
"""Voxels times projections times iterations that one core is given at a time: some seconds of tomopy's."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class _Request:
    """All but the projections, which follow piece by piece."""

    method: str
    tilts_deg: Array
    iterations: int
    threads: int
    memory_mib: int


def methods() -> list[str]:
    """Every method that can be asked for, as `library:algorithm`."""
    return [f"{name}:{algorithm}" for name, backend in BACKENDS.items() for algorithm in backend.SAFE]


def check(method: str) -> None:
    """Refuse an algorithm that is not safe for these data, or a library that is of no use here.

    Raises
    ------
    ReconstructionError : why, and what to do
    """
    name, _, algorithm = method.partition(":")
    if name not in BACKENDS or not algorithm:
        raise ReconstructionError(f"method {method!r}: choose auto, nesterov-sirt, {', '.join(methods())}")
    BACKENDS[name].check(algorithm)
    with _Library(_Request(method, np.zeros(0), 1, 1, limit_bytes() // _MIB), SILENCE_S):
        pass


def usual_iterations(method: str) -> int:
    """Where none are asked for."""
    name, _, algorithm = method.partition(":")
    usual: int = BACKENDS[name].usual_iterations(algorithm)
    return usual


def solve_by_slabs(
    projections: Array,
    tilts_deg: Array,
    method: str,
    *,
    iterations: int = 0,
    first: int = 0,
    threads: int = 0,
    memory_mib: int = 0,
    silence_s: float = SILENCE_S,
    progress: Progress | None = None,
) -> Iterator[Slab]:
    """Slabs of (slice y, row, column) float32 in the geometry of projector.py, in order. Nobody says what they leave unexplained.

    Parameters
    ----------
    projections : (tilts, height, width) float32, finite
    iterations : 0: what is usual for the algorithm
    first : slice to begin with
    threads : 0: all cores
    memory_mib : bound on the data of that process; 0: four fifths of what this process may have
    silence_s : how long it may hand nothing over
    progress : called with (slices done, slices in all)

    Raises
    ------
    ReconstructionError : what the library said, or how its process died or was stopped
    """
    iterations = iterations or usual_iterations(method)
    tilts, height, width = projections.shape
    threads = threads or len(os.sched_getaffinity(0))
    request = _Request(method, np.asarray(tilts_deg, np.float64), iterations, threads, limit_bytes(memory_mib) // _MIB)
    depth = threads * max(2, int(_WORK / (tilts * width * width * iterations)))  # gridrec takes two slices at once
    with _Library(request, silence_s) as library:
        for begin in range(first, height, depth):
            slices = slice(begin, min(height, begin + depth))
            volume = np.empty((slices.stop - begin, width, width), np.float32)
            library.solve(projections[:, slices], volume)
            yield Slab(slices, volume, np.zeros(0))
            if progress is not None:
                progress(slices.stop, height)


def solve(projections: Array, tilts_deg: Array, method: str, *, iterations: int = 0, **options: Any) -> tuple[Array, int]:
    """(slice y, row, column) float32 as a whole, and how many iterations were done; parameters and errors of `solve_by_slabs`."""
    _, height, width = projections.shape
    volume, iterations = np.empty((height, width, width), np.float32), iterations or usual_iterations(method)
    for slab in solve_by_slabs(projections, tilts_deg, method, iterations=iterations, **options):
        volume[slab.slices] = slab.volume
    return volume, iterations


class _Library:
    """The other process, loaded and ready. Whatever it is asked for, an end of it or its silence is one error with words."""

    def __init__(self, request: _Request, silence_s: float) -> None:
        self._method, self._silence_s = request.method, silence_s
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = (os.getpid(), __name__, _serve.__name__, theirs, *dataclasses.astuple(request))
        self._child: BaseProcess = context.Process(target=lifeline.call, args=given, name=request.method, daemon=True)
        self._hangs = False
        self._child.start()  # its arguments fit into the pipe that it reads them from, whether it lives to read them or not
        theirs.close()

    def __enter__(self) -> _Library:
        with contextlib.ExitStack() as given_back:
            given_back.push(self)
            with self._patience():
                self._hear()
            given_back.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._child.kill()
        self._child.join()
        self._pipe.close()

    def solve(self, projections: Array, volume: Array) -> None:
        """Fill the volume of these slices."""
        with self._patience():
            self._pipe.send(projections.shape)
            for view in projections:
                self._pipe.send_bytes(np.ascontiguousarray(view, np.float32).data)
            self._hear()
            for one in volume:
                self._pipe.recv_bytes_into(one.reshape(-1))

    def _hear(self) -> None:
        if refusal := self._pipe.recv_bytes():
            raise ReconstructionError(refusal.decode())

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Whatever it is waited for, in either direction: when the time is up the process is killed, which ends every wait for it."""
        timer = threading.Timer(self._silence_s, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError):
            self._child.join()
            raise ReconstructionError(self._end()) from None
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._hangs = True
        self._child.kill()

    def _end(self) -> str:
        if self._hangs:
            return (
                f"{self._method} has handed nothing over for {self._silence_s:g} s and was stopped: it hangs, or needs longer"
                " (reconstruct.silence_s); choose nesterov-sirt"
            )
        return (
            f"{self._method}: its process died (exit code {self._child.exitcode}; below 0: a signal), perhaps for want of memory"
            " (reconstruct.memory_mib); choose nesterov-sirt"
        )


def _serve(pipe: Connection, *asked: Any) -> None:
    """The child: an empty message once the library is loaded, and with the slices of each piece; or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    request = _Request(*asked)
    limit = request.memory_mib * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # not the address space, of which CUDA reserves more than there is
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pieces: queue.SimpleQueue[Array] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, pieces), daemon=True).start()
    name, _, algorithm = request.method.partition(":")
    backend, said = BACKENDS[name], ""
    with contextlib.suppress(OSError):  # nobody may be waiting any more
        try:
            backend.load()
            pipe.send_bytes(b"")
            while True:
                views = pieces.get()
                volume = backend.solve(
                    views, request.tilts_deg, algorithm=algorithm, iterations=request.iterations, threads=request.threads
                )
                pipe.send_bytes(b"")
                for one in volume:
                    pipe.send_bytes(np.ascontiguousarray(one, np.float32).data)
        except ReconstructionError as error:
            said = str(error)
        except MemoryError:
            said = f"{request.method} needs more than {limit // _MIB} MiB of memory (reconstruct.memory_mib): bin the projections"
        except Exception as error:  # noqa: BLE001 - anything at all may come out of it, and becomes one line
            said = f"{request.method} failed: {type(error).__name__}: {str(error)[:300]}"
        pipe.send_bytes(said.encode())


def _read(pipe: Connection, pieces: queue.SimpleQueue[Array]) -> None:
    """What is asked for, until nobody asks any more. A thread, because the library may be inside one long call when that happens."""
    with contextlib.suppress(EOFError, OSError, MemoryError):
        while True:
            views = np.empty(pipe.recv(), np.float32)
            for view in views:
                pipe.recv_bytes_into(view.reshape(-1))
            pieces.put(views)
    os._exit(1)
