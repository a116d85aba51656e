"""The frames that judge: fixed by their seeds, of particles and films that no training sees."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aet_stream.projection import Array
from aet_stream.training.dataset import Frame, Mixer, Recipe

SEED = 2_000_000
"""Trainings begin at small seeds, and judge themselves a million above: nothing is shared."""

PUBLISHED = Recipe(backgrounds=("gaussian",), noise=0.0, plain=True, sizes_px=(256,))
HARD = Recipe(backgrounds=("film",), noise=0.5, plain=True, sizes_px=(256,))
_MIXED = replace(HARD, backgrounds=("film", "gaussian"))


def _scaled(factor: float, offset: float = 0.0) -> Callable[[Frame], Frame]:
    """The same frame in other units. Its truth stays as it is: estimates are scaled back."""
    return lambda frame: replace(frame, raw=(frame.raw * np.float32(factor) + np.float32(offset)), unit=factor, offset=offset)


def _without_particle(frame: Frame) -> Frame:
    return replace(frame, raw=frame.raw - frame.clean, clean=np.zeros_like(frame.clean))


def _without_background(frame: Frame) -> Frame:
    return replace(frame, raw=frame.raw - frame.background, background=np.zeros_like(frame.background))


def _cut(height: int, width: int) -> Callable[[Frame], Frame]:
    def cut(frame: Frame) -> Frame:
        top, left = (len(frame.raw) - height) // 2, (len(frame.raw) - width) // 2
        window = np.s_[top : top + height, left : left + width]
        return replace(frame, raw=frame.raw[window], background=frame.background[window], clean=frame.clean[window])

    return cut


@dataclass(frozen=True, slots=True)
class JudgingSet:
    """A recipe and what is done to its frames."""

    recipe: Recipe
    what: str
    change: Callable[[Frame], Frame] | None = None
    share: float = 1.0
    """Part of the frames asked for; large frames take their time."""


SETS: dict[str, JudgingSet] = {
    "published": JudgingSet(PUBLISHED, "the setting of the 2019 publication: smooth random backgrounds, no noise"),
    "hard": JudgingSet(
        HARD, "films with edges, wedges, halos, speckle, pedestals, 8-100 % of the particle; half of them with Poisson noise"
    ),
    "unseen": JudgingSet(
        replace(HARD, backgrounds=("unseen",), kinds=("icosahedron",)), "a family of films and particles kept out of training"
    ),
    "0.020 nm": JudgingSet(replace(_MIXED, pixel_size_nm=0.020, atoms=5000), "0.020 nm a pixel: atoms far apart"),
    "0.025 nm": JudgingSet(replace(_MIXED, pixel_size_nm=0.025, atoms=5000), "0.025 nm a pixel"),
    "0.060 nm": JudgingSet(replace(_MIXED, pixel_size_nm=0.060, atoms=10000), "0.060 nm a pixel: columns not resolved"),
    "filled": JudgingSet(replace(_MIXED, fill=(1.1, 1.3)), "the particle fills the frame: no vacuum"),
    "1500 atoms": JudgingSet(replace(_MIXED, atoms=1500, pixel_size_nm=0.035), "a small particle at 0.035 nm a pixel"),
    "at the edge": JudgingSet(replace(_MIXED, room=0.45), "cut by the edge of the frame"),
    "empty": JudgingSet(_MIXED, "no particle", _without_particle),
    "clean": JudgingSet(HARD, "no background: what is clean should stay", _without_background),
    "128 px": JudgingSet(replace(_MIXED, sizes_px=(128,)), "small frames"),
    "512 px": JudgingSet(replace(_MIXED, sizes_px=(512,)), "large frames", share=0.5),
    "1024 px": JudgingSet(replace(_MIXED, sizes_px=(1024,)), "very large frames", share=0.25),
    "200 x 156": JudgingSet(_MIXED, "neither square nor even blocks", _cut(200, 156)),
    "offset 1e4": JudgingSet(_MIXED, "on a pedestal of 10,000 times the particle", _scaled(1.0, 1e4)),
    "scale 1e-4": JudgingSet(_MIXED, "in units of 1e-4", _scaled(1e-4)),
    "scale 1e5": JudgingSet(_MIXED, "in units of 1e5", _scaled(1e5)),
}


def frames(name: str, count: int, *, seed: int = SEED, each: int = 4) -> list[Frame]:
    """The first `count` frames of a set, about `each` of every particle."""
    chosen = SETS[name]
    count = max(4, round(count * chosen.share))
    seed += 1000 * list(SETS).index(name)
    mixer = Mixer(chosen.recipe, seed=seed, particles=max(2, count // each), views=3 * each // 4)
    samples = [mixer.sample(np.random.default_rng([seed, index])) for index in range(count)]
    return [chosen.change(sample) for sample in samples] if chosen.change else samples


@dataclass(frozen=True, slots=True)
class RealFrame:
    """A real projection, and what the particle's published atoms predict for it up to gain and offset."""

    raw: Array
    predicted: Array
    support: Array
    tilt_deg: float


def real_frames() -> list[RealFrame]:
    """Six real frames of a Pt-Ni particle, where AET_STREAM_TEST_DATA has them; else none. For judging only."""
    path = Path(os.environ.get("AET_STREAM_TEST_DATA", ""), "real-aet", "nipt_frames_dev.npz")
    if not os.environ.get("AET_STREAM_TEST_DATA") or not path.exists():
        return []
    with np.load(path) as file:
        parts = zip(file["frames_u8"], file["predicted_clean"], file["support"], file["tilt_deg"], strict=True)
        return [RealFrame(raw.astype(np.float32), predicted, support.astype(bool), float(tilt)) for raw, predicted, support, tilt in parts]
