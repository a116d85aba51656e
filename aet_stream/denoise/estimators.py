"""The estimators by the names that `denoise.model` knows. A new one is one file and one line of CLASSICAL; a new kind of network is one
file and one line of architectures.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from aet_stream.config import Denoise
from aet_stream.denoise import classical, expert, grid
from aet_stream.denoise.estimate import Beat, Estimate, Estimator, Image
from aet_stream.denoise.trust import WITHOUT_CARD
from aet_stream.denoise.vacuum import Vacuum
from aet_stream.denoise.weights_file import find_weights, load_card
from aet_stream.projection import Array


class Classical:
    """An estimator without weights."""

    device, precision = "cpu", "float32"

    def __init__(self, name: str, draw: Callable[[Image], Array], rule: Mapping[str, float] = WITHOUT_CARD) -> None:
        """`draw`: the (height, width) background of an image; `rule`: for its expected error, fitted by training/calibrate.py."""
        self.name, self._draw, self.rule = name, draw, rule

    @cached_property
    def sha256(self) -> str:
        """Of its name and all code of this room."""
        code = sorted(Path(__file__).parent.rglob("*.py"))
        return hashlib.sha256(b"".join([self.name.encode(), *(path.read_bytes() for path in code)])).hexdigest()

    def background(self, image: Image, beat: Beat) -> Estimate:
        return Estimate(self._draw(image))

    def support(self, image: Image) -> Array | None:
        return None


def _on_vacuum(surface: Callable[[Vacuum], Array]) -> Callable[[Image], Array]:
    """Draws a surface that is given at block centres."""
    return lambda image: grid.draw(surface(image.vacuum), image.vacuum.block_px, image.shape)


_ALL = (
    Classical("constant", _on_vacuum(classical.constant),
              {"intercept": -0.270, "gp": 0.797, "laplace": -0.040, "edge": 0.974, "vacuum": -0.137}),
    Classical("polynomial", _on_vacuum(classical.polynomial),
              {"intercept": -0.257, "gp": 0.437, "laplace": 0.219, "background": 0.070, "edge": 0.847, "vacuum": -0.252}),
    Classical("laplace", _on_vacuum(classical.laplace),
              {"intercept": -0.187, "gp": 0.600, "background": 0.132, "edge": 1.047, "vacuum": -0.403}),
    Classical("expert", expert.background,
              {"intercept": -0.028, "gp": 0.675, "laplace": 0.106, "background": 0.193, "edge": 0.050, "vacuum": -0.031}),
    Classical("gaussian-process", _on_vacuum(classical.gaussian_process),
              {"intercept": -0.110, "laplace": 0.815, "background": -0.019, "edge": 1.159, "vacuum": -0.346}),
)  # fmt: skip
CLASSICAL = {estimator.name: estimator for estimator in _ALL}
FALLBACK = CLASSICAL["gaussian-process"]
"""Stands in for a network whose answer is no number."""


def model_sha256(model: str) -> str:
    """What `find_estimator` would work with, by its hash; found without torch.

    Raises
    ------
    ModelError : there is none of that name, or its file or card is not what it should be
    """
    return named(Denoise(model=model))[1]


def named(settings: Denoise) -> tuple[str, str]:
    """(name, sha256) of what `find_estimator` would find; with fusion without torch, and a second sooner.

    Raises
    ------
    ModelError : there is none of that name, or its file or card is not what it should be
    """
    if settings.model in CLASSICAL or not settings.fusion:
        estimator = find_estimator(msgspec.structs.replace(settings, device="cpu"))
        return estimator.name, estimator.sha256
    card = load_card(find_weights(settings.model, others=tuple(CLASSICAL)))
    return card.name, card.sha256


def find_estimator(settings: Denoise) -> Estimator:
    """The estimator that settings name, ready to work.

    Raises
    ------
    ModelError : there is none of that name, or its file, card or device is not what it should be
    """
    if settings.model in CLASSICAL:
        return CLASSICAL[settings.model]
    from aet_stream.denoise.architectures import load_network  # takes seconds: torch

    return load_network(find_weights(settings.model, others=tuple(CLASSICAL)), settings)
