"""A picture of a volume: its three central slices, and how far to trust them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def draw_slices(axes: Iterable[Any], volume: Array, voxel_size_nm: float) -> None:
    """The central slices, each on its axis, in one range of grey."""
    slices = central_slices(volume)
    high = float(np.percentile(np.concatenate([image.ravel() for _, image in slices]), 99.8)) or 1.0
    for axis, (name, image) in zip(axes, slices, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=high)
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
        add_scale_bar(axis, image.shape[1], image.shape[0], voxel_size_nm)


def draw_summary(group: Any, path: Path, *, title: str) -> None:
    """Write a PNG of an open `/reconstruction`: slices with a scale bar where the voxel size is known, correlation, residuals by tilt."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(19, 4.2))  # laid out by hand: a constrained layout draws everything twice
    pictures = figure.add_gridspec(1, 3, left=0.01, right=0.56, bottom=0.13, top=0.87, wspace=0.1).subplots(squeeze=False)[0]
    plots = figure.add_gridspec(1, 2, left=0.6, right=0.98, bottom=0.13, top=0.87, wspace=0.17).subplots(squeeze=False)[0]
    draw_slices(pictures, group["volume"], float(group.attrs["voxel_size_nm"]))
    _draw_correlation(plots[0], group["quality"])
    _draw_residuals(plots[1], group)
    figure.suptitle(title, fontsize=11)
    with durable.replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=110)


def _draw_correlation(axis: Any, quality: Any) -> None:
    axis.set_title("Fourier shell correlation of half series", fontsize=10)
    axis.set_xlabel("spatial frequency (1 / voxel)", fontsize=9)
    axis.set_ylim(-0.1, 1.05)
    axis.axhline(0.5, color="0.7", lw=0.8)
    if quality["fsc"].size:
        axis.plot(quality["fsc_per_px"][()], quality["fsc"][()], color="C0")
    resolution_px, resolution_nm = (float(quality.attrs[f"resolution_{unit}"]) for unit in ("px", "nm"))
    words = "never below 0.5" if not np.isfinite(resolution_px) else f"0.5 at {resolution_px:.2g} voxels"
    words = words if quality["fsc"].size else "not compared"
    words += f" = {resolution_nm:.2g} nm" if np.isfinite(resolution_nm) else ""
    axis.text(0.03, 0.04, f"{words}\nmissing wedge {quality.attrs['missing_wedge_deg']:.0f}°", transform=axis.transAxes, fontsize=8)


def _draw_residuals(axis: Any, group: Any) -> None:
    tilts_deg, residual = group["tilts_deg"][()], group["quality/residual_per_tilt"][()]
    suspect = np.isin(group["rows"][()], group["quality/suspect_rows"][()])
    axis.set_title("residual of each projection", fontsize=10)
    axis.set_xlabel("tilt (°)", fontsize=9)
    axis.plot(tilts_deg, residual, ".", color="C0")
    axis.plot(tilts_deg[suspect], residual[suspect], "o", color="C3", mfc="none")
    for row, tilt, value in zip(group["rows"][suspect], tilts_deg[suspect], residual[suspect], strict=True):
        axis.annotate(f"row {row}", (tilt, value), fontsize=8, color="C3")
    axis.set_ylim(bottom=0)


def add_scale_bar(axis: object, width_px: int, height_px: int, pixel_size_nm: float, colour: str = "white") -> None:
    """A bar of a round length, about a quarter of the width, at the lower left."""
    if not np.isfinite(pixel_size_nm) or pixel_size_nm <= 0:
        return
    wish = width_px * pixel_size_nm / 4
    scale = 10.0 ** np.floor(np.log10(wish))
    length = max((step for step in (1, 2, 5) if step * scale <= wish), default=1) * scale
    x, y = width_px * 0.05, height_px * 0.95
    axis.plot([x, x + length / pixel_size_nm], [y, y], color=colour, lw=3, solid_capstyle="butt", zorder=3)  # type: ignore[attr-defined]
    axis.text(x, y - height_px * 0.02, f"{length:g} nm", color=colour, fontsize=8, va="bottom")  # type: ignore[attr-defined]
