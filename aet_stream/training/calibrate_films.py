"""The rule for the expected error of the films of a series (film/expected.py), fitted on simulated series whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from aet_stream.film.expected import Rule
from aet_stream.projection import Array
from aet_stream.training.judged_series import Marks

_SCATTER, _WORD = 0.45, 0.3
"""Natural logarithms, standard deviations: of the errors of a series about its rule, alike in all of its frames, so that a series counts as
one observation; and of a factor about 1, before anything is observed: evidence is in units of the error, and taken at its word"""
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
        factors = _factors([evidence[k] for k in others], [errors[k] for k in others])
        ratios.append(errors[left_out] / np.linalg.norm(evidence[left_out] * factors, axis=1))
    factors = _factors(evidence, errors)
    return Rule(
        factors={name: round(float(factor), 3) for name, factor in zip(names, factors, strict=True)},
        margin=round(float(np.quantile(np.concatenate(ratios), _KEPT)), 2),
        fitted_on=", ".join(f"{m.which.name} {m.which.physics} {m.which.seed}, {m.which.tilts} tilts" for m in told),
        frames=sum(map(len, errors)),
    )


def _factors(evidence: Sequence[Array], errors: Sequence[Array]) -> Array:
    """(k,) positive, the most probable: the root of the sum of (factor x evidence)^2 is as near to the error as can be, as a ratio, and
    none is farther from 1 than so many series are worth.

    Parameters
    ----------
    evidence : of each series (n, k), errors : (n,) in one unit
    """
    told, known = np.concatenate(evidence), np.concatenate(errors)
    shares = np.square(told / known[:, None])
    held = _SCATTER**2 / (2 * _WORD**2 * len(errors))

    def cost(logarithms: Array) -> tuple[float, Array]:
        squares = np.exp(2 * logarithms)
        ratio = shares @ squares + 1e-12
        off = np.log(ratio) / 2
        loss = np.where(np.abs(off) < _FAR, np.square(off) / 2, _FAR * (np.abs(off) - _FAR / 2))
        slope = (np.clip(off, -_FAR, _FAR) / ratio) @ shares * squares / len(known)
        return float(loss.mean() + held * np.square(logarithms).sum()), slope + 2 * held * logarithms

    factors: Array = np.exp(minimize(cost, np.zeros(told.shape[1]), jac=True, method="L-BFGS-B").x)
    return factors
