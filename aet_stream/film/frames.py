"""What the estimator of a series is given of each projection, and what becomes of the projection by its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from scipy.ndimage import binary_dilation

from aet_stream.consistency import about_axis
from aet_stream.denoise import cokriging, grid, trust
from aet_stream.denoise.cokriging import totals
from aet_stream.denoise.cokriging.estimator import Drawing, View, drawn_on
from aet_stream.denoise.cokriging.registered import by_mass
from aet_stream.denoise.cokriging.seen import Seen, look, point_px
from aet_stream.denoise.fusion.kriging import SPACING
from aet_stream.film import expected
from aet_stream.projection import Array, Quality

MODEL = "films of the series"


@dataclass(frozen=True, slots=True)
class Frame:
    """One row of the series that takes part."""

    row: int
    view: View
    logit: Array
    quality: Quality
    """Of edition 1"""
    axis_deg: float
    level: float
    """Counts that were taken off `view`, the same of all"""

    @classmethod
    def of(
        cls, row: int, raw: Array, clean: Array, quality: Quality, logit: Array, *,
        tilt_deg: float, time: float, level: float = 0.0, axis_deg: float = 0.0,
    ) -> Frame:  # fmt: skip
        """
        Parameters
        ----------
        raw, clean : (height, width) counts, as acquired and of edition 1
        logit : of the particle's support, Denoiser.support
        time : 0..1 from the first projection of the series to the last
        level : counts about which all of the series lie; a large offset would eat the digits of float32
        axis_deg : where the tilt axis lies, from +y towards -x
        """
        above = (raw - np.float64(level)).astype(np.float32)
        seen = look(above, logit, tilt_deg, time=time, axis_deg=axis_deg)
        shape = (raw.shape[0], raw.shape[1])
        view = View(
            seen,
            look(above - clean, logit, 0.0).blocks.means,
            _expected(quality, seen),
            total=quality.total_intensity / point_px(shape) ** 2,
        )
        return cls(row, view, logit, quality, axis_deg, level)


def _expected(quality: Quality, seen: Seen) -> float:
    """Of the first edition's background under the particle, if all of its error is there."""
    return quality.expected_error / float(np.sqrt(max(seen.hidden.mean(), 1e-3)))


@cache
def code_sha256() -> str:
    """Of all code that decides a result, beside the model that finds the particle."""
    code = sorted(Path(cokriging.__file__).parent.rglob("*.py"))
    here = [Path(__file__), Path(expected.__file__), expected.RULE_FILE]
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*code, *here])).hexdigest()


def with_places(frames: Sequence[Frame], shape: tuple[int, int]) -> list[View]:
    """Their views, and where each particle's centre of mass has the specimen lie; where something else was found, as the others have it."""
    px = point_px(shape)
    elsewhere = totals.off(np.array([frame.view.total for frame in frames]))
    x, y = (np.where(elsewhere, np.nan, [getattr(frame.quality, name) for frame in frames]) for name in ("mass_x_px", "mass_y_px"))
    across, along = about_axis(x, y, np.array([frame.axis_deg for frame in frames]))
    found = by_mass(np.array([frame.view.seen.tilt_deg for frame in frames]), along / px, across / px)
    if found is None:
        return [frame.view for frame in frames]
    return [replace(frame.view, lies=(float(at[0]), float(at[1]))) for frame, at in zip(frames, found, strict=True)]


def finished(frame: Frame, drawing: Drawing, clean: Array) -> tuple[Array, Quality]:
    """The projection and its figures with what the series changes. Where that is nothing, its pixels stay, and its expected error
    and trust are what the series has seen of it."""
    if not drawing.verdict.share:
        return clean, _judged(frame, drawing, clean, frame.quality)
    shape = (clean.shape[0], clean.shape[1])
    clean = clean - drawn_on(drawing.correction, point_px(shape) // SPACING, shape)
    return clean, _judged(frame, drawing, clean, _changed(frame, drawing, clean))


def evidence(frame: Frame, drawing: Drawing, clean: Array) -> dict[str, float]:
    """What may be wrong with the background of a projection that is `finished`, root mean squares over the frame, counts."""
    point = point_px((clean.shape[0], clean.shape[1]))
    return expected.all_evidence(frame.quality, drawing.evidence, drawing.verdict.share, drawing.in_vacuum, point)


def under(values: Array, drawing: Drawing) -> float:
    """Root mean square of (rows, columns) values under the particle."""
    hidden = drawing.seen.hidden
    return float(np.sqrt(np.mean(np.square(values[hidden])))) if hidden.any() else 0.0


def _changed(frame: Frame, drawing: Drawing, clean: Array) -> Quality:
    """The figures of a projection whose background is the series', or holds some of it; the vacuum is as it was."""
    first, shape = frame.quality, (clean.shape[0], clean.shape[1])
    block = point_px(shape) // SPACING
    seen = np.logical_not(binary_dilation(frame.logit > 0))
    total, x_px, y_px = trust.moments(grid.statistics(clean, block)[0], seen, shape, block)
    return msgspec.structs.replace(
        first,
        model=MODEL,
        model_sha256=code_sha256(),
        background_mean=first.background_mean + float(drawing.correction.mean()),
        laplace_rms=float("nan"),
        gp_rms=float("nan"),
        total_intensity=total,
        mass_x_px=x_px,
        mass_y_px=y_px,
    )


def _judged(frame: Frame, drawing: Drawing, clean: Array, quality: Quality) -> Quality:
    """With the error to expect by all that is known; as it was where that is not known, as without vacuum around the particle."""
    rule = expected.shipped()
    error = rule.expected(evidence(frame, drawing, clean))
    if not np.isfinite(error):
        return quality
    shape = (clean.shape[0], clean.shape[1])
    low, high = np.percentile(grid.statistics(clean, point_px(shape) // SPACING)[0], (0.5, 99.5))
    share = error / max(float(high - low), 1e-12)
    return msgspec.structs.replace(quality, expected_error=error, trust=trust.trust_of(rule.margin * share))
