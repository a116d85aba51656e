"""Fine-tuning on one's own microscope: what real vacuum looks like, learned from stored series, and promoted only if it helps.

A real projection shows its background wherever there is vacuum. A simulated particle is laid over it there: the truth below is known, as it
was seen. The real particle stays in the frame, and nothing is asked about what lies under it. Simulated frames are mixed in, so that
nothing is forgotten. Every fifth projection is held out; the new network must be better on those, and no worse on fixed simulated frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from scipy.ndimage import binary_dilation

from aet_stream.denoise import grid
from aet_stream.denoise.architectures import architecture, save_weights
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.features import describe
from aet_stream.denoise.weights_file import Card, find_weights, load_card, load_tensors, parts
from aet_stream.errors import ModelError
from aet_stream.projection import Array
from aet_stream.series import Series
from aet_stream.training.batches import CoarseBatch, CoarseBatches, coarse_batch, on_device, stacked
from aet_stream.training.calibrate import calibrate
from aet_stream.training.dataset import LEARNT, Frame, Mixer, Pool, Recipe
from aet_stream.training.judge import Judge
from aet_stream.training.learning import Training
from aet_stream.training.losses import mean_square_error
from aet_stream.training.preset import Preset, by_names_of_today

logger = logging.getLogger(__name__)

STEPS = 300
LEARNING_RATE = 1e-4
BATCH = 8
LAID_OVER = 12
"""Particles, of which one lies over each real frame."""
SIMULATED = 60
"""Particles of the simulated frames between them."""
_MIN_VACUUM = 0.1
_TOLERANCE_DB = 0.1
"""The mean on simulated frames may fall by this much."""
_HELD_OUT = 5
_FEWEST = 6
"""Projections, over all series given."""
_SAY_EVERY = 25


@dataclass(frozen=True, slots=True)
class RealVacuum:
    """A real projection and where its background is seen."""

    raw: Array
    """(height, width) float32, counts less the first pixel"""
    vacuum: Array
    """(rows, columns) bool on the grid of features.Blocks"""
    range: float
    """Range of the particle in it, counts"""


def finetune(model: str, series: Sequence[Path], out: Path, *, steps: int = STEPS, seed: int = 0) -> Path:
    """Train a shipped or own network further on the vacuum of stored series; returns the path of the new weights.

    Raises
    ------
    ModelError : the network does not work on blocks, the series show too little vacuum, or the result is not better (with the figures)
    """
    source = find_weights(model, setting="--from", others=())
    card = load_card(source)
    if architecture(card.architecture).learns_from != "blocks":
        raise ModelError(f"{source}: only networks on blocks can be fine-tuned, this one is a {card.architecture}")
    preset = msgspec.structs.replace(preset_of(card), learning_rate=LEARNING_RATE, steps=steps, warm_up=20, decay=0.5, average=0.99)
    series = list(dict.fromkeys(path.resolve() for path in series))
    real = [frame for path in series for frame in read_vacuum(path, Denoiser(model=str(source)))]
    held_out, learned = real[::_HELD_OUT], [frame for i, frame in enumerate(real) if i % _HELD_OUT]
    if len(real) < _FEWEST:
        raise ModelError(f"{len(real)} projections with vacuum in {len(series)} series: too few, at least {_FEWEST} are needed")
    training = Training(preset, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    network, gate = parts(load_tensors(source))
    training.model.load_state_dict(network)
    training.average.load_state_dict(training.model.state_dict())
    particles = Pool(Recipe(kinds=LEARNT, plain=True, sizes_px=(256,)), seed=seed + 11, particles=LAID_OVER, views=4)
    simulated = CoarseBatches(Mixer(preset.recipe, seed=seed + 13, particles=SIMULATED, views=4), seed=seed + 17, batch=BATCH)
    judge, exam = Judge.of(preset), real_batch(held_out, particles, np.random.default_rng(seed + 19))
    before = marks(training, judge, exam)
    logger.info("%d real projections to learn from, %d held out; before: %s", len(learned), len(held_out), before)
    for step in range(steps):
        rng = np.random.default_rng([seed + 23, step])
        chosen = [learned[i] for i in rng.integers(len(learned), size=BATCH)]
        loss = training.one_step(real_batch(chosen, particles, rng) if step % 2 else simulated[step])
        if step % _SAY_EVERY == 0:
            logger.info("step %d of %d, loss %.3f", step, steps, loss)
        if not loss.isfinite():
            logger.warning("step %d was left out: its gradient was not finite", step)
    after = marks(training, judge, exam)
    _refuse_if_worse(before, after)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{card.name}-tuned.safetensors"
    trained = {**card.trained, "from": card.sha256, "series": [str(p) for p in series], "tuning_steps": steps}
    tuned = msgspec.structs.replace(card, name=f"{card.name}-tuned", trained=trained, figures=after)
    save_weights(path, training.average.state_dict(), tuned, gate)
    calibrate(path, frames=preset.calibration_frames)
    logger.info("promoted: %s -> %s", before, after)
    return path


def preset_of(card: Card) -> Preset:
    """What the network was made with.

    Raises
    ------
    ModelError : its card does not say
    """
    try:
        return msgspec.convert(by_names_of_today(card.trained.get("preset", {})), Preset)
    except msgspec.ValidationError as error:
        raise ModelError(f"{card.name}: its card has no usable trained.preset ({error}); fine-tune one that `train` has made") from error


def read_vacuum(path: Path, denoiser: Denoiser) -> list[RealVacuum]:
    """The projections of a series that count, that show enough vacuum, by the network's own idea of the particle."""
    frames = []
    with Series(path) as series:
        for row in np.flatnonzero(series.counting).tolist():
            pixels = series.raw(row)
            if pixels.max() == pixels.min():
                continue
            raw = (pixels.astype(np.float64) - float(pixels.flat[0])).astype(np.float32)
            estimate, image = denoiser.estimate(raw)
            if estimate.support is None:
                continue
            vacuum = ~binary_dilation(estimate.support, iterations=2)
            if vacuum.mean() >= _MIN_VACUUM:
                clean = grid.means(grid.in_blocks(raw - estimate.background, image.blocks.block_px))
                frames.append(RealVacuum(raw, vacuum, float(np.ptp(clean))))
    return frames


def real_batch(frames: Sequence[RealVacuum], particles: Pool, rng: np.random.Generator) -> CoarseBatch:
    """Each real frame with a simulated particle somewhere in its vacuum; the truth is known wherever vacuum was."""
    return stacked([_laid_over(frame, particles.draw(rng)[1], rng) for frame in frames])


def _laid_over(frame: RealVacuum, particle: Array, rng: np.random.Generator) -> CoarseBatch:
    height, width = frame.raw.shape
    block = describe(frame.raw).block_px
    rows, columns = np.nonzero(frame.vacuum)
    pick = rng.integers(len(rows))
    top, left = rows[pick] * block - len(particle) // 2, columns[pick] * block - len(particle) // 2
    clean = np.zeros_like(frame.raw)
    inside = np.s_[max(0, top) : min(height, top + len(particle)), max(0, left) : min(width, left + len(particle))]
    clean[inside] = particle[inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left]
    clean *= np.float32(rng.uniform(0.3, 1.0))
    sample = Frame(raw=frame.raw / np.float32(frame.range) + clean, background=frame.raw / np.float32(frame.range), clean=clean)
    return coarse_batch([sample], known=[frame.vacuum])


def marks(training: Training, judge: Judge, exam: CoarseBatch) -> dict[str, float]:
    """What the network reaches now: by the judge, and its loss on the exam."""
    figures = judge(training.average, training.device)
    exam = on_device(exam, training.device)
    with torch.no_grad():
        errors = mean_square_error(training.average.eval()(exam.statistics, exam.valid)[-1].background, exam, exam.known)
    return figures | {"real_vacuum_db": round(float((-10 * torch.log10(errors + 1e-12)).mean()), 2)}


def _refuse_if_worse(before: dict[str, float], after: dict[str, float]) -> None:
    worse = [name for name in before if name.endswith("mean_db") and not after[name] >= before[name] - _TOLERANCE_DB]  # NaN is worse
    if not after["real_vacuum_db"] > before["real_vacuum_db"]:
        worse.append("real_vacuum_db")
    if worse:
        figures = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before)
        raise ModelError(f"not promoted, {' and '.join(worse)} did not hold: {figures}; keep the network you have")
