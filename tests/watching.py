"""A real watch in this process, with a hub that wants everything: what it takes, how often, and with which pixels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aet_stream.config import Config
from aet_stream.config_file import load
from aet_stream.messages import Acquired, Beat, NotAcquired, Offer, Pulse, SeriesEnd, Want
from aet_stream.projection import VisitKey
from aet_stream.readers.child import ReaderChild
from aet_stream.status import WatchHeard, WatchStatus
from aet_stream.transport import HubSocket
from aet_stream.watch.watch import Watch
from tests.harness import ENVIRONMENT

QUICK = (
    "watch.scan_s=0.2", "watch.settle_s=0.3", "watch.incomplete_s=30", "watch.zero_grace_s=60", "watch.reader_timeout_s=30",
)  # fmt: skip


class Bench:
    """Turns a watch by hand and answers it as a hub would; `want=False` only listens."""

    def __init__(self, folder: Path, *settings: str, want: bool = True) -> None:
        self.root, self.out = folder / "in", folder / "out"
        self.root.mkdir(parents=True, exist_ok=True)
        self.config: Config = load(None, [*QUICK, f"watch.root={self.root}", f"output.root={self.out}", *settings])
        self.want = want
        self.offered: dict[tuple[str, int], str] = {}
        """The latest state of each unit."""
        self.taken: dict[tuple[str, int], list[tuple[Acquired, np.ndarray]]] = {}
        self.refused: list[NotAcquired] = []
        self.ends: list[str] = []
        self.status = WatchStatus()
        self._hub = HubSocket(self.out)
        self._peer = b""
        self.reader = ReaderChild.of(self.config)
        self.watch = Watch(self.config, self.reader)
        self._beaten_at = 0.0
        self._quiet_from = 0
        self.watch.start()

    def turn(self) -> None:
        """One step of the watch and one of the hub."""
        self.watch.step()
        if time.monotonic() - self._beaten_at > 0.1:
            self._beaten_at = time.monotonic()
            self.watch.beat()
        for heard in self._hub.receive(0.0):
            assert isinstance(heard, tuple), heard
            peer, message, pixels = heard
            self._peer = peer
            if isinstance(message, Beat):
                assert isinstance(message.said, WatchHeard)
                self.status = message.said.status
                self._hub.send(peer, Pulse(hub_id="bench"))
            elif isinstance(message, Offer):
                for file in message.files:
                    for image, stamp in file.visits:
                        self.offered[file.path, image] = stamp
                        if self.want:
                            self._hub.send(peer, Want(visit=VisitKey(file.path, image, stamp)))
            elif isinstance(message, Acquired) and pixels is not None:
                self.taken.setdefault(message.visit.source, []).append((message, np.array(pixels)))
            elif isinstance(message, NotAcquired):
                self.refused.append(message)
            elif isinstance(message, SeriesEnd):
                self.ends.append(message.path)

    def ask(self, path: str, stamp: str, image: int = 0) -> None:
        """Want an image in whatever state the hub believes in."""
        self._hub.send(self._peer, Want(visit=VisitKey(path, image, stamp)))

    def until(self, condition: Callable[[], Any], *, limit_s: float = 90.0) -> None:
        """Turn until `condition` is true."""
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, f"in vain; taken {sorted(self.taken)}, refused {self.refused[-5:]}, status {self.status}"
            self.turn()

    def rest(self) -> None:
        """Turn until the watch has nothing left to do, and three scans more have found nothing."""
        self._quiet_from = self.watch.rhythm.scans
        self.until(self._at_rest)

    def _at_rest(self) -> bool:
        scans = self.watch.rhythm.scans
        now = self.watch.status()
        if now.moving or now.visits_waiting or now.asked or len(self.offered) > len(self.taken) + self._bad():
            self._quiet_from = scans
            return False
        return scans >= self._quiet_from + 3

    def _bad(self) -> int:
        return len({r.visit.source for r in self.refused if r.why == "bad"} & self.offered.keys())

    def pixels(self, path: str, image: int = 0) -> np.ndarray:
        return self.taken[path, image][-1][1]

    def tilt(self, path: str, image: int = 0) -> float:
        return self.taken[path, image][-1][0].candidates[0].tilt_deg

    def times(self) -> Counter[tuple[str, str]]:
        """How often each (file, content) was taken."""
        return Counter((path, hashlib.sha256(p.tobytes()).hexdigest()) for (path, _), found in self.taken.items() for _, p in found)

    def close(self) -> None:
        self.watch.close()
        self.reader.close()
        self._hub.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WatchProcess:
    """`aet-stream watch` as a process of its own, and a hub that only listens to what it offers."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.root, self.out, self.log = folder / "in", folder / "out", folder / "watch.log"
        self.root.mkdir(parents=True, exist_ok=True)
        self.offers: Counter[tuple[str, int, str]] = Counter()
        """How often each (path, image, state) was offered."""
        self.paths: set[str] = set()
        self.status = WatchStatus()
        self._hub = HubSocket(self.out)
        words = [*QUICK, f"watch.root={self.root}", f"output.root={self.out}", *settings]
        command = [sys.executable, "-m", "aet_stream", "watch", *(word for setting in words for word in ("--set", setting))]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=ENVIRONMENT)

    def listen(self) -> None:
        for heard in self._hub.receive(0.02):
            assert isinstance(heard, tuple), heard
            peer, message, _ = heard
            if isinstance(message, Beat):
                assert isinstance(message.said, WatchHeard)
                self.status = message.said.status
                self._hub.send(peer, Pulse(hub_id="listening"))
            elif isinstance(message, Offer):
                self.paths.update(file.path for file in message.files)
                self.offers.update((file.path, image, stamp) for file in message.files for image, stamp in file.visits)

    def until(self, condition: Callable[[], Any], *, limit_s: float = 120.0) -> float:
        """Listen until `condition` is true; seconds that took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, f"in vain: {len(self.paths)} files offered, status {self.status}"
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            self.listen()
        return time.monotonic() - began

    def cpu_s(self) -> float:
        """Processor time of the watch so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> WatchProcess:
        self.until(lambda: self.status.hub_id)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._hub.close()
