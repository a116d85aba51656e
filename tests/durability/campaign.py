"""Random SIGKILL to every role, one by one and all at once, while files of every kind come in and plain readers look on.

The roles are started one by one, as systemd does it, and again at once when they are dead; or `aet-stream run` is, and then its supervisor
alone, its whole group, or one of its roles is killed. Everything random follows from the seed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from aet_stream import (
    config_file,
    worker,  # noqa: F401 - the server that roles are forked from has the worker's imports
)
from aet_stream.cli.daemon import _make_role
from aet_stream.service import Stop, serve, set_up_logging
from aet_stream.simulate.writers import mrc, npy, tiff
from tests.durability.oracle import Exposure, judge
from tests.harness import ENVIRONMENT, Daemon, known_image

ROLES = ("hub", "watch", "worker", "trigger")
ALL_AT_ONCE = "all at once"
LIFE_S = {"hub": 4.0, "watch": 8.0, "worker": 4.0, "trigger": 5.0}
"""The longest that a role is left alone: long enough for work to be done in between, so that kills hit it."""
GROUP_LIFE_S = 6.0
SERIES, SIZE_PX = 3, 48
WRITERS = {".tif": tiff, ".npy": npy, ".mrc": mrc}
SETTINGS = {"denoise.model": "constant", "watch.incomplete_s": 3.0, "output.fold_rows": 16, "queue.lease_s": 5}

READERS = """
import sys, time, json, zlib, select, glob, h5py
root, out, every_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
polls = opened = bad = 0; most = {}; words = []
print("reading", flush=True)
while not select.select([sys.stdin], [], [], every_s)[0]:
    for path in glob.glob(root + "/*/series.h5") or [root + "/none"]:
        polls += 1
        try:
            with h5py.File(path, "r") as f:
                opened += 1
                n = len(f["/exchange/theta"])
                if n < most.get(path, 0): bad += 1; words.append(f"{path} shrank {most[path]} -> {n}")
                most[path] = n
                clean, raw = f["/exchange/data"], f["/aet/raw"]
                crc, rcrc = f["/aet/projection/clean_crc32"][()], f["/aet/projection/raw_crc32"][()]
                if not (len(clean) == len(raw) == len(crc) == n): bad += 1; words.append("lengths differ")
                for i in {n - 1, polls % n}:
                    if zlib.crc32(clean[i].data) != crc[i] or zlib.crc32(raw[i].data) != rcrc[i]: bad += 1; words.append(f"{path} row {i} of {n}")
        except FileNotFoundError:
            if path in most: bad += 1; words.append(path + " gone")
        except Exception as error:
            bad += 1; words.append(f"{path} {type(error).__name__}: {error}")
json.dump({"polls": polls, "opened": opened, "bad": bad, "words": words[:20]}, open(out, "w"))
"""


@dataclass
class Microscope:
    """Writes files: good, copied, broken for ever, and such that grow."""

    root: Path
    rng: random.Random
    first: int
    exposures: list[Exposure] = field(default_factory=list)
    _growing: list[tuple[float, Path, bytes]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def expose(self) -> None:
        """One more file."""
        index = self.first + len(self.exposures)
        series = f"s{self.rng.randrange(SERIES)}"
        kind = self.rng.choices(("good", "copy", "broken", "growing"), (75, 8, 7, 10))[0]
        originals = [e for e in self.exposures if e.path.startswith(series) and e.fate == "stored"]
        pixels, tilt_deg = known_image(index, SIZE_PX), round(-75 + 0.01 * (index % 15000), 2)
        if kind == "copy" and originals:
            chosen = self.rng.choice(originals)
            pixels, tilt_deg = chosen.pixels, chosen.tilt_deg
        suffix, writer = self.rng.choice(list(WRITERS.items()))
        content = writer(pixels, tilt_deg, 0.1)
        path = self.root / series / f"image_{index:06d}_{tilt_deg:+.2f}deg{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kinds[kind] += 1
        written = content
        if kind == "broken":
            content = written = content[: len(content) // 2]
        elif kind == "growing":
            written = content[: self.rng.randrange(1, len(content))]
            self._growing.append((time.monotonic() + self.rng.uniform(0.1, 1.5), path, content))
        path.write_bytes(written)
        known = None if kind == "broken" else pixels
        sha256 = hashlib.sha256(content).hexdigest()
        self.exposures.append(
            Exposure(path.relative_to(self.root).as_posix(), tilt_deg, known, sha256, "quarantined" if kind == "broken" else "stored")
        )

    def grow(self, *, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for item in [item for item in self._growing if all_of_them or now >= item[0]]:
            self._growing.remove(item)
            _, path, content = item
            with path.open("r+b") as file:
                file.seek(path.stat().st_size)
                file.write(content[path.stat().st_size :])


def _role(name: str, words: list[str], log: Path) -> None:
    """One role, in a process forked from a server that has everything imported: a start takes a moment, a machine of two cores suffices."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.modules["__main__"] = ModuleType("__main__")  # the reading child shall not import this campaign
    set_up_logging(name)
    role = _make_role(name, "worker-0" if name == "worker" else name, config_file.load(None, words))
    os._exit(serve(role, Stop()))


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.durability.campaign", "tests.durability.rig"])


class Roles:
    """Starts them, kills them, starts them again."""

    def __init__(self, folder: Path, daemon: Daemon, rng: random.Random) -> None:
        self._folder, self._rng = folder, rng
        self._words = daemon.set[1::2]
        self._processes: dict[str, Any] = {}
        self._kill_at: dict[str, float] = {}
        self._in_vain: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        for name in ROLES:
            self.start(name)

    def start(self, name: str) -> None:
        log = self._folder / f"{name}.log"
        if log.exists():
            self._keep(name)
        log.write_text("")
        self._processes[name] = _context.Process(target=_role, args=(name, self._words, log))
        self._processes[name].start()
        self._kill_at.pop(name, None)

    def ready(self, name: str) -> bool:
        return " ready" in (self._folder / f"{name}.log").read_text()

    def turn(self, *, killing: bool) -> None:
        """Whoever is dead is started; whoever has been up for a random while is killed."""
        now = time.monotonic()
        for name, process in list(self._processes.items()):
            if process.exitcode is not None:
                self._in_vain[name] += name not in self._kill_at
                if self._in_vain[name] > 20:
                    raise RuntimeError(f"{name} never gets ready:\n{(self._folder / f'{name}.log').read_text()[-1000:]}")
                self.start(name)
            elif name not in self._kill_at:
                if self.ready(name):
                    self._in_vain[name] = 0
                    self._kill_at[name] = now + self._rng.uniform(0.003, LIFE_S[name])
            elif killing and now >= self._kill_at[name]:
                if self._rng.random() < 0.05:
                    for other in self._processes.values():
                        other.kill()
                    for other in self._processes.values():
                        other.join()
                    self.kills[ALL_AT_ONCE] += 1
                    return
                process.kill()
                process.join()
                self.kills[name] += 1

    def _keep(self, name: str) -> None:
        with (self._folder / f"{name}.all.log").open("a") as kept:
            kept.write((self._folder / f"{name}.log").read_text())

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for name, process in self._processes.items():
            process.join(30)
            process.kill()
            process.join()
            self._keep(name)


class Group:
    """`aet-stream run` in a process group of its own."""

    def __init__(self, folder: Path, daemon: Daemon, rng: random.Random) -> None:
        self._log, self._daemon, self._rng = folder / "run.log", daemon, rng
        self.kills: Counter[str] = Counter()
        self._start()

    def _start(self) -> None:
        with self._log.open("a") as log:
            self._began_at = log.tell()
            self._process = subprocess.Popen(
                self._daemon.command("run", *self._daemon.set), stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
            )
        self._kill_at = 0.0

    def turn(self, *, killing: bool) -> None:
        """Like that of `Roles`; after a kill of one role it is for the supervisor to start it again."""
        now = time.monotonic()
        if self._process.poll() is not None:
            self._start()
        elif not self._kill_at:
            if " ready" in self._log.read_text()[self._began_at :]:
                self._kill_at = now + self._rng.uniform(0.003, GROUP_LIFE_S)
        elif killing and now >= self._kill_at:
            self._kill_at = now + self._rng.uniform(0.003, GROUP_LIFE_S)
            roles = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            victim = self._rng.choice(("supervisor", "whole group", "a role of a group" if roles else "supervisor"))
            if victim == "a role of a group":
                os.kill(int(self._rng.choice(roles)), signal.SIGKILL)
            elif victim == "supervisor":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
            self.kills[victim] += 1

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def run(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    least_kills: int = 0,
    inputs_per_s: float = 2.0,
    supervised: bool = False,
    reads_every_s: float = 0.01,
) -> dict[str, Any]:
    """One campaign; what it did and what it found. It goes on until `seconds` have passed and there were `least_kills`.

    `reads_every_s`: pause of the readers, who take half a core with the usual one.
    """
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    daemon = Daemon(folder, **{key.replace(".", "__"): value for key, value in SETTINGS.items()})
    microscope = Microscope(daemon.root, rng, first=seed * 100_000)
    daemon.out.mkdir(exist_ok=True)
    report = folder / "readers.json"
    readers = subprocess.Popen(
        [sys.executable, "-c", READERS, str(daemon.out), str(report), str(reads_every_s)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert readers.stdin is not None
    roles: Roles | Group = Group(folder, daemon, rng) if supervised else Roles(folder, daemon, rng)
    began = time.monotonic()
    try:
        while (now := time.monotonic() - began) < seconds or roles.kills.total() < least_kills:
            if len(microscope.exposures) < min(now, seconds) * inputs_per_s:
                microscope.expose()
            microscope.grow()
            roles.turn(killing=True)
            time.sleep(0.005)
        microscope.grow(all_of_them=True)
        verdict = _drained(daemon, roles, microscope)
    finally:
        roles.stop()
        readers.stdin.close()
        readers.wait(60)
    verdict = judge(daemon.root, daemon.out, microscope.exposures) if verdict.good else verdict
    doubts = [str(path) for path in daemon.out.glob("*/series.h5") if daemon.ask("verify", str(path)).returncode]
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "kills": dict(roles.kills),
        "inputs": len(microscope.exposures),
        "kinds": dict(microscope.kinds),
        "stored": verdict.counts["stored"],
        "duplicates": verdict.counts["duplicate"],
        "quarantined": verdict.counts["quarantined"],
        "wrong": verdict.words[:20],
        "verify": doubts,
        "readers": json.loads(report.read_text()),
    }


def _drained(daemon: Daemon, roles: Roles | Group, microscope: Microscope) -> Any:
    """Without any more kills, until all is as it should be, or nothing has changed for three minutes."""
    seen, changed_at = "", time.monotonic()
    while True:
        for _ in range(100):
            roles.turn(killing=False)
            time.sleep(0.03)
        verdict = judge(daemon.root, daemon.out, microscope.exposures)
        if verdict.good:
            return verdict
        if str(verdict.counts) != seen:
            seen, changed_at = str(verdict.counts), time.monotonic()
        if time.monotonic() - changed_at > 180:
            return verdict
