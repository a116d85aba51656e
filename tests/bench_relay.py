"""How long a projection takes to a worker and back: over ipc beside CURVE through the relay, in turns, in one run; what `--compress` gains.

python -m tests.bench_relay            over loopback
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from aet_stream import __version__, compression
from aet_stream.config_file import load
from aet_stream.denoise.estimators import model_sha256
from aet_stream.elsewhere.curve import RelayLink
from aet_stream.elsewhere.keys import KeyRing, load_key, make_key
from aet_stream.errors import WireError
from aet_stream.messages import WIRE_VERSION, Done, Job, Ready
from aet_stream.projection import Quality, VisitKey
from aet_stream.simulate.series import simulate_series
from aet_stream.transport import HubLink, HubSocket, Link
from tests.harness import wait_for
from tests.proxy import free_port

JOB = Job(job_id="1", series="s", visit=VisitKey("p", 0, "1"))
SIZES_PX = (64, 1024, 2048, 4096)
TIMES = 15


def answer(link: Link) -> None:
    """A worker that does nothing: float32 pixels for whatever comes."""
    ready = Ready(name="w", model_sha256=model_sha256("laplace"), wire=WIRE_VERSION, version=__version__)
    planes = {size_px: np.zeros((size_px, size_px), "<f4") for size_px in SIZES_PX}
    while True:
        link.send(ready)
        for message, pixels in link.receive(0.2):
            if isinstance(message, Job) and pixels is not None:
                link.send(Done(job_id=message.job_id, quality=Quality("m", "0"), network_s=0.0), planes[len(pixels)])


def turn_s(hub: HubSocket, peer: bytes, pixels: np.ndarray) -> float:
    """There and back."""
    began = time.perf_counter()
    assert hub.send(peer, JOB, pixels)
    while True:
        for heard in hub.receive(5.0):
            if not isinstance(heard, WireError) and isinstance(heard[1], Done):
                return time.perf_counter() - began


def compress() -> None:
    """One simulated projection, as it goes to a worker and as it comes back; at which speed of the link nothing is gained."""
    series = simulate_series(seed=1, tilts_deg=np.array([0.0, 20.0]), size_px=512)
    raw = series.raw[0]
    for name, pixels in {"raw, 16 bits": raw, "clean, float32": (raw - series.background[0]).astype("<f4")}.items():
        data, times = pixels.tobytes(), [time.process_time()]
        compressed = compression.compress(data, pixels.itemsize)
        times.append(time.process_time())
        assert compression.decompress(compressed, len(data), pixels.itemsize) == data
        times.append(time.process_time())
        compress_s, decompress_s = np.diff(times)
        even = (len(data) - len(compressed)) / (compress_s + decompress_s)
        print(
            f"{name}: {len(data) / len(compressed):.2f} times smaller; compressed at {len(data) / compress_s / 1e6:.0f} MB/s,"
            f" decompressed at {len(data) / decompress_s / 1e6:.0f}; gains time below {8e-6 * even:.0f} Mbit/s"
        )


def main(folder: Path) -> None:
    if sys.argv[1:]:
        root, address, relay_key, key = sys.argv[1:]
        answer(RelayLink(address, load_key(Path(key)), relay_key, name="w") if address else HubLink(Path(root), name="w"))
    root, address = folder / "out", f"tcp://127.0.0.1:{free_port()}"
    (folder / "in").mkdir()
    words = [f"watch.root={folder / 'in'}", f"output.root={root}", f"relay.listen={address}", "denoise.model=laplace"]
    ring = KeyRing(load(None, words))
    ring.allow("other", make_key(folder / "key").public)
    hub = HubSocket(root)
    command = [sys.executable, "-m", "aet_stream", "relay", *(part for word in words for part in ("--set", word))]
    me = [sys.executable, "-m", "tests.bench_relay", str(root)]
    children = [subprocess.Popen(words) for words in (command, [*me, "", "", ""], [*me, address, ring.own().public, str(folder / "key")])]
    try:
        peers: dict[str, bytes] = {}

        def known() -> bool:
            for heard in hub.receive(0.1):
                if not isinstance(heard, WireError) and isinstance(heard[1], Ready):
                    peers["CURVE" if heard[1].host else "ipc"] = heard[0]
            return len(peers) == 2

        wait_for(known, limit_s=60, what="both workers")
        for size_px in SIZES_PX:
            pixels = np.random.default_rng(0).integers(0, 60000, (size_px, size_px)).astype("<u2")
            took: dict[str, list[float]] = {way: [] for way in peers}
            for number in range(TIMES + 1):
                for way, peer in peers.items():
                    seconds = turn_s(hub, peer, pixels)
                    took[way] += [seconds] if number else []  # the first warms up
            nbytes = 6 * size_px * size_px
            for way in sorted(took):
                mid = median(took[way])
                longest = 1e3 * max(took[way])
                print(
                    f"{size_px:>5} px {way:>5}: {1e3 * mid:7.1f} ms there and back (longest {longest:.1f}), {nbytes / mid / 1e6:.0f} MB/s"
                )
    finally:
        for child in children:
            child.terminate()
            child.wait()
        hub.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
    compress()
