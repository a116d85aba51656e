"""Folders of files as people have them, of which the maker knows what has to become of every image, by what it meant when it made them."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from aet_stream.simulate import writers

Array = np.ndarray[Any, np.dtype[Any]]
SIZE_PX = (24, 20)


class Right(NamedTuple):
    """What has to become of an image."""

    state: str
    words: str = ""
    """That its reason has to hold."""
    tilt_deg: float | None = None


@dataclass
class Image:
    """What the maker meant by one image."""

    pixels: Array
    tilt_deg: float | None = None
    size_nm: float | None = None
    detector: str = ""
    """As the file says."""
    name: str = ""
    """The detector in the file's name."""
    trouble: str = ""
    """Why nobody knows its tilt."""
    odd: str = ""
    """What is wrong with its file as a whole."""
    computed: bool = False
    dark: bool = False


class _Held(NamedTuple):
    """What is not like the rows of its series."""

    key: tuple[str, int]
    image: Image
    unlike: tuple[str, object]
    """In what it is not, and what it is instead."""


@dataclass
class _Series:
    """What its first rows have decided."""

    layout: tuple[tuple[int, ...], str] | None = None
    size_nm: float | None = None
    detector: str = ""
    name: str = ""
    rows: set[tuple[bytes, float]] = field(default_factory=set)
    binding: list[tuple[str, int]] = field(default_factory=list)
    """Rows that were not set aside."""
    held: list[_Held] = field(default_factory=list)


class Mixture:
    """Made from a number alone. `right`: (path, image) -> what has to become of it; `unread`: (folder, kind) -> files without a reader."""

    def __init__(self, seed: int, root: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.root = root
        self.right: dict[tuple[str, int], Right] = {}
        self.unread: Counter[tuple[str, str]] = Counter()
        self.detector = str(self.rng.choice(["", "", "HAADF"]))
        self.by = str(self.rng.choice(["folder", "folder", "leaf"]))
        self.group = str(self.rng.choice(["container", "container", "pattern"]))
        self._made = 0
        self._series: dict[str, _Series] = {}
        self._written: list[tuple[str, Image]] = []
        folders = ["np1", "np2/monday", "np2/tuesday", ""][: self.rng.integers(1, 5)]
        for _ in range(self.rng.integers(3, 10)):
            self._one(str(self.rng.choice(folders)))

    @property
    def settings(self) -> tuple[str, ...]:
        frames = (f"frames.group={self.group}", "frames.expected=2") if self.group == "pattern" else ()
        return (f"series.detector={self.detector}", f"series.by={self.by}", *frames)

    # -- making -------------------------------------------------------------------------------------------------------------------

    def _one(self, folder: str) -> None:
        makers: tuple[Callable[[str], None], ...] = (
            self._named, self._named, self._named, self._nameless, self._no_tilt_by_name, self._detector_in_name, self._detector_in_name,
            self._copy, self._copy, self._repeat, self._other_layout, self._stack, self._stack, self._stack_with_mdoc,
            self._stack_of_one_tilt, self._stage, self._stage, self._contradicting, self._velox, self._velox, self._velox,
            self._segments, self._computed, self._dark, self._tilts_in_one_file, self._in_a_table, self._broken, self._cut_off,
            self._unreadable, self._nothing, self._trash, self._frames,
        )  # fmt: skip
        makers[self.rng.integers(len(makers))](folder)

    def _path(self, folder: str, stem: str, suffix: str) -> str:
        self._made += 1
        return f"{folder}/{stem}{suffix}".lstrip("/").replace("#", f"{self._made:03d}")

    def _pixels(self) -> Array:
        y, x = np.mgrid[: SIZE_PX[0], : SIZE_PX[1]]
        return (1000 + 40 * self._made + 3 * x + 5 * y + self.rng.integers(0, 9, SIZE_PX)).astype("<u2")

    def _tilt(self) -> float:
        return round(float(self.rng.uniform(-70, 70)), 1)

    def _size(self) -> float:
        return float(self.rng.choice([0.05, 0.05, 0.05, 0.02]))

    def _write(self, path: str, content: bytes, images: Sequence[Image] = ()) -> None:
        """The file, a little later than the one before, and what has to become of its images."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, (1.7e9 + 10 * self._made,) * 2)
        for number, image in enumerate(images):
            self._judge((path, number), image)

    def _tag(self, tilt_deg: float) -> str:
        """A tilt as people write it in a name."""
        ways = (
            f"{tilt_deg:+.1f}deg",
            f"tilt_{tilt_deg:.1f}deg",
            f"{'n' if tilt_deg < 0 else 'p'}{abs(tilt_deg):.1f}deg".replace(".", "p", 1),
        )
        return ways[self.rng.integers(len(ways))]

    # -- single images ------------------------------------------------------------------------------------------------------------

    def _named(self, folder: str) -> None:
        image = Image(self._pixels(), self._tilt())
        assert image.tilt_deg is not None
        path = self._path(folder, f"image_#_{self._tag(image.tilt_deg)}", ".tif")
        self._write(path, writers.tiff(image.pixels, 0.0, None), [image])
        self._written.append((path, image))

    def _nameless(self, folder: str) -> None:
        image = Image(self._pixels(), trouble="no tilt angle in metadata, sidecar or file name")
        self._write(self._path(folder, "image_#", ".npy"), writers.npy(image.pixels, 0.0, None), [image])

    def _no_tilt_by_name(self, folder: str) -> None:
        name = str(self.rng.choice(["np_2deg_step_#", "np_scan_90deg_#", "rot_30deg_#", "#_every 2deg"]))
        image = Image(self._pixels(), trouble="which is no tilt by the word beside the number")
        self._write(self._path(folder, name, ".tif"), writers.tiff(image.pixels, 0.0, None), [image])

    def _detector_in_name(self, folder: str) -> None:
        name = str(self.rng.choice(["HAADF", "BF"]))
        image = Image(self._pixels(), self._tilt(), name=name)
        self._write(self._path(folder, f"{name}_#_{image.tilt_deg:+.1f}deg", ".npy"), writers.npy(image.pixels, 0.0, None), [image])

    def _copy(self, folder: str) -> None:
        """Of a file of the same series: the same pixels under another name."""
        mine = [(path, image) for path, image in self._written if self._name_of(path) == self._name_of(f"{folder}/x".lstrip("/"))]
        if mine:
            _, image = mine[self.rng.integers(len(mine))]
            path = self._path(folder, f"copy_#_{image.tilt_deg:+.1f}deg", ".tif")
            self._write(path, writers.tiff(image.pixels, 0.0, None), [image])

    def _repeat(self, folder: str) -> None:
        """Another image at a tilt that there is already."""
        tilt_deg = self._written[-1][1].tilt_deg if self._written else 0.0
        image = Image(self._pixels(), tilt_deg)
        self._write(self._path(folder, f"again_#_{tilt_deg:+.1f}deg", ".tif"), writers.tiff(image.pixels, 0.0, None), [image])

    def _other_layout(self, folder: str) -> None:
        pixels = self._pixels()
        pixels = pixels[:-2] if self.rng.integers(2) else pixels.astype("<f4")
        image = Image(pixels, self._tilt())
        self._write(self._path(folder, f"other_#_{image.tilt_deg:+.1f}deg", ".npy"), writers.npy(pixels, 0.0, None), [image])

    def _stage(self, folder: str) -> None:
        image = Image(self._pixels(), self._tilt(), self._size())
        self._write(self._path(folder, "stage_#", ".dm4"), writers.dm4(image.pixels, image.tilt_deg or 0.0, image.size_nm), [image])

    def _contradicting(self, folder: str) -> None:
        tilt_deg, size_nm = self._tilt(), self._size()
        image = Image(self._pixels(), size_nm=size_nm, trouble="sources disagree by more than 0.5 deg")
        path = self._path(folder, f"np_#_{tilt_deg + 5:+.1f}deg", ".dm3")
        self._write(path, writers.dm3(image.pixels, tilt_deg, size_nm), [image])

    def _in_a_table(self, folder: str) -> None:
        """A table that speaks of it by its name."""
        image = Image(self._pixels(), self._tilt())
        path = self._path(folder, "listed_#", ".npy")
        name = path.rpartition("/")[2]
        self._write(path.replace("listed", "table").replace(".npy", ".csv"), f"file,tilt\n{name},{image.tilt_deg}\n".encode())
        self._write(path, writers.npy(image.pixels, 0.0, None), [image])

    def _frames(self, folder: str) -> None:
        """Two frames of one tilt in two files: one image, their mean, where names are asked for it."""
        if self.group != "pattern":
            return
        frames, tilt_deg = [self._pixels(), self._pixels()], self._tilt()
        stem = self._path(folder, f"shot_#_{tilt_deg:+.1f}deg", "")
        whole = Image(np.mean(frames, axis=0).astype("<f4"), tilt_deg)
        for number, pixels in enumerate(frames):
            self._write(f"{stem}_f{number}.npy", writers.npy(pixels, 0.0, None), [whole] if number == 0 else ())

    # -- stacks -------------------------------------------------------------------------------------------------------------------

    def _stack_images(self, tilts_deg: Sequence[float], size_nm: float | None, odd: str = "") -> list[Image]:
        images = []
        for tilt_deg in tilts_deg:
            self._made += 1
            images.append(Image(self._pixels(), tilt_deg, size_nm, odd=odd))
        return images

    def _tilts(self) -> list[float]:
        return [round(-40.0 + 20.0 * step + float(self.rng.uniform(0, 5)), 1) for step in range(self.rng.integers(2, 6))]

    def _stack(self, folder: str) -> None:
        images = self._stack_images(self._tilts(), self._size())
        self._write_stack(self._path(folder, "stack_#", ".mrc"), images)

    def _stack_of_one_tilt(self, folder: str) -> None:
        """As a program writes that knows no tilt; one image, or two at the same tilt while it may still grow, are no such stack."""
        count, tilt_deg = int(self.rng.integers(1, 6)), float(self.rng.choice([0.0, 0.0, -12.0]))
        odd = f"all images of the file say {tilt_deg:g} deg" if count > 2 else ""
        self._write_stack(self._path(folder, "same_#", ".mrc"), self._stack_images([tilt_deg] * count, self._size(), odd))

    def _write_stack(self, path: str, images: list[Image]) -> None:
        lines = "".join(f"{image.tilt_deg}\n" for image in images)
        self._write(path.replace(".mrc", ".rawtlt"), lines.encode())
        self._write(path, writers.mrc(np.stack([image.pixels for image in images]), 0.0, images[0].size_nm), images)

    def _stack_with_mdoc(self, folder: str) -> None:
        images = self._stack_images(self._tilts(), self._size())
        path = self._path(folder, "series_#", ".mrc")
        said = writers.mdoc(path, [image.tilt_deg or 0.0 for image in images], images[0].size_nm)
        self._write(f"{path}.mdoc", said)
        self._write(path, writers.mrc(np.stack([image.pixels for image in images]), 0.0, images[0].size_nm), images)

    # -- several signals in a file --------------------------------------------------------------------------------------------------

    def _velox(self, folder: str) -> None:
        """One detector, or two of which one is meant."""
        detectors = [["HAADF"], ["HAADF"], ["BF"], ["BF", "HAADF"], ["HAADF", "BF"]][self.rng.integers(5)]
        tilt_deg, size_nm = self._tilt(), self._size()
        self._write_velox(folder, "velox_#", [Image(self._pixels(), tilt_deg, size_nm, detector) for detector in detectors])

    def _segments(self, folder: str) -> None:
        tilt_deg, size_nm, count = self._tilt(), self._size(), int(self.rng.integers(2, 5))
        images = [Image(self._pixels(), tilt_deg, size_nm, "DF4", odd="which one is the projection?") for _ in range(count)]
        self._write_velox(folder, "segments_#", images)

    def _computed(self, folder: str) -> None:
        """A detector's image, and what was made of it or of spectra, before or after it."""
        tilt_deg, size_nm = self._tilt(), self._size()
        real = Image(self._pixels(), tilt_deg, size_nm, "HAADF")
        how = "SuperXG1" if self.rng.integers(2) else "HAADF"
        made = Image((self._pixels() / 7).astype("<f4"), tilt_deg, size_nm, how, computed=True)
        self._write_velox(folder, "computed_#", [real, made] if self.rng.integers(2) else [made, real])

    def _dark(self, folder: str) -> None:
        """The second detector was switched off: nobody has to wait for it."""
        tilt_deg, size_nm = self._tilt(), self._size()
        dark = Image(np.zeros(SIZE_PX, "<u2"), tilt_deg, size_nm, "BF", dark=True)
        real = Image(self._pixels(), tilt_deg, size_nm, "HAADF")
        self._write_velox(folder, "dark_#", [real, dark] if self.rng.integers(2) else [dark, real])

    def _tilts_in_one_file(self, folder: str) -> None:
        """One dataset, a frame at each tilt."""
        size_nm = self._size()
        images = [Image(self._pixels(), tilt_deg, size_nm, "HAADF") for tilt_deg in self._tilts()]
        path = self._path(folder, "tomo_#", ".emd")
        write_velox(self.root / path, [images])
        self._write(path, (self.root / path).read_bytes(), images)

    def _write_velox(self, folder: str, stem: str, images: list[Image]) -> None:
        path = self._path(folder, stem, ".emd")
        write_velox(self.root / path, [[image] for image in images])
        self._write(path, (self.root / path).read_bytes(), images)

    # -- what is no image -----------------------------------------------------------------------------------------------------------

    def _broken(self, folder: str) -> None:
        path = self._path(folder, "broken_#_+1.0deg", ".npy")
        self._write(path, b"nonsense" * 100)
        self.right[path, 0] = Right("quarantined", "not a .npy file")

    def _cut_off(self, folder: str) -> None:
        path = self._path(folder, "cut_#_+1.0deg", ".npy")
        self._write(path, writers.npy(self._pixels(), 0.0, None)[:-50])
        self.right[path, 0] = Right("quarantined", "bytes")

    def _unreadable(self, folder: str) -> None:
        """Of a format that nobody reads."""
        suffix = str(self.rng.choice([".eer", ".mib", ".tif.gz", ".raw"]))
        path = self._path(folder, "foreign_#", suffix)
        self._write(path, bytes(range(256)) * 16)
        self.unread[path.rpartition("/")[0], f"*{suffix}"] += 1

    def _nothing(self, folder: str) -> None:
        """What lies beside images and is none."""
        name = str(self.rng.choice(["notes_#.txt", "plan_#.pdf", "half_#_+1.0deg.tif.part", "._hidden_#_+1.0deg.tif", "thumb_#.jpg"]))
        self._write(self._path(folder, name, ""), b"x" * (2000 if "jpg" not in name else 500))

    def _trash(self, folder: str) -> None:
        """What a file server keeps of files that were deleted."""
        place = str(self.rng.choice(["#recycle", "@eaDir", "~snapshot", "System Volume Information"]))
        target = self.root / folder / place / "image_+1.0deg.tif"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(writers.tiff(self._pixels(), 0.0, None))

    # -- what has to become of it ---------------------------------------------------------------------------------------------------

    def _name_of(self, path: str) -> str:
        """The series."""
        return path.rpartition("/")[0] if self.by == "leaf" else path.partition("/")[0] if "/" in path else ""

    def _judge(self, key: tuple[str, int], image: Image) -> None:
        """An image, and what was held before, if two agree that the only row there is was a survey."""
        self.right[key] = self._ending(key, image)
        series = self._series[self._name_of(key[0])]
        agree = next((one.unlike for one, other in combinations(series.held, 2) if _agree(one, other)), None)
        if len(series.binding) == 1 and agree:
            self.right[series.binding[0]] = Right("odd", "but two after it agree on", self.right[series.binding[0]].tilt_deg)
            again = sorted(series.held, key=lambda each: each.unlike != agree)
            self._series[self._name_of(key[0])] = _Series(rows=series.rows)
            for each in again:
                self._judge(each.key, each.image)

    def _ending(self, key: tuple[str, int], image: Image) -> Right:
        series = self._series.setdefault(self._name_of(key[0]), _Series())
        if self.detector and (image.detector or image.name or self.detector) != self.detector:
            return Right("other", f"series.detector is {self.detector}")
        if image.computed:
            return Right("other", "no projection, as the file itself says")
        if image.dark:
            return Right("waiting", "zero")
        if image.trouble:
            return Right("held", image.trouble)
        assert image.tilt_deg is not None
        for mine, used, by in ((image.detector, series.detector, "file"), (image.name, series.name, "name")):
            if mine and used and mine != used and not self.detector:
                series.held.append(_Held(key, image, (f"detector by its {by}", mine)))
                return Right("held", f"detector {mine}", image.tilt_deg)
        if (image.pixels.tobytes(), image.tilt_deg) in series.rows:
            return Right("duplicate", "same pixels and tilt as", image.tilt_deg)
        if image.odd:
            return Right("held", image.odd, image.tilt_deg)
        layout = image.pixels.shape, image.pixels.dtype.str
        if series.layout not in (None, layout):
            series.held.append(_Held(key, image, ("layout", layout)))
            return Right("held", "put it into a folder of its own", image.tilt_deg)
        if image.size_nm and series.size_nm and image.size_nm != series.size_nm:
            series.held.append(_Held(key, image, ("pixel size", image.size_nm)))
            return Right("held", f"pixel size {image.size_nm:g} nm, but the series has {series.size_nm:g} nm", image.tilt_deg)
        series.layout, series.size_nm = layout, series.size_nm or image.size_nm
        series.detector, series.name = series.detector or image.detector, series.name or image.name
        series.rows.add((image.pixels.tobytes(), image.tilt_deg))
        series.binding.append(key)
        return Right("stored", "", image.tilt_deg)


def _agree(one: _Held, other: _Held) -> bool:
    """Two images at two tilts that are alike in that in which they are unlike the series."""
    differ = one.image.pixels.tobytes() != other.image.pixels.tobytes() and one.image.tilt_deg != other.image.tilt_deg
    return differ and one.unlike == other.unlike


def write_velox(path: Path, signals: Sequence[Sequence[Image]]) -> None:
    """A dataset for each signal, with as many frames as it has images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, images in enumerate(signals):
            group = file.create_group(f"Data/Image/{number:032x}")
            group["Data"] = np.stack([image.pixels for image in images], axis=2)
            texts = [json.dumps(_velox_words(image)).encode().ljust(4000, b"\0") for image in images]
            group["Metadata"] = np.stack([np.frombuffer(text, "u1") for text in texts], axis=1)


def _velox_words(image: Image) -> dict[str, Any]:
    size = repr((image.size_nm or 0.0) * 1e-9)
    return {
        "Stage": {"AlphaTilt": repr(math.radians(image.tilt_deg or 0.0)), "BetaTilt": "0"},
        "BinaryResult": {
            "Detector": image.detector, "PixelSize": {"width": size, "height": size}, "PixelUnitX": "m", "PixelUnitY": "m",
        },
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1700000000"}},
    }  # fmt: skip
