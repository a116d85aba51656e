"""Libraries of other people's in a process of their own: they put things where we do, and whatever they do harms nobody.

What only the real ones can show is skipped where they are not installed; ASTRA's geometry is looked at on the CPU, where it is the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest

from aet_stream.errors import ReconstructionError
from aet_stream.projection import Array
from aet_stream.reconstruct import apart, astra_backend, solver, tomopy_backend
from aet_stream.reconstruct.run import Options, reconstruct
from aet_stream.reconstruct.volume_file import VOLUME
from tests.harness import ENVIRONMENT, wait_for
from tests.test_reconstruct import BLOBS, TILTS_DEG, place_of, views_of, write_series

#: Seen from everywhere, so that only the geometry says where it lands.
POINT = (6.3, -4.7, 8.0)
ROUND_DEG = np.linspace(0, 180, 60, endpoint=False)
needs_tomopy = pytest.mark.skipif(find_spec("tomopy") is None, reason="tomopy does not import here")
needs_astra = pytest.mark.skipif(find_spec("astra") is None, reason="ASTRA does not import here")

STAND_IN = """
import os, time
import numpy as np
if os.environ.get("STAND_IN") == "hang at once": time.sleep(3600)
def recon(tomo, theta, *, center, algorithm, sinogram_order, ncore, num_iter=1):
    os.environ["TOMOPY_PYTHON_THREADS"] = "1"
    what = os.environ.get("STAND_IN", "")
    if what == "abort": os.abort()
    if what == "memory": np.ones(1 << 36, np.uint8)
    if what == "raise": raise RuntimeError("two\\nlines")
    if what == "hang": time.sleep(3600)
    if what.startswith("/"):
        open(what, "w").write(str(os.getpid()))
        time.sleep(60)
    volume = np.full((tomo.shape[1], tomo.shape[2], tomo.shape[2]), num_iter, np.float32)
    if tomo.shape[2] == 640: volume[:, 0] = tomo[0]
    return volume
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `tomopy` that does what STAND_IN in the environment says; returns its folder."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tomopy.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    return tmp_path / "lib"


# -- where things are -------------------------------------------------------------------------------------------------------------------


def point(width: int) -> Array:
    return views_of(((*POINT, 1.0),), ROUND_DEG, width=width)


def assert_in_place(volume: Array, to_px: float = 0.05) -> None:
    assert place_of(np.maximum(volume, 0), *POINT) == pytest.approx(POINT, abs=to_px)


@pytest.mark.parametrize("width", [48, 47])
def test_our_solver_puts_a_point_where_the_convention_says(width: int) -> None:
    """To a twentieth of a pixel, as all the others below."""
    assert_in_place(solver.solve(point(width), ROUND_DEG, iterations=50).volume)


@needs_tomopy
@pytest.mark.tomopy
@pytest.mark.parametrize("width", [48, 47])
@pytest.mark.parametrize("algorithm", tomopy_backend.SAFE)
def test_tomopy_puts_a_point_where_we_do(algorithm: str, width: int) -> None:
    """Each of its algorithms, even and odd widths; noise around zero, or a subtraction of too much, does no more than move it a little."""
    views = point(width)
    noise = np.random.default_rng(0).normal(0, 0.25, views.shape).astype(np.float32)
    given = np.concatenate([views, views + noise, views - np.float32(0.5)], axis=1)
    volume, _ = apart.solve(given, ROUND_DEG, f"tomopy:{algorithm}", iterations=20)
    assert np.isfinite(volume).all()
    for part, to_px in zip(np.split(volume, 3), (0.05, 0.15, 0.15), strict=True):
        assert_in_place(part, to_px)


@needs_tomopy
@pytest.mark.tomopy
@pytest.mark.parametrize("algorithm", ["pml_quad", "pml_hybrid", "ospml_quad", "ospml_hybrid", "mlem", "osem", "grad", "tikh"])
def test_what_is_refused_of_tomopy_deserves_it(algorithm: str) -> None:
    """With noise around zero, the real one gives NaN or numbers many times those of the particle."""
    views = point(48) + np.random.default_rng(0).normal(0, 0.25, (60, 17, 48)).astype(np.float32)
    volume = tomopy_backend.load().recon(views, np.radians(ROUND_DEG), center=24, algorithm=algorithm, num_iter=20, sinogram_order=False)
    assert not np.isfinite(volume).all() or np.abs(volume).max() > 10
    with pytest.raises(ReconstructionError, match="is refused"):
        apart.check(f"tomopy:{algorithm}")


@needs_tomopy
@pytest.mark.tomopy
def test_bart_of_tomopy_is_its_sirt() -> None:
    """To the last bit, as docs/reconstruction.md says: one checks nothing that the other has not."""
    one, other = (apart.solve(point(48), ROUND_DEG, f"tomopy:{algorithm}", iterations=5)[0] for algorithm in ("sirt", "bart"))
    np.testing.assert_array_equal(one, other)


@needs_tomopy
@pytest.mark.tomopy
def test_a_volume_by_tomopy_from_a_series(tmp_path: Path) -> None:
    """`reconstruct` with a method of tomopy's: the file says how, and the point is where it belongs."""
    series = write_series(tmp_path / "s" / "series.h5", point(48), ROUND_DEG)
    with h5py.File(reconstruct(series, Options(method="tomopy:sirt", iterations=50, align=(), quality=False))) as file:
        assert (file["reconstruction"].attrs["method"], file["reconstruction"].attrs["iterations_done"]) == ("tomopy:sirt", 50)
        assert_in_place(file[VOLUME][()])


@needs_astra
@pytest.mark.parametrize("width", [48, 47])
@pytest.mark.parametrize("algorithm", astra_backend.SAFE)
def test_astra_puts_a_point_where_we_do(algorithm: str, width: int) -> None:
    """Each of its algorithms, even and odd widths."""
    import astra

    assert_in_place(astra_backend.solve(point(width), ROUND_DEG, algorithm=algorithm, iterations=15, astra=astra, gpu=False))


@pytest.mark.gpu
@needs_astra
@pytest.mark.parametrize("algorithm", astra_backend.SAFE)
def test_astra_on_a_gpu(algorithm: str) -> None:
    """The same through the door that users take."""
    import astra

    if not astra.use_cuda():
        pytest.skip("no CUDA device")
    assert_in_place(apart.solve(point(48), ROUND_DEG, f"astra:{algorithm}")[0])


# -- what is refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "words"), [
    ("astra:sirt", "pip install|no CUDA device"), ("astra:magic", "not been checked"), ("tomopy:mlem", "negative values"),
    ("tomopy:", "choose auto, nesterov-sirt, tomopy:gridrec"), ("magic", "choose auto"), ("magic:sirt", "choose auto"),
])  # fmt: skip
def test_methods_that_cannot_be_are_refused(method: str, words: str) -> None:
    """With the reason, and what there is instead; ASTRA without a GPU among them."""
    if method == "astra:sirt" and find_spec("astra") is not None and __import__("astra").use_cuda():
        pytest.skip("there is a GPU")
    with pytest.raises(ReconstructionError, match=words):
        apart.check(method)


@pytest.mark.skipif(find_spec("tomopy") is not None, reason="tomopy is here")
def test_absence_is_explained(tmp_path: Path) -> None:
    """Before anything is read: the remedy, and what works without."""
    with pytest.raises(ReconstructionError, match=r"tomopy does not import.*conda.*nesterov-sirt"):
        reconstruct(tmp_path / "none.h5", Options(method="tomopy:sirt"))


# -- whatever they do -------------------------------------------------------------------------------------------------------------------


def test_the_answer_of_another_process_is_ours(stand_in: Path) -> None:
    """The volume comes back whole; iterations as asked for, or as is usual; nothing is left in our environment."""
    views, before = views_of(BLOBS, TILTS_DEG), set(sys.modules)  # the real one may be here, and imported
    for asked, done in ((7, 7), (0, 50)):
        volume, iterations = apart.solve(views, TILTS_DEG, "tomopy:sirt", iterations=asked)
        assert (iterations, volume.shape, volume.dtype) == (done, (17, 48, 48), np.float32)
        assert (volume == done).all()
    assert "TOMOPY_PYTHON_THREADS" not in os.environ
    assert "tomopy" not in set(sys.modules) - before


def test_slices_go_there_and_come_back_a_few_at_a_time(stand_in: Path) -> None:
    """Each piece is put where it belongs, and told of; the last one is the whole."""
    views = np.random.default_rng(0).random((len(TILTS_DEG), 21, 640)).astype(np.float32)
    told: list[tuple[int, int]] = []
    volume, _ = apart.solve(views, TILTS_DEG, "tomopy:sirt", threads=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(6, 21), (12, 21), (18, 21), (21, 21)]
    assert (volume[:, 1:] == 50).all()
    np.testing.assert_array_equal(volume[:, 0], views[0])


@pytest.mark.parametrize(("what", "words"), [
    ("abort", "its process died.*reconstruct.memory_mib"), ("memory", "needs more than 3000 MiB"), ("raise", "failed: RuntimeError: two"),
])  # fmt: skip
def test_a_library_that_fails_costs_its_process_only(stand_in: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str) -> None:
    """A crash in C, more memory than it may have, an exception: one error with words."""
    monkeypatch.setenv("STAND_IN", what)
    with pytest.raises(ReconstructionError, match=words):
        apart.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, "tomopy:sirt", memory_mib=3000)


def test_a_process_that_dies_before_it_hears_what_is_asked_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory is short: however much it was to be sent, one error with words."""
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif any('spawn_main' in word for word in sys.orig_argv): os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ReconstructionError, match=r"tomopy:sirt: its process died \(exit code 9"):
        apart.solve(np.ones((29, 64, 96), np.float32), TILTS_DEG, "tomopy:sirt")


@pytest.mark.parametrize("where", ["hang", "hang at once"])
def test_a_library_that_hangs_is_stopped(stand_in: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """In a call, or while it is loaded: after its time, with the setting that gives it more."""
    monkeypatch.setenv("STAND_IN", where)
    with pytest.raises(ReconstructionError, match=r"handed nothing over for 4 s and was stopped.*reconstruct\.silence_s"):
        apart.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, "tomopy:sirt", silence_s=4)


def test_a_library_may_have_what_this_process_may(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a container or a service has less than the machine: one error with words, before the kernel kills."""
    monkeypatch.setenv("STAND_IN", "memory")
    monkeypatch.setattr(solver, "machine_bytes", lambda: 1000 << 20)
    with pytest.raises(ReconstructionError, match="needs more than 800 MiB"):
        apart.solve(views_of(BLOBS, TILTS_DEG), TILTS_DEG, "tomopy:sirt")


def test_it_ends_with_whoever_asked(stand_in: Path, tmp_path: Path) -> None:
    """The asking process is killed in the middle: the other one goes, too, though inside a long call."""
    note = tmp_path / "pid"
    (tmp_path / "ask.py").write_text(
        "import numpy as np\nfrom aet_stream.reconstruct import apart\n"
        "if __name__ == '__main__': apart.solve(np.ones((3, 4, 8), np.float32), np.arange(3.0), 'tomopy:sirt')\n"
    )
    environment = {**ENVIRONMENT, "STAND_IN": str(note), "PYTHONPATH": f"{stand_in}:{Path.cwd()}"}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "ask.py")], env=environment)
    try:
        pid = int(wait_for(lambda: note.exists() and note.read_text(), limit_s=60))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(), what="the child's end")
