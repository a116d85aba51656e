"""`make demo`: a simulated microscope writes 60 tilts, the daemon turns them into a background-free series and its volume.

Real processes, no GPU. Prints a table, draws summary.png, and exits with 0 only if everything is as it should be.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.fft import irfftn, rfftn

from aet_stream.denoise.denoiser import Denoiser
from aet_stream.reconstruct.figure import add_scale_bar, central_slices
from aet_stream.training.evaluate import psnr_db, ssim

TILTS = 60
SIZE_PX = 256
CADENCE_S = 0.5
LIMIT_S = 900
SERIES = "particle"
AET_STREAM = [sys.executable, "-m", "aet_stream"]


def main(folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "watch").mkdir(parents=True)
    config = folder / "config.toml"
    paths = {"watch": folder / "watch", "output": folder / "output"}
    config.write_text(
        "".join(f"[{key}]\nroot = {json.dumps(str(path.resolve()))}\n" for key, path in paths.items()) + "[monitor]\nport = 0\n"
    )
    console = Console()
    console.print(f"[bold]A simulated microscope writes {TILTS} tilts of {SIZE_PX} px into {paths['watch']}; aet-stream watches.[/bold]")
    began = time.monotonic()
    microscope = subprocess.Popen(
        [*AET_STREAM, "simulate", "--out", str(paths["watch"]), "--name", SERIES, "--tilts", str(TILTS), "--size", str(SIZE_PX),
         "--cadence", str(CADENCE_S), "--seed", "7", "--background", "edge"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    await_first_file(folder / "watch" / SERIES, microscope)
    daemon = subprocess.Popen([*AET_STREAM, "run", "--config", str(config), "--until-idle", "5", "--strict"])
    try:
        code = daemon.wait(LIMIT_S)
        if microscope.poll() != 0:
            how = "was still writing" if microscope.returncode is None else f"ended with exit code {microscope.returncode}"
            console.print(f"[red]demo failed: the daemon ended with exit code {code}, the simulated microscope {how}[/red]")
            return 1
    except KeyboardInterrupt:
        console.print("[red]demo stopped[/red]")
        return 130
    except subprocess.TimeoutExpired:
        console.print(f"[red]demo failed: not done after {LIMIT_S} s[/red]")
        return 1
    finally:
        for process in (microscope, daemon):
            stop(process)
    return report(console, folder, config, code, time.monotonic() - began)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, kill, wait; nothing when it has ended already. A second Ctrl-C changes nothing about that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def await_first_file(folder: Path, microscope: subprocess.Popen[bytes]) -> None:
    """The microscope needs a moment to make its particle; the daemon would take that for idleness."""
    while not any(folder.glob("*")) and microscope.poll() is None:
        time.sleep(0.05)


def report(console: Console, folder: Path, config: Path, code: int, seconds: float) -> int:
    """Compare what came out with the truth, and show it."""
    answer = subprocess.run([*AET_STREAM, "status", "--json", "--config", str(config)], capture_output=True, text=True, check=True)
    status = json.loads(answer.stdout)
    totals = status["totals"]
    files = len(list((folder / "watch" / SERIES).iterdir()))
    table = Table("", "", title=f"aet-stream demo, {seconds:.0f} s")
    table.add_row("files in", str(files))
    for key in ("stored", "held", "quarantined", "duplicates"):
        table.add_row(key, str(totals[key]))
    for stage, figures in status["latency"]["stages"].items():
        name = "file closed to readable" if stage == "total" else f"  {stage}"
        table.add_row(f"latency p50 / p99, {name}", f"{figures['p50_s']:.3f} / {figures['p99_s']:.3f} s")
    series, volume = folder / "output" / SERIES / "series.h5", folder / "output" / SERIES / "reconstruction.h5"
    if not series.exists() or not volume.exists():
        console.print(table)
        console.print(f"[red]demo failed: exit code {code}, and {series if not series.exists() else volume} is not there[/red]")
        return 1
    found = judge(series, volume, folder / "watch.truth" / f"{SERIES}.h5")
    for name, (decibel, likeness) in found["projections"].items():
        table.add_row(f"projections, {name}: PSNR / SSIM", f"{decibel:.1f} dB / {likeness:.3f}")
    table.add_row("volume, relative error (best place and scale)", f"{found['volume_error']:.3f}")
    console.print(table)
    draw(found, folder / "summary.png")
    console.print(f"picture: {folder / 'summary.png'}    series: {series}    volume: {volume}")
    good = code == 0 and totals["stored"] == files == TILTS and not totals["held"] and not totals["quarantined"]
    if not good:
        console.print(f"[red]demo failed: exit code {code}, {totals['stored']} of {files} files stored[/red]")
    return 0 if good else 1


def judge(series: Path, volume: Path, truth: Path) -> dict[str, Any]:
    """Figures against the truth: what is left of the background, and the volume."""
    with h5py.File(series) as file, h5py.File(truth) as true, h5py.File(volume) as made:
        order = np.argsort(file["/exchange/theta"][()])
        raw, clean = file["/aet/raw"][()][order].astype(np.float32), file["/exchange/data"][()][order]
        tilts, pixel_nm = file["/exchange/theta"][()][order], float(true.attrs["pixel_size_nm"])
        real, below, solid = true["clean"][()], true["background"][()], true["volume"][()]
        grown = made["/reconstruction/volume"][()]
    peak = float(real.max())
    laplace = Denoiser(model="laplace")
    backgrounds = {
        "nothing done": np.zeros_like(below),
        "Laplace": np.stack([laplace.estimate(frame)[0].background for frame in raw]),
        "network": raw - clean,
    }
    figures = {
        name: (
            float(np.mean([psnr_db(b / peak, f / peak) for b, f in zip(below, found, strict=True)])),
            float(np.mean([ssim(c / peak, (c + b - f) / peak) for c, b, f in zip(real, below, found, strict=True)])),
        )
        for name, found in backgrounds.items()
    }
    grown = in_place(grown, solid)
    scale = float((grown * solid).sum() / (grown * grown).sum())
    error = float(np.linalg.norm(scale * grown - solid) / np.linalg.norm(solid))
    middle = len(raw) // 2
    frames = {
        "raw": raw[middle],
        "clean": clean[middle],
        "truth": real[middle],
        "background": raw[middle] - clean[middle],
        "true background": below[middle],
    }
    return {"projections": figures, "volume_error": error, "frames": frames, "tilts": tilts, "pixel_nm": pixel_nm,
            "volume": scale * grown, "true_volume": solid}  # fmt: skip


def in_place(volume: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The volume moved by whole voxels to where it agrees best: projections in register fix it but for its place."""
    overlap = irfftn(rfftn(truth) * np.conj(rfftn(volume)), s=truth.shape)
    return np.roll(volume, np.unravel_index(int(overlap.argmax()), truth.shape), (0, 1, 2))


def draw(found: dict[str, Any], path: Path) -> None:
    """One page: a projection before and after, the volume beside the truth, and the tilts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(16, 11.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.75), hspace=0.03)
    left, right = bottom.subfigures(1, 2, width_ratios=(2.6, 1))
    words = [f"{name} {db:.1f} dB" for name, (db, _) in found["projections"].items()]
    figure.suptitle(f"Background error, mean PSNR over {len(found['tilts'])} tilts: {', '.join(words)}", fontsize=13)
    draw_projection(top, found["frames"], found["pixel_nm"])
    draw_volumes(left, found)
    draw_coverage(right.subplots(subplot_kw={"projection": "polar"}), found["tilts"])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_projection(figure: Any, frames: dict[str, np.ndarray], pixel_nm: float) -> None:
    """What belongs together shares its scale: clean with its truth, background with its truth."""
    scales = {"raw": np.percentile(frames["raw"], (0.5, 99.8))}
    scales["clean"] = scales["truth"] = np.percentile(frames["truth"], (0.5, 99.8))
    scales["background"] = scales["true background"] = np.percentile(frames["true background"], (0, 100))
    for axis, (name, image) in zip(figure.subplots(1, len(frames)), frames.items(), strict=True):
        low, high = scales[name]
        shown = axis.imshow(image, cmap="viridis" if "background" in name else "gray", vmin=low, vmax=high)
        figure.colorbar(shown, ax=axis, location="bottom", shrink=0.85, pad=0.02, label="counts")
        axis.set_title(name)
        axis.set_axis_off()
        add_scale_bar(axis, image.shape[1], image.shape[0], pixel_nm)


def draw_volumes(figure: Any, found: dict[str, Any]) -> None:
    """Central slices, cut to the particle, the volume above the truth on the same scale."""
    truth = found["true_volume"]
    middle = np.array(truth.shape) // 2
    reach = int(1.15 * max(np.abs(np.argwhere(truth > 0.02 * truth.max()) - middle).max(axis=0)))
    high = np.percentile(truth[truth > 0.02 * truth.max()], 98)
    rooms = figure.subplots(2, 3)
    for row, (word, volume) in zip(rooms, {"reconstruction": found["volume"], "truth": truth}.items(), strict=True):
        cut = volume[tuple(slice(max(0, m - reach), m + reach + 1) for m in middle)]
        for axis, (title, image) in zip(row, central_slices(cut), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=high)
            axis.set_title(f"{word}, {title}", fontsize=10)
            axis.set_axis_off()
            add_scale_bar(axis, image.shape[1], image.shape[0], found["pixel_nm"])
    figure.suptitle(f"Volume, relative error {found['volume_error']:.2f} after the best shift and factor", fontsize=12)


def draw_coverage(axis: Any, tilts_deg: np.ndarray) -> None:
    """Every tilt a line through the middle; what no tilt sees is shaded."""
    for tilt in np.radians(tilts_deg):
        axis.plot([tilt, tilt + np.pi], [1, 1], color="tab:blue", lw=0.7)
    low, high = np.radians(tilts_deg.min()), np.radians(tilts_deg.max())
    for start in (high, high + np.pi):
        axis.fill_between(np.linspace(start, start + np.pi - (high - low), 50), 0, 1, color="tab:red", alpha=0.2, lw=0)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_xticks(np.radians(np.arange(-60, 91, 30) % 360), [f"{tilt:+d}°" if tilt else "0°" for tilt in range(-60, 91, 30)])
    axis.set_yticks([])
    axis.set_title(f"{len(tilts_deg)} tilts, {tilts_deg.min():+.0f} to {tilts_deg.max():+.0f} deg; red: missing wedge")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
