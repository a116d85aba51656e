"""The default network at work, on a grid of blocks: its word, the opinions of vacuum and lattice, and the referee's verdict."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from aet_stream.denoise import coarse, detail, grid
from aet_stream.denoise.classical import Vacuum
from aet_stream.denoise.estimate import Beat, Estimate
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.fusion import experts as opinions
from aet_stream.denoise.fusion import gate as referee
from aet_stream.denoise.fusion.gate import Word
from aet_stream.denoise.fusion.kriging import SPACING, pooled
from aet_stream.denoise.hardware import find_device, take_threads
from aet_stream.denoise.weights_file import Card, load_tensors, loaded, made, parts
from aet_stream.projection import Array

logger = logging.getLogger(__name__)


class OnBlocks:
    """The default network: a grid of at most 64 x 64 blocks, whatever the frame; splines through the block centres draw the background."""

    precision = "float32"

    def __init__(self, path: Path, card: Card, *, device: str, threads: int) -> None:
        # Its layers are over before a second thread is awake: two took four times as long as one, and fifty times beside other work.
        self._threads = threads or 1
        self.card, self.name, self.sha256 = card, card.name, card.sha256
        self._device = find_device(device)
        of_network, of_referee = parts(load_tensors(path))
        self._network = loaded(made(coarse.Coarse, card, path), of_network, path).to(self._device)
        self._referee = loaded(referee.Referee(), of_referee, path).to(self._device) if of_referee else None

    @property
    def device(self) -> str:
        return str(self._device)

    def background(self, frame: Array, blocks: Blocks, vacuum: Vacuum, beat: Beat) -> Estimate:
        take_threads(self._threads)
        try:
            return self._found(frame, blocks, beat)
        except torch.OutOfMemoryError as error:
            logger.error("out of GPU memory (%s): on the CPU from now on", str(error).splitlines()[0])
        self._device = torch.device("cpu")
        self._network = self._network.to(self._device)
        self._referee = self._referee and self._referee.to(self._device)
        return self._found(frame, blocks, beat)

    def _found(self, frame: Array, blocks: Blocks, beat: Beat) -> Estimate:
        beat()
        word, drawn, doubts = self.word(frame, blocks)
        if self._referee is not None and np.isfinite(drawn).all():
            beat()
            correction, more = self._judged(told(frame, blocks, word, drawn), pooled(word.support > 0))
            shape = (frame.shape[0], frame.shape[1])
            drawn = drawn + grid.draw_means(correction * blocks.span, SPACING * blocks.block_px, shape)
            doubts |= more
        return Estimate(drawn, support=word.support > 0, doubts={name: value * blocks.span for name, value in doubts.items()})

    def word(self, frame: Array, blocks: Blocks) -> tuple[Word, Array, dict[str, float]]:
        """The network's word, the (height, width) background that it draws, and its doubts (normalised); no referee was heard.

        It is asked twice, the second time with rows and columns exchanged: what the two answers do not share is the network's own error.
        """
        one, other = self._said([blocks.statistics, blocks.statistics.transpose(0, 2, 1)])
        background, support, log_error, own = ((a + b.T) / 2 for a, b in zip(one[0], other[0], strict=True))
        apart = np.abs(one[0][0] - other[0][0].T)
        doubts = {name: (value + other[1][name]) / 2 for name, value in one[1].items()}
        doubts |= {"views": _rms(apart), "views_most": float(np.quantile(apart, 0.99))}
        noise = np.square(blocks.statistics[4] / blocks.block_px)
        background = background + detail.of_vacuum(blocks.statistics[0] - background, support <= 0, noise)
        drawn = grid.draw_means(background * blocks.span + blocks.low, blocks.block_px, (frame.shape[0], frame.shape[1]))
        return Word(background, support, log_error, apart, own), drawn, doubts

    def _judged(self, statement: Array, share: Array) -> tuple[Array, dict[str, float]]:
        """((rows, columns) correction on the grid of opinions; doubts), normalised, both views alike.

        Doubts: the error that the referee expects (`referee`, root mean square; `referee_mostly`, geometric mean; `referee_whole`, of the
        frame at once); how far those whom it believes are apart, and how sure (`disputed`); how far it moved the background (`moved`), and
        how far the vacuum would have had it moved (`vacuum_says`).
        """
        assert self._referee is not None
        rows, columns = share.shape
        with torch.inference_mode():
            views = np.stack([statement, statement.transpose(0, 2, 1)])  # both are EDGE x EDGE
            verdict = self._referee(torch.from_numpy(views).to(self._device))
            one, other = ([part[view].cpu().numpy() for part in verdict] for view in range(2))
        correction, log_error, disputed = (((a + b.T) / 2)[:rows, :columns] for a, b in zip(one[:3], other[:3], strict=True))
        correction = correction * share  # of each point that is particle: where vacuum is seen, nothing is corrected
        own, by_vacuum = (statement[referee.CHANNELS.index(name), :rows, :columns] for name in ("own", "vacuum"))
        doubts = {
            "referee": _rms(np.exp(log_error / 2)),
            "referee_mostly": float(np.exp(log_error.mean() / 2)),
            "referee_whole": float(np.exp((one[3] + other[3]) / 2)),
            "disputed": _rms(disputed),
            "moved": _rms(correction),
            "vacuum_says": _rms(by_vacuum - own),
        }
        return correction, doubts

    def _said(self, views: list[Array]) -> list[tuple[list[Array], dict[str, float]]]:
        """See `_infer`, of grids of any size."""
        shapes = [view.shape[1:] for view in views]
        if len(set(shapes)) > 1:
            return [self._said([view])[0] for view in views]
        rows, columns = shapes[0]
        padding = [(0, 0), (0, -rows % coarse.MULTIPLE), (0, -columns % coarse.MULTIPLE)]
        statistics = np.stack([np.pad(view, padding, mode="edge") for view in views])
        valid = np.pad(np.ones((len(views), rows, columns), np.float32), padding)
        return [([surface[:rows, :columns] for surface in surfaces], doubts) for surfaces, doubts in self._infer(statistics, valid)]

    def _infer(self, statistics: Array, valid: Array) -> list[tuple[list[Array], dict[str, float]]]:
        """Of each of n views: ((rows, columns) background, logit of the support, log variance of the error and word before the solve;
        doubts), normalised. Asked together they take less time.

        Doubts, over the frame: the error that the network expects (`network`, root mean square; `network_mostly`, geometric mean); how far
        its two stages are apart (`stages`, and `stages_most`, where they are farthest), and its own word from the solve
        under the particle (`own`); of the solves, what the spectrum allows (`prior`), what the observations leave open (`posterior`), and
        how little the first one was told (`blind`).
        """
        with torch.inference_mode():
            shown, there = (torch.from_numpy(np.ascontiguousarray(part)).to(self._device) for part in (statistics, valid))
            first, last = self._network(shown, there)
            prior, posterior = coarse.spread(last, there)
            surfaces = torch.stack([last.background, last.support, last.log_error, last.own], 1).cpu().numpy()
            doubts = [
                {**_doubts(first, last, view, there[view] > 0), "prior": prior[view], "posterior": posterior[view]}
                for view in range(len(shown))
            ]
            figures = torch.stack([torch.stack([value.double() for value in each.values()]) for each in doubts]).cpu().numpy()
        return [(list(surface), dict(zip(doubts[0], map(float, row), strict=True))) for surface, row in zip(surfaces, figures, strict=True)]


def _doubts(first: coarse.Said, last: coarse.Said, view: int, there: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one view, over the blocks that are in the frame."""
    background, support, log_error = (part[view][there] for part in (last.background, last.support, last.log_error))
    apart, own = background - first.background[view][there], last.own[view][there] - background
    return {
        "network": log_error.exp().mean().sqrt(),
        "network_mostly": (log_error.mean() / 2).exp(),
        "stages": apart.square().mean().sqrt(),
        "stages_most": torch.quantile(apart.abs(), 0.99),
        "own": (own * torch.sigmoid(support).sqrt()).square().mean().sqrt(),
        "blind": (-(first.weight[view][there] + 1e-9).log().mean() / 2).exp(),
    }


def _rms(surface: Array) -> float:
    return float(np.sqrt(np.mean(np.square(surface))))


def told(frame: Array, blocks: Blocks, word: Word, drawn: Array) -> Array:
    """The statement of a frame (referee.py), once the network has had its word and vacuum and lattice were asked for their opinions."""
    return referee.statement(blocks, word, opinions.ask(frame, blocks, word.background, drawn, word.support))
