"""One look at a file, in the reading child: complete or not, what it holds, what it and its sidecars say of each image, no pixels sent."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.errors import SourceError, SourceNotReady, SourceStillZero
from aet_stream.projection import Acquisition, Array, Candidate
from aet_stream.readers import Probe, Source, open_source, regular_size, stat_stamp, understood
from aet_stream.readers.sidecar import Beside, beside

UNLIKELY = 1e-3
"""A frame that ends in more zeros than chance gives with this probability may be one whose last bytes have not come."""
SECTOR_BYTES = 512
"""Shorter tails are believed if the frame has as many zeros in a row elsewhere: a vacuum that the detector clips is not random."""


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


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it is now."""

    probe: Probe
    units: tuple[Unit, ...]
    waiting: str = ""
    """What has still to come, when some images can be taken already."""


class Sources:
    """The last file that was understood, kept while it stays as it is: its images are asked for one after another."""

    def __init__(self, max_bytes: int, settle_s: float = 0.0) -> None:
        self.max_bytes, self.settle_s = max_bytes, settle_s
        self._kept: tuple[Path, str, Source] | None = None

    def open(self, path: Path) -> tuple[Source, str]:
        """The file, and the stamp of its state.

        Raises
        ------
        SourceGone, SourceNotReady, SourceError
        """
        regular_size(path, self.max_bytes)
        stamp = stat_stamp(path.stat())
        if self._kept is None or self._kept[:2] != (path, stamp):
            self._kept = None
            source = open_source(path, self.max_bytes)
            self.unchanged(path, stamp)
            self._kept = (path, stamp, source)
        return self._kept[2], stamp

    @staticmethod
    def unchanged(path: Path, stamp: str) -> None:
        if stat_stamp(path.stat()) != stamp:
            raise SourceNotReady(f"{path.name}: changed while it was read")


def look(sources: Sources, path: Path, loose: tuple[Path, ...], *, lenient: bool) -> Look:
    """What there is to take. `lenient`: zeros at the end have stood long enough to be believed."""
    source, stamp = sources.open(path)
    probe, waiting = source.probe, ""
    if not probe.sealed and not lenient:
        ready = _written(source, path)
        if ready < probe.images:
            waiting = f"images {ready} to {probe.images - 1} are all zero so far"
            probe = msgspec.structs.replace(probe, images=ready, announced=max(probe.announced, probe.images))
    if not waiting and probe.announced > probe.images:
        waiting = f"{probe.announced} images announced, {probe.images} are there"
    units = tuple(unit(source, path, stamp, image, loose, sources.settle_s) for image in range(probe.images))
    sources.unchanged(path, stamp)
    if units and all(unit.acquisition.no_projection for unit in units):
        raise SourceError(f"{path.name}: no projection, as the file itself says: {units[0].acquisition.no_projection}")
    return Look(probe, units, waiting)


def unit(source: Source, path: Path, stamp: str, image: int, loose: tuple[Path, ...], settle_s: float) -> Unit:
    said, remarks = beside(path, image, source.probe.images, loose, settle_s=settle_s), list[str]()
    own = understood(remarks, "what the file says of its image", lambda: source.acquisition(image), Acquisition(reader=source.probe.reader))
    own = msgspec.structs.replace(own, remark="; ".join(filter(None, (*remarks, own.remark))))
    known = _legible(said.completing(own))
    remark = "; ".join(filter(None, (known.remark, said.remark)))
    return Unit(image, _stamp(source, image, stamp, said), known, said.tilts, remark)


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


def _written(source: Source, path: Path) -> int:
    """How many images hold something up to their end.

    Raises
    ------
    SourceStillZero : the first one, or any of a file that is written at once, does not
    """
    images = source.probe.images
    ready = images
    while ready and zero_tail(source, source.frames(ready - 1)) and source.probe.container:
        ready -= 1
    if ready and source.probe.container:
        return ready
    frames = source.frames(images - 1)
    if tail := zero_tail(source, frames):
        raise SourceStillZero(f"{path.name}: its last {tail} pixels are zero: not written yet? taken, flagged, after watch.zero_grace_s")
    return images


def zero_tail(source: Source, frames: Array) -> int:
    """How many zeros a frame ends in, in the order of the file, if chance would not do that given its other zeros; else 0."""
    for frame in frames:
        flat = (frame[::-1] if source.probe.bottom_up else frame).reshape(-1)
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
