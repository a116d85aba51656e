"""One table: what every estimator makes of backgrounds under particles that no training has seen, beside doing nothing at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from aet_stream import durable
from aet_stream.consistency import error_in_series
from aet_stream.denoise import trust
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.estimators import CLASSICAL
from aet_stream.denoise.weights_file import SHIPPED
from aet_stream.projection import Array
from aet_stream.training import sets
from aet_stream.training.calibrate import judged
from aet_stream.training.dataset import Frame
from aet_stream.training.scores import INSIDE, caught, fine_share, psnr_db, r_squared, rank_correlation, ssim

logger = logging.getLogger(__name__)

NOTHING = "nothing"
_SERIES = 20
"""Projections of each particle where trust is judged, about."""
Estimate = Callable[[Array], Array]


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How one estimator did on one set: clean = raw - background, nothing clipped, masked or zeroed."""

    set_name: str
    estimator: str
    mean_db: float
    worst_db: float
    inside_db: float
    """Under the particle only"""
    mean_ssim: float
    error_percent: float
    """Mean of the root mean square error, % of the particle's range"""
    fine_inside: float
    """Share of the background's energy in details below 8 px, under the particle"""
    fine_outside: float
    ms_per_frame: float


class RealScore(msgspec.Struct, frozen=True, kw_only=True):
    """One estimator on one real frame, judged scale-free."""

    estimator: str
    tilt_deg: float
    vacuum_std: float
    """Of the clean frame outside the particle, counts of 255"""
    vacuum_mean: float
    r2_inside: float
    """Against the particle's published atoms"""


class Trusted(msgspec.Struct, frozen=True, kw_only=True):
    """How well an estimator knows its own error, on hard frames: each by itself, and as one of the series of its particle."""

    estimator: str
    frames: int
    particles: int
    rank_correlation: float
    worst_caught: float
    """Of the worst tenth, the share flagged at a tenth of false alarms"""
    median_ratio: float
    """Expected over true error, median over frames"""
    within_factor_two: float
    rank_in_series: float
    caught_in_series: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; `evaluate --json` writes this."""

    scores: list[Score]
    real: list[RealScore]
    trusted: list[Trusted]


def evaluate(
    models: Sequence[str] = (), *, frames: int = 48, only: Sequence[str] = (), trust_frames: int = 400, seed: int = sets.SEED
) -> Report:
    """Score networks (all shipped ones by default) and the classical estimates on fixed sets."""
    names = list(dict.fromkeys(models)) or sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    denoisers = {name: Denoiser(model=name) for name in [*CLASSICAL, *names]}
    scores = []
    for set_name in only or sets.SETS:
        samples = sets.frames(set_name, frames, seed=seed)
        logger.info("%s: %d frames (%s)", set_name, len(samples), sets.SETS[set_name].what)
        scores.append(_score(set_name, NOTHING, lambda frame: np.zeros_like(frame), samples))
        scores += [_score(set_name, name, _background_of(denoiser), samples) for name, denoiser in denoisers.items()]
    real = [score for name in dict.fromkeys((NOTHING, "laplace", *names)) for score in _real(name, denoisers.get(name))]
    hard = sets.frames("hard", trust_frames, seed=seed + 500, each=_SERIES) if trust_frames and "hard" in (only or sets.SETS) else []
    return Report(scores=scores, real=real, trusted=[_trusted(name, denoisers[name], hard) for name in names if hard])


def _background_of(denoiser: Denoiser) -> Estimate:
    """raw - clean, as it is stored."""
    denoiser.warm_up()
    return lambda frame: frame.astype(np.float64) - denoiser.subtract(frame).clean


def _score(set_name: str, name: str, estimate: Estimate, samples: list[Frame]) -> Score:
    backgrounds = []
    began = time.perf_counter()
    for frame in samples:
        backgrounds.append(estimate(frame.raw))
    seconds = time.perf_counter() - began
    if name != NOTHING:
        backgrounds = [(b - np.float32(frame.offset)) / np.float32(frame.unit) for frame, b in zip(samples, backgrounds, strict=True)]
    pairs = list(zip(samples, backgrounds, strict=True))
    inside = [frame.clean > INSIDE for frame in samples]
    figures = [psnr_db(frame.background, b) for frame, b in pairs]
    under = [psnr_db(f.background[where], b[where]) for (f, b), where in zip(pairs, inside, strict=True) if where.any()]
    fine = [(fine_share(b, where), fine_share(b, ~where)) for (_, b), where in zip(pairs, inside, strict=True)]
    return Score(
        set_name=set_name,
        estimator=name,
        mean_db=float(np.mean(figures)),
        worst_db=float(np.min(figures)),
        inside_db=float(np.mean(under)) if under else float("nan"),
        mean_ssim=float(np.mean([ssim(frame.clean, frame.clean + frame.background - b) for frame, b in pairs])),
        error_percent=float(np.mean([100 * 10 ** (-db / 20) / (np.ptp(f.clean) or 1.0) for db, f in zip(figures, samples, strict=True)])),
        fine_inside=_mean([share for share, _ in fine]),
        fine_outside=_mean([share for _, share in fine]),
        ms_per_frame=1000 * seconds / len(samples),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _real(name: str, denoiser: Denoiser | None) -> list[RealScore]:
    scores = []
    for frame in sets.real_frames():
        clean = frame.raw if denoiser is None else denoiser.subtract(frame.raw).clean
        outside = clean[~frame.support]
        scores.append(
            RealScore(
                estimator=name,
                tilt_deg=frame.tilt_deg,
                vacuum_std=float(outside.std()),
                vacuum_mean=float(outside.mean()),
                r2_inside=r_squared(clean, frame.predicted, frame.support),
            )
        )
    return scores


def _trusted(name: str, denoiser: Denoiser, samples: list[Frame]) -> Trusted:
    evidence, errors = zip(*[judged(denoiser, frame) for frame in samples], strict=True)
    shares = np.array([trust.expected_share(one, denoiser.rule) for one in evidence])
    expected, true = shares * [one.range for one in evidence], np.array(errors)
    ratio = np.maximum(expected / true, true / expected)
    in_series = _in_series(expected, evidence, samples)
    return Trusted(
        estimator=name,
        frames=len(samples),
        particles=len({frame.particle for frame in samples}),
        rank_correlation=rank_correlation(expected, true),
        worst_caught=caught(expected, true),
        median_ratio=float(np.median(expected / true)),
        within_factor_two=float((ratio < 2).mean()),
        rank_in_series=rank_correlation(in_series, true),
        caught_in_series=caught(in_series, true),
    )


def _in_series(expected: Array, evidence: Sequence[trust.Evidence], samples: Sequence[Frame]) -> Array:
    """(n,) expected errors when the frames of a particle are taken as one series; backgrounds differ from frame to frame."""
    particles = np.array([frame.particle for frame in samples])
    figures = np.array([(one.total_intensity, one.vacuum_fraction, one.edge_contact) for one in (each.figures for each in evidence)])
    errors = np.empty(len(samples))
    for particle in np.unique(particles):
        of = particles == particle
        totals, vacuum_fraction, edge_contact = figures[of].T
        errors[of] = error_in_series(expected[of], totals, vacuum_fraction, edge_contact, samples[0].raw.size)
    return errors


def table(report: Report) -> str:
    """The report as text, best last in every set."""
    header = (
        f"{'set':<12} {'estimator':<17} {'PSNR dB':>8} {'worst':>7} {'inside':>7} {'SSIM':>7} {'error %':>8} {'fine in/out':>17} {'ms':>7}"
    )
    lines = [header]
    for set_name in dict.fromkeys(score.set_name for score in report.scores):
        for s in sorted((score for score in report.scores if score.set_name == set_name), key=lambda score: score.mean_db):
            lines.append(
                f"{s.set_name:<12} {s.estimator:<17} {s.mean_db:>8.2f} {s.worst_db:>7.2f} {s.inside_db:>7.2f} {s.mean_ssim:>7.4f}"
                f" {s.error_percent:>8.2f} {s.fine_inside:>8.1e} {s.fine_outside:>8.1e} {s.ms_per_frame:>7.1f}"
            )
    if report.real:
        lines += ["", "real frames (vacuum std and mean in counts of 255, R2 inside against the published atoms)"]
        for name in dict.fromkeys(score.estimator for score in report.real):
            of = [score for score in report.real if score.estimator == name]
            cells = "  ".join(f"{s.vacuum_std:5.2f} {s.vacuum_mean:6.2f} {s.r2_inside:.4f}" for s in of)
            lines.append(f"{name:<17} {cells}")
    if report.trusted:
        lines += ["", "trust (hard set)"]
        for t in report.trusted:
            lines += [
                f"{t.estimator:<17} {t.frames} frames of {t.particles} particles: rank correlation {t.rank_correlation:.3f},"
                f" worst tenth caught {t.worst_caught:.0%} at 10 % false alarms;",
                f"{'':<17} in the series of its particle {t.rank_in_series:.3f}, {t.caught_in_series:.0%};"
                f" expected/true {t.median_ratio:.2f}, within a factor of two {t.within_factor_two:.0%}",
            ]
    return "\n".join(lines)


def draw(model: str, path: Path, *, frames: int = 48, seed: int = sets.SEED) -> None:
    """The worst, the median and the best frame of the hard set, as a picture."""
    from matplotlib.figure import Figure

    samples = sets.frames("hard", frames, seed=seed)
    estimate = _background_of(Denoiser(model=model))
    backgrounds = [estimate(frame.raw) for frame in samples]
    decibel = np.array([psnr_db(frame.background, b) for frame, b in zip(samples, backgrounds, strict=True)])
    order = np.argsort(decibel)
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    figure.suptitle(f"{model} on the hard set: worst, median, best of {frames}")
    for row, index in zip(figure.subplots(3, 5), (order[0], order[len(order) // 2], order[-1]), strict=True):
        frame, background = samples[index], backgrounds[index]
        below = (float(frame.background.min()), float(frame.background.max()))
        error = max(float(np.abs(background - frame.background).max()), 1e-6)
        panels = [
            ("raw", frame.raw, "gray", (None, None)),
            ("clean", frame.raw - background, "gray", (None, None)),
            ("background", background, "viridis", below),
            ("true background", frame.background, "viridis", below),
            (f"error, {decibel[index]:.1f} dB", background - frame.background, "RdBu", (-error, error)),
        ]
        for axes, (title, image, colours, (least, most)) in zip(row, panels, strict=True):
            shown = axes.imshow(image, cmap=colours, vmin=least, vmax=most)
            axes.set(title=title, xticks=[], yticks=[])
            figure.colorbar(shown, ax=axes, shrink=0.7)
    with durable.replacing(path) as draft:
        figure.savefig(draft, format=path.suffix[1:], dpi=80)
