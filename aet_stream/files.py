"""Files without a daemon: what `run` would make of each, as arrays or in one HDF5 file for every input."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import msgspec
import numpy as np

from aet_stream import __version__, durable, hdf5
from aet_stream.config import Config
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.errors import AetError, NoProjection, SourceError, complaint
from aet_stream.projection import Array, Projection, Quality
from aet_stream.readers.angle import resolve
from aet_stream.readers.child import Member, Reading
from aet_stream.readers.looking import Look


class Reader(Protocol):
    """Reads files, in a process of its own (readers.child.ReaderChild) or in this one (ReaderHere)."""

    def look(self, path: Path, *, lenient: bool = False) -> Look: ...
    def read_visit(self, members: list[Member], *, lenient: bool = False) -> tuple[Projection, Reading]: ...


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a file that is a projection; several frames that the file itself groups are one."""

    image: int
    """Place in the file."""
    of: int
    """How many images the file has."""
    projection: Projection
    """Its tilt_deg is what file, sidecars and name agree on."""
    sha256: str
    """Of the pixels, as a series records it."""
    remark: str = ""
    """Why there is no tilt, and what is not as it should be with the pixels."""


def read_images(path: Path, reader: Reader, config: Config) -> Iterator[SourceImage | SourceError]:
    """Every image of a file, one after the other; in place of one that cannot be read, or is no projection (NoProjection), why.

    Zeros at its end are believed: whoever names a file says that it is written.

    Raises
    ------
    AetError : the file cannot be read as a whole
    """
    real = path.resolve()  # who names a link means what it leads to
    look = reader.look(real, lenient=True)
    for unit in look.units:
        known = unit.acquisition
        if known.no_projection:
            yield NoProjection(f"{path}: image {unit.image} is left out: no projection, as the file itself says: {known.no_projection}")
            continue
        try:
            projection, reading = reader.read_visit([Member(str(real), unit.image)], lenient=True)
        except AetError as error:
            yield SourceError(f"{path}: image {unit.image}: {complaint(error, str(real))}")
            continue
        stated, objection = resolve(known, unit.tilts, path.name, look.probe.promised, config.angle, remark=unit.remark)
        known = msgspec.structs.replace(projection.acquisition, tilt_deg=None if objection else stated[0].tilt_deg)
        whole = Projection(projection.pixels, known, projection.drift, projection.extras)
        remark = "; ".join(filter(None, (str(objection or ""), projection.drift.flag)))
        yield SourceImage(unit.image, len(look.units), whole, reading.sha256, remark)
    if look.waiting or look.probe.partial:
        yield SourceError(f"{path}: not whole: {look.waiting or f'{look.probe.partial} bytes of one image more'}")


def denoise_file(
    path: Path, target: Path, reader: Reader, denoiser: Denoiser, config: Config, *, progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[AetError]]:
    """Write `target`: raw, clean, background and figures of every image of a file; returns how many, and what was left out.

    Images of one shape and type stand in one group: that of the first at the top, others in groups of their own. `target` is there only
    once it is whole.

    Parameters
    ----------
    progress : called with (images done, images in all)

    Raises
    ------
    AetError : the file cannot be read, none of its images can, or the target cannot be written
    """
    complaints: list[AetError] = []
    with durable.replacing(target) as draft, hdf5.writing(draft, libver=("earliest", "v108")) as file, ExitStack() as ending:
        groups: dict[str, _Group] = {}
        for found in read_images(path, reader, config):
            if isinstance(found, SourceError):
                complaints.append(found)
                continue
            raw = found.projection.pixels
            kind = f"{raw.shape[0]}x{raw.shape[1]} {raw.dtype}"
            if kind not in groups:
                groups[kind] = _Group(file.create_group(kind) if groups else file, raw)
                ending.callback(groups[kind].finish)
            subtracted = denoiser.subtract(raw)
            groups[kind].add(found, subtracted.clean, subtracted.quality)
            file.check()
            progress(found.image + 1, found.of)
        if not groups:
            raise complaints[0] if len(complaints) == 1 else SourceError(f"{path}: none of its images can be read: {complaints[0]}")
        file.attrs.update(_about(path, denoiser, config))
    return sum(group.count for group in groups.values()), complaints


def _about(path: Path, denoiser: Denoiser, config: Config) -> dict[str, str]:
    settings = msgspec.to_builtins(config)
    return {
        "description": "raw as acquired, clean = raw - background, nothing clipped or masked; each (image, y, x), detector counts",
        "source": str(path.absolute()),
        "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "software": f"aet_stream {__version__}",
        "model": denoiser.name,
        "model_sha256": denoiser.sha256,
        "settings": msgspec.json.encode({key: settings[key] for key in ("denoise", "frames", "orientation")}).decode(),
    }


class _Group:
    """Images of one shape and type, in the order of the file."""

    def __init__(self, group: h5py.Group, first: Array) -> None:
        self._group, self.count = group, 0
        self._columns: dict[str, list[Any]] = {}
        for name, dtype in (("raw", first.dtype), ("clean", "<f4"), ("background", "<f4")):
            self._group.create_dataset(name, (0, *first.shape), dtype, maxshape=(None, *first.shape), chunks=(1, *first.shape))

    def add(self, found: SourceImage, clean: Array, quality: Quality) -> None:
        raw, known = found.projection.pixels, found.projection.acquisition
        for name, plane in (("raw", raw), ("clean", clean), ("background", raw.astype(np.float32) - clean)):
            self._group[name].resize(self.count + 1, axis=0)
            self._group[name][self.count] = plane
        self.count += 1
        row = {
            "image": found.image,
            "sha256": found.sha256,
            "tilt_deg": math.nan if known.tilt_deg is None else known.tilt_deg,
            "pixel_size_nm": math.nan if known.pixel_size_nm is None else known.pixel_size_nm,
            "detector": known.detector,
            "remark": found.remark,
            **{f"quality/{name}": value for name, value in msgspec.structs.asdict(quality).items()},
        }
        for name, value in row.items():
            self._columns.setdefault(name, []).append(value)

    def finish(self) -> None:
        """Write what is known of each image, one value for each; text as bytes of one length (UTF-8)."""
        for name, values in self._columns.items():
            self._group[name] = np.array([value.encode() for value in values], "S") if isinstance(values[0], str) else np.array(values)
