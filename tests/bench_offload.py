"""How fast a large file travels to a helper, and how much memory that takes: of the step, of the relay and of the helper.

python -m tests.bench_offload [--mib 512] [--compress]            over loopback
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from aet_stream import lifeline
from aet_stream.config_file import load
from aet_stream.elsewhere.keys import KeyRing, make_key
from tests.harness import ENVIRONMENT, wait_for
from tests.proxy import free_port
from tests.test_store import CLOSED, made, opened

FILL: dict[str, Callable[[int], bytes]] = {"zeros": bytes, "noise": os.urandom}


def peak_mib(pid: int) -> float:
    """What a process has had in memory at most."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


def cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def grown(series: Path, mib: int, fill: Callable[[int], bytes]) -> None:
    """HDF5 does not mind what stands behind its end."""
    with series.open("ab") as file:
        while series.stat().st_size < mib << 20:
            file.write(fill(1 << 20))
            file.flush()


def measured(folder: Path, kind: str, mib: int, *, compress: bool) -> None:
    root, address = folder / "out", f"tcp://127.0.0.1:{free_port()}"
    (folder / "in").mkdir()
    words = [f"watch.root={folder / 'in'}", f"output.root={root}", f"relay.listen={address}", "denoise.model=laplace"]
    words += ["reconstruct.method=none"]  # the way there is what is measured
    config, log = load(None, words), folder / "helper.txt"
    store = opened(root)
    store.commit([made(index) for index in range(4)])
    list(store.close(CLOSED))
    grown(root / "s" / "series.h5", mib, FILL[kind])
    ring = KeyRing(config)
    ring.allow("other", make_key(folder / "key").public)
    helper_words = ["--connect", address, "--server-key", ring.own().public, "--key", str(folder / "key"), "--spool", str(folder / "spool")]
    aet_stream = [sys.executable, "-m", "aet_stream"]
    relay = subprocess.Popen([*aet_stream, "relay", *(part for word in words for part in ("--set", word))], env=ENVIRONMENT)
    with log.open("wb") as err:
        helper = subprocess.Popen(
            [*aet_stream, "helper", *helper_words, *(["--compress"] if compress else [])], env=ENVIRONMENT, stderr=err, cwd=folder
        )
    step = None
    try:
        wait_for(lambda: "let in as" in log.read_text(), limit_s=60, what="the helper")
        before = {process.pid: (peak_mib(process.pid), cpu_s(process.pid)) for process in (relay, helper)}
        began = time.monotonic()
        step = subprocess.Popen(
            lifeline.command("aet_stream.elsewhere.offload", "reconstruct", "s"),
            stdin=subprocess.PIPE,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
        )
        assert step.stdin is not None
        step.stdin.write(msgspec.json.encode(config))
        step.stdin.close()
        most_mib = 0.0

        def there() -> bool:
            nonlocal most_mib
            most_mib = max(most_mib, peak_mib(step.pid))
            return "volume: begins" in log.read_text()

        wait_for(there, limit_s=600, what=f"the file to be there: {log.read_text()}")
        took_s = time.monotonic() - began
        said = [
            f"{name} {peak_mib(process.pid):.0f} MiB at most ({before[process.pid][0]:.0f} before), "
            f"{cpu_s(process.pid) - before[process.pid][1]:.1f} s of processor time"
            for name, process in (("relay", relay), ("helper", helper))
        ]
        rate = mib * 1.048576 / took_s
        print(f"{mib} MiB of {kind}: {took_s:.1f} s, {rate:.0f} MB/s; step {most_mib:.0f} MiB at most; {'; '.join(said)}")
    finally:
        for process in (step, helper, relay):
            if process is not None:
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--compress", action="store_true")
    arguments = parser.parse_args()
    for kind in FILL:
        with tempfile.TemporaryDirectory() as folder:
            measured(Path(folder), kind, arguments.mib, compress=arguments.compress)


if __name__ == "__main__":
    main()
