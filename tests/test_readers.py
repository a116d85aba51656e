"""Every format: what was written comes back, and nothing is taken before it is whole."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from scipy.io import savemat

from aet_stream.config import Config
from aet_stream.errors import ReaderDied, SourceError, SourceGone, SourceNotReady
from aet_stream.readers import FORMATS, pixel_size_nm
from aet_stream.readers.child import ReaderChild
from aet_stream.readers.looking import Look
from aet_stream.readers.mdoc import parse_mdoc
from aet_stream.readers.sidecar import beside
from aet_stream.simulate.writers import KNOWS_TILT, SUFFIX, WRITERS, mdoc
from tests.harness import known_image, put, wait_for
from tests.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def child() -> Iterator[ReaderChild]:
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64)
    yield reader
    reader.close()


def test_the_first_file_finds_a_process_that_reads() -> None:
    """It is begun with the question of what can be read, at the start of the watch: loading takes it a quarter of a second."""
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64)
    assert ".tif" in reader.suffixes()
    assert reader.pid is not None
    reader.close()


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("dtype", ["<u2", "<f4", "|u1"])
def test_what_was_written_comes_back(tmp_path: Path, child: ReaderChild, kind: str, dtype: str) -> None:
    """Pixels to the bit; tilt and pixel size where the format has a place for them."""
    pixels = known_image(1, 48)[:, :40].astype(dtype)
    path = tmp_path / f"image{SUFFIX[kind]}"
    path.write_bytes(WRITERS[kind](pixels, -34.5, 0.05))
    probe = child.probe(path)
    found, sha256 = child.read(path, 0)
    assert probe.images == 1
    assert probe.shape == found.pixels.shape == (48, 40)
    assert np.array_equal(found.pixels, pixels)
    assert len(sha256) == 64
    assert found.acquisition.tilt_deg == (-34.5 if kind in KNOWS_TILT else None)
    if kind not in ("npy", "mat"):
        assert found.acquisition.pixel_size_nm == pytest.approx(0.05, rel=1e-3)


def stack(kind: str, path: Path) -> np.ndarray:
    """Five images in one file; returns (5, y, x)."""
    images = np.stack([known_image(index, 32)[:, :24] for index in range(5)])
    if kind == "tiff":
        tifffile.imwrite(path, images, photometric="minisblack")
    elif kind == "bigtiff":
        tifffile.imwrite(path, images, photometric="minisblack", bigtiff=True, compression="zlib", tile=(16, 16))
    elif kind == "npy":
        np.save(path, images)
    elif kind == "mrc":
        path.write_bytes(WRITERS["mrc"](images, 0.0, 0.1))
    elif kind == "mat":
        savemat(path, {"p": images.transpose(1, 2, 0), "angles": np.c_[np.zeros(5), np.arange(5.0), np.zeros(5)]}, do_compression=True)
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            file["p"], file["angles"] = images.transpose(0, 2, 1), np.arange(5.0)[None]
    return images


STACKS = {"tiff": ".tif", "bigtiff": ".tif", "npy": ".npy", "mrc": ".st", "mat": ".mat", "mat73": ".mat"}


@pytest.mark.parametrize("kind", sorted(STACKS))
def test_a_stack_gives_its_images_one_by_one(tmp_path: Path, child: ReaderChild, kind: str) -> None:
    """Images 0 to n - 1; an angle variable in a .mat file is theirs."""
    path = tmp_path / f"stack{STACKS[kind]}"
    images = stack(kind, path)
    assert child.probe(path).images == 5
    for index, image in enumerate(images):
        found, _ = child.read(path, index)
        assert np.array_equal(found.pixels, image)
        assert found.acquisition.tilt_deg == (float(index) if kind.startswith("mat") else None)
    with pytest.raises(SourceError, match="there are 5"):
        child.read(path, 5)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_an_incomplete_file_says_what_is_missing(tmp_path: Path, child: ReaderChild, kind: str) -> None:
    """By its own header, before anything else is tried: a file that still grows is waited for, not called broken."""
    whole = WRITERS[kind](known_image(2, 40), 1.0, 0.1)
    path = tmp_path / f"cut{SUFFIX[kind]}"
    for cut in (len(whole) * 2 // 3, len(whole) - 60):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceNotReady, match=f"needs [0-9]+ bytes, {cut} are there"):
            child.probe(path)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_cut_file_is_never_taken_for_a_whole_one(tmp_path: Path, child: ReaderChild, kind: str) -> None:
    """Cut anywhere in header or pixels, it is not ready (or an error), and never wrong pixels."""
    whole = WRITERS[kind](known_image(2, 40), 1.0, 0.1)
    path = tmp_path / f"cut{SUFFIX[kind]}"
    pixels_end = len(whole) - 40
    for cut in sorted({1, 3, 7, 20, 100, 200, 500, 1023, *range(0, pixels_end, max(1, pixels_end // 37))}):
        path.write_bytes(whole[:cut])
        try:
            child.probe(path)
            found, _ = child.read(path, 0)
        except (SourceNotReady, SourceError):
            continue
        # Whole pixels in spite of the cut: only metadata at the end may be missing.
        assert np.array_equal(found.pixels, known_image(2, 40)), f"wrong pixels from {cut} of {len(whole)} bytes"
        assert cut > known_image(2, 40).nbytes
    path.write_bytes(whole)
    child.probe(path)


def hostile() -> dict[str, bytes]:
    """Files that announce far more than they hold, or lead in circles."""
    loop = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 3, 1, 10) + struct.pack("<I", 8)
    huge_tiff = bytearray(WRITERS["tiff"](known_image(0, 16), 0.0, 0.1))
    offset = struct.unpack("<I", huge_tiff[4:8])[0]
    struct.pack_into("<I", huge_tiff, offset + 2 + 8, 200_000)
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    pickled = b"{'descr': '|O', 'fortran_order': False, 'shape': (10, 10), }"
    mrc = bytearray(WRITERS["mrc"](known_image(0, 16), 0.0, 0.1))
    struct.pack_into("<3i", mrc, 0, 100_000, 100_000, 1)
    extended = bytearray(WRITERS["mrc"](known_image(0, 16), 0.0, 0.1))
    struct.pack_into("<i", extended, 92, 2**31 - 1)
    nested = (
        struct.pack(">I", 3) + struct.pack(">I", 100) + struct.pack(">I", 1) + (b"\x01\x00" + struct.pack(">I", 1) + b"\x14\0\0") * 30_000
    )
    return {
        "loop.tif": loop,
        "huge.tif": bytes(huge_tiff),
        "huge.npy": npy + header.ljust(117) + b"\n" + bytes(64),
        "object.npy": npy + pickled.ljust(117) + b"\n" + bytes(800),
        "huge.mrc": bytes(mrc),
        "extended.mrc": bytes(extended),
        "nested.dm3": nested,
        "text.mat": b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + bytes(64),
        "text.tif": b"this is no image at all, but a page of text",
    }


@pytest.mark.parametrize("name", sorted(hostile()))
def test_a_hostile_file_costs_one_error_and_the_next_file_is_read(tmp_path: Path, child: ReaderChild, name: str) -> None:
    """Announced sizes are checked before anything is allocated."""
    path, good = tmp_path / name, tmp_path / "good.npy"
    path.write_bytes(hostile()[name])
    good.write_bytes(WRITERS["npy"](known_image(3), 0.0, 0.1))
    pid = child.pid
    with pytest.raises((SourceError, SourceNotReady)):
        child.probe(path) and child.read(path, 0)
    assert np.array_equal(child.read(good, 0)[0].pixels, known_image(3))
    assert pid in (None, child.pid), "the child did not survive"


def test_data_stored_elsewhere_is_not_followed(tmp_path: Path, child: ReaderChild) -> None:
    """An input file must not make us read another one: links, external storage, symbolic links."""
    secret = tmp_path / "secret.npy"
    secret.write_bytes(WRITERS["npy"](known_image(0), 0.0, 0.1))
    external, linked, symbolic = tmp_path / "external.mat", tmp_path / "linked.mat", tmp_path / "link.npy"
    with h5py.File(external, "w", userblock_size=512) as file:
        file.create_dataset("p", (64, 64), "u2", external=[(str(secret), 128, 8192)])
    with h5py.File(linked, "w", userblock_size=512) as file:
        file["p"] = h5py.ExternalLink(str(external), "p")
    symbolic.symlink_to(secret)
    for path in (external, linked, symbolic):
        with pytest.raises(SourceError):
            child.probe(path)


def test_colour_text_and_complex_images_are_refused(tmp_path: Path, child: ReaderChild) -> None:
    """They are no projections; the type is named."""
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    np.save(tmp_path / "complex.npy", np.zeros((16, 16), complex))
    savemat(tmp_path / "complex.mat", {"wave": np.full((16, 16), 1 + 2j)})
    for name, words in (("rgb.tif", "colour"), ("complex.npy", "complex"), ("complex.mat", "complex"), ("x.jpg", "no reader")):
        (tmp_path / "x.jpg").write_bytes(b"jpg")
        with pytest.raises(SourceError, match=words):
            child.probe(tmp_path / name)


def test_pixels_that_are_no_numbers_are_named(tmp_path: Path, child: ReaderChild) -> None:
    """How many, of how many."""
    spoiled = known_image(0).astype("<f4")
    spoiled[0, :3] = (np.nan, np.inf, -np.inf)
    (tmp_path / "nan.npy").write_bytes(WRITERS["npy"](spoiled, 0.0, 0.1))
    with pytest.raises(SourceError, match="3 of 4096 pixels"):
        child.read(tmp_path / "nan.npy", 0)


def test_a_file_that_is_gone_is_said_to_be_gone(tmp_path: Path, child: ReaderChild) -> None:
    """Not an error of the file: there is none."""
    with pytest.raises(SourceGone):
        child.probe(tmp_path / "never.npy")


def test_a_reader_that_hangs_is_killed_and_the_next_file_is_read(tmp_path: Path) -> None:
    """A compressed variable that takes long to unpack, and little time for it."""
    slow, good = tmp_path / "slow.mat", tmp_path / "good.npy"
    savemat(slow, {"p": np.zeros((4000, 4000, 2), "<f4")}, do_compression=True)
    good.write_bytes(WRITERS["npy"](known_image(3), 0.0, 0.1))
    reader = ReaderChild(timeout_s=20, memory_mib=4096, max_file_mib=64)
    try:
        reader.read(good, 0)
        first = reader.pid
        reader.timeout_s = 0.05
        with pytest.raises(ReaderDied, match="longer than"):
            reader.read(slow, 0)
        reader.timeout_s = 20
        assert np.array_equal(reader.read(good, 0)[0].pixels, known_image(3))
        assert reader.pid != first
    finally:
        reader.close()


def test_a_look_at_many_files_ends_with_the_first_that_costs_the_reader(tmp_path: Path) -> None:
    """It hangs or dies: what was answered before counts, and a call takes one timeout, however many files hang."""
    import os
    import signal

    good, huge = tmp_path / "good.npy", tmp_path / "huge.npy"
    good.write_bytes(WRITERS["npy"](known_image(3), 0.0, 0.1))
    with huge.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (8000, 8000)})
        file.truncate(128 + 8000 * 8000 * 8)
    reader = ReaderChild(timeout_s=20, memory_mib=700, max_file_mib=1024)
    try:
        first, second = reader.look_at([(path, (), False) for path in (good, huge, good, huge)])
        assert isinstance(first, Look)
        assert "reader_memory_mib" in str(second)
        reader.probe(good)
        os.kill(reader.pid or 0, signal.SIGSTOP)
        reader.timeout_s = 0.1
        (only,) = reader.look_at([(good, (), False)] * 3)
        assert "longer than 0.1 s" in str(only)
    finally:
        reader.close()


@pytest.mark.timeout(60)
def test_long_questions_and_long_answers_do_not_wait_for_each_other(tmp_path: Path, child: ReaderChild) -> None:
    """Many loose sidecars make a question long, many images its answer: both together are more than the pipe takes."""
    loose = (f"{tmp_path}{'/.' * 15_000}/session.mdoc",)
    files = []
    for index in range(10):
        np.save(tmp_path / f"{index}.npy", np.full((900, 4, 4), index + 1, "<u2"))
        files.append((tmp_path / f"{index}.npy", loose, False))
    assert [look.probe.images for look in child.look_at(files)] == [900] * 10  # type: ignore[union-attr]


def test_a_reader_without_memory_costs_itself_only(tmp_path: Path) -> None:
    """The limit is on the child; we are told which setting it is."""
    big, good = tmp_path / "big.npy", tmp_path / "good.npy"
    np.save(big, np.ones((8000, 8000), "<f8"))
    good.write_bytes(WRITERS["npy"](known_image(3), 0.0, 0.1))
    reader = ReaderChild(timeout_s=20, memory_mib=700, max_file_mib=1024)
    try:
        with pytest.raises((ReaderDied, SourceNotReady)):
            reader.read(big, 0)
        assert np.array_equal(reader.read(good, 0)[0].pixels, known_image(3))
    finally:
        reader.close()


def test_who_makes_a_reader_closes_it(tmp_path: Path) -> None:
    """A process that takes in series after series, as `batch` does: the reader goes on, and of the rest no file stays open."""
    put(tmp_path / "in" / "np", 0, 3.0)

    def lived() -> tuple[int | None, int]:
        with Rehearsal(tmp_path, reader) as daemon:
            assert [ending.state for ending in daemon.run().endings.values()] == ["stored"]
        return reader.pid, len(list(Path("/proc/self/fd").iterdir()))

    with closing(ReaderChild.of(Config())) as reader:
        before = lived()
        assert lived() == before


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no reader behind."""
    import os
    import signal
    import subprocess
    import sys

    code = (
        "import sys, time; from pathlib import Path; from aet_stream.readers.child import ReaderChild\n"
        "if __name__ == '__main__':\n"
        "    reader = ReaderChild(timeout_s=9, memory_mib=2048, max_file_mib=9)\n"
        "    reader.probe(Path(sys.argv[1])); print(reader.pid, flush=True); time.sleep(60)"
    )
    good, script = tmp_path / "good.npy", tmp_path / "parent.py"
    good.write_bytes(WRITERS["npy"](known_image(3), 0.0, 0.1))
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(good)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    wait_for(gone, limit_s=5, what="the reader to end")


def test_a_file_we_may_not_read_is_tried_again_and_says_so() -> None:
    """Permission denied is nobody's final word: not ready, with the remedy. Root gives up its rights for a moment to see it."""
    import os
    import tempfile

    from aet_stream.readers import open_source
    from aet_stream.readers.child import Member, Rules, _Desk, _Request

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "locked.npy"
        path.write_bytes(WRITERS["npy"](known_image(3), 0.0, 0.1))
        assert open_source(path).probe.images == 1
        path.chmod(0o000)
        me = os.geteuid()
        try:
            if me == 0:
                os.seteuid(65534)
            answer, _ = _Desk(Rules(max_bytes=1 << 20)).answer(_Request("look", (Member(str(path), -1),)))
        finally:
            os.seteuid(me)
    assert answer.kind == "SourceNotReady"
    assert "right to read" in answer.text


def test_an_mdoc_gives_each_section_its_tilt(tmp_path: Path) -> None:
    """Both names are in use; an unfinished last line is not believed; keys may come in any order."""
    image = tmp_path / "a.mrc"
    for name in ("a.mrc.mdoc", "a.mdoc"):
        (tmp_path / name).write_bytes(mdoc("a.mrc", [-60.0, 3.5], 0.1))
        found = beside(image, 1, 2)
        assert [tilt.tilt_deg for tilt in found.tilts] == [3.5]
        assert found.known.pixel_size_nm == pytest.approx(0.1)
        (tmp_path / name).write_text("[ZValue = 0]\nTiltAngle = -3")
        with pytest.raises(SourceNotReady, match="last line"):
            beside(image, 0, 2, settle_s=60)
        (tmp_path / name).unlink()
    assert beside(image, 0, 2).tilts == ()


def test_a_rawtlt_counts_only_when_it_has_a_line_for_every_image(tmp_path: Path) -> None:
    """Otherwise nobody knows which line belongs to which image."""
    (tmp_path / "a.rawtlt").write_text("-10,5\n 0.0\n12\n")
    assert [tilt.tilt_deg for tilt in beside(tmp_path / "a.st", 0, 3).tilts] == [-10.5]
    assert beside(tmp_path / "a.st", 0, 4).tilts == ()
    assert "3 angles for 4" in beside(tmp_path / "a.st", 0, 4).remark


@pytest.mark.parametrize(
    ("y", "x", "nm"),
    [((0.1, "nm"), (0.1, "nm"), 0.1), ((1, "A"), (1, "Å"), 0.1), ((1e-10, "m"), (1e-10, "m"), 0.1), ((0.1, "n_m"), (0.1, "nm"), 0.1),
     ((1, ""), (1, ""), None), ((1, "1/nm"), (1, "1/nm"), None), ((-1, "nm"), (-1, "nm"), None), ((1, "nm"), (2, "nm"), None)],
)  # fmt: skip
def test_pixel_sizes_are_lengths_or_nothing(y: tuple[float, str], x: tuple[float, str], nm: float | None) -> None:
    """Reciprocal, negative, unitless or unequal ones are not believed."""
    assert pixel_size_nm(y, x) == (pytest.approx(nm) if nm else None)


def test_real_files_are_read_as_they_are(test_data: Path, child: ReaderChild) -> None:
    """Third-party samples: images, sizes, tilts."""
    formats = test_data / "formats"
    expected = {
        test_data / "real-series" / "HAADF.dm3": (91, (64, 64), -90.0),
        formats / "dm" / "BF_001.dm3": (1, (128, 128), -72.003),
        formats / "dm" / "BF_002.dm3": (1, (128, 128), -69.004),
        formats / "dm" / "BF_003.dm3": (1, (128, 128), -66.004),
        formats / "dm" / "dmTest_3D_int16_64,65,66.dm4": (66, (65, 64), None),
        formats / "dm" / "dmTest_float32_nonSquare_diffPixelSize.dm4": (1, (64, 128), None),
        formats / "mrc" / "HAADFscan.mrc": (1, (16, 16), 0.00812),
        formats / "mrc" / "EMD-3197.map": (20, (20, 20), None),
        formats / "tiff" / "test_loading_image_saved_with_DM.tif": (1, (68, 68), None),
        test_data / "simulated-np" / "np1_dose8e3.mat": (60, (128, 128), None),
    }
    for path, (images, shape, tilt) in expected.items():
        probe = child.probe(path)
        assert (probe.images, probe.shape) == (images, shape), path.name
        acquisition = child.read(path, 0)[0].acquisition
        assert acquisition.tilt_deg == (None if tilt is None else pytest.approx(tilt, abs=1e-3)), path.name
    assert child.read(test_data / "real-series" / "HAADF.dm3", 90)[0].acquisition.tilt_deg == 90.0
    sections = parse_mdoc((formats / "mdoc" / "tilt_series.mdoc").read_text())
    assert len([section for section in sections.of("ZValue") if section.tilt]) == 41


def test_every_suffix_has_a_reader() -> None:
    """The registry names modules that exist and offer what a format must."""
    import importlib

    for suffix, name in FORMATS.items():
        assert callable(importlib.import_module(f"aet_stream.readers.{name}").open_source), suffix
