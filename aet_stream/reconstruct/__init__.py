"""A volume from a background-free tilt series: the built-in solver, tomopy where it imports, ASTRA on a GPU.

`aet_stream.reconstruct` is both this room and what scripts call: the room can be called.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

from aet_stream.config import AlignStep


def reconstruct(
    series: str | Path,
    *,
    method: str = "auto",
    iterations: int = 0,
    align: tuple[AlignStep, ...] | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a volume from a series; returns its path: `reconstruction.h5` beside the series, or `out`.

    Parameters
    ----------
    series : `series.h5`, or another file that `aet-stream reconstruct` takes
    method : "auto" (the built-in solver), "nesterov-sirt", "tomopy:ALGORITHM" or "astra:ALGORITHM"
    iterations : 0: until noise would make it worse
    align : steps of the alignment; () for none, None for all
    device : of the built-in solver
    out : a name ending in .h5, .mrc or .tif
    overwrite : with `out`: replace files that are there

    Raises
    ------
    AetError : too few projections, an unknown method, a name that is taken, ...
    """
    from aet_stream.reconstruct import run
    from aet_stream.reconstruct.align import STEPS

    options = run.Options(method=method, iterations=iterations, align=STEPS if align is None else align, device=device)
    return run.reconstruct(Path(series), options, out=None if out is None else Path(out), overwrite=overwrite)


class _Callable(ModuleType):
    __call__ = staticmethod(reconstruct)
    __signature__ = inspect.signature(reconstruct)


sys.modules[__name__].__class__ = _Callable
