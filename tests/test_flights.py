"""Credit and leases: memory stays bounded, dangerous units fly alone."""

from __future__ import annotations

from aet_stream.hub.flights import Flight, Flights, Pending


def flights(credit: int = 3, credit_bytes: int = 1000) -> Flights:
    return Flights(credit, credit_bytes, lease_s=10.0)


def pending(name: str, nbytes: int = 100, **more: object) -> Pending:
    return Pending(name, 0, "1", nbytes, 0.0, 0.0, **more)  # type: ignore[arg-type]


def fly(all_flights: Flights, found: Pending) -> Flight:
    flight = Flight(1, "s", found.path, found.image, found.stamp, found.nbytes, 0.0, 0.0, 0.0, alone=found.alone)
    all_flights.launch(flight)
    return flight


def test_no_more_than_the_credit_is_asked_for() -> None:
    """In number and in bytes; one is always let in, however large."""
    few = flights()
    for name in "abcde":
        few.offer(pending(name))
    assert [p.path for p in few.grantable(0.0)] == ["a", "b", "c"]
    large = flights(credit=9, credit_bytes=250)
    for name in "abc":
        large.offer(pending(name))
    assert len(large.grantable(0.0)) == 2
    huge = flights(credit_bytes=50)
    huge.offer(pending("a"))
    huge.offer(pending("b"))
    assert [p.path for p in huge.grantable(0.0)] == ["a"]


def test_credit_comes_back_when_a_unit_lands() -> None:
    """What has left memory makes room."""
    some = flights(credit=1)
    some.offer(pending("a"))
    some.offer(pending("b"))
    flight = fly(some, some.grantable(0.0)[0])
    assert some.grantable(0.0) == []
    some.land(flight)
    assert [p.path for p in some.grantable(0.0)] == ["b"]


def test_the_last_try_of_a_dangerous_unit_flies_alone() -> None:
    """After its pause, with nothing else in the air, and nothing joins it."""
    some = flights()
    some.offer(pending("bomb", alone=True, not_before=5.0))
    some.offer(pending("good"))
    assert [p.path for p in some.grantable(9.0)] == ["good"]
    good = fly(some, some.grantable(9.0)[0])
    some.land(good)
    assert some.grantable(4.0) == []
    lonely = some.grantable(6.0)
    assert [p.path for p in lonely] == ["bomb"]
    fly(some, lonely[0])
    some.offer(pending("later"))
    assert some.grantable(9.0) == []


def test_a_last_try_stays_alone_when_it_is_offered_again() -> None:
    """A new watch offers everything that it finds; only another state of the file is another matter."""
    some = flights()
    some.offer(pending("bomb", alone=True, not_before=5.0))
    some.offer(pending("bomb"))
    assert some.grantable(4.0) == []
    assert [p.alone for p in some.grantable(6.0)] == [True]
    some.offer(Pending("bomb", 0, "2", 100, 0.0, 0.0))
    assert [p.alone for p in some.grantable(4.0)] == [False]


def test_a_unit_is_not_offered_twice_while_it_flies() -> None:
    """The same state of the file; a new state waits for its turn."""
    some = flights()
    some.offer(pending("a"))
    fly(some, some.grantable(0.0)[0])
    some.offer(pending("a"))
    assert not some.backlog
    some.offer(Pending("a", 0, "2", 100, 0.0, 0.0))
    assert list(some.backlog) == [("a", 0)]
    assert some.grantable(0.0) == []


def test_an_old_state_that_is_asked_for_again_does_not_take_the_place_of_a_new_one() -> None:
    """Watch offers each state once: what waits for credit is the newer one, and stays; the same state may become the last try."""
    some = flights()
    some.offer(Pending("a", 0, "2", 100, 0.0, 0.0))
    some.offer_again(pending("a"))
    assert [found.stamp for found in some.backlog.values()] == ["2"]
    some.offer_again(Pending("a", 0, "2", 100, 0.0, 0.0, alone=True))
    assert [found.alone for found in some.backlog.values()] == [True]


def test_a_stale_result_finds_no_flight() -> None:
    """A lease has an id of its own; after it was taken back, the old id means nothing."""
    some = flights()
    some.offer(pending("a"))
    flight = fly(some, some.grantable(0.0)[0])
    flight.state = "waiting"
    some.lease(flight, b"w1", "hub", now=0.0, unix_now=0.0)
    old = flight.job_id
    assert some.find_job(old) is flight
    some.unlease(flight)
    some.lease(flight, b"w2", "hub", now=0.0, unix_now=0.0)
    assert some.find_job(old) is None
    assert some.find_job(flight.job_id) is flight
    assert some.held_by(b"w1") == []
