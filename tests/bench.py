"""`make bench`: the figures we publish. Absolute times depend on the machine; ratios within one run do not.

Close of file to readable in series.h5 by stage, throughput, memory of each role; inference against a plain eager DnCNN; the hub's own
ceiling; the solver. `python -m tests.bench latency hub inference batch reconstruct atoms monitor` runs only the parts named.
Each run adds a line to docs/bench.jsonl (bench_history.py), and says what has become slower.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from aet_stream.denoise.hardware import has_bfloat16
from aet_stream.messages import WIRE_VERSION, Acquired, Done, FileOffer, Job, Offer, Ready, Want
from aet_stream.projection import Acquisition, Candidate, Quality, sha256_of
from aet_stream.simulate.writers import tiff
from aet_stream.status import WatchStatus
from aet_stream.training.dataset import Mixer, Recipe
from aet_stream.transport import HubLink
from tests import bench_batch, bench_history
from tests.durability.soak import cost_of_safety
from tests.harness import Daemon, running, wait_for

MODEL = "default"
SECONDS: dict[str, float] = {}
"""What is kept of this run, by figure."""
SEED = 4_000_000
"""Of particles and films that neither training nor judging meets."""


def frame(index: int, size_px: int) -> np.ndarray:
    """A ball on a slope, different for every index: for those who do not look at it."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) / size_px - 0.5
    blob = 900 * np.exp(-(x * x + y * y) / 0.03)
    return (blob + 300 + 100 * x + np.random.default_rng(index).poisson(40, (size_px, size_px))).astype("<u2")


def recorded(count: int, size_px: int) -> list[np.ndarray]:
    """As a microscope records them: simulated particles under films, half of the frames with noise; most of them show their columns."""
    mixer = Mixer(Recipe(backgrounds=("film",), noise=0.5, plain=True, sizes_px=(size_px,)), seed=SEED, particles=6, views=2)
    frames = [mixer.sample(np.random.default_rng([SEED, index])).raw for index in range(count)]
    return [(4000 * (raw - raw.min()) + 200).astype("<u2") for raw in frames]


def peak_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def latency(folder: Path, size_px: int, files: int) -> None:
    """One file at a time, closed by its writer; then as many at once, for throughput."""
    contents = [tiff(pixels, 0.0, 0.05) for pixels in recorded(2 * files, size_px)]
    settings = {
        "denoise.model": MODEL,
        "monitor.enabled": True,
        "monitor.port": 0,
        "watch.scan_s": 2.0,
        "watch.settle_s": 1.0,
        "output.fold_rows": 256,
    }
    with running(folder, **{key.replace(".", "__"): value for key, value in settings.items()}) as daemon:
        target = daemon.root / "series"
        target.mkdir()
        wait_for(lambda: "ready: watching" in daemon.log.read_text(), limit_s=120, what="all roles to be ready")
        for index, content in enumerate(contents[:files]):
            (target / f"one_{index:03d}_{index:+d}deg.tif").write_bytes(content)
            wait_for(lambda index=index: daemon.status()["totals"]["stored"] == index + 1, limit_s=60)
        stages = daemon.status()["latency"]["stages"]
        words = "  ".join(f"{name} {f['p50_s'] * 1000:.0f}/{f['p99_s'] * 1000:.0f}" for name, f in stages.items())
        began = time.monotonic()
        for index, content in enumerate(contents[files:]):
            (target / f"many_{index:03d}_{90 - index:+d}deg.tif").write_bytes(content)
        wait_for(lambda: daemon.status()["totals"]["stored"] == 2 * files, limit_s=300)
        rate = files / (time.monotonic() - began)
        SECONDS[f"{size_px} px, close to readable"] = stages["total"]["p50_s"]
        SECONDS[f"{size_px} px, a frame of many"] = 1 / rate
        memory = "  ".join(f"{name} {peak_mib(pid)}" for name, pid in daemon.role_pids().items())
        print(f"{size_px:>5} px  p50/p99 ms of {files}: {words}")
        print(f"          sustained {rate:.1f} frames/s   peak MiB: {memory}", flush=True)


def hub_ceiling(folder: Path, size_px: int, rows: int) -> float:
    """Prints, and returns, rows a second with a worker that does nothing and a watch that reads nothing: what the hub alone can do."""
    daemon = Daemon(folder)
    pixels = [frame(index, size_px) for index in range(16)]
    clean = np.zeros((size_px, size_px), "<f4")
    log = (folder / "hub.txt").open("w")
    hub = subprocess.Popen(daemon.command("hub", *daemon.set), stderr=log)
    watch, worker = (HubLink(daemon.out, name=role) for role in ("watch", "worker"))
    try:
        wait_for(lambda: watch.beat(WatchStatus()) and list(watch.receive(0.05)) is not None and watch.hub_id, what="the hub")
        now = time.time()
        nbytes = size_px * size_px * 2
        offers = tuple(FileOffer(f"s/{i:05d}.tif", ((0, "1"),), nbytes, now) for i in range(rows))
        began = time.monotonic()
        watch.send(Offer(files=offers))
        worker.send(Ready(name="worker", model_sha256="0", wire=WIRE_VERSION))
        done = beaten = 0
        while done < rows:
            for message, _ in watch.receive(0.001):
                if isinstance(message, Want):
                    number = int(message.visit.path[2:7])
                    image = pixels[number % 16].copy()
                    image[0, :2] = number % 65536, number // 65536
                    said = (Candidate("filename", "", number / 100.0),)
                    watch.send(
                        Acquired(
                            visit=message.visit,
                            sha256=sha256_of(image),
                            acquisition=Acquisition(),
                            candidates=said,
                        ),
                        image,
                    )
            for message, _ in worker.receive(0.001):
                if isinstance(message, Job):
                    worker.send(Done(job_id=message.job_id, quality=Quality("none", "0"), network_s=0.0), clean)
                    worker.send(Ready(name="worker", model_sha256="0", wire=WIRE_VERSION))
                    done += 1
            if time.monotonic() - beaten > 0.5:
                beaten = time.monotonic()
                watch.beat(WatchStatus(asked=tuple((offer.path, 0) for offer in offers)))
        wait_for(lambda: daemon.status()["totals"]["stored"] == rows, limit_s=60)
        seconds = time.monotonic() - began
        SECONDS[f"{size_px} px, a row of the hub"] = seconds / rows
        print(f"{size_px:>5} px  {rows / seconds:.0f} rows/s ({rows} rows, fsync on, hub peak {peak_mib(hub.pid)} MiB)", flush=True)
        return rows / seconds
    finally:
        hub.terminate()
        hub.wait(20)
        watch.close()
        worker.close()
        log.close()


def inference(folder: Path) -> None:
    """Our path against the same weights in a plain eager float32 DnCNN, interleaved."""
    import torch

    from aet_stream.denoise.architectures import save_weights
    from aet_stream.denoise.denoiser import Denoiser
    from aet_stream.denoise.dncnn import DnCNN
    from aet_stream.denoise.weights_file import Card

    torch.manual_seed(0)
    plain = DnCNN()
    with torch.no_grad():
        plain.train()(torch.rand(4, 1, 64, 64))  # batch norms in use; what the weights mean does not matter for time
    path = save_weights(
        folder / "dncnn.safetensors", plain.eval().state_dict(), Card(name="DnCNN-17x64", architecture="DnCNN", bfloat16=True)
    )
    ours, coarse = Denoiser(model=str(path)), Denoiser(model=MODEL)

    hardware = f"{torch.get_num_threads()} threads, bfloat16 in the CPU: {has_bfloat16('cpu')}"
    print(f"DnCNN-17x64 at full resolution by our path against plain eager float32; {hardware}")
    for size_px, repeats in ((256, 9), (1024, 5)):
        times: dict[str, list[float]] = {"eager": [], "ours": [], MODEL: []}
        for image in (pixels.astype(np.float32) for pixels in recorded(repeats + 1, size_px)):
            for name, work in (
                ("eager", lambda image=image: plain(torch.from_numpy(image / 1000)[None, None])),
                ("ours", lambda image=image: ours.estimate(image)),
                (MODEL, lambda image=image: coarse.estimate(image)),
            ):
                began = time.perf_counter()
                with torch.inference_mode():
                    work()
                times[name].append(time.perf_counter() - began)
        middle = {name: float(np.median(values[1:])) for name, values in times.items()}
        words = "  ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in middle.items())
        SECONDS[f"{size_px} px, {MODEL} model"] = middle[MODEL]
        SECONDS[f"{size_px} px, full resolution"] = middle["ours"]
        print(
            f"{size_px:>5} px  {words}   ratio {middle['eager'] / middle['ours']:.2f}   {MODEL} {middle['eager'] / middle[MODEL]:.0f}",
            flush=True,
        )


def main(parts: list[str]) -> None:
    parts = parts or ["latency", "arrival", "hub", "safety", "inference", "batch", "reconstruct", "atoms", "monitor"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    references = [bench_history.reference_s()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "latency" in parts:
            print(f"\nclose of file -> readable in series.h5, model {MODEL}, CPU")
            for size_px, files in ((256, 40), (1024, 30), (2048, 15)):
                latency(folder / f"latency{size_px}", size_px, files)
        if "arrival" in parts:
            print("\n10,000 files in the watched tree", flush=True)
            subprocess.run([sys.executable, "-m", "tests.bench_arrival"], check=True)
        if "hub" in parts:
            print("\nthe hub alone, with a worker that does nothing")
            for size_px, rows in ((256, 400), (1024, 150)):
                (folder / f"hub{size_px}").mkdir()
                hub_ceiling(folder / f"hub{size_px}", size_px, rows)
        if "inference" in parts:
            print("\ninference")
            inference(folder)
        if "safety" in parts:
            print("\nwhat fsync costs, in turn within this run (median ms; 1024 px)")
            medians = cost_of_safety(folder)["medians_ms"]
            print("  ".join(f"{name} {value}" for name, value in medians.items()), flush=True)
    if "batch" in parts:
        print("\narchives", flush=True)
        SECONDS.update(bench_batch.main([]))
    references.append(bench_history.reference_s())
    if "reconstruct" in parts:
        print("\nreconstruction", flush=True)
        subprocess.run([sys.executable, "-m", "tests.bench_reconstruct"], check=True)
    if "monitor" in parts and shutil.which("chromium"):
        print("\nthe monitor", flush=True)
        subprocess.run([sys.executable, "-m", "tests.bench_monitor"], check=True)
    if "atoms" in parts and os.environ.get("AET_STREAM_TEST_DATA"):
        print("\natoms of somebody else's series", flush=True)
        subprocess.run([sys.executable, "-m", "tests.bench_atoms", "published"], check=True)
    if SECONDS:
        run, before = bench_history.this_run(SECONDS, float(np.mean(references))), bench_history.read()
        bench_history.add(run)
        print(f"\nagainst the {len(before)} runs in {bench_history.HISTORY.name}: ", end="")
        print("\n".join(["slower", *bench_history.slower(run, before)]) if bench_history.slower(run, before) else "nothing is slower")


if __name__ == "__main__":
    main(sys.argv[1:])
