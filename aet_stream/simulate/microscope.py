"""An instrument that writes a tilt series file by file, with all the habits and accidents of real ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aet_stream import durable
from aet_stream.projection import Array
from aet_stream.simulate.series import SimulatedSeries
from aet_stream.simulate.writers import KNOWS_TILT, SUFFIX, WRITERS, degrees, emi, mdoc

logger = logging.getLogger(__name__)

FAULTS = {
    "truncated": "one file loses its second half and is never finished",
    "nan": "one image has pixels that are no numbers",
    "garbage": "one file holds random bytes",
    "duplicate": "one file is copied under another name",
    "noangle": "one file says nowhere at which tilt it was taken",
    "conflict": "one file's sidecar and name disagree",
    "empty": "one file stays empty",
}


@dataclass(frozen=True, slots=True)
class Shot:
    """One file to be written: name, content, and what lies beside it."""

    name: str
    content: bytes
    sidecar: tuple[str, bytes] | None = None


def shots(images: Array, tilts_deg: Array, pixel_size_nm: float | None, formats: list[str], faults: list[str]) -> Iterator[Shot]:
    """The files of a series in the order of the tilts given; accidents happen a third of the way through.

    Raises
    ------
    ValueError : an unknown format or fault; a format that needs a pixel size, and it is not known (None)
    """
    for word, known in [(f, WRITERS) for f in formats] + [(f, FAULTS) for f in faults]:
        if word not in known:
            raise ValueError(f"{word!r}: choose from {', '.join(known)}")
    for index, (image, tilt) in enumerate(zip(images, tilts_deg, strict=True)):
        shot = _shot(index, image, float(tilt), pixel_size_nm, formats[index % len(formats)])
        yield shot
        if index == len(images) // 3:
            for fault in faults:
                yield _accident(fault, shot, index, image, float(tilt), pixel_size_nm)


def _shot(index: int, image: Array, tilt_deg: float, pixel_size_nm: float | None, kind: str) -> Shot:
    """MRC files get an mdoc, SER files an emi; formats that know no tilt get it into their name."""
    if kind == "mrc":
        name = f"image_{index:03d}.mrc"
        return Shot(name, WRITERS[kind](image, tilt_deg, pixel_size_nm), (f"{name}.mdoc", mdoc(name, [tilt_deg], pixel_size_nm)))
    if kind == "ser":
        return Shot(f"image_{index:03d}_1.ser", WRITERS[kind](image, tilt_deg, pixel_size_nm), (f"image_{index:03d}.emi", emi(tilt_deg)))
    name = f"image_{index:03d}" if kind in KNOWS_TILT else f"probe_{index:03d}_{degrees(tilt_deg, sign=True)}deg"
    return Shot(name + SUFFIX[kind], WRITERS[kind](image, tilt_deg, pixel_size_nm))


def _accident(fault: str, shot: Shot, index: int, image: Array, tilt_deg: float, pixel_size_nm: float | None) -> Shot:
    stem, suffix = f"{fault}_{index:03d}_{degrees(tilt_deg, sign=True)}deg", Path(shot.name).suffix
    match fault:
        case "truncated":
            return Shot(stem + suffix, shot.content[: len(shot.content) // 2])
        case "garbage":
            return Shot(stem + suffix, np.random.default_rng(index).bytes(5000))
        case "empty":
            return Shot(stem + suffix, b"")
        case "nan":
            spoiled = image.astype("<f4")
            spoiled[0, 0] = np.nan
            return Shot(stem + ".npy", WRITERS["npy"](spoiled, tilt_deg, pixel_size_nm))
        case "noangle":
            return Shot("noangle.npy", WRITERS["npy"](image[::-1].copy(), tilt_deg, pixel_size_nm))
        case "conflict":
            name = stem + ".mrc"
            beside = (f"{name}.mdoc", mdoc(name, [tilt_deg + 5], pixel_size_nm))
            return Shot(name, WRITERS["mrc"](image[:, ::-1].copy(), tilt_deg, pixel_size_nm), beside)
    return Shot(stem + suffix, shot.content, shot.sidecar and (f"{stem}{suffix}.mdoc", shot.sidecar[1]))


def write(
    folder: Path,
    series: Iterator[Shot],
    *,
    cadence_s: float = 0.0,
    pieces: int = 1,
    told: Callable[[str], None] = logger.info,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Write files at a cadence, each whole or in slow pieces; returns how many.

    Raises
    ------
    OutputFull : the disk does not take one; nothing of it is left
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for shot in series:
        began = time.monotonic()
        step = -(-len(shot.content) // pieces) or 1
        with _whole_or_none(folder / shot.name) as path, path.open("wb", buffering=0) as file:
            for start in range(0, len(shot.content), step):
                left = memoryview(shot.content)[start : start + step]
                while left:
                    left = left[file.write(left) :]
                if pieces > 1:
                    wait(cadence_s / pieces / 2)
        if shot.sidecar:
            with _whole_or_none(folder / shot.sidecar[0]) as path:
                path.write_bytes(shot.sidecar[1])
        count += 1
        told(f"{shot.name} ({count})")
        wait(max(0.0, cadence_s - (time.monotonic() - began)))
    return count


@contextmanager
def _whole_or_none(path: Path) -> Iterator[Path]:
    """A file that is written under its final name, as instruments do; the disk's refusal leaves nothing of it."""
    with durable.disk_errors(path):
        try:
            yield path
        except OSError:
            path.unlink(missing_ok=True)
            raise


def write_truth(path: Path, series: SimulatedSeries) -> None:
    """What the series really is: `clean`, `background` (tilts, y, x), `tilts_deg`, and `volume` (y, row, column) if there is one."""
    from aet_stream import hdf5

    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.replacing(path) as draft, hdf5.writing(draft) as file:
        for name in ("clean", "background", "tilts_deg"):
            file[name] = getattr(series, name)
        if series.volume is not None:
            file["volume"] = series.volume
        file.attrs["pixel_size_nm"] = series.pixel_size_nm


def truth_path(out: Path, name: str) -> Path:
    """Beside the watched folder, never in it."""
    out = out.resolve()
    return out.with_name(f"{out.name}.truth") / f"{name}.h5"


def arrival(count: int, *, shuffle: bool, seed: int) -> Array:
    """In which order the projections are written."""
    return np.random.default_rng(seed).permutation(count) if shuffle else np.arange(count)
