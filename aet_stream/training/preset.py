"""A training run in one TOML file: what is trained, on what, and how long."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from aet_stream.errors import ConfigError
from aet_stream.training.dataset import Recipe

_FOLDER = Path(__file__).parent / "presets"

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class RefereePreset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the referee is trained, once its network is: on particles that the network has never seen."""

    particles: Positive
    views: Positive
    frames: Positive
    """Heard once, and learned from in all their turns and flips."""
    plain: Share
    """Of the frames: one particle wholly in a frame of 256 px, its background not amplified."""
    batch: Positive
    steps: Positive
    learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    weight_decay: Annotated[float, msgspec.Meta(ge=0)]
    average: Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every key of a preset; the shipped ones say what each is for."""

    name: str
    network: Literal["coarse", "dncnn"]
    seed: Count
    particles: Positive
    views: Positive
    backgrounds: list[str]
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
    referee: RefereePreset | None = None
    """Without: the network alone."""

    @property
    def recipe(self) -> Recipe:
        recipe = Recipe(self.backgrounds, self.amplify, self.noise, self.plain, atoms=self.atoms)
        return replace(recipe, sizes_px=(256,)) if self.plain else recipe


def load_preset(name: str) -> Preset:
    """A shipped preset by name, or one from a TOML file.

    Raises
    ------
    ConfigError : there is none, or it is wrong
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Preset)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
        raise ConfigError(f"no preset {name!r}: choose {known}, or give a .toml file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


def learning_rate(step: int, preset: Preset) -> float:
    """The rate at a step: a warm-up, a plateau, and a straight line down to nothing at the end."""
    up = (step + 1) / preset.warm_up if preset.warm_up else 1.0
    down = (preset.steps - step) / (preset.decay * preset.steps) if preset.decay else 1.0
    return preset.learning_rate * min(1.0, up, down)
