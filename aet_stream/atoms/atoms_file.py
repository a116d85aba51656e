"""`atoms.h5` and `atoms.xyz`: what stands in them, written so that nobody sees half."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from pathlib import Path

import h5py
import numpy as np

from aet_stream import __version__, durable, hdf5
from aet_stream.atoms.trace import Round
from aet_stream.errors import ReconstructionError
from aet_stream.layout import LIBVER
from aet_stream.projection import Array
from aet_stream.reconstruct.volume_file import refuse_to_lose

GROUP = "atoms"
NOBODY = "X"
"""The symbol of an atom whose element nobody has said; ASE and others know it as a dummy."""
Facts = dict[str, str | int | float]
"""Attributes of the atoms: what they were made from, and how."""


@dataclass(frozen=True, slots=True)
class Tilts:
    """Of each projection."""

    rows: Array
    """Which rows of the series these are."""
    tilts_deg: Array
    misfits: Array
    """chi squared per pixel: about 1 where the model explains all but the noise"""
    offsets: Array
    """Counts per pixel that are not of atoms."""
    levelled: Array
    """Root mean square of what lay smoothly over it and was taken off, counts per pixel"""
    gains: Array
    shifts_px: Array
    """(tilts, 2) [v, u]: how far its atoms lie from where the alignment of the volume says"""
    turns_deg: Array
    """(tilts, 3) rotation vector along x, y and z: how the specimen had turned before it was tilted; 0 where that explains no more"""
    left_out: Array
    """Contradicts the others, or is broken: no atom was refined against it."""


@dataclass(frozen=True, slots=True)
class Atoms:
    """All that is said of the atoms of one volume."""

    angstrom: Array
    """(n, 3) x to the right, y upwards, z towards who looks along the beam at no tilt, from the middle of the volume"""
    voxels: Array
    """(n, 3) [slice y, row, column] of the volume"""
    starts: Array
    """(n, 3) the same when the atom came in"""
    sigmas_angstrom: Array
    """(n, 3) standard deviation along x, y, z"""
    weights: Array
    """(n,) counts in each projection"""
    weight_sigmas: Array
    kinds: Array
    """(n,) 0: the heaviest"""
    chances: Array
    """(n, kinds) how probable each kind is"""
    presence: Array
    """(n,) how probable it is that it is there at all"""
    rounds_born: Array
    """(n,) 0: a maximum of the volume"""
    symbols: tuple[str, ...]
    """(kinds,) or empty: not known"""
    mean_weights: Array
    """(kinds,)"""
    weight_spreads: Array
    widths_angstrom: Array
    tilts: Tilts
    rounds: tuple[Round, ...]
    doubts: tuple[str, ...]
    pixel_angstrom: float

    @property
    def names(self) -> list[str]:
        """(n,) symbol of each atom."""
        return [self.symbols[kind] if self.symbols else NOBODY for kind in self.kinds]


_PER_ATOM = {
    "angstrom": "x to the right, y upwards, z towards who looks along the beam at no tilt, from the middle of the volume",
    "voxels": "slice y, row, column of the volume",
    "starts": "the same when the atom came in",
    "sigmas_angstrom": "standard deviation along x, y, z",
    "weights": "counts in each projection",
    "weight_sigmas": "standard deviation, from the projections alone",
    "kinds": "0: the heaviest",
    "chances": "how probable each kind is",
    "presence": "how probable it is that there is an atom",
    "rounds_born": "0: a maximum of the volume",
}


def check_target(target: Path, *, replaces: bool) -> None:
    """Find out now, not after minutes of work.

    Raises
    ------
    ReconstructionError : it cannot be written there, or something would be lost
    """
    if not target.parent.is_dir():
        raise ReconstructionError(f"{target.parent} is no folder: make it first, or choose another --out")
    beside = [target.with_suffix(suffix) for suffix in (".xyz", ".png")]
    if target.suffix not in (".h5", ".hdf5") or any(path.is_dir() for path in (target, *beside)):
        raise ReconstructionError(f"{target} cannot take the atoms: name a file ending in .h5, and none that is a folder")
    refuse_to_lose(target, GROUP, "atoms", beside, replaces=replaces)


def is_done(target: Path, identity: Facts) -> bool:
    """Does the file hold the atoms of this input, by these options, and lie all that belongs to it beside it?"""
    try:
        with h5py.File(target, "r", locking=False) as file:
            same = all(file[GROUP].attrs[key] == value for key, value in identity.items())
    except (OSError, KeyError, RuntimeError):
        return False
    return same and all(target.with_suffix(suffix).exists() for suffix in (".xyz", ".png"))


def save(target: Path, atoms: Atoms, facts: Facts) -> None:
    """Write `atoms.h5`, in one go; what lies beside it of other atoms goes.

    Raises
    ------
    OutputFull : the disk does not take it
    """
    for suffix in (".xyz", ".png"):
        target.with_suffix(suffix).unlink(missing_ok=True)
        durable.remove_dead(target.with_suffix(suffix))
    durable.remove_dead(target)
    with durable.replacing(target, "atoms") as draft, hdf5.writing(draft, libver=LIBVER) as file:
        _write(file.create_group(GROUP), atoms, facts)


def _write(group: h5py.Group, atoms: Atoms, facts: Facts) -> None:
    for name, meaning in _PER_ATOM.items():
        group[name] = getattr(atoms, name)
        group[name].attrs["meaning"] = meaning
    kinds = group.create_group("species")
    kinds["symbols"] = [symbol.encode() for symbol in atoms.symbols or (NOBODY,) * len(atoms.mean_weights)]
    kinds["mean_weights"], kinds["weight_spreads"] = atoms.mean_weights, atoms.weight_spreads
    kinds["widths_angstrom"], kinds["counts"] = atoms.widths_angstrom, np.bincount(atoms.kinds, minlength=len(atoms.mean_weights))
    tilts = group.create_group("tilts")
    for field in fields(Tilts):
        value = getattr(atoms.tilts, field.name)
        tilts[field.name] = value.astype(np.uint8) if value.dtype == bool else value
    rounds = group.create_group("rounds")
    for name, column in zip([field.name for field in fields(Round)], zip(*map(astuple, atoms.rounds), strict=True), strict=True):
        rounds[name] = np.array(column)
    group.attrs.update(facts, software=f"aet_stream {__version__}", doubts="\n".join(atoms.doubts))


def save_xyz(path: Path, atoms: Atoms) -> None:
    """Extended XYZ: what ASE and OVITO read with all columns, and every reader of XYZ with the first four.

    ASE's format (ase.io.extxyz): a count, a line that says what the columns are, a line for each atom; lengths in angstrom.
    """
    kind = "species:S:1:pos:R:3:sigma:R:3:weight:R:1:kind:I:1:confidence:R:1:presence:R:1"
    lines = [str(len(atoms.weights)), f'Properties={kind} pbc="F F F" software="aet_stream {__version__}"']
    confidence = atoms.chances[np.arange(len(atoms.kinds)), atoms.kinds]
    for name, place, sigma, weight, number, sure, there in zip(
        atoms.names, atoms.angstrom, atoms.sigmas_angstrom, atoms.weights, atoms.kinds, confidence, atoms.presence, strict=True
    ):
        numbers = " ".join(f"{value:.4f}" for value in (*place, *sigma, weight))
        lines.append(f"{name} {numbers} {number} {sure:.3f} {there:.3f}")
    durable.replace(path, ("\n".join(lines) + "\n").encode())
