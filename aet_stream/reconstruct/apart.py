"""A volume by a library of other people's, in a process of its own: it may crash, hang or eat memory, and changes nothing in this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import ModuleType

import numpy as np

from aet_stream import lifeline
from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import astra_backend, tomopy_backend
from aet_stream.reconstruct.solver import limit_bytes

BACKENDS: dict[str, ModuleType] = {"tomopy": tomopy_backend, "astra": astra_backend}
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    projections: Array
    """(tilts, y, x) float32; no tilts: only say whether the library is of use"""
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
    _ask(_Request(method, np.zeros((0, 0, 0), np.float32), np.zeros(0), 1, 1, limit_bytes() // _MIB))


def solve(
    projections: Array, tilts_deg: Array, method: str, *, iterations: int = 0, threads: int = 0, memory_mib: int = 0
) -> tuple[Array, int]:
    """(slice y, row, column) float32 in the geometry of projector.py, and how many iterations were done.

    Parameters
    ----------
    projections : (tilts, height, width) float32, finite
    iterations : 0: what is usual for the algorithm
    threads : 0: all cores
    memory_mib : bound on the data of that process; 0: four fifths of what this process may have

    Raises
    ------
    ReconstructionError : what the library said, or how its process died
    """
    name, _, algorithm = method.partition(":")
    iterations = iterations or BACKENDS[name].usual_iterations(algorithm)
    volume = np.empty((projections.shape[1], projections.shape[2], projections.shape[2]), np.float32)
    memory_mib = limit_bytes(memory_mib) // _MIB
    _ask(_Request(method, projections, np.asarray(tilts_deg, np.float64), iterations, threads, memory_mib), volume)
    return volume, iterations


def _ask(request: _Request, volume: Array | None = None) -> None:
    """Have it done, and fill the volume."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    tied = (os.getpid(), __name__, _serve.__name__, theirs, request)
    child = context.Process(target=lifeline.call, args=tied, name=request.method, daemon=True)
    child.start()
    theirs.close()
    try:
        if refusal := ours.recv_bytes():
            raise ReconstructionError(refusal.decode())
        for one in () if volume is None else volume:
            ours.recv_bytes_into(one.reshape(-1))
    except EOFError:
        child.join()
        raise ReconstructionError(
            f"{request.method}: its process died (exit code {child.exitcode}; below 0: a signal), perhaps for want of memory"
            " (reconstruct.memory_mib); choose nesterov-sirt"
        ) from None
    finally:
        child.kill()
        child.join()
        ours.close()


def _serve(pipe: Connection, request: _Request) -> None:
    """The child: an empty message and the slices, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    limit = request.memory_mib * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # not the address space, of which CUDA reserves more than there is
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    name, _, algorithm = request.method.partition(":")
    backend, said, volume = BACKENDS[name], "", np.zeros((0, 0, 0), np.float32)
    try:
        backend.load()
        if len(request.projections):
            volume = backend.solve(
                request.projections, request.tilts_deg, algorithm=algorithm, iterations=request.iterations, threads=request.threads
            )
    except ReconstructionError as error:
        said = str(error)
    except MemoryError:
        said = f"{request.method} needs more than {limit // _MIB} MiB of memory (reconstruct.memory_mib): bin the projections"
    except Exception as error:  # noqa: BLE001 - anything at all may come out of it, and becomes one line
        said = f"{request.method} failed: {type(error).__name__}: {str(error)[:300]}"
    with contextlib.suppress(OSError):  # nobody may be waiting any more
        pipe.send_bytes(said.encode())
        for one in volume:
            pipe.send_bytes(np.ascontiguousarray(one, np.float32).data)
