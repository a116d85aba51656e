"""Files as programs of this community hand them to each other: tomviz, tomopy, Nion Swift. Whole ones are read, others refused aloud."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.config import Angle
from aet_stream.config_file import load
from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.readers import open_source
from aet_stream.readers.angle import resolve
from aet_stream.readers.child import ReaderChild
from aet_stream.readers.looking import Look, Sources, look
from tests import exchanged
from tests.harness import known_image

TILTS = [-60.0, -3.25, 70.5]
ONE = known_image(1, 48)[:, :40]
THREE = np.stack([known_image(index, 48)[:, :40] for index in range(3)])


@pytest.fixture(scope="module")
def child() -> Iterator[ReaderChild]:
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64)
    yield reader
    reader.close()


def looked(path: Path) -> Look:
    return look(Sources(1 << 30), path, (), lenient=False)


def pixels(path: Path) -> np.ndarray:
    source = open_source(path)
    return np.concatenate([source.frames(image) for image in range(source.probe.images)])


def tilts(path: Path, rules: Angle | None = None) -> list[float | str]:
    """The tilt of each image, or why it is held."""
    found = looked(path)
    said = [resolve(u.acquisition, u.tilts, path.name, found.probe.promised, rules or Angle(), remark=u.remark) for u in found.units]
    return [hold.with_remedy() if hold else stated[0].tilt_deg for stated, hold in said]


# -- EMD --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("unit", ["[deg]", "[rad]", "degrees", "radians"])
def test_a_tilt_series_of_tomviz_is_read(tmp_path: Path, axis: int, unit: str) -> None:
    """With the soft link that it writes beside its data; the axis in an angle counts the tilts, wherever it is."""
    path = tmp_path / "a.emd"
    path.write_bytes(exchanged.tomviz(THREE, TILTS, 0.05, axis=axis, unit=unit))
    assert np.array_equal(pixels(path), THREE)
    assert tilts(path) == pytest.approx(TILTS, abs=1e-5)
    assert looked(path).units[2].acquisition.pixel_size_nm == pytest.approx(0.05)


def changed(path: Path, **axes: tuple[object, str, str]) -> Path:
    """A file of tomviz with other axes: (values, unit, name); None takes one away."""
    path.write_bytes(exchanged.tomviz(THREE, TILTS, 0.05))
    with h5py.File(path, "r+") as file:
        group = file["data/tomography"]
        for key, (values, unit, name) in axes.items():
            if key in group:
                del group[key]
            if values is not None:
                dim = group.create_dataset(key, data=values)
                dim.attrs["units"], dim.attrs["name"] = unit, name
    return path


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"dim1": (TILTS, "", "angles")}, "not whether in degrees or radians; set angle.metadata_unit"),
        ({"dim1": ([0.0, 1.0, 2.0], "mA", "current")}, "dim1 counts mA, no angle"),
        ({"dim1": (TILTS[:2], "deg", "angles")}, "dim1 holds 2 angles for 3 images"),
        ({"dim1": ([0.0, 1.0, 2.0], "[deg]", ""), "dim3": (np.arange(40.0), "[deg]", "")}, ""),
    ],
)
def test_an_axis_that_is_nearly_a_tilt_is_named(tmp_path: Path, axes: dict[str, tuple[object, str, str]], words: str) -> None:
    """Held with what was seen; two axes in angles name the first."""
    found = tilts(changed(tmp_path / "a.emd", **axes))
    assert [words in str(held) for held in found] == [True] * 3 if words else found == [0.0, 1.0, 2.0]


def test_a_volume_is_no_series(tmp_path: Path) -> None:
    """tomviz writes a reconstruction, and a series without its tilts, with three lengths, in another order: a slice is no image."""
    path = changed(tmp_path / "a.emd", dim1=([0.0, 0.05, 0.1], "[n_m]", "x"))
    with pytest.raises(SourceError, match="a volume: its axes are in n_m, n_m, n_m"):
        looked(path)


def test_the_only_axis_that_is_no_length_counts_images(tmp_path: Path) -> None:
    """The last one, without a word about what it counts: held for want of tilts, with the right pixels."""
    path = tmp_path / "a.emd"
    path.write_bytes(exchanged.tomviz(THREE, TILTS, 0.05, axis=2))
    with h5py.File(path, "r+") as file:
        del file["data/tomography/dim3"]
    assert np.array_equal(pixels(path), THREE)
    assert ["no tilt angle" in str(held) for held in tilts(path)] == [True] * 3


def test_axes_that_cannot_be_read_are_no_guess(tmp_path: Path) -> None:
    """Of a file whose axes are links, nobody knows which counts the images; a file without any has the images first."""
    path = tmp_path / "a.emd"
    path.write_bytes(exchanged.tomviz(THREE, TILTS, 0.05))
    with h5py.File(path, "r+") as file:
        for index in (1, 2, 3):
            del file[f"data/tomography/dim{index}"]
    assert np.array_equal(pixels(path), THREE)
    with h5py.File(path, "r+") as file:
        file["data/tomography/dim1"] = h5py.SoftLink("/nowhere")
    with pytest.raises(SourceError, match="its axes cannot be read"):
        looked(path)


def test_a_diffraction_pattern_is_no_projection_though_its_axes_are_angles(tmp_path: Path) -> None:
    """Tilts in radians are; an image in radians is not."""
    path = changed(tmp_path / "a.emd", dim2=(np.arange(48.0), "mrad", "y"), dim3=(np.arange(40.0), "mrad", "x"))
    with pytest.raises(SourceError, match="a diffraction pattern: an axis of its image is in mrad"):
        looked(path)


def test_axes_that_are_counted_from_zero(tmp_path: Path) -> None:
    """EMD 1.0: dim0 is the slowest, and an even one is kept as two values."""
    path = changed(
        tmp_path / "a.emd",
        dim0=([-60.0, -58.0], "deg", "tilt"), dim1=([0.0, 0.05], "nm", "y"), dim2=([0.0, 0.05], "nm", "x"), dim3=(None, "", ""),
    )  # fmt: skip
    assert tilts(path) == [-60.0, -58.0, -56.0]
    assert looked(path).units[0].acquisition.pixel_size_nm == pytest.approx(0.05)


# -- Data Exchange ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["theta:y:x", "y:theta:x", "y:x:theta"])
@pytest.mark.parametrize("unit", ["degrees", "rad", "deg."])
def test_a_data_exchange_file_is_read(tmp_path: Path, axes: str, unit: str) -> None:
    """Its projections and theta, in the order that it names; sinograms too."""
    path = tmp_path / "a.h5"
    path.write_bytes(exchanged.data_exchange(THREE, TILTS, axes=axes, unit=unit))
    assert np.array_equal(pixels(path), THREE)
    assert tilts(path) == pytest.approx(TILTS)


def test_a_real_data_exchange_file_is_read(test_data: Path, child: ReaderChild) -> None:
    """tomopy's tooth: 181 images, and the angle of each."""
    path = test_data / "data-exchange" / "tooth.h5"
    said = child.look(path)
    with h5py.File(path) as file:
        assert [unit.acquisition.tilt_deg for unit in said.units] == pytest.approx(file["exchange/theta"][()])
        assert np.array_equal(child.read(path, 90)[0].pixels, file["exchange/data"][90])


@pytest.mark.parametrize(
    ("theta", "unit", "words"),
    [
        (TILTS[:2], "degrees", "/exchange/theta holds 2 number(s) for 3 image(s)"),
        (np.radians(TILTS), "", "not whether in degrees or radians"),
        (None, "", "no tilt angle"),
        (np.array([b"a", b"b"]), "", "theta cannot be understood"),
    ],
)
def test_a_theta_that_is_none_holds(tmp_path: Path, theta: object, unit: str, words: str) -> None:
    """With what was seen; the pixels are read."""
    path = tmp_path / "a.h5"
    path.write_bytes(exchanged.data_exchange(THREE, TILTS))
    with h5py.File(path, "r+") as file:
        del file["exchange/theta"]
        if theta is not None:
            file.create_dataset("exchange/theta", data=theta).attrs["units"] = unit
    assert [words in str(held) for held in tilts(path)] == [True] * 3
    assert np.array_equal(pixels(path), THREE)


def test_a_series_of_ours_is_no_input(tmp_path: Path) -> None:
    """It is a Data Exchange file of clean pixels: their background would be subtracted again."""
    path = tmp_path / "series.h5"
    path.write_bytes(exchanged.data_exchange(THREE, TILTS))
    with h5py.File(path, "r+") as file:
        file["aet/raw"] = THREE
    with pytest.raises(SourceError, match="a series that aet-stream wrote"):
        looked(path)


def test_an_unknown_layout_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    """Nothing is guessed of an HDF5 file: its datasets are named, and what would be read."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["entry/scan"], file["note"], file["loop"] = THREE, "x", h5py.SoftLink("/entry")
    with pytest.raises(SourceError, match=r"unknown layout; known are Data Exchange.*It holds /entry/scan \(3 x 48 x 40 uint16\), /note"):
        looked(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(SourceError, match="It holds no data"):
        looked(path)


def test_an_emd_of_another_name_is_read(tmp_path: Path) -> None:
    """tomviz and others save EMDs as `.h5`, too."""
    path = tmp_path / "a.hdf5"
    path.write_bytes(exchanged.tomviz(THREE, TILTS, 0.05))
    assert tilts(path) == TILTS


# -- Nion Swift -------------------------------------------------------------------------------------------------------------------------

SWIFT = {".ndata": exchanged.ndata, ".h5": exchanged.swift_h5, ".nhdf": lambda *a, **k: exchanged.swift_h5(*a, name="data/0", **k)}


@pytest.mark.parametrize("suffix", sorted(SWIFT))
@pytest.mark.parametrize("dtype", ["<u2", "<f4", "<f8", ">i4", "<i8"])
def test_an_image_of_nion_swift_is_read(tmp_path: Path, child: ReaderChild, suffix: str, dtype: str) -> None:
    """Its pixels, size, time, detector; its tilt from the file's name."""
    path = tmp_path / f"a_-34.5deg{suffix}"
    path.write_bytes(SWIFT[suffix](ONE.astype(dtype), 0.05))
    assert np.array_equal(child.read(path, 0)[0].pixels, ONE)
    said = looked(path).units[0].acquisition
    assert (said.pixel_size_nm, said.detector, said.dwell_time_s) == (0.05, "HAADF", pytest.approx(1.2e-5))
    assert said.acquired_utc == "2026-11-29T13:42:24.757855+00:00"
    assert tilts(path) == [-34.5]


@pytest.mark.parametrize("suffix", [".ndata", ".h5"])
def test_the_stage_of_a_nion_counts_in_a_unit_that_nobody_wrote_down(tmp_path: Path, suffix: str) -> None:
    """Held until the setting says which; never taken for degrees."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(SWIFT[suffix](ONE, 0.05, **exchanged.stage_of_swift(-0.6)))
    assert "instrument.ImageScanned.StageOutA -0.6', but not whether in degrees or radians" in str(tilts(path)[0])
    assert tilts(path, load(None, ["angle.metadata_unit=rad"]).angle) == pytest.approx([math.degrees(-0.6)])


@pytest.mark.parametrize("suffix", [".ndata", ".h5"])
def test_a_sequence_of_nion_swift_has_a_tilt_only_on_its_axis(tmp_path: Path, suffix: str) -> None:
    """One stage tilt for three images says of none which; a first axis in degrees does."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(SWIFT[suffix](THREE, 0.05, **exchanged.stage_of_swift(-34.5)))
    assert np.array_equal(pixels(path), THREE)
    assert ["not said whether of one tilt or of many" in str(held) for held in tilts(path)] == [True] * 3
    axes = [{"offset": -60.0, "scale": 2.0, "units": "deg"}] + [{"offset": 0.0, "scale": 0.05, "units": "nm"}] * 2
    path.write_bytes(SWIFT[suffix](THREE, 0.05, dimensional_calibrations=axes))
    assert tilts(path) == [-60.0, -58.0, -56.0]


def test_properties_of_an_older_nion_swift_stand_deeper(tmp_path: Path) -> None:
    """Up to version 12 the data had a table of their own."""
    inner = {"dimensional_calibrations": [{"scale": 0.07, "units": "nm"}] * 2, "datum_dimension_count": 2, "collection_dimension_count": 0}
    for more in ({"data_source": inner}, {"data_sources": [inner]}):
        (tmp_path / "a.ndata").write_bytes(exchanged.ndata(ONE, 0.05, **more))
        assert looked(tmp_path / "a.ndata").units[0].acquisition.pixel_size_nm == 0.07


@pytest.mark.parametrize("suffix", [".ndata", ".h5"])
@pytest.mark.parametrize(
    ("values", "unit", "more", "words"),
    [
        (ONE, "1/nm", {}, "a diffraction pattern: an axis of its image is in 1/nm"),
        (ONE, "rad", {}, "a diffraction pattern"),
        (THREE, "nm", {"datum_dimension_count": 1, "collection_dimension_count": 2, "is_sequence": False}, "are no images"),
        (np.zeros((48, 40, 3), "u1"), "nm", {"is_sequence": False}, "are no images"),
        (np.zeros((2, 2, 9, 9), "u2"), "nm", {"collection_dimension_count": 2, "is_sequence": False}, "are no images"),
    ],
    ids=["reciprocal", "angles", "spectra", "colour", "4D"],
)
def test_what_nion_swift_says_is_no_projection_is_refused(
    tmp_path: Path, suffix: str, values: np.ndarray, unit: str, more: dict[str, object], words: str
) -> None:
    """Once, with the reason."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(SWIFT[suffix](values, 0.05, unit=unit, **more))
    with pytest.raises(SourceError, match=words):
        looked(path)


def test_an_ndata_that_is_still_written_is_waited_for(tmp_path: Path, child: ReaderChild) -> None:
    """Its directory comes last: cut anywhere, it is never wrong pixels, and never called broken."""
    whole = exchanged.ndata(ONE, 0.05)
    path = tmp_path / "a.ndata"
    for cut in range(4, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceNotReady, match="its directory, which stands at its end, is not written yet"):
            child.look(path)
    damaged = bytearray(whole)
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises((SourceNotReady, SourceError), match="CRC"):
        child.read(path, 0)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"other.txt": b"x"}, "holds no data.npy, but other.txt"),
        ({"data.npy": b"x" * 200}, "not a .npy file"),
        ({"data.npy": b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<u2', 'fortran_order': False, 'shape': (9, 9), }".ljust(117) + b"\n"},
         "data.npy of 128 bytes is no array of shape"),
    ],
)  # fmt: skip
def test_a_zip_file_of_something_else_is_refused(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    """With what is in it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    (tmp_path / "a.ndata").write_bytes(content.getvalue())
    with pytest.raises(SourceError, match=words):
        looked(tmp_path / "a.ndata")


@pytest.mark.parametrize("text", ["{", "[1]", json.dumps({"dimensional_calibrations": 7, "metadata": [], "created": 3})])
def test_properties_that_are_broken_cost_no_pixels(tmp_path: Path, text: str) -> None:
    """What they would have said is not known."""
    (tmp_path / "a_-3deg.h5").write_bytes(exchanged.swift_h5(ONE, 0.05))
    with h5py.File(tmp_path / "a_-3deg.h5", "r+") as file:
        file["data"].attrs["properties"] = text
    values = io.BytesIO()
    np.save(values, np.asfortranarray(ONE))
    with zipfile.ZipFile(tmp_path / "b_-3deg.ndata", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", values.getvalue())
        archive.writestr("metadata.json", text)
    for path in (tmp_path / "a_-3deg.h5", tmp_path / "b_-3deg.ndata"):
        assert np.array_equal(pixels(path), ONE[None])
        assert looked(path).units[0].acquisition.pixel_size_nm is None
        assert tilts(path) == [-3.0]


def test_two_items_in_one_export_are_no_guess(tmp_path: Path) -> None:
    """Which of them is the projection, nobody says."""
    path = tmp_path / "a.nhdf"
    path.write_bytes(exchanged.swift_h5(ONE, 0.05, name="data/0"))
    with h5py.File(path, "r+") as file:
        file.create_dataset("data/1", data=ONE).attrs["properties"] = "{}"
    with pytest.raises(SourceError, match="holds 2 data items"):
        looked(path)


# -- DM5 --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("dtype", ["<u2", "<f4", "<i4"])
def test_an_image_of_dm5_is_read(tmp_path: Path, child: ReaderChild, dtype: str, thumbnail: bool) -> None:
    """The tags of DM4 in HDF5: stage, size, time, detector; the thumbnail before it is passed over."""
    path = tmp_path / "a.dm5"
    path.write_bytes(exchanged.dm5(ONE.astype(dtype), -34.5, 0.05, thumbnail=thumbnail))
    found = child.read(path, 0)[0]
    assert np.array_equal(found.pixels, ONE)
    said = found.acquisition
    assert (said.tilt_deg, said.detector, said.acquired_utc[:19]) == (-34.5, "HAADF", "2016-08-08T15:26:37")
    assert said.pixel_size_nm == pytest.approx(0.05)


def test_a_stack_of_dm5_has_the_tilts_of_its_axis(tmp_path: Path) -> None:
    """Not the stage's, which is that of its last image; also where the pixels lie in one row."""
    path = tmp_path / "a.dm5"
    path.write_bytes(exchanged.dm5(THREE, -34.5, 0.05, step_deg=2.0))
    assert tilts(path) == [-34.5, -32.5, -30.5]
    with h5py.File(path, "r+") as file:
        data = file["ImageList/[1]/ImageData"]
        values = data["Data"][()]
        del data["Data"]
        data["Data"] = values.ravel()
    assert np.array_equal(pixels(path), THREE)


def tagged(path: Path, place: str, name: str, value: object) -> Path:
    path.write_bytes(exchanged.dm5(ONE, -34.5, 0.05))
    with h5py.File(path, "r+") as file:
        file.require_group(f"ImageList/[1]/{place}").attrs[name] = value
    return path


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        ("ImageTags/Meta Data", "Format", np.bytes_(b"Spectrum image"), "Meta Data.Format is 'Spectrum image'"),
        ("ImageData/Calibrations/Dimension/[0]", "Units", np.bytes_(b"1/nm"), "a diffraction pattern"),
        ("ImageData", "DataType", np.uint32(3), "pixels of type 3 are no projection"),
        ("ImageData", "DataType", np.uint32(2), "bytes of pixels for"),
        ("ImageData/Dimensions", "[0]", np.uint32(41), "bytes of pixels for"),
        ("ImageData/Dimensions", "[0]", np.uint32(39), "its tags say"),
    ],
)
def test_what_dm5_says_is_no_projection_is_refused(tmp_path: Path, place: str, name: str, value: object, words: str) -> None:
    """As in DM4; and pixels that are not as the tags say."""
    with pytest.raises(SourceError, match=words):
        looked(tagged(tmp_path / "a.dm5", place, name, value))


def test_units_of_dm5_may_be_in_the_letters_of_windows(tmp_path: Path) -> None:
    """One byte for the sign of micrometres."""
    path = tagged(tmp_path / "a.dm5", "ImageData/Calibrations/Dimension/[0]", "Units", np.bytes_("µm".encode("latin-1")))
    with h5py.File(path, "r+") as file:
        file["ImageList/[1]/ImageData/Calibrations/Dimension/[1]"].attrs["Units"] = np.bytes_("µm".encode())
    assert looked(path).units[0].acquisition.pixel_size_nm == pytest.approx(50)


def test_strange_tags_of_dm5_cost_no_image(tmp_path: Path) -> None:
    """Tables, rectangles, groups within themselves: what is not a number or text where one should be is not known."""
    path = tagged(tmp_path / "a.dm5", "ImageTags/Microscope Info/Stage Position", "Stage Alpha", np.zeros((2, 2)))
    with h5py.File(path, "r+") as file:
        tags = file["ImageList/[1]/ImageTags"]
        tags["loop"] = tags
        tags["soft"] = h5py.SoftLink("/nowhere")
        tags.attrs["box"] = np.array((0, 1), dtype=[("top", "<f4"), ("left", "<f4")])
    assert np.array_equal(pixels(path), ONE[None])
    assert "no tilt angle" in str(tilts(path)[0])
