"""Credit and leases: memory stays bounded, dangerous visits fly alone."""

from __future__ import annotations

import numpy as np

from aet_stream.hub.in_flight import InFlight, Offered, Read, State, Wanted
from aet_stream.messages import Acquired
from aet_stream.projection import Acquisition, VisitKey
from aet_stream.status import QueueDepth


def in_flight(credit: int = 3, credit_bytes: int = 1000) -> InFlight:
    return InFlight(credit, credit_bytes, lease_s=10.0, series_of=lambda path: path[0])


def offered(name: str, nbytes: int = 100, stamp: str = "1", **more: object) -> Offered:
    return Offered(VisitKey(name, 0, stamp), nbytes, 0.0, 0.0, **more)  # type: ignore[arg-type]


def fly(some: InFlight, found: Offered) -> Wanted:
    return some.want(found, 1, 0.0)


def read(some: InFlight, wanted: Wanted) -> Read:
    acquired = Acquired(visit=wanted.key, sha256="", acquisition=Acquisition(), candidates=())
    return some.wait(Read(wanted, acquired, np.zeros((2, 2), "<u2"), {}, None, 0.0))


def names(some: InFlight, now_s: float = 0.0) -> list[str]:
    return [found.key.path for found in some.grantable(now_s)]


def test_no_more_than_the_credit_is_asked_for() -> None:
    """In number and in bytes; one is always let in, however large."""
    few = in_flight()
    for name in "abcde":
        few.offer(offered(name))
    assert names(few) == ["a", "b", "c"]
    large = in_flight(credit=9, credit_bytes=250)
    for name in "abc":
        large.offer(offered(name))
    assert len(large.grantable(0.0)) == 2
    huge = in_flight(credit_bytes=50)
    huge.offer(offered("a"))
    huge.offer(offered("b"))
    assert names(huge) == ["a"]


def test_what_goes_first_is_asked_for_before_all_else_and_what_of_its_series_was_on_its_way_follows_it() -> None:
    """In the order in which it had been asked for, and before what waited; other series fly on."""
    some = in_flight(credit=9)
    for name in ("s1", "t1", "s2", "s3", "t2"):
        some.offer(offered(name))
    for found in some.grantable(0.0)[:3]:
        fly(some, found)
    some.offer_first("s", [offered("s8"), offered("s9")])
    assert names(some) == ["s8", "s9", "s1", "s2", "s3", "t2"]
    assert some.holds(("t1", 0))


def test_an_image_follows_what_of_its_series_was_asked_for_before_it() -> None:
    """In whatever state that is: also done, or asked for once more; not once it has left."""
    some = in_flight(credit=9)
    for name in ("s1", "t1", "s2"):
        some.offer(offered(name))
    first, other, second = (fly(some, found) for found in some.grantable(0.0))
    assert [some.follows(each) for each in (first, other, second)] == [False, False, True]
    some.want_again(first, 5.0)
    leased = some.lease(read(some, second), b"w", now_s=0.0, unix_s=0.0)
    some.finish(some.lease(read(some, first), b"w", now_s=0.0, unix_s=0.0), None, {}, 0.0)  # type: ignore[arg-type]
    assert some.follows(leased)
    some.leave(first)
    assert not some.follows(leased)


def test_credit_comes_back_when_a_visit_leaves() -> None:
    """What has left memory makes room."""
    some = in_flight(credit=1)
    some.offer(offered("a"))
    some.offer(offered("b"))
    wanted = fly(some, some.grantable(0.0)[0])
    assert some.grantable(0.0) == []
    some.leave(wanted)
    assert names(some) == ["b"]


def test_the_last_try_of_a_dangerous_visit_flies_alone() -> None:
    """After its pause, with nothing else in the air, and nothing joins it."""
    some = in_flight()
    some.offer(offered("bomb", alone_from_s=5.0))
    some.offer(offered("good"))
    assert names(some, 9.0) == ["good"]
    some.leave(fly(some, some.grantable(9.0)[0]))
    assert names(some, 4.0) == []
    lonely = some.grantable(6.0)
    assert [found.key.path for found in lonely] == ["bomb"]
    fly(some, lonely[0])
    some.offer(offered("later"))
    assert names(some, 9.0) == []


def test_a_last_try_stays_alone_when_it_is_offered_again() -> None:
    """A new watch offers everything that it finds; only another state of the file is another matter."""
    some = in_flight()
    some.offer(offered("bomb", alone_from_s=5.0))
    some.offer(offered("bomb"))
    assert some.grantable(4.0) == []
    assert [found.alone_from_s for found in some.grantable(6.0)] == [5.0]
    some.offer(offered("bomb", stamp="2"))
    assert [found.alone_from_s for found in some.grantable(4.0)] == [None]


def test_a_visit_is_not_offered_twice_while_it_flies() -> None:
    """The same state of the file; a new state waits for its turn."""
    some = in_flight()
    some.offer(offered("a"))
    fly(some, some.grantable(0.0)[0])
    some.offer(offered("a"))
    assert not some.backlog
    some.offer(offered("a", stamp="2"))
    assert list(some.backlog) == [("a", 0)]
    assert some.grantable(0.0) == []


def test_an_old_state_that_is_asked_for_again_does_not_take_the_place_of_a_new_one() -> None:
    """Watch offers each state once: what waits for credit is the newer one, and stays; the same state may become the last try."""
    some = in_flight()
    some.offer(offered("a", stamp="2"))
    some.offer_again(offered("a"))
    assert [found.key.stamp for found in some.backlog.values()] == ["2"]
    some.offer_again(offered("a", stamp="2", alone_from_s=0.0))
    assert [found.alone_from_s for found in some.backlog.values()] == [0.0]


def test_a_stale_result_finds_no_lease() -> None:
    """A lease has an id of its own; after it was taken back, the old id means nothing."""
    some = in_flight()
    some.offer(offered("a"))
    waiting = read(some, fly(some, some.grantable(0.0)[0]))
    first = some.lease(waiting, b"w1", now_s=0.0, unix_s=0.0)
    assert some.find_job(first.job_id) is first
    assert some.unlease(first) is waiting
    second = some.lease(waiting, b"w2", now_s=0.0, unix_s=0.0)
    assert some.find_job(first.job_id) is None
    assert some.find_job(second.job_id) is second
    assert some.held_by(b"w1") == []


def test_what_was_wanted_is_known_through_its_whole_life() -> None:
    """Each state is made of the one before: key, series and the ledger's number stay, and it counts where it is."""
    some = in_flight()
    some.offer(offered("s"))
    wanted = some.want(some.grantable(0.0)[0], 7, 0.0)
    states: list[State] = [wanted, read(some, wanted)]
    states.append(some.lease(states[1], b"w", now_s=0.0, unix_s=0.0))  # type: ignore[arg-type]
    states.append(some.finish(states[2], None, {}, 0.0))  # type: ignore[arg-type]
    assert {(state.visit_id, state.series, state.key) for state in states} == {(7, "s", VisitKey("s", 0, "1"))}
    assert some.counts() == QueueDepth(done=1, credit=3)
