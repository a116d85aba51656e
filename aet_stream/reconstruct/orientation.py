"""Is the tilt counted the right way, does the axis lie along y, is the hand right? Asked of one series of a specimen whose volume is known.

From projections alone nobody can tell: turn every tilt around, and the mirrored specimen explains them as well. With a known volume, the
projections it ought to give are compared with those of the series, for each way of turning the pixels and counting the tilts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct.projector import make_projector

MAX_TILTS = 9
CLEAR = 0.002
CLEAR_SIGMA = 3.0
"""The best of all ways must be better than the next by this much, and by so many standard errors over the tilts; else the specimen is too
symmetric to tell."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of turning pixels and counting tilts, beyond what the series was read with."""

    transpose: bool
    flip_y: bool
    flip_x: bool
    scale: float
    likenesses: Array
    """(tilts,) the highest normalised correlation with the known projection, 0..1."""

    @property
    def likeness(self) -> float:
        return float(self.likenesses.mean())

    @property
    def as_read(self) -> bool:
        return not (self.transpose or self.flip_y or self.flip_x) and self.scale == 1.0


def ways(clean: Array, tilts_deg: Array, volume: Array) -> list[Way]:
    """Every way, the likeliest first.

    Parameters
    ----------
    clean : (n, N, N) background-free, tilt axis along axis 1
    tilts_deg : (n,)
    volume : (N, N, N) the known specimen, [slice y, row, column] as in reconstruction.h5, on the same pixel grid

    Raises
    ------
    ReconstructionError : shapes that do not belong together
    """
    if clean.ndim != 3 or clean.shape[1] != clean.shape[2] or volume.shape != (clean.shape[1],) * 3:
        raise ReconstructionError(f"projections {clean.shape[1:]} and volume {volume.shape}: one cube of the projections' edge is needed")
    some = np.unique(np.linspace(0, len(clean) - 1, min(MAX_TILTS, len(clean))).round().astype(int))
    frames, tilts = clean[some], np.asarray(tilts_deg, dtype=np.float64)[some]
    found = []
    known = {scale: [_spectrum(image) for image in _projections(volume, tilts * scale)] for scale in (1.0, -1.0)}
    for transpose, flip_y, flip_x in product((False, True), repeat=3):
        turned = frames.swapaxes(1, 2) if transpose else frames
        turned = turned[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
        spectra = [_spectrum(image) for image in turned]
        for scale, expected in known.items():
            likenesses = np.array([_likeness(a, b) for a, b in zip(spectra, expected, strict=True)])
            found.append(Way(transpose, flip_y, flip_x, scale, likenesses))
    return sorted(found, key=lambda way: -way.likeness)


def verdict(found: list[Way]) -> tuple[bool, str]:
    """(the series is right as it is, a sentence)."""
    best, second = found[:2]
    ahead = best.likenesses - second.likenesses
    error = float(ahead.std(ddof=1)) / len(ahead) ** 0.5 if len(ahead) > 1 else 0.0
    if ahead.mean() < max(CLEAR, CLEAR_SIGMA * error):
        return False, f"cannot tell: the two likeliest ways differ by {ahead.mean():.3f}; take a less symmetric specimen, or more tilts"
    if best.as_read:
        return True, f"sign, axis and hand are right (likeness {best.likeness:.3f}, next {second.likeness:.3f})"
    changes = [f"turn round orientation.{name}" for name in ("transpose", "flip_y", "flip_x") if getattr(best, name)]
    changes += ["turn round the sign of angle.scale"] if best.scale < 0 else []
    return False, f"not right: {', '.join(changes)} (likeness {best.likeness:.3f}; as it is {_as_read(found):.3f})"


def _as_read(found: list[Way]) -> float:
    return next(way.likeness for way in found if way.as_read)


def _projections(volume: Array, tilts_deg: Array) -> Array:
    """(tilts, slices, width): what the known specimen ought to give."""
    width = volume.shape[2]
    projector = make_projector(tilts_deg, width)
    sums = projector.forward @ volume[:, projector.inside].astype(np.float32).T
    return np.asarray(sums).reshape(len(tilts_deg), width, -1).swapaxes(1, 2)


def _spectrum(image: Array) -> Array:
    centred = image - image.mean(dtype=np.float64)
    norm = float(np.sqrt((centred * centred).sum())) or 1.0
    return np.fft.rfft2(centred / norm)


def _likeness(a: Array, b: Array) -> float:
    """The highest correlation over all shifts: a series is not aligned yet."""
    return float(np.fft.irfft2(a * b.conj()).max())
