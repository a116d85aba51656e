"""Files that an instrument appends to: never locked, every tilt taken once, whole, at its angle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aet_stream.simulate.writers import mdoc, mrc
from tests.containers import SerialEm, StemTomo
from tests.harness import ENVIRONMENT, Daemon, known_image, plain_rows
from tests.watching import Bench

WRITER = """
import sys, time
import numpy as np
from pathlib import Path
from tests.containers import StemTomo
from tests.harness import known_image
path, tilts, repeats = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
made = StemTomo(path, repeats=repeats, size_px=64)
for index in range(tilts):
    frames = np.stack([known_image(index * repeats + repeat) for repeat in range(repeats)])
    made.append(frames, -60.0 + 2 * index, pause_s=0.004 * (index % 4))
    time.sleep(0.01 * (index % 5))
print("appended", tilts)
"""


def test_an_instrument_appends_60_tilts_of_3_frames_while_we_read(tmp_path: Path) -> None:
    """A real program in its own rhythm: it never fails, and every tilt is taken once, complete, at its angle."""
    with Bench(tmp_path, "frames.keep=frames") as bench:
        (bench.root / "team").mkdir()
        path = bench.root / "team" / "tomo.emd"
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "60", "3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        bench.until(lambda: writer.poll() is not None, limit_s=90)
        said, complaints = writer.communicate()
        assert (writer.returncode, said) == (0, "appended 60\n"), complaints
        bench.until(lambda: len(bench.taken) == 60)
        bench.rest()
        for index in range(60):
            found = bench.taken["team/tomo.emd", index]
            assert len(found) == 1, f"tilt {index} was taken {len(found)} times"
            message, planes = found[0]
            assert (message.candidates[0].tilt_deg, message.hold, message.drift.frames) == (-60.0 + 2 * index, None, 3)
            for repeat in range(3):
                assert np.array_equal(planes[1 + repeat].astype("<u2"), known_image(index * 3 + repeat)), f"tilt {index} frame {repeat}"
        assert not [refusal for refusal in bench.refused if refusal.why != "later"]


@pytest.mark.parametrize("announce_first", [False, True])
def test_a_serialem_stack_grows_and_each_section_is_read_once(tmp_path: Path, announce_first: bool) -> None:
    """Count raised before or after the pixels: whole sections only, tilt from the mdoc, none read again because the file grew."""
    with Bench(tmp_path) as bench:
        stack = SerialEm(bench.root / "tilt.mrc")
        for index in range(12):
            stack.append(known_image(index), -30.0 + 5 * index, announce_first=announce_first)
            if index % 3 == 2:
                bench.until(lambda done=index: len([1 for found in bench.taken.values() if not found[-1][0].hold]) == done + 1)
        bench.rest()
        for index in range(12):
            found = [(m, p) for m, p in bench.taken["tilt.mrc", index] if not m.hold]
            assert len(found) == 1
            assert found[0][0].candidates[0].tilt_deg == -30.0 + 5 * index
            assert np.array_equal(found[0][1], known_image(index))


@pytest.mark.parametrize("pixels", [False, True])
def test_an_image_waits_for_its_section(tmp_path: Path, pixels: bool) -> None:
    """SerialEM writes the image, then its section; on a share it may come seconds later: taken once, with its tilt, and never held."""
    images, tilts = np.stack([known_image(index) + np.uint16(9 * index) for index in range(4)]), [-6.0, -3.0, 0.0, 3.0]
    with Bench(tmp_path) as bench:
        path = bench.root / "tilt.mrc"
        path.with_name("tilt.mrc.mdoc").write_bytes(mdoc("tilt.mrc", [], 0.1))
        for count in range(1, 5):
            path.write_bytes(mrc(images[:count], 0.0, 0.1))
            bench.until(lambda: "so far" in str(bench.status.waiting_for))
            text = mdoc("tilt.mrc", tilts[:count], 0.1, None, images if pixels else None)
            path.with_name("tilt.mrc.mdoc").write_bytes(text)
            bench.until(lambda count=count: len(bench.taken) == count)
        bench.rest()
        assert [[(message.hold, message.candidates[0].tilt_deg) for message, _ in bench.taken["tilt.mrc", i]] for i in range(4)] == [
            [(None, tilt)] for tilt in tilts
        ]


def test_preallocated_sections_wait_until_they_are_written(tmp_path: Path) -> None:
    """A stack made at full size: zeros are no images until they have stood for watch.zero_grace_s."""
    images = np.stack([known_image(index) for index in range(4)])
    images[2:] = 0
    with Bench(tmp_path, "angle.filename_regex=''") as bench:
        path = bench.root / "tilt.mrc"
        path.write_bytes(mrc(images, 0.0, 0.1))
        bench.until(lambda: len(bench.taken) == 2)
        assert "zero" in bench.watch.status().waiting_for["tilt.mrc"]
        images[2] = known_image(2)
        path.write_bytes(mrc(images, 0.0, 0.1))
        bench.until(lambda: len(bench.taken) == 3)
        assert [len(found) for found in bench.taken.values()] == [1, 1, 1]


def test_the_first_image_of_a_growing_stack_has_no_tilt_from_its_name(tmp_path: Path) -> None:
    """One of three is there: the name of the file is no more about it than about the two that come."""
    whole = mrc(np.stack([known_image(index) for index in range(3)]), 0.0, 0.1)
    with Bench(tmp_path) as bench:
        path = bench.root / "tomo_-60deg.mrc"
        path.write_bytes(whole[: 1024 + 64 * 64 * 2])
        bench.until(lambda: bench.taken)
        path.write_bytes(whole)
        bench.until(lambda: len(bench.taken) == 3)
        assert {str(message.hold) for found in bench.taken.values() for message, _ in found} == {
            "no tilt angle in metadata, sidecar or file name"
        }


def test_a_stack_cut_off_in_a_section_gives_its_whole_ones_and_one_record(tmp_path: Path) -> None:
    """Three whole sections are stored, the half one is named after watch.incomplete_s."""
    whole = mrc(np.stack([known_image(index) for index in range(5)]), 0.0, 0.1)
    with Bench(tmp_path, "watch.incomplete_s=1") as bench:
        (bench.root / "tilt.mrc").write_bytes(whole[: 1024 + int(3.4 * 64 * 64 * 2)])
        bench.until(lambda: len(bench.taken) == 3 and bench.refused)
        (refusal,) = bench.refused
        assert (refusal.visit.image, refusal.why) == (3, "bad")
        assert "bytes of image 3" in str(refusal.reason)


@pytest.mark.timeout(240)
def test_a_container_goes_through_the_daemon(tmp_path: Path) -> None:
    """From an appending instrument into series.h5: one row per tilt, the registered mean, its frames beside it."""
    import h5py

    daemon = Daemon(tmp_path, frames__keep="frames", series__expected=0)
    (daemon.root / "team").mkdir()
    made = StemTomo(daemon.root / "team" / "tomo.emd", repeats=3, size_px=64)
    clean = known_image(0).astype(float)
    rng = np.random.default_rng(1)
    stored = [np.stack([rng.poisson(np.roll(clean, (shift, -shift), (0, 1))) for shift in (0, 2, 3)]).astype("<u2") for _ in range(4)]
    for index, frames in enumerate(stored):
        made.append(frames, 10.0 * index)
    assert daemon.run("--until-idle", "2", "--strict", limit_s=200) == 0, daemon.log.read_text()[-3000:]
    series = daemon.out / "team" / "series.h5"
    rows = plain_rows(series)
    assert sorted(tilt for tilt, _, _ in rows.values()) == [0.0, 10.0, 20.0, 30.0]
    with h5py.File(series) as file:
        per = file["/aet/projection"]
        assert per["frames"][()].tolist() == [3] * 4
        assert per["frames_averaged"][()].tolist() == [3] * 4
        assert (per["drift_doubt_px"][()] < 1.5).all()
        assert set(per["flag"][()].tolist()) == {b""}
        assert file["/aet/raw"].dtype == np.float32
    with h5py.File(daemon.out / "team" / "projections" / "000000.h5") as file:
        image = int(file.attrs["image"])
        assert file["frames"].dtype == np.uint16
        assert np.array_equal(file["frames"][()], stored[image])
    assert daemon.ask("verify", str(series)).returncode == 0


def test_a_file_caught_between_two_writes_of_one_append_loses_no_image(tmp_path: Path) -> None:
    """HDF5 writes the end of the file last; an image that was seen before is read when it is there again."""
    with Bench(tmp_path, want=False) as bench:
        path = bench.root / "tomo.emd"
        made = StemTomo(path, repeats=2, size_px=64)
        ends = []
        for tilt in range(3):
            made.append(np.stack([known_image(2 * tilt), known_image(2 * tilt + 1)]), 2.0 * tilt)
            ends.append(path.read_bytes()[40:48])
        bench.until(lambda: len(bench.offered) == 3)
        for end in (ends[1], ends[2]):
            with path.open("r+b") as file:
                file.seek(40)
                file.write(end)
            if end == ends[1]:
                bench.ask("tomo.emd", bench.offered["tomo.emd", 2], 2)
                bench.until(lambda: bench.refused)
                assert "addr overflow" in str(bench.refused[-1].reason)
        bench.want = True
        bench.until(lambda: ("tomo.emd", 2) in bench.taken, limit_s=20)
        assert [refusal.why for refusal in bench.refused if refusal.why != "later"] == []
