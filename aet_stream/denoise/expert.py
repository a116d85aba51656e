"""What an expert does by hand today, without a hand: the background step of the pipelines behind published AET reconstructions.

A grey opening with a disk nearly half as wide as the frame leaves what is too narrow for it; Otsu's threshold of that, times 0.9, finds the
particle; its mask is filled and grown, and Laplace's equation fills what lies under it (as in pyAET, github.com/zh-ouie/pyAET, which ports
such a chain from MATLAB; own code). Two things differ, so that the estimate can be compared: it works on block means as the other
classical estimates do, and nothing is clipped at zero or set to zero outside the mask.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_dilation, binary_fill_holes, grey_opening

from aet_stream.denoise import classical, grid
from aet_stream.denoise.estimate import Image
from aet_stream.denoise.vacuum import Vacuum, above_otsu, without_specks
from aet_stream.projection import Array

_DISK = 140 / 300
"""Radius of the opening's disk, by the shorter edge of the frame."""
_OTSU = 0.9
_GROWN = 12 / 300
"""By how much the mask is grown, likewise."""


def background(image: Image) -> Array:
    """(height, width) float32"""
    vacuum = find_vacuum(image.vacuum)
    return grid.draw(classical.laplace(vacuum), vacuum.block_px, image.shape)


def find_vacuum(automatic: Vacuum) -> Vacuum:
    """The same blocks, split into particle and vacuum as an expert would."""
    means = automatic.means
    edge = min(means.shape)
    above = means - grey_opening(means, footprint=_disk(round(_DISK * edge)), mode="nearest")
    particle = binary_fill_holes(without_specks(above_otsu(above, _OTSU)))
    return replace(automatic, mask=binary_dilation(particle, _disk(max(1, round(_GROWN * edge)))))


def _disk(radius: int) -> Array:
    """(2 radius + 1, 2 radius + 1) bool"""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    inside: Array = x * x + y * y <= radius * radius
    return inside
