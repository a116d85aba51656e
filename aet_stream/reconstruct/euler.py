"""Euler angles as GENFIRE and RESIRE take them beside their projections: ZYX, in degrees, of a frame and an image of their own.

Their volume is (x, y, z) and their image (x, y), along MATLAB's dimensions, from the middle at N / 2 + 1 (N pixels counted from 1; halves
rounded down). With R = Rz(phi) Ry(theta) Rx(psi), each factor turning a vector counterclockwise about its axis, a point p is seen at the
first two of R' p (github.com/urxuan/AET-Supplementary-Data-Codes, `RESIRE_*.m`; github.com/genfire-em/GENFIRE-MATLAB,
`fillInFourierGrid.m`). So the tilt axis lies along the second dimension; at a tilt of theta a point is seen at x cos(theta) - z sin(theta).

x is against our columns, y along our rows (of an upright image), and z towards who looks, as ours: both frames are right-handed, and their
image is ours turned by a right angle.
"""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array

THEIRS = np.array([(0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
"""(x, y, z) of theirs from [along the axis, X, Z] of ours (projector.py; along the axis as rows count)."""
_NO_COSINE = 1e-9


def euler_zyx_deg(tilts_deg: Array, orientations: Array, *, axis_off_deg: float = 0.0) -> Array:
    """(tilts, 3) phi, theta and psi.

    Parameters
    ----------
    tilts_deg : (tilts,) about; each orientation can be said in two ways
    orientations : (tilts, 3, 3): [along the axis, to the right, towards who looks] in each upright image, of [along the axis, X, Z]
    axis_off_deg : how far the axis still lies off the second dimension of the images, from it towards the first
    """
    turn = np.radians(axis_off_deg)
    off = np.array([(np.cos(turn), np.sin(turn), 0), (-np.sin(turn), np.cos(turn), 0), (0, 0, 1)])
    cosines = np.cos(np.radians(tilts_deg))
    angles = [_zyx((off @ THEIRS @ seen @ THEIRS.T).T, cosine) for seen, cosine in zip(orientations, cosines, strict=True)]
    rounded: Array = np.round(np.degrees(angles), 9) + 0.0  # a tilt about one axis as it was said, and no -0
    return rounded


def _zyx(matrix: Array, sign: float) -> tuple[float, float, float]:
    """Of two ways to say it, that with the cosine of theta on this side of 0."""
    cosine = np.copysign(np.hypot(matrix[0, 0], matrix[1, 0]), sign)
    theta = np.arctan2(-matrix[2, 0], cosine)
    if abs(cosine) < _NO_COSINE:  # phi and psi turn about one axis
        return 0.0, theta, np.arctan2(-matrix[1, 2], matrix[1, 1])
    phi, psi = np.arctan2(matrix[1, 0] / cosine, matrix[0, 0] / cosine), np.arctan2(matrix[2, 1] / cosine, matrix[2, 2] / cosine)
    return phi, theta, psi
