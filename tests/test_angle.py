"""Tilts: from metadata, sidecar and name; never guessed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from aet_stream.config import Angle
from aet_stream.projection import Acquisition, Candidate
from aet_stream.readers.angle import from_name, resolve


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
        ("-60deg/image.tif", None),
    ],
)
def test_the_default_expression_finds_signed_numbers_before_deg_and_nothing_else(name: str, tilt: float | None) -> None:
    """Dates, counters and unsigned numbers without a unit are no tilts; nor is the name of a folder."""
    assert [found.tilt_deg for found in from_name(name, Angle())] == ([] if tilt is None else [tilt])


@pytest.mark.parametrize(
    ("name", "tilt"),
    [
        ("tomo_n12p5deg.tif", -12.5),
        ("tilt_N60deg.tif", -60.0),
        ("tilt_-60p5deg.tif", -60.5),
        ("Pt NP (-12,5deg).tif", -12.5),
        ("Pt NP (\u221212.5deg).tif", -12.5),
        ("tilt-12.5deg.tif", -12.5),
        ("tilt12.5deg.tif", 12.5),
        ("image_003+12.5deg.tif", 12.5),
        ("image_003_5deg.tif", 5.0),
        ("step-3_-66deg.tif", -66.0),
        ("cryo_25degC_-3deg.tif", -3.0),
        ("image_003-12.5deg.tif", math.nan),
        ("v1.2-12deg.tif", math.nan),
        ("two.5.5deg.tif", math.nan),
        ("tilt_-12_5deg.tif", math.nan),
        ("tilt - 12.5deg.tif", math.nan),
        ("x_\u201312.5deg.tif", math.nan),
        ("x_~60deg.tif", math.nan),
        ("x_+-5deg.tif", math.nan),
        ("x_--5deg.tif", math.nan),
        ("neg12.5deg.tif", math.nan),
        ("minus12deg.tif", math.nan),
        ("tilt_0n60p0deg.tif", math.nan),
        ("x_1e1deg.tif", math.nan),
        ("rot90deg_001.tif", math.nan),
        ("cryo_25degC_0001.tif", None),
    ],
)
def test_by_default_a_name_that_may_mean_something_else_holds(name: str, tilt: float | None) -> None:
    """No sign is lost and no digit: what is not plainly a number is said to be none."""
    stated, hold = resolve(known(None), (), name, 1, Angle())
    if tilt is None or math.isnan(tilt):
        assert ("no tilt angle" if tilt is None else "which is no number") in str(hold)
    else:
        assert ([candidate.tilt_deg for candidate in stated], hold) == ([tilt], None)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("NP_2deg_step_001.tif", "2deg_step"),
        ("NP_2deg-Steps.tif", "2deg-Steps"),
        ("2.5deg per image 003.tif", "2.5deg per"),
        ("NP_scan_90deg.tif", "scan_90deg"),
        ("NP_scan_0deg.tif", "scan_0deg"),
        ("np (rot = 90deg).tif", "rot = 90deg"),
        ("np_ROT-12deg.tif", "ROT-12deg"),
        ("np_rotation_n12deg.tif", "rotation_n12deg"),
        ("np_90deg_cw.tif", "90deg_cw"),
        ("np_psi_30deg.tif", "psi_30deg"),
        ("every 2deg.tif", "every 2deg"),
        ("np_rotation_angle_90deg.tif", "rotation_angle_90deg"),
        ("np rotated by 90deg.tif", "rotated by 90deg"),
        ("np_Step-Size_2deg_007.tif", "Step-Size_2deg"),
        ("np_increment of 2deg.tif", "increment of 2deg"),
        ("np_2deg_tilt_steps_007.tif", "2deg_tilt_steps"),
        ("np_beta_-5deg.tif", "beta_-5deg"),
    ],
)
def test_the_word_beside_a_number_may_make_it_no_tilt(name: str, seen: str) -> None:
    """A step, a scan direction, an angle of another axis: held, with what was seen; and it is a tilt if a person takes the word out."""
    _, hold = resolve(known(None), (), name, 1, Angle())
    assert f"the filename says {seen!r}, which is no tilt by the word beside the number" in str(hold)
    word = next(word for word in Angle().no_tilt_words if word in re.split(r"[\W\d_]+", seen.lower()))
    left = tuple(other for other in Angle().no_tilt_words if other != word)
    assert "no tilt by the word" not in str(resolve(known(None), (), name, 1, Angle(no_tilt_words=left))[1])


@pytest.mark.parametrize(
    ("name", "tilt"),
    [
        ("np_30deg.tif", 30.0),
        ("scan_012_-34.5deg.tif", -34.5),
        ("step-3_-66deg.tif", -66.0),
        ("footstep_12deg.tif", 12.0),
        ("12deg_rotor.tif", 12.0),
        ("alpha_12deg_image3.tif", 12.0),
        ("scan_3_tilt_angle_12deg.tif", 12.0),
        ("by_size_12deg.tif", 12.0),
        ("size of np_12deg tilt.tif", 12.0),
    ],
)
def test_words_elsewhere_in_a_name_change_nothing(name: str, tilt: float) -> None:
    """With a number between, or as a part of a longer word."""
    stated, hold = resolve(known(None), (), name, 1, Angle())
    assert ([candidate.tilt_deg for candidate in stated], hold) == ([tilt], None)


def test_the_name_of_the_axis_that_is_tilted_is_no_word_against_it() -> None:
    assert resolve(known(None), (), "np_beta_-5deg.tif", 1, Angle(axis="beta"))[1] is None
    assert "no tilt by the word" in str(resolve(known(None), (), "np_alpha_-5deg.tif", 1, Angle(axis="beta"))[1])


def test_a_number_that_is_no_tilt_by_its_name_still_disagrees_with_one_that_is_another() -> None:
    """The file says 0 and may know nothing: which of them is meant is for a person. Where both say the same there is nothing to ask."""
    assert "sources disagree" in str(resolve(known(0.0), (), "np_scan_30deg.dm4", 1, Angle())[1])
    assert resolve(known(30.0), (), "np_scan_30deg.dm4", 1, Angle())[1] is None


def known(tilt_deg: float | None) -> Acquisition:
    return Acquisition(tilt_deg=tilt_deg, tilt_raw=str(tilt_deg))


def test_the_file_is_believed_before_sidecar_and_name_and_all_are_kept() -> None:
    """Order of precedence: metadata, sidecar, file name."""
    beside = Candidate("sidecar", "TiltAngle = 10.1", 10.1)
    found, hold = resolve(known(10.0), (beside,), "x_+10.2deg.tif", 1, Angle())
    assert [candidate.source for candidate in found] == ["metadata", "sidecar", "filename"]
    assert hold is None


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
    assert words in str(hold)


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


SERIALEM = r"\[(?P<angle>[+-]?\d+\.\d+)\]"
LETTERS = r"_(?P<angle>[npm]\d+(?:[p.,]\d+)?)_"


@pytest.mark.parametrize(
    ("regex", "name", "tilt"),
    [
        (LETTERS, "X_n12.3_Y.tif", -12.3),
        (LETTERS, "X_n12p5_Y.tif", -12.5),
        (LETTERS, "X_p45p5_Y.tif", 45.5),
        (LETTERS, "X_m7,25_Y.tif", -7.25),
        (r"alpha=(?P<angle>[+-]?\d+(?:,\d+)?)", "HAADF alpha=-7,2.dm4", -7.2),
        (SERIALEM, "Pos_1_001[-60.00]_Mar.mrc", -60.0),
        (SERIALEM, "grid2.5_series.1[-3.50].mrc", -3.5),
        (r"(?P<sign>[+-])(?P<angle>\d+)deg", "step-3_-66deg.tif", -66.0),
        (r"name_\d+_(?P<angle>-?\d+)_", "name_03_-60_00_123456.mrc", -60.0),
    ],
)
def test_every_way_of_writing_a_tilt_in_a_name(regex: str, name: str, tilt: float) -> None:
    """Signs as letters, decimal commas, `p` for the point, two dots in a name, negative steps: as configured, never otherwise."""
    stated, hold = resolve(known(None), (), name, 1, Angle(filename_regex=regex))
    assert (stated[0].tilt_deg, hold) == (tilt, None)
    assert stated[0].raw in name


def test_a_name_that_says_two_things_is_held() -> None:
    """tilt_10deg_rot_90deg: whoever takes the first has guessed."""
    _, hold = resolve(known(None), (), "tilt_10deg_rot_90deg.tif", 1, Angle())
    assert "disagree" in str(hold)


@pytest.mark.parametrize(
    ("rules", "acquisition", "tilt", "words"),
    [
        (Angle(filename_regex=r"a(?P<angle>\d\.\d)", filename_unit="rad"), Acquisition(), math.degrees(0.5), ""),
        (Angle(), Acquisition(tilt_deg=math.degrees(-0.2), tilt_raw="-0.2 rad", tilt_unit="rad"), math.degrees(-0.2), ""),
        (Angle(), Acquisition(tilt_deg=0.5, tilt_raw="0.5 ?", tilt_unit="?"), None, "not whether in degrees or radians"),
        (Angle(metadata_unit="rad"), Acquisition(tilt_deg=0.5, tilt_raw="0.5 ?", tilt_unit="?"), math.degrees(0.5), ""),
        (Angle(metadata_unit="deg"), Acquisition(tilt_deg=math.degrees(30.0), tilt_raw="30 rad", tilt_unit="rad"), 30.0, ""),
        (Angle(axis="beta"), Acquisition(tilt_deg=1.0, tilt_beta_deg=20.0), 20.0, ""),
        (Angle(axis="beta", order=("metadata",)), Acquisition(tilt_deg=1.0), None, "no tilt angle"),
        (Angle(order=("filename",), filename_regex=r"a(?P<angle>\d\.\d)"), Acquisition(tilt_deg=0.0, tilt_raw="0"), 0.5, ""),
    ],
)
def test_units_axis_and_order_are_a_matter_of_settings(rules: Angle, acquisition: Acquisition, tilt: float | None, words: str) -> None:
    """Radians, the second stage axis, a source that is not believed: said once in the configuration."""
    stated, hold = resolve(acquisition, (), "x_a0.5.tif", 1, rules)
    if words:
        assert words in str(hold)
    else:
        assert (stated[0].tilt_deg, hold) == (pytest.approx(tilt), None)


def test_why_a_sidecar_says_nothing_stands_in_the_reason() -> None:
    """`x.emi` is there, but its stage was never read: the person who releases the projection wants to know."""
    _, hold = resolve(known(None), (), "x.ser", 1, Angle(), remark="x.emi: the stage reads 0 on every axis, so it was not read at all")
    assert "not read at all" in str(hold)


def test_what_is_not_planned_is_held(tmp_path: Path) -> None:
    """A plan in CSV, with decimal commas and after the sign was turned."""
    from aet_stream.errors import ConfigError
    from aet_stream.readers.plan import load_plan, missing

    path = tmp_path / "plan.csv"
    path.write_text("number;tilt (deg)\n1;-30,0\n2;0,0\n3;30,0\n")
    plan = load_plan(str(path))
    assert plan == (-30.0, 0.0, 30.0)
    rules = Angle(scale=-1.0, filename_regex="")
    assert resolve(known(29.8), (), "x", 1, rules, plan=plan)[1] is None
    assert "not in the tilt plan (nearest: 30 deg" in str(resolve(known(-25.0), (), "x", 1, rules, plan=plan)[1])
    assert missing([-29.9], plan, 0.5) == [0.0, 30.0]
    path.write_text("tilt\n-30\nlater\n")
    with pytest.raises(ConfigError, match="later"):
        load_plan(str(path))
    assert load_plan("") == ()
