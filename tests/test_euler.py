"""The pair of files that GENFIRE and RESIRE take, both ways, judged by Octave with nothing but their published geometry."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from aet_stream.config import Orientation
from aet_stream.projection import Array
from aet_stream.readers import open_source
from aet_stream.reconstruct.aligned import Aligned
from aet_stream.reconstruct.axis_search import NEAR_DEG, search
from aet_stream.reconstruct.export import export
from aet_stream.reconstruct.run import Options, reconstruct
from tests.test_exports import places
from tests.test_reconstruct import write_series
from tests.test_sidecars import looked
from tests.test_tilt_axis import ATOMS, TILTS_DEG, atoms, series_of

pytestmark = pytest.mark.skipif(shutil.which("octave-cli") is None, reason="Octave is not installed")

WEIGHTS = np.array([atom[3] for atom in ATOMS])
THEIRS = np.array([(-across, along, above) for across, above, along, _ in ATOMS])
"""x, y, z of the atoms as GENFIRE and RESIRE have them: against our columns, along our rows, towards who looks."""
GEOMETRY = """
about = @(v, t) cosd(t) * eye(3) + sind(t) * [0 -v(3) v(2); v(3) 0 -v(1); -v(2) v(1) 0] + (1 - cosd(t)) * v * v';
looks = @(a) (about([0;0;1], a(1)) * about([0;1;0], a(2)) * about([1;0;0], a(3)))';
spot = @(d, q, c) exp(-((1:d(1))' - c(1) - q(1)) .^ 2 / 8) * exp(-((1:d(2)) - c(2) - q(2)) .^ 2 / 8);
function image = seen(spot, R, points, weights, d, c)
  image = zeros(d);
  for k = 1:columns(points)
    image += weights(k) * spot(d, R * points(:, k), c);
  end
end
"""
"""R = (Rz(phi) Ry(theta) Rx(psi))', a point seen at the first two of R p; from the text of RESIRE's and GENFIRE's own programs."""


def octave(folder: Path, lines: str) -> None:
    done = subprocess.run(["octave-cli", "--quiet", "--eval", GEOMETRY + lines], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def likeness(folder: Path, name: str, *, after_middle: bool) -> Array:
    """(2, tilts) correlation of the projections with what their angles ask for: of the atoms, and of their mirror image.

    Parameters
    ----------
    after_middle : their middle, at N / 2 + 1; else that of the image, at (N + 1) / 2
    """
    savemat(folder / "truth.mat", {"points": THEIRS.T, "weights": WEIGHTS})
    middle = "floor(d / 2) + 1" if after_middle else "(d + 1) / 2"
    octave(
        folder,
        f"""
load('truth.mat'); projections = importdata('{name}.mat'); angles = importdata('{name}_angles.mat');
d = size(projections)(1:2); c = {middle};
like = zeros(2, rows(angles));
for i = 1:rows(angles)
  for hand = 1:2
    image = seen(spot, looks(angles(i, :)), points .* [1; 1; 3 - 2 * hand], weights, d, c);
    like(hand, i) = corr(image(:), projections(:, :, i)(:));
  end
end
save('-v7', 'like.mat', 'like');
""",
    )
    found: Array = loadmat(folder / "like.mat")["like"]
    return found


@pytest.mark.parametrize("axis_deg", [0.0, -90.0, 90.0, 12.0, 160.0])
def test_what_is_exported_is_seen_where_their_angles_say(tmp_path: Path, axis_deg: float) -> None:
    """Wherever the axis lies in the images: nothing is resampled, right angles are turned, the rest stands in the angles."""
    export(series_of(tmp_path, atoms(axis_deg, shape=(66, 61)), axis_deg), tmp_path / "s.mat")
    as_they_are, mirrored = likeness(tmp_path, "s", after_middle=False)
    assert as_they_are.min() > 0.99
    assert mirrored.min() < 0.9


@pytest.mark.parametrize("crop_px", [(60, 58), (59, 57), (56, 56)])
def test_what_is_aligned_lies_in_their_middle(tmp_path: Path, crop_px: tuple[int, int]) -> None:
    """Odd or even: half a pixel off would cost atoms. The axis in the angles is where it always is."""
    series = series_of(tmp_path, atoms(12.0), 12.0)
    volume = reconstruct(series, Options(iterations=3, align=(), quality=False, threads=1))
    export(series, tmp_path / "a.mat", aligned=Aligned(volume, bin=1, crop_px=crop_px))
    as_they_are, mirrored = likeness(tmp_path, "a", after_middle=True)
    assert as_they_are.min() > 0.99
    assert likeness(tmp_path, "a", after_middle=False)[0].min() < as_they_are.min() or crop_px == (59, 57)
    assert mirrored.min() < 0.9
    np.testing.assert_array_equal(loadmat(tmp_path / "a_angles.mat")["angles"][:, 1], TILTS_DEG)


@pytest.mark.parametrize("beside", [False, True])
def test_their_files_keep_axis_and_hand(tmp_path: Path, beside: bool) -> None:
    """Read, made into a volume and exported: the specimen where it was, in their frame; and of the series the very same pair."""
    savemat(tmp_path / "truth.mat", {"points": THEIRS.T, "weights": WEIGHTS, "tilts": TILTS_DEG})
    together = "save('-v7', 'projections.mat', 'projections');" + (
        "save('-v7', 'angles.mat', 'angles');" if beside else "save('-v7', 'projections.mat', 'projections', 'angles');"
    )
    octave(
        tmp_path,
        f"""
load('truth.mat'); angles = [0 * tilts; tilts; 0 * tilts]'; projections = zeros(61, 65, columns(tilts));
for i = 1:columns(tilts)
  projections(:, :, i) = seen(spot, looks(angles(i, :)), points, weights, [61 65], [31 33]);
end
projections = single(projections);
{together}
""",
    )
    source = open_source(tmp_path / "projections.mat")
    said = [unit.acquisition for unit in looked(tmp_path / "projections.mat").units]
    views = np.concatenate([source.frames(image) for image in range(source.probe.images)])
    axes_deg = np.array([Orientation().axis_deg(one.tilt_axis_deg) for one in said])
    series = write_series(tmp_path / "s" / "series.h5", views, TILTS_DEG, tilt_axis_deg=axes_deg)
    volume = reconstruct(series, Options(iterations=12, align=(), quality=False, threads=1))
    with h5py.File(volume) as file:
        assert not file["reconstruction/quality"].attrs["axis_doubt"]
    export(volume, tmp_path / "v.mat")
    found = loadmat(tmp_path / "v.mat")["volume"]
    np.testing.assert_allclose(places(found) - (np.array(found.shape) - 1) / 2, THEIRS, atol=0.5)
    export(series, tmp_path / "s.mat")
    np.testing.assert_array_equal(loadmat(tmp_path / "s.mat")["projections"], loadmat(tmp_path / "projections.mat")["projections"])
    np.testing.assert_array_equal(loadmat(tmp_path / "s_angles.mat")["angles"][:, 1], TILTS_DEG)


def test_a_published_series_comes_back_as_it_was(tmp_path: Path, test_data: Path) -> None:
    """Multislice projections of its authors, read with their angles: the axis lies where they say, and is exported there again."""
    for ours, theirs in (("projections", "np1_dose8e3"), ("angles", "angles_deg")):
        (tmp_path / f"{ours}.mat").write_bytes((test_data / "simulated-np" / f"{theirs}.mat").read_bytes())
    source, units = open_source(tmp_path / "projections.mat"), looked(tmp_path / "projections.mat").units
    views = np.concatenate([source.frames(image) for image in range(source.probe.images)]).astype(np.float32)
    tilts_deg = np.array([unit.tilts[0].tilt_deg for unit in units])
    axes_deg = np.array([Orientation().axis_deg(unit.acquisition.tilt_axis_deg) for unit in units])
    assert set(axes_deg) == {-90.0}
    assert abs(search(views - 1, tilts_deg, 0.0).found_deg) == pytest.approx(90, abs=NEAR_DEG)
    export(write_series(tmp_path / "s" / "series.h5", views, tilts_deg, tilt_axis_deg=axes_deg), tmp_path / "s.mat")
    (theirs,) = (values for name, values in loadmat(tmp_path / "projections.mat").items() if not name.startswith("__"))
    np.testing.assert_array_equal(loadmat(tmp_path / "s.mat")["projections"], theirs)
    np.testing.assert_array_equal(loadmat(tmp_path / "s_angles.mat")["angles"], loadmat(tmp_path / "angles.mat")["Angle"])
