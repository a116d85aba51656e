"""Where bfloat16 is fast: everywhere else it is slower than float32, on CPUs without it by a factor of twenty."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def has_bfloat16(kind: str) -> bool:
    """Does the hardware multiply bfloat16? `kind`: of a device, "cpu" or "cuda". CPUs: AVX-512 BF16 or AMX."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
