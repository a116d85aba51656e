"""A file as a whole: several signals of one detector at one time, and stacks whose tilts are all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aet_stream.config import Config, Frames, Series
from aet_stream.projection import Acquisition
from aet_stream.watch.visits import Frame, Visits
from aet_stream.watch.whole import Image, doubts


def frame(image: int, tilt_deg: float | None, *, at_s: float = 0.0, **said: str) -> Image:
    """One image of a file of several."""
    known = {"detector": "DF4", "acquired_utc": "2026-03-01T10:00:00+00:00", **said}
    said_of_it = Acquisition(**known)  # type: ignore[arg-type]
    more = {"detector": said_of_it.detector, "is_projection": not said_of_it.no_projection}
    return Image(Frame("s/a.emd", image, f"stamp-{image}", 4, 100, at_s, at_s, tilt_deg, False, 0.0, **more), said_of_it)


def signals(*said: dict[str, str]) -> list[Image]:
    """Images of as many datasets."""
    return [frame(image, -12.0, dataset=chr(ord("a") + image), **words) for image, words in enumerate(said)]


@pytest.mark.parametrize(
    ("frames", "settings", "doubtful"),
    [
        (signals({}, {}), Series(), [0, 1]),
        (signals({}, {}, {"detector": "HAADF"}), Series(), [0, 1]),
        (signals({}, {"acquired_utc": "2026-03-01T10:00:30+00:00"}), Series(), []),
        (signals({"acquired_utc": ""}, {"acquired_utc": ""}), Series(), [0, 1]),
        (signals({}, {}, {"no_projection": "computed"}), Series(), [0, 1]),
        (signals({}, {"no_projection": "computed"}), Series(), []),
        (signals({}, {}, {"detector": "HAADF"}), Series(detector="HAADF"), []),
        (signals({"segment": "A"}, {"segment": "B"}), Series(detector="DF4"), [0, 1]),
        (signals({"segment": "A"}, {"segment": "B"}), Series(detector="DF4 B"), []),
        ([frame(image, tilt, dataset=key) for image, (key, tilt) in enumerate((("a", -12.0), ("a", 0.0), ("b", -12.0), ("b", 5.0)))],
         Series(), [0, 2]),
    ],
)  # fmt: skip
def test_two_datasets_of_one_detector_and_time_ask_which(frames: list[Image], settings: Series, doubtful: list[int]) -> None:
    """Not those of other times or detectors, nor what will not be stored anyway."""
    found = doubts(frames, Config(series=settings), growing=False)
    assert sorted(found) == doubtful
    assert {reason.code for reason in found.values()} <= {"which_image"}


@pytest.mark.parametrize("settings", [Series(), Series(detector="HAADF")])
def test_a_signal_without_a_detector_among_named_ones_is_asked_about(settings: Series) -> None:
    """It is no repeat of theirs; the named ones are stored. Where no signal has a name, there is nothing to tell them by."""
    found = doubts(signals({"detector": "HAADF"}, {"detector": ""}), Config(series=settings), growing=False)
    assert list(found) == [1]
    assert "no detector of this image, beside those of HAADF" in str(found[1])
    assert doubts(signals({"detector": ""}), Config(series=settings), growing=False) == {}


def test_the_question_says_how_to_answer_it() -> None:
    """With a setting where the file tells the segments apart, and for this file alone with a command."""
    text = doubts(signals({"segment": "A"}, {"segment": "B"}), Config(), growing=False)[0].with_remedy()
    assert "images 0, 1 of detector DF4" in text
    assert "set series.detector to one of DF4 A, DF4 B, or say the tilt of the one that is: `aet-stream release ID --angle -12`" in text


@pytest.mark.parametrize(
    ("tilts_deg", "growing", "doubt"),
    [
        ([0.0, 0.0, 0.0], True, True),
        ([0.0, 0.0], False, True),
        ([0.0, 0.0], True, False),
        ([-12.0], False, False),
        ([-12.0, -12.005, -11.998], False, True),
        ([0.0, 0.0, 3.0], False, False),
        ([None, None, None], False, False),
        ([0.0, None, 0.0, 0.0], True, True),
    ],
)
def test_tilts_that_are_all_the_same_are_doubted(tilts_deg: list[float | None], growing: bool, doubt: bool) -> None:
    """A single image is no stack, and one that grows may begin with a second image at its first tilt."""
    found = doubts([frame(image, tilt) for image, tilt in enumerate(tilts_deg)], Config(), growing=growing)
    assert len(found) == (len(tilts_deg) if doubt else 0)
    assert {reason.code for reason in found.values()} <= {"one_tilt"}


@pytest.mark.parametrize(("apart_s", "expected", "doubt"), [(1.0, 0, False), (60.0, 0, True), (1.0, 2, True), (1.0, 4, False)])
def test_frames_of_one_visit_are_no_stack_of_one_tilt(apart_s: float, expected: int, doubt: bool) -> None:
    """Where images within a time are taken for frames; not if they lie further apart, or are more than a tilt has."""
    config = Config(frames=Frames(group="window", window_s=10.0, expected=expected))
    frames = [frame(image, 0.0, at_s=image * apart_s) for image in range(4)]
    assert bool(doubts(frames, config, growing=False)) == doubt


def test_signals_that_ask_which_are_not_averaged_as_frames_of_one_visit() -> None:
    """Nor is what was computed from them."""
    rules = Frames(group="window", window_s=10.0)
    frames = signals({}, {}, {"no_projection": "computed"})
    odd = doubts(frames, Config(frames=rules), growing=False)
    visits = Visits(rules)
    visits.note("s/a.emd", [replace(one.frame, doubt=odd.get(one.number)) for one in frames])
    assert [len(visit.frames) for visit in visits.due(1e9)] == [1, 1, 1]


def test_a_doubt_is_part_of_the_state_of_an_image() -> None:
    """When it comes or goes the image is offered anew; the text does not change while a stack grows."""
    frames = [frame(image, 0.0) for image in range(5)]
    three, four, five = (doubts(frames[:count], Config(), growing=True)[0] for count in (3, 4, 5))
    assert three == four == five
    first = frames[0].frame
    assert replace(first, doubt=three).stamp not in (first.stamp, "")
    assert first.stamp == "stamp-0"
