"""The computer: descriptors, memory, cores; the accelerator and the network that it runs; the libraries for volumes."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.doctor.finding import Finding, Station, fail, ok, warn
from aet_stream.errors import AetError
from aet_stream.projection import Array

_MIB = 1 << 20
WORKER_MIB = 700
"""Of one worker on a CPU, with torch; figures of `make bench`."""
OTHERS_MIB = 600
"""Supervisor, hub, watch with its reading child, trigger, monitor, beside what the credit allows."""
FRAME_PX = 1024
AGREE = 1e-3
"""Largest difference between accelerator and CPU, as a share of the frame's range: float32 sums in another order differ by 1e-5."""


def descriptors(station: Station) -> Iterator[Finding]:
    """A series that is open spans many files: whoever reads all of it at once needs that many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * station.config.output.fold_rows + 256
    if soft < needed:
        yield fail(
            f"{soft} files may be open at once (hard limit {hard}), {needed} are needed: rows of an open series would be read as NaN",
            f"ulimit -n {max(needed, 4096)}; for a service LimitNOFILE=65536",
        )
    else:
        yield ok(f"{soft} files may be open at once, {needed} are needed")


def memory(station: Station) -> Iterator[Finding]:
    """What all roles need, against what this user, container or service may have."""
    config = station.config
    needed = OTHERS_MIB + 2 * config.queue.credit_mib + WORKER_MIB * config.denoise.workers
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < 8192 * _MIB:
        yield fail(
            f"every process may have {limit // _MIB} MiB of address space: torch alone maps more",
            "ulimit -v unlimited; in a service no LimitAS=",
        )
    available = _available_mib()
    said = f"{available} MiB to be had, about {needed} needed while projections come"
    if available < needed:
        yield fail(said, "end other programs, or set queue.credit_mib and denoise.workers lower")
    elif available < 2 * needed:
        yield warn(f"{said}; a volume needs more", "end other programs before a series closes; reconstruct.memory_mib bounds the volume")
    else:
        yield ok(said)


def _available_mib() -> int:
    """The least of what the kernel would give now and what control groups allow at all."""
    from aet_stream.reconstruct.memory import machine_bytes

    most = machine_bytes()
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            most = min(most, int(line.split()[1]) << 10)
    return most // _MIB


def cores(station: Station) -> Iterator[Finding]:
    """More threads than cores make every projection wait for the others."""
    denoise, there = station.config.denoise, len(os.sched_getaffinity(0))
    wanted = denoise.workers * (denoise.threads or 1)
    if denoise.device == "cpu" and wanted > there:
        yield warn(f"{wanted} threads of workers on {there} core(s)", "set denoise.workers or denoise.threads lower")
    else:
        yield ok(f"{there} core(s)")


def temporary(station: Station) -> Iterator[Finding]:
    """tomopy and others do not import without a folder for temporary files."""
    try:
        with tempfile.TemporaryFile():
            yield ok(tempfile.gettempdir())
    except OSError as error:
        yield fail(f"no folder for temporary files: {error}", "set TMPDIR to a folder that may be written to; in a service PrivateTmp=yes")


def background(station: Station) -> Iterator[Finding]:
    """The network: its file as it was made, its device there, and a real frame with the answer that the CPU gives."""
    from aet_stream.denoise.denoiser import Denoiser

    wanted = station.config.denoise
    try:
        denoiser = Denoiser(wanted)
        frame = _frame(FRAME_PX)
        denoiser.warm_up()
        began = time.perf_counter()
        answer = denoiser.subtract(frame)
        took_s = time.perf_counter() - began
    except AetError as error:
        yield fail(str(error), "correct denoise.model or denoise.device, or install the whole package again")
        return
    except Exception as error:  # noqa: BLE001 - whatever a driver says
        remedy = "update the driver, or set denoise.device to cpu until then; nvidia-smi says what the driver sees"
        yield fail(f"{wanted.model} on {wanted.device}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", remedy)
        return
    device = answer.quality.device
    said = f"{denoiser.name} ({denoiser.sha256[:12]}) on {device}, {answer.quality.precision}: {took_s:.2f} s for {FRAME_PX} px"
    if device == "cpu":
        yield from _why_cpu(station, said)
        return
    on_cpu = Denoiser(msgspec.structs.replace(wanted, device="cpu", precision=answer.quality.precision)).subtract(frame)
    differs = float(np.abs(answer.clean - on_cpu.clean).max() / np.ptp(frame))
    if not differs < AGREE:  # NaN does not
        remedy = "set denoise.device to cpu; test the card (dcgmi diag, memtest_vulkan) and its driver"
        yield fail(f"{said}; its answer differs from the CPU's by {differs:.1e} of the frame's range", remedy)
    else:
        yield ok(f"{said}; the CPU's answer within {differs:.0e} of the frame's range")


def _why_cpu(station: Station, said: str) -> Iterator[Finding]:
    """Is there a card that is not used?"""
    cards = [path for pattern in ("nvidia[0-9]*", "dxg") for path in Path("/dev").glob(pattern)]
    if station.config.denoise.device == "cpu" or not cards:
        yield ok(said)
        return
    import torch

    if torch.cuda.is_available():
        yield ok(said)
    elif not torch.version.cuda:
        yield warn(f"{said}; {cards[0]} is there, but this torch is a build for CPUs", "install torch with CUDA: pytorch.org says how")
    else:
        remedy = "nvidia-smi says what is wrong with the driver; in a service: DeviceAllow=, and nvidia-modprobe before it starts"
        yield warn(f"{said}; {cards[0]} is there, but CUDA does not start", remedy)


def _frame(size_px: int) -> Array:
    """A particle on a film: any frame will do that is not the same everywhere."""
    y, x = np.mgrid[:size_px, :size_px] / size_px - 0.5
    film = 200 + 60 * x + 30 * np.sin(7 * y)
    particle = 900 * np.exp(-(x * x + y * y) / 0.01)
    frame: Array = (film + particle + np.random.default_rng(0).normal(0, 12, film.shape)).astype(np.float32)
    return frame


def volumes(station: Station) -> Iterator[Finding]:
    """Which library makes the volume, and does it import?"""
    from aet_stream.reconstruct import tomopy_backend

    wanted = station.config.reconstruct
    try:
        said = f"tomopy {getattr(tomopy_backend.load(), '__version__', '')} imports"
        yield ok(said)
    except AetError as error:
        if wanted.method.startswith("tomopy:"):
            yield fail(str(error), 'conda env create -f environment.yml, or reconstruct.method = "auto"')
        else:
            yield ok("tomopy does not import; the built-in solver makes the volumes")
