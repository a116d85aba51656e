"""Every file at hand, as we read it and as RosettaSciIO does: pixels, pixel size, tilt; each difference has a reason that is written here.

`python -m tests.test_differential FILE_OR_FOLDER...` prints the counts for any others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile

from aet_stream.errors import AetError
from aet_stream.readers.child import Member, ReaderChild, Rules
from aet_stream.simulate import writers
from tests import containers, format_table, tiff_files
from tests.dm_files import DmFile, stage
from tests.harness import known_image
from tests.rosetta import READERS

_NM = {"m": 1e9, "mm": 1e6, "µm": 1e3, "um": 1e3, "nm": 1.0, "n_m": 1.0, "A": 0.1, "Å": 0.1, "pm": 1e-3}
SAME_DEG = 1e-3


class Seen(NamedTuple):
    """One file as a program reads it."""

    refused: str = ""
    planes: tuple[str, ...] = ()
    """SHA-256 of each image, or of each frame of one, in order."""
    transposed: tuple[str, ...] = ()
    sizes_nm: tuple[float | None, ...] = ()
    """Of each image or signal; None where it is not known, or not the same along both edges."""
    tilts_deg: tuple[float | None, ...] = ()
    units: tuple[str, ...] = ()


class Pair(NamedTuple):
    path: Path
    ours: Seen
    theirs: Seen


# -- reading ------------------------------------------------------------------------------------------------------------------------------


def by_us(path: Path, reader: ReaderChild) -> Seen:
    """Through the reading process, as the daemon does it; frames of one image are kept."""
    try:
        units = reader.look(path, lenient=True).units
        planes, tilts, sizes = list[str](), list[float | None](), list[float | None]()
        for unit in units:
            projection, reading = reader.read_visit([Member(str(path), unit.image)], lenient=True)
            kept = projection.pixels[None] if projection.extras is None else projection.extras.astype(reading.extras_dtype)
            planes += [hashlib.sha256(np.ascontiguousarray(plane).tobytes()).hexdigest() for plane in kept]
            tilts.append(unit.acquisition.tilt_deg)
            sizes.append(unit.acquisition.pixel_size_nm)
    except AetError as error:
        return Seen(refused=str(error))
    return Seen(planes=tuple(planes), sizes_nm=tuple(sizes), tilts_deg=tuple(tilts))


def by_them(said: dict[str, Any]) -> Seen:
    if "refused" in said or not said["signals"]:
        return Seen(refused=said.get("refused", "no image"))
    signals = said["signals"]
    return Seen(
        planes=tuple(plane for signal in signals for plane in signal["planes"]),
        transposed=tuple(plane for signal in signals for plane in signal["transposed"]),
        sizes_nm=tuple(_size_nm(signal["steps"]) for signal in signals),
        tilts_deg=tuple(signal["tilt_deg"] for signal in signals),
        units=tuple(unit for signal in signals for _, unit in signal["steps"]),
    )


def _size_nm(steps: list[tuple[float, str]]) -> float | None:
    sizes = [value * _NM.get(unit, math.nan) for value, unit in steps]
    same = len(sizes) == 2 and all(map(math.isfinite, sizes)) and sizes[0] > 0 and abs(sizes[0] - sizes[1]) <= 0.01 * sizes[1]
    return sizes[1] if same else None


def pairs(paths: list[Path]) -> list[Pair]:
    """Every file as both read it."""
    command = [sys.executable, "-m", "tests.rosetta", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    said = json.loads(done.stdout)
    reader = ReaderChild(timeout_s=60, memory_mib=4096, max_file_mib=64, rules=Rules(max_bytes=0, keep="frames"))
    try:
        return [Pair(path, by_us(path, reader), by_them(said[str(path)])) for path in paths]
    finally:
        reader.close()


# -- comparing ----------------------------------------------------------------------------------------------------------------------------

Reason = tuple[str, Callable[[Pair], bool]]


def _has_an_axis_of_no_length(pair: Pair) -> bool:
    """Among the two that it takes for those of the images."""
    return not {unit.strip("[]") for unit in pair.theirs.units} <= _NM.keys()


#: Difference -> reasons that may stand behind it, the first that holds of a file is the one.
REASONS: dict[str, list[Reason]] = {
    "only we read it": [
        ("Velox files need their Version there, Berkeley ones version_major and emd_group_type", lambda p: p.path.suffix == ".emd"),
        ("a JEOL report needs all its parts there, undamaged", lambda p: p.path.suffix == ".tif" and not p.theirs.planes),
        ("tags of unknown kinds and types end a DM file there", lambda p: p.path.suffix == ".dm4" and not p.theirs.planes),
        ("it asks for all 1,024 records of an Xplore3D header as one number", lambda p: "0-dimensional" in p.theirs.refused),
    ],
    "only they read it": [
        ("we: no projection, as the file itself says", lambda p: "no projection" in p.ours.refused),
        ("we: a line or a spectrum", lambda p: "a line or a spectrum" in p.ours.refused),
    ],
    "pixels": [
        ("it shows Berkeley EMDs transposed", lambda p: set(p.ours.planes) == set(p.theirs.transposed)),
        ("it shows Berkeley EMDs with their axes in reverse", lambda p: p.path.suffix == ".emd" and _has_an_axis_of_no_length(p)),
        ("it shows pages that are marked as smaller copies", lambda p: p.path.suffix == ".tif" and {*p.ours.planes} < {*p.theirs.planes}),
    ],
    "pixel size": [
        ("it reads ImageJ's step without its unit", lambda p: p.path.suffix == ".tif" and set(p.theirs.units) == {""}),
        ("of axes in reverse, it takes one for another", lambda p: p.path.suffix == ".emd" and _has_an_axis_of_no_length(p)),
        ("metres are no pixel size", lambda p: any(size and size > 1e6 for size in p.theirs.sizes_nm)),
        ("1 angstrom is what programs write that know of none", lambda p: p.path.suffix in READERS and p.theirs.sizes_nm == (0.1,)),
    ],
    "tilt": [
        ("it has no tilt of this format", lambda p: set(p.theirs.tilts_deg) == {None}),
        ("of a stack it takes the stage's tilt, which is that of the last image", lambda p: len(p.ours.planes) > 1),
    ],
}  # fmt: skip


def differences(pair: Pair) -> Iterator[str]:
    """In what the two differ; nothing where both refuse a file."""
    ours, theirs = pair.ours, pair.theirs
    if ours.refused or theirs.refused:
        if bool(ours.refused) != bool(theirs.refused):
            yield "only they read it" if ours.refused else "only we read it"
        return
    if sorted(ours.planes) != sorted(theirs.planes):
        yield "pixels"
    sizes = {_rounded(size) for size in ours.sizes_nm}, {_rounded(size) for size in theirs.sizes_nm}
    if sizes[0] != sizes[1]:
        yield "pixel size"
    tilts = [tilt for tilt in theirs.tilts_deg if tilt is not None]
    if any(
        all(abs((our or 0.0) - their) > SAME_DEG or our is None for their in tilts) for our in ours.tilts_deg if our is not None or tilts
    ):
        yield "tilt"


def _rounded(size_nm: float | None) -> float | None:
    return None if size_nm is None else float(f"{size_nm:.5g}")


def compared(found: list[Pair]) -> tuple[Counter[str], list[str]]:
    """(how many files of each kind, each difference that no reason explains)."""
    counts, unexplained = Counter[str](files=len(found)), []
    for pair in found:
        kinds = list(differences(pair))
        both = not (pair.ours.refused or pair.theirs.refused)
        counts["read by both, the same pixels"] += both and "pixels" not in kinds
        counts["read by both, all the same"] += both and not kinds
        counts["refused by both"] += bool(pair.ours.refused and pair.theirs.refused)
        for kind in kinds:
            why = next((reason for reason, holds in REASONS[kind] if holds(pair)), "")
            counts[f"{kind}: {why or 'UNEXPLAINED'}"] += 1
            unexplained += [] if why else [f"{pair.path}: {kind}: {pair.ours} / {pair.theirs}"]
    return counts, unexplained


# -- files --------------------------------------------------------------------------------------------------------------------------------


def generated(folder: Path) -> list[Path]:
    """Of every kind that we write: single images and stacks of every type of pixels."""
    made = [path for _, path in format_table.fixtures(folder)]

    def add(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        made.append(folder / name)

    images = np.stack([known_image(index, 48)[:, :40] for index in range(3)])
    for dtype in ("|u1", "<u2", "<i2", "<i4", "<f4"):
        pixels, tag = images.astype(dtype), dtype[1:]
        for kind in ("dm3", "dm4", "ser", "emd", "mrc", "tiff"):
            if kind != "mrc" or dtype != "<i4":
                add(f"one_{kind}_{tag}{writers.SUFFIX[kind]}", writers.WRITERS[kind](pixels[0], -34.5, 0.05))
        add(f"stack_{tag}_1.ser", writers.ser(pixels, 0.0, 0.05))
        for version in (3, 4):
            dm = DmFile(version)
            axes = [(0.05, 0.0, "nm"), (0.05, 0.0, "nm"), (2.0, 15.0, "deg")]
            add(f"stack_{tag}.dm{version}", dm.file({"ImageList": [dm.image(pixels, stage(-26.0), axes)]}))
        if dtype != "<i4":
            add(f"stack_{tag}.mrc", writers.mrc(pixels, 0.0, 0.05))
        for packing in (None, "zlib"):
            name = folder / f"pages_{tag}_{packing}.tif"
            tifffile.imwrite(name, pixels, photometric="minisblack", compression=packing)
            made.append(name)
    add("odd_tag.dm4", DmFile(4).file([dm.entry(99, "odd", b"12345"), dm.tag("ImageList", [dm.image(images[0], stage(-34.5))])]))
    add("thumbnail_+1.0deg.tif", tiff_files.tiff(tiff_files.page(images[0, :12, :10], marked=1), tiff_files.page(images[0])))
    add("damaged.tif", containers.tiff_jeol(images[0], -34.5, 0.05).replace(b"</TemReporter>", b"</TemReport   "))
    return [path for path in made if path.suffix in READERS]


def below(*places: Path) -> list[Path]:
    """Files of formats that both read."""
    files = [path for place in places for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [path for path in files if path.is_file() and path.suffix.lower() in READERS]


@pytest.mark.skipif(importlib.util.find_spec("rsciio") is None, reason="RosettaSciIO (extra `rsciio`) is not installed")
def test_every_difference_from_rosettasciio_has_a_reason(tmp_path: Path) -> None:
    """Own files of every kind, and third-party samples where they are: the same pixels, pixel sizes and tilts, or it is known why not."""
    data = os.environ.get("AET_STREAM_TEST_DATA", "")
    counts, unexplained = compared(pairs(generated(tmp_path) + (below(Path(data)) if data else [])))
    show(counts)
    assert not unexplained
    assert counts["read by both, the same pixels"] > 60


def show(counts: Counter[str]) -> None:
    print("\n" + "\n".join(f"{number:5d}  {what}" for what, number in counts.items()))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        files = below(*map(Path, sys.argv[1:])) or generated(Path(name))
        counts, unexplained = compared(pairs(files))
    show(counts)
    print("\n".join(unexplained))


if __name__ == "__main__":
    main()
