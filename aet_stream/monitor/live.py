"""What is going on, for every viewer at once: the hub's words, the newest projections, what has been seen in them, and advice.

Viewers never slow anybody down: each has a short queue of its own that drops its oldest message, and says so in the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict

from aet_stream.config import Advice, Config
from aet_stream.errors import StoreError
from aet_stream.monitor import words
from aet_stream.monitor.advice import Adviser
from aet_stream.monitor.coverage import coverage
from aet_stream.monitor.series_cache import Row, SeriesCache, as_row, series_id
from aet_stream.naming import shown
from aet_stream.status import Status

logger = logging.getLogger(__name__)

PROTOCOL = 1
VIEWERS = 32
QUEUE = 8
LOG_LINES = 100
CADENCE_OVER = 20
"""Projections whose intervals tell the cadence."""
UNSEEN = 2000
"""Projections that wait to be looked at, while somebody watches; others are looked at when somebody opens their series."""
WAITED_S = 3.0
"""A file that is complete sooner is not waited for."""
ADVISE_EVERY_S = 0.5
_T = TypeVar("_T")


class Viewer:
    """One browser tab or script."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque(maxlen=QUEUE)
        self._stirred = asyncio.Event()
        self._dropped = 0

    def put(self, message: dict[str, Any]) -> None:
        self._dropped += len(self._waiting) == QUEUE
        self._waiting.append(message)
        self._stirred.set()

    async def next(self) -> dict[str, Any]:
        """The oldest waiting message; `dropped` in it counts those lost before."""
        while not self._waiting:
            self._stirred.clear()
            await self._stirred.wait()
        dropped, self._dropped = self._dropped, 0
        return {**self._waiting.popleft(), "dropped": dropped}


class Live:
    """Hears the hub, tells the viewers."""

    def __init__(self, config: Config, cache: SeriesCache) -> None:
        self._config = config
        self.cache = cache
        self.status = Status()
        self.heard_at = 0.0
        self.doctor: dict[str, Any] | None = None
        """The last report of `aet-stream doctor --json`."""
        self.viewers: set[Viewer] = set()
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_LINES)
        self._seq = 0
        self._newest: dict[str, deque[Row]] = {}
        """Per series the newest projections that were heard of, with their times."""
        self._waiting_since: dict[str, float] = {}
        """What the watch waits for, and since when it has said so."""
        self._unseen: deque[tuple[str, Row]] = deque(maxlen=UNSEEN)
        self._advised_at: dict[str, float] = {}
        self._stirred = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        # One thread reads the disk: no locks, and the page is served while it does.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="series_cache")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = loop.create_task(self._look_on())

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        self._reader.shutdown(wait=True, cancel_futures=True)

    async def read(self, work: Callable[[], _T]) -> _T:
        """Do something with the disk, in the reading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    # -- hearing ----------------------------------------------------------------------------------------------------------------

    def silence_s(self) -> float:
        """Since when the hub has said nothing; infinite if it never has."""
        return time.monotonic() - self.heard_at if self.heard_at else float("inf")

    def hear(self, topic: str, content: dict[str, Any]) -> None:
        """One word of the hub."""
        if topic == "status":
            self.status, self.heard_at = msgspec.convert(content, Status), time.monotonic()
            moving, now = self.status.watch.waiting_for if self.status.watch else {}, time.time()
            self._waiting_since = {path: self._waiting_since.get(path, now) for path in moving}
            self.tell_state()
        elif topic == "projection.stored":
            self._hear_stored(content["record"], content["stages"])
        elif topic.startswith("projection."):
            self._note(topic.removeprefix("projection."), content.get("series", ""), f"{content['path']}: {content['reason']}")
        elif "series" in content:
            self._note(topic, content["series"], str(content.get("detail", "")))
            self.tell({"type": "series", "series": series_id(content["series"]), "what": topic})

    def hear_doctor(self, report: dict[str, Any]) -> None:
        """An examination of this workstation."""
        self.doctor = report
        self.tell_state()

    def _hear_stored(self, record: dict[str, Any], stages: dict[str, float]) -> None:
        name = record["series"]
        row = as_row({**record, "commit_s": stages.get("commit"), "total_s": stages.get("total"), "superseded": False})
        rows = self._newest.pop(name, None) or deque(maxlen=CADENCE_OVER)
        rows.append(row)
        self._newest[name] = rows
        if len(self._newest) > LOG_LINES:
            self._newest.pop(next(iter(self._newest)))
        self.tell({"type": "frame", "series": series_id(name), "name": shown(name), "row": row})
        if self.viewers:  # else whoever opens the series has it looked at
            self.look_at(name, [row])

    def _note(self, what: str, series: str, text: str) -> None:
        line = {"t": time.time(), "what": what, "series": shown(series), "text": shown(text)}
        self.log.append(line)
        self.tell({"type": "event", "event": line})

    # -- telling ----------------------------------------------------------------------------------------------------------------

    def tell(self, message: dict[str, Any]) -> None:
        """Every viewer, without waiting for any."""
        self._seq += 1
        stamped = {"v": PROTOCOL, "seq": self._seq, "t": time.time(), **message}
        for viewer in self.viewers:
            viewer.put(stamped)

    def tell_state(self) -> None:
        if self.viewers:
            self.tell({"type": "state", "state": self.state()})

    def snapshot(self) -> dict[str, Any]:
        """The first message of every connection."""
        return {
            "v": PROTOCOL,
            "seq": self._seq,
            "t": time.time(),
            "type": "snapshot",
            "state": self.state(),
            "log": list(self.log),
            "dropped": 0,
        }

    def state(self) -> dict[str, Any]:
        """The daemon as it is, in figures and words."""
        status, silence_s = self.status, self.silence_s()
        current = words.current(status)
        name = current.name if current else None
        heard = self._newest.get(name or "", deque())
        last = heard[-1] if heard else None
        cadence = words.cadence_s(list(heard) or self.cache.known_rows(name or "")[-CADENCE_OVER:])
        troubles, concerns = words.troubles(status, silence_s), words.concerns(status) if self.heard_at else []
        concerns += words.unfit(self.doctor)
        return {
            "level": "trouble" if troubles else "attention" if concerns else "ok",
            "words": words.sentence(status, expected=self._config.series.expected, last=last)
            if self.heard_at
            else "the hub has not been heard yet",
            "troubles": troubles,
            "concerns": concerns,
            "notes": words.notes(status),
            "silence_s": None if silence_s == float("inf") else round(silence_s, 1),
            "current": None if name is None else series_id(name),
            "series": [{**asdict(row), "id": series_id(row.name), "name": shown(row.name)} for row in status.series],
            "remedies": words.remedies(status),
            "waiting_for": [
                {"path": shown(path), "lacks": shown(status.watch.waiting_for[path]), "since": since}
                for path, since in self._waiting_since.items()
                if status.watch and time.time() - since > WAITED_S
            ],
            "setting": words.output_setting(status),
            "unlisted": words.unlisted(status),
            "blank": [{**asdict(row), "path": shown(row.path)} for row in status.blank],
            "expected": self._config.series.expected,
            "cadence_s": cadence,
            "headroom": words.headroom(status, cadence),
            "doctor": self.doctor,
            "credit": self._config.queue.credit,
            **{
                key: getattr(status, key) if self.heard_at else None
                for key in ("totals", "queue", "latency", "events", "paused", "disk_free_bytes", "idle_for_s", "version")
            },
            "workers": words.crew(status),
            "roles": {name: {"age_s": role.age_s, "pid": role.pid} for name, role in status.roles.items()},
            "watch_root": shown(status.watch_root),
        }

    @property
    def limits(self) -> Advice:
        return self._config.advice

    # -- series -----------------------------------------------------------------------------------------------------------------

    async def series(self, wanted: str) -> dict[str, Any]:
        """A whole series for the page: rows with all figures, coverage, law, advice, volume.

        Raises
        ------
        StoreError : no such series, or it cannot be read
        """
        name, found = await self.read(lambda: self._describe(wanted))
        unseen = [row for row in found["rows"] if "clipped" not in row]
        self.look_at(name, unseen)
        return found

    def _describe(self, wanted: str) -> tuple[str, dict[str, Any]]:
        name = self.cache.name_of(wanted)
        table = self.cache.table(name)
        rows = [self.with_figures(name, row) for row in table.rows]
        film = self.cache.film(name)
        advice = self._advice(name, rows, table.shape[1], film["doubts"] if film else [])
        about = {key: value for key, value in table.about.items() if key != "config"}
        described = {
            "id": wanted,
            "name": shown(name),
            "about": about,
            "stored": table.stored,
            "closed": table.closed,
            "shape": table.shape,
            "editions": self.cache.editions(name),
        }
        looked_for = self._config.film if self._config.film.enabled else None
        found = {"volume": self.cache.volume(name), "film": film, "film_wanted": looked_for, "atoms": self.cache.atoms(name)}
        return name, {**described, "rows": rows, **found, **advice}

    def with_figures(self, name: str, row: Row) -> Row:
        """A row with what was seen in it; the record's own figures win."""
        return {**as_figures(self.cache.known_figures(name, row)), **row}

    def _advice(self, name: str, rows: list[Row], width_px: int, doubts: list[str]) -> dict[str, Any]:
        limits = self._config.advice
        adviser = Adviser(limits, rows, width_px, lambda row: self.cache.known_small(name, row), doubts)
        law = adviser.law
        return {
            "hints": [hint.as_dict() for hint in adviser.hints()],
            "coverage": coverage(rows, limits.same_tilt_deg),
            "law": None if law is None else msgspec.to_builtins(law),
            "limits": msgspec.to_builtins(limits),
        }

    def look_at(self, name: str, rows: list[Row]) -> None:
        """Have these looked at, the newest first."""
        for row in rows:
            self._unseen.append((name, row))
        if rows:
            self._stirred.set()

    async def _look_on(self) -> None:
        """Look at what nobody has seen yet; tell what was seen."""
        while True:
            while not self._unseen:
                self._stirred.clear()
                await self._stirred.wait()
            name, row = self._unseen.pop()
            if self.cache.known_figures(name, row) is None:
                try:
                    figures = await self.read(lambda name=name, row=row: self.cache.figures(name, row))  # type: ignore[misc]
                except StoreError as error:
                    logger.info("not looked at: %s", error)
                    continue
                except Exception:  # the page goes on without
                    logger.exception("%s: projection %s cannot be looked at", shown(name), row["number"])
                    continue
                self.tell({"type": "look", "series": series_id(name), "number": row["number"], "figures": as_figures(figures)})
            await self._advise(name)

    async def _advise(self, name: str) -> None:
        """Advice for the series, now and then while there is much to see, and when all is seen."""
        more = any(other == name for other, _ in self._unseen)
        if not self.viewers or (more and time.monotonic() - self._advised_at.get(name, 0.0) < ADVISE_EVERY_S):
            return
        try:
            found = await self.read(lambda: self._describe(series_id(name))[1])
        except StoreError as error:
            logger.info("no advice: %s", error)
            return
        except Exception:  # the page goes on without
            logger.exception("%s: no advice", shown(name))
            return
        self._advised_at = {name: time.monotonic()}
        keys = ("hints", "coverage", "law", "volume", "film", "atoms", "stored")
        trust = {row["number"]: row["trust_in_series"] for row in found["rows"]}
        self.tell({"type": "advice", "series": series_id(name), "trust": trust, **{key: found[key] for key in keys}})


def as_figures(figures: dict[str, float] | None) -> dict[str, float | None]:
    """NaN as None, for JSON."""
    return {key: None if value != value else value for key, value in (figures or {}).items()}
