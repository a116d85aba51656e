"""One specimen, one hand: four atoms through every file that others read, found again under each program's published convention.

Read by programs that are not ours: mrcfile, tifffile, h5py, scipy; RosettaSciIO where it is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from scipy import ndimage
from scipy.io import loadmat

from aet_stream.cli import main
from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.readers import open_source
from aet_stream.reconstruct.export import export, write_tiff, write_volume
from aet_stream.reconstruct.run import Options, reconstruct
from tests.test_reconstruct import views_of, write_series

#: (right of the axis, above the middle of its slice, slice, brightness): no turn brings these four onto their mirror image.
ATOMS = ((-13.0, -4.0, 6.0, 1.0), (11.0, -7.0, 17.0, 2.0), (3.0, 12.0, 28.0, 3.0), (-4.0, -9.0, 40.0, 4.0))
HEIGHT, WIDTH = 47, 44
TILTS_DEG = np.linspace(-70, 70, 29)
PIXEL_NM = 0.04


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the phantom's series, in no order of tilts, and its volume."""
    order = np.random.default_rng(7).permutation(len(TILTS_DEG))
    views = views_of(ATOMS, TILTS_DEG, width=WIDTH, height=HEIGHT)
    series = write_series(tmp_path_factory.mktemp("hand") / "s" / "series.h5", views[order], TILTS_DEG[order])
    reconstruct(series, Options(iterations=12, align=(), quality=False, threads=1))
    return series.parent


def places(image: Array) -> Array:
    """(4, dimensions) centres of mass of the four atoms, the faintest first."""
    labels, count = ndimage.label(image > 0.12 * image.max())
    assert count == 4
    weights = ndimage.sum_labels(image, labels, range(1, 5))
    return np.array(ndimage.center_of_mass(image, labels, range(1, 5)))[np.argsort(weights)]


def specimen(x: Array, y: Array, z: Array) -> Array:
    """(4, 3) from coordinates of a right-handed system: what no turn and no shift changes, the atoms' distances and their hand."""
    points = np.stack([x, y, z], axis=1)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]
    return np.array([*distances, np.cbrt(np.linalg.det(points[1:] - points[0]))])


TRUTH = specimen(*(np.array(values) for values in zip(*((x, -row, high) for x, high, row, _ in ATOMS), strict=True)))
"""To the right, upwards, towards who looks along the beam."""


def from_volume(volume: Array, axes: str) -> Array:
    """The specimen in a volume whose axes are named, slowest first; in capitals where they count the other way."""
    found = {name.lower(): values * (-1 if name.isupper() else 1) for name, values in zip(axes, places(volume).T, strict=True)}
    return specimen(found["x"], found["y"], found["z"])


def from_stack(stack: Array, tilts_deg: Array, *, rows_up: bool, along_x: bool = False) -> Array:
    """The specimen of which an image at a tilt of t shows a point at x cos t + z sin t, across an axis along y (or x).

    That is how IMOD's `tilt` sees a stack whose y counts up, and tomviz one whose axis lies along x.
    """
    seen = np.array([places(image) for image in stack])  # (tilts, 4, [row, column])
    along, across = (seen[..., 1], seen[..., 0]) if along_x else (seen[..., 0], seen[..., 1])
    theta = np.radians(tilts_deg)
    x, z, _ = np.linalg.lstsq(np.stack([np.cos(theta), np.sin(theta), np.ones_like(theta)], 1), across, rcond=None)[0]
    along = along.mean(axis=0)
    # Right-handed: about the axis along x, y takes the place of x, and x that of -y.
    return specimen(along, x, z) if along_x else specimen(x, along if rows_up else -along, z)


def is_truth(found: Array) -> bool:
    """Within half a pixel, and of the same hand."""
    return bool(np.abs(found - TRUTH).max() < 0.5)


def mrc(path: Path) -> Array:
    with mrcfile.open(path) as file:
        assert file.voxel_size.x == pytest.approx(10 * PIXEL_NM)
        return np.array(file.data)


def emd(path: Path) -> Array:
    with h5py.File(path) as file:
        return file["data/tomography/data"][()]


def hdf5(path: Path) -> Array:
    with h5py.File(path) as file:
        return file["reconstruction/volume"][()]


@pytest.mark.parametrize(
    ("name", "read", "axes"),
    [
        ("v.mrc", mrc, "zyx"),
        ("v.REC", mrc, "zyx"),
        ("v.map", mrc, "zyx"),
        ("v.tif", tifffile.imread, "ZYx"),
        ("v.mat", lambda path: loadmat(path)["volume"], "XYz"),
        ("v.emd", emd, "xyz"),
        ("reconstruction.h5", hdf5, "YZx"),
    ],
)
def test_a_volume_keeps_its_hand_in_every_form(files: Path, tmp_path: Path, name: str, read: Callable[[Path], Array], axes: str) -> None:
    """MRC and EMD count y upwards and z towards who looks; the others show row 0 on top, page 0 nearest."""
    path = files / name
    if not path.exists():
        path = export(files / "reconstruction.h5", tmp_path / name)[0]
    assert is_truth(from_volume(read(path), axes))
    assert not is_truth(from_volume(read(path), axes.swapcase()))  # the mirror image is told apart


def test_a_series_keeps_its_hand_in_every_form(files: Path, tmp_path: Path) -> None:
    """What IMOD, tomviz or anybody makes of stack and tilts is the specimen, and never its mirror image."""
    assert main(["export", str(files / "series.h5"), str(tmp_path / "s.st")]) == 0
    tilts_deg = np.loadtxt(tmp_path / "s.rawtlt")
    assert is_truth(from_stack(mrc(tmp_path / "s.st"), tilts_deg, rows_up=True))
    assert not is_truth(from_stack(mrc(tmp_path / "s.st"), tilts_deg, rows_up=False))
    for name in ("s.tif", "s.mat", "s.emd"):
        export(files / "series.h5", tmp_path / name)
    assert is_truth(from_stack(tifffile.imread(tmp_path / "s.tif"), tilts_deg, rows_up=False))
    angles = loadmat(tmp_path / "s_angles.mat")["angles"]
    projections = loadmat(tmp_path / "s.mat")["projections"][::-1].transpose(2, 1, 0)
    assert is_truth(from_stack(projections, angles[:, 1], rows_up=False))
    with h5py.File(tmp_path / "s.emd") as file:
        assert is_truth(from_stack(emd(tmp_path / "s.emd"), file["data/tomography/dim1"][()], rows_up=True, along_x=True))
    with h5py.File(files / "series.h5") as file:
        assert is_truth(from_stack(file["/exchange/data"][()], file["/exchange/theta"][()], rows_up=False))


# -- MRC, TIFF ------------------------------------------------------------------------------------------------------------------------


def test_an_mrc_file_says_which_way_up_it_is(files: Path, tmp_path: Path) -> None:
    """In a label of its header, where IMOD's `header` prints it; and mrcfile finds nothing wrong."""
    for source, words in (("reconstruction.h5", "first section farthest"), ("series.h5", "tilt axis along y")):
        path = export(files / source, tmp_path / f"{source}.mrc")[0]
        with mrcfile.open(path) as file:
            assert any("first row lowest" in label and words in label for label in file.get_labels())
        assert mrcfile.validate(path)


def test_what_comes_back_by_mrc_is_turned_by_flip_y(files: Path, tmp_path: Path) -> None:
    """Readers take rows as they lie, as ever; `orientation.flip_y` gives the very pixels that were exported."""
    source = open_source(export(files / "series.h5", tmp_path / "s.mrc")[0])
    back = np.concatenate([source.frames(image) for image in range(source.probe.images)])
    np.testing.assert_array_equal(back[:, ::-1], views_of(ATOMS, TILTS_DEG, width=WIDTH, height=HEIGHT))


def test_the_tilts_of_one_export_do_not_hinder_the_next(files: Path, tmp_path: Path) -> None:
    """`s.mrc` after `s.tif` finds the `.rawtlt` that it would write; one that says something else is refused as ever."""
    for name in ("s.tif", "s.mrc", "s.ST"):
        export(files / "series.h5", tmp_path / name)
    (tmp_path / "s.rawtlt").write_text("-60\n")
    with pytest.raises(ReconstructionError, match=r"s\.rawtlt is there already"):
        export(files / "series.h5", tmp_path / "s.map")
    assert not (tmp_path / "s.map").exists()


@pytest.mark.parametrize("limit", [100_000, None])
def test_a_tiff_that_could_not_count_its_bytes_is_a_bigtiff(tmp_path: Path, limit: int | None) -> None:
    """The same pages with the same scale; pages of a BigTIFF are there one by one, without a warning."""
    pages = np.arange(7 * 64 * 64, dtype=np.float32).reshape(7, 64, 64)
    write_tiff(pages, PIXEL_NM, tmp_path / "s.tif", **({} if limit is None else {"limit_bytes": limit}))
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert (file.is_bigtiff, file.is_imagej) == (limit is not None, limit is None)
        assert (len(file.pages), file.series[0].shape) == (7, (7, 64, 64))
        tags = file.pages[0].tags
        per_unit = tags["XResolution"].value[0] / tags["XResolution"].value[1]
        assert (per_unit, tags["ResolutionUnit"].value) == ((1e7 / PIXEL_NM, 3) if limit else (pytest.approx(1 / PIXEL_NM), 1))
        np.testing.assert_array_equal(file.asarray(), pages)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiff_of_more_than_4_gib(tmp_path: Path) -> None:
    """Every page is there; for real."""
    volume = np.broadcast_to(np.arange(1025, dtype=np.float32)[:, None, None], (1025, 1024, 1024))
    write_volume(volume.transpose(1, 0, 2), PIXEL_NM, tmp_path / "v.tif")
    with tifffile.TiffFile(tmp_path / "v.tif") as file:
        assert len(file.pages) == 1025
        assert (file.pages[1024].asarray() == 1024).all()


# -- EMD ------------------------------------------------------------------------------------------------------------------------------


def test_an_emd_file_is_what_tomviz_writes(files: Path, tmp_path: Path) -> None:
    """Its groups, names, types and units, as in tomviz/EmdFormat.cxx; lengths start at 0."""
    for source, first in (("series.h5", ("angles", "[deg]")), ("reconstruction.h5", ("x", "[n_m]"))):
        with h5py.File(export(files / source, tmp_path / f"{source}.emd")[0]) as file:
            assert (file.attrs["version_major"], file.attrs["version_minor"]) == (0, 2)
            group = file["data/tomography"]
            assert group.attrs["emd_group_type"] == 1
            dims = [group[f"dim{number}"] for number in (1, 2, 3)]
            assert [dim.shape[0] for dim in dims] == list(group["data"].shape)
            assert all(dim.dtype == np.float32 for dim in dims)
            assert (dims[0].attrs["name"], dims[0].attrs["units"]) == first
            assert [dim.attrs["units"] for dim in dims[1:]] == ["[n_m]", "[n_m]"]
            assert (dims[1][0], dims[1][1]) == (0, np.float32(PIXEL_NM))
            if first[0] == "angles":
                np.testing.assert_allclose(dims[0][()], TILTS_DEG, atol=1e-5)


def test_our_own_reader_takes_an_emd_file_with_its_tilts(files: Path, tmp_path: Path) -> None:
    """Also with the second name that tomviz gives its data; `orientation.transpose` turns it to where it was."""
    path = export(files / "series.h5", tmp_path / "s.EMD")[0]
    with h5py.File(path, "r+") as file:
        file["data/tomography/tomviz_scalars/ImageScalars"] = h5py.SoftLink("/data/tomography/data")
    source = open_source(path)
    assert [source.acquisition(image).tilt_deg for image in range(29)] == pytest.approx(TILTS_DEG.tolist(), abs=1e-5)
    assert source.acquisition(0).pixel_size_nm == pytest.approx(PIXEL_NM)
    back = np.concatenate([source.frames(image) for image in range(29)])
    np.testing.assert_array_equal(back.swapaxes(1, 2), views_of(ATOMS, TILTS_DEG, width=WIDTH, height=HEIGHT))


@pytest.mark.skipif(find_spec("rsciio") is None, reason="RosettaSciIO is not installed")
@pytest.mark.parametrize(("name", "plain"), [("s.emd", lambda path: emd(path).T), ("s.mrc", mrc), ("s.tif", tifffile.imread)])
@pytest.mark.filterwarnings("ignore")
def test_rosettasciio_takes_pixels_and_scale(files: Path, tmp_path: Path, name: str, plain: Callable[[Path], Array]) -> None:
    """And so does HyperSpy. It turns the axes of every Berkeley EMD round, and knows no unit of ImageJ's but microns."""
    reader = import_module(f"rsciio.{dict(emd='emd', mrc='mrc', tif='tiff')[name[2:]]}")
    path = export(files / "series.h5", tmp_path / name)[0]
    (signal,) = reader.file_reader(str(path))
    np.testing.assert_array_equal(np.asarray(signal["data"]), plain(path))
    lengths = [axis for axis in signal["axes"] if axis["name"] in ("x", "y", "width", "height")]
    assert len(lengths) == 2
    assert [axis["scale"] for axis in lengths] == pytest.approx([PIXEL_NM] * 2)
    assert {axis["units"] for axis in lengths} == {None if name == "s.tif" else "nm"}


@pytest.fixture(scope="module")
def excluded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series that shows edition 3, of whose four projections one is excluded and one superseded."""
    tilts_deg = np.array([0.0, 3.0, 6.0, 9.0, 12.0])
    views = np.ones((5, 6, 7), np.float32) * np.arange(5, dtype=np.float32)[:, None, None]
    marks = {"excluded": np.array([0, 1, 0, 0, 0], np.uint8), "superseded": np.array([0, 0, 1, 0, 0], np.uint8)}
    series = write_series(tmp_path_factory.mktemp("excluded") / "s" / "series.h5", views, tilts_deg, **marks)
    with h5py.File(series, "r+") as file:
        file.require_group("/aet/series").attrs["edition"] = 3
    return series


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("suffix", [".mrc", ".tif", ".emd"])
def test_an_export_says_its_edition_and_keeps_what_is_excluded_if_asked(tmp_path: Path, excluded: Path, suffix: str, keep: bool) -> None:
    """Superseded projections stay out; the edition stands where each form has room for words."""
    target = tmp_path / f"s{suffix}"
    assert main(["export", str(excluded), str(target), *(["--keep-excluded"] if keep else [])]) == 0
    if suffix == ".mrc":
        with mrcfile.open(target) as file:
            shown, said = file.data[:, 0, 0].tolist(), " ".join(file.get_labels())
    elif suffix == ".tif":
        with tifffile.TiffFile(target) as file:
            shown, said = file.asarray()[:, 0, 0].tolist(), f"edition {file.imagej_metadata['edition']}"
    else:
        with h5py.File(target) as file:
            shown, said = file["data/tomography/data"][:, 0, 0].tolist(), f"edition {file['data/tomography'].attrs['edition']}"
    assert shown == ([0, 1, 3, 4] if keep else [0, 3, 4])
    assert "edition 3" in said


def test_what_is_excluded_has_no_place_in_a_volume(excluded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(excluded), str(tmp_path / "s.mrc"), "--aligned", str(tmp_path / "reconstruction.h5"), "--keep-excluded"]
    assert main(words) == 1
    assert "--keep-excluded does not go with --aligned" in capsys.readouterr().err
