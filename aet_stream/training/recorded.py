"""A step of training as one CUDA graph: recorded once, played from then on.

A small network is over before the CPU has launched its next kernel: played as one, a step of the published recipe takes a fraction of the
time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 3
"""Steps before the recording, in which libraries choose their ways and the optimizer makes its state."""


class Recorded:
    """A function of a batch, of batches that are all of one shape; it neither waits for the device nor asks it anything."""

    def __init__(self, step: Callable[[Any], Tensor]) -> None:
        self._step, self._seen = step, 0
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Any = None
        self._result = torch.empty(0)

    @property
    def recorded(self) -> bool:
        """From now on it is played."""
        return self._graph is not None

    def __call__(self, batch: Any) -> Tensor:
        """What the function makes of a batch, which is a named tuple of tensors on the device."""
        self._seen += 1
        if self._seen <= _WARM_UP:
            return self._beside(batch)
        if self._graph is None:
            self._record(batch)
        assert self._graph is not None
        for mine, given in zip(self._batch, batch, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._result.clone()

    def _beside(self, batch: Any) -> Tensor:
        """Not recorded, but on a stream of its own, as a recording will be."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _record(self, batch: Any) -> None:
        self._batch = type(batch)(*(part.clone() for part in batch))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._result = self._step(self._batch)
