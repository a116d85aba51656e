"""One table: what every estimator makes of backgrounds under particles that no training has seen, beside doing nothing at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from aet_stream.denoise import classical
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.weights_file import SHIPPED
from aet_stream.projection import Array
from aet_stream.training.dataset import Frame, Mixer

#: Set -> kinds of background and whether there is noise. `published` is the setting of the 2019 result.
SETS: dict[str, tuple[list[str], bool]] = {"published": (["gaussian"], False), "film": (["film"], True)}
_PARTICLES = 12

Estimate = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Score:
    """How one estimator did on one set. PSNR in dB with the brightest particle pixel as 1, of the background error alone."""

    set_name: str
    estimator: str
    mean_db: float
    worst_db: float
    inside_db: float
    mean_ssim: float
    ms_per_frame: float


def psnr_db(truth: Array, found: Array) -> float:
    """Peak signal-to-noise ratio for a data range of 1."""
    return float(-10 * np.log10(np.mean(np.square(truth - found, dtype=np.float64)) + 1e-12))


def ssim(truth: Array, found: Array, window: int = 7) -> float:
    """Structural similarity for a data range of 1, uniform window (Wang et al., IEEE Trans. Image Process. 13 (2004) 600)."""
    c1, c2 = 0.01**2, 0.03**2
    a, b = truth.astype(np.float64), found.astype(np.float64)
    mean_a, mean_b = uniform_filter(a, window), uniform_filter(b, window)
    n = window * window
    sample = n / (n - 1)
    var_a = sample * (uniform_filter(a * a, window) - mean_a**2)
    var_b = sample * (uniform_filter(b * b, window) - mean_b**2)
    cov = sample * (uniform_filter(a * b, window) - mean_a * mean_b)
    values = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    edge = window // 2
    return float(values[edge:-edge, edge:-edge].mean())


def evaluate(models: Sequence[str] = (), *, frames: int = 24, seed: int = 1000) -> list[Score]:
    """Score networks (all shipped ones by default) and the classical estimates on fixed sets; the seed is never used for training."""
    names = list(models) or sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    estimators: dict[str, Estimate] = {
        "nothing": lambda frame: np.zeros_like(frame),
        "constant": classical.constant,
        "laplace": classical.laplace,
    }
    for name in names:
        estimators[name] = _background_of(Denoiser(model=name))
    scores = []
    for set_name, (backgrounds, noise) in SETS.items():
        mixer = Mixer(seed=seed, particles=_PARTICLES, views=3, backgrounds=backgrounds, background_count=3 * _PARTICLES, noise=noise)
        rng = np.random.default_rng(seed)
        samples = [mixer.sample(rng) for _ in range(frames)]
        scores += [_score(set_name, name, estimate, samples) for name, estimate in estimators.items()]
    return scores


def _background_of(denoiser: Denoiser) -> Estimate:
    denoiser.warm_up()
    return lambda frame: frame - denoiser.subtract(frame).clean


def _score(set_name: str, name: str, estimate: Estimate, samples: list[Frame]) -> Score:
    began = time.perf_counter()
    found = [estimate(frame.raw) for frame in samples]
    seconds = time.perf_counter() - began
    figures = [psnr_db(frame.background, background) for frame, background in zip(samples, found, strict=True)]
    likeness = [ssim(frame.clean, frame.clean + frame.background - b) for frame, b in zip(samples, found, strict=True)]
    inside = [_inside_db(frame, background) for frame, background in zip(samples, found, strict=True)]
    return Score(
        set_name=set_name,
        estimator=name,
        mean_db=float(np.mean(figures)),
        worst_db=float(np.min(figures)),
        inside_db=float(np.nanmean(inside)),
        mean_ssim=float(np.mean(likeness)),
        ms_per_frame=1000 * seconds / len(samples),
    )


def _inside_db(frame: Frame, background: Array) -> float:
    """The same under the particle only; NaN for an empty frame."""
    inside = frame.clean > 0.01
    return psnr_db(frame.background[inside], background[inside]) if inside.any() else float("nan")


def table(scores: list[Score]) -> str:
    """The scores as text, best last in every set."""
    lines = [f"{'set':<10} {'estimator':<12} {'PSNR dB':>8} {'worst':>7} {'inside':>7} {'SSIM':>7} {'ms':>7}"]
    for set_name in dict.fromkeys(score.set_name for score in scores):
        of_set = sorted((score for score in scores if score.set_name == set_name), key=lambda score: score.mean_db)
        lines += [
            f"{s.set_name:<10} {s.estimator:<12} {s.mean_db:>8.2f} {s.worst_db:>7.2f} {s.inside_db:>7.2f} {s.mean_ssim:>7.4f}"
            f" {s.ms_per_frame:>7.1f}"
            for s in of_set
        ]
    return "\n".join(lines)
