"""A film that covers a side of the frame is as bright as a particle cut by the edge, and is easily taken for one. It has no lattice.

Noise of counting makes the variance within blocks grow with their mean; atoms make it grow faster. What touches the frame's side and shows
by far less of that than a particle that lies wholly in the frame, is no particle.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, label, sum_labels, uniform_filter

from aet_stream.denoise.features import Blocks
from aet_stream.projection import Array

_WINDOW = 5
"""Blocks along the edge of the windows in which texture is compared: 400 pixels of a frame of 256 px."""
_STRONGEST, _SMOOTHEST = 0.9, 0.1
"""Quantiles of texture over what may be particle: that of its lattice, and, at the sides, that of a film."""
_SHARE, _TIMES = 0.3, 2.0
"""What has less texture than this share of the lattice's, and than so many times a film's, is film ..."""
_LEAST_SHARE = 0.1
"""... and what has less than this share of the lattice's in any case."""
_BRIGHT = 0.05
"""Above the vacuum, of the range: what is darker has no texture to speak of."""
_RIM = 2
"""Blocks around a lattice that are its particle's rim."""
_CORE = 3
"""Blocks by which a lattice is opened before it is asked whether it reaches a side: the edge of a film is narrower than a particle."""
_FILM = 0.2
"""Of the rest of the support: what is less is a thin part of the particle, rather."""
_COVERS = 0.1
"""Of the frame's rim: a dim second particle that is cut by a side touches less of it than a film that covers it."""
_LEAST = 40
"""Blocks that make a film, a particle or a vacuum."""


def films(blocks: Blocks, support: Array) -> Array:
    """Where films at the side of the frame are taken for particle.

    Parameters
    ----------
    support : (rows, columns) bool

    Returns
    -------
    (rows, columns) bool, part of the support; nowhere if the particle shows no lattice to tell by, or reaches a side itself
    """
    none = np.zeros(support.shape, bool)
    vacuum = np.logical_not(binary_dilation(support))
    above = blocks.statistics[0] - np.median(blocks.statistics[0][vacuum]) if vacuum.sum() >= _LEAST else none
    bright = support & (above > _BRIGHT)
    at_sides = bright & touching(support)
    if at_sides.sum() < _LEAST:
        return none
    variance = np.square(blocks.statistics[3])
    texture = _sum(bright, variance - np.median(variance[vacuum])) / np.maximum(_sum(bright, above), 1e-9)
    strongest = np.quantile(texture[bright], _STRONGEST)
    smooth = np.clip(_TIMES * np.quantile(texture[at_sides], _SMOOTHEST), _LEAST_SHARE * strongest, _SHARE * strongest)
    lattice = binary_opening(bright & (texture > smooth))
    found = touching(support & ~binary_dilation(lattice, iterations=_RIM))
    cores, count = label(binary_opening(lattice, iterations=_CORE))
    if count == 0 or found.sum() < max(_LEAST, _FILM * (support & ~found).sum()):
        return none
    if _rim(found).mean() < _COVERS:
        return none
    particle = cores == 1 + np.argmax(sum_labels(texture * above, cores, np.arange(1, count + 1)))
    return none if touching(particle).any() else found


def _sum(where: Array, values: Array) -> Array:
    """(rows, columns) float64: over windows, but for a factor."""
    total: Array = uniform_filter(np.where(where, values, 0).astype(np.float64), _WINDOW)
    return total


def touching(mask: Array) -> Array:
    """(rows, columns) bool: the pieces of a mask that reach the sides."""
    pieces, _ = label(mask)
    sides = np.unique(_rim(pieces))
    reached: Array = np.isin(pieces, sides[sides > 0])
    return reached


def _rim(blocks: Array) -> Array:
    """(n,) the outermost of (rows, columns)."""
    rim: Array = np.concatenate([blocks[0], blocks[-1], blocks[1:-1, 0], blocks[1:-1, -1]])
    return rim
