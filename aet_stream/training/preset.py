"""A training run in one TOML file: what is trained, on what, and how long."""

from __future__ import annotations

import logging
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from aet_stream.denoise.architectures import ARCHITECTURES
from aet_stream.errors import ConfigError
from aet_stream.simulate.backgrounds import KINDS
from aet_stream.simulate.particle import FEWEST_ATOMS, HABITS
from aet_stream.simulate.particle import KINDS as PARTICLES
from aet_stream.training.dataset import LEARNT, Recipe

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "presets"

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class GatePreset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the gate is trained, once its network is: on particles that the network has never seen."""

    particles: Positive
    views: Positive
    frames: Positive
    """Given to network and experts once, and learned from in all their turns and flips."""
    plain: Share
    """Of the frames: one particle wholly in a frame of 256 px, its background not amplified."""
    batch: Positive
    steps: Positive
    learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    weight_decay: Annotated[float, msgspec.Meta(ge=0)]
    average: Annotated[float, msgspec.Meta(ge=0, lt=1)]

    def __post_init__(self) -> None:
        _refuse_infinite(self)


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every key of a preset; the shipped ones say what each is for."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[^/.][^/]*$")]
    """Of the weights file."""
    network: str
    """A kind of denoise/architectures.py."""
    seed: Count
    particles: Positive
    views: Positive
    backgrounds: Annotated[list[str], msgspec.Meta(min_length=1)]
    amplify: Annotated[float, msgspec.Meta(ge=1)]
    noise: Share
    plain: bool
    batch: Positive
    steps: Positive
    learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    warm_up: Count
    decay: Share
    weight_decay: Annotated[float, msgspec.Meta(ge=0)]
    average: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    """The shipped weights are a running mean with this memory; 0: the last weights."""
    bfloat16: bool
    """May inference use bfloat16?"""
    judging_frames: Positive
    """How many frames of every set judge the run on its way."""
    calibration_frames: Positive
    """On how many the expected error is calibrated at its end."""
    atoms: Count = 0
    """About how many a particle has; 0: 1,000 to 50,000."""
    held_out: Count = 0
    """Views of one particle that are judged by, as the publication did; 0: only other particles judge."""
    patch_px: Count = 0
    patches_per_frame: Positive = 1
    gate: GatePreset | None = None
    """Without: the network alone."""
    start: str = ""
    """A network, by name or path, whose weights (and gate) are the first ones; "": weights at random."""
    habits: list[str] = []
    """Kinds of particle to learn from; none: those of dataset.LEARNT."""

    def __post_init__(self) -> None:
        """What no key alone can tell.

        Raises
        ------
        ValueError : such a run cannot work; while a file is read msgspec makes a ValidationError of it
        """
        _refuse_infinite(self)
        largest_px, kind = min(self.recipe.sizes_px), ARCHITECTURES.get(self.network)
        in_patches = kind is not None and kind.learns_from == "patches"
        for wrong, remedy in (
            (kind is None, f"network: choose from {', '.join(ARCHITECTURES)}"),
            (not set(self.backgrounds) <= set(KINDS), f"backgrounds: choose from {', '.join(KINDS)}"),
            (not set(self.habits) <= set(PARTICLES + HABITS), f"habits: choose from {', '.join(PARTICLES + HABITS)}"),
            (0 < self.atoms < FEWEST_ATOMS, f"atoms: 0, or {FEWEST_ATOMS} and more"),
            (self.held_out >= self.particles * self.views, "held_out: fewer than particles * views, or nothing is left to learn from"),
            (in_patches and not 3 <= self.patch_px <= largest_px, f"patch_px: 3 to {largest_px} for a {self.network}"),
            (in_patches and self.gate is not None, f"gate: a {self.network} has none, leave the table out"),
        ):
            if wrong:
                raise ValueError(f"{remedy} (it is {getattr(self, remedy.partition(':')[0])!r})")

    @property
    def recipe(self) -> Recipe:
        recipe = Recipe(self.backgrounds, self.amplify, self.noise, self.plain, kinds=self.habits or LEARNT, atoms=self.atoms)
        return replace(recipe, sizes_px=(256,)) if self.plain else recipe


def _refuse_infinite(preset: msgspec.Struct) -> None:
    for name, value in msgspec.structs.asdict(preset).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: a finite number is needed (it is {value})")


def load_preset(name: str) -> Preset:
    """A shipped preset by name, or one from a TOML file.

    Raises
    ------
    ConfigError : there is none, or it is wrong
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    try:
        return msgspec.convert(by_names_of_today(tomllib.loads(path.read_text(encoding="utf-8"))), Preset)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
        raise ConfigError(f"no preset {name!r}: choose {known}, or give a .toml file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


def by_names_of_today(preset: dict[str, Any]) -> dict[str, Any]:
    """The gate was called `referee` once: in presets, checkpoints and cards."""
    if "referee" not in preset:
        return preset
    logger.info("preset %s: its `referee` is called `gate` now", preset.get("name"))
    return {"gate" if key == "referee" else key: value for key, value in preset.items()}


def learning_rate(step: int, preset: Preset) -> float:
    """The rate at a step: a warm-up, a plateau, and a straight line down to nothing at the end."""
    up = (step + 1) / preset.warm_up if preset.warm_up else 1.0
    down = (preset.steps - step) / (preset.decay * preset.steps) if preset.decay else 1.0
    return preset.learning_rate * min(1.0, up, down)
