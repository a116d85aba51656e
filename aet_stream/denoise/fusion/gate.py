"""The referee: a small U-Net that decides, point by point, whom to believe under the particle.

The network on blocks, the vacuum and the lattice (opinions.py) each have a background to offer. The referee sees all three, how sure each
is, and what the frame looks like there; it says what share each gets. It cannot add anything of its own: where it is wrong, the answer is
still somebody's. It was trained on particles that the network had never seen, where the network errs as it does in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise.coarse import UNet, blur
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.fusion.experts import Opinion, Opinions
from aet_stream.denoise.fusion.kriging import EDGE, pooled
from aet_stream.projection import Array

CHANNELS = (
    "mean", "texture", "step", "own", "support", "log error", "apart", "word", "vacuum", "vacuum spread", "lattice", "lattice spread",
    "amplitude", "second amplitude", "left over", "seen", "surprise", "length", "roughness", "strength", "misfit",
    "has vacuum", "has lattice", "valid",
)  # fmt: skip
"""Of a statement: block means, their texture and steps; the network's background, support, expected error, disagreement of its two views
and word before its solve; the opinions and what they rest on; what they chose for the whole frame; where there is a frame."""
_SHOWN = 39
_SAID = 4


@dataclass(frozen=True, slots=True)
class Word:
    """What the network on blocks says of a frame, (rows, columns) each, in blocks and normalised."""

    background: Array
    support: Array
    """Logit"""
    log_error: Array
    """Logarithm of the variance that it expects of its error"""
    apart: Array
    """How far its two views differ"""
    own: Array
    """Its word before the solve"""


class Verdict(NamedTuple):
    """(n, EDGE, EDGE) each but the last, on the grid of opinions."""

    correction: Tensor
    """To be added to the network's background"""
    log_error: Tensor
    """Logarithm of the variance expected of what is left"""
    disputed: Tensor
    """Standard deviation of the background, were it drawn from the three by their shares: how sure they are, and how far apart"""
    left: Tensor
    """(n,): logarithm of the root mean square error expected of the whole frame"""


def statement(blocks: Blocks, word: Word, opinions: Opinions) -> Array:
    """(len(CHANNELS), EDGE, EDGE) float32: all that the referee is told of a frame, on the grid of opinions; 0 beyond the frame."""
    own = pooled(word.background.astype(np.float64))
    none = np.zeros_like(own)
    silent = Opinion(own, none)
    vacuum, lattice, crystal, field = opinions.vacuum or silent, opinions.lattice or silent, opinions.crystal, opinions.field
    numbers = (field.length, field.roughness, field.strength) if field else (0.0, 0.0, 0.0)
    surprise = np.zeros_like(own)
    if field:
        surprise[tuple(field.asked.T)] = np.abs(field.surprise)
    told = [
        *(pooled(blocks.statistics[i]) for i in (0, 3, 4)), own,
        *(pooled(part) for part in (word.support, word.log_error, word.apart, word.own)),
        vacuum.background, vacuum.spread, lattice.background, lattice.spread,
        *((crystal.amplitude[0], crystal.amplitude[min(1, len(crystal.amplitude) - 1)], crystal.left_over) if crystal else (none,) * 3),
        opinions.seen, surprise, *numbers, crystal.misfit if crystal else 0.0, field is not None, crystal is not None, 1.0,
    ]  # fmt: skip
    found = np.zeros((len(CHANNELS), EDGE, EDGE), np.float32)
    for channel, part in zip(found, told, strict=True):
        channel[: own.shape[0], : own.shape[1]] = part
    return found


class Referee(nn.Module):
    """(n, len(CHANNELS), EDGE, EDGE) statements -> verdict. Always of one size: it also judges by means over all of it."""

    def __init__(self, *, widths: tuple[int, ...] = (24, 32, 48)) -> None:
        super().__init__()
        self.unet = UNet(_SHOWN, _SAID, widths)
        #: What it thinks of the witnesses in this frame altogether.
        self.whole = nn.Sequential(nn.Linear(2 * (widths[0] + widths[-1]), 32), nn.SiLU(), nn.Linear(32, 3))
        #: The error that is left in the frame, from the same view of it.
        self.left = nn.Linear(2 * (widths[0] + widths[-1]), 1)
        with torch.no_grad():
            cast(Tensor, self.unet.last.bias).copy_(torch.tensor([1.0, 0.0, -1.0, 0.0]))  # the network first, then the vacuum

    def forward(self, statements: Tensor) -> Verdict:
        told = dict(zip(CHANNELS, statements.unbind(1), strict=True))
        by_vacuum, by_lattice = ((told[name] - told["own"]) * told["valid"] for name in ("vacuum", "lattice"))
        said, pooled = self.unet(
            (_shown(told, by_vacuum, by_lattice) * told["valid"][:, None]).contiguous(memory_format=torch.channels_last)
        )
        belief = said[:, :3] + self.whole(pooled)[:, :, None, None]
        heard = [belief[:, i].masked_fill(told[name] == 0, -torch.inf) for i, name in ((1, "has vacuum"), (2, "has lattice"))]
        share = torch.softmax(torch.stack([belief[:, 0], *heard], 1), 1)
        correction = share[:, 1] * by_vacuum + share[:, 2] * by_lattice
        smooth = functional.conv2d(functional.pad(correction[:, None], (1, 1, 1, 1), "replicate"), blur(correction))[:, 0]
        correction = smooth * told["valid"]
        offers = torch.stack([torch.zeros_like(correction), by_vacuum, by_lattice], 1)
        spreads = torch.stack([told["log error"].exp(), told["vacuum spread"].square(), told["lattice spread"].square()], 1)
        disputed = (share * ((offers - correction[:, None]).square() + spreads)).sum(1).clamp(min=1e-14).sqrt()
        return Verdict(correction, said[:, 3] - 8, disputed, self.left(pooled.detach())[:, 0] - 5)


def _shown(told: dict[str, Tensor], by_vacuum: Tensor, by_lattice: Tensor) -> Tensor:
    """(n, _SHOWN, rows, columns): differences magnified, spreads as logarithms."""
    own, apart, texture = told["own"], told["apart"], told["texture"]
    low = own.masked_fill(told["valid"] == 0, torch.inf).amin((1, 2))[:, None, None]
    differences = [told["mean"] - own, by_vacuum, by_lattice, by_lattice - by_vacuum, told["left over"], told["word"] - own]
    magnified = [torch.asinh(scale * part) / by for part in differences for scale, by in ((10, 3), (100, 6), (1000, 9))]
    magnified += [torch.asinh(100 * apart) / 6, torch.asinh(1000 * apart) / 9]
    magnified += [torch.asinh(100 * texture) / 6, torch.asinh(10 * texture) / 3, torch.asinh(100 * told["step"]) / 6]
    surprised = torch.log1p(told["surprise"])
    spreads = [torch.log(told[name] + 1e-4) / 3 + 1.5 for name in ("vacuum spread", "lattice spread", "strength", "misfit")]
    plain = [told[name] for name in ("amplitude", "second amplitude", "seen", "has vacuum", "has lattice", "valid")]
    rest = [(own - low).clamp(-5, 5), torch.sigmoid(told["support"]), told["log error"] / 4 + 2]
    chosen = [torch.log1p(told["length"]) / 2, torch.log10(told["roughness"] + 1e-7) / 3 + 1]
    return torch.stack([*magnified, *spreads, *plain, *rest, surprised, *chosen], 1)
