"""Nanoparticles as lists of atoms: lattices, twins, glasses, alloys and core-shells, cut by facets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aet_stream.projection import Array

KINDS = ("fcc", "hcp", "decahedron", "amorphous")
#: Pairs of metals that such particles are made of.
ALLOYS = ((78, 28), (79, 46), (79, 47), (78, 26), (46, 46), (79, 79), (78, 78))
_LATTICE_NM = 0.39
_FCC = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
_HCP = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 5 / 6, 0.5), (0, 1 / 3, 0.5)])
_HCP_CELL = np.array([1.0, np.sqrt(3), np.sqrt(8 / 3)]) / np.sqrt(2)


@dataclass(frozen=True, slots=True)
class Particle:
    """Atoms around the origin."""

    positions_nm: Array
    """(atoms, 3) float32: x across the tilt axis, y along it, z along the beam at tilt 0."""
    atomic_number: Array
    """(atoms,) int"""
    kind: str


def make_particle(rng: np.random.Generator, *, kind: str = "random", atoms: int = 0) -> Particle:
    """A random particle.

    Parameters
    ----------
    kind : one of KINDS, or "random"
    atoms : about how many; 0 draws 1,000 to 20,000

    Raises
    ------
    ValueError : no such kind
    """
    if kind == "random":
        kind = str(rng.choice(KINDS, p=(0.5, 0.15, 0.2, 0.15)))
    if kind not in KINDS:
        raise ValueError(f"particle {kind!r}: choose random or one of {', '.join(KINDS)}")
    count = atoms or int(np.exp(rng.uniform(np.log(1_000), np.log(20_000))))
    radius = (3 * count / (16 * np.pi)) ** (1 / 3) * 1.15  # in lattice constants, for four atoms a cell; facets take the rest
    positions = _facetted(rng, _lattice(rng, kind, radius), radius)
    numbers = _elements(rng, positions, radius)
    keep = rng.random(len(positions)) > rng.uniform(0, 0.02)  # vacancies
    rotation = np.eye(3) if rng.random() < 0.25 else random_rotation(rng)  # zone axes deserve their share
    return Particle((positions[keep] @ rotation.T * _LATTICE_NM).astype(np.float32), numbers[keep], kind)


def _lattice(rng: np.random.Generator, kind: str, radius: float) -> Array:
    """(atoms, 3) in lattice constants, a little more than the sphere."""
    if kind == "hcp":
        hexagonal: Array = _cells(_HCP, radius / _HCP_CELL.min()) * _HCP_CELL
        return hexagonal
    fcc = _cells(_FCC, radius * 1.3)
    if kind == "amorphous":
        return fcc + rng.normal(0, 0.16, fcc.shape)
    return _twinned(fcc, radius) if kind == "decahedron" else fcc


def _cells(basis: Array, radius: float) -> Array:
    m = int(radius) + 2
    grid = np.stack(np.meshgrid(*[np.arange(-m, m + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = grid[np.linalg.norm(grid, axis=1) <= radius + 2]
    cells: Array = (inside[:, None, :] + basis[None]).reshape(-1, 3)
    return cells


def _twinned(fcc: Array, radius: float) -> Array:
    """A decahedron: five wedges of one lattice around a common <110> axis."""
    axis_first = fcc @ _frame((1, 1, 0), (0, 0, 1)).T
    angle = np.degrees(np.arctan2(axis_first[:, 2], axis_first[:, 1]))
    wedge = axis_first[(np.abs(angle) <= 36) & (np.linalg.norm(axis_first, axis=1) <= 1.3 * radius)]
    turns = [(np.cos(2 * np.pi * twin / 5), np.sin(2 * np.pi * twin / 5)) for twin in range(5)]
    return np.concatenate([wedge @ np.array([(1, 0, 0), (0, c, -s), (0, s, c)]).T for c, s in turns])


def _frame(first: tuple[int, int, int], second: tuple[int, int, int]) -> Array:
    """Rows: an orthonormal frame that begins with `first`."""
    a = np.array(first) / np.linalg.norm(first)
    b = np.array(second) - np.dot(second, a) * a
    b /= np.linalg.norm(b)
    return np.stack([a, b, np.cross(a, b)])


def _facetted(rng: np.random.Generator, positions: Array, radius: float) -> Array:
    axes = rng.uniform(0.75, 1.25, 3)
    axes /= np.prod(axes) ** (1 / 3)
    keep = np.linalg.norm(positions / axes, axis=1) < radius
    for _ in range(rng.integers(0, 9)):
        normal = rng.normal(size=3)
        keep &= positions @ (normal / np.linalg.norm(normal)) < radius * rng.uniform(0.65, 1.0)
    kept: Array = positions[keep]
    return kept


def _elements(rng: np.random.Generator, positions: Array, radius: float) -> Array:
    """A core and shell, or a random alloy."""
    one, other = ALLOYS[rng.integers(len(ALLOYS))]
    if rng.random() < 0.4:
        centre = rng.normal(size=3) * radius * 0.2
        core = np.linalg.norm(positions - centre, axis=1) < radius * rng.uniform(0.4, 0.85)
        return np.where(core, one, other)
    return np.where(rng.random(len(positions)) < rng.uniform(0.2, 0.9), one, other)


def random_rotation(rng: np.random.Generator) -> Array:
    """(3, 3) rotation matrix, uniform over all orientations (from a random unit quaternion; Shoemake 1992)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ]
    )
