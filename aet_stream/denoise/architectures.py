"""The kinds of network by the names that cards and presets know. With learned.py and the models the only files of the daemon with torch.

A new kind is one file (its model; its runner, if none here will do) and one line of ARCHITECTURES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from aet_stream.config import Denoise
from aet_stream.denoise.coarse import Coarse
from aet_stream.denoise.coarse_grid import CoarseGrid
from aet_stream.denoise.dncnn import DnCNN
from aet_stream.denoise.estimate import Estimator
from aet_stream.denoise.fusion.gate import Gate
from aet_stream.denoise.in_tiles import InTiles
from aet_stream.denoise.weights_file import Card, load_card, load_tensors, loaded, made, parts, write
from aet_stream.errors import ModelError

Runner = Callable[[nn.Module, Card, Denoise, Gate | None], Estimator]
"""(model with its weights, card, settings, gate) -> the network at work."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the networks of one kind are made, run, trained and stored."""

    model: Callable[..., nn.Module]
    """Made with the `shape` of a card"""
    runner: Runner
    learns_from: Literal["blocks", "patches"]
    """Batches and loss of its training, see training/tasks.py"""
    stored: torch.dtype | None = None
    """As what weights are written; None: as they are"""


ARCHITECTURES: dict[str, Architecture] = {
    "coarse": Architecture(Coarse, CoarseGrid, "blocks", torch.float16),  # half the size; answers differ by less than -100 dB
    "dncnn": Architecture(DnCNN, InTiles, "patches"),
}


def architecture(name: str, asked_by: object = "architecture") -> Architecture:
    """The kind of network of that name.

    Raises
    ------
    ModelError : there is none
    """
    if name.lower() not in ARCHITECTURES:
        raise ModelError(f"{asked_by}: there is no architecture {name!r}; choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name.lower()]


def load_network(path: Path, settings: Denoise) -> Estimator:
    """The network in a weights file, ready to work.

    Raises
    ------
    ModelError : the file, its card or the device is not what it should be
    """
    card = load_card(path)
    kind = architecture(card.architecture, path.with_suffix(".json"))
    of_network, of_gate = parts(load_tensors(path))
    gate = loaded(Gate(), of_gate, path) if of_gate else None
    return kind.runner(loaded(made(kind.model, card, path), of_network, path), card, settings, gate)


def save_weights(path: Path, network: Mapping[str, Tensor], card: Card, gate: Mapping[str, Tensor] | None = None) -> Path:
    """Write the weights (state dictionaries of a network and its gate) as their kind is stored, then the card with their hash.

    Raises
    ------
    ModelError : weights are not finite as they are stored
    """
    tensors = {**network, **{f"gate.{name}": tensor for name, tensor in (gate or {}).items()}}
    if stored := architecture(card.architecture).stored:
        tensors = {name: tensor.to(stored) for name, tensor in tensors.items()}
    return write(path, tensors, card)
