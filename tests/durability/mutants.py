"""Does all this notice anything? Safety code is broken on purpose, one line at a time; each time a named suite must turn red.

A mutant is a text that is replaced by another, in a copy of the sources. A text that is not there any more is an error: mutants must not
die quietly.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    name: str
    stands_for: str
    """The fault that somebody might make."""
    file: str
    old: str
    new: str
    suite: str
    """What must turn red, of the quick tests: arguments for pytest."""


CRASH = "tests/durability/test_crash_states.py"
KILLS = "tests/durability/test_failpoints.py -k "
MUTANTS = (
    Mutant("no fsync of files", "content reaches the disk after the name: empty or torn files after a power cut", "aet_stream/durable.py",
           "        os.fsync(descriptor)\n    except OSError:", "    except OSError:", CRASH),
    Mutant("no fsync of folders", "a stored projection loses its name in a power cut", "aet_stream/durable.py",
           "    sync_file(folder)\n", "    pass\n", CRASH),
    Mutant("new folders not synced", "the first projections of a series vanish with their folder in a power cut", "aet_stream/durable.py",
           "    sync_folder(folder.parent)\n", "", CRASH),
    Mutant("no rename", "half-written files under their final name", "aet_stream/durable.py",
           'return path.with_name(f".{path.name}.{os.getpid()}.tmp")', "return path", KILLS + "projection\\ or\\ master\\ or\\ close"),
    Mutant("no idempotence", "a copy, or a result that comes twice, becomes a second row", "aet_stream/judging.py",
           'return [row for row in self._by_pixels.get(sha256, []) if', "return [row for row in [] if", KILLS + "want"),
    Mutant("the ledger is believed, not the files", "stored, but killed before the ledger knew: read and stored again", "aet_stream/hub/intake.py",
           "if self._archive.store(series).holds(pending.path, pending.image, pending.stamp):", "if False:", "tests/test_queue.py"),
    Mutant("files without a row are not adopted", "a ledger that is older than the disk: rows of the series unknown, then doubled", "aet_stream/hub/archive.py",
           "                self.lost |= self._ledger.adopt(name, record)\n", "", "tests/test_recovery.py tests/test_store.py"),
    Mutant("rows without a file are believed", "a projection file is lost and nobody reads its source again", "aet_stream/hub/archive.py",
           "                self._ledger.lose(name, number)\n", "", "tests/test_recovery.py"),
    Mutant("drafts stay", "the folder fills up with what killed hubs left behind", "aet_stream/hub/store.py",
           '''        for path in (*self.folder.glob(f".{SERIES_FILE}.*.tmp"), *(self.folder / PROJECTIONS).glob(".*.tmp")):
            path.unlink(missing_ok=True)
''', "        return\n", CRASH),
    Mutant("no checksum of pixels", "a flipped bit goes into the closed file", "aet_stream/layout.py",
           "        if crc32(pixels) != expected:", "        if False:", "tests/test_recovery.py tests/test_store.py"),
    Mutant("no checksum of the rest", "a flipped bit in a tilt is not noticed by verify", "aet_stream/series.py",
           "if written is not None and written != layout.Contents.of(self._file):", "if False:", "tests/test_recovery.py"),
    Mutant("sources are not checked before a master is written", "a master over missing files: NaN for every plain reader", "aet_stream/hub/master.py",
           "        if not path.is_file() or path.stat().st_size < source.rows * least_bytes:", "        if False:", "tests/test_store.py"),
    Mutant("a closed file is not read back", "the disk wrote other bytes than it was given: the closed file is wrong for ever", "aet_stream/hub/master.py",
           "if crc32(file[layout.RAW][row]) != record.raw_crc32 or crc32(file[layout.CLEAN][row]) != record.clean_crc32:", "if False:",
           KILLS + "spoiled"),
    Mutant("leases never end", "a worker that hangs keeps its projection for ever", "aet_stream/hub/workers.py",
           'if flight.state == "working" and now > flight.deadline:', "if False:", "tests/test_queue.py"),
    Mutant("late results count", "a result of a lease that has ended is stored beside the new one's", "aet_stream/hub/flights.py",
           'if flight.job_id == job_id and flight.state == "working"', 'if flight.state == "working"', "tests/test_flights.py tests/test_queue.py"),
    Mutant("deaths are not counted", "a projection that kills every worker is tried for ever", "aet_stream/hub/ledger.py",
           "SET attempts = attempts + 1 WHERE id = ? RETURNING attempts", "SET attempts = 0 WHERE id = ? RETURNING attempts", "tests/test_queue.py"),
    Mutant("results of any shape are taken", "a worker of another version spoils the series", "aet_stream/hub/workers.py",
           'if clean.shape != flight.raw.shape or clean.dtype != np.dtype("<f4"):', "if False:", "tests/test_queue.py"),
    Mutant("no completeness check", "a file that still grows is called broken, or taken as it is", "aet_stream/readers/__init__.py",
           "    if have < wanted:", "    if False:", "tests/test_readers.py -k incomplete"),
    Mutant("no checksum on the queue", "pixels that were damaged on the way are stored", "aet_stream/transport.py",
           "    if zlib.crc32(frame.buffer) != spec.crc32:", "    if False:", "tests/test_transport.py"),
    Mutant("credit without end", "ten thousand waiting files are all read into memory", "aet_stream/hub/flights.py",
           "            if len(self._flying) + len(chosen) >= self.credit or not room:", "            if False:", "tests/test_flights.py"),
    Mutant("a full disk ends the hub's patience", "what is in hand is thrown away when the disk is full", "aet_stream/durable.py",
           "    except OSError as error:\n        raise OutputFull(", "    except MemoryError as error:\n        raise OutputFull(",
           "tests/test_recovery.py tests/test_queue.py"),
)  # fmt: skip


def caught(mutant: Mutant, folder: Path) -> bool:
    """Does the named suite turn red? Raises ValueError when the mutant no longer fits the code."""
    copy = folder / "mutant"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("aet_stream", "tests"):
        shutil.copytree(HERE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "config.toml", "README.md"):
        shutil.copy(HERE / name, copy)
    path = copy / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its text stands {text.count(mutant.old)} times in {mutant.file}, not once")
    path.write_text(text.replace(mutant.old, mutant.new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *shlex.split(mutant.suite)]
    done = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise ValueError(f"mutant {mutant.name!r}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-1000:]}")
    return done.returncode == 1
