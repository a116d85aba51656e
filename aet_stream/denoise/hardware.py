"""What the arithmetic runs on: device, number format, cores."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from aet_stream.errors import ModelError


@cache
def has_bfloat16(kind: str) -> bool:
    """Does the hardware multiply bfloat16? Elsewhere it is slower than float32, on a CPU by a factor of twenty.

    Parameters
    ----------
    kind : of a device, "cpu" or "cuda"; of CPUs, those with AVX-512 BF16 or AMX do
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def take_threads(threads: int) -> None:
    """How many cores the arithmetic of this process takes; several networks may be loaded."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def find_device(wanted: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises
    ------
    ModelError : it is not there
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelError(f"denoise.device {wanted!r}: say auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"denoise.device {wanted!r}: say auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"denoise.device {wanted!r}: there is no such GPU ({torch.cuda.device_count()} found); say auto or cpu")
    return device


def find_precision(wanted: str, exact_enough: bool, device: torch.device) -> torch.dtype:
    """bfloat16 where asked for, or where it is exact enough and the hardware has it."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    return torch.bfloat16 if exact_enough and has_bfloat16(device.type) else torch.float32
