"""A real daemon for tests: real processes, files, sockets; and readers that know nothing of ours."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aet_stream.cli import main
from aet_stream.errors import AetError
from aet_stream.simulate.writers import mrc, npy, tiff
from aet_stream.transport import ask

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
FAST = {
    "watch.scan_s": 0.5,
    "watch.settle_s": 0.3,
    "watch.incomplete_s": 1.5,
    "watch.zero_grace_s": 3.0,
    "denoise.model": "laplace",
    "monitor.enabled": False,
    "monitor.doctor_every_s": 0,
    "film.enabled": False,
    "reconstruct.on_close": False,
    "preview.enabled": False,
    "report.on_close": False,
    "output.keep_free_mib": 0,
    "queue.lease_s": 5,
    "queue.alone_pause_s": 0.2,
}


def wait_for(condition: Callable[[], Any], *, limit_s: float = 30.0, what: str = "") -> Any:
    """The first true value of `condition`, or a failure after `limit_s`."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > limit_s:
            raise AssertionError(f"waited {limit_s:g} s in vain for {what or condition}")
        time.sleep(min(0.02 + waited / 20, 0.1))  # to ask takes computing time from whom is asked


WITH_SETTINGS = ("status", "check", "close", "requeue", "release", "events", "resend", "editions", "use", "reprocess", "exclude",
                 "restore", "discard", "prune")  # fmt: skip
"""Commands that are told where the daemon writes."""
OF_THEIR_OWN = ("reprocess", "film", "reconstruct", "atoms")
"""Commands that work for long, and lower their priority for it."""


def said_here(*words: str) -> subprocess.CompletedProcess[str]:
    """What a command says and how it ends, in this process: another would take most of its time to import what is here already."""
    out, errors, logging_root = StringIO(), StringIO(), logging.getLogger()
    handlers, level = logging_root.handlers[:], logging_root.level
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            code = main([*words])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        logging_root.handlers[:] = handlers
        logging_root.setLevel(level)
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


class Daemon:
    """`aet-stream run` in a folder of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.root, self.out = folder / "in", folder / "out"
        self.root.mkdir(parents=True, exist_ok=True)
        chosen = {**FAST, **{key.replace("__", "."): value for key, value in settings.items()}}
        chosen |= {"watch.root": str(self.root), "output.root": str(self.out)}
        self.set = [word for key, value in chosen.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        self.process: subprocess.Popen[str] | None = None
        self.log = folder / "log.txt"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "aet_stream", *words]

    def start(self, *words: str) -> Daemon:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command("run", *self.set, *words), stderr=log, stdout=log, text=True, env=ENVIRONMENT)
        return self

    def run(self, *words: str, limit_s: float = 90.0) -> int:
        """Until it ends by itself; the exit code."""
        self.start(*words)
        assert self.process is not None
        return self.process.wait(limit_s)

    def stop(self, limit_s: float = 20.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of the commands for people."""
        settings = self.set if words[0] in WITH_SETTINGS else []
        if words[0] not in OF_THEIR_OWN:
            return said_here(*words, *settings)
        return subprocess.run(self.command(*words, *settings), capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)

    def status(self) -> dict[str, Any]:
        """Whole status, or an empty one while the hub is away."""
        try:
            return ask(self.out, "status", timeout_s=2)
        except AetError:
            return {
                "totals": {"stored": 0, "held": 0, "quarantined": 0, "duplicates": 0},
                "roles": {},
                "workers": {},
                "held": [],
                "quarantined": [],
            }

    def wait_for_totals(self, limit_s: float = 60.0, **wanted: int) -> dict[str, Any]:
        """Until the counts are exactly these."""

        def there() -> dict[str, Any] | None:
            status = self.status()
            return status if all(status["totals"][key] == value for key, value in wanted.items()) else None

        found: dict[str, Any] = wait_for(there, limit_s=limit_s, what=f"{wanted}, log:\n{self.log.read_text()[-3000:]}")
        return found

    def role_pids(self) -> dict[str, int]:
        """Process ids of the roles, as the supervisor said last: one that was killed stands there for a moment more (see `pid`)."""
        roles = self.status()["roles"].get("supervisor", {}).get("status", {}).get("roles", {})
        return {name: role["pid"] for name, role in roles.items() if role["pid"]}

    def pid(self, role: str, other_than: int | None = None) -> int:
        """Of a role, as soon as it runs and the supervisor has said so; `other_than` waits for its next life."""
        found: int = wait_for(lambda: (pid := self.role_pids().get(role)) != other_than and pid, what=f"{role} to run")
        return found


@contextmanager
def running(folder: Path, *words: str, **settings: Any) -> Iterator[Daemon]:
    """A daemon that is stopped at the end, whatever happens."""
    daemon = Daemon(folder, **settings).start(*words)
    try:
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.terminate()
            try:
                daemon.process.wait(20)
            except subprocess.TimeoutExpired:
                daemon.process.kill()


def known_image(index: int, size_px: int = 64) -> np.ndarray:
    """An image whose pixels follow from its number."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size_px, :size_px] - size_px / 2
    blob = 500 * np.exp(-(x * x + y * y) / (size_px / 6) ** 2)
    return (blob + 100 + rng.poisson(50, (size_px, size_px))).astype("<u2")


def put(
    folder: Path, index: int, tilt_deg: float | None, *, kind: str = "tiff", size_px: int = 64, pixels: np.ndarray | None = None
) -> Path:
    """Write one known image, whole; its tilt in the name."""
    folder.mkdir(parents=True, exist_ok=True)
    said = "" if tilt_deg is None else f"_{tilt_deg:+.2f}deg"
    suffix, writer = {"tiff": (".tif", tiff), "npy": (".npy", npy), "mrc": (".mrc", mrc)}[kind]
    path = folder / f"image_{index:03d}{said}{suffix}"
    path.write_bytes(writer(known_image(index, size_px) if pixels is None else pixels, tilt_deg or 0.0, 0.1))
    return path


def plain_rows(series: Path) -> dict[tuple[str, int], tuple[float, bytes, bytes]]:
    """(path, image) -> (tilt, raw bytes, clean bytes), by plain HDF5 alone."""
    with h5py.File(series, "r") as file:
        paths, images = file["/aet/projection/path"][()], file["/aet/projection/image"][()]
        return {
            (path.decode(), int(image)): (
                float(file["/exchange/theta"][row]),
                file["/aet/raw"][row].tobytes(),
                file["/exchange/data"][row].tobytes(),
            )
            for row, (path, image) in enumerate(zip(paths, images, strict=True))
        }


PLAIN_READER = """
import sys, time, json, zlib, h5py, numpy as np
path, out = sys.argv[1], sys.argv[2]
polls = opened = bad = 0; most = 0; words = []
print("reading", flush=True)
import select
while not select.select([sys.stdin], [], [], 0.05)[0]:
    polls += 1
    try:
        with h5py.File(path, "r") as f:
            opened += 1
            n = len(f["/exchange/theta"])
            if n < most: bad += 1; words.append(f"shrank {most} -> {n}")
            most = max(most, n)
            clean, raw = f["/exchange/data"], f["/aet/raw"]
            crc, rcrc = f["/aet/projection/clean_crc32"][()], f["/aet/projection/raw_crc32"][()]
            if not (len(clean) == len(raw) == len(crc) == n): bad += 1; words.append("lengths differ")
            for i in {0, n // 2, n - 1, max(0, n - 2)}:
                if zlib.crc32(clean[i].data) != crc[i] or zlib.crc32(raw[i].data) != rcrc[i]: bad += 1; words.append(f"row {i} of {n}")
    except FileNotFoundError:
        if opened: bad += 1; words.append("gone")
    except Exception as error:
        bad += 1; words.append(f"{type(error).__name__}: {error}")
json.dump({"polls": polls, "opened": opened, "bad": bad, "rows": most, "words": words[:20]}, open(out, "w"))
"""


@contextmanager
def plain_reader(series: Path, report: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """A separate process that opens `series` 20 times a second with plain h5py; call the yielded function for its report."""
    process = subprocess.Popen(
        [sys.executable, "-c", PLAIN_READER, str(series), str(report)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()

    def finish() -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    try:
        yield finish
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if not process.stdin.closed:
            process.stdin.close()
