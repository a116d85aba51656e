"""A process that ends with the one that started it, whatever it is in the middle of: the kernel kills it.

`python -m aet_stream.lifeline PARENT MODULE ...` ties itself to PARENT and then is `python -m MODULE ...`. It imports nothing that takes
time, so that a parent that dies while its children are still starting leaves none behind either.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def command(module: str, *words: str) -> list[str]:
    """How to start a module of ours, as `python -m` does, as a process that ends with this one.

    With the thread that starts it, in truth (prctl(2)): one that starts children has to live as long as they shall.
    """
    return [sys.executable, "-m", "aet_stream.lifeline", str(os.getpid()), module, *words]


def tie(parent: int) -> None:
    """Have the kernel kill this process when its parent ends: no call is too long for that, and no lock is in its way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it was gone before the kernel was asked


def call(parent: int, module: str, name: str, *given: object) -> None:
    """The same as the target of a process of multiprocessing's: what it does is imported when it is tied already."""
    tie(parent)
    getattr(importlib.import_module(module), name)(*given)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    what = sys.argv[2]
    sys.argv[1:3] = []
    runpy.run_module(what, run_name="__main__", alter_sys=True)
