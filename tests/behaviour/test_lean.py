"""Roles import what they need and no more; memory stays bounded whatever waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ENVIRONMENT, known_image, put, running, wait_for

HEAVY = ("torch", "matplotlib", "tifffile", "scipy.interpolate")
NO_PIXELS = ("supervisor", "trigger.trigger", "cli", "transport")


@pytest.mark.parametrize("module", ["hub.hub", "watch.watch", "worker", "monitor", "readers.child", "series", *NO_PIXELS])
def test_a_role_imports_only_what_it_needs(module: str) -> None:
    """torch takes seconds and hundreds of MB, numpy half of the time that a process takes to start: who handles no pixels needs neither."""
    unwanted = (*HEAVY, "numpy") if module in NO_PIXELS else HEAVY
    code = f"import sys, aet_stream.{module}; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_the_hubs_memory_does_not_grow_with_what_waits(tmp_path: Path) -> None:
    """500 files of 1024 px wait (1 GB of pixels); the hub peaks under 500 MB while nobody takes them, and goes on when somebody does."""
    with running(tmp_path, denoise__workers=1, queue__lease_s=60) as daemon:
        first = put(daemon.root / "big", 0, 0.0, size_px=1024, pixels=known_image(0, 1024))
        daemon.wait_for_totals(stored=1)
        hub, worker = daemon.pid("hub"), daemon.pid("worker-0")
        subprocess.run(["kill", "-STOP", str(worker)], check=True)
        content = bytearray(first.read_bytes())
        for index in range(1, 501):
            # other pixels, so no duplicate; not zero, so no file still being written
            content[-4:] = (index + (1 << 16)).to_bytes(4, "little")
            (first.parent / f"image_{index:03d}_{index / 10:+.2f}deg.tif").write_bytes(content)

        def waiting() -> bool:
            queue = daemon.status().get("queue", {})
            return queue.get("offered", 0) + queue.get("waiting", 0) + queue.get("working", 0) >= 500

        wait_for(waiting, limit_s=120, what="500 files to be known")
        lines = Path(f"/proc/{hub}/status").read_text().splitlines()
        peak_mb = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
        assert peak_mb < 500
        subprocess.run(["kill", "-CONT", str(worker)], check=True)
        wait_for(lambda: daemon.status()["totals"]["stored"] >= 20, limit_s=60, what="work to go on")
        print(f"hub peak {peak_mb} MB with 500 files of 1024 px waiting")
