"""A specimen that turned about more than one axis: how a projection is made ready for a solver about one, and what that leaves over.

A turn is a rotation vector: its length the angle in radians, its direction the axis, in the frame of places, [along the axis, X, Z]
(projector.py; along the axis as rows count, Z towards who looks at no tilt). The specimen is turned first, then tilted. Turn and tilt
together are, as any three angles, three others: a *roll* of the image, by which a projection can be turned back; a tilt about the axis,
only another than the stage said; and a *pitch* about the image's x, by which what is nearer to who looks is seen farther along the axis.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import h5py
import numpy as np

from aet_stream.errors import ReconstructionError
from aet_stream.layout import unreadable
from aet_stream.naming import ATOMS_FILE
from aet_stream.projection import Array
from aet_stream.reconstruct.registered import Alignment

logger = logging.getLogger(__name__)

TURNS = "turns"
"""In the group of a volume: (tilts, 3), radians along [the axis, X, Z]; absent where its projections were not turned."""


def cross(vector: Array) -> Array:
    """(3, 3): what takes p to vector x p."""
    x, y, z = vector
    return np.array([(0.0, -z, y), (z, 0.0, -x), (-y, x, 0.0)])


def rotation(turn: Array) -> Array:
    """(3, 3). Rodrigues' formula."""
    angle, matrix = float(np.linalg.norm(turn)), cross(turn)
    return np.eye(3) + np.sinc(angle / np.pi) * matrix + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * matrix @ matrix


def one_after(first: Array, then: Array) -> Array:
    """(tilts, 3) turns that do both."""
    from scipy.spatial.transform import Rotation  # only here: few series turn, and it takes a tenth of a second to import

    both: Array = (Rotation.from_rotvec(then) * Rotation.from_rotvec(first)).as_rotvec()
    return both


def orientations(tilts_deg: Array, turns: Array) -> Array:
    """(tilts, 3, 3): [along the axis, to the right, towards who looks] in an upright image, of a place."""
    found = np.empty((len(tilts_deg), 3, 3))
    for out, tilt, turn in zip(found, np.radians(tilts_deg), turns, strict=True):
        tilted = np.array([(1, 0, 0), (0, np.cos(tilt), np.sin(tilt)), (0, -np.sin(tilt), np.cos(tilt))])
        out[:] = tilted @ rotation(turn)
    return found


@dataclass(frozen=True, slots=True)
class Poses:
    """Of each projection, once its image is turned back by its roll."""

    rolls: Array
    """(tilts, 2, 2) [y, x] in an upright image from that in the one which is turned back"""
    tilts_deg: Array
    """About the axis, as a solver takes it."""
    pitches: Array
    """(tilts,) pixels along the axis for each pixel towards who looks: the tangent"""

    @property
    def largest_pitch_deg(self) -> float:
        return float(np.degrees(np.arctan(np.abs(self.pitches).max())))


def poses(tilts_deg: Array, turns: Array, *, stretched: bool) -> Poses:
    """What turns come to.

    Parameters
    ----------
    stretched : images are made longer by the cosine of the pitch as well, as then nothing is left over but a shift by depth
    """
    rolls, tilts, pitches = np.empty((len(tilts_deg), 2, 2)), np.empty(len(tilts_deg)), np.empty(len(tilts_deg))
    for tilt, seen in enumerate(orientations(tilts_deg, turns)):
        angle = np.arctan2(seen[1, 0], seen[0, 0])
        back = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        along, across = back @ seen[:2]
        turn = np.degrees(np.arctan2(across[2], across[1]))
        tilts[tilt] = turn + 360 * np.round((tilts_deg[tilt] - turn) / 360)
        pitches[tilt] = (along[2] * across[1] - along[1] * across[2]) / along[0]
        rolls[tilt] = back.T @ np.diag([along[0] if stretched else 1.0, 1.0])
    return Poses(rolls, tilts, pitches)


def alignment_of(volume: Path) -> tuple[Alignment, str, int]:
    """Of a `reconstruction.h5`: (how its projections were brought into register, the digest of its series, the checksum of its voxels).

    Raises
    ------
    ReconstructionError : it cannot be read
    """
    try:
        with h5py.File(volume, "r", locking=False) as file:
            group = file["reconstruction"]
            turns = group[TURNS][()] if TURNS in group else None
            found = Alignment(group["shifts_px"][()], float(group.attrs["axis_deg"]), turns)
            return found, str(group.attrs["series_digest"]), int(group["volume"].attrs.get("crc32", 0))
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{volume}: cannot be read as a volume with its alignment: {unreadable(error)}") from error


@dataclass(frozen=True, slots=True)
class OfAtoms:
    """What `atoms.h5` says of how projections lay, and of which volume it is."""

    volume: Path
    volume_crc32: int
    series_digest: str
    digest: str
    """Names exactly these turns."""
    turns: Array
    """(tilts, 3) all zero: none were kept"""
    shifts_px: Array
    """(tilts, 2) [y, x] in images as they are stored, beyond the alignment of the volume"""

    def onto(self, alignment: Alignment) -> Alignment:
        """That of the volume, with what the atoms found."""
        return replace(alignment, shifts_px=alignment.shifts_px - self.shifts_px @ alignment.matrix, turns=self.turns)


def of_atoms(path: Path) -> OfAtoms:
    """
    Raises
    ------
    ReconstructionError : it cannot be read as atoms
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            about, tilts = file["atoms"].attrs, file["atoms/tilts"]
            x, y, z = np.radians(tilts["turns_deg"][()]).T
            turns, shifts_px = np.stack([-y, x, z], axis=1), tilts["shifts_px"][()]
            digest = hashlib.sha256(turns.tobytes() + shifts_px.tobytes()).hexdigest()
            volume = path.with_name(str(about["volume"]))
            return OfAtoms(volume, int(about["volume_crc32"]), str(about["series_digest"]), digest, turns, shifts_px)
    except (OSError, KeyError, RuntimeError) as error:
        raise ReconstructionError(f"{path}: cannot be read as atoms: {unreadable(error)}") from error


def turned_alignment(volume: Path, atoms: Path | None) -> tuple[Alignment, str]:
    """(the alignment of a volume with the turns that its atoms found, the digest of its series).

    Parameters
    ----------
    atoms : None: `atoms.h5` beside it, where there is one of this very volume that kept turns; else as the volume was made

    Raises
    ------
    ReconstructionError : it cannot be read, or the atoms that are named are of another volume
    """
    alignment, digest, crc32 = alignment_of(volume)
    beside = volume.with_name(ATOMS_FILE)
    if atoms is None and not beside.exists():
        return alignment, digest
    try:
        found = of_atoms(atoms or beside)
    except ReconstructionError:
        if atoms is not None:
            raise
        return alignment, digest
    is_of_it = found.volume_crc32 == crc32 and found.series_digest == digest
    if atoms is not None and not is_of_it:
        raise ReconstructionError(f"{atoms} is of another volume than {volume}: `aet-stream atoms {quote(str(volume))}`")
    if not (is_of_it and found.turns.any()):
        return alignment, digest
    logger.info("%s: projections as its atoms found that they lay", volume)
    return found.onto(alignment), digest
