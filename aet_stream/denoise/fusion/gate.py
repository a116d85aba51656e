"""The gating network: a small U-Net that decides, point by point, how far each expert is believed under the particle.

The network on the coarse grid, kriging and the fringes (experts.py) each have a background to offer. The gate sees all three, how sure each
is, and what the frame looks like there; it says what share each gets. It cannot add anything of its own: where it is wrong, the answer is
still an expert's. It was trained on particles that the network had never seen, where the network errs as it does in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aet_stream.denoise import grid
from aet_stream.denoise.coarse import UNet, blur, magnified
from aet_stream.denoise.features import Blocks
from aet_stream.denoise.fusion.experts import Continued, Experts, NetworkOutput, Posterior, consult
from aet_stream.denoise.fusion.kriging import EDGE, SPACING, pooled
from aet_stream.denoise.unet_on_cpu import at_home
from aet_stream.projection import Array

CHANNELS = (
    "mean", "texture", "step", "network", "support", "log error", "views apart", "before solve", "kriging", "kriging sd", "fringes",
    "fringes sd", "amplitude", "second amplitude", "unexplained", "seen", "left out", "length", "roughness", "strength", "misfit",
    "has kriging", "has fringes", "valid",
)  # fmt: skip
"""What the gate is given: block means, their texture and steps; the network's background, support, expected error, disagreement of its two
views and background before its solve; the experts' posteriors and what they rest on; what they chose for the whole frame; where there is a
frame."""
_INPUTS = 39
_OUTPUTS = 4


class Mixture(NamedTuple):
    """(n, EDGE, EDGE) each but the last, on the grid of the experts."""

    correction: Tensor
    """To be added to the network's background"""
    log_error: Tensor
    """Logarithm of the variance expected of what is left"""
    disputed: Tensor
    """Standard deviation of the background, were it drawn from the three by their shares: how sure they are, and how far apart"""
    frame_log_error: Tensor
    """(n,): logarithm of the root mean square error expected of the whole frame"""


class Gate(nn.Module):
    """(n, len(CHANNELS), EDGE, EDGE) -> mixture. Always of one size: it also judges by means over all of it."""

    def __init__(self, *, widths: tuple[int, ...] = (24, 32, 48)) -> None:
        super().__init__()
        self.unet = UNet(_INPUTS, _OUTPUTS, widths)
        #: What it thinks of the experts in this frame altogether.
        self.whole = nn.Sequential(nn.Linear(2 * (widths[0] + widths[-1]), 32), nn.SiLU(), nn.Linear(32, 3))
        #: The error that is left in the frame, from the same view of it.
        self.left = nn.Linear(2 * (widths[0] + widths[-1]), 1)
        with torch.no_grad():
            cast(Tensor, self.unet.last.bias).copy_(torch.tensor([1.0, 0.0, -1.0, 0.0]))  # the network first, then kriging

    def forward(self, inputs: Tensor) -> Mixture:
        given = dict(zip(CHANNELS, inputs.unbind(1), strict=True))
        by_kriging, by_fringes = ((given[name] - given["network"]) * given["valid"] for name in ("kriging", "fringes"))
        shown = _scaled(given, by_kriging, by_fringes) * given["valid"][:, None]
        outputs, pooled = self.unet(shown.contiguous(memory_format=torch.channels_last))
        belief = outputs[:, :3] + self.whole(pooled)[:, :, None, None]
        present = [belief[:, i].masked_fill(given[name] == 0, -torch.inf) for i, name in ((1, "has kriging"), (2, "has fringes"))]
        share = torch.softmax(torch.stack([belief[:, 0], *present], 1), 1)
        correction = share[:, 1] * by_kriging + share[:, 2] * by_fringes
        smooth = functional.conv2d(functional.pad(correction[:, None], (1, 1, 1, 1), "replicate"), blur(correction))[:, 0]
        correction = smooth * given["valid"]
        offers = torch.stack([torch.zeros_like(correction), by_kriging, by_fringes], 1)
        variances = torch.stack([given["log error"].exp(), given["kriging sd"].square(), given["fringes sd"].square()], 1)
        disputed = (share * ((offers - correction[:, None]).square() + variances)).sum(1).clamp(min=1e-14).sqrt()
        return Mixture(correction, outputs[:, 3] - 8, disputed, self.left(pooled.detach())[:, 0] - 5)


def _scaled(given: Mapping[str, Tensor], by_kriging: Tensor, by_fringes: Tensor) -> Tensor:
    """(n, _INPUTS, rows, columns): differences magnified, standard deviations as logarithms."""
    network, apart, texture = given["network"], given["views apart"], given["texture"]
    low = network.masked_fill(given["valid"] == 0, torch.inf).amin((1, 2))[:, None, None]
    differences = [given["mean"] - network, by_kriging, by_fringes, by_fringes - by_kriging, given["unexplained"]]
    differences.append(given["before solve"] - network)
    small = torch.stack([*differences, apart, texture, given["step"]], 1)
    tens, hundreds, thousands = (magnified(small, scale) for scale in (10, 100, 1000))
    of_differences = torch.stack([tens, hundreds, thousands], 2)[:, : len(differences)].flatten(1, 2)
    apart_at, texture_at, step_at = range(len(differences), small.shape[1])
    others = [hundreds[:, apart_at], thousands[:, apart_at], hundreds[:, texture_at], tens[:, texture_at], hundreds[:, step_at]]
    deviations = torch.stack([given[name] for name in ("kriging sd", "fringes sd", "strength", "misfit")], 1)
    plain = [given[name] for name in ("amplitude", "second amplitude", "seen", "has kriging", "has fringes", "valid")]
    rest = [(network - low).clamp(-5, 5), torch.sigmoid(given["support"]), given["log error"] / 4 + 2, torch.log1p(given["left out"])]
    chosen = [torch.log1p(given["length"]) / 2, torch.log10(given["roughness"] + 1e-7) / 3 + 1]
    parts = [of_differences, torch.stack(others, 1), torch.log(deviations + 1e-4) / 3 + 1.5, torch.stack([*plain, *rest, *chosen], 1)]
    return torch.cat(parts, 1)


def gate_inputs(blocks: Blocks, network: NetworkOutput, experts: Experts) -> Array:
    """(len(CHANNELS), EDGE, EDGE) float32: all that the gate is given of a frame, on the grid of the experts; 0 beyond the frame."""
    own = pooled(network.background.astype(np.float64))
    none = np.zeros_like(own)
    absent = Posterior(own, none)
    kriging, fringes, model, covariates = experts.kriging or absent, experts.fringes or absent, experts.vacuum, experts.crystal
    shape = (model.length, model.roughness, model.strength) if model else (0.0, 0.0, 0.0)
    left_out = np.zeros_like(own)
    if model:
        left_out[tuple(model.left_out_at.T)] = np.abs(model.left_out)
    amplitude = covariates.amplitude if covariates else none[None]
    parts = [
        *(pooled(blocks.statistics[i]) for i in (0, 3, 4)), own,
        *(pooled(part) for part in (network.support, network.log_error, network.views_apart, network.before_solve)),
        kriging.mean, kriging.sd, fringes.mean, fringes.sd,
        amplitude[0], amplitude[min(1, len(amplitude) - 1)], covariates.unexplained if covariates else none,
        experts.seen, left_out, *shape, covariates.misfit if covariates else 0.0, model is not None, covariates is not None, 1.0,
    ]  # fmt: skip
    inputs = np.zeros((len(CHANNELS), EDGE, EDGE), np.float32)
    for channel, part in zip(inputs, parts, strict=True):
        channel[: own.shape[0], : own.shape[1]] = part
    return inputs


class Fusion:
    """Experts and gate at work."""

    def __init__(self, gate: nn.Module, device: torch.device) -> None:
        self._gate = at_home(gate, device)
        self._device = device

    def to(self, device: torch.device) -> Fusion:
        return Fusion(self._gate, device)

    def correction(
        self, frame: Array, blocks: Blocks, network: NetworkOutput, drawn: Array, begun: Callable[[], Array | Continued]
    ) -> tuple[Array, dict[str, float]]:
        """((height, width) counts to be added to the background that the network has `drawn`; doubts, normalised); `begun`: see `consult`.

        Doubts: the error that the gate expects (`gate`, root mean square; `gate_mostly`, geometric mean; `gate_whole`, of the frame at
        once); how far the experts that it believes are apart, and how sure (`disputed`); how far it moved the background (`moved`), and how
        far kriging would have had it moved (`vacuum_says`).
        """
        experts = consult(frame, blocks, network, drawn, begun)
        correction, doubts = self._mixed(gate_inputs(blocks, network, experts), pooled(network.support > 0), _instead(network, experts))
        shape = (frame.shape[0], frame.shape[1])
        return grid.draw_means(correction * blocks.span, SPACING * blocks.block_px, shape), doubts

    def _mixed(self, inputs: Array, share: Array, instead: Array | None) -> tuple[Array, dict[str, float]]:
        """((rows, columns) correction on the grid of the experts; doubts), normalised, rows and columns alike; `instead` of the
        gate's correction this one, if there is one."""
        rows, columns = share.shape
        views = np.stack([inputs, inputs.transpose(0, 2, 1)])  # both are EDGE x EDGE
        one, other = self._mixture(views)
        correction, log_error, disputed = (((a + b.T) / 2)[:rows, :columns] for a, b in zip(one[:3], other[:3], strict=True))
        network, kriging = (inputs[CHANNELS.index(name), :rows, :columns] for name in ("network", "kriging"))
        correction = correction if instead is None else instead
        correction = correction * share  # of each point that is particle: where vacuum is seen, nothing is corrected
        doubts = {
            "gate": rms(np.exp(log_error / 2)),
            "gate_mostly": float(np.exp(log_error.mean() / 2)),
            "gate_whole": float(np.exp((one[3] + other[3]) / 2)),
            "disputed": rms(disputed),
            "moved": rms(correction),
            "vacuum_says": rms(kriging - network),
        }
        return correction, doubts

    def _mixture(self, views: Array) -> list[list[Array]]:
        """Of each of (n, ...) views the parts of its mixture."""
        with torch.inference_mode():
            mixture = self._gate(torch.from_numpy(views).to(self._device))
            return [[part[view].cpu().numpy() for part in mixture] for view in range(len(views))]


def _instead(network: NetworkOutput, experts: Experts) -> Array | None:
    """(rows, columns) correction where network and gate see what they have not learned, and kriging is believed: where a film was taken for
    particle, and where the tilt has foreshortened the background. None: elsewhere."""
    said = experts.turned or (experts.kriging if network.misled else None)
    return None if said is None else said.mean - pooled(network.background.astype(np.float64))


def rms(surface: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(surface))))
