"""From a volume and its projections to atoms: found, placed, counted, sure or refused; and files that other programs open."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from aet_stream import failpoints
from aet_stream.atoms.run import Options, find_atoms
from aet_stream.cli import main
from aet_stream.errors import NoAtoms
from aet_stream.projection import Array
from aet_stream.reconstruct.run import Options as VolumeOptions
from aet_stream.reconstruct.run import reconstruct
from tests.atom_series import counted, fcc, matched, series_of
from tests.harness import ENVIRONMENT

SIZE_PX = 48
TILTS_DEG = np.arange(-75, 76, 6.0)
PLACES = fcc(6.3)
COUNTS = 60.0


def volume_of(folder: Path, images: Array, tilts_deg: Array = TILTS_DEG, **options: object) -> Path:
    """A series, and its volume beside it."""
    series = series_of(folder / "series.h5", images, tilts_deg)
    return reconstruct(series, VolumeOptions(iterations=30, quality=False, **{"align": (), **options}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of a crystal, its atoms found by the command."""
    images = counted(PLACES, np.full(len(PLACES), COUNTS), TILTS_DEG, size_px=SIZE_PX)
    volume = volume_of(tmp_path_factory.mktemp("atoms") / "gold", images)
    assert main(["atoms", str(volume), "--elements", "Au"]) == 0
    return volume


def read(path: Path) -> dict[str, Array]:
    """All that stands in `atoms.h5` of each atom."""
    with h5py.File(path, "r") as file:
        return {name: item[()] for name, item in file["atoms"].items() if isinstance(item, h5py.Dataset)}


def test_atoms_are_found_where_they_are(gold: Path) -> None:
    """Each true atom is found within a tenth of an angstrom or two, in a right-handed frame, and nothing else is."""
    found = read(gold.with_name("atoms.h5"))
    one, other = matched(found["angstrom"], PLACES)
    assert len(one) == len(PLACES) == len(found["angstrom"])
    away = found["angstrom"][one] - PLACES[other]
    assert np.sqrt((away**2).sum(axis=1).mean()) < 0.15
    assert np.abs(away.mean(axis=0)).max() < 0.03
    assert np.median(found["weights"]) == pytest.approx(COUNTS, rel=0.05)


def test_standard_deviations_are_true(gold: Path) -> None:
    """What is said of how well atoms are known is right within a factor of 1.5, along each axis."""
    found = read(gold.with_name("atoms.h5"))
    one, other = matched(found["angstrom"], PLACES)
    true = (found["angstrom"][one] - PLACES[other]).std(axis=0)
    said = np.sqrt((found["sigmas_angstrom"] ** 2).mean(axis=0))
    assert np.all((said / true > 1 / 1.5) & (said / true < 1.5))


def test_the_file_says_what_it_is_of(gold: Path) -> None:
    """Voxels are those of the volume; misfits, offsets and shifts of each projection stand beside; the volume itself is as it was."""
    found = read(gold.with_name("atoms.h5"))
    with h5py.File(gold, "r") as file:
        volume = file["reconstruction/volume"][()]
    at = np.rint(found["voxels"]).astype(int)
    assert volume[tuple(at.T)].mean() > 5 * volume.mean()
    with h5py.File(gold.with_name("atoms.h5"), "r") as file:
        assert file["atoms/tilts/misfits"][()] == pytest.approx(1.0, abs=0.3)
        assert file["atoms/tilts/levelled"][()] == pytest.approx(0.0, abs=0.1)
        assert file["atoms"].attrs["pixel_angstrom"] == pytest.approx(0.35)
        assert file["atoms"].attrs["doubts"] == ""
        assert file["atoms/species/counts"][()].tolist() == [len(PLACES)]


def test_other_programs_open_the_xyz(gold: Path) -> None:
    """ASE reads symbols, places and every further column."""
    ase_io = pytest.importorskip("ase.io", reason="ASE is not installed")
    atoms = ase_io.read(gold.with_name("atoms.xyz"), format="extxyz")
    found = read(gold.with_name("atoms.h5"))
    assert set(atoms.get_chemical_symbols()) == {"Au"}
    assert atoms.get_positions() == pytest.approx(found["angstrom"], abs=1e-3)
    assert atoms.arrays["weight"] == pytest.approx(found["weights"], abs=1e-3)
    assert atoms.arrays["sigma"].shape == (len(PLACES), 3)


def test_ovito_opens_the_xyz(gold: Path) -> None:
    """Places, types and further columns, as OVITO's own reader has them."""
    ovito_io = pytest.importorskip("ovito.io", reason="OVITO is not installed")
    particles = ovito_io.import_file(str(gold.with_name("atoms.xyz"))).compute().particles
    found = read(gold.with_name("atoms.h5"))
    assert np.asarray(particles.positions) == pytest.approx(found["angstrom"], abs=1e-3)
    assert {particles.particle_types.type_by_id(int(one)).name for one in particles.particle_types} == {"Au"}
    assert np.asarray(particles["weight"]) == pytest.approx(found["weights"], abs=1e-3)


def test_plain_readers_open_the_xyz(gold: Path) -> None:
    """The first four columns are those of plain XYZ."""
    lines = gold.with_name("atoms.xyz").read_text().splitlines()
    assert int(lines[0]) == len(lines) - 2 == len(PLACES)
    assert all(line.split()[0] == "Au" and len([float(word) for word in line.split()[1:4]]) == 3 for line in lines[2:])


@pytest.mark.parametrize(
    "step",
    [
        "draft",
        pytest.param("renamed", marks=pytest.mark.thorough),
        pytest.param("synced", marks=pytest.mark.slow),
        pytest.param("durable", marks=pytest.mark.slow),
    ],
)
def test_atoms_that_are_killed_while_they_are_written_are_whole_or_absent(tmp_path: Path, gold: Path, step: str) -> None:
    """SIGKILL at each step of their writing: no half file, and no XYZ of others beside them; the next try makes them, or finds them."""
    for name in ("series.h5", "reconstruction.h5"):
        shutil.copy(gold.with_name(name), tmp_path)
    for stale in ("atoms.xyz", "atoms.png"):
        (tmp_path / stale).write_text("of others")
    argv = [sys.executable, "-m", "aet_stream", "atoms", str(tmp_path / gold.name)]
    run = subprocess.run(argv, env={**ENVIRONMENT, failpoints.VARIABLE: f"atoms.{step}=kill"}, check=False, stderr=subprocess.DEVNULL)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "atoms.xyz").exists()
    if step in ("renamed", "durable"):
        assert len(read(tmp_path / "atoms.h5")["weights"]) == len(PLACES)
    else:
        assert not (tmp_path / "atoms.h5").exists()
    find_atoms(tmp_path / gold.name)
    assert read(tmp_path / "atoms.h5")["angstrom"] == pytest.approx(read(gold.with_name("atoms.h5"))["angstrom"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atoms.h5", "atoms.png", "atoms.xyz", "reconstruction.h5", "series.h5"]


def test_the_same_atoms_are_not_made_twice(gold: Path) -> None:
    """Asked again, it leaves the file alone; asked for something else, it makes it anew, and the same to a hair."""
    target = gold.with_name("atoms.h5")
    before = target.stat().st_mtime_ns
    assert main(["atoms", str(gold), "--elements", "Au"]) == 0
    assert target.stat().st_mtime_ns == before
    other = gold.with_name("unnamed.h5")
    shutil.copy(target, other)
    assert main(["atoms", str(gold), "--out", str(other), "--overwrite"]) == 0
    assert read(other)["angstrom"] == pytest.approx(read(target)["angstrom"])
    assert other.with_suffix(".xyz").read_text().splitlines()[2].split()[0] == "X"


def test_shifted_and_turned_projections(tmp_path: Path) -> None:
    """What the alignment found is part of the model: atoms are refined against projections as stored, and what it left over is found."""
    shifts = np.random.default_rng(5).uniform(-2, 2, (len(TILTS_DEG), 2))
    images = counted(PLACES, np.full(len(PLACES), COUNTS), TILTS_DEG, size_px=SIZE_PX, shifts_px=shifts)
    volume = volume_of(tmp_path / "moved", images, align=("common-line", "center-of-mass", "projection-matching"))
    found = read(find_atoms(volume))
    places = found["angstrom"] - found["angstrom"].mean(axis=0) + PLACES.mean(axis=0)
    one, other = matched(places, PLACES)
    assert len(one) >= 0.98 * len(PLACES)
    assert len(one) >= 0.98 * len(places)
    assert np.sqrt(((places[one] - PLACES[other]) ** 2).sum(axis=1).mean()) < 0.25


def test_turns_are_found_where_they_explain_more(tmp_path: Path, gold: Path) -> None:
    """A specimen that wobbled about all axes: how is found, and atoms are as sharp as without; where none did, none is said."""
    places, turns = fcc(7.5), np.random.default_rng(1).normal(0, np.radians(1.5), (len(TILTS_DEG), 3))
    images = counted(places, np.full(len(places), COUNTS), TILTS_DEG, size_px=56, turns=turns)
    with h5py.File(find_atoms(volume_of(tmp_path / "wobbled", images)), "r") as file:
        found, said = file["atoms/angstrom"][()], np.radians(file["atoms/tilts/turns_deg"][()])
    own = turns - turns.mean(axis=0)  # by the mean of all, the particle lies otherwise
    assert ((said - said.mean(axis=0) - own) ** 2).mean() < 0.2 * (own**2).mean()
    one, other = matched(found, places)
    assert len(one) >= 0.98 * max(len(places), len(found))
    there, true = (at - at.mean(axis=0) for at in (found[one], places[other]))
    turn, _ = Rotation.align_vectors(there, true)
    assert np.sqrt(((turn.apply(true) - there) ** 2).sum(axis=1).mean()) < 0.15
    with h5py.File(gold.with_name("atoms.h5"), "r") as file:
        assert not file["atoms/tilts/turns_deg"][()].any()


def test_what_a_film_has_left_behind_the_particle_costs_no_atoms(tmp_path: Path) -> None:
    """Smooth errors, others at every tilt, more than half as strong as the particle: 99 of 100 atoms, and hardly any that is none."""
    places, size_px = fcc(9.0), 72
    images = counted(places, np.full(len(places), 14.3), TILTS_DEG, size_px=size_px)
    left = np.stack([gaussian_filter(noise, 8.0) for noise in np.random.default_rng(5).standard_normal(images.shape)])
    images += (left / left.std()).astype(np.float32)
    find_atoms(volume := volume_of(tmp_path, images))
    found = read(volume.with_name("atoms.h5"))
    right = len(matched(found["angstrom"], places)[0])
    assert right >= 0.99 * len(places)
    assert right >= 0.99 * len(found["angstrom"])
    with h5py.File(volume.with_name("atoms.h5"), "r") as file:
        assert 0.3 < file["atoms/tilts/levelled"][()].mean() < 1.0


def test_two_species_are_told_apart(tmp_path: Path) -> None:
    """Light atoms beside heavy ones are found and named, where the dose allows it."""
    rng = np.random.default_rng(3)
    heavy = rng.random(len(PLACES)) < 0.5
    images = counted(PLACES, np.where(heavy, 400.0, 100.0), TILTS_DEG, size_px=SIZE_PX)
    volume = volume_of(tmp_path / "alloy", images)
    found = read(find_atoms(volume, options=Options(elements=("Pt", "Ni"))))
    one, other = matched(found["angstrom"], PLACES)
    right = (found["kinds"][one] == 0) == heavy[other]
    assert right[heavy[other]].sum() >= 0.9 * heavy.sum()
    assert right[~heavy[other]].sum() >= 0.9 * (~heavy).sum()
    assert len(one) >= 0.9 * len(found["angstrom"])


def refusal(volume: Path) -> str:
    """Why there are no atoms; nothing is written then."""
    with pytest.raises(NoAtoms) as told:
        find_atoms(volume)
    assert not volume.with_name("atoms.h5").exists()
    return str(told.value)


def gold_images(tilts_deg: Array = TILTS_DEG) -> Array:
    return counted(PLACES, np.full(len(PLACES), COUNTS), tilts_deg, size_px=SIZE_PX)


def test_filtered_projections_are_refused(tmp_path: Path) -> None:
    """Without its noise a series cannot say how sure anything in it is."""
    smooth = np.stack([gaussian_filter(view, 1.0) for view in gold_images()])
    assert "filtered" in refusal(volume_of(tmp_path / "smooth", smooth))


def test_few_tilts_are_refused(tmp_path: Path) -> None:
    """Five directions do not tell atoms behind each other apart."""
    tilts_deg = np.linspace(-60, 60, 5)
    assert "5 directions" in refusal(volume_of(tmp_path / "few", gold_images(tilts_deg), tilts_deg))


def test_what_has_no_atoms_is_refused(tmp_path: Path) -> None:
    """Neither noise nor a smooth body is made of atoms."""
    rng = np.random.default_rng(0)
    noise = rng.poisson(5.0, (len(TILTS_DEG), SIZE_PX, SIZE_PX)).astype(np.float32) - 5
    assert "no atoms are resolved" in refusal(volume_of(tmp_path / "noise", noise))
    x, y = np.meshgrid(*[np.arange(SIZE_PX) - 23.5] * 2)
    ball = 20 * np.sqrt(np.maximum(0, 1 - (x**2 + y**2) / 15**2))
    body = rng.poisson(np.repeat(ball[None] + 1, len(TILTS_DEG), axis=0)).astype(np.float32) - 1
    assert "atoms" in refusal(volume_of(tmp_path / "body", body))


def test_an_outdated_volume_is_refused(tmp_path: Path, gold: Path) -> None:
    """A volume of other projections than the series holds now has no atoms to give."""
    folder = tmp_path / "older"
    folder.mkdir()
    shutil.copy(gold, folder / "reconstruction.h5")
    series_of(folder / "series.h5", gold_images()[:-1], TILTS_DEG[:-1])
    assert "outdated" in refusal(folder / "reconstruction.h5")


def test_a_broken_frame_is_left_out_and_said(tmp_path: Path) -> None:
    """A scan that was broken off half way spoils no atom, and stands in the file."""
    images = gold_images()
    images[7, SIZE_PX // 2 :] = 0
    with h5py.File(find_atoms(volume_of(tmp_path / "broken", images)), "r") as file:
        places = file["atoms/angstrom"][()]
        assert np.flatnonzero(file["atoms/tilts/left_out"][()]).tolist() == [7]
        assert "left out" in file["atoms"].attrs["doubts"]
    one, _ = matched(places, PLACES)
    assert len(one) >= 0.99 * len(PLACES)


def test_without_a_pixel_size_nothing_is_an_atom(tmp_path: Path) -> None:
    """Lengths are not guessed; said on the command line, they are taken."""
    series = series_of(tmp_path / "bare" / "series.h5", gold_images(), TILTS_DEG, pixel_angstrom=float("nan"))
    volume = reconstruct(series, VolumeOptions(iterations=30, quality=False, align=()))
    assert "--pixel-angstrom" in refusal(volume)
    with pytest.raises(NoAtoms, match="a pixel measures 2 angstrom"):
        find_atoms(volume, options=Options(pixel_angstrom=2.0))


def test_files_of_others_are_not_replaced(tmp_path: Path, gold: Path) -> None:
    """What holds something else than atoms stays."""
    taken = tmp_path / "taken.h5"
    with h5py.File(taken, "w") as file:
        file["mine"] = 1
    assert main(["atoms", str(gold), "--out", str(taken)]) != 0
    with h5py.File(taken, "r") as file:
        assert file["mine"][()] == 1
