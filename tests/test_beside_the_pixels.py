"""A file's comment is never stronger than its pixels: they are read, and what beside them cannot be understood is said to be unknown."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from aet_stream.errors import SourceError, SourceNotReady
from aet_stream.readers.child import ReaderChild
from aet_stream.simulate import writers
from tests import containers
from tests.dm_files import DmFile, stage
from tests.harness import known_image
from tests.looks import IMAGE, is_read, looked, pixels_of

KEY = "0" * 32


# -- HDF5 -------------------------------------------------------------------------------------------------------------------------------


def links(group: Any) -> None:
    """Every kind of link, sound and broken."""
    group["soft"] = h5py.SoftLink("/")
    group["dangling"] = h5py.SoftLink("/nowhere")
    group["external"] = h5py.ExternalLink("/etc/passwd", "/x")


PLACES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "ncem": (lambda: writers.emd(IMAGE, -34.5, 0.05), ("", "data", "data/single", "stage")),
    "velox": (lambda: writers.velox(IMAGE, -34.5, 0.05), ("", "Data", "Data/Image", f"Data/Image/{KEY}")),
}


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, (_, places) in PLACES.items() for place in places])
def test_links_beside_the_data_are_passed_over(tmp_path: Path, kind: str, place: str) -> None:
    """Anywhere in a file, sound or broken, out of the file or not: what they lead to is not asked, and the image is read with its tilt."""
    path = tmp_path / "x.emd"
    path.write_bytes(PLACES[kind][0]())
    with h5py.File(path, "r+") as file:
        links(file[place] if place else file)
    said = looked(path)
    assert [round(unit.acquisition.tilt_deg or 0.0, 6) for unit in said.units] == [-34.5]
    assert np.array_equal(pixels_of(path), [IMAGE])


@pytest.mark.parametrize("kind", ["soft", "external", "dangling"])
def test_what_stands_behind_a_link_is_not_known(tmp_path: Path, kind: str) -> None:
    """The tilt behind a link is no tilt, and it is said why; nothing outside the file is opened."""
    path, other = tmp_path / "x.emd", tmp_path / "other.h5"
    path.write_bytes(writers.emd(IMAGE, -34.5, 0.05))
    other.write_bytes(writers.emd(IMAGE, 20.0, 0.05))
    with h5py.File(path, "r+") as file:
        file.move("stage", "elsewhere")
        file["stage"] = {
            "soft": h5py.SoftLink("/elsewhere"),
            "external": h5py.ExternalLink(str(other), "/stage"),
            "dangling": h5py.SoftLink("/nowhere"),
        }[kind]
    (unit,) = looked(path).units
    assert unit.acquisition.tilt_deg is None
    assert "the tilt cannot be understood" in unit.remark
    assert "is a link" in unit.remark


@pytest.mark.parametrize("kind", [h5py.SoftLink("/hidden"), h5py.ExternalLink("other.h5", "/hidden")])
def test_data_behind_a_link_are_refused(tmp_path: Path, kind: object) -> None:
    """Of both kinds of EMD: only what lies in the file is read."""
    for name, content, data in (
        ("ncem.emd", writers.emd(IMAGE, 1.0, 0.05), "data/single/data"),
        ("velox.emd", writers.velox(IMAGE, 1.0, 0.05), f"Data/Image/{KEY}/Data"),
    ):
        (tmp_path / name).write_bytes(content)
        with h5py.File(tmp_path / name, "r+") as file:
            file.move(data, "hidden")
            file[data] = kind
        with pytest.raises(SourceError, match="is a link"):
            looked(tmp_path / name)


@pytest.mark.parametrize("axes", [True, False])
def test_an_emd_without_group_types_is_read(tmp_path: Path, axes: bool) -> None:
    """The one group that holds data; one with axes before one without, and one that says what it is before both."""
    path = tmp_path / "x.emd"
    with h5py.File(path, "w") as file:
        file["data/tomography/data"] = np.stack([IMAGE, IMAGE + 1])
        if axes:
            tilts = file.create_dataset("data/tomography/dim1", data=np.float32([-12, 12]))
            tilts.attrs["units"] = np.bytes_("[deg]")
            file["other/data"] = np.zeros((5, 5))
    said = looked(path)
    assert [unit.acquisition.tilt_deg for unit in said.units] == ([-12.0, 12.0] if axes else [None, None])
    assert np.array_equal(pixels_of(path), [IMAGE, IMAGE + 1])
    with h5py.File(path, "r+") as file:
        file["third/data"] = np.ones((7, 9))
        file["third"].attrs["emd_group_type"] = 1
    assert looked(path).probe.shape == (7, 9)


def test_two_groups_of_data_are_no_guess(tmp_path: Path) -> None:
    """Neither says that it is the one: refused, with both names."""
    path = tmp_path / "x.emd"
    with h5py.File(path, "w") as file:
        file["data/a/data"], file["data/b/data"] = IMAGE, IMAGE
    with pytest.raises(SourceError, match=r"2 data groups \(data/a, data/b\)"):
        looked(path)


def test_data_of_two_names_are_one(tmp_path: Path) -> None:
    """Hard links to the data, to their group, and of a group to itself: one image, and no end without an end."""
    path = tmp_path / "x.emd"
    path.write_bytes(writers.emd(IMAGE, -34.5, 0.05))
    with h5py.File(path, "r+") as file:
        file["alias"], file["scalars/data"], file["data/single/again"] = file["data/single"], file["data/single/data"], file["data"]
    assert is_read(path) == ""


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("dim1", np.bytes_("words"), (None, -34.5)),
        ("dim2", np.zeros((0,)), (None, -34.5)),
        ("acquisition times", np.bytes_("noon"), (0.05, -34.5)),
    ],
)
def test_strange_datasets_in_an_emd_cost_no_image(tmp_path: Path, name: str, value: object, left: tuple[float | None, float]) -> None:
    """An axis or a time that is no number: what it would have said is not known, all else is."""
    path = tmp_path / "x.emd"
    path.write_bytes(writers.emd(IMAGE, -34.5, 0.05))
    with h5py.File(path, "r+") as file:
        del file[f"data/single/{name}"]
        file[f"data/single/{name}"] = value
    (unit,) = looked(path).units
    assert (unit.acquisition.pixel_size_nm, unit.acquisition.tilt_deg) == left
    assert np.array_equal(pixels_of(path), [IMAGE])


def test_a_growing_series_needs_only_its_pixels_and_tilts(tmp_path: Path) -> None:
    """STEMTomo: tables of another kind, or behind a link, cost no tilt."""
    path = tmp_path / "t.emd"
    growing = containers.StemTomo(path, repeats=2, size_px=48)
    growing.append(np.stack([known_image(0, 48), known_image(1, 48)]), -60.0)
    with h5py.File(path, "r+") as file:
        del file["data/raw/imageSetParameters"], file["data/raw/imageParameters"], file["microscope"]
        file["data/raw/imageSetParameters"] = np.array([[b"a", b"b"]])
        file["data/raw/imageParameters"] = h5py.SoftLink("/nowhere")
        file["microscope"] = h5py.ExternalLink("/etc/passwd", "/x")
    (unit,) = looked(path).units
    assert unit.acquisition.tilt_deg == -60.0
    assert "imageSetParameters cannot be understood" in unit.remark


# -- Velox ------------------------------------------------------------------------------------------------------------------------------


def test_one_text_for_all_frames_is_heard(tmp_path: Path) -> None:
    """Metadata of one column, or of none, as other programs write them."""
    path = tmp_path / "x.emd"
    for columns in (1, None):
        path.write_bytes(writers.velox(IMAGE, -34.5, 0.05))
        with h5py.File(path, "r+") as file:
            group = file[f"Data/Image/{KEY}"]
            text = group["Metadata"][:, 0]
            del group["Metadata"]
            group["Metadata"] = text if columns is None else text[:, None]
        assert looked(path).units[0].acquisition.tilt_deg == pytest.approx(-34.5)


def damage(path: Path, content: bytes, frame: int = 0) -> None:
    with h5py.File(path, "r+") as file:
        metadata = file[f"Data/Image/{KEY}/Metadata"]
        metadata[:, frame] = np.frombuffer(content.ljust(metadata.shape[0], b"\0"), np.uint8)


@pytest.mark.parametrize("content", [b"{" * 60000, b"[1, 2]", b"not JSON", b'{"Stage": {"AlphaTilt": "-0.6', b"\xff\xfe\x80"])
def test_a_velox_image_with_broken_metadata_is_read(tmp_path: Path, content: bytes) -> None:
    """Its tilt is not known, and why is said; a series keeps the tilts of its other frames."""
    one, series = tmp_path / "one.emd", tmp_path / "series.emd"
    one.write_bytes(writers.velox(IMAGE, -34.5, 0.05))
    damage(one, content)
    (unit,) = looked(one).units
    assert unit.acquisition.tilt_deg is None
    assert "not known" in unit.remark
    assert np.array_equal(pixels_of(one), [IMAGE])
    three = np.stack([known_image(index, 48) for index in range(3)])
    series.write_bytes(writers.velox(three, -60.0, 0.05, step_deg=3.0))
    damage(series, content, frame=1)
    tilts = [unit.acquisition.tilt_deg for unit in looked(series).units]
    assert tilts == [pytest.approx(-60.0), None, pytest.approx(-54.0)]
    assert np.array_equal(pixels_of(series), three)


def test_a_signal_that_cannot_be_read_costs_the_others_nothing(tmp_path: Path) -> None:
    """One of two detectors lies in another file: the other one is read, and the loss is said."""
    path = tmp_path / "x.emd"
    path.write_bytes(writers.velox(IMAGE, -34.5, 0.05, detectors=("HAADF", "BF")))
    with h5py.File(path, "r+") as file:
        del file[f"Data/Image/{KEY[:-1]}1/Data"]
        file[f"Data/Image/{KEY[:-1]}1"].create_dataset("Data", (48, 40, 1), "u1", external=[("/etc/passwd", 0, 1920)])
    (unit,) = looked(path).units
    assert unit.acquisition.detector == "HAADF"
    assert "is stored in another file" in unit.remark


def test_what_could_not_be_understood_is_said_of_a_stored_image_too(tmp_path: Path) -> None:
    """Its name gives the tilt: it is taken, with a flag."""
    path = tmp_path / "x_-34.5deg.emd"
    path.write_bytes(writers.velox(IMAGE, -34.5, 0.05))
    damage(path, b"not JSON")
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64)
    try:
        assert "damaged metadata of frame 0" in reader.read(path, 0)[0].drift.flag
    finally:
        reader.close()


Said = tuple[str, str, str, dict[str, Any]]
"""Detector, dtype, kind of operation, and what more is said: segments, label, or whole groups of the metadata."""
STEPS = {"PixelSize": {"width": "5e-11", "height": "5e-11"}, "PixelUnitX": "m", "PixelUnitY": "m"}


def velox_signals(path: Path, *signals: Said) -> None:
    """Signals of one tilt, with operations and displays as Velox writes them until version 3.10, where they are named."""
    with h5py.File(path, "w") as file:
        for index, (detector, dtype, operation, more) in enumerate(signals):
            key = f"{index:032x}"
            group = file.create_group(f"Data/Image/{key}")
            group["Data"] = (IMAGE + index).astype(dtype)[..., None]
            groups = {name: value for name, value in more.items() if name[0].isupper()}
            said = {"Stage": {"AlphaTilt": "-0.2"}, "BinaryResult": {"Detector": detector, **STEPS}, **groups}
            group["Metadata"] = np.frombuffer(json.dumps(said).encode().ljust(4000, b"\0"), np.uint8)[:, None]
            place = {"dataPath": f"/Data/Image/{key}"}
            if operation:
                words = place | {"detector": detector, "detectorInfo": {"segments": more.get("segments", "")}}
                _text(file, f"Operations/{operation}/{key}", words)
            if "label" in more:
                _text(file, f"Presentation/Displays/ImageDisplay/{key}", place | {"display": {"label": more["label"]}})


def _text(file: Any, place: str, words: dict[str, Any]) -> None:
    file.create_dataset(place, data=np.array([json.dumps(words)], dtype=h5py.string_dtype()))


ANALYTICAL = {"Detectors": {"Detector-0": {"DetectorName": "EDX1", "DetectorType": "AnalyticalDetector"}}}
SIGNALS: dict[str, tuple[list[Said], list[str], list[str]]] = {
    "segments and their sum": (
        [("DF4", "<u2", "StemInputOperation", {"segments": letter}) for letter in "ABCD"] + [("DF4", "<f4", "MathematicsOperation", {})],
        ["", "", "", "", "computed by Velox (MathematicsOperation)"],
        ["A", "B", "C", "D", ""],
    ),
    "the same, without operations": (
        [("DF4", "<u2", "", {}) for _ in "ABCD"] + [("DF4", "<f4", "", {})],
        ["", "", "", "", "computed by Velox (pixels of type float32 beside the counts of DF4)"],
        [""] * 5,
    ),
    "labels only": (
        [("DF4", "<f4", "", {"label": "DF4-A"}), ("DF4", "<f4", "", {"label": "iDPC"}), ("HAADF", "<u2", "", {"label": "HAADF"})],
        ["", "computed by Velox (iDPC)", ""],
        ["DF4-A", "iDPC", ""],
    ),
    "element maps": (
        [("SuperXG21", "<u2", "", {"label": "Au"}), ("HAADF", "<u2", "", {}), ("EDX1", "<f4", "", ANALYTICAL), ("Dual-X", "<u2", "", {})],
        ["an element map computed from spectra (Au)", "", "an element map", "an element map"],
        ["Au", "", "", ""],
    ),
    "frames, and their sum beside them": (
        [("HAADF", "<u2", "StemInputOperation", {}), ("HAADF", "<u2", "IntegrationOperation", {"label": "DCFI(HAADF)"})],
        ["", "computed by Velox (IntegrationOperation)"],
        ["", "DCFI(HAADF)"],
    ),
    "the sum alone": ([("HAADF", "<f4", "IntegrationOperation", {"label": "DCFI(HAADF)"})], [""], ["DCFI(HAADF)"]),
    "floats alone": ([("HAADF", "<f4", "", {})], [""], [""]),
    "a camera in the diffraction plane": (
        [("HAADF", "<u2", "", {"Optics": {"ProjectorMode": "1"}}), ("BM-Ceta", "<i4", "", {"Optics": {"ProjectorMode": "1"}})],
        ["", "a diffraction pattern"],
        ["", ""],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_of_each_velox_signal_it_is_known_what_it_is(tmp_path: Path, name: str) -> None:
    """Acquired or computed, of which dataset, of which segment; the sum of frames counts where they were not kept."""
    signals, reasons, segments = SIGNALS[name]
    velox_signals(tmp_path / "x.emd", *signals)
    said = [unit.acquisition for unit in looked(tmp_path / "x.emd").units]
    assert [one.detector for one in said] == [detector for detector, *_ in signals]
    assert [one.dataset for one in said] == [f"{index:032x}" for index in range(len(signals))]
    assert [one.segment for one in said] == segments
    for one, reason in zip(said, reasons, strict=True):
        assert one.no_projection.startswith(reason), one.no_projection
        assert bool(one.no_projection) == bool(reason)


def test_a_detector_without_a_name_is_the_only_one_there_is(tmp_path: Path) -> None:
    """Since Velox 2.3 the image's own entry may be empty."""
    only = {"Detectors": {"Detector-0": {"DetectorName": "HAADF", "DetectorType": "ScanningDetector"}}}
    velox_signals(tmp_path / "x.emd", ("", "<u2", "", only))
    assert looked(tmp_path / "x.emd").units[0].acquisition.detector == "HAADF"


def test_later_versions_tell_maps_by_their_group(tmp_path: Path) -> None:
    """Since Velox 3.12 there are no operations: the group of a display says EDS."""
    path = tmp_path / "x.emd"
    velox_signals(path, ("HAADF", "<u2", "", {}), ("", "<u2", "", {}))
    with h5py.File(path, "r+") as file:
        _text(file, "SharedProperties/ImageSeriesDataReference/r", {"dataPath": f"/Data/Image/{1:032x}"})
        _text(file, "Displays/ImageDisplay/d", {"data": "/SharedProperties/ImageSeriesDataReference/r", "id": "Pt"})
        _text(file, "SharedProperties/DisplayGroupItem/g", {"display": "/Displays/ImageDisplay/d", "groupType": "EDS", "name": "Pt"})
    haadf, platinum = (unit.acquisition for unit in looked(path).units)
    assert not haadf.no_projection
    assert platinum.no_projection.startswith("an element map computed from spectra (Pt)")


# -- DigitalMicrograph --------------------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("version", [3, 4])
UNKNOWN = 23


def dm_path(folder: Path, version: int, content: bytes) -> Path:
    path = folder / f"x.dm{version}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("more", [-100, -8, -4, 1, 4, 8, 24, 1000])
@BOTH
def test_the_length_in_a_dm_header_is_not_counted_on(tmp_path: Path, version: int, more: int) -> None:
    """Programs count it in different ways (Nion Swift, 4 bytes more): a tree that ends where it says is whole, one that is cut is not."""
    dm = DmFile(version)
    whole = dm.file({"ImageList": [dm.image(IMAGE, stage(-34.5))]}, more_length=more)
    path = dm_path(tmp_path, version, whole)
    assert is_read(path) == ""
    for cut in range(20, len(whole) - 8, 97):
        path.write_bytes(whole[:cut])
        assert_waited_for_or_read(path)


def assert_waited_for_or_read(path: Path) -> None:
    """Never refused, never wrong."""
    try:
        looked(path)
    except SourceNotReady:
        return
    assert np.array_equal(pixels_of(path), [IMAGE])


@BOTH
def test_tags_of_unknown_kinds_are_passed_over(tmp_path: Path, version: int) -> None:
    """Behind the image in DM3, where nobody can know how long they are; anywhere in DM4, which says so."""
    dm = DmFile(version)
    odd, strange = dm.entry(UNKNOWN, "odd", b"\7" * 33), dm.entry(21, "strange", dm.value([99], b"\1\2\3"))
    last = dm.file({"ImageList": [dm.image(IMAGE, stage(-34.5))], "odd": odd, "strange": strange})
    assert f"a tag of kind {UNKNOWN}" in is_read(dm_path(tmp_path, version, last))
    first = dm.file({"odd": odd, "ImageList": [dm.image(IMAGE, {"strange": strange, **stage(-34.5)})]})
    path = dm_path(tmp_path, version, first)
    if version == 4:
        assert f"2 tag(s) cannot be understood, and are not known: odd (a tag of kind {UNKNOWN}), strange" in is_read(path)
    else:
        with pytest.raises(SourceError, match=f"a tag of kind {UNKNOWN}"):
            looked(path)


@BOTH
def test_a_tag_that_is_damaged_costs_no_image(tmp_path: Path, version: int) -> None:
    """Among the image's own tags: in DM4 the others are still known, in DM3 those before it."""
    dm = DmFile(version)
    broken = dm.entry(21, "broken", b"%%%!" + bytes(40))
    before = dm.file({"ImageList": [dm.image(IMAGE, {"broken": broken, **stage(-34.5)})], "ZZ": 1})
    assert "a damaged tag" in is_read(dm_path(tmp_path, version, before), -34.5 if version == 4 else None)
    behind = dm.file({"ImageList": [dm.image(IMAGE, {**stage(-34.5), "broken": broken})], "ZZ": 1})
    assert "a damaged tag" in is_read(dm_path(tmp_path, version, behind))


def test_a_tag_of_dm4_that_says_more_than_it_has_costs_no_image(tmp_path: Path) -> None:
    """An array of more bytes than the entry, or the file, has; zeros in the middle of a group: the next entry is where the length says."""
    dm = DmFile(4)
    greedy = dm.entry(21, "greedy", dm.value([20, 4, 1 << 40], bytes(64)))
    hollow = dm.entry(20, "hollow", b"\1\0" + dm.number(3) + bytes(200))
    image = dm.image(IMAGE, {"greedy": greedy, "hollow": hollow, **stage(-34.5)})
    said = is_read(dm_path(tmp_path, 4, dm.file({"greedy": greedy, "ImageList": [image], "ZZ": 1})))
    assert "3 tag(s) cannot be understood" in said


@pytest.mark.parametrize("place", ["before", "among its own", "behind"])
@BOTH
def test_very_many_tags_cost_no_image(tmp_path: Path, version: int, place: str) -> None:
    """Wherever they stand; DM4 passes them over, DM3 has to go through them."""
    dm, many = DmFile(version), {"many": [1] * 50_001}
    own = {"A": many, **stage(-34.5)} if place == "among its own" else stage(-34.5)
    tags = {"ImageList": [dm.image(IMAGE, own)]}
    tags = {"before": {"DocumentTags": many} | tags, "behind": tags | {"Z": many}}.get(place, tags)
    said = is_read(dm_path(tmp_path, version, dm.file(tags)))
    assert ("more than 50000 tags" in said) == (version == 4)


@BOTH
def test_tags_in_tags_without_an_end_cost_no_image(tmp_path: Path, version: int) -> None:
    """Nested deeper than anybody means it."""
    dm = DmFile(version)
    deep: Any = 1
    for _ in range(40):
        deep = {"deeper": deep}
    assert "nested deeper" in is_read(dm_path(tmp_path, version, dm.file({"ImageList": [dm.image(IMAGE, stage(-34.5))], "Z": deep})))


@pytest.mark.parametrize("count", [2, 2**31 - 1])
@BOTH
def test_more_tags_announced_than_there_are_cost_no_image(tmp_path: Path, version: int, count: int) -> None:
    """The header says that the file ends here."""
    dm = DmFile(version)
    path = dm_path(tmp_path, version, dm.file({"ImageList": [dm.image(IMAGE, stage(-34.5))]}, count=count))
    assert "what follows is not known" in is_read(path)


@BOTH
def test_a_dm_file_laid_out_before_it_is_written_is_waited_for(tmp_path: Path, version: int) -> None:
    """Zeros to its full length from anywhere: not ready, or the whole image."""
    dm = DmFile(version)
    whole = dm.file({"ImageList": [dm.image(IMAGE, stage(-34.5))], "ZZ": 1})
    path = dm_path(tmp_path, version, whole)
    for cut in range(24, len(whole), 61):
        path.write_bytes(whole[:cut].ljust(len(whole), b"\0"))
        assert_waited_for_or_read(path)


@pytest.mark.parametrize("listed", [True, False])
@BOTH
def test_a_thumbnail_in_a_dm_file_is_no_image(tmp_path: Path, version: int, listed: bool) -> None:
    """Grey as the image is: it is listed as one, or the document shows the other; and entries that hold no data count in the list."""
    dm = DmFile(version)
    thumbnail = dm.image(IMAGE[:10, :10].copy(), {})
    tags: dict[str, Any] = {"ImageList": [{"Name": "empty"}, thumbnail, dm.image(IMAGE, stage(-34.5))]}
    tags |= {"Thumbnails": [{"ImageIndex": 1}]} if listed else {"ImageSourceList": [{"ImageRef": 2}]}
    assert is_read(dm_path(tmp_path, version, dm.file(tags))) == ""
    tags.popitem()
    with pytest.raises(SourceError, match="2 images and says of none"):
        looked(dm_path(tmp_path, version, dm.file(tags)))


@BOTH
def test_calibrations_that_are_no_numbers_say_nothing(tmp_path: Path, version: int) -> None:
    """Text, a group, nothing: the pixel size is not known."""
    dm = DmFile(version)
    for odd in ("wide", {"a": 1}, np.arange(3, dtype="<f4")):
        image = dm.image(IMAGE, stage(-34.5))
        image["ImageData"]["Calibrations"]["Dimension"][0]["Scale"] = odd
        path = dm_path(tmp_path, version, dm.file({"ImageList": [image]}))
        is_read(path)
        assert looked(path).units[0].acquisition.pixel_size_nm is None


# -- MRC ----------------------------------------------------------------------------------------------------------------------------------

TILTS = [-60.0, 0.5, 70.0]
THREE = np.stack([known_image(index, 48) for index in range(3)])


def mrc_with(extended: bytes, numbers: tuple[int, int], kind: bytes = b"") -> bytes:
    """Three images behind an extended header of this type and these two numbers."""
    plain = bytearray(writers.mrc(THREE, 0.0, 0.05))
    struct.pack_into("<i", plain, 92, len(extended))
    plain[104:108] = kind.ljust(4, b"\0")
    struct.pack_into("<2h", plain, 128, *numbers)
    return bytes(plain[:1024]) + extended + bytes(plain[1024:])


def seri(mask: int, each: int, tilts: Sequence[float] = TILTS) -> bytes:
    """SerialEM's records: the tilt first, then as many more bytes as the other items take."""
    return b"".join(struct.pack("<h", round(tilt * 100)) + b"\7" * (each - 2) for tilt in tilts)


@pytest.mark.parametrize(
    ("mask", "each", "kind", "known"),
    [(1, 2, b"", True), (3, 8, b"", True), (1 + 4 + 8 + 16, 10, b"", True), (63, 20, b"", True), (1 + 32 + 64, 8, b"    ", True),
     (1 + 4, 14, b"SERI", True), (2, 6, b"", False), (1, 14, b"", False), (0, 32, b"", False), (4096 + 1, 2, b"", False),
     (1, 2, b"CCP4", False)],
)  # fmt: skip
def test_old_files_of_serialem_have_their_tilts(tmp_path: Path, mask: int, each: int, kind: bytes, known: bool) -> None:
    """Before extended headers had types the two numbers alone say what is in them, if they agree with each other."""
    path = tmp_path / "x.mrc"
    path.write_bytes(mrc_with(seri(mask, each), (each, mask), kind))
    assert [unit.acquisition.tilt_deg for unit in looked(path).units] == (TILTS if known else [None] * 3)
    assert np.array_equal(pixels_of(path), THREE)


@pytest.mark.parametrize(
    ("records", "numbers", "known"),
    [(1024, (0, 0), True), (8192, (0, 0), True), (8192, (0, 32), True), (1024, (0, 32), True), (61, (0, 32), True), (61, (0, 0), False)],
)
def test_xplore3d_headers_of_any_length_are_read(tmp_path: Path, records: int, numbers: tuple[int, int], known: bool) -> None:
    """1,024 records, 8,192 of later programs, or as many as the header says there are numbers for."""
    rows = np.zeros((records, 32), "<f4")
    rows[:3, 0], rows[:3, 1], rows[:3, 11] = TILTS, 0.5, 5e-11
    path = tmp_path / "x.mrc"
    path.write_bytes(mrc_with(rows.tobytes(), numbers))
    assert [unit.acquisition.tilt_deg for unit in looked(path).units] == (TILTS if known else [None] * 3)
    assert np.array_equal(pixels_of(path), THREE)


@pytest.mark.parametrize("kind", [b"FEI1", b"FEI2", b"SERI", b"", b"HDF5", b"AGAR"])
@pytest.mark.parametrize("content", [b"\xff" * 4096, b"noise" * 820, bytes(4096), b""], ids=["ones", "text", "zeros", "none"])
def test_extended_headers_that_mean_nothing_cost_no_image(tmp_path: Path, kind: bytes, content: bytes) -> None:
    """Of every type: whatever stands there, the pixels are read."""
    path = tmp_path / "x.mrc"
    path.write_bytes(mrc_with(content, (-1, -1), kind))
    assert len(looked(path).units) == 3
    assert np.array_equal(pixels_of(path), THREE)


# -- MATLAB -------------------------------------------------------------------------------------------------------------------------------


def test_a_mat_file_needs_only_its_projections(tmp_path: Path) -> None:
    """Links, angles that lie elsewhere or are no numbers of angles, in 7.3 and in 5: the images are read, and the tilts are not known."""
    path = tmp_path / "x.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["projections"] = THREE.transpose(0, 2, 1)
        links(file)
        file["alias"] = h5py.SoftLink("/projections")
        file.create_dataset("angles", (3,), "f8", external=[("/etc/passwd", 0, 24)])
    said = looked(path)
    assert [unit.acquisition.tilt_deg for unit in said.units] == [None] * 3
    assert "stored in another file" in said.units[0].remark
    assert np.array_equal(pixels_of(path), THREE)
    savemat(path, {"projections": THREE.transpose(1, 2, 0), "angles": np.array(TILTS) * 1j})
    assert "complex" in looked(path).units[0].remark
    assert np.array_equal(pixels_of(path), THREE)
