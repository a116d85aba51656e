"""Old series of mixed formats, and what has to be the same of a series whoever made it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aet_stream.batch.jobs import Job, find
from aet_stream.batch.run import Run, drive
from aet_stream.batch.stages import Outcome, Plan, Task, perform, wanted
from aet_stream.config_file import load
from aet_stream.readers import SUFFIXES
from aet_stream.reprocess import maker_of
from aet_stream.simulate.microscope import shots
from aet_stream.simulate.series import simulate_series
from tests.containers import mrc_fei
from tests.exchanged import data_exchange, tomviz
from tests.harness import ENVIRONMENT, known_image

FOLDERS = (["tiff"], ["npy"], ["mrc"], ["dm4", "emd"], ["ser"], ["tiff", "npy", "mrc"])
STACKS = {"de.h5": data_exchange, "tomviz.emd": lambda images, tilts: tomviz(images, tilts, 0.1)}
TIMES = {"settle_s", "read_s", "queue_s", "network_s", "commit_s", "total_s", "worker", "attempts", "config_sha256", "number"}
"""What may differ between two that make the same series of the same files."""
FITTED = {"mass_residual_px": 9}
"""Of a fit to the whole series, whose last digits are rounding: so many decimals are compared."""
READ = frozenset(SUFFIXES)
QUICK = ("--set", "output.keep_free_mib=0", "--set", "reconstruct.on_close=false", "--set", "film.enabled=false")


def archive(root: Path, count: int, tilts: int = 5) -> list[str]:
    """Write `count` series, half of them folders of single images, half of them stacks in a folder; returns their names."""
    names = []
    for number in range(count):
        name = f"np{number:02d}"
        folder = root / name
        folder.mkdir(parents=True)
        images = np.stack([known_image(100 * number + index) for index in range(tilts)])
        tilts_deg = np.linspace(-60, 60, tilts).round(1)
        if number % 2:
            kinds = [*STACKS.items(), ("fei.mrc", lambda images, tilts: mrc_fei(images.astype("<i2"), tilts, 0.1))]
            file, write = kinds[number // 2 % len(kinds)]
            (folder / file).write_bytes(write(images, tilts_deg.tolist()))
        else:
            for shot in shots(images, tilts_deg, 0.1, FOLDERS[number // 2 % len(FOLDERS)], []):
                (folder / shot.name).write_bytes(shot.content)
                if shot.sidecar:
                    (folder / shot.sidecar[0]).write_bytes(shot.sidecar[1])
        names.append(name)
    return names


def simulated(folder: Path, tilts: int) -> None:
    """A small particle on a film, through its tilts: one series of single images."""
    tilts_deg = np.linspace(-65, 65, tilts).round(1)
    series = simulate_series(seed=3, tilts_deg=tilts_deg, size_px=64, atoms=300)
    folder.mkdir(parents=True)
    for shot in shots(series.raw, tilts_deg, series.pixel_size_nm, ["tiff"], []):
        (folder / shot.name).write_bytes(shot.content)


def tall(folder: Path, height_px: int = 400) -> tuple[str, ...]:
    """A rod along the tilt axis, one image a tilt; returns settings with which its volume takes more than half of the memory."""
    folder.mkdir(parents=True)
    rows, columns = np.arange(height_px)[:, None], np.arange(48)
    for tilt_deg in range(-60, 61, 20):
        centre = 23.5 + 6 * np.cos(np.radians(tilt_deg) + rows / 30)
        np.save(folder / f"rod_{tilt_deg:+d}.0deg.npy", (200 * np.exp(-((columns - centre) ** 2) / 18)).astype(np.uint16))
    return "reconstruct.on_close=true", "reconstruct.iterations=4", "reconstruct.memory_mib=6"


def add(folder: Path, index: int, tilt_deg: float | None, size_px: int = 64) -> Path:
    """One more image for a series of single ones."""
    said = "" if tilt_deg is None else f"_{tilt_deg:+.1f}deg"
    path = folder / f"more_{index:03d}{said}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path, known_image(index, size_px))
    return path


def plan(out: Path, *settings: str, model: str = "constant", again: bool = False) -> Plan:
    """Backgrounds, and what else the settings ask for."""
    words = [
        f"output.root={out}",
        "output.keep_free_mib=0",
        "reconstruct.on_close=false",
        "film.enabled=false",
        f"denoise.model={model}",
        *settings,
    ]
    config = load(None, words)
    return Plan(config, wanted(config), maker_of(config.denoise), again=again)


def jobs(made: Plan, *places: Path) -> list[Job]:
    """Of these places."""
    return find(places, made.config, READ).jobs


def here(made: Plan, *places: Path) -> Run:
    """All that is to be done, in this process."""
    run = Run(made, jobs(made, *places))
    drive(run, Here())
    return run


class Here:
    """An engine without processes."""

    def __init__(self) -> None:
        self._task: list[Task] = []

    def free(self) -> int:
        return 1 - len(self._task)

    def submit(self, task: Task) -> None:
        self._task.append(task)

    def finished(self, timeout_s: float) -> list[Outcome]:
        return [perform(self._task.pop())]

    def close(self) -> None:
        pass


def batch(out: Path, *words: str | Path, model: str = "laplace") -> list[str]:
    """The command."""
    settings = ("--set", f"output.root={json.dumps(str(out))}", "--set", f"denoise.model={model}", *QUICK)
    return [sys.executable, "-m", "aet_stream", "batch", *map(str, words), *settings]


def done(out: Path, *words: str | Path, code: int = 0, model: str = "laplace", limit_s: float = 90) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    ran = subprocess.run(batch(out, *words, model=model), capture_output=True, text=True, env=ENVIRONMENT, timeout=limit_s, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def states(out: Path) -> dict[str, str]:
    """Series -> what the last run says of it."""
    return {row["name"]: row["state"] for row in json.loads((out / "batch.json").read_text())}


def row(out: Path, name: str) -> dict[str, Any]:
    """All that the last run says of one series."""
    return next(row for row in json.loads((out / "batch.json").read_text()) if row["name"] == name)


def said(series: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(path, image) -> everything that is the same of it whoever made the series: pixels, tilt, all columns. By plain HDF5 alone."""
    with h5py.File(series, "r") as file:
        columns = {name: item[()] for name, item in file["/aet/projection"].items() if name not in TIMES and isinstance(item, h5py.Dataset)}
        rows = {}
        for place, source in enumerate(zip(columns["path"], columns["image"], strict=True)):
            found = {name: repr(value[place].tolist()) for name, value in columns.items()}  # so that NaN is NaN
            found |= {name: repr(round(float(columns[name][place]), digits)) for name, digits in FITTED.items() if name in columns}
            found |= {"theta": float(file["/exchange/theta"][place]), "raw": file["/aet/raw"][place].tobytes()}
            rows[source[0].decode(), int(source[1])] = found | {"clean": file["/exchange/data"][place].tobytes()}
        assert len(rows) == len(columns["path"]), "a source twice"
        return rows


def volume_said(path: Path) -> dict[str, str]:
    """All that a volume's file holds, datasets and attributes, but how long it took."""
    found = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        found.update({f"{name}.{key}": repr(value) for key, value in item.attrs.items() if key != "seconds"})
        if isinstance(item, h5py.Dataset):
            found[name] = hashlib.sha256(np.ascontiguousarray(item[()]).tobytes()).hexdigest()

    with h5py.File(path, "r") as file:
        file.visititems(note)
    return found


def alive(pid: int) -> bool:
    """Is this process there, and no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
