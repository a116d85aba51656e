"""Several frames of one visit: drift found and judged, frames averaged or flagged, nothing guessed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from aet_stream.config import Frames
from aet_stream.readers.frames import AGREE_PX, combine, drift_of, sha256_of_frames
from aet_stream.watch.visits import Frame, Visits


def specimen(size_px: int, seed: int = 0, *, atoms: bool = True) -> np.ndarray:
    """A particle of columns on a sloping film, counts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size_px, :size_px].astype(float)
    image = 60 + 30 * x / size_px + 20 * np.sin(y / size_px * 3)
    if atoms:
        for cy, cx in rng.uniform(0.3 * size_px, 0.7 * size_px, (60, 2)):
            image += 120 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    return image


def exposed(image: np.ndarray, shifts: list[tuple[int, int]], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.poisson(np.roll(image, shift, (0, 1))) for shift in shifts]).astype("<u2")


@pytest.mark.parametrize("shape", [(128, 128), (97, 131)])
@pytest.mark.parametrize("shifts", [[(0, 0), (-3, 2), (-6, 4)], [(0, 0), (0, 0)], [(0, 0), (5, -7), (1, 1), (2, 0)]])
def test_drift_is_found_to_half_a_pixel(shape: tuple[int, int], shifts: list[tuple[int, int]]) -> None:
    """Noise, a film, odd sizes: the particle's way from frame to frame, with little doubt."""
    frames = exposed(specimen(160), shifts)[:, : shape[0], : shape[1]]
    found, doubt = drift_of(frames)
    assert np.abs(np.array(found) - np.array(shifts)).max() < 0.5
    assert doubt < AGREE_PX


def test_the_mean_is_of_frames_that_lie_on_each_other() -> None:
    """Shifted back by whole pixels: less noise than one frame, sharper than the mean without registration; the variance is the noise."""
    image = specimen(128)
    frames = exposed(image, [(0, 0), (-3, 2), (-6, 4)])
    mean, extras, drift = combine(frames, (), keep="moments", max_shift=0.25)
    inner = (slice(16, -16), slice(16, -16))
    assert (drift.frames, drift.averaged, drift.flag) == (3, 3, "")
    assert mean.dtype == np.float32
    assert np.std((mean - image)[inner]) < 0.7 * np.std((frames[0] - image)[inner])
    assert np.std((mean - image)[inner]) < np.std((frames.mean(0) - image)[inner])
    assert extras is not None
    assert extras.shape == (1, 128, 128)
    assert np.mean(extras[0][inner]) == pytest.approx(np.mean(image[inner]), rel=0.2)  # Poisson: variance = mean


def test_where_nothing_can_be_seen_nothing_is_shifted() -> None:
    """Featureless frames: the two halves contradict each other; averaged as they are, and flagged."""
    rng = np.random.default_rng(5)
    frames = rng.poisson(100, (3, 128, 128)).astype("<u2")
    mean, _, drift = combine(frames, (), keep="none", max_shift=0.25)
    assert "without being shifted" in drift.flag
    assert drift.doubt_px > AGREE_PX
    assert np.allclose(mean, frames.mean(0), atol=1e-3)


def test_a_drift_beyond_belief_is_not_followed() -> None:
    """Half a frame between two exposures is no drift."""
    frames = exposed(specimen(128), [(0, 0), (40, 0)])
    _, _, drift = combine(frames, (), keep="none", max_shift=0.1)
    assert "without being shifted" in drift.flag


def test_frames_with_another_scan_rotation_are_never_averaged_naively() -> None:
    """A 0/90 pair: only the frames like the first are averaged, the others are counted and, if asked for, kept."""
    image = specimen(96)
    first = exposed(image, [(0, 0), (1, 1)])
    frames = np.concatenate([first, np.rot90(first, axes=(1, 2))])
    mean, extras, drift = combine(frames, (10.0, 10.0, 100.0, 100.0), keep="frames", max_shift=0.25)
    assert (drift.frames, drift.averaged) == (4, 2)
    assert "2 of 4 frames have another scan rotation" in drift.flag
    alone, _, _ = combine(first, (), keep="none", max_shift=0.25)
    assert np.array_equal(mean, alone)
    assert extras is frames


def test_a_single_frame_stays_as_it_is() -> None:
    """Native type, every bit; its name is that of its own bytes."""
    frames = exposed(specimen(64), [(0, 0)])
    mean, extras, drift = combine(frames, (), keep="moments", max_shift=0.25)
    assert mean.dtype == np.uint16
    assert np.array_equal(mean, frames[0])
    assert (extras, drift.frames, drift.flag) == (None, 1, "")
    import hashlib

    assert sha256_of_frames(frames) == hashlib.sha256(frames[0].tobytes()).hexdigest()


def frame(name: str, tilt_deg: float | None, at_s: float, *, image: int = 0, seen_at: float = 0.0, images: int = 1, **more: str) -> Frame:
    """One image as the watch knows it."""
    state, detector = f"stamp-{name}-{image}{more.get('state', '')}", more.get("detector", "")
    return Frame(f"s/{name}", image, state, images, 100, at_s, at_s, tilt_deg, False, seen_at, detector=detector)


def grouped(rules: Frames, frames: list[Frame]) -> list[list[str]]:
    visits = Visits(rules)
    for path in dict.fromkeys(f.path for f in frames):
        visits.note(path, [f for f in frames if f.path == path])
    return sorted([f"{m.path.partition('/')[2]}:{m.image}" for m in visit.frames] for visit in visits.due(1e9))


def test_each_image_is_a_visit_unless_asked_otherwise() -> None:
    """Two images at 0 degrees, one second apart, are two deliberate images."""
    assert grouped(Frames(), [frame("a", 0.0, 0), frame("b", 0.0, 1)]) == [["a:0"], ["b:0"]]


@pytest.mark.parametrize(
    ("frames", "groups"),
    [
        ([frame("a", 0.0, 0), frame("b", 0.0, 2), frame("c", 3.0, 4)], [["a:0", "b:0"], ["c:0"]]),
        ([frame("b", 0.0, 2), frame("a", 0.0, 0)], [["a:0", "b:0"]]),
        ([frame("a", 0.0, 0), frame("b", 0.0, 60)], [["a:0"], ["b:0"]]),
        ([frame("a", 0.0, 0), frame("b", None, 1), frame("c", 0.0, 2)], [["a:0"], ["b:0"], ["c:0"]]),
        ([frame("a", 0.0, 0, detector="HAADF"), frame("b", 0.0, 1, detector="BF")], [["a:0"], ["b:0"]]),
        ([frame("t", 0.0, 0, image=0, images=4), frame("t", 0.0, 0, image=1, images=4), frame("t", 5.0, 0, image=2, images=4),
          frame("t", 5.0, 0, image=3, images=4)], [["t:0", "t:1"], ["t:2", "t:3"]]),
    ],
)  # fmt: skip
def test_frames_are_gathered_by_tilt_and_time(frames: list[Frame], groups: list[list[str]]) -> None:
    """Same tilt within the window is one visit; another tilt, a later time, another detector or an unknown tilt is not."""
    assert grouped(Frames(group="window", window_s=10.0), frames) == groups


def test_frames_are_gathered_by_name() -> None:
    """Names that differ only in their frame number; in its order, however many digits it has."""
    names = [frame(f"x_{tilt}_f{number}.tif", 1.0, 0) for tilt in ("+1", "+2") for number in (10, 2, 1)] + [frame("y.tif", 1.0, 0)]
    assert grouped(Frames(group="pattern"), names) == [
        ["x_+1_f1.tif:0", "x_+1_f2.tif:0", "x_+1_f10.tif:0"],
        ["x_+2_f1.tif:0", "x_+2_f2.tif:0", "x_+2_f10.tif:0"],
        ["y.tif:0"],
    ]


def test_a_visit_is_complete_when_all_frames_are_there_or_none_has_come_for_a_while() -> None:
    """frames.expected and frames.window_s; a late frame makes a new state of the same unit."""
    visits = Visits(Frames(group="pattern", expected=2, window_s=5.0))
    visits.note("s/x_f1.tif", [frame("x_f1.tif", 1.0, 0, seen_at=100.0)])
    assert visits.due(101.0) == []
    visits.note("s/x_f2.tif", [frame("x_f2.tif", 1.0, 0, seen_at=101.0)])
    (visit,) = visits.due(101.0)
    visits.told(visit)
    assert visits.due(1e9) == []
    visits.note("s/x_f3.tif", [frame("x_f3.tif", 1.0, 0, seen_at=102.0)])
    assert visits.due(103.0) == []
    (late,) = visits.due(107.0)
    assert (late.key, len(late.frames)) == (visit.key, 3)
    assert late.stamp != visit.stamp


def test_what_can_have_no_further_frame_waits_for_none() -> None:
    """A name without a frame's number, and the images of a stack, where frames are told by name."""
    visits = Visits(Frames(group="pattern", expected=2, window_s=5.0))
    visits.note("s/x_f1.tif", [frame("x_f1.tif", 1.0, 0, seen_at=100.0)])
    visits.note("s/y.tif", [frame("y.tif", 1.0, 0, seen_at=100.0)])
    visits.note("s/z_f1.mrc", [frame("z_f1.mrc", tilt, 0, image=image, images=2, seen_at=100.0) for image, tilt in enumerate((1.0, 2.0))])
    assert [visit.key for visit in visits.due(100.0)] == [("s/y.tif", 0), ("s/z_f1.mrc", 0), ("s/z_f1.mrc", 1)]


def test_a_frame_that_vanishes_makes_no_poorer_visit() -> None:
    """An instrument that tidies up behind itself: what was taken stays as it was taken."""
    visits = Visits(Frames(group="pattern", expected=2))
    for number in (1, 2):
        visits.note(f"s/x_f{number}.tif", [frame(f"x_f{number}.tif", 1.0, 0)])
    visits.told(visits.due(0.0)[0])
    visits.forget("s/x_f2.tif")
    visits.note("s/y_f1.tif", [frame("y_f1.tif", 1.0, 0)])
    assert [visit.key[0] for visit in visits.due(1e9)] == ["s/y_f1.tif"]


@pytest.mark.parametrize("group", ["pattern", "window"])
def test_a_folder_of_many_frames_is_grouped_once_for_all(group: Literal["pattern", "window"]) -> None:
    """Not once for every file: a start with thousands of them would take minutes."""
    visits = Visits(Frames(group=group, expected=8))
    began_s = time.process_time()
    for index in range(1600):
        name = f"x_{index // 8:04d}_f{index % 8}.tif"
        visits.note(f"s/{name}", [frame(name, float(index // 8), float(index))])
    assert [len(visit.frames) for visit in visits.due(0.0)] == [8] * 200
    assert time.process_time() - began_s < 1.0


def test_three_files_become_one_projection(tmp_path: Path) -> None:
    """Through the real watch: by name, read together, one mean; sizes that differ are named."""
    from aet_stream.simulate.writers import tiff
    from tests.watching import Bench

    with Bench(tmp_path, "frames.group=pattern", "frames.expected=3", "frames.keep=frames") as bench:
        frames = exposed(specimen(96), [(0, 0), (2, -1), (3, -2)])
        (bench.root / "s").mkdir()
        for number, image in enumerate(frames, 1):
            (bench.root / "s" / f"x_+5.00deg_f{number}.tif").write_bytes(tiff(image, 0.0, 0.1))
        for number, edge in ((1, 64), (2, 64), (3, 32)):
            (bench.root / "s" / f"y_+6.00deg_f{number}.tif").write_bytes(tiff(exposed(specimen(edge), [(0, 0)])[0], 0.0, 0.1))
        bench.until(lambda: bench.taken and [r for r in bench.refused if r.why == "bad"])
        ((message, planes),) = bench.taken["s/x_+5.00deg_f1.tif", 0]
        assert message.members == tuple((f"s/x_+5.00deg_f{number}.tif", 0) for number in (1, 2, 3))
        assert np.array_equal(planes[1:].astype("<u2"), frames)
        assert np.abs(np.array(message.drift.shifts_px) - [(0, 0), (2, -1), (3, -2)]).max() < 0.6
        assert message.sha256 == sha256_of_frames(frames)
        assert "different sizes" in next(r for r in bench.refused if r.why == "bad").reason.values["error"]
        assert set(bench.offered) == {("s/x_+5.00deg_f1.tif", 0), ("s/y_+6.00deg_f1.tif", 0)}
