"""The data that travels: one projection as acquired, and what the network made of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

if TYPE_CHECKING:  # who handles no pixels (supervisor, trigger, status) starts without numpy, in half the time
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
else:
    Array = Any

#: What a detector may have written; anything else (complex, RGB, objects) is no projection.
RAW_DTYPES = frozenset({"|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8"})


def sha256_of(pixels: Array) -> str:
    """Name of an image's content: SHA-256 of its bytes in C order, little-endian, in hex."""
    return hashlib.sha256(pixels.data if pixels.flags.c_contiguous else pixels.tobytes()).hexdigest()


class VisitKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which visit to a tilt: one image, in one state of its file."""

    path: str
    """Source file, relative to watch.root, with forward slashes."""
    image: int
    stamp: str
    """State of the source; changes whenever the image may have, or what its sidecar says."""

    @property
    def source(self) -> tuple[str, int]:
        """(path, image), whatever its state."""
        return self.path, self.image


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One statement about a tilt angle, kept with the words it was read from."""

    source: str
    """Where it stands: "metadata", "sidecar", "filename" or "person"."""
    raw: str
    """The text or number as found, with its unit."""
    tilt_deg: float
    unit: str = "deg"
    """What the number found was counted in: "deg", "rad", "?" where the source leaves it in doubt, or "" for one that is no tilt."""


class Acquisition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says about one image, beside its pixels. None means that the file does not say."""

    tilt_deg: float | None = None
    tilt_raw: str = ""
    """The tilt as found in the file, with its unit."""
    tilt_unit: str = "deg"
    """"deg" or "rad"; "?" where the file's own word is in doubt, which holds the projection."""
    tilt_beta_deg: float | None = None
    """The second axis of the stage."""
    pixel_size_nm: float | None = None
    acquired_utc: str = ""
    """ISO 8601 in UTC; empty when the file gives no absolute time."""
    acquired_local: str = ""
    """ISO 8601 without zone, where only the instrument's local time is known."""
    dwell_time_s: float | None = None
    frame_time_s: float | None = None
    scan_rotation_deg: tuple[float, ...] = ()
    """One per frame where known, or one for all."""
    tilt_axis_deg: float | None = None
    """Where the file says that the tilt axis lies in the image, as SerialEM and IMOD count: from the vertical, counterclockwise, with
    the first row shown at the bottom."""
    detector: str = ""
    dataset: str = ""
    """Which of its file's datasets the image is of. Images of one are its frames and tilts; two at one time are two signals, whatever
    their detector is called. Empty where a file holds only one."""
    segment: str = ""
    """Which part of a divided detector, in the file's own words; empty for a whole one, and where the file does not say."""
    no_projection: str = ""
    """Why the file itself says that the image is none, in words: computed from others, a diffraction pattern, a spectrum."""
    microscope: str = ""
    reader: str = ""
    """Name of the format reader that found all this."""
    remark: str = ""
    """What in the file is not believed, and why: metadata that cannot be understood, what looks like a tilt and is none. Said by check,
    where the projection is held, and as its flag where it is stored."""


class Drift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the frames of one visit to one tilt became one image."""

    frames: int = 1
    """Frames that were read."""
    averaged: int = 1
    """Frames that the image is the mean of."""
    shifts_px: tuple[tuple[float, float], ...] = ()
    """(y, x) by which each averaged frame lay off the first; empty for a single frame."""
    doubt_px: float = float("nan")
    """Largest difference between the shifts that two independent halves of the pixels ask for; NaN for a single frame."""
    flag: str = ""
    """What is not as it should be, for example frames that were averaged without being shifted."""


@dataclass(frozen=True, slots=True)
class Projection:
    """One visit to one tilt, as the instrument wrote it: an image, or the registered mean of its frames."""

    pixels: Array
    """(height, width), counts, row 0 first in the file; native detector dtype (see RAW_DTYPES), float32 for a mean."""
    acquisition: Acquisition
    drift: Drift = field(default_factory=Drift)
    extras: Array | None = None
    """(n, height, width) kept beside the mean: the variance over the frames, or the frames themselves."""


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of one subtraction. All in detector counts unless said otherwise; NaN means not known."""

    model: str
    model_sha256: str
    background_mean: float = float("nan")
    vacuum_noise: float = float("nan")
    """Standard deviation of clean over the vacuum."""
    vacuum_residual: float = float("nan")
    """Mean of clean over the vacuum; 0 is perfect."""
    vacuum_fraction: float = float("nan")
    """Share of the frame that is vacuum, 0..1."""
    edge_contact: float = float("nan")
    """Share of the frame's rim that the particle touches, 0..1."""
    laplace_rms: float = float("nan")
    """Root mean square difference between this background and the classical Laplace estimate."""
    gp_rms: float = float("nan")
    """The same for the Gaussian process on the vacuum."""
    expected_error: float = float("nan")
    """Calibrated root mean square error of the background."""
    total_intensity: float = float("nan")
    """Sum of clean over the particle."""
    mass_x_px: float = float("nan")
    """Centre of mass of the particle: columns from the middle of the frame."""
    mass_y_px: float = float("nan")
    trust: float = float("nan")
    """0 (do not use) .. 1; a half where an error of 3 % of the particle's range is expected; NaN where nothing can be said."""
    fallback: str = ""
    """The classical estimator that stood in because the network's answer was no number; empty: none had to."""
    blank: bool = False
    """True when every pixel has the same value: there is nothing to see, and nothing was subtracted."""
    device: str = ""
    precision: str = ""


@dataclass(frozen=True, slots=True)
class Subtracted:
    """A projection without its background: clean = raw - background, nothing clipped or masked."""

    clean: Array
    """(height, width) float32, detector counts."""
    quality: Quality
