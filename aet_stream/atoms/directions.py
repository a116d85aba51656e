"""How the specimen lay in each projection, where it did not turn about one axis only.

A turn is a rotation vector: its length the angle in radians, its direction the axis, in the frame of places (views.py).
"""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array


def cross(vector: Array) -> Array:
    """(3, 3): what takes p to vector x p."""
    x, y, z = vector
    return np.array([(0.0, -z, y), (z, 0.0, -x), (-y, x, 0.0)])


def rotation(turn: Array) -> Array:
    """(3, 3). Rodrigues' formula."""
    angle, matrix = float(np.linalg.norm(turn)), cross(turn)
    return np.eye(3) + np.sinc(angle / np.pi) * matrix + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * matrix @ matrix


def by_turn(slope: Array, matrix: Array, turn: Array) -> Array:
    """(3,): the derivative by a turn, from the one by all of (2, 3) matrix @ rotation(turn).

    To the second order of the turn: of the left Jacobian of rotations (Sola, Deray and Atchuthan, arXiv:1812.01537, eq. 145).
    """
    inner, small = matrix.T @ slope @ rotation(turn).T, cross(turn)
    along = np.array([inner[2, 1] - inner[1, 2], inner[0, 2] - inner[2, 0], inner[1, 0] - inner[0, 1]])
    jacobian = np.eye(3) + small / 2 + small @ small / 6
    by: Array = jacobian.T @ along
    return by
