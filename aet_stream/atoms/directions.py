"""How the misfit follows the turn of a specimen, where it did not turn about one axis only (reconstruct/turns.py)."""

from __future__ import annotations

import numpy as np

from aet_stream.projection import Array
from aet_stream.reconstruct.turns import cross, rotation


def by_turn(slope: Array, matrix: Array, turn: Array) -> Array:
    """(3,): the derivative by a turn, from the one by all of (2, 3) matrix @ rotation(turn).

    To the second order of the turn: of the left Jacobian of rotations (Sola, Deray and Atchuthan, arXiv:1812.01537, eq. 145).
    """
    inner, small = matrix.T @ slope @ rotation(turn).T, cross(turn)
    along = np.array([inner[2, 1] - inner[1, 2], inner[0, 2] - inner[2, 0], inner[1, 0] - inner[0, 1]])
    jacobian = np.eye(3) + small / 2 + small @ small / 6
    by: Array = jacobian.T @ along
    return by
