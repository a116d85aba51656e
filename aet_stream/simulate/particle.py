"""Nanoparticles as lists of atoms: lattices, twins, glasses, alloys and core-shells, cut by facets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from aet_stream.projection import Array
from aet_stream.simulate.hard_core import pushed_apart

KINDS = ("fcc", "hcp", "decahedron", "icosahedron", "amorphous")
"""What a random particle is made of: lattices, twins and glass, cut at random."""
HABITS = ("rod", "twin", "cube", "octahedron", "plate")
"""Shapes of their own, of the cubic lattice."""
FEWEST_ATOMS = 10
"""Vacancies and facets leave nothing of smaller ones."""
#: Pairs of metals that such particles are made of.
ALLOYS = ((78, 28), (79, 46), (79, 47), (78, 26), (46, 46), (79, 79), (78, 78))
#: Cubic lattice constants in nm; anything else is given 0.39.
_LATTICES_NM = {13: 0.405, 26: 0.365, 27: 0.354, 28: 0.352, 29: 0.361, 45: 0.380, 46: 0.389, 47: 0.409, 77: 0.384, 78: 0.392, 79: 0.408}
_LATTICE_NM = 0.39
_GLASS = 0.62
"""Least distance of two atoms of a metallic glass in lattice constants, 0.88 of that in the crystal: spheres of it fill half the space."""
_GLASS_DISORDER = 0.25
"""By how much its atoms have left a lattice before they are pushed apart, in lattice constants; by less, and they crystallise again."""
_GLASS_CELLS = 10
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


def make_particle(
    rng: np.random.Generator, *, kind: str = "random", atoms: int = 0, elements: Sequence[int] = (), kinds: Sequence[str] = KINDS
) -> Particle:
    """A random particle: facets, vacancies, a random alloy or a core in a shell.

    Parameters
    ----------
    kind : one of KINDS or HABITS, or "random": one of `kinds`
    atoms : about how many, FEWEST_ATOMS or more; 0 draws 1,000 to 50,000
    elements : one or two atomic numbers; none draws from ALLOYS

    Raises
    ------
    ValueError : no such kind or element, or too few atoms
    """
    if kind == "random":
        weights = np.array([0.5 if name == "fcc" else 0.15 for name in kinds])
        kind = str(rng.choice(list(kinds), p=weights / weights.sum()))
    if kind not in KINDS + HABITS:
        raise ValueError(f"particle {kind!r}: choose random or one of {', '.join(KINDS + HABITS)}")
    if atoms and atoms < FEWEST_ATOMS:
        raise ValueError(f"atoms {atoms}: give {FEWEST_ATOMS} or more, or 0 for 1,000 to 50,000")
    if len(elements) > 2 or not all(1 <= z <= 118 for z in elements):
        raise ValueError(f"elements {list(elements)}: give one or two atomic numbers")
    pair = (elements[0], elements[-1]) if elements else ALLOYS[rng.integers(len(ALLOYS))]
    count = atoms or int(np.exp(rng.uniform(np.log(1_000), np.log(50_000))))
    radius = (3 * count / (16 * np.pi)) ** (1 / 3) * 1.15  # in lattice constants, for four atoms a cell; facets take the rest
    positions = _shaped(kind, radius) if kind in HABITS else _facetted(rng, _lattice(rng, kind, radius), radius)
    numbers = _elements(rng, positions, radius, pair)
    keep = rng.random(len(positions)) > rng.uniform(0, 0.02)  # vacancies
    lattice_nm = float(np.mean([_LATTICES_NM.get(int(z), _LATTICE_NM) for z in pair]))
    return Particle((positions[keep] @ _orientation(rng).T * lattice_nm).astype(np.float32), numbers[keep], kind)


def _lattice(rng: np.random.Generator, kind: str, radius: float) -> Array:
    """(atoms, 3) in lattice constants, a little more than the sphere."""
    if kind == "hcp":
        hexagonal: Array = _cells(_HCP, radius / _HCP_CELL.min()) * _HCP_CELL
        return hexagonal
    if kind == "icosahedron":
        return _icosahedron(radius)
    fcc = _cells(_FCC, radius * 1.3)
    if kind == "amorphous":
        return _glass(rng, 1.3 * radius)
    return _twinned(fcc, radius) if kind == "decahedron" else fcc


def _shaped(kind: str, radius: float) -> Array:
    """(atoms, 3) in lattice constants: as many as a sphere of this radius would hold, in a shape."""
    volume = 4 / 3 * np.pi * (radius / 1.15) ** 3
    match kind:
        case "rod":  # along <001>, five times as long as wide
            half = (volume / 5) ** (1 / 3) / 2
            lattice = _cells(_FCC, 6 * half)
            across, along = np.hypot(lattice[:, 0], lattice[:, 1]), np.abs(lattice[:, 2])
            keep = (across < 1.13 * half) & (along + np.maximum(across - half / 2, 0) < 5 * half)
        case "cube":
            half = volume ** (1 / 3) / 2
            lattice = _cells(_FCC, 2 * half)
            keep = (np.abs(lattice).max(1) < half) & (np.abs(lattice).sum(1) < 2.7 * half)
        case "octahedron":
            half = (volume * 3 / 4) ** (1 / 3)
            lattice = _cells(_FCC, 1.2 * half)
            keep = (np.abs(lattice).sum(1) < half) & (np.abs(lattice).max(1) < 0.9 * half)
        case "plate":  # on its {111} face, hexagonal
            half = (volume * 0.9) ** (1 / 3)
            lattice = _cells(_FCC, 1.3 * half)
            flat = lattice @ _frame((1, 1, 1), (1, -1, 0)).T
            sides = [np.abs(flat[:, 1] * np.cos(turn) + flat[:, 2] * np.sin(turn)) for turn in np.pi / 3 * np.arange(3)]
            keep = (np.abs(flat[:, 0]) < 0.16 * half) & (np.max(sides, axis=0) < half)
        case _:  # twin: two halves of a truncated octahedron, mirrored at a {111} plane
            half = (volume / 4) ** (1 / 3)
            lattice = _cells(_FCC, 1.3 * half)
            keep = (np.abs(lattice).sum(1) < 1.5 * half) & (np.abs(lattice).max(1) < half)
            upper = lattice[keep & (lattice.sum(1) > -1e-6)]
            mirrored = upper - 2 / 3 * upper.sum(1, keepdims=True)
            return np.concatenate([upper, mirrored[upper.sum(1) > 1e-6]])
    shaped: Array = lattice[keep]
    return shaped


def _cells(basis: Array, radius: float) -> Array:
    m = int(radius) + 2
    grid = np.stack(np.meshgrid(*[np.arange(-m, m + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = grid[np.linalg.norm(grid, axis=1) <= radius + 2]
    cells: Array = (inside[:, None, :] + basis[None]).reshape(-1, 3)
    return cells


def _glass(rng: np.random.Generator, radius: float) -> Array:
    """A sphere somewhere in a glass that repeats itself after _GLASS_CELLS."""
    tile, middle = _glass_tile(), rng.uniform(0, _GLASS_CELLS, 3)
    reach = int(np.ceil(radius / _GLASS_CELLS)) + 1
    corners = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3) * _GLASS_CELLS
    atoms: Array = (corners[:, None, :] + tile - middle).reshape(-1, 3)
    inside: Array = atoms[np.linalg.norm(atoms, axis=1) <= radius]
    return inside


@lru_cache(maxsize=1)
def _glass_tile() -> Array:
    """(atoms, 3) in lattice constants: as dense as the crystal, and no two nearer than _GLASS."""
    grid = np.stack(np.meshgrid(*[np.arange(_GLASS_CELLS)] * 3, indexing="ij"), -1).reshape(-1, 3)
    crystal = (grid[:, None, :] + _FCC).reshape(-1, 3)
    disordered = crystal + np.random.default_rng(0).normal(0, _GLASS_DISORDER, crystal.shape)
    return pushed_apart(disordered, _GLASS, box=(float(_GLASS_CELLS),) * 3)


def _twinned(fcc: Array, radius: float) -> Array:
    """A decahedron: five wedges of one lattice around a common <110> axis."""
    axis_first = fcc @ _frame((1, 1, 0), (0, 0, 1)).T
    angle = np.degrees(np.arctan2(axis_first[:, 2], axis_first[:, 1]))
    off_axis = np.hypot(axis_first[:, 1], axis_first[:, 2]) > 0.01
    near = np.linalg.norm(axis_first, axis=1) <= 1.3 * radius
    wedge = axis_first[near & off_axis & (angle > -35) & (angle <= 36)]  # a twin plane, at 35.3, belongs to one wedge only
    turns = [(np.cos(2 * np.pi * twin / 5), np.sin(2 * np.pi * twin / 5)) for twin in range(5)]
    wedges = [wedge @ np.array([(1, 0, 0), (0, c, -s), (0, s, c)]).T for c, s in turns]
    return np.concatenate([axis_first[near & ~off_axis], *wedges])


def _icosahedron(radius: float) -> Array:
    """Closed shells of twenty faces each (Mackay, Acta Cryst. 15 (1962) 916), the neighbour distance that of the cubic lattice."""
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([v for a in (-1, 1) for b in (-golden, golden) for v in ((0, a, b), (a, b, 0), (b, 0, a))])
    corners *= np.sqrt(0.5) / 2  # the edge, 2 in these units, is one neighbour distance
    near = np.linalg.norm(corners[:, None] - corners[None], axis=-1) < 0.8
    faces = [corners[list(face)] for face in combinations(range(12), 3) if all(near[i, j] for i, j in combinations(face, 2))]
    shells = int(1.3 * radius / np.linalg.norm(corners[0])) + 1
    steps = [(n - i - j, i, j) for n in range(shells + 1) for i in range(n + 1) for j in range(n + 1 - i)]
    atoms = np.concatenate([np.array(steps) @ face for face in faces])
    unique: Array = atoms[np.unique(np.round(atoms, 6), axis=0, return_index=True)[1]]
    return unique


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


def _elements(rng: np.random.Generator, positions: Array, radius: float, pair: tuple[int, int]) -> Array:
    """A core and shell, or a random alloy."""
    one, other = pair
    if rng.random() < 0.4:
        centre = rng.normal(size=3) * radius * 0.2
        core = np.linalg.norm(positions - centre, axis=1) < radius * rng.uniform(0.4, 0.85)
        return np.where(core, one, other)
    return np.where(rng.random(len(positions)) < rng.uniform(0.2, 0.9), one, other)


def _orientation(rng: np.random.Generator) -> Array:
    """(3, 3) rotation matrix: one in four looks down <100>, <110> or <111>, as acquisitions like to; the others anywhere."""
    if rng.random() >= 0.25:
        return random_rotation(rng)
    along = ((0, 0, 1), (1, 1, 0), (1, 1, 1))[rng.integers(3)]
    across = {(0, 0, 1): (1, 0, 0), (1, 1, 0): (0, 0, 1), (1, 1, 1): (1, -1, 0)}[along]
    zone = np.roll(_frame(along, across), -1, axis=0)  # the zone axis becomes z
    turn = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(turn), np.sin(turn)
    found: Array = np.array([(c, -s, 0), (s, c, 0), (0, 0, 1)]) @ zone
    return found


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
