"""What an earlier version has written goes on: in `fixtures/ff3bcd80.tar.xz`, series open and closed and a ledger, as a kill left them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import h5py
import pytest

from aet_stream import layout
from aet_stream.series import Series

FIXTURE = Path(__file__).parents[1] / "fixtures" / "ff3bcd80.tar.xz"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The output folder of the earlier version."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "out"


def values_of(path: Path) -> dict[str, object]:
    """All attributes of a projection file, by plain HDF5."""
    with h5py.File(path, "r") as file:
        return {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}


def test_a_record_is_written_as_it_always_was(earlier: Path, tmp_path: Path) -> None:
    """Read and written again, every name, type and value of a projection file is the same."""
    for path in sorted(earlier.glob("*/projections/0*.h5")):
        record, planes = layout.read_projection(str(path))
        again = tmp_path / "again.h5"
        again.write_bytes(layout.projection_image(record, planes))
        assert repr(sorted(values_of(again).items())) == repr(sorted(values_of(path).items()))  # NaN is itself there


@pytest.mark.parametrize("series", ["done", "open", "means"])
def test_its_series_verify(earlier: Path, series: str) -> None:
    """Open and closed ones, with superseded rows and means of several frames."""
    with Series(earlier / series / "series.h5") as found:
        doubts = list(found.doubts())
    assert doubts == []
