"""`evaluate --series`: what every estimator makes of series of things that turn (simulate/physical.py), kind by kind, frame by frame.

A series takes minutes; what was found of one is kept in a folder, and a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from aet_stream import durable
from aet_stream.consistency import ENOUGH
from aet_stream.denoise import grid, trust
from aet_stream.denoise.cokriging.estimator import estimate
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.estimators import CLASSICAL
from aet_stream.denoise.features import BLOCKS
from aet_stream.denoise.weights_file import SHIPPED
from aet_stream.film.frames import Frame, code_sha256, evidence, finished, with_places
from aet_stream.projection import Array, Subtracted
from aet_stream.reconstruct import solver
from aet_stream.simulate.films import PHYSICS, Physics
from aet_stream.simulate.physical import PhysicalSeries, physical_series
from aet_stream.training import oracle
from aet_stream.training.scores import caught, rank_correlation

logger = logging.getLogger(__name__)

SEED = 4_000_000
"""Of the first series of each kind; nothing is trained or tuned on these."""
TILTS, LARGEST_DEG = 40, 75.0
NOTHING, ORACLE = "nothing", "oracle"
_PARTICLE = 2e-3
"""Of the brightest pixel: what reaches this is particle."""
_TENTH, _TWENTIETH = 0.1, 0.05
_MUCH = 0.03
"""Error against the particle's range that nobody should trust."""
_FLOOR = 1e-6
_LOSS_DB = 1.0
"""Of a frame, more than which none should lose"""
_COARSE, _ITERATIONS = 4, 30
"""Pixels in the edge of one of the volume's: a background has no detail finer than two of those; of its solver"""


Name = TypeVar("Name", bound=str)


class Answer(NamedTuple):
    """For one frame, counts; NaN where the estimator does not say."""

    background: Array
    expected: float = float("nan")
    trust: float = float("nan")
    evidence: Mapping[str, float] = {}
    """What the expected error was made from, for whoever fits the rule (calibrate_films.py)"""


Estimator = Callable[[PhysicalSeries], Iterable[Answer]]
"""A series -> the answers for its frames, in their order"""


class _Network:
    """A network, and what it made of the frames of the series that it saw last."""

    def __init__(self, name: str) -> None:
        self.denoiser = Denoiser(model=name)
        self._of: PhysicalSeries | None = None
        self._made: list[Subtracted] = []

    def first(self, series: PhysicalSeries) -> list[Subtracted]:
        if self._of is not series:
            self._of, self._made = series, [self.denoiser.subtract(frame) for frame in series.raw]
        return self._made


def _films(network: _Network) -> Estimator:
    """The films of a series (denoise/cokriging), as the trigger has it done."""

    def answers(series: PhysicalSeries) -> Iterator[Answer]:
        level, tilts = float(series.raw[0].flat[0]), series.tilts_deg.tolist()
        times = np.linspace(0, 1, len(tilts)).tolist()
        firsts = network.first(series)
        frames = [
            Frame.of(row, raw, first.clean, first.quality, network.denoiser.support(raw), tilt_deg=tilt, time=time, level=level)
            for row, (raw, first, tilt, time) in enumerate(zip(series.raw, firsts, tilts, times, strict=True))
        ]
        found = estimate(with_places(frames, (series.raw.shape[1], series.raw.shape[2])))
        for frame, first, raw in zip(frames, firsts, series.raw, strict=True):
            clean, quality, seen = first.clean, first.quality, {}
            if found is not None:
                drawing = found.drawings[frame.row]
                clean, quality = finished(frame, drawing, clean)
                seen = evidence(frame, drawing, clean)
            yield Answer(raw - clean, quality.expected_error, quality.trust, seen)

    return answers


OF_SERIES: dict[str, tuple[str, Callable[[_Network], Estimator]]] = {"films": (code_sha256(), _films)}
"""Estimators that see a whole series at once, by what is added to the name of the network whose first editions they begin from; checksum
of their code"""


class Which(msgspec.Struct, frozen=True, kw_only=True):
    """One series to judge by."""

    kind: str
    physics: Physics
    seed: int
    tilts: int = TILTS
    size_px: int = 256
    height: float | None = None
    """Of the film above the axis, in radii of the particle; None: the kind's own"""

    @property
    def name(self) -> str:
        """Of the kind, and where its film lies if that is asked for."""
        return self.kind if self.height is None else f"{self.kind} {self.height:g} R"

    def series(self) -> PhysicalSeries:
        """Irregular tilts in order, as they are acquired."""
        rng = np.random.default_rng(self.seed)
        tilts = np.linspace(-LARGEST_DEG, LARGEST_DEG, self.tilts)
        tilts[1:-1] += rng.uniform(-0.3, 0.3, max(self.tilts - 2, 0))
        return physical_series(self.kind, self.seed, np.round(tilts, 1), size_px=self.size_px, physics=self.physics, height=self.height)


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """How one estimator did on the frames of one series; errors against the brightest pixel of the particle."""

    which: Which
    estimator: str
    tilts_deg: list[float]
    error: list[float]
    """Root mean square"""
    inside: list[float]
    """The same under the particle"""
    total: list[float]
    """Error of the particle's total, as a share of it"""
    share: list[float]
    """Error against the range of the true clean frame's block means"""
    expected: list[float] = []
    """The error that the estimator foretold, as `error`"""
    trust: list[float] = []
    evidence: dict[str, list[float]] = {}
    """What was foretold by, as `error`; empty for estimators that do not tell"""
    volume: float | None = None
    """How far a volume of its clean frames is from one of the true ones with the same noise, as a share of that; None: too few tilts"""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One estimator on one kind: decibels over all frames."""

    kind: str
    estimator: str
    frames: int
    mean_db: float
    tenth_db: float
    """Mean of the worst tenth"""
    inside_db: float
    inside_fifth_db: float
    """Fifth percentile"""
    total_percent: float
    total_95_percent: float
    """Of 100 frames 95 are better"""
    volume_percent: float | None
    """Distance of the volumes from true ones, mean"""


class SeriesTrust(msgspec.Struct, frozen=True, kw_only=True):
    """How well an estimator knows its own error, over all frames of all kinds."""

    estimator: str
    frames: int
    rank_correlation: float
    worst_caught: float
    """Of the worst tenth, at a tenth of false alarms"""
    trusted_wrongly: int
    """Frames with an error above 3 % of the particle's range and a trust above .5"""
    largest_wrong_trust: float
    """Trust of such a frame, at most"""
    median_ratio: float
    """Expected over true error"""
    within_factor_two: float


def judged(
    kinds: Sequence[str],
    seeds: int,
    *,
    tilts: int = TILTS,
    first: int = SEED,
    heights: Sequence[float | None] = (None,),
    physics: Sequence[Physics] = PHYSICS,
) -> list[Which]:
    """The series: of every kind as many as `seeds`, films of each physics in turn; the same with their films at these heights."""
    return [
        Which(kind=kind, physics=physics[number % len(physics)], seed=first + number, tilts=tilts, height=height)
        for kind in kinds
        for height in heights
        for number in range(seeds)
    ]


def marks(models: Sequence[str], series: Sequence[Which], kept: Path | None = None, *, only: Sequence[str] = ()) -> list[Marks]:
    """Judge networks (all shipped ones by default), the classical estimates, doing nothing and the oracle, and the films of each series
    beginning from each network.

    Parameters
    ----------
    kept : a folder for what was found; what is there already is read
    only : these estimators, as they are named in the table

    Raises
    ------
    ValueError : no such estimator
    """
    networks = [*dict.fromkeys(models)] or sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    judging = {name: _Network(name) for name in [*CLASSICAL, *networks]}
    estimators: dict[str, tuple[str, Estimator]] = {NOTHING: ("", _nothing)}
    estimators |= {name: (network.denoiser.sha256, _alone(network)) for name, network in judging.items()}
    estimators[ORACLE] = ("", _oracle)
    for name, (code, of) in OF_SERIES.items():
        estimators |= {f"{Path(model).stem} + {name}": (judging[model].denoiser.sha256 + code, of(judging[model])) for model in networks}
    if unknown := [name for name in only if name not in estimators]:
        raise ValueError(f"no estimator {unknown[0]!r}: choose {', '.join(estimators)}")
    estimators = {name: estimators[name] for name in only or estimators}
    found = []
    for number, which in enumerate(series):
        logger.info("series %d of %d: %s, %s, seed %d", number + 1, len(series), which.kind, which.physics, which.seed)
        made: list[PhysicalSeries] = []
        for name, (sha256, answer) in estimators.items():
            found.append(_kept(kept, which, name, sha256, made, answer))
    return found


def _nothing(series: PhysicalSeries) -> Iterator[Answer]:
    for frame in series.raw:
        yield Answer(np.zeros(frame.shape, np.float32))


def _alone(network: _Network) -> Estimator:
    """Frame by frame."""

    def answers(series: PhysicalSeries) -> Iterator[Answer]:
        for frame, first in zip(series.raw, network.first(series), strict=True):
            yield Answer(frame - first.clean, first.quality.expected_error, first.quality.trust)

    return answers


def _oracle(series: PhysicalSeries) -> Iterator[Answer]:
    unit = np.float32(series.geometry.unit_counts)
    for raw, clean, below in zip(series.raw, series.clean, series.background, strict=True):
        yield Answer(oracle.background(raw / unit, clean / unit, below / unit) * unit)


def _kept(folder: Path | None, which: Which, name: str, sha256: str, made: list[PhysicalSeries], answer: Estimator) -> Marks:
    """What was found before, or now; the series is made when it is first wanted."""
    path = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(msgspec.json.encode((which, name, sha256))).hexdigest()[:12]
        path = folder / f"{which.kind}-{which.physics}-{which.seed}-{Path(name).stem}-{key}.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Marks)
    if not made:
        made.append(which.series())
    found = _marked(which, name, made[0], answer(made[0]))
    if path is not None:
        durable.replace(path, msgspec.json.encode(found))
    return found


def _marked(which: Which, name: str, series: PhysicalSeries, answers: Iterable[Answer]) -> Marks:
    unit = series.geometry.unit_counts
    columns: dict[str, list[float]] = {key: [] for key in ("error", "inside", "total", "share", "expected", "trust")}
    seen: dict[str, list[float]] = {}
    cleans: list[list[Array]] = []
    for image, clean, truth, answer in zip(series.raw, series.clean, series.background, answers, strict=True):
        wrong = (answer.background.astype(np.float64) - truth) / unit
        inside = clean > _PARTICLE * unit
        error = float(np.sqrt(np.mean(np.square(wrong))))
        means = grid.statistics(clean, max(1, -(-len(clean) // BLOCKS)))[0] / unit
        low, high = np.percentile(means, (0.5, 99.5))
        values = {
            "error": error,
            "inside": float(np.sqrt(np.mean(np.square(wrong[inside])))),
            "total": float(wrong[inside].sum() * unit / clean.sum(dtype=np.float64)),
            "share": error / float(high - low),
            "expected": answer.expected / unit,
            "trust": answer.trust,
        }
        for key, value in values.items():
            columns[key].append(value)
        for key, value in answer.evidence.items():
            seen.setdefault(key, []).append(value / unit)
        cleans.append([grid.means(grid.in_blocks(image - background, _COARSE)) for background in (truth, answer.background)])
    said = {key: columns.pop(key) for key in ("expected", "trust")}
    if np.isfinite(said["trust"]).all():
        columns |= said
    volume = _apart(np.array(cleans), series.tilts_deg) if len(cleans) >= ENOUGH else None
    return Marks(which=which, estimator=name, tilts_deg=series.tilts_deg.tolist(), evidence=seen, volume=volume, **columns)


def _apart(cleans: Array, tilts_deg: Array) -> float:
    """Of two volumes, as a share of the first.

    Parameters
    ----------
    cleans : (tilts, 2, rows, columns)
    """
    true, made = (
        solver.solve(cleans[:, which].astype(np.float32), tilts_deg, iterations=_ITERATIONS, threads=1).volume for which in (0, 1)
    )
    return float(np.linalg.norm(made - true) / max(float(np.linalg.norm(true)), 1e-30))


def rows(found: Sequence[Marks]) -> list[Row]:
    """One for every kind and estimator, then all kinds together."""
    names, kinds = (list(dict.fromkeys(words)) for words in ([m.estimator for m in found], [m.which.name for m in found]))
    groups = [(kind, name, [m for m in found if m.which.name == kind and m.estimator == name]) for kind in kinds for name in names]
    groups += [("all", name, [m for m in found if m.estimator == name]) for name in names]
    return [_row(kind, name, of) for kind, name, of in groups if of]


def _row(kind: str, name: str, of: Sequence[Marks]) -> Row:
    error, inside = (decibel([value for m in of for value in getattr(m, key)]) for key in ("error", "inside"))
    total = 100 * np.abs([value for m in of for value in m.total])
    volumes = [m.volume for m in of if m.volume is not None]
    worst = np.sort(error)[: max(1, round(len(error) * _TENTH))]
    return Row(
        kind=kind,
        estimator=name,
        frames=len(error),
        mean_db=float(error.mean()),
        tenth_db=float(worst.mean()),
        inside_db=float(inside.mean()),
        inside_fifth_db=float(np.quantile(inside, _TWENTIETH)),
        total_percent=float(total.mean()),
        total_95_percent=float(np.quantile(total, 1 - _TWENTIETH)),
        volume_percent=100 * float(np.mean(volumes)) if volumes else None,
    )


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a series' estimator changes about the frames that its network alone has made; decibels of a whole frame's error."""

    kind: str
    estimator: str
    frames: int
    mean_db: float
    """Gained"""
    inside_db: float
    """Gained under the particle"""
    largest_loss_db: float
    """Of a frame; below 0 where each has gained"""
    lost_much: int
    """Frames that lose more than 1"""


def changes(found: Sequence[Marks]) -> list[Change]:
    """One for every kind and estimator of whole series whose network was judged by itself as well."""
    alone = {(m.which, m.estimator): m for m in found}
    pairs: dict[tuple[str, str], list[tuple[Marks, Marks]]] = {}
    for m in found:
        network, plus, _ = m.estimator.rpartition(" + ")
        before = alone.get((m.which, network)) if plus else None
        if before is not None:
            pairs.setdefault((m.which.name, m.estimator), []).append((before, m))
    return [_changed(kind, name, of) for (kind, name), of in pairs.items()]


def _changed(kind: str, name: str, of: Sequence[tuple[Marks, Marks]]) -> Change:
    gains, inside = (
        np.concatenate([decibel(getattr(after, key)) - decibel(getattr(before, key)) for before, after in of])
        for key in ("error", "inside")
    )
    return Change(
        kind=kind,
        estimator=name,
        frames=len(gains),
        mean_db=float(gains.mean()),
        inside_db=float(inside.mean()),
        largest_loss_db=float(-gains.min()),
        lost_much=int((gains < -_LOSS_DB).sum()),
    )


def decibel(errors: Sequence[float]) -> Array:
    """(n,) of root mean square errors against the brightest pixel."""
    values: Array = -20 * np.log10(np.maximum(np.asarray(errors, np.float64), _FLOOR))
    return values


def trusted(found: Sequence[Marks]) -> list[SeriesTrust]:
    """Of every estimator that says how far it is to be trusted."""
    names = dict.fromkeys(m.estimator for m in found if m.trust)
    return [_trusted(name, [m for m in found if m.estimator == name]) for name in names]


def _trusted(name: str, of: Sequence[Marks]) -> SeriesTrust:
    error, share, expected, trusts = (np.array([v for m in of for v in getattr(m, key)]) for key in ("error", "share", "expected", "trust"))
    wrong = share > _MUCH
    ratio = expected / error
    return SeriesTrust(
        estimator=name,
        frames=len(error),
        rank_correlation=rank_correlation(expected, error),
        worst_caught=caught(expected, error),
        trusted_wrongly=int((wrong & (trusts > trust.trust_of(trust.HALF_TRUSTED))).sum()),
        largest_wrong_trust=float(trusts[wrong].max()) if wrong.any() else 0.0,
        median_ratio=float(np.median(ratio)),
        within_factor_two=float((np.maximum(ratio, 1 / ratio) < 2).mean()),
    )


def table(found: Sequence[Marks]) -> str:
    """As text, kind by kind, the best last; then trust."""
    lines = [
        f"{'kind':<14} {'estimator':<18} {'frames':>6} {'mean dB':>8} {'tenth':>7} {'inside':>7} {'5 %':>7} {'total %':>8} {'95 %':>7}"
        f" {'volume %':>8}"
    ]
    all_rows = rows(found)
    for kind in dict.fromkeys(row.kind for row in all_rows):
        for r in sorted((row for row in all_rows if row.kind == kind), key=lambda row: row.mean_db):
            lines.append(
                f"{r.kind:<14} {Path(r.estimator).stem:<18} {r.frames:>6} {r.mean_db:>8.2f} {r.tenth_db:>7.2f} {r.inside_db:>7.2f}"
                f" {r.inside_fifth_db:>7.2f} {r.total_percent:>8.2f} {r.total_95_percent:>7.2f}"
                f" {'-' if r.volume_percent is None else f'{r.volume_percent:.2f}':>8}"
            )
    if changed := changes(found):
        lines += [
            "",
            f"{'by the series':<14} {'estimator':<18} {'frames':>6} {'gain dB':>8} {'inside':>7} {'largest loss':>13} {'above 1':>8}",
        ]
    for c in changed:
        lines.append(
            f"{c.kind:<14} {Path(c.estimator).stem:<18} {c.frames:>6} {c.mean_db:>8.2f} {c.inside_db:>7.2f} {c.largest_loss_db:>13.2f}"
            f" {c.lost_much:>8}"
        )
    lines += ["", "trust over all frames"]
    for t in trusted(found):
        lines.append(
            f"{Path(t.estimator).stem:<18} {t.frames} frames: rank correlation {t.rank_correlation:.3f}, worst tenth caught"
            f" {t.worst_caught:.0%} at 10 % false alarms, {t.trusted_wrongly} of error above 3 % trusted above .5 (at most"
            f" {t.largest_wrong_trust:.2f}); expected/true {t.median_ratio:.2f}, within a factor of two {t.within_factor_two:.0%}"
        )
    return "\n".join(lines)


def as_builtins(found: Sequence[Marks]) -> Mapping[str, object]:
    """For `--json`."""
    return {"rows": rows(found), "changes": changes(found), "trust": trusted(found), "marks": list(found)}


def chosen(words: Collection[str], names: Collection[Name], what: str) -> list[Name]:
    """Those of the names that were asked for, or all.

    Raises
    ------
    ValueError : no such name
    """
    if unknown := [word for word in words if word not in names]:
        raise ValueError(f"no {what} {unknown[0]!r}: choose {', '.join(names)}")
    return [name for name in names if name in words] or list(names)
