"""One look at a file, in the reading child: complete or not, what it holds, what it and its sidecars say of each image, no pixels sent."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.config import Series
from aet_stream.errors import SourceError, SourceNotReady, SourceStillZero
from aet_stream.naming import is_left_out
from aet_stream.projection import Acquisition, Array, Candidate
from aet_stream.readers import Probe, Source, open_source, regular_size, stat_stamp, understood
from aet_stream.readers.beside import Beside, Figures, Stack
from aet_stream.readers.frames import OneVisit
from aet_stream.readers.sidecar import beside
from aet_stream.reasons import Reason, why

UNLIKELY = 1e-3
"""A frame that ends in more zeros than chance gives with this probability may be one whose last bytes have not come."""
SECTOR_BYTES = 512
"""Shorter tails are believed if the frame has as many zeros in a row elsewhere: a vacuum that the detector clips is not random."""

COMPARED_BYTES = 512 << 20
"""The pixels of larger stacks are not read for what a sidecar says of their smallest, largest and mean value."""
MOST_FIGURES = 10_000


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One image of a file, and all that is said about it."""

    image: int
    stamp: str
    """State of this image: changes when its pixels or what is said about its tilt may have."""
    acquisition: Acquisition
    tilts: tuple[Candidate, ...] = ()
    """What sidecars say."""
    remark: str = ""
    """What of all that could not be understood, or why a sidecar that is there says no tilt."""
    of_images: int = 1
    """So many images of the file, from this one on, are the frames that it is made of."""


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it is now."""

    probe: Probe
    units: tuple[Unit, ...]
    waiting: Reason | None = None
    """What has still to come, when some images can be taken already."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was understood, in one state."""

    path: Path
    stamp: str
    source: Source
    stack: Stack
    """For the sidecars: all images that the file itself holds."""


class Sources:
    """The last file that was understood, kept while it stays as it is: its images are asked for one after another."""

    def __init__(self, max_bytes: int, settle_s: float = 0.0, series: Series | None = None) -> None:
        self.max_bytes, self.settle_s = max_bytes, settle_s
        self._series = series or Series()
        self._kept: Opened | None = None

    def open(self, path: Path, loose: tuple[Path, ...] = ()) -> Opened:
        """The file with as many images as visits to a tilt: where a sidecar calls all its images frames, it has one.

        Raises
        ------
        SourceGone, SourceNotReady, SourceError
        """
        regular_size(path, self.max_bytes)
        stamp = stat_stamp(path.stat())
        if self._kept is None or (self._kept.path, self._kept.stamp) != (path, stamp):
            self._kept = None
            source = open_source(path, self.max_bytes)
            self.unchanged(path, stamp)
            probe = source.probe
            stack = Stack(probe.promised, probe.images, probe.container, functools.partial(_all_figures, source, path))
            self._kept = Opened(path, stamp, source, stack)
        kept = self._kept
        framed = kept.stack.promised > 1 and self.beside(kept, 0, loose).frames
        return replace(kept, source=OneVisit(kept.source, path)) if framed else kept

    def beside(self, opened: Opened, image: int, loose: tuple[Path, ...]) -> Beside:
        """What its sidecars say of an image."""
        return beside(opened.path, image, opened.stack.promised, loose, settle_s=self.settle_s, stack=opened.stack)

    def unit(self, opened: Opened, image: int, loose: tuple[Path, ...]) -> Unit:
        """All that is said of an image."""
        said = self.beside(opened, image, loose)
        known = _legible(said.completing(self.own(opened, image)))
        remark = "; ".join(filter(None, (known.remark, said.remark)))
        return Unit(image, _stamp(opened.source, image, opened.stamp, said), known, said.tilts, remark, max(1, said.frames))

    @staticmethod
    def own(opened: Opened, image: int) -> Acquisition:
        """What the file itself says of an image."""
        remarks, source = list[str](), opened.source
        unknown = Acquisition(reader=source.probe.reader)
        own = understood(remarks, "what the file says of its image", lambda: source.acquisition(image), unknown)
        return msgspec.structs.replace(own, remark="; ".join(filter(None, (*remarks, own.remark))))

    def waits_for(self, path: Path, said: Acquisition) -> bool:
        """Are zeros at its end a reason to wait for this image? Not for one that will not be stored."""
        return not said.no_projection and not is_left_out(said, path.name, self._series)

    @staticmethod
    def unchanged(path: Path, stamp: str) -> None:
        if stat_stamp(path.stat()) != stamp:
            raise SourceNotReady(f"{path.name}: changed while it was read")


def look(sources: Sources, path: Path, loose: tuple[Path, ...], *, lenient: bool) -> Look:
    """What there is to take. `lenient`: zeros at the end have stood long enough to be believed."""
    opened = sources.open(path, loose)
    probe, waiting = opened.source.probe, None
    late = set[int]() if probe.sealed or lenient else _not_written(sources, opened)
    units = tuple(sources.unit(opened, image, loose) for image in range(probe.images) if image not in late)
    if late:
        waiting = why("zeros_so_far", images=", ".join(map(str, sorted(late))))
        probe = msgspec.structs.replace(probe, images=len(units), announced=max(probe.announced, probe.images))
    elif probe.announced > probe.images:
        waiting = why("announced", announced=probe.announced, there=probe.images)
    sources.unchanged(path, opened.stamp)
    if units and all(unit.acquisition.no_projection for unit in units):
        raise SourceError(f"{path.name}: no projection, as the file itself says: {units[0].acquisition.no_projection}")
    return Look(probe, units, waiting)


_figures: dict[tuple[Path, int, str], Figures] = {}


def _all_figures(source: Source, path: Path) -> tuple[Figures, ...]:
    """Of every image; known ones of a growing stack are not read again."""
    probe = source.probe
    if probe.nbytes_per_image * probe.images > COMPARED_BYTES or probe.frames > 1:
        return ()
    if len(_figures) > MOST_FIGURES:
        _figures.clear()
    state = stat_stamp(path.stat())
    return tuple(_figures_of(source, path, image, state) for image in range(probe.images))


def _figures_of(source: Source, path: Path, image: int, state: str) -> Figures:
    key = path, image, source.mark(image) if source.probe.container else state  # type: ignore[attr-defined]
    if key not in _figures:
        try:
            pixels = source.frames(image)
        except SourceError:  # it will be refused by itself
            return math.nan, math.nan, math.nan
        _figures[key] = float(pixels.min()), float(pixels.max()), float(pixels.mean(dtype=np.float64))
    return _figures[key]


def _legible(said: Acquisition) -> Acquisition:
    """Every text up to its first NUL: behind it lies what was in the instrument's memory, and HDF5 refuses it.

    Half characters, which HDF5 and JSON let pass and no message can carry, become question marks.
    """
    texts = {
        name: text.partition("\0")[0].encode("utf-8", "replace").decode()
        for name, text in msgspec.structs.asdict(said).items()
        if isinstance(text, str)
    }
    return msgspec.structs.replace(said, **texts)


def _stamp(source: Source, image: int, file_stamp: str, said: Beside) -> str:
    """An image of a container has a state of its own, so that the next tilt does not make us read all the others again."""
    mark = f"{file_stamp.rsplit('.', 1)[-1]}#{source.mark(image)}" if source.probe.container else file_stamp  # type: ignore[attr-defined]
    return f"{mark}+{zlib.crc32(msgspec.json.encode(said.tilts)):08x}" if said.tilts else mark


def _not_written(sources: Sources, opened: Opened) -> set[int]:
    """Images whose end may not have been written yet: the last ones of each dataset. Those that nobody will use are not waited for.

    Raises
    ------
    SourceStillZero : there is no other
    """
    source, late = opened.source, set[int]()
    datasets: dict[str, list[int]] = {}
    for image in range(source.probe.images):
        said = sources.own(opened, image)
        if sources.waits_for(opened.path, said):
            datasets.setdefault(said.dataset, []).append(image)
    for images in datasets.values():
        while images and (tail := zero_tail(source, source.frames(images[-1]))):
            late.add(images.pop())
    if len(late) == source.probe.images:
        still = f"its last {tail} pixels are zero: not written yet? taken, flagged, after watch.zero_grace_s"
        raise SourceStillZero(f"{opened.path.name}: {still}")
    return late


def zero_tail(source: Source, frames: Array) -> int:
    """How many zeros a frame ends in, in the order of the file, if chance would not do that given its other zeros; else 0."""
    for frame in frames:
        flat = (frame.T if source.probe.by_columns else frame[::-1] if source.probe.bottom_up else frame).reshape(-1)
        if flat[-1]:
            continue
        written = np.flatnonzero(flat)
        if not written.size:
            return int(flat.size)
        before = int(written[-1]) + 1
        share = (before - written.size + 1) / (before + 1)
        tail = int(flat.size) - before
        elsewhere = int(np.diff(written, prepend=-1).max()) - 1
        usual = tail <= elsewhere and tail * flat.itemsize < SECTOR_BYTES
        if not usual and tail * math.log(share) < math.log(UNLIKELY):
            return tail
    return 0
