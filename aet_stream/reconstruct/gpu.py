"""The built-in solver's iterations on a GPU: the same sparse matrices and the same steps as solver.py, by torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from aet_stream.reconstruct.projector import Pieces

_MIB = 2**20


def free_mib(device: str) -> int:
    """Memory that the device has to give.

    Raises
    ------
    ReconstructionError : there is no such device
    """
    try:
        return int(torch.cuda.mem_get_info(torch.device(device))[0] // _MIB)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ReconstructionError(f"reconstruct.device = {device!r} cannot be used ({reason}): set it to 'cpu'") from error


class OnDevice:
    """All slabs of one volume."""

    def __init__(self, pieces: Pieces, device: str) -> None:
        self._pieces, self._device = pieces, torch.device(device)
        self._weigh_rays, self._weigh_voxels = (self._inverse(sums) for sums in (pieces.ray_sums, pieces.voxel_sums))
        weighing = [pieces.weighing.less, pieces.weighing.smooth] if pieces.weighing else []
        self._weighing = [torch.from_numpy(part).to(self._device) for part in weighing]
        self._kept: list[tuple[slice, torch.Tensor, torch.Tensor]] = []

    def finish(self, measured: Array, iterations: int, start: Array | None, told: Callable[[], None]) -> tuple[Array, Array]:
        """(voxels, slices) after all iterations from (tilts * width, slices), and the squared residual before each.

        Raises
        ------
        ReconstructionError : the device's memory is too small
        """
        try:
            if self._pieces.whole and not self._kept:
                self._kept = list(self._moved())
            return self._finish(measured, iterations, start, told)
        except torch.OutOfMemoryError as error:
            raise ReconstructionError(
                f"{self._device} has too little memory left for {measured.shape[1]} slices at once: set reconstruct.memory_mib to"
                " less than it has, or reconstruct.device to 'cpu'"
            ) from error

    def _finish(self, measured: Array, iterations: int, start: Array | None, told: Callable[[], None]) -> tuple[Array, Array]:
        views = torch.from_numpy(measured).to(self._device)
        shape = (len(self._weigh_voxels), measured.shape[1])
        now = torch.zeros(shape, device=self._device) if start is None else torch.from_numpy(np.ascontiguousarray(start, np.float32))
        ahead = now = now.to(self._device)
        momentum, squares = 1.0, []
        for _ in range(iterations):
            after, squared = torch.zeros(shape, device=self._device), torch.zeros((), dtype=torch.float64, device=self._device)
            for rays, forward, backward in self._kept or self._moved():
                missing = views[rays] - forward @ ahead
                squared += missing.square().sum(dtype=torch.float64)
                after += backward @ (self._weighed(missing, rays) * self._weigh_rays[rays])
            after = after.mul_(self._weigh_voxels).add_(ahead).clamp_(min=0)
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = after + (momentum - 1) / following * (after - now)
            now, momentum = after, following
            squares.append(squared)
            told()
        return now.cpu().numpy(), torch.stack(squares).cpu().numpy()

    def _weighed(self, missing: torch.Tensor, rays: slice) -> torch.Tensor:
        """As `weights.Weighing.weigh`."""
        if not self._weighing:
            return missing
        less, smooth = self._weighing
        views = missing.reshape(-1, len(smooth), missing.shape[1])
        return (views - less[rays.start // len(smooth) :][: len(views), None, None] * (smooth @ views)).reshape(missing.shape)

    def _moved(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        for rays, piece in self._pieces:
            yield rays, self._matrix(piece.forward), self._matrix(piece.backward)

    def _matrix(self, matrix: csr_array) -> torch.Tensor:
        matrix = matrix.copy()
        matrix.sum_duplicates()  # voxels that leave the detector name its last column twice; torch wants each once, in order
        starts, columns = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
        values = torch.from_numpy(matrix.data)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta|Sparse invariant checks are implicitly disabled")
            return torch.sparse_csr_tensor(starts, columns, values, matrix.shape, check_invariants=True).to(self._device)

    def _inverse(self, sums: Array) -> torch.Tensor:
        seen = torch.from_numpy(sums.reshape(-1, 1)).to(self._device)
        return torch.where(seen > 1e-6, 1 / seen, torch.zeros_like(seen))
