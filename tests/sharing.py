"""A training that is shared between processes; a process that is started for it imports this and no more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch

from aet_stream.denoise.coarse import Coarse
from aet_stream.training.batches import CoarseBatch
from aet_stream.training.learning import Training
from aet_stream.training.preset import Preset


def small_network() -> Coarse:
    """The default network, thinner."""
    return Coarse(widths=((8, 8, 8, 8), (8, 8, 8, 8)))


def share(batch: CoarseBatch, rank: int, processes: int) -> CoarseBatch:
    """The frames of a batch that are one process' own."""
    return CoarseBatch(*(part.chunk(processes)[rank] for part in batch))


def learn_a_share(process: int, rank: int, preset: Preset, batches: Sequence[CoarseBatch], folder: Path) -> None:
    """One of two: learn from one frame of each batch; losses and weights go to `folder`/RANK.pt."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    training = Training(preset, torch.device("cpu"), small_network)
    losses = [float(training.one_step(share(batch, rank, 2))) for batch in batches]
    torch.save((losses, training.model.state_dict()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
