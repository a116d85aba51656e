"""The rule for the expected error of the films of a series (film/expected.py), fitted on simulated series whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from aet_stream.film.expected import Rule
from aet_stream.projection import Array
from aet_stream.training.judged_series import Marks

_WORD = 1e-3
"""How much it costs not to take a piece of evidence at its word (the square of its factor's logarithm)"""
_FAR = 1.0
"""Natural logarithm of a ratio beyond which a frame pulls no more (Huber, Ann. Math. Stat. 35 (1964) 73)"""
_KEPT = 0.95
"""Of the frames, by the margin"""


def fit(found: Sequence[Marks]) -> Rule:
    """The rule that foretells these errors best, as ratios; the margin is that of each series by a rule that was fitted on the others.

    Raises
    ------
    ValueError : fewer than two series with evidence
    """
    told = [marks for marks in found if marks.evidence]
    if len(told) < 2:
        raise ValueError("two series at least, judged with --estimator 'MODEL + films'")
    names = list(told[0].evidence)
    evidence = [np.array([marks.evidence[name] for name in names]).T for marks in told]
    known = [np.isfinite(each).all(1) for each in evidence]
    evidence = [each[which] for each, which in zip(evidence, known, strict=True)]
    errors = [np.array(marks.error)[which] for marks, which in zip(told, known, strict=True)]
    ratios = []
    for left_out in range(len(told)):
        others = [number for number in range(len(told)) if number != left_out]
        factors = _factors(np.concatenate([evidence[k] for k in others]), np.concatenate([errors[k] for k in others]))
        ratios.append(errors[left_out] / np.linalg.norm(evidence[left_out] * factors, axis=1))
    factors = _factors(np.concatenate(evidence), np.concatenate(errors))
    return Rule(
        factors={name: round(float(factor), 3) for name, factor in zip(names, factors, strict=True)},
        margin=round(float(np.quantile(np.concatenate(ratios), _KEPT)), 2),
        fitted_on=", ".join(f"{m.which.name} {m.which.physics} {m.which.seed}, {m.which.tilts} tilts" for m in told),
        frames=sum(map(len, errors)),
    )


def _factors(evidence: Array, errors: Array) -> Array:
    """(k,) positive: the root of the sum of (factor x evidence)^2 is as near to the error as can be, as a ratio, and none is farther from 1
    than it is worth.

    Parameters
    ----------
    evidence : (n, k), errors : (n,) in one unit
    """
    shares = np.square(evidence / errors[:, None])

    def cost(logarithms: Array) -> tuple[float, Array]:
        squares = np.exp(2 * logarithms)
        ratio = shares @ squares + 1e-12
        off = np.log(ratio) / 2
        loss = np.where(np.abs(off) < _FAR, np.square(off) / 2, _FAR * (np.abs(off) - _FAR / 2))
        slope = (np.clip(off, -_FAR, _FAR) / ratio) @ shares * squares / len(errors)
        return float(loss.mean() + _WORD * np.square(logarithms).sum()), slope + 2 * _WORD * logarithms

    factors: Array = np.exp(minimize(cost, np.zeros(evidence.shape[1]), jac=True, method="L-BFGS-B").x)
    return factors
