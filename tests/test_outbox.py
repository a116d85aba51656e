"""Events: each reaches every sink at least once, in order per series, whoever fails. A real hub and a real trigger, turned by hand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aet_stream.config import Config, Sink
from aet_stream.coverage import covered_deg, largest_gap_deg
from aet_stream.errors import ConfigError
from aet_stream.hub.core import Core
from aet_stream.hub.hub import Hub
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.timing import Timing
from aet_stream.trigger import webhook
from aet_stream.trigger.sinks import SINKS
from aet_stream.trigger.trigger import Trigger
from tests.harness import wait_for
from tests.receivers import Program, Receiver, http_receiver, slow, zmq_receiver

ALL = ["projection.stored", "coverage.milestone", "series.closed", "reconstruction.done", "held", "quarantined"]


class Pair:
    """Hub and trigger in one thread."""

    def __init__(self, folder: Path, **settings: dict[str, Any]) -> None:
        tree = {
            "watch": {"root": str(folder / "in")},
            "output": {"root": str(folder / "out")},
            "trigger": {"longest_pause_s": 0.2, "again_s": 0.2, "attempts": 3},
            "film": {"enabled": False},
            "reconstruct": {"on_close": False},
            "preview": {"enabled": False},
            "report": {"on_close": False},
            **settings,
        }
        self.config = msgspec.convert(tree, Config)
        self.clock_off_s = 0.0
        """How far the computer's clock was set back or forth."""
        self._start_hub()
        self.trigger = Trigger(self.config)
        self.trigger.start()

    @property
    def core(self) -> Core:
        return self.hub.core

    def announce(self, count: int, *, series: str = "s", event: str = "series.closed", first: int = 0) -> list[str]:
        """The ids of new events."""
        with self.core.ledger.transaction():
            return [str(self.core.outbox.announce(event, series, str(n), {"n": n})) for n in range(first, first + count)]

    def turn(self) -> None:
        self.trigger.step()
        self.trigger.beat()
        self.hub.step()

    def until(self, condition: Callable[[], Any], limit_s: float = 30.0) -> None:
        def there() -> Any:
            self.turn()
            return condition()

        wait_for(there, limit_s=limit_s, what=f"deliveries: {self.deliveries()}")

    def deliveries(self) -> list[tuple[str, str]]:
        return [(row["sink"], row["state"]) for row in self.core.outbox.listed()]

    def settled(self) -> bool:
        return self.core.outbox.figures().pending == 0

    def new_hub(self) -> None:
        """The hub dies and another takes over; what the dead one had on its sockets is lost."""
        self.hub.close()
        self._start_hub()

    def _start_hub(self) -> None:
        self.hub = Hub(self.config, timing=Timing(unix_s=lambda: time.time() + self.clock_off_s))
        self.hub.start()

    def new_trigger(self) -> None:
        self.trigger.close()
        self.trigger = Trigger(self.config)
        self.trigger.start()

    def close(self) -> None:
        self.trigger.close()
        self.hub.close()


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(**settings: Any) -> Pair:
        made.append(Pair(tmp_path, **settings))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.fixture(params=["webhook", "zeromq"])
def receiving(request: pytest.FixtureRequest, tmp_path: Path, pairs: Callable[..., Pair]) -> Iterator[tuple[Pair, Receiver]]:
    """A pair whose one sink is a receiver on the network."""
    context = http_receiver() if request.param == "webhook" else zmq_receiver(tmp_path)
    with context as receiver:
        where = {"url": receiver.address} if request.param == "webhook" else {"endpoint": receiver.address}
        yield pairs(**{request.param: {**where, "events": ALL, "timeout_s": 1.0}}), receiver


# -- every sink -------------------------------------------------------------------------------------------------------------------------


def test_receivers_get_every_event_once_and_in_order(receiving: tuple[Pair, Receiver]) -> None:
    """Two series, ten events: all there, in order within each series, with what happened in them."""
    pair, receiver = receiving
    for n in range(5):
        pair.announce(1, series="a", first=n)
        pair.announce(1, series="b", first=n, event="projection.stored")
    pair.until(pair.settled)
    assert len(receiver.tries) == 10
    for series in "ab":
        assert [event["data"]["n"] for event in receiver.effects if event["series"] == series] == [0, 1, 2, 3, 4]
    assert receiver.effects[0].keys() == {"id", "event", "series", "at", "data"}


def test_a_failing_receiver_is_tried_again_and_order_kept(receiving: tuple[Pair, Receiver]) -> None:
    """It says no twice: the same event comes again under the same id before any later one of its series."""
    pair, receiver = receiving
    receiver.answers = [500, 500]
    first, second = pair.announce(2)
    pair.until(pair.settled)
    assert [event["id"] for event in receiver.tries] == [first, first, first, second]
    assert [event["id"] for event in receiver.effects] == [first, second]


def test_a_slow_receiver_is_given_up_and_tried_again(receiving: tuple[Pair, Receiver]) -> None:
    """No answer within the timeout is a failed try; it acted on it all the same, and its id lets it know the second try."""
    pair, receiver = receiving
    receiver.before_answer = slow(1.5)
    (event_id,) = pair.announce(1)
    pair.until(lambda: len(receiver.tries) == 1)
    receiver.before_answer = lambda event: None
    pair.until(pair.settled)
    assert {event["id"] for event in receiver.tries} == {event_id}
    assert len(receiver.tries) >= 2
    assert len(receiver.effects) == 1


def test_too_many_failures_put_an_event_aside_until_a_person_resends_it(receiving: tuple[Pair, Receiver]) -> None:
    """After three tries it is listed with its reason, later events go on, and `resend` delivers it."""
    pair, receiver = receiving
    receiver.answers = [500, 500, 500]
    first, second = pair.announce(2)
    pair.until(lambda: pair.settled() and len(receiver.effects) == 1)
    (dead,) = pair.core.outbox.figures().dead
    assert (dead.event_id, dead.attempts) == (first, 3)
    assert "500" in dead.detail or "not the event's id" in dead.detail
    assert [event["id"] for event in receiver.effects] == [second]
    with pair.core.ledger.transaction():
        assert pair.core.outbox.resend([first]) == 1
    pair.until(pair.settled)
    assert [event["id"] for event in receiver.effects] == [second, first]


@pytest.mark.parametrize("who", ["hub", "trigger"])
@pytest.mark.parametrize("when", ["before_answer", "after_answer"])
def test_death_in_the_middle_repeats_but_loses_nothing(receiving: tuple[Pair, Receiver], who: str, when: str) -> None:
    """Hub or trigger is replaced while a receiver works, or before its answer was acknowledged: every event arrives, each effect once."""
    pair, receiver = receiving
    reached: list[str] = []
    setattr(receiver, when, lambda event: reached.append(event["id"]))
    ids = pair.announce(3)
    for n in range(3):
        pair.until(lambda n=n: len(set(reached)) > n)
        pair.new_hub() if who == "hub" else pair.new_trigger()
    pair.until(pair.settled, limit_s=40)
    assert [event["id"] for event in receiver.effects] == ids


def test_nobody_there_costs_tries_not_events(pairs: Callable[..., Pair]) -> None:
    """The receiver is down for a while; when it comes up it gets everything in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pair = pairs(webhook={"url": f"http://127.0.0.1:{port}/hook", "events": ALL}, trigger={"longest_pause_s": 0.1, "attempts": 1000})
    ids = pair.announce(3)
    pair.until(lambda: pair.core.outbox.listed()[-1]["attempts"] >= 3)
    assert "refused" in pair.core.outbox.listed()[-1]["detail"]
    with http_receiver(port) as receiver:
        pair.until(pair.settled)
    assert [event["id"] for event in receiver.tries] == ids


# -- webhook ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["whsec_" + base64.b64encode(b"0123456789abcdef").decode(), "any text", "\ufeffany text"])
def test_webhooks_are_signed(tmp_path: Path, pairs: Callable[..., Pair], secret: str) -> None:
    """The receiver can check id, time and body with the shared secret; the id serves as idempotency key."""
    (tmp_path / "secret").write_text(secret + "\n")
    key = b"0123456789abcdef" if secret.startswith("whsec_") else b"any text"
    with http_receiver() as receiver:
        pair = pairs(webhook={"url": receiver.address, "secret_file": str(tmp_path / "secret"), "events": ALL})
        (event_id,) = pair.announce(1)
        pair.until(pair.settled)
    (headers,), (body,) = receiver.headers, receiver.bodies
    signed = f"{event_id}.{headers['webhook-timestamp']}.".encode() + body
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-id"] == headers["idempotency-key"] == event_id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60


def test_a_missing_secret_fails_the_webhook_alone(tmp_path: Path, pairs: Callable[..., Pair]) -> None:
    """Nothing is sent unsigned, the other sinks go on, and what was put aside can be sent once the secret is there."""
    program, secret = Program(tmp_path / "program"), tmp_path / "secret"
    with http_receiver() as receiver:
        signed = {"url": receiver.address, "secret_file": str(secret), "events": ALL}
        pair = pairs(webhook=signed, command={"argv": program.argv, "events": ALL})
        (event_id,) = pair.announce(1)
        pair.until(pair.settled)
        assert sorted(pair.deliveries()) == [("command", "done"), ("webhook", "failed")]
        assert f"webhook.secret_file {secret}" in pair.core.outbox.figures().dead[0].detail
        assert receiver.tries == []
        secret.write_text("any text\n")
        with pair.core.ledger.transaction():
            assert pair.core.outbox.resend([event_id]) == 1
        pair.until(pair.settled)
    assert "webhook-signature" in receiver.headers[0]


@pytest.mark.parametrize("answer", [503, (429, {"Retry-After": "1"})])
def test_again_later_is_no_failed_try(pairs: Callable[..., Pair], answer: Any) -> None:
    """A busy receiver may say so more often than there are tries."""
    with http_receiver() as receiver:
        receiver.answers = [answer] * (5 if answer == 503 else 2)
        pair = pairs(webhook={"url": receiver.address, "events": ALL}, trigger={"again_s": 0.05, "attempts": 1})
        (event_id,) = pair.announce(1)
        pair.until(pair.settled)
    assert [event["id"] for event in receiver.effects] == [event_id]
    assert pair.core.outbox.figures().failed == 0


@pytest.mark.parametrize("then", ["start", "clock"])
def test_what_was_put_off_is_sent_at_the_next_start_and_when_the_clock_is_set_back(pairs: Callable[..., Pair], then: str) -> None:
    """Nobody waits for a time that the clock may never show again, nor for another start than the next."""
    with http_receiver() as receiver:
        receiver.answers = [503]
        pair = pairs(webhook={"url": receiver.address, "events": ALL}, trigger={"again_s": 3600})
        names = pair.announce(2)
        pair.until(lambda: pair.core.commands.obey("idle", {})[1]["put_off_events"] == 2)
        if then == "start":
            pair.new_hub()
        else:
            pair.clock_off_s = -86400.0
        pair.until(pair.settled, limit_s=10)
    assert [event["id"] for event in receiver.effects] == names


def test_what_a_receiver_puts_off_is_not_unfinished(pairs: Callable[..., Pair]) -> None:
    """Nor is what waits behind it, nor what had failed before; another series, a failed try and what a person sends again are."""
    with http_receiver() as receiver:
        receiver.answers = [503, 500, 503, *[500] * 1000]
        pair = pairs(webhook={"url": receiver.address, "events": ALL}, trigger={"again_s": 3600, "longest_pause_s": 3600, "attempts": 2})

        def waiting() -> tuple[int, int]:
            said = pair.core.commands.obey("idle", {})[1]
            return said["put_off_events"], said["unfinished_events"]

        pair.announce(3)
        pair.until(lambda: waiting() == (3, 0))
        other = pair.announce(1, series="t")
        assert waiting() == (3, 1)
        pair.until(lambda: pair.core.outbox.delivery(other[0], "webhook")["ended_at"] is not None)
        assert waiting() == (3, 1)
        with pair.core.ledger.transaction():
            pair.core.ledger.db.execute("UPDATE delivery SET next_at = 1 WHERE series = 't'")  # as if an hour had passed
        pair.until(lambda: waiting() == (4, 0))
        with pair.core.ledger.transaction():
            pair.core.outbox.end(other[0], "webhook", "failed", "as if it had been tried often")
            assert pair.core.outbox.resend(other) == 1
        assert waiting() == (3, 1)


def test_redirects_are_not_followed(pairs: Callable[..., Pair]) -> None:
    """A signed event goes where it was meant to, nowhere else."""
    with http_receiver() as receiver, http_receiver() as other:
        receiver.answers = [(307, {"Location": other.address})] * 3
        pair = pairs(webhook={"url": receiver.address, "events": ALL})
        pair.announce(1)
        pair.until(pair.settled)
    assert other.tries == []
    assert pair.core.outbox.figures().failed == 1


def test_an_answer_byte_by_byte_is_cut_at_the_timeout() -> None:
    """Every byte is in time, the whole is not: a failed try, and no thread that reads on for as long as the receiver likes."""
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            for _ in range(100):
                over.wait(0.05)
                client.sendall(b"x")
            client.sendall(b"\r\n\r\n")
        over.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,)).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            webhook.post(url, None, "id", b"{}", timeout_s=0.3, again_s=1)
        assert over.wait(10)


@pytest.mark.parametrize("content", [None, "\nsecond line", "whsec_no base64!", "whsec_", "whsec_====", "\ufeff\n"])
def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    """With what is wrong about it."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"webhook\.secret_file .*secret"):
        webhook.secret_of(str(path))


# -- command ----------------------------------------------------------------------------------------------------------------------------


def test_a_command_gets_the_event_and_no_shell(tmp_path: Path, pairs: Callable[..., Pair]) -> None:
    """JSON on standard input, the environment as documented, arguments as they are."""
    program = Program(tmp_path / "program")
    pair = pairs(command={"argv": program.argv, "events": ["held"]})
    pair.announce(1)  # a series.closed, which it did not ask for
    (event_id,) = pair.announce(1, event="held")
    pair.until(pair.settled)
    (tried,) = program.tries
    assert (tried["id"], tried["event"], tried["attempt"], tried["argv"]) == (event_id, "held", "1", ["two words; $HOME"])


def test_exit_75_means_again_later_and_other_codes_a_failed_try(tmp_path: Path, pairs: Callable[..., Pair]) -> None:
    """75 is never counted; 1 is, until the event is put aside."""
    program = Program(tmp_path / "program")
    program.answer(75)
    pair = pairs(command={"argv": program.argv, "events": ALL}, trigger={"again_s": 0.05, "longest_pause_s": 0.05, "attempts": 2})
    pair.announce(1)
    pair.until(lambda: len(program.tries) > 3)
    program.answer(1)
    pair.until(pair.settled)
    (dead,) = pair.core.outbox.figures().dead
    assert (dead.attempts, dead.detail) == (2, "exit code 1")
    assert program.effects == set()


def test_a_command_that_hangs_is_stopped(tmp_path: Path, pairs: Callable[..., Pair]) -> None:
    """Its time is up: it is killed with all that it started, and tried again."""
    program = Program(tmp_path / "program")
    (tmp_path / "program" / "wait").touch()
    pair = pairs(command={"argv": program.argv, "events": ALL, "timeout_s": 1.0}, trigger={"longest_pause_s": 0.05})
    (event_id,) = pair.announce(1)
    pair.until(lambda: "stopped after" in pair.core.outbox.listed()[0]["detail"])
    (tmp_path / "program" / "wait").unlink()
    pair.until(pair.settled)
    assert program.effects == {event_id}


def test_a_command_that_is_killed_has_failed(pairs: Callable[..., Pair]) -> None:
    """As the kernel does where memory runs out: it is charged, and put aside after the last try, not begun for ever."""
    pair = pairs(command={"argv": ["/bin/sh", "-c", "kill -KILL $$"], "events": ALL}, trigger={"longest_pause_s": 0.05, "attempts": 2})
    pair.announce(1)
    pair.until(pair.settled)
    (dead,) = pair.core.outbox.figures().dead
    assert (dead.attempts, dead.detail) == (2, "killed by signal 9")


def test_a_command_that_is_not_there_is_named(tmp_path: Path, pairs: Callable[..., Pair]) -> None:
    """The dead letter says which program."""
    pair = pairs(command={"argv": [str(tmp_path / "nothing")], "events": ALL}, trigger={"attempts": 1})
    pair.announce(1)
    pair.until(pair.settled)
    assert "nothing cannot be started: No such file" in pair.core.outbox.figures().dead[0].detail


# -- what happens to what ---------------------------------------------------------------------------------------------------------------


def test_one_sink_does_not_wait_for_another(tmp_path: Path, pairs: Callable[..., Pair]) -> None:
    """A command that takes an hour holds up no webhook."""
    program = Program(tmp_path / "program")
    (tmp_path / "program" / "wait").touch()
    with http_receiver() as receiver:
        pair = pairs(command={"argv": program.argv, "events": ALL}, webhook={"url": receiver.address, "events": ALL})
        pair.announce(4)
        pair.until(lambda: len(receiver.effects) == 4)
    assert len(program.tries) <= 1


def test_the_same_happening_is_announced_once(pairs: Callable[..., Pair]) -> None:
    """Its id follows from what happened, also in another ledger."""
    pair = pairs(command={"argv": ["/bin/true"], "events": ALL})
    (first,) = pair.announce(1)
    assert pair.announce(1) == ["None"]
    assert len(pair.core.outbox.listed()) == 1
    other = Ledger(pair.config.output_root / "other.sqlite")
    with other.transaction():
        assert Outbox(other.db).announce("series.closed", "s", "0", {}) == first
    other.close()


def test_a_failed_transaction_announces_nothing(pairs: Callable[..., Pair]) -> None:
    """Event and fact are written together or not at all."""
    pair = pairs(command={"argv": ["/bin/true"], "events": ALL})

    def fail_later() -> None:
        with pair.core.ledger.transaction():
            pair.core.outbox.announce("held", "s", "x", {})
            raise RuntimeError("the disk, say")

    with pytest.raises(RuntimeError):
        fail_later()
    assert pair.deliveries() == []


def test_a_sink_that_is_no_longer_configured_keeps_nobody_waiting(pairs: Callable[..., Pair]) -> None:
    """After a change of the settings its deliveries are over."""
    first = pairs(command={"argv": ["/bin/false"], "events": ALL})
    first.announce(2)
    first.close()
    second = pairs()
    assert second.deliveries() == [("command", "superseded")] * 2
    assert second.settled()


def test_previews_are_coalesced_and_called_off(pairs: Callable[..., Pair]) -> None:
    """Of many milestones only the last is leased; when the series closes, what is left is called off."""
    pair = pairs(preview={"enabled": True})
    outbox, first = pair.core.outbox, pair.announce(3, event="coverage.milestone")
    with pair.core.ledger.transaction():
        leased = outbox.lease("preview")
    assert leased is not None
    assert leased["event_id"] == first[-1]
    assert [state for _, state in pair.deliveries()] == ["leased", "superseded", "superseded"]
    pair.announce(1, event="coverage.milestone", first=3)
    with pair.core.ledger.transaction():
        assert outbox.lease("preview") is None  # one at a time
        assert outbox.end_growing("s") == [(first[-1], "preview")]
    assert pair.settled()


def test_waiting_deliveries_survive_the_hub(pairs: Callable[..., Pair], tmp_path: Path) -> None:
    """Killed with everything in flight: the next start goes on."""
    program = Program(tmp_path / "program")
    first = pairs(command={"argv": program.argv, "events": ALL})
    ids = first.announce(3)
    first.close()
    second = pairs(command={"argv": program.argv, "events": ALL})
    second.until(second.settled)
    assert program.effects == set(ids)


@pytest.mark.parametrize(
    ("tilts_deg", "covered", "gap"),
    [
        ([], 0, 180),
        ([0.0], 2, 180),
        ([0.0, 0.0, 180.0], 2, 180),
        ([-1.0, 1.0], 4, 178),
        ([float(t) for t in range(-70, 71, 2)], 142, 40),
        ([float(t) for t in range(0, 180, 3)], 120, 3),
    ],
)
def test_coverage_counts_directions(tilts_deg: list[float], covered: float, gap: float) -> None:
    """A direction counts within a degree of a tilt; tilt and tilt + 180 are one direction."""
    assert covered_deg(tilts_deg) == pytest.approx(covered)
    assert largest_gap_deg(tilts_deg) == pytest.approx(gap)
    assert covered_deg(tilts_deg[::-1]) == covered_deg(tilts_deg)


def test_events_are_json_that_others_can_read(receiving: tuple[Pair, Receiver]) -> None:
    """No NaN, no bytes, an ISO time with its zone."""
    pair, receiver = receiving
    pair.announce(1)
    pair.until(pair.settled)
    (event,) = receiver.effects
    assert json.loads(json.dumps(event, allow_nan=False)) == event
    assert event["at"].endswith("+00:00")


def test_whatever_the_settings_call_a_sink_the_trigger_can_begin() -> None:
    """Another one is a table of the settings and one function of the trigger's."""
    tables = {name for name in Config.__struct_fields__ if isinstance(getattr(Config(), name), Sink)}
    assert tables == SINKS.keys()
