"""Which statement of a sidecar is of which image: counted, compared with the pixels, or held; and images that a sidecar calls frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from scipy.io import savemat

from aet_stream.config import Angle
from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.readers.angle import resolve
from aet_stream.readers.child import Member, ReaderChild, Rules
from aet_stream.readers.looking import Look, Sources, look
from aet_stream.readers.sidecar import is_sidecar
from aet_stream.simulate import replay
from aet_stream.simulate.writers import emi, mdoc, mrc, ser
from tests.containers import frame_mdoc
from tests.harness import known_image

TILTS = [-60.0, -36.0, -12.0, 12.0, 36.0, 60.0]
IMAGES = np.stack([known_image(index, 32)[:, :24] + np.uint16(50 * index) for index in range(6)])


@pytest.fixture(scope="module")
def child() -> Iterator[ReaderChild]:
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64, rules=Rules(max_bytes=0, keep="frames"))
    yield reader
    reader.close()


def looked(path: Path, *loose: str) -> Look:
    """The file as a look finds it, with loose sidecars of its folder."""
    return look(Sources(1 << 30), path, tuple(path.parent / name for name in loose), lenient=True)


def verdicts(path: Path, *loose: str) -> list[float | str]:
    """The tilt of each image, or why it is held."""
    found = looked(path, *loose)
    said = [resolve(u.acquisition, u.tilts, path.name, found.probe.promised, Angle(), remark=u.remark) for u in found.units]
    return [str(hold) if hold else stated[0].tilt_deg for stated, hold in said]


def stack(folder: Path, chosen: list[int], name: str = "ts.mrc") -> Path:
    """Some of the six images, at rest for an hour."""
    path = folder / name
    path.write_bytes(mrc(IMAGES[chosen], 0.0, 0.5))
    rest(path)
    return path


def rest(path: Path) -> None:
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)


def sections(path: Path, numbers: list[int], chosen: list[int], *, pixels: bool = False, name: str = "") -> None:
    """An mdoc beside a stack: [ZValue = number] with the tilt, and if asked for the pixels' figures, of some of the six images."""
    said = mdoc(path.name, [TILTS[index] for index in chosen], 0.5, numbers, IMAGES[chosen] if pixels else None)
    sidecar = path.with_name(name or f"{path.name}.mdoc")
    sidecar.write_bytes(said)
    rest(sidecar)


# -- counted ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "numbers", "chosen", "words"),
    [
        ([0, 1, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], r"has 6 section\(s\) for 4 image\(s\)"),
        ([0, 1, 2], [0, 2, 3], [0, 2, 3], "numbers its 3 sections 0, 2, 3"),
        ([0, 1, 2], [1, 2, 3], [0, 1, 2], "numbers its 3 sections 1, 2, 3"),
        ([0, 1, 2, 3], [0, 1], [0, 1], r"has 2 section\(s\) for 4 image\(s\)"),
        ([0, 1, 2, 3], [0, 1, 2], [0, 2, 3], r"has 3 section\(s\) for 4 image\(s\)"),
        ([0, 1, 2], [0, 1, 1, 2], [0, 1, 3, 2], "has section 1 twice, at -36.0 and 12.0 deg"),
        ([0], [0, 1], [0, 1], r"has 2 section\(s\) for 1 image\(s\)"),
        ([0, 1], [], [], r"has 0 section\(s\) for 2 image\(s\)"),
    ],
)
def test_sections_that_are_not_one_for_each_image_hold_all(
    tmp_path: Path, images: list[int], numbers: list[int], chosen: list[int], words: str
) -> None:
    """A cleaned stack and the mdoc of before: no image gets the tilt of another."""
    path = stack(tmp_path, images)
    sections(path, numbers, chosen)
    found = verdicts(path)
    assert len(found) == len(images)
    for held in found:
        assert isinstance(held, str)
        assert words.replace("\\", "") in held


@pytest.mark.parametrize(("numbers", "chosen"), [([0, 1, 2], [4, 0, 2]), ([2, 0, 1], [2, 4, 0]), ([0, 1, 1, 2], [4, 0, 0, 2])])
def test_one_section_for_each_image_is_believed(tmp_path: Path, numbers: list[int], chosen: list[int]) -> None:
    """Whatever the order of tilts and sections, and if one is written twice with the same tilt."""
    path = stack(tmp_path, [4, 0, 2])
    sections(path, numbers, chosen)
    assert verdicts(path) == [36.0, -60.0, -12.0]


def test_the_only_section_is_of_the_only_image(tmp_path: Path) -> None:
    """One image taken out of a stack, with its section as it was."""
    path = stack(tmp_path, [3])
    sections(path, [3], [3])
    assert verdicts(path) == [12.0]


def test_a_section_of_a_growing_stack_is_awaited_and_then_missed(tmp_path: Path) -> None:
    """SerialEM writes the image before its section: for a while the stack is not looked at; a page of TIFF is never awaited."""
    path = stack(tmp_path, [0, 1, 2, 3])
    sections(path, [0, 1, 2], [0, 1, 2])
    assert "has 3 section(s) for 4" in str(verdicts(path)[0])
    os.utime(path)
    with pytest.raises(SourceNotReady, match=r"ts.mrc.mdoc has 3 section\(s\) for 4 image\(s\) so far"):
        look(Sources(1 << 30), path, (), lenient=True)
    pages = tmp_path / "ts.tif"
    tifffile.imwrite(pages, IMAGES[:4], photometric="minisblack")
    sections(pages, [0, 1, 2], [0, 1, 2])
    assert "has 3 section(s) for 4" in str(verdicts(pages)[0])


def test_a_section_without_a_tilt_does_not_cost_the_image(tmp_path: Path) -> None:
    """A map of SerialEM: its mdoc has none. It is held for want of one, not put aside as never complete."""
    path = stack(tmp_path, [0])
    sidecar = tmp_path / "ts.mrc.mdoc"
    sidecar.write_text("[ZValue = 0]\nMagnification = 100\n\n")
    with pytest.raises(SourceNotReady, match="no TiltAngle yet"):
        look(Sources(1 << 30), path, (), lenient=True) if not os.utime(path) else None
    for file in (path, sidecar):
        os.utime(file, (1e9, 1e9))
    assert "the section of image 0 has no TiltAngle" in str(verdicts(path)[0])


# -- compared with the pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "numbers", "chosen"),
    [
        ([0, 1, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([0, 2, 3], [0, 2, 3], [0, 2, 3]),
        ([0, 1, 2], [0, 1, 1, 2], [0, 5, 1, 2]),
        ([5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([3, 4, 5], [0, 1, 2], [3, 4, 5]),
    ],
    ids=["more sections", "gap", "twice", "sorted by tilt", "as it should be"],
)
def test_the_pixels_tell_which_section_is_theirs(tmp_path: Path, images: list[int], numbers: list[int], chosen: list[int]) -> None:
    """MinMaxMean is no number that a cleaning renumbers: each image has the tilt of the section with its figures."""
    path = stack(tmp_path, images)
    sections(path, numbers, chosen, pixels=True)
    assert verdicts(path) == [TILTS[index] for index in images]


def test_an_image_that_no_section_knows_is_held_alone(tmp_path: Path) -> None:
    """Its neighbours are settled by their pixels."""
    path = stack(tmp_path, [0, 3, 2, 5])
    sections(path, [0, 1, 2, 3, 4], [0, 1, 2, 4, 5], pixels=True)
    found = verdicts(path)
    assert [found[index] for index in (0, 2, 3)] == [-60.0, -12.0, 60.0]
    assert "no section with the pixels of image(s) 1" in str(found[1])


def test_figures_that_fit_two_sections_settle_nothing(tmp_path: Path) -> None:
    """Two images with the same pixels."""
    path = tmp_path / "ts.mrc"
    path.write_bytes(mrc(IMAGES[[0, 1, 1]], 0.0, 0.5))
    sections(path, [0, 1, 2, 3], [0, 1, 1, 5], pixels=True)
    text = (tmp_path / "ts.mrc.mdoc").read_text()
    (tmp_path / "ts.mrc.mdoc").write_text(text.replace("[ZValue = 2]\nTiltAngle = -36.0", "[ZValue = 2]\nTiltAngle = 1.5"))
    assert ["has 4 section(s) for 3" in str(held) for held in verdicts(path)] == [True] * 3


def test_two_images_have_no_section_in_common(tmp_path: Path) -> None:
    """An image that is in the stack twice, and one section for both."""
    path = stack(tmp_path, [0, 1, 1])
    sections(path, [0, 2], [0, 1], pixels=True)
    assert ["has 2 section(s) for 3" in str(held) for held in verdicts(path)] == [True] * 3


def test_figures_of_other_pixels_say_nothing(tmp_path: Path) -> None:
    """Normalised since, or binned: one section for each image is believed as without them."""
    path = stack(tmp_path, [0, 1, 2])
    sections(path, [0, 1, 2], [0, 1, 2], pixels=True)
    path.write_bytes(mrc(IMAGES[:3] // 2, 0.0, 0.5))
    assert verdicts(path) == TILTS[:3]


def test_pixels_of_another_section_contradict_the_numbers(tmp_path: Path) -> None:
    """Two images changed places, one of the others was changed: what is not settled is held."""
    path = tmp_path / "ts.mrc"
    path.write_bytes(mrc(np.concatenate([IMAGES[[1, 0]], IMAGES[[2]] // 2]), 0.0, 0.5))
    sections(path, [0, 1, 2], [0, 1, 2], pixels=True)
    found = verdicts(path)
    assert found[:2] == [-36.0, -60.0]
    assert "no section with the pixels of image(s) 2" in str(found[2])


def test_an_image_that_is_no_number_holds_no_sibling(tmp_path: Path) -> None:
    """Its own reading refuses it; the figures of the others are compared."""
    path = tmp_path / "ts.mrc"
    broken = IMAGES[[0, 2, 3]].astype("<f4")
    broken[1, 0, 0] = np.nan
    path.write_bytes(mrc(broken, 0.0, 0.5))
    sections(path, [0, 2, 3], [0, 2, 3], pixels=True)
    found = verdicts(path)
    assert [found[0], found[2]] == [-60.0, 12.0]


# -- frames -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.mrc", "t.tif"])
@pytest.mark.parametrize("kind", ["FrameSet", "ZValue", "loose"])
def test_images_that_a_sidecar_calls_frames_are_one_visit(tmp_path: Path, child: ReaderChild, name: str, kind: str) -> None:
    """The frames of one exposure in one file: one image at one tilt, registered and averaged, its frames kept where that is asked for."""
    path, frames = tmp_path / name, np.stack([IMAGES[0]] * 4)
    path.write_bytes(mrc(frames, 0.0, 0.5)) if name.endswith("mrc") else tifffile.imwrite(path, frames, photometric="minisblack")
    sidecar = tmp_path / ("session.mdoc" if kind == "loose" else f"{name}.mdoc")
    sidecar.write_bytes(frame_mdoc(name, -12.01, 4, 0.5, kind="ZValue" if kind == "ZValue" else "FrameSet"))
    loose = (str(sidecar),) if kind == "loose" else ()
    found = child.look(path, loose)
    assert (found.probe.images, found.probe.frames, len(found.units)) == (1, 4, 1)
    assert found.units[0].tilts[0].tilt_deg == -12.01
    projection, reading = child.read_visit([Member(str(path), 0, loose)])
    assert reading.units[0].stamp == found.units[0].stamp
    assert (reading.drift.frames, reading.extras) == (4, "frames")
    assert np.array_equal(projection.pixels, IMAGES[0].astype(np.float32))
    assert np.array_equal(projection.extras, frames)


def test_a_frame_set_of_another_count_holds_every_image(tmp_path: Path) -> None:
    """Six images and eight frames: something is missing, or it is not of this file."""
    path = stack(tmp_path, [0, 1, 2])
    (tmp_path / "ts.mrc.mdoc").write_bytes(frame_mdoc("ts.mrc", -12.01, 8, 0.5))
    assert ["NumSubFrames = 8, but the file has 3 images" in str(held) for held in verdicts(path)] == [True] * 3


def test_frames_of_several_exposures_are_not_averaged(tmp_path: Path) -> None:
    """SerialEM's continuous tilt series: one file of frames, and which of them are of which tilt."""
    path = stack(tmp_path, [0, 1, 2, 3])
    text = frame_mdoc("ts.mrc", 0.0, 4, 0.5).decode()
    text += "".join(f"[ZValue = {z}]\nTiltAngle = {3 * z}\nFrameTSStartEndFrames = {2 * z} {2 * z + 1}\n\n" for z in range(2))
    (tmp_path / "ts.mrc.mdoc").write_text(text)
    assert ["its frames are of 2 exposures" in str(held) for held in verdicts(path)] == [True] * 4


def test_frames_whose_own_header_says_other_tilts_are_held(tmp_path: Path) -> None:
    """The file itself knows better than what lies beside it."""
    from tests.containers import mrc_fei

    path = tmp_path / "t.mrc"
    path.write_bytes(mrc_fei(IMAGES[:3], [0.0, 3.0, 6.0], 0.5))
    (tmp_path / "t.mrc.mdoc").write_bytes(frame_mdoc("t.mrc", 0.0, 3, 0.5))
    (held,) = verdicts(path)
    assert "tilts from 0 to 6 deg of what a sidecar calls frames of one" in str(held)


def test_one_section_for_a_file_of_many_images_says_of_none_which(tmp_path: Path) -> None:
    """An idoc names single images; this one is none."""
    path = stack(tmp_path, [0, 1], "im.mrc")
    (tmp_path / "s.idoc").write_text("[Image = im.mrc]\nTiltAngle = 3\n\n")
    assert ["s.idoc names the file as one image, but it has 2" in str(held) for held in verdicts(path, "s.idoc")] == [True] * 2
    single = stack(tmp_path, [0], "one.mrc")
    (tmp_path / "s.idoc").write_text("[Image = one.mrc]\nTiltAngle = 3\n\n")
    assert verdicts(single, "s.idoc") == [3.0]


def test_a_file_that_is_named_twice_with_different_tilts_is_held(tmp_path: Path) -> None:
    """Sections of two sessions, and files of one name."""
    path = stack(tmp_path, [0], "a.mrc")
    (tmp_path / "s.mdoc").write_text("".join(f"[ZValue = {z}]\nTiltAngle = {30 * z}\nSubFramePath = D:\\s{z}\\A.mrc\n\n" for z in range(2)))
    assert "disagree" in str(verdicts(path, "s.mdoc")[0])


# -- nearly understood ------------------------------------------------------------------------------------------------------------------


def test_an_mdoc_that_names_the_stack_inside_is_read(tmp_path: Path) -> None:
    """`ImageFile =`, whatever the mdoc is called; one that names another stack is not."""
    path = stack(tmp_path, [0, 1, 2], "ts_01.mrc")
    sections(path, [0, 1, 2], [0, 1, 2], name="session.mdoc")
    assert verdicts(path, "session.mdoc") == TILTS[:3]
    other = stack(tmp_path, [0, 1, 2], "ts_02.mrc")
    assert "no tilt" in str(verdicts(other, "session.mdoc")[0])


@pytest.mark.parametrize("suffix", [".rawtlt", ".tlt"])
def test_angles_one_a_line_are_of_the_file_with_their_name(tmp_path: Path, suffix: str) -> None:
    """Of another file they are named in the reason, with what would take them; another count says nothing."""
    path = stack(tmp_path, [0, 1, 2])
    (tmp_path / f"ts{suffix}").write_text(" -60.00\n -36.0\n -12\n")
    assert verdicts(path) == TILTS[:3]
    other = stack(tmp_path, [0, 1, 2], "other.mrc")
    assert f"ts{suffix} has 3 angles: if they are of this file, call it other{suffix}" in str(verdicts(other, f"ts{suffix}")[0])
    single = stack(tmp_path, [0], "single.mrc")
    assert f"ts{suffix} has 3 angles, and does not say of which files" in str(verdicts(single, f"ts{suffix}")[0])
    (tmp_path / f"ts{suffix}").write_text("-60\n-36\n-12\n12\n")
    assert "has 4 angles for 3 image(s)" in str(verdicts(path)[0])


@pytest.mark.parametrize("name", ["angles.txt", "np1_tilt_angles.dat", "Tilts.txt"])
def test_a_text_that_is_called_angles_is_named_where_it_would_fit(tmp_path: Path, name: str) -> None:
    """It may be of any file, and is never believed; of another count, or no numbers, it is not spoken of."""
    path = stack(tmp_path, [0, 1, 2])
    assert is_sidecar(f"np/{name}")
    for text, words in (
        ("-60\n-36.0\n-12\n", "has 3 lines of numbers: if they are of this file, call it ts.rawtlt"),
        ("0 -60 0\n0 -36 0\n0 -12 0\n", "write the tilts alone into ts.rawtlt, one a line"),
    ):
        (tmp_path / name).write_text(text)
        rest(tmp_path / name)
        assert words in str(verdicts(path, name)[0])
    for text in ("-60\n-36\n", "taken at\nroom\ntemperature\n"):
        (tmp_path / name).write_text(text)
        rest(tmp_path / name)
        assert name not in str(verdicts(path, name)[0])
    assert not is_sidecar("np/tangles.txt")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("image,tilt\n0,-60\n1,-36\n2,-12\n", TILTS[:3]),
        ("image,tilt\n1,-60\n2,-36\n3,-12\n", TILTS[:3]),
        ("image,tilt\n2,-12\n0,-60\n1,-36\n", TILTS[:3]),
        ("image,tilt\n0,-60\n2,12\n3,36\n", "speaks of image 3, but the file has 3 image(s)"),
        ("image,tilt\n0,-60\n1,-36\n2,-12\n3,12\n", "speaks of image 3"),
        ("image,tilt\n1,-60\n2,-36\n2,5\n3,-12\n", "speaks of image 3"),
        ("z,tilt\n0.5,-60\n0.4,-36\n0.6,-12\n", TILTS[:3]),
        ("tilt\n-60\n-36\n", "has 2 rows for 3 image(s)"),
    ],
)
def test_a_table_of_a_stack_counts_as_its_images_do(tmp_path: Path, table: str, expected: list[float] | str) -> None:
    """Numbers from 0, or all of them from 1; numbers of images that are not there are of another state of the stack."""
    path = stack(tmp_path, [0, 1, 2])
    (tmp_path / "ts.csv").write_text(table)
    found = verdicts(path)
    assert found == expected if isinstance(expected, list) else all(expected in str(held) for held in found)


def test_a_table_that_names_the_file_says_what_it_lacks(tmp_path: Path) -> None:
    """Which image of the stack, or which column holds the tilt."""
    path = stack(tmp_path, [0, 1, 2])
    (tmp_path / "all.csv").write_text("file,tilt\nts.mrc,-60\nts.mrc,-36\nts.mrc,-12\n")
    assert "names the file in 3 row(s), but not which of its 3 images" in str(verdicts(path, "all.csv")[0])
    (tmp_path / "all.csv").write_text("file,dose\nts.mrc,1\n")
    assert "has columns file, dose, and none named tilt, angle or alpha" in str(verdicts(path, "all.csv")[0])


def test_theta_in_a_table_is_a_tilt_only_without_phi_and_psi(tmp_path: Path) -> None:
    """Euler angles as a table."""
    path = stack(tmp_path, [0, 1])
    (tmp_path / "ts.csv").write_text("phi,theta,psi\n0,-60,0.0\n0,-36,0\n")
    assert verdicts(path) == TILTS[:2]
    (tmp_path / "ts.csv").write_text("phi,theta,psi\n0,-60,0\n12,-36,30\n")
    found = verdicts(path)
    assert found[0] == -60.0
    assert "Euler angles (phi 12, theta -36, psi 30)" in str(found[1])


def test_a_description_of_several_objects_is_not_of_any_other(tmp_path: Path) -> None:
    """TIA's `.emi` of two objects says nothing of a third `.ser`, nor of one without a number."""
    (tmp_path / "x.emi").write_bytes(emi(-12.0) + emi(30.0))
    for name, expected in (("x_1.ser", -12.0), ("x_2.ser", 30.0), ("x_3.ser", "describes 2 objects"), ("x.ser", "describes 2 objects")):
        (tmp_path / name).write_bytes(ser(IMAGES[0], 0.0, 0.5))
        (found,) = verdicts(tmp_path / name)
        assert found == expected or str(expected) in str(found), name


# -- angles in MATLAB's files -----------------------------------------------------------------------------------------------------------


def projections(path: Path, **more: object) -> Path:
    savemat(path, {"projections": np.moveaxis(IMAGES, 0, 2).astype("<f8"), **more})
    return path


def euler(phi: float, psi: float) -> np.ndarray:
    return np.c_[np.full(6, phi), TILTS, np.full(6, psi)]


@pytest.mark.parametrize(("image", "angle"), [("projections", "angles"), ("Projections_Pt", "Angles_Pt"), ("proj.1", "angles.1")])
@pytest.mark.parametrize("seven", [False, True])
def test_the_two_files_of_genfire_are_one_series(tmp_path: Path, image: str, angle: str, seven: bool) -> None:
    """N x 3 Euler angles beside the projections, of either version of MATLAB."""
    path = projections(tmp_path / f"{image}.mat")
    if seven:
        with h5py.File(tmp_path / f"{angle}.mat", "w", userblock_size=512) as file:
            file["angles"] = euler(0, 0).T
    else:
        savemat(tmp_path / f"{angle}.mat", {"Angle": euler(0, 0)})
    assert verdicts(path) == TILTS


@pytest.mark.parametrize("name", ["tilt_angles", "angles", "Angle", "ang", "theta", "tilts", "refined_angles", "projection_angles"])
@pytest.mark.parametrize("turned", [False, True])
def test_angles_are_known_by_their_variable(tmp_path: Path, name: str, turned: bool) -> None:
    """As programs call them; a row or a column, of any numeric type."""
    path = projections(tmp_path / "a.mat", **{name: np.array([TILTS], "<i8" if turned else "<f8").T if turned else np.array([TILTS])})
    assert verdicts(path) == TILTS


@pytest.mark.parametrize("beside", [False, True])
def test_euler_angles_that_are_no_tilt_hold(tmp_path: Path, beside: bool) -> None:
    """Phi and psi are not dropped: what was seen stands in the reason. Who means theta alone writes it down."""
    path = projections(tmp_path / "projections.mat", **({} if beside else {"angles": euler(12, 30)}))
    if beside:
        savemat(tmp_path / "angles.mat", {"angles": euler(12, 30)})
    assert ["phi 12, theta -60, psi 30 of image 0" in str(held) for held in verdicts(path)] == [True] * 6
    (tmp_path / "projections.rawtlt").write_text("\n".join(map(str, TILTS)) + "\n")
    assert verdicts(path) == TILTS


def test_a_replay_drops_no_euler_angle(tmp_path: Path) -> None:
    """Nor does what is given with --angles."""
    np.save(tmp_path / "a.npy", euler(0, 0.8))
    with pytest.raises(SourceError, match=r"phi 0, theta -60, psi 0.8"):
        replay.load_angles(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", euler(0, 0))
    assert replay.load_angles(tmp_path / "a.npy").tolist() == TILTS


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"angles": TILTS[:5]}, "angles holds 1 x 5 number(s) for 6 image(s)"),
        ({"angles": np.reshape(TILTS, (2, 3))}, "angles holds 2 x 3 number(s) for 6 image(s)"),
        ({"alfa": TILTS}, "if alfa holds its tilts, call it angles"),
        ({"angles": TILTS, "refined_angles": [tilt + 1 for tilt in TILTS]}, "differ by up to 1 deg"),
        ({"angles": np.radians(TILTS)}, "not whether in degrees or radians"),
    ],
)
def test_angles_that_are_nearly_understood_are_named(tmp_path: Path, more: dict[str, object], words: str) -> None:
    """With what would make them understood."""
    assert [words in str(held) for held in verdicts(projections(tmp_path / "a.mat", **more))] == [True] * 6


def test_angles_of_a_name_that_says_the_unit(tmp_path: Path) -> None:
    """Radians by their variable's name."""
    assert verdicts(projections(tmp_path / "a.mat", angles_rad=np.radians(TILTS))) == pytest.approx(TILTS)
    assert verdicts(projections(tmp_path / "b.mat", angles_deg=np.array(TILTS) / 100)) == pytest.approx([tilt / 100 for tilt in TILTS])


def test_a_file_of_angles_beside_others_is_named(tmp_path: Path) -> None:
    """It is theirs if the two have names that belong together; a damaged one costs the tilts, not the images."""
    path = projections(tmp_path / "np1.mat")
    savemat(tmp_path / "angles.mat", {"angles": euler(0, 0)})
    said = "angles.mat has 6 angles: if they are of this file, call the two projections.mat and angles.mat"
    assert [said in str(held) for held in verdicts(path, "angles.mat")] == [True] * 6
    with pytest.raises(SourceError, match="holds angles and no projections"):
        looked(tmp_path / "angles.mat")
    path.rename(tmp_path / "projections.mat")
    (tmp_path / "angles.mat").write_bytes((tmp_path / "angles.mat").read_bytes()[:60].ljust(300, b"x"))
    assert ["angles.mat" in str(held) for held in verdicts(tmp_path / "projections.mat")] == [True] * 6


def test_a_file_that_may_hold_projections_is_no_sidecar(tmp_path: Path) -> None:
    """Its name begins with angles, and speaks of more."""
    path = projections(tmp_path / "angles_and_projections.mat", angles=TILTS)
    assert verdicts(path) == TILTS
    assert [is_sidecar(name) for name in (path.name, "angles.mat", "s/Angles_Pt.MAT", "tilt_angles.mat", "np1_angles.mat")] == [
        False, True, True, True, False,
    ]  # fmt: skip


def test_counts_of_64_bits_are_read(tmp_path: Path, child: ReaderChild) -> None:
    """MATLAB's and NumPy's own integers: as 32 bits, which hold every count; what they do not hold is refused, not wrapped."""
    for name, values in (("a.npy", IMAGES[0].astype("<i8")), ("b.npy", IMAGES[0].astype(">u8")), ("c.mat", IMAGES[0].astype("<i8"))):
        savemat(tmp_path / name, {"p": values}) if name.endswith("mat") else np.save(tmp_path / name, values)
        pixels = child.read(tmp_path / name, 0)[0].pixels
        assert np.array_equal(pixels, IMAGES[0])
        assert pixels.dtype.str == child.probe(tmp_path / name).dtype
    np.save(tmp_path / "a.npy", IMAGES[0].astype("<i8") << 40)
    with pytest.raises(SourceError, match="more than 32 bits hold"):
        child.read(tmp_path / "a.npy", 0)
