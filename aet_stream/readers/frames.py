"""Several frames of one visit to one tilt become one image: rigid drift found, judged, undone, then the mean.

Drift is found by cross-correlation. It is judged by asking the even and the odd rows separately: they see the same specimen with
independent noise, so where the two answers differ, the shift is noise, and the frames are averaged as they are, flagged. Shifts are whole
pixels: no interpolation touches the noise. Frames with another scan rotation are never averaged with the first.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import msgspec
import numpy as np

from aet_stream.errors import SourceNotReady
from aet_stream.projection import Acquisition, Array, Drift
from aet_stream.readers import Source, checked_probe, finished, image_in_range
from aet_stream.tilts import SAME_TILT_DEG

AGREE_PX = 1.5
"""Halves that differ by more do not know the shift."""
SAME_ROTATION_DEG = 1.0


class OneVisit:
    """A file whose images are the frames of one visit, as a sidecar says."""

    def __init__(self, source: Source, path: Path) -> None:
        self._source, self._path = source, path
        given = source.probe
        if given.images < given.promised:
            raise SourceNotReady(f"{path.name}: {given.images} of {given.promised} frames are there")
        height, width = given.shape
        self.probe = checked_probe(path, given.reader, 1, height, width, given.dtype, frames=given.images * given.frames,
                                   bottom_up=given.bottom_up, by_columns=given.by_columns, sealed=given.sealed)  # fmt: skip

    def frames(self, image: int) -> Array:
        image_in_range(self._path, image, 1)
        return finished(self._path, np.concatenate([self._source.frames(frame) for frame in range(self._source.probe.images)]))

    def acquisition(self, image: int) -> Acquisition:
        """What the file says of the first frame; no tilt that can be used if it says another one of another frame."""
        said = [self._source.acquisition(frame) for frame in range(self._source.probe.images)]
        tilts = [one.tilt_deg for one in said if one.tilt_deg is not None]
        if not tilts or max(tilts) - min(tilts) <= SAME_TILT_DEG:
            return said[0]
        words = f"tilts from {min(tilts):g} to {max(tilts):g} deg of what a sidecar calls frames of one"
        return msgspec.structs.replace(said[0], tilt_deg=math.nan, tilt_raw=words)


def sha256_of_frames(frames: Array) -> str:
    """Name of a visit's content: SHA-256 of all frames' bytes; for one frame, of that frame's."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


def combine(frames: Array, rotations_deg: tuple[float, ...], *, keep: str, max_shift: float) -> tuple[Array, Array | None, Drift]:
    """The image of one visit, what is kept beside it, and how it came about.

    Parameters
    ----------
    frames : (n, height, width) counts
    rotations_deg : scan rotation of each frame where known
    keep : "moments" keeps the variance over the averaged frames, (1, height, width) float32; "frames" all frames; "none" nothing
    max_shift : share of the edge; a larger drift is not believed

    Returns
    -------
    A single frame as it is; or the mean, (height, width) float32
    """
    if len(frames) == 1:
        return frames[0], None, Drift()
    chosen, flag = frames, ""
    if len(rotations_deg) == len(frames):
        same = np.abs(np.asarray(rotations_deg) - rotations_deg[0]) <= SAME_ROTATION_DEG
        if not same.all():
            chosen = frames[same]
            flag = f"{int((~same).sum())} of {len(frames)} frames have another scan rotation and are not averaged"
    shifts, doubt = drift_of(chosen)
    limit = max_shift * min(frames.shape[1:])
    trusted = doubt <= AGREE_PX and all(abs(y) <= limit and abs(x) <= limit for y, x in shifts)
    if not trusted:
        flag = "; ".join(filter(None, (flag, "frames averaged without being shifted: their drift is in doubt")))
    mean, variance = _mean(chosen, shifts if trusted else ((0.0, 0.0),) * len(chosen))
    drift = Drift(len(frames), len(chosen), shifts, doubt, flag)
    extras = {"moments": variance[None], "frames": frames}.get(keep)
    return mean, extras, drift


def drift_of(frames: Array) -> tuple[tuple[tuple[float, float], ...], float]:
    """((y, x) of each frame against the first, pixels) and the largest difference between the two halves' answers."""
    if len(frames) == 1:
        return ((0.0, 0.0),), 0.0
    width = frames.shape[2]
    halves = [_spectra(frames[:, start : frames.shape[1] // 2 * 2 : 2]) for start in (0, 1)]
    shifts, doubt = [(0.0, 0.0)], 0.0
    for index in range(1, len(frames)):
        answers = [_peak(spectra[index] * spectra[0].conj(), width) for spectra in halves]
        (y0, x0), (y1, x1) = answers
        doubt = max(doubt, abs(y0 - y1) * 2, abs(x0 - x1))
        together = _peak(halves[0][index] * halves[0][0].conj() + halves[1][index] * halves[1][0].conj(), width)
        shifts.append((float(together[0] * 2), float(together[1])))
    return tuple(shifts), float(doubt)


def _spectra(frames: Array) -> list[Array]:
    """Fourier transforms of windowed frames without their slow background and without the finest noise."""
    height, width = frames.shape[1:]
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    # Frequencies per pixel of the full frame: rows here are every second one.
    fy, fx = np.fft.fftfreq(height)[:, None] / 2, np.fft.rfftfreq(width)[None]
    f2 = fy * fy + fx * fx
    slow, fine = 4.0 / max(2 * height, width), 0.12
    band = np.exp(-f2 / (2 * fine * fine)) * (1 - np.exp(-f2 / (2 * slow * slow)))
    return [np.fft.rfft2((frame - frame.mean(dtype=np.float64)) * window) * band for frame in frames]


def _peak(product: Array, width: int) -> tuple[float, float]:
    """Where the correlation is highest, to a fraction of a pixel by a parabola through its neighbours."""
    height = product.shape[0]
    correlation = np.fft.irfft2(product, (height, width))
    y, x = (int(value) for value in np.unravel_index(int(correlation.argmax()), correlation.shape))

    def fine(before: float, here: float, after: float) -> float:
        curve = before - 2 * here + after
        return 0.5 * (before - after) / curve if curve < 0 else 0.0

    dy = fine(correlation[y - 1, x], correlation[y, x], correlation[(y + 1) % height, x])
    dx = fine(correlation[y, x - 1], correlation[y, x], correlation[y, (x + 1) % width])
    return (y + height // 2) % height - height // 2 + dy, (x + width // 2) % width - width // 2 + dx


def _mean(frames: Array, shifts: tuple[tuple[float, float], ...]) -> tuple[Array, Array]:
    """(mean, variance) float32 over the frames, each moved back by its shift; every pixel over the frames that reach it."""
    height, width = frames.shape[1:]
    count, total, squares = (np.zeros((height, width)) for _ in range(3))
    for frame, (y, x) in zip(frames, shifts, strict=True):
        dy, dx = round(y), round(x)
        to = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
        of = slice(max(0, dy), height - max(0, -dy)), slice(max(0, dx), width - max(0, -dx))
        values = frame[of].astype(np.float64)
        count[to] += 1
        total[to] += values
        squares[to] += values * values
    mean = total / count  # the first frame is never moved, so every pixel is reached
    variance = np.maximum(0.0, (squares - count * mean * mean) / np.maximum(1, count - 1))
    return mean.astype("<f4"), variance.astype("<f4")
