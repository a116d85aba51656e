"""What learns: a network, the running mean of its weights, its optimizer, and the checkpoint from which it goes on."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aet_stream import durable
from aet_stream.denoise.architectures import architecture
from aet_stream.errors import ConfigError, ModelError
from aet_stream.training.batches import on_device
from aet_stream.training.preset import Preset, by_names_of_today, learning_rate
from aet_stream.training.recorded import Recorded
from aet_stream.training.tasks import Loss, task_of


class Training:
    """Everything that a checkpoint has to hold."""

    def __init__(self, preset: Preset, device: torch.device, make: Callable[[], nn.Module] | None = None, loss: Loss | None = None) -> None:
        """`make` and `loss`: another network than the preset names, and its loss."""
        torch.manual_seed(preset.seed)
        self.preset, self.device = preset, device
        self.model = (make or architecture(preset.network).model)()
        self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model) if preset.average else self.model
        """Running mean of the weights: it generalises better than any single step."""
        self._rate, self._news = (torch.zeros((), device=device) for _ in range(2))
        """Learning rate, and how much of the mean a step replaces: where a recorded step finds them."""
        on_gpu = {"fused": True, "capturable": True} if device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self._rate, weight_decay=preset.weight_decay, betas=(0.9, 0.99), foreach=False, **on_gpu
        )
        task = task_of(preset)
        self._loss = loss or task.loss
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._parallel: nn.Module = DistributedDataParallel(self.model) if several else self.model
        self.learn = Recorded(self.learn_once) if task.alike and device.type == "cuda" and not several else self.learn_once
        self.step = 0
        self.minutes = 0.0

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Weights to go on from, instead of random ones.

        Raises
        ------
        ModelError : they are of another network
        """
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"preset {self.preset.name!r}: start is another kind of network: {str(error).splitlines()[-1].strip()}"
            ) from error
        self.average.load_state_dict(self.model.state_dict())

    def one_step(self, batch: Any) -> Tensor:
        """Learn from a batch. Returns its loss, without waiting for it; NaN if the gradient was not finite and the step was left out."""
        self._rate.fill_(learning_rate(self.step, self.preset))
        self.step += 1
        self._news.fill_(1 - min(self.preset.average, self.step / (self.step + 10)))
        self._parallel.train()
        return self.learn(on_device(batch, self.device))

    def learn_once(self, batch: Any) -> Tensor:
        """See `one_step`; never from a recording."""
        self.optimizer.zero_grad()
        loss = self._loss(self._parallel, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        finite = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).isfinite()
        if self.device.type == "cuda":
            # As torch's GradScaler says that a step is to be left out: nobody waits.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif finite:
            self.optimizer.step()
        self._update_average()
        return torch.where(finite, loss.detach(), torch.nan)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is self.model:
            return
        for mean, now in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, self._news)
            else:
                mean.copy_(now)

    def refuse_divergence(self, figures: dict[str, float]) -> None:
        """Weights or figures that are no numbers are not worth keeping.

        Raises
        ------
        ModelError : the run has diverged
        """
        weights = (*self.model.state_dict().values(), *self.average.state_dict().values())
        if not (all(part.isfinite().all() for part in weights) and np.isfinite(list(figures.values())).all()):
            where = f"preset {self.preset.name!r}: weights or figures are not finite at step {self.step}"
            raise ModelError(f"{where}; start anew with a learning_rate below {self.preset.learning_rate}, in another --out")

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "optimizer": self.optimizer.state_dict()}
        buffer = io.BytesIO()
        torch.save({**state, "step": self.step, "minutes": self.minutes, "preset": msgspec.to_builtins(self.preset)}, buffer)
        durable.replace(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ConfigError : it is no checkpoint of this network, belongs to another preset, or is further than this run is to go
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            self._refuse_another_run(state, path)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            own = self.optimizer.state_dict()["param_groups"]  # what the preset and this device want
            self.optimizer.load_state_dict({**state["optimizer"], "param_groups": own})
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate
            self.step, self.minutes = state["step"], state["minutes"]
        except (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, UnpicklingError) as error:
            raise ConfigError(f"{path}: no whole checkpoint of a {self.preset.network!r}: remove it, or choose another --out") from error

    def _refuse_another_run(self, state: dict[str, Any], path: Path) -> None:
        now = msgspec.to_builtins(self.preset)
        was = state["preset"]
        if isinstance(was, str):  # early checkpoints say no more
            was = {"name": was, "seed": state["seed"]}
        was = by_names_of_today(was)
        was, now = _flat(was), _flat({key: now[key] for key in was})
        for key in [*was, *now]:
            if was.get(key) != now.get(key) and key.rpartition(".")[2] != "steps":
                raise ConfigError(f"{path}: {key} was {was.get(key)!r}, now {now.get(key)!r}: say it as it was, or choose another --out")
        if state["step"] > self.preset.steps:
            raise ConfigError(f"{path}: is at step {state['step']}, beyond steps {self.preset.steps}: say as many, or choose another --out")


def _flat(preset: dict[str, Any]) -> dict[str, Any]:
    """Every key of a preset, those of its gate as `gate.key`."""
    gate = preset.get("gate") or {}
    return {**preset, "gate": bool(gate), **{f"gate.{key}": value for key, value in gate.items()}}
