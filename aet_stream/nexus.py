"""NeXus (manual.nexusformat.org): what lets a validator accept our HDF5 files, and a viewer open them at the right plot."""

from __future__ import annotations

from collections.abc import Sequence

import h5py
import numpy as np

from aet_stream.projection import Array


def positions(edge_px: int, size_nm: float) -> Array:
    """(edge_px,) where pixels lie, counted from the middle of the edge; in nm, or in pixels where their size is not known."""
    return (np.arange(edge_px) - (edge_px - 1) / 2) * (size_nm if np.isfinite(size_nm) else 1.0)


def unit(size_nm: float) -> str:
    """Of `positions`."""
    return "nm" if np.isfinite(size_nm) else "pixel"


def make_plot(data: h5py.Group, signal: str, axes: Sequence[str], *, title: str) -> None:
    """Make a group an NXdata: `signal` in it over one of `axes` for each dimension, to be shown image by image."""
    data.attrs.update(NX_class="NXdata", signal=signal, axes=list(axes), interpretation="image", title=title)
    for dimension, name in enumerate(axes):
        data.attrs[f"{name}_indices"] = dimension


def set_default(file: h5py.File, *path: str) -> None:
    """From the root, group by group, to the plot that a viewer opens first. Of fixed length: such text has HDF5's own checksum."""
    for depth, name in enumerate(path):
        file["/" + "/".join(path[:depth])].attrs["default"] = np.bytes_(name)
