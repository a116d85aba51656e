"""What an earlier version has written goes on: in `fixtures/ff3bcd80.tar.xz`, series open and closed and a ledger, as a kill left them.

What scripts have read of its status is still said.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aet_stream import layout
from aet_stream.hub.ledger import Ledger, summary
from aet_stream.series import Series
from aet_stream.status import Totals
from tests.harness import plain_rows, put, running, wait_for
from tests.test_queue import Desk

FIXTURE = Path(__file__).parents[1] / "fixtures" / "ff3bcd80.tar.xz"
STATUS = FIXTURE.with_name("status_ff3bcd80.json")
"""What `aet-stream status --json` of that version said."""


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
    """Read and written again, every name, type and value of a projection file is the same; what is new has a name of its own."""
    for path in sorted(earlier.glob("*/projections/0*.h5")):
        record, planes = layout.read_projection(str(path))
        again = tmp_path / "again.h5"
        again.write_bytes(layout.projection_image(record, planes))
        before, after = values_of(path), values_of(again)
        before.pop("record_sha256")  # of the new ones, too
        assert repr(before) == repr({name: after[name] for name in before})  # NaN is itself there


@pytest.mark.parametrize("series", ["done", "open", "means"])
def test_its_series_verify(earlier: Path, series: str) -> None:
    """Open and closed ones, with superseded rows and means of several frames."""
    with Series(earlier / series / "series.h5") as found:
        doubts = list(found.doubts())
    assert doubts == []


def test_it_goes_on_and_closes(earlier: Path) -> None:
    """What a kill cut off is taken up, a copy is known, a new image is a new row; both series close, and every row is as it was."""
    before = {name: plain_rows(earlier / name / "series.h5") for name in ("done", "open", "means")}
    desk = Desk(earlier)
    ledger = desk.core.ledger
    assert {row["name"]: (row["state"], row["stored"]) for row in ledger.series()} == {
        "done": ("closed", 3),
        "open": ("open", 6),  # one more than the ledger knew, and shown already
        "means": ("open", 2),
    }
    assert [row.path for row in ledger.in_state("held")] == ["open/untold.npy"]
    assert [row.path for row in ledger.in_state("quarantined")] == ["open/broken.npy"]
    assert sorted(row["sink"] for row in desk.core.outbox.listed("pending")) == ["reconstruct", "report"]
    desk.pixels["open/new.tif"] = np.arange(120, dtype="<u2").reshape(12, 10)
    desk.store("new", folder="open")
    for name in ("open", "means"):
        desk.obey("close", series=name)
    desk.run()
    assert {row["name"]: (row["state"], row["stored"]) for row in ledger.series()} == {
        "done": ("closed", 3),
        "open": ("closed", 7),
        "means": ("closed", 2),
    }
    desk.core.close()
    for name, rows in before.items():
        with Series(earlier / name / "series.h5") as found:
            assert list(found.doubts()) == []
        after = plain_rows(earlier / name / "series.h5")
        assert rows.items() <= after.items()
        assert len(after) == len(rows) + (name == "open")


def test_its_status_can_be_read_without_a_daemon(earlier: Path) -> None:
    """Before the new version has written anything."""
    ledger = Ledger(earlier / "ledger.sqlite", read_only=True)
    assert summary(ledger).totals == Totals(stored=10, held=1, quarantined=1, duplicates=1)
    ledger.close()


def missing(before: Any, now: Any, at: str = "") -> list[str]:
    """Places of an earlier JSON that a later one lacks, or has with another type; of a list the first item stands for all."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [place for key in before for place in (missing(before[key], now[key], f"{at}/{key}") if key in now else [f"{at}/{key}"])]
    if isinstance(before, list) and isinstance(now, list):
        return missing(before[0], now[0], f"{at}/0") if before and now else [at] * bool(before)
    number = (int, float)
    alike = type(before) is type(now) or (type(before) in number and type(now) in number)
    return [] if alike else [at]


def test_the_json_of_its_status_is_still_there(tmp_path: Path) -> None:
    """Key by key, of the same images: stored, held, quarantined. What the watch left out has its own place now."""
    with running(tmp_path, monitor__enabled=True, monitor__port=0) as daemon:
        for index in range(3):
            put(daemon.root / "np", index, 10.0 * index)
        put(daemon.root / "np", 3, None)
        (daemon.root / "np" / "broken_+50.0deg.tif").write_bytes(b"II*\0 no image")
        daemon.wait_for_totals(stored=3, held=1, quarantined=1)
        before = json.loads(STATUS.read_text())
        wait_for(lambda: before["roles"].keys() <= daemon.status()["roles"].keys(), what="every role to be heard")
        now = json.loads(daemon.ask("status", "--json").stdout)
    assert missing(before, now) == ["/roles/watch/status/ignored"]
    assert "left_out" in now
