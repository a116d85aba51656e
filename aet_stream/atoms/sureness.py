"""How well places are known: from the curvature of the misfit."""

from __future__ import annotations

import numpy as np

from aet_stream.atoms.model import Model, Stage
from aet_stream.projection import Array

OVERLAP = 1.2
"""Atoms are seen in front of each other, so that each is less well known than it would be alone: standard deviations, of places and of
weights, are so much larger."""


def standard_deviations(stage: Stage, model: Model) -> Array:
    """(atoms, 3) of the places, in voxels, along their axes: by each atom's own curvature (the bound of Cramer and Rao)."""
    by_place, _ = stage.curvature(model)
    floor = 1e-6 * np.median(np.einsum("nii->ni", by_place)) + 1e-12
    covariance = np.linalg.inv(by_place + floor * np.eye(3))
    sigmas: Array = OVERLAP * np.sqrt(np.maximum(np.einsum("nii->ni", covariance), 0))
    return sigmas
