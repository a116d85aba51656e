"""What a volume that is shared out is made from, once it is known: projections in register, and when to stop. It lies beside the slabs, for
whoever makes some of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py

from aet_stream import durable, hdf5
from aet_stream.layout import LIBVER
from aet_stream.reconstruct import slabs
from aet_stream.reconstruct.axis_search import AxisSearch
from aet_stream.reconstruct.registered import Alignment, Registered

_ROWS = 64
"""Of a projection, that are stored together."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All but the voxels."""

    views: Registered
    iterations: int
    axis: AxisSearch
    key: str
    """Of all that voxels depend on."""


def keep(target: Path, prepared: Prepared, asked: str) -> None:
    """Put it beside the slabs of this volume; those of another go.

    Parameters
    ----------
    asked : names the projections, as acquired, and all options that it was made with

    Raises
    ------
    ReconstructionError : another process makes this volume
    OutputFull : it cannot be written
    """
    views, path = prepared.views, slabs.prepared_path(target)
    with slabs.emptied(target), durable.replacing(path) as draft, hdf5.writing(draft, libver=LIBVER) as file:
        _, height, width = views.projections.shape
        file.create_dataset("projections", data=views.projections, chunks=(1, min(_ROWS, height), width), fletcher32=True)
        file["tilts_deg"], file["shifts_px"] = views.tilts_deg, views.alignment.shifts_px
        if views.weights is not None:
            file["weights"] = views.weights
        file.attrs.update(asked=asked, key=prepared.key, iterations=prepared.iterations, axis_deg=views.alignment.axis_deg)
        file.attrs.update(residuals=json.dumps(views.alignment.residuals), axis=json.dumps(asdict(prepared.axis)))


def find(target: Path, asked: str = "", slices: slice = slice(None)) -> Prepared | None:
    """What was kept for this volume, of some slices; None: nothing sound, or it was for something else.

    Parameters
    ----------
    asked : as it was kept; empty: for whatever it was
    """
    try:
        with h5py.File(slabs.prepared_path(target), "r", locking=False) as file:
            about = file.attrs
            if asked not in ("", about["asked"]):
                return None
            found = Alignment(file["shifts_px"][()], float(about["axis_deg"]), residuals=json.loads(about["residuals"]))
            weights = file["weights"][()] if "weights" in file else None
            views = Registered(file["projections"][:, slices], file["tilts_deg"][()], found, weights=weights)
            return Prepared(views, int(about["iterations"]), AxisSearch(**json.loads(about["axis"])), about["key"])
    except (OSError, KeyError, RuntimeError):
        return None
