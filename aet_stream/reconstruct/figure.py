"""A picture of a volume: its three central slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aet_stream import durable
from aet_stream.projection import Array


def central_slices(volume: Array) -> list[tuple[str, Array]]:
    """(title, image) of the three planes through the middle of a (slice y, row, column) volume, which may be an HDF5 dataset."""
    y, row, column = (edge // 2 for edge in volume.shape)
    return [
        ("across the tilt axis", volume[y]),
        ("seen along the beam", volume[:, row]),
        ("seen from the side", volume[:, :, column]),
    ]


def draw_orthoslices(volume: Array, voxel_size_nm: float, path: Path, *, title: str) -> None:
    """Write the three central slices as PNG, with a scale bar where the voxel size is known."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    slices = central_slices(volume)
    high = float(np.percentile(np.concatenate([image.ravel() for _, image in slices]), 99.8)) or 1.0
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    for axis, (name, image) in zip(axes, slices, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=high)
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
        add_scale_bar(axis, image.shape[1], image.shape[0], voxel_size_nm)
    figure.suptitle(title, fontsize=11)
    with durable.replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=110)
    plt.close(figure)


def add_scale_bar(axis: object, width_px: int, height_px: int, pixel_size_nm: float, colour: str = "white") -> None:
    """A bar of a round length, about a quarter of the width, at the lower left."""
    if not np.isfinite(pixel_size_nm) or pixel_size_nm <= 0:
        return
    wish = width_px * pixel_size_nm / 4
    scale = 10.0 ** np.floor(np.log10(wish))
    length = max(step for step in (1, 2, 5) if step * scale <= wish) * scale
    x, y = width_px * 0.05, height_px * 0.95
    axis.plot([x, x + length / pixel_size_nm], [y, y], color=colour, lw=3, solid_capstyle="butt")  # type: ignore[attr-defined]
    axis.text(x, y - height_px * 0.02, f"{length:g} nm", color=colour, fontsize=8, va="bottom")  # type: ignore[attr-defined]
