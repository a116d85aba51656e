"""The heavy steps that the trigger takes: how each is started, what it needs of its series' folder, and what it leaves there.

Who starts them on another computer (helper.py) starts the same commands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aet_stream import lifeline
from aet_stream.config import Config
from aet_stream.naming import ATOMS_FILE, FILM_FILE, SERIES_FILE, VOLUME_FILE
from aet_stream.status import StepName

FIRST_EDITION = "editions/01.h5"


@dataclass(frozen=True, slots=True)
class Step:
    """One of them."""

    words: Callable[[Config], list[str]]
    """Of its command, behind the file that it is about."""
    needs: tuple[str, ...]
    """Files of the series' folder without which it cannot be done."""
    makes: tuple[str, ...]
    """The files that it leaves, the one by which it knows that it is done first."""
    alone: tuple[str, ...]
    """More words where no hub takes over what is made."""
    uses: tuple[str, ...] = ()
    """Files that are needed if they are there."""
    about: str = SERIES_FILE
    last: bool = True
    """After everything else there is to do: one thread, also of the libraries that numpy brings."""

    def command(self, config: Config, folder: Path, *more: str) -> list[str]:
        """How it is started upon the series in this folder, as a process that ends with this one."""
        return lifeline.command("aet_stream", self.name, str(folder / self.about), "--supervised", *self.words(config), *more)

    @property
    def name(self) -> str:
        return next(name for name, step in STEPS.items() if step is self)

    @property
    def environment(self) -> dict[str, str] | None:
        """None: that of its parent."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if self.last else None


def _reconstruct(config: Config) -> list[str]:
    settings = config.reconstruct
    words = ["--method", settings.method, "--iterations", str(settings.iterations), "--align", ",".join(settings.align)]
    words += ["--threads", str(settings.threads), "--memory", str(settings.memory_mib), "--device", settings.device]
    words += ["--silence", str(settings.silence_s)]
    words += [] if settings.quality else ["--no-quality"]
    return words if settings.weighted else [*words, "--unweighted"]


def _film(config: Config) -> list[str]:
    return [f"--set={table}.{key}={json.dumps(value)}" for table in ("film", "denoise") for key, value in _values(config, table).items()]


def _values(config: Config, table: str) -> dict[str, Any]:
    """Of one table of the settings, in what JSON and TOML have in common."""
    values: dict[str, Any] = msgspec.to_builtins(getattr(config, table))
    return values


def atoms_pixel(config: Config) -> list[str]:
    return ["--pixel-angstrom", str(config.atoms.pixel_angstrom)] if config.atoms.pixel_angstrom else []


def _atoms(config: Config) -> list[str]:
    settings = config.atoms
    return [
        *atoms_pixel(config),
        "--elements",
        ",".join(settings.elements),
        "--kinds",
        str(settings.kinds),
        "--threads",
        str(settings.threads),
    ]


STEPS: dict[StepName, Step] = {
    "film": Step(_film, (SERIES_FILE,), ("editions/made_*.h5", FILM_FILE), ("--keep",), (FILM_FILE, FIRST_EDITION)),
    "reconstruct": Step(_reconstruct, (SERIES_FILE,), (VOLUME_FILE, "reconstruction.png"), (), last=False),
    "atoms": Step(_atoms, (VOLUME_FILE, SERIES_FILE), (ATOMS_FILE, "atoms.xyz", "atoms.png"), (), about=VOLUME_FILE),
}
"""By the name of their command, which is that of their sink and of their table in the settings."""


def shared(config: Config) -> Config:
    """Of all settings, those that a helper is told."""
    return Config(denoise=config.denoise, film=config.film, reconstruct=config.reconstruct, atoms=config.atoms)


def as_told(theirs: Config, own: Config) -> Config:
    """How a helper works: what results depend on is said there; devices, threads, memory, and where the weights lie, here."""
    mine, replace = own.reconstruct, msgspec.structs.replace
    model = theirs.denoise.model if own.denoise.model == Config().denoise.model else own.denoise.model
    denoise = replace(own.denoise, model=model, precision=theirs.denoise.precision, fusion=theirs.denoise.fusion)
    volume = replace(theirs.reconstruct, device=mine.device, threads=mine.threads, memory_mib=mine.memory_mib)
    return replace(theirs, denoise=denoise, reconstruct=volume, atoms=replace(theirs.atoms, threads=own.atoms.threads))
