"""Two lanes for one frame: the same answer whoever does what; and the factors that both of them work on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from aet_stream.denoise.denoiser import Denoiser
from aet_stream.denoise.gaussian_process.dense import condition
from aet_stream.denoise.gaussian_process.separable import Pairs, Points, joined
from aet_stream.denoise.lanes import aside, in_lanes, take_lanes
from aet_stream.training import sets

LIMIT_S = 20


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two lanes, as in our commands."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: one lane")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    take_lanes(2)
    yield
    take_lanes(1)


@pytest.mark.parametrize(("name", "index"), [("hard", 1), ("200 x 156", 1)])
def test_two_lanes_give_what_one_gives(two: None, name: str, index: int) -> None:
    """To the last bit, pixels and figures; a frame whose film is foreshortened, and one that is not square."""
    raw = sets.frames(name, 4)[index].raw
    alone, beside = (Denoiser(device="cpu", threads=threads).subtract(raw) for threads in (1, 2))
    assert np.array_equal(alone.clean, beside.clean)
    assert msgspec.json.encode(alone.quality) == msgspec.json.encode(beside.quality)
    assert any(thread.name == "second lane" for thread in threading.enumerate())


def test_what_nobody_has_begun_is_done_by_who_asks(two: None) -> None:
    """The second lane is busy, and nobody waits for it."""
    begun, end = threading.Event(), threading.Event()

    def busy() -> bool:
        begun.set()
        return end.wait(LIMIT_S)

    first = aside(busy)
    assert begun.wait(LIMIT_S)
    assert aside(threading.current_thread)() is threading.current_thread()
    end.set()
    assert first()


def test_who_waits_does_what_there_is_to_do(two: None) -> None:
    """What is waited for needs what is begun after it, by nobody yet."""
    begun, needed = threading.Event(), threading.Event()

    def needy() -> bool:
        begun.set()
        return needed.wait(LIMIT_S)

    first = aside(needy)
    assert begun.wait(LIMIT_S)
    later = aside(needed.set)
    assert first()
    assert later() is None


def test_what_fails_aside_fails_where_it_is_asked_for(two: None) -> None:
    with pytest.raises(ZeroDivisionError):
        in_lanes([lambda: 1, lambda: 1 // 0])
    assert in_lanes([lambda: 1, lambda: 2]) == [1, 2]


def test_a_fork_has_lanes_of_its_own(two: None) -> None:
    """The second lane of its parent is not there."""
    assert aside(lambda: 1)() == 1
    child = os.fork()
    if child == 0:
        os._exit(int(in_lanes([lambda: 3, lambda: 4]) != [3, 4]))
    assert os.waitpid(child, 0)[1] == 0


def test_where_openblas_has_threads_there_is_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for each other, spinning: what is begun aside is done by who asks."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    take_lanes(2)
    begun = threading.Event()
    later = aside(begun.set)
    assert not begun.wait(0.2)
    later()
    assert begun.is_set()


def positive(count: int) -> np.ndarray:
    """(n, n), symmetric."""
    square = np.random.default_rng(count).normal(size=(count, count))
    matrix: np.ndarray = square @ square.T + np.eye(count)
    return matrix


def test_what_is_extended_is_as_if_it_had_been_whole() -> None:
    """Of 30 observations, after the first 21 of them; and the first 25 of all."""
    matrix, seen = positive(30), np.random.default_rng(0).normal(size=30)
    larger = matrix.copy()
    first = condition(larger[:21, :21], seen[:21])
    assert first is not None
    grown, whole = first.extended(larger, seen[21:]), condition(matrix.copy(), seen)
    assert grown is not None
    assert whole is not None
    assert np.allclose(grown.white, whole.white, rtol=1e-10)
    assert grown.evidence == pytest.approx(whole.evidence, rel=1e-12)
    columns = np.random.default_rng(1).normal(size=(25, 7))
    part = grown.first(25)
    assert np.allclose(np.tril(part.factor) @ part.whitened(columns), columns)
    assert np.allclose(matrix[:25, :25] @ part.weights, seen[:25])
    larger[:21, 21:], larger[21:, 21:] = matrix[:21, 21:], matrix[21:, 21:] - 1000 * np.eye(9)
    assert first.extended(larger, seen[21:]) is None
    assert condition(-matrix, seen) is None


def test_many_columns_are_solved_for_like_few() -> None:
    """So many that both lanes take half of them; only some of them are given."""
    matrix = positive(300)
    fit, columns = condition(matrix.copy(), np.ones(300)), np.random.default_rng(2).normal(size=(300, 402))
    assert fit is not None
    lower = np.tril(fit.factor)
    assert np.allclose(lower @ fit.whitened(columns), columns)
    assert np.allclose(lower.T @ fit.whitened(columns, transposed=True), columns)
    assert np.allclose(lower @ fit.whitened(columns[:, ::3]), columns[:, ::3])


def test_covariances_of_windows_are_those_of_the_formula() -> None:
    """Of two sizes of windows, more than are put down at once, lengths along y and x unlike."""
    rng = np.random.default_rng(3)
    one = joined(Points(rng.integers(0, 30, (700, 2)).astype(float), 0.1), Points(rng.integers(0, 120, (5, 2)) / 4, 0.02))
    other = Points(rng.integers(0, 30, (150, 2)).astype(float), 0.3)
    found = Pairs(one, other).gaussian(2.0, (0.8, 1.25), 3.0, 0.5)
    broader = 2.0 + one.wide[:, None] + other.wide
    square = np.square((one.at[:, None] - other.at) * (0.8, 1.25)).sum(-1)
    assert np.allclose(found, 0.5 + 3.0 * 2.0 / broader * np.exp(-square / (2 * broader)), rtol=1e-12)
