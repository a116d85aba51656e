"""Our HDF5 files before the strictest readers: libhdf5 1.8 and 1.10 themselves, NeXus's definition and validator, silx and HyperSpy.

Each program has its turn where it is installed; what a file says of itself is checked everywhere.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aet_stream import hdf5
from aet_stream.hub.store import Draft
from aet_stream.layout import crc32
from aet_stream.projection import Array, sha256_of
from aet_stream.reconstruct.export import export
from aet_stream.reconstruct.preview import preview
from aet_stream.reconstruct.run import Options, reconstruct
from aet_stream.series import Series
from tests import old_hdf5
from tests.test_reconstruct import BLOBS, views_of
from tests.test_store import ABOUT, CLOSED, made, opened

HEIGHT, WIDTH, PIXEL_NM = 16, 32, 0.05
EVEN_DEG = np.linspace(-70, 70, 15)
#: What HDF5 1.8 wrote last; files with 3 want 1.10.
SUPERBLOCK_OF_1_8 = 2


def stored(folder: Path, tilts_deg: Array, *, closed: bool = True, fold_rows: int = 256) -> Path:
    """A series as the hub writes it; its raw is the clean one and 7 more."""
    store, batch = opened(folder, fold_rows), []
    for index, view in enumerate(views_of(BLOBS, tilts_deg, width=WIDTH, height=HEIGHT)):
        raw = view + np.float32(7)
        clean = raw - np.float32(7)
        facts = {"sha256": sha256_of(raw), "raw_crc32": crc32(raw), "clean_crc32": crc32(clean), "pixel_size_nm": PIXEL_NM}
        record = made(index, tilt_deg=float(tilts_deg[index]), closed_at=1e9 + index, **facts).record
        batch.append(Draft(record, {"raw": raw, "clean": clean}))
    store.commit(batch)
    while store.needs_folding():
        list(store.fold())
    store.write_master(ABOUT)
    if closed:
        list(store.close(CLOSED))
    return folder / "s" / "series.h5"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed series with segments, its volume, preview and exports."""
    series = stored(tmp_path_factory.mktemp("hdf5"), EVEN_DEG, fold_rows=3)
    reconstruct(series, Options(iterations=3, align=(), quality=True, threads=1))
    preview(series, size_px=16, iterations=2)
    for name in ("series", "reconstruction"):
        export(series.with_name(f"{name}.h5"), series.with_name(f"{name}.emd"))
    return series.parent


@pytest.fixture(scope="module")
def open_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In no order of tilts, none as far from the next as another."""
    return stored(tmp_path_factory.mktemp("open"), np.array([20.0, -3.0, 41.5, 0.5]), closed=False)


OWN = ("series.h5", "reconstruction.h5", "preview.h5", "series.emd", "reconstruction.emd", "projections/000003.h5",
       "projections/segment_000000_000003.h5")  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_what_holds_its_own_pixels_is_of_hdf5_1_8(files: Path, tmp_path: Path, name: str) -> None:
    """MATLAB before R2021b has 1.8.12; libhdf5 1.8 itself finds every dataset with every byte."""
    content = (files / name).read_bytes()
    assert content.startswith(b"\x89HDF\r\n\x1a\n")
    assert content[8] <= SUPERBLOCK_OF_1_8
    found = old_hdf5.found_by(old_hdf5.unpacked("2.6.0", tmp_path), files / name)
    assert found["version"][:2] == [1, 8]
    assert found["datasets"] == old_hdf5.found_by_h5py(files / name)


def test_an_open_series_is_of_hdf5_1_10(open_series: Path, tmp_path: Path) -> None:
    """Virtual datasets came with it: 1.8 says that it cannot, 1.10 finds all."""
    old, new = (old_hdf5.unpacked(version, tmp_path / version) for version in ("2.6.0", "2.10.0"))
    found = old_hdf5.found_by(new, open_series)
    assert found["version"][:2] == [1, 10]
    assert found["datasets"] == old_hdf5.found_by_h5py(open_series)
    with pytest.raises(AssertionError, match="bad superblock version"):
        old_hdf5.found_by(old, open_series)


def as_before(path: Path, target: Path) -> None:
    """The same content in the format of HDF5 1.10, which all files had at first."""
    entry = "entry1/tomo_entry"
    with h5py.File(path) as now, h5py.File(target, "w", libver=("v110", "v110")) as before:
        before.attrs.update(now.attrs)
        for name in now.keys() - {"exchange"}:
            now.copy(name, before)
        if "exchange" in now:
            for name in ("data_white", "data_dark"):
                now.copy(f"exchange/{name}", before.require_group("exchange"))
            before["exchange/data"], before["exchange/theta"] = before[f"{entry}/data/data"], before[f"{entry}/data/rotation_angle"]
    assert target.read_bytes()[8] > SUPERBLOCK_OF_1_8


def test_files_of_earlier_versions_go_on(files: Path, tmp_path: Path) -> None:
    """In the format of HDF5 1.10 they are verified and taken up as ever; closed again, the series is of 1.8."""
    (tmp_path / "s" / "projections").mkdir(parents=True)
    for path in (files / "series.h5", *(files / "projections").glob("*.h5")):
        as_before(path, tmp_path / "s" / path.relative_to(files))
    store = opened(tmp_path, fold_rows=3)
    for after in (False, True):
        if after:
            assert store.check() == []
            list(store.close(CLOSED))
        assert ((tmp_path / "s" / "series.h5").read_bytes()[8] <= SUPERBLOCK_OF_1_8) == after
        with Series(tmp_path / "s" / "series.h5") as series:
            assert list(series.doubts()) == []


# -- NeXus ----------------------------------------------------------------------------------------------------------------------------


def default_plot(file: h5py.File) -> h5py.Group:
    """Where the `default` attributes lead to, as NeXus defines it (manual, "Associating plottable data")."""
    group = file
    while "default" in group.attrs:
        name = group.attrs["default"]
        group = group[name.decode() if isinstance(name, bytes) else name]
        assert group.attrs["NX_class"] in ("NXentry", "NXsubentry", "NXdata")
    assert group.attrs["NX_class"] == "NXdata"
    return group


def axes_of(plot: h5py.Group) -> dict[str, h5py.Dataset]:
    """The axes of a plot, each along the dimension that it says, as long as the signal is there."""
    signal = plot[plot.attrs["signal"]]
    axes = {str(name): plot[name] for name in plot.attrs["axes"]}
    assert [axis.shape for axis in axes.values()] == [(edge,) for edge in signal.shape]
    assert [plot.attrs[f"{name}_indices"] for name in axes] == list(range(signal.ndim))
    return axes


@pytest.fixture(params=["open", "closed"])
def series(request: pytest.FixtureRequest, files: Path, open_series: Path) -> Path:
    return open_series if request.param == "open" else files / "series.h5"


def test_a_series_is_what_nxtomo_defines(series: Path) -> None:
    """Every field that the definition names, of its type, shape and unit; links name what they lead to; times in order."""
    with h5py.File(series) as file:
        entry, tilts = file["entry1/tomo_entry"], file["exchange/theta"].shape[0]
        assert (file["entry1"].attrs["NX_class"], entry.attrs["NX_class"]) == ("NXentry", "NXsubentry")
        assert (entry["definition"][()], entry["instrument/source/probe"][()]) == (b"NXtomo", b"electron")
        assert entry["start_time"][()].decode() == "2001-09-09T01:46:40+00:00"
        assert entry["end_time"][()].decode() == f"2001-09-09T01:46:{40 + tilts - 1}+00:00"
        detector, sample = entry["instrument/detector"], entry["sample"]
        assert (detector["data"].shape, detector["data"].attrs["units"]) == ((tilts, HEIGHT, WIDTH), "counts")
        assert (detector["image_key"].shape, detector["image_key"].dtype.kind) == ((tilts,), "i")
        for name in ("x_pixel_size", "y_pixel_size"):
            assert (detector[name][()], detector[name].attrs["units"]) == (pytest.approx(PIXEL_NM * 1e-9), "m")
        assert (sample["name"][()], sample["rotation_angle"].shape) == (b"s", (tilts,))
        assert sample["rotation_angle"].attrs["units"] == "degree"
        for name, item in (("data", detector["data"]), ("image_key", detector["image_key"]), ("rotation_angle", sample["rotation_angle"])):
            assert entry["data"][name] == item
            assert (item.attrs["target"], file[item.attrs["target"]]) == (item.name, item)


def test_a_series_opens_at_its_images(series: Path) -> None:
    """Over its tilts and over nm, to the right of the tilt axis and upwards."""
    with h5py.File(series) as file:
        plot = default_plot(file)
        assert plot[plot.attrs["signal"]] == file["exchange/data"]
        axes = axes_of(plot)
        assert [(name, axis.attrs["units"]) for name, axis in axes.items()] == [("rotation_angle", "degree"), ("y", "nm"), ("x", "nm")]
        np.testing.assert_allclose(axes["x"], PIXEL_NM * (np.arange(WIDTH) - (WIDTH - 1) / 2))
        np.testing.assert_allclose(axes["y"], PIXEL_NM * ((HEIGHT - 1) / 2 - np.arange(HEIGHT)))


def test_without_a_pixel_size_axes_count_pixels(tmp_path: Path) -> None:
    """And say so."""
    store = opened(tmp_path)
    store.commit([made(0)])
    store.write_master(ABOUT)
    with h5py.File(tmp_path / "s" / "series.h5") as file:
        axes = axes_of(default_plot(file))
        assert (axes["x"].attrs["units"], np.diff(axes["x"]).tolist()) == ("pixel", [1.0] * 31)


def test_a_volume_opens_over_its_axes(files: Path) -> None:
    """In nm from the middle, right-handed: to the right, upwards, towards who looks; its plot is the volume itself."""
    with h5py.File(files / "reconstruction.h5") as file:
        plot = default_plot(file)
        volume = plot[plot.attrs["signal"]]
        assert volume == file["reconstruction/volume"]
        assert volume.attrs["target"] == "/reconstruction/volume"
        axes = axes_of(plot)
        assert {name: axis.attrs["units"] for name, axis in axes.items()} == {"y": "nm", "z": "nm", "x": "nm"}
        assert [float(axis[1] - axis[0]) for axis in axes.values()] == pytest.approx([-PIXEL_NM, -PIXEL_NM, PIXEL_NM])
        assert all(float(axis[0] + axis[-1]) == pytest.approx(0, abs=1e-9) for axis in axes.values())


NXVALIDATE = Path(sys.prefix) / "bin" / "nxvalidate"


@pytest.mark.skipif(not NXVALIDATE.exists(), reason="nexusformat is not installed")
def test_nexus_own_validator_finds_no_error(series: Path) -> None:
    """Its one warning: NXtomo wants whole numbers, ours are fractions of counts."""
    command = [str(NXVALIDATE), str(series), "--path", "entry1/tomo_entry"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Total number of errors: 0" in said.stdout + said.stderr
    assert "Total number of warnings: 1" in said.stdout + said.stderr


@pytest.mark.skipif(find_spec("silx") is None, reason="silx is not installed")
@pytest.mark.filterwarnings("ignore")
def test_silx_opens_at_the_right_plot(series: Path, files: Path) -> None:
    """A stack of images with its axes; the volume likewise."""
    from silx.io.nxdata import get_default

    for path, axes in ((series, ["rotation_angle", "y", "x"]), (files / "reconstruction.h5", ["y", "z", "x"])):
        with h5py.File(path) as file:
            plot = get_default(file)
            assert plot.is_valid
            assert (plot.interpretation, plot.axes_dataset_names, plot.signal.ndim) == ("image", axes, 3)


@pytest.mark.skipif(find_spec("hyperspy") is None, reason="HyperSpy is not installed")
@pytest.mark.filterwarnings("ignore")
def test_hyperspy_takes_scale_unit_and_tilts(files: Path, open_series: Path) -> None:
    """Tilts as an axis where they are equally far apart, and always in its metadata."""
    import hyperspy.api as hs

    def load(path: Path, **more: bool) -> Any:
        return hs.load(str(path), file_format="Nexus", nxdata_only=True, **more)

    # RosettaSciIO 0.15 breaks off at an empty array: a volume has some, of what is suspect in it.
    even, uneven, volume = load(files / "series.h5"), load(open_series), load(files / "reconstruction.h5", skip_array_metadata=True)
    assert (even.axes_manager[0].name, even.axes_manager[0].units, even.axes_manager[0].scale) == ("rotation_angle", "degree", 10)
    for signal in (even, uneven, volume):
        for axis in signal.axes_manager.signal_axes:
            assert (axis.scale, axis.units) == (pytest.approx(PIXEL_NM), "nm")
    for signal, path in ((even, files / "series.h5"), (uneven, open_series)):
        with h5py.File(path) as file:
            np.testing.assert_array_equal(signal.original_metadata.tomo_entry.sample.rotation_angle.value, file["exchange/theta"])


def test_what_is_read_past_h5py_is_what_it_gives(tmp_path: Path) -> None:
    """Everything in a file once, whatever its kind: attributes and values as h5py itself has them, to their types."""
    values = {
        "text": "2 Å", "bytes": np.bytes_(b"ab"), "yes": np.bool_(True), "float": np.float32(0.1), "list": [1, 2], "texts": ["a", "b"],
        "empty": h5py.Empty("f4"), "none": np.zeros((0, 3)), "record": np.array((1, 2.5), [("a", "<i4"), ("b", "<f8")]),
    }  # fmt: skip
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, value in values.items():
            made = file.create_dataset(f"group/{name}", data=value)
            made.attrs.update(values)
            file["group"].attrs[name] = value
    with h5py.File(tmp_path / "x.h5") as file:
        expected: list[h5py.Dataset | h5py.Group] = []
        file.visititems(lambda _, item: expected.append(item))
        found = list(hdf5.items(file))
        assert found == expected
        assert len(found) == 1 + len(values)
        for item in found:
            assert same(hdf5.attributes(item), dict(item.attrs.items()))
            assert not isinstance(item, h5py.Dataset) or same({"": hdf5.values(item)}, {"": item[()]})


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """In value, shape and type."""
    return {name: (type(one), repr(one)) for name, one in found.items()} == {name: (type(one), repr(one)) for name, one in expected.items()}
