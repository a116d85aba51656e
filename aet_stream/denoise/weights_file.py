"""A network on disk: weights as safetensors (no code can hide in them) and a card beside them that says what they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from aet_stream import durable
from aet_stream.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Model = TypeVar("Model", bound="nn.Module")

SHIPPED = Path(__file__).parent / "weights"


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a weights file is; JSON beside it."""

    name: str
    architecture: str = "dncnn"
    """See architectures.py; case does not matter."""
    shape: dict[str, Any] = {}
    """What the class of that name is made with, where it is not its default."""
    bfloat16: bool = False
    """Is bfloat16 exact enough?"""
    sha256: str = ""
    """Of the weights file."""
    licence: str = "BSD-3-Clause"
    data_seed: int = 0
    trained: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    trust: dict[str, float] = {}
    """The rule for the expected error, see trust.py; empty: not calibrated."""
    trust_alone: dict[str, float] = {}
    """The same for the network without fusion."""


def find_weights(model: str, *, setting: str = "denoise.model", others: Sequence[str] = ()) -> Path:
    """The weights file of a shipped name or a path; `setting` asks for it, and takes `others` than networks as well.

    Raises
    ------
    ModelError : there is no such file
    """
    path = Path(model).expanduser() if model.endswith(".safetensors") else SHIPPED / f"{model}.safetensors"
    if not path.is_file():
        names = ", ".join([*sorted(p.stem for p in SHIPPED.glob("*.safetensors")), *others])
        raise ModelError(f"{setting} {model!r}: no such network; choose {names}, or a path to a .safetensors file")
    return path


def load_card(path: Path) -> Card:
    """The card beside a weights file, its hash checked.

    Raises
    ------
    ModelError : the card is missing or wrong, or does not belong to the file
    """
    card_path = path.with_suffix(".json")
    try:
        card = msgspec.json.decode(card_path.read_bytes(), type=Card)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: its card {card_path.name} is missing; keep both files together") from error
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise ModelError(f"{card_path}: {error}") from error
    for rule in (card.trust, card.trust_alone):
        if rule and "intercept" not in rule:
            raise ModelError(f"{card_path}: trust has no intercept; take the whole card, or leave trust empty")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if card.sha256 != actual:
        raise ModelError(f"{path}: its SHA-256 is {actual[:12]}, the card says {card.sha256[:12]}: not the file that was made")
    rule = {re.sub("^referee", "gate", name): weight for name, weight in card.trust.items()}
    return msgspec.structs.replace(card, trust=rule)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The weights.

    Raises
    ------
    ModelError : not a safetensors file
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error


def made(network: Callable[..., Model], card: Card, path: Path) -> Model:
    """A network of the shape that its card says.

    Raises
    ------
    ModelError : there is no such shape
    """
    try:
        return network(**card.shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path.with_suffix('.json')}: shape {card.shape} cannot be had: {error}") from error


def loaded(model: Model, tensors: Mapping[str, Tensor], path: Path) -> Model:
    """The model with the weights of a file, for inference.

    Raises
    ------
    ModelError : they are not its own
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path}: its tensors are not those of its card: {str(error).splitlines()[-1].strip()}") from error
    return model.eval()


def parts(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the network's tensors, its gate's): both are in one file; a file may have no gate."""
    names = {name: re.sub(r"^(gate|referee)\.", "", name) for name in tensors}
    gate = {bare: tensors[name] for name, bare in names.items() if bare != name}
    return {name: tensors[name] for name, bare in names.items() if bare == name}, gate


def write(path: Path, tensors: Mapping[str, Tensor], card: Card) -> Path:
    """Write tensors, then the card with their hash.

    Raises
    ------
    ModelError : weights are not finite as they are stored
    """
    from safetensors.torch import save

    if unusable := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ModelError(f"{path}: {unusable[0]} is not finite, nothing is written; train again with a smaller learning_rate")
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    durable.replace(path, content)
    write_card(path, msgspec.structs.replace(card, sha256=hashlib.sha256(content).hexdigest()))
    return path


def write_card(path: Path, card: Card) -> None:
    """Beside the weights at `path`."""
    durable.replace(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(card), indent=2))
