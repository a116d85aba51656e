"""Reading in a child process with limits: a hostile, hanging or crashing file costs one child, never the daemon.

One request at a time over a pipe: a msgpack header, and for an image the raw pixel bytes behind it; never pickle. The child ends when its
parent does (lifeline.py).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from aet_stream import lifeline
from aet_stream.config import Config, Series
from aet_stream.errors import AetError, ConfigError, ReaderDied, SourceError, SourceGone, SourceNotReady, SourceStillZero
from aet_stream.projection import Array, Drift, Projection
from aet_stream.readers import SUFFIXES, Probe, finished, load_plugins
from aet_stream.readers.frames import combine, sha256_of_frames
from aet_stream.readers.looking import Look, Sources, Unit, look, zero_tail

AHEAD_BYTES = 32 << 10
"""Questions sent before the first is answered, at most, beside that one: the pipe takes as much while the child is not listening."""
MAX_EXTRA_BYTES = 256 << 20
"""Frames that together are larger are not kept beside their mean; their variance is."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How images are made of files; the same for all of them."""

    max_bytes: int
    settle_s: float = 0.0
    """Sidecars that end within a line are believed when they have stood still for so long."""
    plugins: tuple[str, ...] = ()
    keep: str = "moments"
    max_shift: float = 0.25
    series: Series = Series()
    """Which detector's images will not be used."""
    turn: str = ""
    """Letters out of `t` (transpose), `y`, `x` (flip along that axis), in this order."""

    @classmethod
    def of(cls, config: Config) -> Rules:
        """Those that a configuration asks for."""
        return cls(
            max_bytes=config.watch.max_file_mib << 20,
            settle_s=config.watch.settle_s,
            plugins=config.readers.enabled,
            keep=config.frames.keep,
            max_shift=config.frames.max_shift,
            series=config.series,
            turn=config.orientation.letters,
        )


class Member(msgspec.Struct, frozen=True):
    """One image of one file."""

    path: str
    image: int
    loose: tuple[str, ...] = ()
    """Sidecars of its folder that belong to no image by name."""


class _Request(msgspec.Struct, frozen=True):
    kind: Literal["look", "read", "suffixes"]
    members: tuple[Member, ...] = ()
    lenient: bool = False


class Reading(msgspec.Struct, frozen=True):
    """One visit to one tilt, of one image or several frames."""

    units: tuple[Unit, ...]
    """What is said about each of its images."""
    sha256: str
    drift: Drift
    extras: Literal["", "variance", "frames"] = ""
    extras_dtype: str = ""


class _Answer(msgspec.Struct, frozen=True):
    kind: Literal[
        "look", "image", "suffixes", "SourceError", "SourceNotReady", "SourceStillZero", "SourceGone", "ReaderDied", "ConfigError"
    ]
    text: str = ""
    look: Look | None = None
    reading: Reading | None = None
    suffixes: tuple[str, ...] = ()
    dtype: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)


_ERRORS: dict[str, type[AetError]] = {
    error.__name__: error for error in (SourceError, SourceNotReady, SourceStillZero, SourceGone, ReaderDied, ConfigError)
}
_requests, _answers = msgspec.msgpack.Decoder(_Request), msgspec.msgpack.Decoder(_Answer)
_encode = msgspec.msgpack.encode


class ReaderChild:
    """A reading process that is started when first needed, and again after it died."""

    def __init__(self, *, timeout_s: float, memory_mib: int, max_file_mib: int, rules: Rules | None = None) -> None:
        self.timeout_s = timeout_s
        self._memory_bytes = memory_mib << 20
        self._rules = msgspec.structs.replace(rules or Rules(max_bytes=0), max_bytes=max_file_mib << 20)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @classmethod
    def of(cls, config: Config) -> ReaderChild:
        """The reader that a configuration asks for."""
        limits = config.watch
        rules = Rules.of(config)
        return cls(timeout_s=limits.reader_timeout_s, memory_mib=limits.reader_memory_mib, max_file_mib=limits.max_file_mib, rules=rules)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def suffixes(self) -> frozenset[str]:
        """Every suffix that can be read, those of enabled plug-ins too. The child is begun with, so that the first file finds it ready.

        Raises
        ------
        ConfigError : a plug-in that is enabled is not installed
        """
        if not self._rules.plugins:
            self._started()
            return SUFFIXES
        return frozenset(self._ask(_Request("suffixes"), "plug-ins")[0].suffixes)

    def look(self, path: Path, loose: tuple[str, ...] = (), *, lenient: bool = False) -> Look:
        """What a file holds, and all that is said about each of its images.

        Raises
        ------
        SourceNotReady, SourceError, SourceGone, ReaderDied
        """
        answer = self.look_at([(path, loose, lenient)])[0]
        if isinstance(answer, AetError):
            raise answer
        return answer

    def look_at(self, files: Sequence[tuple[Path, tuple[str, ...], bool]]) -> list[Look | AetError]:
        """The same for several files (path, loose, lenient) at once; what went wrong with one stands in its place.

        The questions are sent ahead of the answers, so that neither process waits for the other. Answers come in order: if the child
        dies, it died over the first file that has none. That file is the last one then, so that a call costs one timeout at most.
        """
        questions = [_encode(_Request("look", (Member(str(path), -1, loose),), lenient)) for path, loose, lenient in files]
        answers: list[Look | AetError] = []
        pipe, sent = self._started(), 0
        for here, (path, _, _) in enumerate(files):
            try:
                with contextlib.suppress(OSError):  # it is dead: what it answered before is still to be heard
                    while sent < len(files) and (sent == here or sum(map(len, questions[here : sent + 1])) <= AHEAD_BYTES):
                        pipe.send_bytes(questions[sent])
                        sent += 1
                look = self._hear(pipe, path.name)[0].look
                answers.append(look or ReaderDied(f"{path.name}: the reading process answered nonsense"))
            except (EOFError, OSError):
                self._kill()
                answers.append(ReaderDied(f"{path.name}: the reading process died over it"))
            except AetError as error:
                answers.append(error)
            if self._pipe is None:
                break
        return answers

    def probe(self, path: Path) -> Probe:
        """What a complete file holds.

        Raises
        ------
        SourceNotReady, SourceError, SourceGone, ReaderDied
        """
        return self.look(path).probe

    def read_visit(self, members: Sequence[Member], *, lenient: bool = False) -> tuple[Projection, Reading]:
        """One image, or the mean of the frames that are one visit to one tilt.

        Raises
        ------
        SourceNotReady, SourceError, SourceGone, ReaderDied
        """
        name = Path(members[0].path).name
        answer, content = self._ask(_Request("read", tuple(members), lenient), name)
        return _visit(answer, content, name)

    def read(self, path: Path, image: int) -> tuple[Projection, str]:
        """One image and the SHA-256 of its pixel bytes.

        Raises
        ------
        SourceNotReady, SourceError, SourceGone, ReaderDied
        """
        projection, reading = self.read_visit([Member(str(path), image)], lenient=True)
        return projection, reading.sha256

    def _ask(self, request: _Request, name: str) -> tuple[_Answer, bytes | None]:
        pipe = self._started()
        try:
            pipe.send_bytes(_encode(request))
            return self._hear(pipe, name)
        except (EOFError, OSError) as error:
            self._kill()
            raise ReaderDied(f"{name}: the reading process died over it") from error

    def _hear(self, pipe: Connection, name: str) -> tuple[_Answer, bytes | None]:
        """The next answer of the child."""
        if not pipe.poll(self.timeout_s):
            self._kill()
            raise ReaderDied(f"{name}: reading took longer than {self.timeout_s:g} s (watch.reader_timeout_s)")
        answer = _answers.decode(pipe.recv_bytes())
        content = pipe.recv_bytes() if answer.kind == "image" else None
        if answer.kind == "ReaderDied":
            self._kill()  # out of memory: whatever it still holds goes with it
        return _unless_error(answer), content

    def _started(self) -> Connection:
        if self._pipe is None or self._process is None or self._process.poll() is not None:
            self._kill()
            self._pipe, theirs = Pipe()
            command = lifeline.command(__name__, str(theirs.fileno()), str(self._memory_bytes))
            found_where_we_do = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # plug-ins
            with theirs:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=found_where_we_do)
            with contextlib.suppress(OSError):  # it is dead already: the first question finds that out
                self._pipe.send_bytes(_encode(self._rules))
        return self._pipe

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def close(self) -> None:
        self._kill()


class ReaderHere:
    """The same in this process, without its limits: for programs of others, which a process begun from them would run again."""

    def __init__(self, config: Config) -> None:
        self._desk = _Desk(Rules.of(config))

    def look(self, path: Path, *, lenient: bool = False) -> Look:
        """As ReaderChild.look."""
        answer, _ = self._desk.answer(_Request("look", (Member(str(path), -1),), lenient))
        look = _unless_error(answer).look
        assert look is not None
        return look

    def read_visit(self, members: Sequence[Member], *, lenient: bool = False) -> tuple[Projection, Reading]:
        """As ReaderChild.read_visit."""
        answer, content = self._desk.answer(_Request("read", tuple(members), lenient))
        return _visit(_unless_error(answer), content, Path(members[0].path).name)


def _unless_error(answer: _Answer) -> _Answer:
    if answer.kind in _ERRORS:
        raise _ERRORS[answer.kind](answer.text)
    return answer


def _visit(answer: _Answer, content: bytes | memoryview | None, name: str) -> tuple[Projection, Reading]:
    reading = answer.reading
    if reading is None or content is None:
        raise ReaderDied(f"{name}: the reading process answered nonsense")
    planes = np.frombuffer(content, answer.dtype).reshape(answer.shape)
    return Projection(planes[0], reading.units[0].acquisition, reading.drift, planes[1:] if len(planes) > 1 else None), reading


def _serve(pipe: Connection, memory_bytes: int) -> None:
    """The child: answers until its parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    desk = _Desk(msgspec.msgpack.decode(pipe.recv_bytes(), type=Rules))
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = _requests.decode(pipe.recv_bytes())
            answer, content = desk.answer(request)
            pipe.send_bytes(_encode(answer))
            if content is not None:
                pipe.send_bytes(content)


class _Desk:
    """What the child does with a request."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._sources = Sources(rules.max_bytes, rules.settle_s, rules.series)
        self._suffixes: frozenset[str] | None = None

    def answer(self, request: _Request) -> tuple[_Answer, memoryview | None]:
        path = Path(request.members[0].path) if request.members else Path("plug-ins")
        try:
            if self._suffixes is None:
                self._suffixes = load_plugins(self._rules.plugins)
            if request.kind == "suffixes":
                return _Answer("suffixes", suffixes=tuple(sorted(self._suffixes))), None
            if request.kind == "look":
                loose = tuple(map(Path, request.members[0].loose))
                return _Answer("look", look=look(self._sources, path, loose, lenient=request.lenient)), None
            return self._read(request)
        except (SourceError, SourceNotReady, SourceGone, ConfigError) as error:
            return _Answer(type(error).__name__, str(error)), None  # type: ignore[arg-type]
        except FileNotFoundError:
            return _Answer("SourceGone", f"{path.name} is gone"), None
        except MemoryError:
            return _Answer("ReaderDied", f"{path.name}: reading it needs more memory than watch.reader_memory_mib allows"), None
        except PermissionError as error:
            return _Answer("SourceNotReady", f"{path.name}: {error.strerror}: give the daemon's user the right to read it"), None
        except OSError as error:
            if error.errno is not None:
                return _Answer("SourceNotReady", f"{path.name}: {error.strerror or error}"), None
            return _Answer(_unlike_its_look(request), f"{path.name}: {error}"), None
        except Exception as error:  # noqa: BLE001 - damaged files make the format libraries raise anything at all
            return _Answer(_unlike_its_look(request), f"{path.name}: {type(error).__name__}: {str(error)[:200]}"), None

    def _read(self, request: _Request) -> tuple[_Answer, memoryview]:
        stacks: list[Array] = []
        flags: list[str] = []
        units: list[Unit] = []
        for member in request.members:
            path = Path(member.path)
            loose = tuple(map(Path, member.loose))
            opened = self._sources.open(path, loose)
            frames = opened.source.frames(member.image)
            units.append(self._sources.unit(opened, member.image, loose))
            Sources.unchanged(path, opened.stamp)
            zeros = 0 if opened.source.probe.sealed else zero_tail(opened.source, frames)
            if zeros and not request.lenient and self._sources.waits_for(path, units[-1].acquisition):
                raise SourceStillZero(f"{path.name}: its last {zeros} pixels are zero: not written yet?")
            news = (f"the last {zeros} pixels are zero" if zeros else "", units[-1].acquisition.remark)
            flags += [said for said in news if said and said not in flags]
            stacks.append(frames)
        name = Path(request.members[0].path).name
        if len({(frames.shape[1:], frames.dtype) for frames in stacks}) > 1:
            raise SourceError(f"{name}: the frames of this tilt have different sizes or types")
        frames = np.concatenate(stacks) if len(stacks) > 1 else stacks[0]
        return self._combined(name, frames, tuple(units), flags)

    def _combined(self, name: str, frames: Array, units: tuple[Unit, ...], flags: list[str]) -> tuple[_Answer, memoryview]:
        rules = self._rules
        travelling = (len(frames) + 1) * frames[0].size * _exact(frames.dtype).itemsize
        keep = rules.keep if travelling <= MAX_EXTRA_BYTES or rules.keep != "frames" else "moments"
        rotations = tuple(angle for u in units for angle in u.acquisition.scan_rotation_deg)
        frames = turned(frames, rules.turn)
        mean, extras, drift = combine(frames, rotations, keep=keep, max_shift=rules.max_shift)
        drift = msgspec.structs.replace(drift, flag="; ".join(filter(None, (drift.flag, *flags))))
        kind: Literal["", "variance", "frames"] = "" if extras is None else "frames" if keep == "frames" else "variance"
        planes = mean[None]
        if extras is not None:
            exact = _exact(extras.dtype)
            planes = np.concatenate([mean[None].astype(exact), extras.astype(exact)])
        planes = finished(Path(name), np.ascontiguousarray(planes))
        dtype = "" if extras is None else extras.dtype.str
        reading = Reading(units, sha256_of_frames(frames), drift, kind, dtype)
        count, height, width = planes.shape
        return _Answer("image", reading=reading, dtype=planes.dtype.str, shape=(count, height, width)), planes.data.cast("B")


def _unlike_its_look(request: _Request) -> Literal["SourceNotReady", "SourceError"]:
    """A file that could be looked at and cannot be read may be caught between two writes of one append: clocks tick too slowly to tell."""
    return "SourceNotReady" if request.kind == "read" else "SourceError"


def _exact(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The float that mean and extras travel as together: it holds every number of theirs."""
    return np.dtype("<f8" if dtype.itemsize > 2 and dtype != np.float32 else "<f4")


def turned(frames: Array, turn: str) -> Array:
    """(frames, height, width) as `orientation` asks for."""
    frames = frames.swapaxes(1, 2) if "t" in turn else frames
    frames = frames[:, ::-1] if "y" in turn else frames
    frames = frames[:, :, ::-1] if "x" in turn else frames
    return np.ascontiguousarray(frames)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
