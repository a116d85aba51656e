"""What instruments write beside and around the pixels: metadata, sidecars, tables; and what is refused."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from scipy.io import savemat

from aet_stream.config import Angle
from aet_stream.config_file import load
from aet_stream.errors import ConfigError, SourceError, SourceNotReady, SourceStillZero
from aet_stream.projection import Acquisition
from aet_stream.readers import open_source
from aet_stream.readers.angle import resolve
from aet_stream.readers.beside import Beside
from aet_stream.readers.child import Member, ReaderChild, Rules
from aet_stream.readers.sidecar import beside
from aet_stream.simulate import writers
from aet_stream.simulate.writers import mrc, velox
from tests import containers, format_table
from tests.harness import known_image


@pytest.fixture(scope="module")
def child() -> Iterator[ReaderChild]:
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64)
    yield reader
    reader.close()


def test_the_page_of_formats_says_what_the_readers_find(tmp_path: Path, child: ReaderChild) -> None:
    """docs/formats.md, first table: one file of every kind, written by our own writers. Renew it by `python -m tests.format_table`."""
    assert format_table.first_table(tmp_path, child) in format_table.PAGE.read_text()


def test_the_page_of_formats_says_what_third_party_samples_hold(test_data: Path, child: ReaderChild) -> None:
    """docs/formats.md, second table: every sample is read right, or refused with the right reason."""
    assert format_table.second_table(test_data, child) in format_table.PAGE.read_text()


def test_every_writer_gives_back_its_pixels(tmp_path: Path) -> None:
    """Of every kind of file in the table, image by image, the same numbers in the same places."""
    one, three = known_image(1, 48)[:, :40], [known_image(index, 48)[:, :40] for index in range(3)]
    for what, path in format_table.fixtures(tmp_path):
        source = open_source(path)
        if "STEMTomo" in what:
            found = np.concatenate([source.frames(image) for image in range(3)])
            assert np.array_equal(found, [known_image(index, 48) for index in range(6)]), what
        elif "two detectors" in what:
            assert [source.acquisition(image).detector for image in range(2)] == ["HAADF", "BF"]
            assert np.array_equal(source.frames(1)[0], one + 1)
        elif source.probe.images == 3 or source.probe.frames == 3:
            assert np.array_equal(np.concatenate([source.frames(image) for image in range(source.probe.images)]), three), what
        else:
            assert np.array_equal(source.frames(0)[0], one), what


# -- sidecars ---------------------------------------------------------------------------------------------------------------------------


def test_41_tilts_out_of_order_each_find_their_section(test_data: Path, tmp_path: Path) -> None:
    """A real mdoc of a dose-symmetric series: section i belongs to image i, whatever its tilt, and to its own frame file by name."""
    text = (test_data / "formats" / "mdoc" / "tilt_series.mdoc").read_text()
    (tmp_path / "TS_01.mrc.mdoc").write_text(text)
    loose = tmp_path / "frames.mdoc"
    loose.write_text(text)
    tilts = [beside(tmp_path / "TS_01.mrc", image, 41).tilts[0].tilt_deg for image in range(41)]
    assert len(set(tilts)) == 41
    assert tilts[:3] == [0.000999877, 3.00113, pytest.approx(tilts[2])]
    assert tilts != sorted(tilts)
    assert (round(min(tilts)), round(max(tilts))) == (-60, 60)
    frames = [line.split("\\")[-1] for line in text.splitlines() if line.startswith("SubFramePath")]
    for image, name in enumerate(frames):
        said = beside(tmp_path / name, 0, 1, [loose])
        assert said.tilts[0].tilt_deg == tilts[image], name
        assert said.known.pixel_size_nm == pytest.approx(0.54)
        assert said.known.tilt_axis_deg == 85.3


def test_real_sections_of_two_frames(test_data: Path, tmp_path: Path) -> None:
    """NIST's Titan: two sections per tilt, time, detector and pixel size from the text; the second file was taken after the first."""
    for name in ("test_000.mrc.mdoc", "test_001.mrc.mdoc", "test_002.mrc.mdoc"):
        (tmp_path / name).write_bytes((test_data / "formats" / "mdoc" / name).read_bytes())
    known = [beside(tmp_path / f"test_00{number}.mrc", image, 2) for number in range(3) for image in range(2)]
    assert [round(said.tilts[0].tilt_deg) for said in known] == [0, 0, 5, 5, -5, -5]
    assert known[0].known.detector == "HAADF"
    assert known[0].known.pixel_size_nm == pytest.approx(0.788)
    assert known[0].known.acquired_local == "2023-03-31T16:24:15"
    assert known[0].known.acquired_local < known[4].known.acquired_local < known[2].known.acquired_local


def test_an_mdoc_of_frame_sets_names_its_file(test_data: Path, tmp_path: Path) -> None:
    """A FrameSet belongs to the file it names and to no other; its inner sections are no images."""
    loose = tmp_path / "all.mdoc"
    loose.write_bytes((test_data / "formats" / "mdoc" / "frame_set_multiple.mdoc").read_bytes())
    assert beside(tmp_path / "s_mmm_01013_33.0_Oct08_07.46.46.tif", 0, 1, [loose]).tilts[0].tilt_deg == 32.986
    assert beside(tmp_path / "other.tif", 0, 1, [loose]).tilts == ()


@pytest.mark.parametrize(
    ("name", "text", "path", "image", "images", "tilt"),
    [
        ("a.csv", "tilt\n-30\n0\n", "a.st", 1, 2, 0.0),
        ("a.csv", "-30.5\n1.5\n", "a.st", 0, 2, -30.5),
        ("a.csv", "section;alpha (rad)\n0;0,5\n1;1\n", "a.st", 0, 2, np.degrees(0.5)),
        ("a.tif.csv", "time,angle_deg\n12,-7.5\n", "a.tif", 0, 1, -7.5),
        ("all.csv", "File Name;x\na.tif;3\n", "a.tif", 0, 1, None),
        ("all.csv", "filename\ttilt angle\nb.tif\t3\nA.TIF\t-4\n", "a.tif", 0, 1, -4.0),
        ("all.csv", "name,image,tilt\na,0,1\na,1,2\n", "a.st", 1, 2, 2.0),
        ("all.csv", "name,tilt\na.st,1\n", "a.st", 1, 2, None),
        ("all.csv", "name,tilt\na.tif,1\nb.tif,-4", "b.tif", 0, 1, -4.0),
        ("a.csv", "tilt\n1\n2\n3\n", "a.st", 0, 2, None),
        ("a.csv", "energy,counts\n1,2\n3,4\n", "a.st", 0, 2, None),
        ("a_override.csv", "tilt\n5\n", "a_override.tif", 0, 1, None),
        ("all.csv", "file,tilt (°)\na.tif,-4\n", "a.tif", 0, 1, -4.0),
        ("a.csv", "-6.000000e+01\n2.500000e+00\n", "a.st", 1, 2, 2.5),
        ("a.csv", "-60.\n.5\n", "a.st", 1, 2, 0.5),
        ("a.rawtlt", " -3,5\n4\n", "a.st", 0, 2, -3.5),
        ("A.RAWTLT", "1\n2\n", "A.st", 1, 2, 2.0),
    ],
)
def test_tables_beside_images(tmp_path: Path, name: str, text: str, path: str, image: int, images: int, tilt: float | None) -> None:
    """Columns by name, decimal commas, radians, one table for a folder, numbers as NumPy writes them; never a guess."""
    (tmp_path / name).write_text(text)
    loose = [tmp_path / name] if name == "all.csv" else []
    assert [said.tilt_deg for said in beside(tmp_path / path, image, images, loose).tilts] == (
        [] if tilt is None else [pytest.approx(tilt)]
    )


def test_a_table_of_a_windows_program_is_read(tmp_path: Path) -> None:
    """Excel writes the letters of its own country, one byte each: they stand in the names of files, and as the sign of degrees."""
    (tmp_path / "tilts.csv").write_bytes("file;tilt (°)\r\nTräger_1.tif;-12,5\r\n".encode("cp1252"))
    assert [said.tilt_deg for said in beside(tmp_path / "Träger_1.tif", 0, 1, [tmp_path / "tilts.csv"]).tilts] == [-12.5]


def test_a_long_stack_is_looked_at_in_time(tmp_path: Path) -> None:
    """1,000 sections with all that SerialEM says of each, 4,000 pages: understood once, not once for every image."""
    section = "".join(f"Key{number} = {number}.25 {number}\n" for number in range(24))
    (tmp_path / "x.mrc").write_bytes(mrc(np.ones((1000, 8, 8), "<u2"), 0.0, 0.05))
    (tmp_path / "x.mrc.mdoc").write_text("".join(f"[ZValue = {z}]\nTiltAngle = {z / 100}\n{section}\n" for z in range(1000)))
    tifffile.imwrite(tmp_path / "x.tif", np.ones((4000, 8, 8), "<u2"), photometric="minisblack")
    reader = ReaderChild(timeout_s=15, memory_mib=4096, max_file_mib=64)
    try:
        assert [unit.tilts[0].tilt_deg for unit in reader.look(tmp_path / "x.mrc").units] == [z / 100 for z in range(1000)]
        assert len(reader.look(tmp_path / "x.tif").units) == 4000
    finally:
        reader.close()


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("kind", ["link", "large"])
def test_a_sidecar_that_is_not_read_holds_the_projection(tmp_path: Path, kind: str, loose: bool) -> None:
    """A link, or too large for a table: what it says is not known, so the name of the image alone is not believed."""
    sidecar = tmp_path / ("all.csv" if loose else "a_1deg.csv")
    if kind == "link":
        sidecar.symlink_to(tmp_path / "elsewhere.csv")
    else:
        with sidecar.open("wb") as file:
            file.truncate((16 << 20) + 1)
    said = beside(tmp_path / "a_1deg.npy", 0, 1, [sidecar] if loose else [])
    _, hold = resolve(Acquisition(), said.tilts, "a_1deg.npy", 1, Angle(), remark=said.remark)
    assert f"{sidecar.name} {'is a link' if kind == 'link' else 'has 16777217 bytes'}" in str(hold)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_sidecar_that_cannot_be_read_now_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Only one that does not exist counts as not there."""

    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "a_1deg.csv").write_text("tilt\n40\n")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(SourceNotReady, match=f"a_1deg.csv: {os.strerror(number)}"):
        beside(tmp_path / "a_1deg.npy", 0, 1)
    assert beside(tmp_path / f"{'b' * 255}", 0, 1) == beside(tmp_path / "b_1deg.npy", 0, 1) == Beside()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "tilt\n-1"),
        ("a.rawtlt", "-1"),
        ("a.rawtlt", ""),
        ("a.mdoc", "[ZValue = 0]\nTiltAngle = -1"),
        ("all.csv", "file,tilt\nb.npy,3\na.npy,-1"),
        ("all.mdoc", "[Image = b.npy]\nTiltAngle = 3\n\n[Image = a.npy]\nTiltAngle = -1"),
    ],
)
def test_half_a_line_is_no_tilt(tmp_path: Path, name: str, text: str) -> None:
    """-1 may become -12.5: an unfinished last line is waited for, if it is about this image, and believed when nothing follows."""
    (tmp_path / name).write_text(text)
    loose = [tmp_path / name] if name.startswith("all") else []
    with pytest.raises(SourceNotReady, match=r"no end yet|no TiltAngle yet"):
        beside(tmp_path / "a.npy", 0, 1, loose, settle_s=60)
    if loose:
        assert [said.tilt_deg for said in beside(tmp_path / "b.npy", 0, 1, loose, settle_s=60).tilts] == [3.0]
    os.utime(tmp_path / name, (1e9, 1e9))
    assert [said.tilt_deg for said in beside(tmp_path / "a.npy", 0, 1, loose, settle_s=60).tilts] == ([-1.0] if text else [])


def test_sidecars_that_disagree_are_all_heard(tmp_path: Path) -> None:
    """mdoc and rawtlt beside one stack: both statements stand in the record, and the projection is held."""
    (tmp_path / "a.mrc.mdoc").write_bytes(writers.mdoc("a.mrc", [10.0, 20.0], 0.1))
    (tmp_path / "a.rawtlt").write_text("10\n25\n")
    said = beside(tmp_path / "a.mrc", 1, 2)
    assert [candidate.tilt_deg for candidate in said.tilts] == [20.0, 25.0]
    assert "disagree" in str(resolve(Acquisition(), said.tilts, "a.mrc", 2, Angle())[1])


@pytest.mark.parametrize(("unit", "tilt"), [("deg", -12.35), ("rad", np.degrees(-12.35))])
def test_an_emi_gives_stage_time_and_dwell(tmp_path: Path, unit: str, tilt: float) -> None:
    """In the unit it names."""
    (tmp_path / "x.emi").write_bytes(writers.emi(-12.35, unit=unit))
    said = beside(tmp_path / "x_1.ser", 0, 1)
    assert said.tilts[0].tilt_deg == pytest.approx(tilt)
    assert said.tilts[0].unit == unit
    assert (said.known.acquired_local, said.known.dwell_time_s) == ("2011-10-18T18:18:46", 1.2e-5)


def test_a_stage_that_was_not_read_says_nothing(tmp_path: Path) -> None:
    """0 on all five axes is no tilt of 0 degrees, nor is 0,0; 0 on one axis is."""
    for unread in (writers.emi(0.0, stage=(0, 0, 0)), writers.emi(0.0, stage=(0, 0, 0)).replace(b">0.0", b">0,0")):
        (tmp_path / "x.emi").write_bytes(unread)
        assert beside(tmp_path / "x_1.ser", 0, 1).tilts == ()
        assert "not read" in beside(tmp_path / "x_1.ser", 0, 1).remark
    (tmp_path / "x.emi").write_bytes(writers.emi(0.0))
    assert beside(tmp_path / "x_1.ser", 0, 1).tilts[0].tilt_deg == 0.0


def test_xml_with_entities_says_nothing(tmp_path: Path) -> None:
    """A billion laughs in an emi: no parser sees it, and it costs the image only what it says."""
    bomb = writers.emi(1.0).replace(b"<ObjectInfo>", b"<ObjectInfo><!DOCTYPE a [<!ENTITY x 'y'>]>")
    (tmp_path / "x.emi").write_bytes(bomb)
    said = beside(tmp_path / "x_1.ser", 0, 1)
    assert said.tilts == ()
    assert "entities" in said.remark


# -- HDF5 -------------------------------------------------------------------------------------------------------------------------------


def test_the_instrument_can_always_append(tmp_path: Path, child: ReaderChild) -> None:
    """Between look and read, while a Source is kept: our copy never makes the writer's open fail."""
    growing = containers.StemTomo(tmp_path / "t.emd", repeats=1, size_px=16)
    for index in range(3):
        growing.append(known_image(index, 16)[None], float(index))
        assert child.look(tmp_path / "t.emd").probe.images == index + 1
        source = open_source(tmp_path / "t.emd")
        growing_again = h5py.File(tmp_path / "t.emd", "a")
        growing_again.close()
        assert source.probe.images == index + 1


def test_a_tilt_counts_when_all_its_frames_are_there(tmp_path: Path, child: ReaderChild) -> None:
    """The file announces a third tilt (`nextset`, its angle, a longer dataset) before all its pixels are written: two are taken."""
    growing = containers.StemTomo(tmp_path / "t.emd", repeats=3, size_px=16)
    for index in range(2):
        growing.append(np.stack([known_image(index, 16)] * 3), float(index))
    with h5py.File(tmp_path / "t.emd", "a") as file:
        raw = file["data/raw"]
        raw.attrs["nextset"] = 3
        raw["tiltangles"].resize((3,))
        raw["data"].resize(3, 0)
        raw["data"][2, 0] = known_image(5, 16)
    look = child.look(tmp_path / "t.emd")
    assert (look.probe.images, look.probe.announced) == (2, 3)
    assert "3 images announced, 2 are there" in str(look.waiting)


def test_a_file_that_its_writer_has_open_is_waited_for(tmp_path: Path, child: ReaderChild) -> None:
    """The consistency flag of HDF5's latest format, and bytes that the superblock announces."""
    path = tmp_path / "open.emd"
    with h5py.File(path, "w", libver="latest") as file:
        file["data/x"] = np.zeros(4)
        file.flush()
        with pytest.raises(SourceNotReady):
            child.look(path)


def hostile_hdf5(kind: str, path: Path) -> None:
    whole = writers.velox(known_image(0, 32), 1.0, 0.1)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        name = "Data/Image/" + "0" * 32
        if kind == "external link":
            del file[name]
            file[name] = h5py.ExternalLink("/etc/passwd", "x")
        elif kind == "external storage":
            del file[f"{name}/Data"]
            file.create_dataset(f"{name}/Data", (32, 32, 1), "u1", external=[("/etc/passwd", 0, 1024)])
        elif kind == "virtual":
            del file[f"{name}/Data"]
            layout = h5py.VirtualLayout((32, 32, 1), "u2")
            layout[:, :, :] = h5py.VirtualSource("other.h5", "x", (32, 32, 1))
            file.create_virtual_dataset(f"{name}/Data", layout)
        elif kind == "objects":
            del file[f"{name}/Data"]
            file.create_dataset(f"{name}/Data", data=np.array([[["a"]]], dtype=h5py.string_dtype()))
        elif kind == "huge":
            del file[f"{name}/Data"]
            file.create_dataset(f"{name}/Data", (200_000, 200_000, 1), "u2", chunks=(1000, 1000, 1))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("external link", "is a link"), ("external storage", "another file"), ("virtual", "another file"),
        ("objects", "no plain numbers"), ("huge", "pieces"),
    ],
)  # fmt: skip
def test_hdf5_that_leads_elsewhere_is_refused(tmp_path: Path, child: ReaderChild, kind: str, words: str) -> None:
    """Links, external and virtual data, objects, impossible sizes: one clear error each."""
    path = tmp_path / "x.emd"
    hostile_hdf5(kind, path)
    with pytest.raises((SourceError, SourceNotReady), match=words):
        child.look(path)


def test_a_compustage_does_not_say_its_unit(tmp_path: Path) -> None:
    """STEMTomo writes what the stage says and calls it degrees; the compustage says radians. Held until a person has said which."""
    growing = containers.StemTomo(tmp_path / "t.emd", repeats=1, size_px=16, stage="compustage")
    growing.append(known_image(0, 16)[None], 0.5)
    acquisition = open_source(tmp_path / "t.emd").acquisition(0)
    hold = resolve(acquisition, (), "t.emd", 1, Angle())[1]
    assert hold is not None
    assert "metadata_unit" in hold.remedy
    stated, hold = resolve(acquisition, (), "t.emd", 1, Angle(metadata_unit="rad"))
    assert (stated[0].tilt_deg, hold) == (pytest.approx(np.degrees(0.5)), None)


# -- zeros ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npy", "npy by columns", "mrc", "tiff", "ser", "velox", "emd", "mat"])
def test_a_tail_of_zeros_is_waited_for_and_then_flagged(tmp_path: Path, child: ReaderChild, kind: str) -> None:
    """Whole by its header, not written to the end: not ready; once it has stood for the grace, taken with a flag."""
    image = known_image(1, 48)
    image[-1, -20:] = 0
    if kind == "ser":
        image = image[::-1].copy()
        image[0, -20:] = 0
    if kind in ("mat", "npy by columns"):  # the last column is the end of the file
        image = image.T
    kind = kind.partition(" ")[0]
    path = tmp_path / f"x{writers.SUFFIX[kind]}"
    path.write_bytes(writers.WRITERS[kind](image, 1.0, 0.1))
    with pytest.raises(SourceStillZero, match="zero_grace_s"):
        child.look(path)
    with pytest.raises(SourceStillZero):
        child.read_visit([Member(str(path), 0)])
    assert child.look(path, lenient=True).probe.images == 1
    projection, _ = child.read_visit([Member(str(path), 0)], lenient=True)
    assert projection.drift.flag == "the last 20 pixels are zero"
    assert np.array_equal(projection.pixels, image)


@pytest.mark.parametrize("kind", ["mat", "mat73", "npy"])
def test_what_goes_down_the_columns_ends_with_one(tmp_path: Path, child: ReaderChild, kind: str) -> None:
    """MATLAB's arrays and NumPy's in Fortran order, laid out in full and not written to the end: not one pixel of it is believed."""
    path, stack = tmp_path / f"x.{kind[:3]}", np.asfortranarray(THREE.transpose(1, 2, 0))
    if kind == "mat":
        savemat(path, {"data": stack})
    elif kind == "npy":
        np.save(path, np.asfortranarray(THREE[0]))
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            file["data"] = stack.T
    whole = path.read_bytes()
    last_column = THREE[0 if kind == "npy" else -1, :, -1].tobytes()
    end = whole.rindex(last_column) + len(last_column)
    for zeros in (8, 40, 200, 1000):
        path.write_bytes(whole[: end - zeros] + bytes(zeros) + whole[end:])
        if kind != "npy":
            assert [unit.image for unit in child.look(path).units] == [0, 1]
            continue
        with pytest.raises(SourceStillZero):
            child.look(path)


def test_a_vacuum_that_the_detector_clips_is_not_waited_for(tmp_path: Path, child: ReaderChild) -> None:
    """Most of its pixels are zero, so some frames end in a dozen; a sector that was never written is still noticed."""
    rng = np.random.default_rng(1)
    counts = np.full((96, 96), 0.1)
    counts[24:72, 24:72] = 200
    tails = 0
    for frame in range(40):
        image = rng.poisson(counts).astype("<u2")
        path = tmp_path / f"{frame}.npy"
        path.write_bytes(writers.npy(image, 0.0, 0.1))
        assert child.look(path).probe.images == 1
        tails = max(tails, image.size - 1 - int(np.flatnonzero(image)[-1]))
    assert tails > 20
    image.reshape(-1)[-300:] = 0
    path.write_bytes(writers.npy(image, 0.0, 0.1))
    with pytest.raises(SourceStillZero):
        child.look(path)


def test_zeros_that_something_stands_behind_are_believed(tmp_path: Path, child: ReaderChild) -> None:
    """DigitalMicrograph's tags stand behind the pixels, and a packed TIFF unpacks to its end: nothing to wait for."""
    import tifffile

    blank = np.zeros((32, 32), "<u2")
    (tmp_path / "a.dm4").write_bytes(writers.dm4(blank, 1.0, 0.1))
    tifffile.imwrite(tmp_path / "a.tif", blank, compression="zlib")
    for name in ("a.dm4", "a.tif"):
        assert child.look(tmp_path / name).probe.sealed


# -- settings ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("", lambda a: a),
        ("y", lambda a: a[::-1]),
        ("x", lambda a: a[:, ::-1]),
        ("t", lambda a: a.T),
        ("tyx", lambda a: a.T[::-1, ::-1]),
    ],
)
def test_pixels_are_turned_as_the_site_says(tmp_path: Path, turn: str, expected: object) -> None:
    """orientation.transpose, flip_y, flip_x, in this order."""
    image = known_image(1, 32)[:, :24]
    (tmp_path / "a.npy").write_bytes(writers.npy(image, 0.0, 0.1))
    words = {"t": "transpose", "y": "flip_y", "x": "flip_x"}
    reader = ReaderChild.of(load(None, [f"orientation.{words[letter]}=true" for letter in turn]))
    try:
        found, _ = reader.read(tmp_path / "a.npy", 0)
    finally:
        reader.close()
    assert np.array_equal(found.pixels, expected(image))  # type: ignore[operator]


def test_a_reader_of_another_package_is_used_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point, enabled by name; it runs in the reading child, and its suffix is known to the watch. Unknown names are refused."""
    (tmp_path / "letters.py").write_text(
        "import numpy as np\nfrom aet_stream.projection import Acquisition\nfrom aet_stream.readers import checked_probe, finished\n"
        "SUFFIXES = ('.letters',)\n"
        "class open_source:\n"
        "    def __init__(self, path, size):\n        self.path = path\n"
        "        self.probe = checked_probe(path, 'letters', 1, 2, 4, '|u1')\n"
        "    def frames(self, image):\n"
        "        return finished(self.path, np.frombuffer(self.path.read_bytes()[:8], 'u1').reshape(2, 4))\n"
        "    def acquisition(self, image):\n        return Acquisition(tilt_deg=3.0, tilt_raw='3', reader='letters')\n"
    )
    info = tmp_path / "letters-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[aet_stream.readers]\nletters = letters\n")
    (tmp_path / "x.letters").write_bytes(b"abcdefgh")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for enabled, known in ((("letters",), True), ((), False)):
        reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=1, rules=Rules(max_bytes=0, plugins=enabled))
        try:
            assert (".letters" in reader.suffixes()) == known
            if known:
                assert reader.read(tmp_path / "x.letters", 0)[0].pixels.tobytes() == b"abcdefgh"
            else:
                with pytest.raises(SourceError, match="no reader"):
                    reader.look(tmp_path / "x.letters")
        finally:
            reader.close()
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=1, rules=Rules(max_bytes=0, plugins=("nobody",)))
    try:
        with pytest.raises(ConfigError, match="nobody"):
            reader.suffixes()
    finally:
        reader.close()


def test_the_door_to_rosettasciio_is_shut_unless_asked_for(tmp_path: Path) -> None:
    """Enabled by name; where it is not installed, the file is refused with that reason."""
    (tmp_path / "x.mib").write_bytes(bytes(100))
    reader = ReaderChild(timeout_s=60, memory_mib=4096, max_file_mib=1, rules=Rules(max_bytes=0, plugins=("rsciio",)))
    try:
        assert ".mib" in reader.suffixes()
        with pytest.raises(SourceError):
            reader.look(tmp_path / "x.mib")
    finally:
        reader.close()


def test_a_name_that_lies_is_told_what_the_content_is(tmp_path: Path, child: ReaderChild) -> None:
    """A DM4 called .tif is refused, with a word about what it looks like."""
    (tmp_path / "x.tif").write_bytes(writers.dm4(known_image(0, 16), 0.0, 0.1))
    with pytest.raises(SourceError, match="looks like DM4"):
        child.look(tmp_path / "x.tif")


# -- check ------------------------------------------------------------------------------------------------------------------------------


def test_check_says_what_would_be_done_with_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Format, series, every statement about the tilt, pixel size, time, verdict and reason; the exit code says whether all is well."""
    from aet_stream.cli import main

    folder = tmp_path / "np7"
    folder.mkdir()
    (folder / "a.dm4").write_bytes(writers.dm4(known_image(0), -34.5, 0.05))
    (folder / "b_+10.00deg.mrc").write_bytes(writers.mrc(known_image(1), 0.0, 0.05))
    (folder / "b_+10.00deg.mrc.mdoc").write_bytes(writers.mdoc("b", [25.0], 0.05))
    (folder / "c_+1.00deg.tif").write_bytes(writers.tiff(known_image(2), 0.0, 0.05)[:3000])
    (folder / "d.npy").write_bytes(b"nonsense")
    (folder / "e.emd").write_bytes(writers.velox(known_image(3), 5.0, 0.05, detectors=("HAADF", "BF")))
    assert main(["check", str(folder), "--set", "series.detector=HAADF"]) == 1
    said = capsys.readouterr().out
    for words in (
        "dm, complete: 1 image(s) of 64 x 64 px <u2; series np7", "metadata   -34.500 deg  (Stage Alpha -34.5 deg)", "pixel 0.05 nm",
        "would be stored at -34.500 deg from metadata", "sidecar    +25.000 deg  (b_+10.00deg.mrc.mdoc: TiltAngle = 25.0)",
        "filename   +10.000 deg", "would be held: sources disagree", "not complete: the image needs", "would be waited for",
        "would be quarantined: not a .npy file", "2020-07-29T16:49:34+00:00, HAADF, dwell 12 us",
        "would be recorded, not stored: detector BF; series.detector is HAADF", "in all:",
    ):  # fmt: skip
        assert words in said, f"{words!r} not in\n{said}"
    assert main(["check", str(folder / "a.dm4")]) == 0


def test_check_says_what_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the daemon has it: not quarantined, but never looked at; a folder without images is not passed over in silence."""
    from aet_stream.cli import main

    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "a.mdoc").write_text("")
    assert main(["check", str(tmp_path)]) == 0
    assert "no image in it, nor below; looked at is what ends in .ali, .dm3," in capsys.readouterr().out
    assert main(["check", str(tmp_path / "a.jpg"), str(tmp_path / "a.mdoc")]) == 1
    said = capsys.readouterr().out
    assert "never looked at: looked at is what ends in" in said
    assert "never looked at: a sidecar, read with its image" in said


def test_check_reads_each_header_once(tmp_path: Path) -> None:
    """500 files: one look each, one reading process; `make bench` says how long."""
    from aet_stream.foresight import describe_all
    from aet_stream.readers.looking import Look

    for index in range(500):
        (tmp_path / f"x_{index:03d}_+1.00deg.npy").write_bytes(writers.npy(known_image(index, 16), 0.0, 0.1))

    class Counting(ReaderChild):
        looks = 0

        def look(self, path: Path, loose: tuple[str, ...] = (), *, lenient: bool = False) -> Look:
            self.looks += 1
            return super().look(path, loose, lenient=lenient)

    config = load(None, [])
    reader = Counting(timeout_s=20, memory_mib=4096, max_file_mib=1)
    lines: list[str] = []
    try:
        reader.look(tmp_path / "x_000_+1.00deg.npy")
        pid = reader.pid
        assert describe_all([tmp_path], reader, config, say=lines.append)
        assert (reader.looks, reader.pid) == (501, pid)
    finally:
        reader.close()
    assert lines[-1] == "in all: 500 would be stored"
    assert len(list(tmp_path.iterdir())) == 500


# -- what a file does not know it does not say ------------------------------------------------------------------------------------------


def said(path: Path, content: bytes) -> list[float | None]:
    path.write_bytes(content)
    source = open_source(path)
    return [source.acquisition(image).tilt_deg for image in range(source.probe.images)]


THREE = np.stack([known_image(index, 48) for index in range(3)])


@pytest.mark.parametrize("kind", ["FEI1", "FEI2"])
def test_an_invalid_or_empty_fei_record_says_no_tilt(tmp_path: Path, kind: str) -> None:
    """The mask says that alpha is not known; or the record has not been written yet."""
    from mrcfile.dtypes import get_ext_header_dtype

    content = bytearray(containers.mrc_fei(THREE, [-60.0, 0.5, 70.0], 0.05, kind=kind))
    records = np.frombuffer(content, get_ext_header_dtype(kind.encode(), "<"), 3, 1024)
    records["Bitmask 1"] = (1 << 7, 1 << 8, 0)
    assert said(tmp_path / "x.mrc", bytes(content)) == [-60.0, None, 70.0]
    each = records.dtype.itemsize
    content[1024 + 2 * each : 1024 + 3 * each] = bytes(each)
    assert said(tmp_path / "x.mrc", bytes(content)) == [-60.0, None, None]


def test_what_lies_behind_the_end_of_a_text_is_not_read(tmp_path: Path, child: ReaderChild) -> None:
    """Texts of fixed length end with a NUL and go on with what lay in memory; in whichever format, they are cut there."""
    from mrcfile.dtypes import get_ext_header_dtype

    content = bytearray(containers.mrc_fei(THREE, [-60.0, 0.5, 70.0], 0.05, kind="FEI1"))
    np.frombuffer(content, get_ext_header_dtype(b"FEI1", "<"), 3, 1024)["STEM Detector name"] = b"HAADF\0junk"
    (tmp_path / "x.mrc").write_bytes(content)
    (tmp_path / "x.emd").write_bytes(writers.velox(known_image(0), 5.0, 0.05, detectors=("HAADF\0",)))
    for name in ("x.mrc", "x.emd"):
        assert {unit.acquisition.detector for unit in child.look(tmp_path / name).units} == {"HAADF"}
        assert child.read(tmp_path / name, 0)[0].acquisition.detector == "HAADF"


def test_what_other_programs_reserve_is_no_xplore3d_header(tmp_path: Path) -> None:
    """128 KiB without a type: symmetry text, or whole numbers, are no tilts."""
    content = bytearray(containers.mrc_legacy(THREE, [-60.0, 0.5, 70.0], 0.05))
    content[1024 : 1024 + 131072] = (b"X,  Y,  Z".ljust(80) * 1639)[:131072]
    assert said(tmp_path / "x.mrc", bytes(content)) == [None] * 3
    content[1024 : 1024 + 131072] = np.arange(1, 32769, dtype="<i4").tobytes()
    assert said(tmp_path / "x.mrc", bytes(content)) == [None] * 3


def test_bytes_that_imod_calls_unsigned_are(tmp_path: Path) -> None:
    """Mode 0 with IMOD's stamp and no flag for signed bytes: 0 to 255."""
    pixels = np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)
    content = bytearray(mrc(pixels.view(np.int8), 0.0, 0.1))
    (tmp_path / "signed.mrc").write_bytes(content)
    struct.pack_into("<2i", content, 152, 1146047817, 0)
    (tmp_path / "unsigned.mrc").write_bytes(content)
    found = {name: open_source(tmp_path / f"{name}.mrc").frames(0)[0] for name in ("signed", "unsigned")}
    assert (found["signed"].dtype, found["unsigned"].dtype) == (np.int8, np.uint8)
    assert np.array_equal(found["unsigned"], pixels)


def test_an_mrc_with_its_axes_exchanged_is_refused_not_mirrored(tmp_path: Path) -> None:
    """Maps of crystals are stored so; read as usual the image would be transposed without a word."""
    content = bytearray(mrc(known_image(1), 0.0, 0.1))
    struct.pack_into("<3i", content, 64, 2, 1, 3)
    (tmp_path / "x.mrc").write_bytes(content)
    with pytest.raises(SourceError, match="MAPC"):
        open_source(tmp_path / "x.mrc")
    struct.pack_into("<3i", content, 64, 0, 0, 0)  # never filled in
    (tmp_path / "x.mrc").write_bytes(content)
    assert open_source(tmp_path / "x.mrc").probe.images == 1


def test_a_stack_behind_one_directory_is_refused_not_cut(tmp_path: Path) -> None:
    """ImageJ's way for more than 4 GiB, and tifffile's own: the description tells of three images."""
    with tifffile.TiffWriter(tmp_path / "x_-12.5deg.tif", imagej=True) as file:
        file.write(THREE, contiguous=True, truncate=True, metadata={"images": 3})
    tifffile.imwrite(tmp_path / "y_-12.5deg.tif", THREE, photometric="minisblack", contiguous=True, truncate=True)
    for name in ("x_-12.5deg.tif", "y_-12.5deg.tif"):
        with pytest.raises(SourceError, match="tells of 3 images, but it has one directory"):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("compression", "predictor"), [("lzw", False), ("lzw", True), ("zstd", False), ("lzma", False), ("packbits", False)]
)
def test_a_packed_page_is_read(tmp_path: Path, compression: str, predictor: bool) -> None:
    image = known_image(0, 64)
    tifffile.imwrite(tmp_path / "x.tif", image, compression=compression, predictor=predictor, rowsperstrip=16)
    source = open_source(tmp_path / "x.tif")
    assert source.probe.sealed
    assert np.array_equal(source.frames(0), image[None])


def test_a_packed_page_without_codecs_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "x.tif", known_image(0, 64), compression="lzw")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(SourceError, match=r"packed with lzw: pip install 'aet-stream\[codecs\]'"):
        open_source(tmp_path / "x.tif")


@pytest.mark.parametrize("more", [{"rowsperstrip": 16}, {"tile": (16, 32)}], ids=["strips", "tiles"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_page_with_holes_is_waited_for(tmp_path: Path, compression: str | None, more: dict) -> None:
    """libtiff leaves offset and count 0 in the directory for strips and tiles that have not come: they are no zeros."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, known_image(0, 64), compression=compression, **more)
    assert open_source(path).probe.images == 1
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags[273 if "rowsperstrip" in more else 324], file.pages[0].tags[279 if "rowsperstrip" in more else 325]]
    for tag in tags if compression else tags[:1]:  # how much there will be is known beforehand of uncompressed ones
        with path.open("r+b") as file:
            file.seek(tag.valueoffset + {3: 2, 4: 4}[int(tag.dtype)])
            file.write(bytes({3: 2, 4: 4}[int(tag.dtype)]))
    with pytest.raises(SourceNotReady, match=r"of [48] strips or tiles"):
        open_source(path)


def test_a_compressed_page_with_fewer_strips_than_rows_is_waited_for(tmp_path: Path) -> None:
    """Its directory names two strips where its rows take four."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, known_image(0, 64), compression="zlib", rowsperstrip=32)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[278].valueoffset
    content = bytearray(path.read_bytes())
    content[at] = 16
    path.write_bytes(content)
    with pytest.raises(SourceNotReady, match="2 of 4 strips"):
        open_source(path)


def test_a_page_that_does_not_count_its_bytes_is_read(tmp_path: Path) -> None:
    """Old programs leave out the count of the one strip; what is missing of it is still waited for."""
    tags = [(256, 4, 48), (257, 4, 48), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 98), (277, 3, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    content = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + THREE[0].astype("<u2").tobytes()
    (tmp_path / "x.tif").write_bytes(content)
    assert np.array_equal(open_source(tmp_path / "x.tif").frames(0)[0], THREE[0])
    (tmp_path / "x.tif").write_bytes(content[:-1])
    with pytest.raises(SourceNotReady, match="the image needs 4706 bytes"):
        open_source(tmp_path / "x.tif")


def test_velox_beside_a_live_transform_and_with_half_its_metadata(tmp_path: Path) -> None:
    """A group that is no image of a detector is left out; a frame without metadata of its own is waited for."""
    path = tmp_path / "x.emd"
    path.write_bytes(velox(THREE, -60.0, 0.05, step_deg=3.0))
    with h5py.File(path, "r+") as file:
        transform = file.create_group("Data/Image/fft")
        transform["Data"] = np.zeros((48, 48, 1), np.dtype([("re", "<f4"), ("im", "<f4")]))
        transform["Metadata"] = np.zeros((10, 1), np.uint8)
        name = next(key for key in file["Data/Image"] if key != "fft")
    source = open_source(path)
    assert [round(source.acquisition(image).tilt_deg or 0.0, 6) for image in range(source.probe.images)] == [-60.0, -57.0, -54.0]
    with h5py.File(path, "r+") as file:
        metadata = file[f"Data/Image/{name}/Metadata"][:, :2]
        del file[f"Data/Image/{name}/Metadata"]
        file[f"Data/Image/{name}/Metadata"] = metadata
    with pytest.raises(SourceNotReady, match="frame 2 has none yet"):
        open_source(path)


@pytest.mark.parametrize(
    "strange",
    [{"Scan": None}, {"Scan": "off"}, {"BinaryResult": {"Detector": "HAADF", "PixelSize": None}}, {"BinaryResult": {"PixelSize": "0.05"}}],
)
def test_velox_metadata_of_another_kind_say_nothing(tmp_path: Path, strange: dict[str, object]) -> None:
    """Nothing where a group of values is expected, or one value: the image is taken, with what else is known of it."""
    path = tmp_path / "x.emd"
    path.write_bytes(velox(THREE[0], -60.0, 0.05))
    with h5py.File(path, "r+") as file:
        metadata = next(iter(file["Data/Image"].values()))["Metadata"]
        said = json.loads(metadata[:, 0].tobytes().rstrip(b"\0")) | strange
        metadata[:, 0] = np.frombuffer(json.dumps(said).encode().ljust(len(metadata), b"\0"), np.uint8)
    assert open_source(path).acquisition(0).tilt_deg == pytest.approx(-60)


def test_a_text_that_is_not_utf8_costs_no_reader(tmp_path: Path, child: ReaderChild) -> None:
    """LabVIEW and others write the letters of their own country into HDF5, one byte each."""
    path = tmp_path / "x.emd"
    path.write_bytes(writers.emd(known_image(0), 5.0, 0.05))
    with h5py.File(path, "r+") as file:
        file["microscope"].attrs.create("name", "Mikroskop \u00b5".encode("latin-1"), dtype=h5py.string_dtype())
    assert child.look(path).units[0].acquisition.microscope == "Mikroskop ?"


def test_an_mdoc_for_single_images_names_each(tmp_path: Path) -> None:
    """SerialEM's series of TIFF files: sections `[Image = im000.tif]`."""
    loose = tmp_path / "series.mdoc"
    loose.write_text("PixelSpacing = 1\n\n[Image = im000.tif]\nTiltAngle = -3.5\n\n[Image = im001.tif]\nTiltAngle = 0.5\n\n")
    assert [beside(tmp_path / f"im00{index}.tif", 0, 1, [loose]).tilts[0].tilt_deg for index in range(2)] == [-3.5, 0.5]


def test_a_decimal_comma_between_commas_holds(tmp_path: Path) -> None:
    """`x.tif,-12,5` under two column names: nobody knows which number is meant."""
    (tmp_path / "tilts.csv").write_text("file,tilt\nx.tif,-12,5\ny.tif,3.5\n")
    found = [beside(tmp_path / name, 0, 1, [tmp_path / "tilts.csv"]).tilts[0].tilt_deg for name in ("x.tif", "y.tif")]
    assert math.isnan(found[0])
    assert found[1] == 3.5


def test_a_whole_number_in_a_tag_is_a_number(tmp_path: Path) -> None:
    """Scripts write -34 degrees so, into a DM4 and the TIFF made of it."""
    real, whole = struct.pack(">QQ", 1, 7) + struct.pack("<d", -34), struct.pack(">QQ", 1, 11) + struct.pack("<q", -34)
    (tmp_path / "x.dm4").write_bytes(writers.dm4(THREE[0], -34, 0.05).replace(real, whole))
    (tmp_path / "x.tif").write_bytes(containers.tiff_dm(THREE[0], -34, 0.05).replace(real, whole))
    for name in ("x.dm4", "x.tif"):
        assert open_source(tmp_path / name).acquisition(0).tilt_deg == -34.0


def test_a_logical_mask_in_a_mat_file_is_no_projection(tmp_path: Path) -> None:
    """Of version 5 as of 7.3, where it is stored as bytes."""
    savemat(tmp_path / "five.mat", {"projections": THREE[0], "mask": THREE[0] > 0})
    with h5py.File(tmp_path / "seven.mat", "w", userblock_size=512) as file:
        for name, kind, values in (("mask", "logical", THREE[0] > 0), ("projections", "uint16", THREE[0])):
            file.create_dataset(name, data=values.T.astype("u1" if kind == "logical" else "<u2")).attrs["MATLAB_class"] = np.bytes_(kind)
    for name in ("five.mat", "seven.mat"):
        assert np.array_equal(open_source(tmp_path / name).frames(0)[0], THREE[0])


def test_small_angles_in_a_mat_file_have_no_unit(tmp_path: Path) -> None:
    """A whole series within 1.6 may be radians: held until angle.metadata_unit says so."""
    savemat(tmp_path / "x.mat", {"projections": THREE.transpose(1, 2, 0), "angles": np.array([-1.047, 0.0087, 1.012])})
    assert open_source(tmp_path / "x.mat").acquisition(0).tilt_unit == "?"


def test_big_endian_half_floats_are_read(tmp_path: Path) -> None:
    """Like little-endian ones."""
    np.save(tmp_path / "x.npy", THREE[0].astype(">f2"))
    assert np.array_equal(open_source(tmp_path / "x.npy").frames(0)[0], THREE[0].astype(np.float16))
