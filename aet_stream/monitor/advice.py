"""What a careful colleague would say while the stage is still there: look again, retake, this particle has changed. Advice only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aet_stream.config import Advice
from aet_stream.consistency import ENOUGH, Law, fit_law
from aet_stream.monitor.frame_metrics import likeness
from aet_stream.monitor.series_cache import Row
from aet_stream.projection import Array


@dataclass(frozen=True, slots=True)
class Hint:
    """One piece of advice, with its figure and the limit it broke."""

    number: int
    tilt_deg: float
    kind: str
    text: str
    figure: float
    limit: float
    setting: str
    """Key of config.toml that holds the limit; empty where there is none."""
    unit: str = ""
    """Of figure and limit, in words that follow them."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def usable(rows: Sequence[Row]) -> list[Row]:
    """Rows that count: seen by the monitor, not blank, not superseded, not excluded."""
    return [row for row in rows if not any(row.get(reason) for reason in ("blank", "superseded", "excluded"))]


def law_of(rows: Sequence[Row]) -> Law | None:
    """The law that the usable rows follow; None for too few."""
    return fit_law(*(np.array([_number(row, key) for row in usable(rows)]) for key in ("tilt_deg", "mass_x_px", "mass_y_px")))


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def _median(rows: Sequence[Row], key: str) -> float:
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.median(values)) if len(values) >= ENOUGH else math.nan


class Adviser:
    """Reads the rows of one series. `small` gives a row's small clean picture, for comparing repeats; `doubts` are those of its films."""

    def __init__(
        self, limits: Advice, rows: Sequence[Row], width_px: int, small: Callable[[Row], Array | None], doubts: Sequence[str] = ()
    ) -> None:
        self._limits = limits
        self._rows = usable(rows)
        self._blank = [row for row in rows if row.get("blank") and not row.get("superseded") and not row.get("excluded")]
        self._width_px = width_px
        self._small = small
        self._doubts = doubts
        self.law = law_of(rows)
        self._noise = _median(self._rows, "vacuum_noise")

    def hints(self) -> list[Hint]:
        """All advice, the latest projection first."""
        if not self._limits.enabled:
            return []
        found = [hint for row in self._rows for hint in self._of(row)]
        found += [
            Hint(row["number"], row["tilt_deg"], "blank", "every pixel has the same value: retake", 0.0, 0.0, "") for row in self._blank
        ]
        last = max(self._rows, key=lambda row: row["number"], default=None)
        if last is not None:
            found += [Hint(last["number"], last["tilt_deg"], "film", doubt, 0.0, 0.0, "") for doubt in self._doubts]
        return sorted(found, key=lambda hint: hint.number, reverse=True)

    def _of(self, row: Row) -> list[Hint]:
        limits, hints = self._limits, []

        def say(kind: str, figure: float | None, limit: float, setting: str, unit: str, text: str, *, below: bool = False) -> None:
            if figure is not None and math.isfinite(figure) and (figure < limit if below else figure > limit):
                hints.append(Hint(row["number"], row["tilt_deg"], kind, text, round(figure, 6), limit, f"advice.{setting}", unit))

        clip, trust = row.get("clipped"), row.get("trust_in_series")
        say("clipped", clip, limits.clipped_above, "clipped_above", "of the pixels",
            f"{100 * (clip or 0):.2g} % of the pixels are at the detector's limit: lower the gain and retake")  # fmt: skip
        alone = row.get("trust") or 0.0
        why = f"alone {alone:.2f}, but its total does not fit the series" if alone >= limits.trust_below else "background uncertain"
        say(
            "trust",
            trust,
            limits.trust_below,
            "trust_below",
            "of 1",
            f"trust {trust or 0:.2f} ({why}): look at the clean image",
            below=True,
        )
        drift = _number(row, "mass_residual_px") / self._width_px
        say("drift", drift, limits.drift_above, "drift_above", "of the image's width",
            f"the particle is {drift * self._width_px:.0f} px from where its law over tilt puts it: re-centre")  # fmt: skip
        jump = row.get("row_jump")
        say("jump", jump, limits.row_jump_above, "row_jump_above", "times the usual",
            f"one row differs {jump or 0:.1f} times more from the next than usual: the beam jumped, retake")  # fmt: skip
        noise = (row.get("vacuum_noise") or math.nan) / self._noise if self._noise > 0 else math.nan
        say(
            "noise",
            noise,
            limits.noise_above,
            "noise_above",
            "times the median",
            f"noise is {noise:.1f} times the series' median: check dose and dwell time",
        )
        change = _number(row, "intensity_ratio") - 1 if len(self._rows) >= ENOUGH else math.nan
        say("intensity", abs(change), limits.intensity_change_above, "intensity_change_above", "of the total",
            f"total intensity {100 * change:+.0f} % against the series: is it still this particle, whole and in view?")  # fmt: skip
        edge = row.get("edge_contact")
        say("edge", edge, limits.edge_above, "edge_above", "of the border",
            f"bright matter along {100 * (edge or 0):.0f} % of the border: cut off, or film in view")  # fmt: skip
        self._damage(row, say)
        return hints

    def _damage(self, row: Row, say: Callable[..., None]) -> None:
        """Against the first image at the same tilt, which is there to watch for beam damage."""
        first = next(
            other for other in self._rows if abs(other["tilt_deg"] - row["tilt_deg"]) <= self._limits.same_tilt_deg or other is row
        )
        if first is row:
            return
        limits, at = self._limits, f"the first image at {first['tilt_deg']:+.1f}°"
        one, other = self._small(first), self._small(row)
        if one is not None and other is not None:
            same = likeness(one, other)
            say("damage", same, limits.damage_likeness_below, "damage_likeness_below", "(correlation)",
                f"correlates {same:.2f} with {at}: the particle has changed", below=True)  # fmt: skip
        change = _number(row, "total_intensity") / (_number(first, "total_intensity") or math.nan) - 1
        say("damage", abs(change), limits.damage_intensity_above, "damage_intensity_above", "of the first total",
            f"total intensity {100 * change:+.0f} % against {at}: mass lost or gained")  # fmt: skip
