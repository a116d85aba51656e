"""A picture of the atoms: over the volume's middle slices, and what they are like together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aet_stream import durable
from aet_stream.atoms.atoms_file import Atoms
from aet_stream.atoms.maxima import pair_distribution
from aet_stream.projection import Array
from aet_stream.reconstruct.figure import draw_slices

SLAB_ANGSTROM = 1.5
"""Atoms nearer than this to a slice are drawn over it."""
_COLOURS = ("C1", "C0", "C2")


def draw_atoms(atoms: Atoms, volume: Array, path: Path, *, title: str) -> None:
    """Write a PNG: three slices with the atoms in them, histogram of weights, distances between atoms, misfit of each projection."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13.5, 8.6), layout="constrained")
    draw_slices(axes[0], volume, atoms.pixel_angstrom / 10)
    for across, axis in enumerate(axes[0]):
        _draw_over(axis, atoms, across, volume.shape[across] // 2)
    _draw_weights(axes[1, 0], atoms)
    _draw_distances(axes[1, 1], atoms)
    _draw_misfits(axes[1, 2], atoms)
    doubts = "\n".join(atoms.doubts)
    figure.suptitle(f"{title}\n{doubts}" if doubts else title, fontsize=11)
    with durable.replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=110)
    plt.close(figure)


def _draw_over(axis: Any, atoms: Atoms, across: int, middle: int) -> None:
    near = np.abs(atoms.voxels[:, across] - middle) * atoms.pixel_angstrom < SLAB_ANGSTROM
    first, second = (direction for direction in range(3) if direction != across)
    for kind in range(len(atoms.mean_weights)):
        of_kind = atoms.voxels[near & (atoms.kinds == kind)]
        axis.plot(of_kind[:, second], of_kind[:, first], "o", ms=3, mfc="none", color=_COLOURS[kind % 3], mew=0.7)


def _draw_weights(axis: Any, atoms: Atoms) -> None:
    axis.set_title("weights", fontsize=10)
    axis.set_xlabel("counts of an atom in a projection", fontsize=9)
    edges = np.linspace(0, np.quantile(atoms.weights, 0.999) * 1.1, 60)
    for kind, mean in enumerate(atoms.mean_weights):
        symbol = atoms.symbols[kind] if atoms.symbols else f"kind {kind}"
        of_kind = atoms.weights[atoms.kinds == kind]
        axis.hist(of_kind, edges, color=_COLOURS[kind % 3], alpha=0.7, label=f"{symbol}: {len(of_kind):,}")
        axis.axvline(mean, color=_COLOURS[kind % 3], lw=0.8)
    axis.legend(fontsize=8, frameon=False)


def _draw_distances(axis: Any, atoms: Atoms) -> None:
    axis.set_title("radial distribution", fontsize=10)
    axis.set_xlabel("distance (Å)", fontsize=9)
    distance, g = pair_distribution(atoms.angstrom)
    axis.plot(distance, g, color="C0")
    axis.axhline(1, color="0.7", lw=0.8)
    axis.set_ylim(bottom=0)


def _draw_misfits(axis: Any, atoms: Atoms) -> None:
    tilts = atoms.tilts
    axis.set_title("chi squared per pixel of each projection", fontsize=10)
    axis.set_xlabel("tilt (°)", fontsize=9)
    axis.plot(tilts.tilts_deg, tilts.misfits, ".", color="C0")
    axis.plot(tilts.tilts_deg[tilts.left_out], tilts.misfits[tilts.left_out], "o", color="C3", mfc="none")
    axis.set_ylim(bottom=0)
