"""The default network at work, on a grid of blocks: its own background, then the fusion with the other experts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from aet_stream.config import Denoise
from aet_stream.denoise import beside, coarse, detail, grid
from aet_stream.denoise.estimate import Beat, Estimate, Image
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.fusion.experts import NetworkOutput, continued
from aet_stream.denoise.fusion.gate import Fusion, Gate, rms
from aet_stream.denoise.gaussian_process import learned
from aet_stream.denoise.hardware import find_device, take_threads
from aet_stream.denoise.lanes import aside, in_lanes
from aet_stream.denoise.trust import WITHOUT_CARD
from aet_stream.denoise.unet_on_cpu import at_home
from aet_stream.denoise.weights_file import Card
from aet_stream.projection import Array

logger = logging.getLogger(__name__)

_THREADS = 1
"""Of one layer, which is over before a second one is awake: two took four times as long as one, and fifty times beside other work. What can
go on beside it has a lane of its own (lanes.py)."""


class CoarseGrid:
    """A network on at most 64 x 64 blocks, whatever the frame; splines through the means of the blocks draw the background."""

    precision = "float32"

    def __init__(self, model: nn.Module, card: Card, settings: Denoise, gate: Gate | None) -> None:
        self._device = find_device(settings.device)
        self._network = at_home(model, self._device)
        self._fusion = Fusion(gate, self._device) if gate and settings.fusion else None
        self.sha256 = card.sha256
        self.name = card.name if self._fusion or not gate else f"{card.name} without fusion"
        alone = card.trust_alone if gate else card.trust
        self.rule: Mapping[str, float] = (card.trust if self._fusion else alone) or WITHOUT_CARD

    @property
    def device(self) -> str:
        return str(self._device)

    def background(self, image: Image, beat: Beat) -> Estimate:
        take_threads(_THREADS)
        try:
            return self._estimate(image, beat)
        except torch.OutOfMemoryError as error:
            logger.error("out of GPU memory (%s): on the CPU from now on", str(error).splitlines()[0])
        self._device = torch.device("cpu")
        self._network = at_home(self._network, self._device)
        self._fusion = self._fusion and self._fusion.to(self._device)
        return self._estimate(image, beat)

    def support(self, image: Image) -> Array | None:
        take_threads(_THREADS)
        return self._found(image.blocks)[0].support

    def _estimate(self, image: Image, beat: Beat) -> Estimate:
        beat()
        blocks = image.blocks
        found, doubts = self._found(blocks)
        begun = aside(lambda: continued(blocks, found.support)) if self._fusion else None
        classical = image.classical  # after what takes longest: the lane that has time first does it
        output, drawn = self._drawn(found, image.shape, blocks)
        if self._fusion and begun and np.isfinite(drawn).all():
            beat()
            classical.do()
            correction, more = self._fusion.correction(image.pixels, blocks, output, drawn, begun)
            drawn = drawn + correction
            doubts |= more
        return Estimate(drawn, output.support > 0, {name: value * blocks.span for name, value in doubts.items()})

    def alone(self, blocks: Blocks, shape: tuple[int, int]) -> tuple[NetworkOutput, Array]:
        """The network's output, and the (height, width) background that it draws, before any fusion."""
        return self._drawn(self._found(blocks)[0], shape, blocks)

    def _found(self, blocks: Blocks) -> tuple[NetworkOutput, dict[str, float]]:
        """(what the network says, its doubts, normalised).

        It is asked twice, the second time with rows and columns exchanged: what the two answers do not share is its own error.
        """
        one, other = self.answers([blocks.statistics, blocks.statistics.transpose(0, 2, 1)])
        background, support, log_error, before_solve = ((a + b.T) / 2 for a, b in zip(one[0], other[0], strict=True))
        apart = np.abs(one[0][0] - other[0][0].T)
        doubts = {name: (value + other[1][name]) / 2 for name, value in one[1].items()}
        doubts |= {"views": rms(apart), "views_most": float(np.quantile(apart, 0.99))}
        films = beside.films(blocks, support > 0)
        support = np.where(films, -np.abs(support), support)
        return NetworkOutput(background, support, log_error, apart, before_solve, bool(films.any())), doubts

    def _drawn(self, found: NetworkOutput, shape: tuple[int, int], blocks: Blocks) -> tuple[NetworkOutput, Array]:
        """That with what the vacuum still shows, and its (height, width) background in counts."""
        noise = np.square(blocks.statistics[4] / blocks.block_px)
        more = detail.of_vacuum(blocks.statistics[0] - found.background, found.support <= 0, noise)
        output = replace(found, background=found.background + more)
        return output, grid.draw_means(output.background * blocks.span + blocks.low, blocks.block_px, shape)

    def answers(self, views: list[Array]) -> list[tuple[list[Array], dict[str, float]]]:
        """Of each view, (statistics, rows, columns): see `_infer`; grids of any size."""
        shapes = [view.shape[1:] for view in views]
        if len(set(shapes)) > 1:
            return [answer for answers in in_lanes([partial(self.answers, [view]) for view in views]) for answer in answers]
        rows, columns = shapes[0]
        padding = [(0, 0), (0, -rows % coarse.MULTIPLE), (0, -columns % coarse.MULTIPLE)]
        statistics = np.stack([np.pad(view, padding, mode="edge") for view in views])
        answers = self._infer(statistics, (rows, columns))
        return [([surface[:rows, :columns] for surface in surfaces], doubts) for surfaces, doubts in answers]

    def _infer(self, statistics: Array, frame: tuple[int, int]) -> list[tuple[list[Array], dict[str, float]]]:
        """Of each of n views, of which so many rows and columns are in the frame: ((rows, columns) background, logit of the support, log
        variance of the error and background before the solve; doubts), normalised. Asked together they take less time on a GPU.

        Doubts, over the frame: the error that the network expects (`network`, root mean square; `network_mostly`, geometric mean); how far
        its two stages are apart (`stages`, and `stages_most`, where they are farthest), and how far under the particle the last solve moved
        the background (`own`); of the solves, what the spectrum allows (`prior`), what the observations leave open (`posterior`), and how
        little the first one was given (`blind`).
        """
        with torch.inference_mode():
            shown = torch.from_numpy(np.ascontiguousarray(statistics)).to(self._device)
            there = torch.zeros_like(shown[:, 0])
            there[:, : frame[0], : frame[1]] = 1
            first, last = self._network(shown, there)
            prior, posterior = learned.spread(last.factor, last.log_spectrum, (there.shape[1], there.shape[2]), frame)
            surfaces = torch.stack([last.background, last.support, last.log_error, last.before_solve], 1).cpu().numpy()
            doubts = [
                {**_doubts(first, last, view, there[view] > 0), "prior": prior[view], "posterior": posterior[view]}
                for view in range(len(shown))
            ]
            figures = torch.stack([torch.stack([value.double() for value in each.values()]) for each in doubts]).cpu().numpy()
        return [(list(surface), dict(zip(doubts[0], map(float, row), strict=True))) for surface, row in zip(surfaces, figures, strict=True)]


def _doubts(first: coarse.StageOutput, last: coarse.StageOutput, view: int, there: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one view, over the blocks that are in the frame."""
    background, support, log_error = (part[view][there] for part in (last.background, last.support, last.log_error))
    apart, own = background - first.background[view][there], last.before_solve[view][there] - background
    return {
        "network": log_error.exp().mean().sqrt(),
        "network_mostly": (log_error.mean() / 2).exp(),
        "stages": apart.square().mean().sqrt(),
        "stages_most": coarse.quantile(apart.abs()[None], 0.99)[0],
        "own": (own * torch.sigmoid(support).sqrt()).square().mean().sqrt(),
        "blind": (-(first.weight[view][there] + 1e-9).log().mean() / 2).exp(),
    }
