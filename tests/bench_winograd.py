"""Layers of the default network on one core: torch's convolution, the same with sum and SiLU, and ours with both (docs/adr/0023).

    OMP_NUM_THREADS=1 python -m tests.bench_winograd

In turn within one process; the best of 300 each.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from aet_stream.denoise.coarse import UNet
from aet_stream.denoise.unet_on_cpu import UNetOnCpu
from aet_stream.denoise.winograd import Convolution, Surface

LAYERS = ((32, 76, 48), (32, 48, 48), (32, 32, 32), (16, 72, 72), (8, 96, 96), (4, 96, 96))
"""Edge of the map, inputs, outputs."""
UNETS = ((76, 24, (48, 72, 96, 96)), (39, 4, (24, 48, 72)))
"""Inputs, outputs, widths."""
TIMES = 300


def best_us(*works: Callable[[], object]) -> list[float]:
    seconds = np.empty((TIMES, len(works)))
    for turn in seconds:
        for index, work in enumerate(works):
            began = time.perf_counter()
            work()
            turn[index] = time.perf_counter() - began
    return [float(1e6 * best) for best in seconds.min(0)]


def layer(edge: int, inputs: int, outputs: int) -> None:
    random = np.random.default_rng(0)
    weight, bias = (random.normal(size=shape).astype(np.float32) / 30 for shape in ((outputs, inputs, 3, 3), (outputs,)))
    ours = Convolution(weight, bias)
    given, total, active = Surface(edge, edge, ours.inputs), Surface(edge, edge, outputs), Surface(edge, edge, outputs)
    given.inside[..., :inputs] = random.normal(size=(edge, edge, inputs))
    x, before = (torch.randn(1, n, edge, edge).to(memory_format=torch.channels_last) for n in (inputs, outputs))
    kernel, shift, scratch = (
        torch.from_numpy(weight).to(memory_format=torch.channels_last),
        torch.from_numpy(bias),
        np.empty(ours.scratch, "f4"),
    )

    def alone() -> torch.Tensor:
        return functional.conv2d(x, kernel, shift, padding=1)

    times = best_us(alone, lambda: functional.silu(alone().add_(before)), lambda: ours(given, total, active, scratch, add=True))
    gflop = 2e-9 * 9 * inputs * outputs * edge**2
    print(
        f"{edge:>2} x {edge:<2} {inputs:>2} -> {outputs}   "
        + "  ".join(f"{us:5.0f}" for us in times)
        + f"   {gflop / times[-1] * 1e6:.0f} GFLOP/s"
    )


def unet(inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
    plain = UNet(inputs, outputs, widths).eval()
    ours, x = UNetOnCpu(plain), torch.randn(1, inputs, 32, 32)
    times = best_us(lambda: plain(x), lambda: ours(x))
    found = [net(x)[0].double() for net in (plain, ours)]
    exact = plain.double()(x.double())[0]
    errors = [float((each - exact).square().mean().sqrt() / exact.abs().max()) for each in found]
    print(f"U-Net {widths}: {times[0] / 1000:.1f} and {times[1] / 1000:.1f} ms, errors {errors[0]:.0e} and {errors[1]:.0e}")


def main() -> None:
    torch.set_num_threads(1)
    print("map, channels   torch, torch with sum and SiLU, ours with both, us")
    with torch.inference_mode():
        for each in LAYERS:
            layer(*each)
        for one in UNETS:
            unet(*one)


if __name__ == "__main__":
    main()
