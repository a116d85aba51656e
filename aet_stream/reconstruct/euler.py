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

OURS = np.array([(0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
"""(x, y, z) of theirs from [along the axis, X, Z] of ours (projector.py; along the axis as rows count)."""
_NO_COSINE = 1e-9


def euler_zyx_deg(tilts_deg: Array, *, turns: Array | None = None, axis_off_deg: float = 0.0) -> Array:
    """(tilts, 3) phi, theta and psi.

    Parameters
    ----------
    turns : (tilts, 3, 3) how the specimen was turned before it was tilted, of [along the axis, X, Z]; None: it was not
    axis_off_deg : how far the axis still lies off the second dimension of the images, from it towards the first
    """
    angles = np.zeros((len(tilts_deg), 3))
    angles[:, 1] = tilts_deg
    if turns is None and not axis_off_deg:
        return angles
    before = np.broadcast_to(np.eye(3), (len(tilts_deg), 3, 3)) if turns is None else OURS @ turns @ OURS.T
    after = _about_z(np.radians(axis_off_deg))
    for angle, tilt, turn in zip(angles, np.radians(tilts_deg), before, strict=True):
        angle[:] = np.degrees(_zyx(turn.T @ _about_y(tilt) @ after, np.cos(tilt)))
    return angles


def _zyx(matrix: Array, sign: float) -> tuple[float, float, float]:
    """Of two ways to say it, that with the cosine of theta on this side of 0."""
    cosine = np.copysign(np.hypot(matrix[0, 0], matrix[1, 0]), sign)
    theta = np.arctan2(-matrix[2, 0], cosine)
    if abs(cosine) < _NO_COSINE:  # phi and psi turn about one axis
        return 0.0, theta, np.arctan2(-matrix[1, 2], matrix[1, 1])
    phi, psi = np.arctan2(matrix[1, 0] / cosine, matrix[0, 0] / cosine), np.arctan2(matrix[2, 1] / cosine, matrix[2, 2] / cosine)
    return phi, theta, psi


def _about_y(angle: float) -> Array:
    return np.array([(np.cos(angle), 0, np.sin(angle)), (0, 1, 0), (-np.sin(angle), 0, np.cos(angle))])


def _about_z(angle: float) -> Array:
    return np.array([(np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1)])
