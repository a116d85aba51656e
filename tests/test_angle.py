"""Tilts: from metadata, sidecar and name; never guessed."""

from __future__ import annotations

import math

import pytest

from aet_stream.config import Angle
from aet_stream.projection import Acquisition, Candidate
from aet_stream.watch.angle import from_name, resolve


@pytest.mark.parametrize(
    ("name", "tilt"),
    [
        ("probe_012_-34.50deg.tif", -34.5),
        ("X_12.3degree_Y.dm3", 12.3),
        ("FePt_+12.0deg_003.dm4", 12.0),
        ("0deg.npy", 0.0),
        ("a/b/c_-7deg.tif", -7.0),
        ("20261123_HAADF_12.dm3", None),
        ("scan-2026-11-23_003.dm4", None),
        ("TS_01_000_0.0.mrc", None),
        ("two.5.5deg.tif", None),
        ("-60deg/image.tif", None),
    ],
)
def test_the_default_expression_finds_signed_numbers_before_deg_and_nothing_else(name: str, tilt: float | None) -> None:
    """Dates, counters and unsigned numbers without a unit are no tilts; nor is the name of a folder."""
    assert [found.tilt_deg for found in from_name(name, Angle())] == ([] if tilt is None else [tilt])


def known(tilt_deg: float | None) -> Acquisition:
    return Acquisition(tilt_deg=tilt_deg, tilt_raw=str(tilt_deg))


def test_the_file_is_believed_before_sidecar_and_name_and_all_are_kept() -> None:
    """Order of precedence: metadata, sidecar, file name."""
    beside = Candidate("sidecar", "TiltAngle = 10.1", 10.1)
    found, hold = resolve(known(10.0), (beside,), "x_+10.2deg.tif", 1, Angle())
    assert [candidate.source for candidate in found] == ["metadata", "sidecar", "filename"]
    assert hold == ""


@pytest.mark.parametrize(
    ("metadata", "sidecar", "name", "words"),
    [
        (None, None, "x.tif", "no tilt angle"),
        (10.0, None, "x_+10.6deg.tif", "disagree"),
        (None, math.nan, "x.tif", "no number"),
        (1e9, None, "x.tif", "outside"),
        (None, None, "x_1e9deg.tif", ""),
        (None, None, "x_1000000000deg.tif", "outside"),
    ],
)
def test_missing_impossible_or_contradicting_tilts_hold(metadata: float | None, sidecar: float | None, name: str, words: str) -> None:
    """Each with a sentence that says why."""
    beside = () if sidecar is None else (Candidate("sidecar", "TiltAngle = ?", sidecar),)
    _, hold = resolve(known(metadata), beside, name, 1, Angle())
    assert words in hold


def test_the_name_of_a_stack_says_nothing_about_one_image() -> None:
    """A number in the name of a 91-image stack is not the tilt of each."""
    found, hold = resolve(known(None), (), "x_+10deg.dm3", 91, Angle())
    assert found == ()
    assert hold


def test_a_stage_that_counts_the_other_way_is_turned() -> None:
    """angle.scale = -1; zero stays plain zero."""
    found, _ = resolve(known(10.0), (), "x.tif", 1, Angle(scale=-1.0))
    assert found[0].tilt_deg == -10.0
    zero, _ = resolve(known(0.0), (), "x.tif", 1, Angle(scale=-1.0))
    assert math.copysign(1, zero[0].tilt_deg) == 1
