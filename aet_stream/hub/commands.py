"""What a person may ask of the running hub."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from shlex import quote
from typing import Any

import msgspec

from aet_stream.config import Config
from aet_stream.errors import AetError
from aet_stream.hub.archive import Archive
from aet_stream.hub.closing import Closing
from aet_stream.hub.endings import Endings
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.outbox import Outbox
from aet_stream.hub.retention import Retention
from aet_stream.reasons import why
from aet_stream.status import Status

_KEY = re.compile("[0-9a-f]{16}")
_TEXT = 500
"""Letters of a reason."""


class Commands:
    """Does what is asked, or says why not."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        outbox: Outbox,
        endings: Endings,
        closing: Closing,
        archive: Archive,
        retention: Retention,
        *,
        status: Callable[[], Status],
        idle_for_s: Callable[[], float],
    ) -> None:
        self._limits = config.angle
        self._ledger = ledger
        self._outbox = outbox
        self._endings = endings
        self._closing = closing
        self._archive = archive
        self._retention = retention
        self._status = status
        self._idle_for_s = idle_for_s

    def obey(self, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Do what was asked; returns a sentence and data.

        Raises
        ------
        AetError : it cannot be done, and why
        """
        match name:
            case "status":
                return "", msgspec.to_builtins(self._status())
            case "idle":
                return "", self._idle()
            case "close":
                return self._close(self._stored(arguments))
            case "prune":
                return self._prune(self._stored(arguments), now=arguments.get("now") is True)
            case "requeue":
                return self._again(arguments.get("ids", []), None)
            case "release":
                return self._again(arguments.get("ids", []), self._tilt(arguments.get("tilt_deg")))
            case "edition":
                return self._edition(self._stored(arguments), str(arguments.get("key", "")), use=arguments.get("use") is True)
            case "use":
                return self._use(self._stored(arguments), arguments.get("edition"))
            case "exclude":
                return self._exclude(self._projections(arguments), self._text(arguments))
            case "restore":
                return self._restore(arguments)
            case "settled":
                return "", {"settled": all(self._archive.settled(name) for name in arguments.get("series", []))}
            case "discard":
                return self._discard(arguments.get("ids", []), self._text(arguments))
            case "resend":
                return self._resend(arguments.get("ids"))
        raise AetError(f"the hub knows no command {name!r}")

    def _resend(self, names: Any) -> tuple[str, dict[str, Any]]:
        with self._ledger.transaction():
            count = self._outbox.resend(names)
        if names and not count:
            raise AetError(f"{', '.join(names)}: no failed delivery of that name; `aet-stream events --failed` lists them")
        return f"{count} will be sent again", {}

    def _idle(self) -> dict[str, Any]:
        series, events, totals = self._ledger.series(state="open"), self._outbox.figures(), self._ledger.totals()
        put_off = self._outbox.put_off()
        return {
            "idle_for_s": self._idle_for_s(),
            "open": [row["name"] for row in series if row["stored"]],
            "unfinished_events": events.pending - put_off,
            "put_off_events": put_off,
            "failed_events": events.failed,
            **msgspec.to_builtins(totals),
        }

    def _stored(self, arguments: dict[str, Any]) -> str:
        """The series that is meant, which has projections."""
        name = str(arguments.get("series", ""))
        series = next(iter(self._ledger.series(name)), None)
        if series is None or not series["stored"]:
            known = ", ".join(row["name"] for row in self._ledger.series(limit=10)) or "none yet"
            raise AetError(f"no series {name!r} with stored projections; known: {known}")
        return name

    def _edition(self, name: str, key: str, *, use: bool) -> tuple[str, dict[str, Any]]:
        """A child has finished one: take it over."""
        if not _KEY.fullmatch(key):
            raise AetError(f"{key!r} names no edition")
        number = None if use and self._archive.fetching(name) else self._archive.take(name, key, use=use)
        return "", {"state": "working"} if number is None else {"state": "done", "edition": number}

    def _use(self, name: str, number: Any) -> tuple[str, dict[str, Any]]:
        if not isinstance(number, int) or isinstance(number, bool):
            raise AetError(f"edition {number!r}: give its number, as `aet-stream editions {quote(name)}` shows it")
        done = not self._archive.fetching(name) and self._archive.use(name, number)
        return f"{name} shows edition {number}", {"state": "done" if done else "working"}

    def _exclude(self, meant: dict[str, list[int]], text: str) -> tuple[str, dict[str, Any]]:
        if not self._at_hand(meant):
            return "", {"state": "working"}
        for name, numbers in meant.items():
            self._archive.exclude(name, numbers, why("by_person", text=text))
            self._endings.doubtful.add(name)
        return f"{_count(meant)} excluded", {"series": [*meant]}

    def _restore(self, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What was excluded counts again; what was discarded is read again."""
        ids = self._ids(arguments)
        visits = [self._ledger.visit(each) for each in ids if isinstance(each, int)]
        discarded = {row["id"]: row for row in visits if row is not None and row["state"] == "discarded"}
        meant = self._projections({"ids": [each for each in ids if each not in discarded]}) if len(discarded) < len(ids) else {}
        if not self._at_hand(meant):
            return "", {"state": "working"}
        for name, numbers in meant.items():
            self._archive.restore(name, numbers)
        self._endings.read_again(discarded.values())
        words = [f"{_count(meant)} restored"] * bool(meant) + [f"{len(discarded)} will be read again"] * bool(discarded)
        return ", ".join(words), {"series": [*meant]}

    def _discard(self, ids: list[Any], text: str) -> tuple[str, dict[str, Any]]:
        rows = [row for row in (self._visit(each) for each in self._ids({"ids": ids})) if row["state"] != "discarded"]
        if wrong := next((row for row in rows if row["state"] != "held"), None):
            remedy = "exclude it" if wrong["state"] == "stored" else "there is nothing to discard"
            raise AetError(f"visit {wrong['id']} is {wrong['state']}, not held: {remedy}")
        for row in rows:
            self._endings.discard(row, text)
        return f"{len(rows)} discarded", {}

    def _ids(self, arguments: dict[str, Any]) -> list[int | str]:
        ids = arguments.get("ids", [])
        fine = (isinstance(each, str) or (isinstance(each, int) and 0 <= each < 1 << 63) for each in ids)
        if not ids or not all(fine):
            raise AetError(f"{ids!r}: give the numbers that `aet-stream status` shows, or SERIES:NUMBER")
        return list(ids)

    def _visit(self, each: int | str) -> Any:
        row = self._ledger.visit(each) if isinstance(each, int) else None
        if row is None:
            raise AetError(f"visit {each} is unknown: `aet-stream status` shows the numbers")
        return row

    def _projections(self, arguments: dict[str, Any]) -> dict[str, list[int]]:
        """Series -> numbers of the stored projections that are meant."""
        meant: dict[str, list[int]] = {}
        for each in self._ids(arguments):
            if isinstance(each, str):
                name, _, number = each.rpartition(":")
                if not number.isdecimal():
                    raise AetError(f"{each!r}: say SERIES:NUMBER, as the page does")
                meant.setdefault(self._stored({"series": name}), []).append(int(number))
            elif (row := self._visit(each))["state"] != "stored":
                remedy = ": discard it, or release it" if row["state"] == "held" else ""
                raise AetError(f"visit {each} is {row['state']}, not stored{remedy}")
            else:
                meant.setdefault(row["series"], []).append(row["number"])
        return meant

    def _at_hand(self, meant: dict[str, list[int]]) -> bool:
        """Are the rows of these series in memory?

        Raises
        ------
        AetError : they are, and one of these projections is not there
        """
        if any([self._archive.fetching(name) for name in meant]):
            return False
        for name, numbers in meant.items():
            self._archive.known(name, numbers)
        return True

    def _text(self, arguments: dict[str, Any]) -> str:
        text = " ".join(str(arguments.get("reason", "")).split())
        if not text or len(text) > _TEXT:
            raise AetError(f"a reason of 1 to {_TEXT} letters is needed (--reason)")
        return text

    def _close(self, name: str) -> tuple[str, dict[str, Any]]:
        if self._ledger.series(name)[0]["state"] == "closed":
            return f"{name} is closed already", {"state": "closed"}
        self._closing.ask(name)
        return f"closing {name}", {"state": "closing"}

    def _prune(self, name: str, *, now: bool) -> tuple[str, dict[str, Any]]:
        done = self._retention.ask(name, now=now)
        return f"{name} has no projection files any more", {"state": "done" if done else "working"}

    def _again(self, ids: list[Any], tilt_deg: float | None) -> tuple[str, dict[str, Any]]:
        if not ids or not all(isinstance(visit_id, int) and 0 <= visit_id < 1 << 63 for visit_id in ids):
            raise AetError(f"{ids!r}: give the numbers that `aet-stream status` shows")
        self._endings.read_again([self._endings.waiting(visit_id) for visit_id in ids], tilt_deg)
        return f"{len(ids)} will be read again", {}

    def _tilt(self, value: Any) -> float:
        limits = self._limits
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not limits.min_deg <= value <= limits.max_deg:
            raise AetError(f"tilt {value!r}: give degrees between {limits.min_deg:g} and {limits.max_deg:g}")
        return float(value)


def _count(meant: dict[str, list[int]]) -> str:
    count = sum(map(len, meant.values()))
    return f"{count} projection{'s' if count != 1 else ''}"
