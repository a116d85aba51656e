"""What becomes of an image: by what is said of it, its pixels, and the rows that are there already."""

from __future__ import annotations

import pytest

from aet_stream.config import Series
from aet_stream.judging import Row, Rows, Site, Verdict, judge
from aet_stream.messages import Acquired
from aet_stream.naming import detector_in_name
from aet_stream.projection import Acquisition, Array, Candidate, VisitKey, sha256_of
from aet_stream.reasons import Reason
from tests.harness import known_image

PIXELS = [known_image(index, 32) for index in range(4)]
HERE = Site(Series(), "", "/data")


def acquired(
    name: str, pixels: Array, tilt_deg: float | None = 5.0, *, hold: Reason | None = None, doubt: Reason | None = None, **said: object
) -> Acquired:
    return Acquired(
        visit=VisitKey(f"s/{name}", 0, "1"),
        sha256=sha256_of(pixels),
        acquisition=Acquisition(**said),  # type: ignore[arg-type]
        candidates=() if tilt_deg is None else (Candidate("metadata", "", tilt_deg),),
        hold=hold,
        doubt=doubt,
    )


def _said(verdict: Verdict) -> str:
    return verdict.reason.with_remedy() if verdict.reason else ""


def store(rows: Rows, image: Acquired, pixels: Array, site: Site = HERE, person_deg: float | None = None) -> Verdict:
    """Judge, and make a row of what is to be stored."""
    verdict = judge(image, pixels, rows, site, person_deg)
    if verdict.state == "stored":
        rows.take(Row.of(image, pixels, verdict, site, len(rows)))
    return verdict


def after(first: Acquired, second: Acquired, site: Site = HERE, second_pixels: Array | None = None) -> Verdict:
    """What becomes of `second` in a series that begins with `first`."""
    rows = Rows()
    assert store(rows, first, PIXELS[0], site).state == "stored"
    return store(rows, second, PIXELS[1] if second_pixels is None else second_pixels, site)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (known_image(1, 64), "64 x 64 px of uint16, but the series has 32 x 32 px of uint16"),
        (PIXELS[1].astype("<f4"), "32 x 32 px of float32, but the series has"),
        (PIXELS[1][:, :30], "32 x 30 px"),
    ],
)
def test_another_size_or_type_is_held_whoever_speaks_for_it(pixels: Array, words: str) -> None:
    """A file cannot hold it beside the others: a person's tilt does not help."""
    verdict = after(acquired("a", PIXELS[0]), acquired("b", pixels), second_pixels=pixels)
    assert (verdict.state, words in _said(verdict)) == ("held", True)
    rows = Rows()
    store(rows, acquired("a", PIXELS[0]), PIXELS[0])
    assert store(rows, acquired("b", pixels), pixels, person_deg=7.0).state == "held"


@pytest.mark.parametrize(
    ("first_nm", "second_nm", "state"), [(0.05, 0.02, "held"), (0.05, 0.0503, "stored"), (0.05, 0.0506, "held"), (None, 0.02, "stored")]
)
def test_an_image_at_another_magnification_is_held(first_nm: float | None, second_nm: float, state: str) -> None:
    """Its pixel size differs by more than 1 %; where nothing is known there is nothing to compare."""
    first, second = acquired("a", PIXELS[0], pixel_size_nm=first_nm), acquired("b", PIXELS[1], pixel_size_nm=second_nm)
    verdict = after(first, second)
    assert verdict.state == state
    if state == "held":
        assert f"pixel size {second_nm} nm, but the series has {first_nm} nm" in _said(verdict)


def test_a_person_may_say_that_the_magnification_is_right_all_the_same() -> None:
    """The file's own calibration may be wrong: released, it is stored, and those after it are compared with the series as before."""
    rows = Rows()
    store(rows, acquired("a", PIXELS[0], pixel_size_nm=0.05), PIXELS[0])
    odd = acquired("b", PIXELS[1], pixel_size_nm=0.02)
    assert store(rows, odd, PIXELS[1]).state == "held"
    assert store(rows, odd, PIXELS[1], person_deg=5.0) == Verdict("stored", None, 5.0, "person")
    assert store(rows, acquired("c", PIXELS[2], pixel_size_nm=0.02), PIXELS[2]).state == "held"
    assert store(rows, acquired("d", PIXELS[3], pixel_size_nm=0.05), PIXELS[3]).state == "stored"


def test_what_is_written_again_is_not_compared_with_what_it_replaces() -> None:
    """The first image had a wrong calibration, and was exported again under its name: no other row is there to differ from."""
    rows = Rows()
    store(rows, acquired("a", PIXELS[0], pixel_size_nm=0.05, detector="BF"), PIXELS[0])
    assert store(rows, acquired("a", PIXELS[1], pixel_size_nm=0.02, detector="HAADF"), PIXELS[1]).state == "stored"
    assert store(rows, acquired("b", PIXELS[2], pixel_size_nm=0.05), PIXELS[2]).state == "held"
    assert store(rows, acquired("b", PIXELS[2], pixel_size_nm=0.02), PIXELS[2]).state == "stored"


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"detector": "HAADF"}, {"detector": "BF"}, "detector BF, but the series has HAADF"),
        ({"detector": "HAADF"}, {"detector": "haadf"}, ""),
        ({"detector": "HAADF"}, {}, ""),
        ({}, {"detector": "BF"}, ""),
    ],
)
def test_a_second_detector_is_held(first: dict[str, str], second: dict[str, str], words: str) -> None:
    """Unless nobody says that it is another."""
    verdict = after(acquired("a", PIXELS[0], **first), acquired("b", PIXELS[1], **second))
    assert (verdict.state, verdict.reason) == (("held", verdict.reason) if words else ("stored", None))
    assert words in _said(verdict)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("HAADF_001.tif", "BF_001.tif", "detector BF (by its name), but the series has HAADF"),
        ("np1 haadf 2.tif", "np1_ABF2.tif", "detector ABF (by its name)"),
        ("DF2_001.tif", "DF4_001.tif", "detector DF4 (by its name), but the series has DF2"),
        ("HAADF_001.tif", "HAADF_BF_002.tif", ""),
        ("HAADF1.tif", "HAADF2.tif", ""),
        ("HAADF_001.tif", "002.tif", ""),
        ("PbF_001.tif", "CaBF_002.tif", ""),
    ],
)
def test_a_detector_in_the_name_counts_like_one_in_the_file(first: str, second: str, words: str) -> None:
    """`BF_001` does not become a row among `HAADF_...`; letters that belong to a longer word, and numbers behind it, are no detector."""
    verdict = after(acquired(first, PIXELS[0]), acquired(second, PIXELS[1]))
    assert (verdict.state, words in _said(verdict)) == ("held" if words else "stored", True)


def test_names_are_not_compared_with_what_files_say() -> None:
    """A file calls the detector `STEM HAADF`, the name of another HAADF: nobody knows that they differ."""
    assert after(acquired("001.dm4", PIXELS[0], detector="STEM HAADF"), acquired("HAADF_002.tif", PIXELS[1])).state == "stored"


@pytest.mark.parametrize(
    ("name", "said", "state"),
    [
        ("BF_001.tif", {}, "other"),
        ("HAADF1.tif", {}, "stored"),
        ("BF_001.tif", {"detector": "HAADF"}, "stored"),
        ("HAADF_001.tif", {"detector": "BF"}, "other"),
        ("001.tif", {}, "stored"),
        ("001.emd", {"detector": "HAADF", "segment": "A"}, "stored"),
    ],
)
def test_of_a_named_detector_the_others_are_recorded_even_without_a_tilt(name: str, said: dict[str, str], state: str) -> None:
    """The file is believed before its name. What is left out need not be released for want of an angle."""
    site = HERE._replace(rules=Series(detector="HAADF"))
    assert judge(acquired(name, PIXELS[0], **said), PIXELS[0], Rows(), site).state == state
    untilted = judge(acquired(name, PIXELS[0], None, hold=Reason("no_tilt", {"because": ""}), **said), PIXELS[0], Rows(), site)
    assert untilted.state == ("other" if state == "other" else "held")


def test_of_a_divided_detector_one_segment_can_be_named() -> None:
    """`DF4` means all of them, `DF4 B` that one."""
    for wanted, states in (("DF4", ["stored", "stored"]), ("df4 b", ["other", "stored"])):
        site = HERE._replace(rules=Series(detector=wanted))
        found = [judge(acquired("a", PIXELS[0], detector="DF4", segment=part), PIXELS[0], Rows(), site).state for part in "AB"]
        assert found == states


def test_what_is_no_projection_is_recorded_unless_a_person_wants_it() -> None:
    """It does not even begin a series: the detector's own image comes after it and is stored."""
    rows = Rows()
    made = acquired("map", PIXELS[0].astype("<f4"), no_projection="an element map", pixel_size_nm=0.2)
    verdict = store(rows, made, PIXELS[0].astype("<f4"))
    assert (verdict.state, "as the file itself says: an element map" in _said(verdict)) == ("other", True)
    assert store(rows, acquired("a", PIXELS[1]), PIXELS[1]).state == "stored"
    assert judge(made, PIXELS[0].astype("<f4"), Rows(), HERE, person_deg=1.0).state == "stored"


def test_a_doubt_about_the_file_holds_until_a_person_speaks_but_unmakes_no_row() -> None:
    """What was stored before the doubt arose, with these pixels and at this tilt, stays as it is."""
    rows = Rows()
    store(rows, acquired("a", PIXELS[0]), PIXELS[0])
    assert store(rows, acquired("a", PIXELS[0], doubt=Reason("one_tilt", {"tilt_deg": 5.0})), PIXELS[0]).state == "same"
    doubtful = acquired("b", PIXELS[1], doubt=Reason("one_tilt", {"tilt_deg": 5.0}))
    assert store(rows, doubtful, PIXELS[1])[:2] == ("held", doubtful.doubt)
    assert store(rows, doubtful, PIXELS[1], person_deg=6.0).state == "stored"


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"detector": "HAADF"}, True), ({"pixel_size_nm": 0.1}, True), ({"pixel_size_nm": 0.05}, False), ({}, False)],
)
def test_an_image_that_decides_about_others_is_known_before_they_are_judged(said: dict[str, object], expected: bool) -> None:
    """The first of a series, the second, which says that the first was no survey, and the first that knows a detector or a pixel size."""
    rows = Rows()
    for name, pixels in (("a", PIXELS[0]), ("d", PIXELS[3])):
        assert rows.learns(acquired(name, pixels))
        store(rows, acquired(name, pixels), pixels)
    if said == {"pixel_size_nm": 0.05}:
        store(rows, acquired("c", PIXELS[2], pixel_size_nm=0.05), PIXELS[2])
    assert rows.learns(acquired("b", PIXELS[1], **said)) == expected


@pytest.mark.parametrize(
    ("name", "detector"),
    [
        ("a/BF/HAADF_1.tif", "HAADF"), ("iDPC.tif", "IDPC"), ("x-maadf-3.dm4", "MAADF"), ("DF4 1.tif", "DF4"), ("np_30deg.tif", ""),
        ("BF_DF.tif", ""), ("bf.tif", "BF"), ("rebf.tif", ""),
    ],
)  # fmt: skip
def test_detectors_in_names(name: str, detector: str) -> None:
    """A word of the file's own name, in whatever case; two different ones say nothing."""
    assert detector_in_name(name) == detector
