"""Atoms without a lattice: a random packing in which none is nearer to another than it can be (metallic glass, amorphous carbon)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

from aet_stream.projection import Array

_ROUNDS = 60
_LOOK_AGAIN = 6
"""Rounds after which neighbours are looked for again."""
_BEYOND = 1.02
"""Pairs are pushed a little farther than they must be: else the last ones take for ever."""
CARBON_ATOMS_PER_NM3 = 50.14
"""At a density of 1 g/cm3."""
CARBON_LEAST_NM = 0.13
"""Of two neighbours in amorphous carbon, where the mean is .142 to .154 nm (Robertson, Mater. Sci. Eng. R 37 (2002) 129)."""
_TILE_NM = 5.0
_TILES = 4


def pushed_apart(positions: Array, least: float, *, rounds: int = _ROUNDS, box: tuple[float, ...] | None = None) -> Array:
    """Move points apart until none is nearer to another than `least`, each pair by half of what it lacks, again and again.

    Where there is no room for that, they come to rest a little nearer, at distances that differ, as atoms of a glass do.

    Parameters
    ----------
    positions : (n, axes) float
    box : edges of a periodic box with its corner at 0; None: open
    """
    edges = None if box is None else np.asarray(box)
    positions = positions.astype(np.float64) if edges is None else positions % edges
    pairs = np.empty((0, 2), np.int64)
    for done in range(rounds):
        if done % _LOOK_AGAIN == 0:
            inside = positions if edges is None else positions % edges
            pairs = cKDTree(inside, boxsize=edges).query_pairs(1.15 * least, output_type="ndarray")
        apart = positions[pairs[:, 0]] - positions[pairs[:, 1]]
        if edges is not None:
            apart -= edges * np.rint(apart / edges)
        distance = np.maximum(np.sqrt(np.einsum("ij,ij->i", apart, apart)), 1e-9)
        near = distance < least
        if not near.any():
            if done % _LOOK_AGAIN == 0:
                break
            continue
        one, other = pairs[near].T
        step = apart[near] * ((_BEYOND * least - distance[near]) / (2 * distance[near]))[:, None]
        for axis in range(positions.shape[1]):
            moved = np.bincount(one, step[:, axis], len(positions)) - np.bincount(other, step[:, axis], len(positions))
            positions[:, axis] += moved
    settled: Array = positions if edges is None else positions % edges
    return settled


@lru_cache(maxsize=16)
def _carbon_tile(density: float, thickness_nm: float, number: int) -> Array:
    """(n, 3) of a tile, periodic along y and u, with a free surface above and below."""
    rng = np.random.default_rng([number, round(1000 * density), round(1000 * thickness_nm)])
    box = np.array([_TILE_NM, _TILE_NM, thickness_nm + CARBON_LEAST_NM])
    cells = np.maximum(1, np.rint(box * (CARBON_ATOMS_PER_NM3 * density * thickness_nm / box[2]) ** (1 / 3)).astype(int))
    cells[2] = max(1, round(CARBON_ATOMS_PER_NM3 * density * thickness_nm * _TILE_NM**2 / (cells[0] * cells[1])))
    corners = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), axis=-1).reshape(-1, 3)
    one_in_each = (corners + rng.random(corners.shape)) / cells * box  # not wholly at random: solids are even over more than a few atoms
    placed = pushed_apart(one_in_each, CARBON_LEAST_NM, box=tuple(box))
    placed[:, 2] -= box[2] / 2
    return placed


def carbon_layer(density: float, thickness_nm: float, y_nm: tuple[float, float], u_nm: tuple[float, float], seed: int) -> Array:
    """(n, 3) positions (y, u, w) of the atoms of a layer of amorphous carbon within y and u; w is across it, 0 in its middle.

    Tiles of 5 nm, each one of a few, turned and flipped: the same place always holds the same atoms.

    Parameters
    ----------
    density : g/cm3; 1.8 to 2.1 evaporated, up to 3.2 tetrahedral
    """
    parts = []
    for row in range(int(np.floor(y_nm[0] / _TILE_NM)), int(np.ceil(y_nm[1] / _TILE_NM))):
        for column in range(int(np.floor(u_nm[0] / _TILE_NM)), int(np.ceil(u_nm[1] / _TILE_NM))):
            choice = np.random.default_rng([seed, row + 10_000, column + 10_000]).integers(_TILES * 16)
            tile = _carbon_tile(density, thickness_nm, int(choice // 16)).copy()
            for bit, axis in ((1, 0), (2, 1)):
                if choice & bit:
                    tile[:, axis] = _TILE_NM - tile[:, axis]
            if choice & 4:
                tile[:, :2] = tile[:, 1::-1]
            if choice & 8:
                tile[:, 2] *= -1
            tile[:, :2] += np.array([row, column]) * _TILE_NM
            parts.append(tile)
    atoms = np.concatenate(parts)
    inside = (atoms[:, 0] >= y_nm[0]) & (atoms[:, 0] < y_nm[1]) & (atoms[:, 1] >= u_nm[0]) & (atoms[:, 1] < u_nm[1])
    layer: Array = atoms[inside]
    return layer
