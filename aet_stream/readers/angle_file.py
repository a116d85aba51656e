"""Angles in a `.mat` of their own beside the projections, as GENFIRE and RESIRE take them: `projections.mat`, `angles.mat`."""

from __future__ import annotations

import re

from aet_stream.errors import AetError, SourceError
from aet_stream.projection import Acquisition, Candidate
from aet_stream.readers.beside import Asked, Beside
from aet_stream.readers.mat import angles_beside

ANGLE_FILE = re.compile(r"(?:tilt_?)?angles?(?:[_\-. ](?!.*(?:proj|data|image|series|stack)).*)?\.mat")
"""Name, in small letters, of a file that holds angles only; one that names projections too may hold them."""
_PROJECTION_FILE = re.compile(r"(?:proj(?:ection)?s?|data)(?P<which>[_\-. ].*)?", re.IGNORECASE)


def pair_of(stem: str) -> str:
    """Name of the file with the angles of `projections.mat`, `projections_1.mat`; empty for files with other names."""
    found = _PROJECTION_FILE.fullmatch(stem)
    return f"{'Angles' if stem[0].isupper() else 'angles'}{found['which'] or ''}.mat" if found else ""


def from_angles(ask: Asked) -> Beside | None:
    """One angle for each image, or its three Euler angles, in degrees.

    Raises
    ------
    SourceError, SourceNotReady : it cannot be read (now)
    """
    images, name = ask.stack.promised, ask.sidecar.name
    try:
        said = angles_beside(ask.sidecar, images)
    except AetError:
        raise
    except Exception as error:  # damaged files make the format libraries raise anything at all
        raise SourceError(f"{name}: {type(error).__name__}: {error}") from error
    if said.tilts_deg is None:
        return Beside(remark=said.remark) if ask.is_own else None
    if not ask.is_own:
        pair = f"projections{ask.path.suffix} and angles.mat"
        return Beside(remark=f"{name} has {images} angles: if they are of this file, call the two {pair}") if images > 1 else None
    if said.unit == "?":
        return Beside(remark=f"{name}: all of {said.name} is below 1.6: call it {said.name}_deg or {said.name}_rad, as it counts")
    tilt = float(said.tilts_deg[ask.image])
    tilts = (Candidate("sidecar", f"{name}: {said.name}[{ask.image}] {tilt:g} deg", tilt, said.unit),)
    return Beside(tilts, Acquisition(tilt_axis_deg=said.axis_deg))
