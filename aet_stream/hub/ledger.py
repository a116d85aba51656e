"""What became of every visit: an SQLite index that survives kills and power cuts, and can be rebuilt from the files.

A visit is one image at one state of its source file (`VisitKey`). Its life:

    wanted -> stored | duplicate | same | other | quarantined | held | dropped | gone
    held -> discarded
    held, quarantined, other, duplicate, discarded -> ready -> wanted ...

`same`: the file was touched, its pixels were not. `other`: an image of a detector that is not used. `dropped`: the file changed before it
was read, a new visit follows. `gone`: it was to be read again, and its file is no longer there. `discarded`: a person does not want it.
`replaced`: a later state of the file was stored.

The row `wanted` is written before the reading begins, so that whatever dies over it is noticed afterwards.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aet_stream.edition import About
from aet_stream.errors import AetError, OutputFull
from aet_stream.hub.outbox import OUTBOX_SCHEMA, Outbox
from aet_stream.layout import Record
from aet_stream.naming import top_folder
from aet_stream.projection import VisitKey
from aet_stream.readers import path_stamp
from aet_stream.reasons import Reason, json_of, reason_of, why
from aet_stream.status import Blank, Latency, LedgerStatus, NotTaken, PutAside, SeriesStatus, StageTimes, Totals

SCHEMA_VERSION = 2
"""1: the table of visits was called `unit`, and reasons were sentences."""
STAGES = ("settle", "read", "queue", "network", "commit", "total")
LISTED = 50
"""Folders with files that nobody reads, in the status."""
#: States that end a visit until the file changes or a person speaks.
ENDED = ("stored", "duplicate", "same", "other", "quarantined", "held", "replaced", "discarded")

#: The reason of a visit that has ended before, and is to be read again.
_AGAIN = json_of(why("again"))
_CODE = "iif(reason = '', '', json_extract(reason, '$.code'))"

_SCHEMA = """
CREATE TABLE series (
    name TEXT PRIMARY KEY, state TEXT NOT NULL DEFAULT 'open', opened_at REAL NOT NULL, last_at REAL NOT NULL, closed_at REAL,
    generation INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE visit (
    id INTEGER PRIMARY KEY, series TEXT NOT NULL, path TEXT NOT NULL, image INTEGER NOT NULL, stamp TEXT NOT NULL,
    state TEXT NOT NULL, sha256 TEXT, number INTEGER, tilt_deg REAL, reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    person_tilt_deg REAL, blank INTEGER NOT NULL DEFAULT 0, trust REAL, first_at REAL NOT NULL, ended_at REAL,
    settle_s REAL, read_s REAL, queue_s REAL, network_s REAL, commit_s REAL, total_s REAL,
    UNIQUE (path, image, stamp), UNIQUE (series, number)
) STRICT;
"""
#: For what is asked once a second: it must not take longer the more was ever stored. A ledger from before has them made at its next start.
_INDICES = """
CREATE INDEX IF NOT EXISTS visit_state ON visit (state);
CREATE INDEX IF NOT EXISTS visit_series ON visit (series, state);
CREATE INDEX IF NOT EXISTS visit_pixels ON visit (series, sha256);
CREATE INDEX IF NOT EXISTS visit_ended ON visit (state, ended_at);
CREATE INDEX IF NOT EXISTS visit_blank ON visit (state, blank);
"""
#: What of the watched folder is not taken (left_out.py), and since when. Tables that a ledger from before gets at its next start.
_LEFT_OUT = """
CREATE TABLE IF NOT EXISTS no_reader (folder TEXT NOT NULL, kind TEXT NOT NULL, files INTEGER NOT NULL, PRIMARY KEY (folder, kind)) STRICT;
CREATE TABLE IF NOT EXISTS older (
    root TEXT NOT NULL, path TEXT NOT NULL, stamp TEXT NOT NULL, written_at REAL NOT NULL, PRIMARY KEY (root, path)
) STRICT;
CREATE TABLE IF NOT EXISTS note (what TEXT PRIMARY KEY, value REAL NOT NULL) STRICT;
"""
#: What has been decided about stored series, and the editions that there are: an index of what lies in their folders.
_DECIDED = """
CREATE TABLE IF NOT EXISTS edition (
    series TEXT NOT NULL, number INTEGER NOT NULL, key TEXT NOT NULL, made_by TEXT NOT NULL, model TEXT NOT NULL, made_at REAL NOT NULL,
    content_sha256 TEXT NOT NULL, PRIMARY KEY (series, number)
) STRICT;
CREATE TABLE IF NOT EXISTS decided (series TEXT PRIMARY KEY, decisions TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS excluded (
    series TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (series, number)
) STRICT;
"""
_EXCLUDED = """
INSERT OR REPLACE INTO excluded SELECT series, CAST(key AS INTEGER), json_extract(value, '$.reason') FROM decided,
    json_each(iif(decisions = '', '{}', decisions), '$.aside') WHERE json_extract(value, '$.restored_at') IS NULL
"""
#: Closed series without projection files, and since when; one that is opened again has its files again.
_PRUNED = """
CREATE TABLE IF NOT EXISTS pruned (series TEXT PRIMARY KEY, at REAL NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS series_has_files AFTER UPDATE OF state ON series BEGIN DELETE FROM pruned WHERE series = NEW.name; END;
"""
#: What would take longer the more was ever stored, kept as it changes: how many visits are in each state, and which closed series need no
#: look at a start, because neither ledger nor folder (`store.SeriesStore.stamp`) has changed since they agreed.
_KEPT = """
CREATE TABLE IF NOT EXISTS visit_count (state TEXT PRIMARY KEY, visits INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS agreed (series TEXT PRIMARY KEY, stamp TEXT NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS visit_made AFTER INSERT ON visit BEGIN
    INSERT INTO visit_count VALUES (NEW.state, 1) ON CONFLICT (state) DO UPDATE SET visits = visits + 1;
    DELETE FROM agreed WHERE series = NEW.series;
END;
CREATE TRIGGER IF NOT EXISTS visit_moved AFTER UPDATE OF state ON visit BEGIN
    UPDATE visit_count SET visits = visits - 1 WHERE state = OLD.state;
    INSERT INTO visit_count VALUES (NEW.state, 1) ON CONFLICT (state) DO UPDATE SET visits = visits + 1;
    DELETE FROM agreed WHERE series IN (OLD.series, NEW.series);
END;
CREATE TRIGGER IF NOT EXISTS series_moved AFTER UPDATE OF state ON series BEGIN DELETE FROM agreed WHERE series = NEW.name; END;
CREATE TRIGGER IF NOT EXISTS series_decided AFTER INSERT ON decided BEGIN DELETE FROM agreed WHERE series = NEW.series; END;
CREATE TRIGGER IF NOT EXISTS series_edition AFTER INSERT ON edition BEGIN DELETE FROM agreed WHERE series = NEW.series; END;
"""
_RECOUNT = """
BEGIN; DELETE FROM visit_count; INSERT INTO visit_count SELECT state, count(*) FROM visit GROUP BY state; COMMIT;
"""
#: Of (path, image), the newest projection counts, unless it is excluded.
_TILTS = """
SELECT count(*) FROM (SELECT max(number) AS number FROM visit WHERE series = ?1 AND state = 'stored' GROUP BY path, image) AS newest
    WHERE NOT EXISTS (SELECT 1 FROM excluded WHERE excluded.series = ?1 AND excluded.number = newest.number)
"""
_FROM_1 = """
ALTER TABLE unit RENAME TO visit;
DROP INDEX IF EXISTS unit_state; DROP INDEX IF EXISTS unit_series; DROP INDEX IF EXISTS unit_pixels;
DROP INDEX IF EXISTS unit_ended; DROP INDEX IF EXISTS unit_blank;
UPDATE visit SET reason = CASE
    WHEN reason = 'to be read again' THEN json_object('code', 'again', 'values', json_object())
    WHEN reason LIKE 'source_gone%' THEN json_object('code', 'gone', 'values', json_object('error', reason))
    WHEN state = 'quarantined' THEN json_object('code', 'unreadable', 'values', json_object('error', reason))
    ELSE json_object('code', 'noted', 'values', json_object('text', reason)) END
WHERE reason != '';
"""


#: What the disk, or another program, may do to a sound ledger; whatever else SQLite says of one is damage.
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM}  # fmt: skip


def passing(error: sqlite3.Error) -> bool:
    """Is nothing wrong with the ledger, and the same may work later?"""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _PASSING


def _put_aside(row: sqlite3.Row) -> PutAside:
    """A visit with its reason as data and in words."""
    reason = reason_of(row["reason"]) or Reason("noted", {"text": ""})
    words = {"reason": str(reason), "code": reason.code, "remedy": reason.remedy, "command": reason.command}
    return PutAside(**{**dict(row), **words})


def _opened_to_look(path: Path) -> sqlite3.Connection:
    """Nothing is changed, nor left behind: files of the write-ahead log that a look as root made would keep the daemon out."""
    there = path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(f"file:{quote(str(path))}?{'mode=ro' if there else 'immutable=1'}", uri=True, isolation_level=None, timeout=2)


def fault(path: Path) -> str:
    """What is wrong with the ledger in this file, which is only looked at; empty: nothing."""
    try:
        with contextlib.closing(_opened_to_look(path)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return str(error)
    return str(said) if said != "ok" else "written by a later version of aet-stream" if version > SCHEMA_VERSION else ""


class Ledger:
    """The hub's index. One writer; readers (`aet-stream status` without a daemon) open it with `read_only`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if read_only:
            self._db = _opened_to_look(path)
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 1:  # no hub has opened it since
                self._db.execute("CREATE TEMP VIEW visit AS SELECT * FROM unit")
        else:
            sound = self._was_left_sound()
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2)
        self._db.row_factory = sqlite3.Row
        self.db = self._db
        """For the outbox, which lives in the same file and the same transactions."""
        if not read_only:
            try:
                self._prepare()
                if not sound:
                    self._check()
                    self._db.executescript(_RECOUNT)
            except UnicodeDecodeError as error:  # out of the damaged file into SQLite's own message
                raise sqlite3.DatabaseError(str(error)) from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # NORMAL may forget the last commits at a power cut
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version == 1:
            self._db.executescript(f"BEGIN; {_FROM_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise AetError(
                f"{self.path} has layout {version}, this version writes {SCHEMA_VERSION}: move it away, it is rebuilt from the files"
            )
        self._db.executescript(f"BEGIN; {OUTBOX_SCHEMA + _LEFT_OUT + _DECIDED + _PRUNED + _INDICES + _KEPT} COMMIT;")
        if not self._db.execute("SELECT 1 FROM excluded LIMIT 1").fetchone():  # of a version that had no such table
            self._db.execute(_EXCLUDED)

    def _check(self) -> None:
        """Read all of it: SQLite notices neither a letter that is none, nor a column of another name, before it meets them."""
        said = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        model = sqlite3.connect(":memory:")
        model.executescript(_SCHEMA + OUTBOX_SCHEMA + _LEFT_OUT + _DECIDED + _PRUNED + _KEPT)
        for (table,) in model.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            columns = f"PRAGMA table_info({table})"
            if said == "ok" and [*map(tuple, self._db.execute(columns))] != model.execute(columns).fetchall():
                said = f"table {table} is another"
            for _ in self._db.execute(f"SELECT * FROM {table}") if said == "ok" else ():
                pass
        model.close()
        if said != "ok":
            raise sqlite3.DatabaseError(said)

    def _was_left_sound(self) -> bool:
        """Has nobody touched it since a hub closed it with nothing wrong? Reading all of a large one takes long."""
        if self.path.with_name(f"{self.path.name}-wal").exists():
            return False
        try:
            return self.path.with_name(f"{self.path.name}.sound").read_text() == path_stamp(self.path)
        except (OSError, UnicodeDecodeError):
            return False

    def close(self, *, sound: bool = False) -> None:
        """`sound`: nothing was wrong with it; unless it is touched, the next hub need not read all of it."""
        self._db.close()
        if sound:
            with contextlib.suppress(OSError):
                self.path.with_name(f"{self.path.name}.sound").write_text(path_stamp(self.path))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on disk when it ends.

        Raises
        ------
        OutputFull : the disk does not take it; nothing has changed
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise OutputFull(f"{self.path}: {error}") from error  # full, failing, read-only, locked by somebody: not damaged
        except OSError as error:
            raise OutputFull(f"{self.path}: {os.strerror(error.errno or 0)}") from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    # -- visits -----------------------------------------------------------------------------------------------------------------

    def ended(self, path: str) -> set[tuple[int, str]]:
        """(image, stamp) of this file's images that need nothing more in that state."""
        marks = ",".join("?" * len(ENDED))
        rows = self._db.execute(
            f"SELECT image, stamp FROM visit WHERE path = ? AND state IN ({marks}) AND {_CODE} != 'gone'", (path, *ENDED)
        )
        return {(row["image"], row["stamp"]) for row in rows}

    def want(self, series: str, visit: VisitKey) -> int:
        """Note, before it happens, that a visit is going to be read; returns its id."""
        now = time.time()
        self._db.execute("INSERT OR IGNORE INTO series (name, opened_at, last_at) VALUES (?, ?, ?)", (series, now, now))
        row = self._db.execute(
            "INSERT INTO visit (series, path, image, stamp, state, first_at) VALUES (?, ?, ?, ?, 'wanted', ?)"
            " ON CONFLICT (path, image, stamp) DO UPDATE SET state = 'wanted', series = excluded.series RETURNING id",
            (series, visit.path, visit.image, visit.stamp, now),
        ).fetchone()
        return int(row["id"])

    def charge(self, visit_id: int) -> int:
        """Something died over this visit; returns how often that has happened."""
        row = self._db.execute("UPDATE visit SET attempts = attempts + 1 WHERE id = ? RETURNING attempts", (visit_id,)).fetchone()
        return int(row["attempts"])

    def end(
        self, visit_id: int, state: str, *, reason: Reason | None = None, sha256: str | None = None, tilt_deg: float | None = None
    ) -> None:
        """A visit ends without a row of its own in the series."""
        self._db.execute(
            "UPDATE visit SET state = ?, reason = ?, sha256 = ?, tilt_deg = ?, ended_at = ? WHERE id = ?",
            (state, json_of(reason) if reason else "", sha256, tilt_deg, time.time(), visit_id),
        )

    def store(self, visit_id: int, record: Record, stages: dict[str, float]) -> bool:
        """The visit is a readable row of its series. Older visits of the same image that waited for a person are settled by it.

        True if copies of what it supersedes are to be read again: their pixels count no more, unless they get a row of their own.
        """
        copies = sum(self._free_copies(record, path, image) for path, image in record.sources)
        self._db.execute(
            "UPDATE visit SET state = 'stored', reason = '', sha256 = ?, number = ?, tilt_deg = ?, blank = ?, trust = ?, ended_at = ?,"
            " settle_s = ?, read_s = ?, queue_s = ?, network_s = ?, commit_s = ?, total_s = ? WHERE id = ?",
            (
                record.sha256,
                record.number,
                record.tilt_deg,
                record.quality.blank,
                None if math.isnan(record.quality.trust) else record.quality.trust,
                time.time(),
                *(stages.get(stage) for stage in STAGES),
                visit_id,
            ),
        )
        self.settle_older(visit_id)
        for path, image in record.sources[1:]:
            self._db.execute(
                "UPDATE visit SET state = 'replaced' WHERE path = ? AND image = ? AND state IN ('held', 'quarantined', 'ready', 'wanted')",
                (path, image),
            )
        self._db.execute("UPDATE series SET last_at = ? WHERE name = ?", (time.time(), record.series))
        return copies > 0

    def _free_copies(self, record: Record, path: str, image: int) -> int:
        """How many duplicates there were of the row of this image that `record` supersedes."""
        return self._db.execute(
            f"UPDATE visit SET state = 'ready', reason = '{_AGAIN}' WHERE series = ?1 AND state = 'duplicate' AND sha256 != ?5"
            " AND sha256 = (SELECT sha256 FROM visit WHERE series = ?1 AND path = ?2 AND image = ?3 AND state = 'stored' AND number < ?4"
            " ORDER BY number DESC LIMIT 1)",
            (record.series, path, image, record.number, record.sha256),
        ).rowcount

    def settle_older(self, visit_id: int) -> None:
        """Whatever else was open about this image is settled by this visit."""
        self._db.execute(
            "UPDATE visit SET state = 'replaced' WHERE state IN ('held', 'quarantined', 'ready', 'wanted') AND id != ?1"
            " AND (path, image) = (SELECT path, image FROM visit WHERE id = ?1)",
            (visit_id,),
        )

    def adopt(self, series: str, record: Record) -> bool:
        """A projection file that the ledger does not know: it is stored, whatever the ledger thought. Returns what `store` does."""
        visit_id = self.want(series, record.visit)
        return self.store(visit_id, record, {stage: getattr(record, f"{stage}_s") for stage in STAGES[:4]})

    def stored(self, series: str) -> dict[int, tuple[str, int, str]]:
        """Number -> (path, image, SHA-256 of the pixels) of every stored projection."""
        rows = self._db.execute("SELECT number, path, image, sha256 FROM visit WHERE series = ? AND state = 'stored'", (series,))
        return {row["number"]: (row["path"], row["image"], row["sha256"]) for row in rows}

    def lose(self, series: str, number: int) -> None:
        """A stored projection's file is gone: its source has to be read again, and so have its copies: one may be all there is."""
        self._db.execute(
            "UPDATE visit SET state = 'ready' WHERE series = ?1 AND state IN ('duplicate', 'same')"
            " AND sha256 = (SELECT sha256 FROM visit WHERE series = ?1 AND number = ?2)",
            (series, number),
        )
        self._db.execute("UPDATE visit SET state = 'ready', number = NULL WHERE series = ? AND number = ?", (series, number))

    def dealt_with(self, path: str, image: int) -> bool:
        """Is this image known, and not in quarantine?"""
        states = {row["state"] for row in self._db.execute("SELECT state FROM visit WHERE path = ? AND image = ?", (path, image))}
        return bool(states & {"stored", "duplicate", "same", "other", "held", "gone", "discarded"}) and "quarantined" not in states

    def visit(self, visit_id: int) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM visit WHERE id = ?", (visit_id,)).fetchone()
        return row

    def discard(self, visit_id: int, reason: Reason) -> None:
        """A person does not want it, now or when it is offered again."""
        self._db.execute(
            "UPDATE visit SET state = 'discarded', reason = ?, ended_at = ? WHERE id = ?", (json_of(reason), time.time(), visit_id)
        )

    def released(self, visit_id: int, tilt_deg: float | None) -> None:
        """A person has spoken: try again, with this tilt if one was given."""
        self._db.execute(
            "UPDATE visit SET state = 'ready', reason = ?, attempts = 0, person_tilt_deg = coalesce(?, person_tilt_deg) WHERE id = ?",
            (_AGAIN, tilt_deg, visit_id),
        )

    def held(self, series: str) -> list[tuple[sqlite3.Row, Reason]]:
        """What is held of a series, and why; the newest first."""
        rows = self._db.execute("SELECT * FROM visit WHERE series = ? AND state = 'held' ORDER BY ended_at DESC, id DESC", (series,))
        return [(row, reason) for row in rows if (reason := reason_of(row["reason"])) is not None]

    def series_held(self) -> list[str]:
        """Series of which something is held."""
        return [row["series"] for row in self._db.execute("SELECT DISTINCT series FROM visit WHERE state = 'held'")]

    def ready(self) -> list[sqlite3.Row]:
        """Visits that wait to be read without a new offer, and those whose reading the last hub did not see the end of."""
        return self._db.execute("SELECT * FROM visit WHERE state IN ('ready', 'wanted') ORDER BY id").fetchall()

    def in_state(self, state: str, series: str | None = None, limit: int = 50) -> tuple[PutAside, ...]:
        """The last that came into this state, of one series or of all, the newest first."""
        rows = self._db.execute(
            "SELECT id, series, path, image, reason, attempts, tilt_deg, ended_at FROM visit"
            " WHERE state = ?1 AND (?2 IS NULL OR series = ?2) ORDER BY ended_at DESC, id DESC LIMIT ?3",
            (state, series, limit),
        )
        return tuple(_put_aside(row) for row in rows)

    def blanks(self, limit: int = 50) -> tuple[Blank, ...]:
        """The newest first."""
        rows = self._db.execute(
            "SELECT id, series, path, image, number, tilt_deg FROM visit WHERE state = 'stored' AND blank = 1 ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return tuple(Blank(**dict(row)) for row in rows)

    # -- series -----------------------------------------------------------------------------------------------------------------

    def folders(self, series: str) -> set[str]:
        """Top folders that files of a series lie in."""
        return {top_folder(row["path"]) for row in self._db.execute("SELECT path FROM visit WHERE series = ?", (series,))}

    def series(self, name: str | None = None, *, state: str | None = None, limit: int = -1) -> list[dict[str, Any]]:
        """Series with their counts, the latest active first: all, or those of this name or in this state. Counting takes time for each."""
        rows = self._db.execute(
            "SELECT name, state, opened_at, last_at, closed_at, generation,"
            " (SELECT count(*) FROM visit WHERE series = name AND state = 'stored') AS stored,"
            " (SELECT count(*) FROM visit WHERE series = name AND state = 'held') AS held,"
            " (SELECT count(*) FROM visit WHERE series = name AND state = 'quarantined') AS quarantined,"
            " (SELECT count(*) FROM visit WHERE series = name AND state = 'duplicate') AS duplicates,"
            " (SELECT tilt_deg FROM visit WHERE series = name AND state = 'stored' ORDER BY number DESC LIMIT 1) AS last_tilt_deg"
            " FROM (SELECT * FROM series WHERE (?1 IS NULL OR name = ?1) AND (?2 IS NULL OR state = ?2) ORDER BY last_at DESC LIMIT ?3)",
            (name, state, limit),
        )
        return [dict(row) for row in rows]

    def open_series(self, name: str, *, at: float | None = None) -> None:
        """The series exists and takes projections; a closed one becomes open again."""
        now = at or time.time()
        self._db.execute("INSERT OR IGNORE INTO series (name, opened_at, last_at) VALUES (?, ?, ?)", (name, now, now))
        self._db.execute(
            "UPDATE series SET state = 'open', closed_at = NULL, generation = generation + 1 WHERE name = ? AND state = 'closed'", (name,)
        )

    def close_series(self, name: str) -> None:
        """The series is one verified file."""
        self._db.execute("UPDATE series SET state = 'closed', closed_at = ? WHERE name = ?", (time.time(), name))

    def prune(self, name: str) -> None:
        """The closed series has no projection files any more."""
        self._db.execute("INSERT OR REPLACE INTO pruned VALUES (?, ?)", (name, time.time()))

    def pruned_at(self, name: str) -> float | None:
        """Since when a closed series has no projection files; None: it has, or is open."""
        try:
            row = self._db.execute("SELECT at FROM pruned WHERE series = ?", (name,)).fetchone()
        except sqlite3.OperationalError:
            return None  # of an earlier version, which no hub has opened since
        return None if row is None else float(row["at"])

    def unpruned(self) -> dict[str, float]:
        """Closed series that have projection files, and since when they are closed; the oldest first."""
        rows = self._db.execute(
            "SELECT name, closed_at FROM series WHERE state = 'closed' AND name NOT IN (SELECT series FROM pruned) ORDER BY closed_at"
        )
        return {row["name"]: row["closed_at"] for row in rows}

    def agreed(self) -> dict[str, str]:
        """Closed series with which ledger and folder agreed, and the stamp of the folder then."""
        return dict(
            tuple(row) for row in self._db.execute("SELECT agreed.* FROM agreed JOIN series ON name = series WHERE state = 'closed'")
        )

    def agree(self, stamps: Mapping[str, str]) -> None:
        """These do; holds until the ledger says anything else of them."""
        self._db.executemany("INSERT OR REPLACE INTO agreed VALUES (?, ?)", stamps.items())

    def tilts(self, series: str) -> int:
        """How many images have a stored projection that counts; one that was taken again under its name counts once."""
        try:
            return int(self._db.execute(_TILTS, (series,)).fetchone()[0])
        except sqlite3.OperationalError:  # of an earlier version, which no hub has opened since
            query = "SELECT count(DISTINCT path || '/' || image) FROM visit WHERE series = ? AND state = 'stored'"
            return int(self._db.execute(query, (series,)).fetchone()[0])

    def excluded(self, series: str | None = None, *, code: str | None = None) -> int:
        """How many projections do not count, of one series or of all, for one kind of reason or for any."""
        query = "SELECT count(*) FROM excluded WHERE (?1 IS NULL OR series = ?1) AND (?2 IS NULL OR json_extract(reason, '$.code') = ?2)"
        try:
            return int(self._db.execute(query, (series, code)).fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # of an earlier version, which no hub has opened since

    def odd(self, series: str | None = None, limit: int = 50) -> tuple[PutAside, ...]:
        """The last projections that were set aside as odd, of one series or of all, the newest first."""
        try:
            rows = self._db.execute(
                "SELECT id, visit.series, path, image, excluded.reason, attempts, tilt_deg, ended_at FROM excluded"
                " CROSS JOIN visit ON visit.series = excluded.series AND visit.number = excluded.number"
                " WHERE json_extract(excluded.reason, '$.code') = 'odd' AND (?1 IS NULL OR visit.series = ?1) ORDER BY id DESC LIMIT ?2",
                (series, limit),
            )
        except sqlite3.OperationalError:
            return ()  # of an earlier version, which no hub has opened since
        return tuple(_put_aside(row) for row in rows)

    # -- editions and decisions -------------------------------------------------------------------------------------------------

    def editions(self, series: str) -> dict[int, dict[str, Any]]:
        """Number -> what is known of each edition that was ever taken over, its file may be gone."""
        rows = self._db.execute("SELECT * FROM edition WHERE series = ? ORDER BY number", (series,))
        return {row["number"]: dict(row) for row in rows}

    def take_edition(self, series: str, number: int, about: About) -> None:
        """The edition is one file under its number."""
        self._db.execute(
            "INSERT OR REPLACE INTO edition VALUES (?, ?, ?, ?, ?, ?, ?)",
            (series, number, about.key, about.made_by, about.model, about.made_at, about.content_sha256),
        )

    def decided(self, series: str) -> str:
        """The decisions about a series that the world has heard of, as text."""
        row = self._db.execute("SELECT decisions FROM decided WHERE series = ?", (series,)).fetchone()
        return "" if row is None else str(row["decisions"])

    def decide(self, series: str, decisions: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO decided VALUES (?, ?)", (series, decisions))
        self._db.execute("DELETE FROM excluded WHERE series = ?", (series,))
        self._db.execute(f"{_EXCLUDED} AND series = ?", (series,))

    # -- figures ----------------------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """How many visits ended how."""
        counts = dict.fromkeys(("stored", "duplicate", "other", "held", "quarantined", "discarded"), 0)
        try:
            found = self._db.execute("SELECT state, visits FROM visit_count").fetchall()
        except sqlite3.OperationalError:  # of an earlier version, which no hub has opened since
            found = self._db.execute("SELECT state, count(*) FROM visit GROUP BY state").fetchall()
        counts.update({state: visits for state, visits in found})
        return Totals(
            stored=counts["stored"],
            held=counts["held"],
            quarantined=counts["quarantined"],
            duplicates=counts["duplicate"],
            others=counts["other"],
            discarded=counts["discarded"],
            odd=self.excluded(code="odd"),
        )

    def left_out(self) -> NotTaken:
        """How many files are older than wanted, and which no reader knows: (folder, how they are called, how many)."""
        try:
            older = self._db.execute("SELECT value FROM note WHERE what = 'older'").fetchone()
            rows = self._db.execute("SELECT folder, kind, files FROM no_reader ORDER BY folder, kind").fetchall()
        except sqlite3.OperationalError:
            return NotTaken()  # of an earlier version, which no hub has opened since
        return NotTaken(
            older=int(older[0]) if older else 0,
            no_reader=tuple((row["folder"], row["kind"], row["files"]) for row in rows[:LISTED]),
            no_reader_files=sum(row["files"] for row in rows),
        )

    def latency(self, last: int = 1000) -> Latency:
        """Median and 99th percentile of each stage over the last stored projections, in seconds."""
        columns = ", ".join(f"{stage}_s" for stage in STAGES)
        rows = self._db.execute(f"SELECT {columns} FROM visit WHERE state = 'stored' ORDER BY ended_at DESC LIMIT ?", (last,)).fetchall()
        figures = {}
        for stage in STAGES:
            values = sorted(row[f"{stage}_s"] for row in rows if row[f"{stage}_s"] is not None)
            if values:
                n = len(values)
                figures[stage] = StageTimes(p50_s=values[(n - 1) // 2], p99_s=values[min(n - 1, round(0.99 * (n - 1)))], n=n)
        return Latency(stages=figures)


def summary(ledger: Ledger, series: str | None = None) -> LedgerStatus:
    """What `status` tells from the ledger alone: with or without a daemon. Lists are of `series`, where one is named."""
    return LedgerStatus(
        totals=ledger.totals(),
        series=tuple(
            SeriesStatus(
                **row, tilts=ledger.tilts(row["name"]), excluded=ledger.excluded(row["name"]), pruned_at=ledger.pruned_at(row["name"])
            )
            for row in ledger.series(series, limit=50)
        ),
        held=ledger.in_state("held", series),
        quarantined=ledger.in_state("quarantined", series),
        odd=ledger.odd(series),
        blank=ledger.blanks(),
        left_out=ledger.left_out(),
        latency=ledger.latency(),
        events=Outbox(ledger.db).figures(),
    )
