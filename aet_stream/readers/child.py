"""Reading in a child process with limits: a hostile, hanging or crashing file costs one child, never the daemon.

One request at a time over a pipe: a msgpack header, and for an image the raw pixel bytes behind it; never pickle. The child ends when its
parent does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from aet_stream.errors import AetError, ReaderDied, SourceError, SourceGone, SourceNotReady
from aet_stream.projection import Acquisition, Projection, sha256_of
from aet_stream.readers import Probe, format_of, regular_size


class _Request(msgspec.Struct, frozen=True):
    path: str
    image: int
    """-1 asks for a probe."""
    max_bytes: int


class _Answer(msgspec.Struct, frozen=True):
    kind: Literal["probe", "image", "SourceError", "SourceNotReady", "SourceGone", "ReaderDied"]
    text: str = ""
    probe: Probe | None = None
    acquisition: Acquisition | None = None
    sha256: str = ""
    dtype: str = ""
    shape: tuple[int, int] = (0, 0)


_ERRORS: dict[str, type[AetError]] = {error.__name__: error for error in (SourceError, SourceNotReady, SourceGone, ReaderDied)}
_requests, _answers = msgspec.msgpack.Decoder(_Request), msgspec.msgpack.Decoder(_Answer)
_encode = msgspec.msgpack.encode


class ReaderChild:
    """A reading process that is started when first needed, and again after it died."""

    def __init__(self, *, timeout_s: float, memory_mib: int, max_file_mib: int) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_mib << 20
        self._max_bytes = max_file_mib << 20
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def probe(self, path: Path) -> Probe:
        """What a complete file holds.

        Raises
        ------
        SourceNotReady, SourceError, SourceGone, ReaderDied
        """
        answer, _ = self._ask(path, -1)
        if answer.probe is None:
            raise ReaderDied(f"{path.name}: the reading process answered nonsense")
        return answer.probe

    def read(self, path: Path, image: int) -> tuple[Projection, str]:
        """One image and the SHA-256 of its pixel bytes.

        Raises
        ------
        SourceNotReady, SourceError, SourceGone, ReaderDied
        """
        answer, content = self._ask(path, image)
        if answer.acquisition is None or content is None:
            raise ReaderDied(f"{path.name}: the reading process answered nonsense")
        pixels = np.frombuffer(content, answer.dtype).reshape(answer.shape)
        return Projection(pixels, answer.acquisition), answer.sha256

    def _ask(self, path: Path, image: int) -> tuple[_Answer, bytes | None]:
        pipe = self._started()
        try:
            pipe.send_bytes(_encode(_Request(str(path), image, self._max_bytes)))
            if not pipe.poll(self._timeout_s):
                self._kill()
                raise ReaderDied(f"{path.name}: reading took longer than {self._timeout_s:g} s (watch.reader_timeout_s)")
            answer = _answers.decode(pipe.recv_bytes())
            content = pipe.recv_bytes() if answer.kind == "image" else None
        except (EOFError, OSError) as error:
            self._kill()
            raise ReaderDied(f"{path.name}: the reading process died over it") from error
        if answer.kind in _ERRORS:
            if answer.kind == "ReaderDied":
                self._kill()  # out of memory: whatever it still holds goes with it
            raise _ERRORS[answer.kind](answer.text)
        return answer, content

    def _started(self) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self._kill()
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._memory_bytes), name="reader", daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def close(self) -> None:
        self._kill()


def _serve(pipe: Connection, memory_bytes: int) -> None:
    """The child: answers until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = _requests.decode(pipe.recv_bytes())
            answer, content = _answer(request)
            pipe.send_bytes(_encode(answer))
            if content is not None:
                pipe.send_bytes(content)


def _answer(request: _Request) -> tuple[_Answer, memoryview | None]:
    path = Path(request.path)
    try:
        return _look(path, request) if request.image < 0 else _read(path, request)
    except (SourceError, SourceNotReady, SourceGone) as error:
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
        return _Answer("SourceError", f"{path.name}: {error}"), None
    except Exception as error:  # noqa: BLE001 - damaged files make the format libraries raise anything at all
        return _Answer("SourceError", f"{path.name}: {type(error).__name__}: {str(error)[:200]}"), None


def _look(path: Path, request: _Request) -> tuple[_Answer, None]:
    size = regular_size(path, request.max_bytes)
    return _Answer("probe", probe=format_of(path).probe(path, size)), None


def _read(path: Path, request: _Request) -> tuple[_Answer, memoryview]:
    regular_size(path, request.max_bytes)
    before = path.stat()
    projection = format_of(path).read(path, request.image)
    after = path.stat()
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise SourceNotReady(f"{path.name}: changed while it was read")
    pixels = projection.pixels
    height, width = pixels.shape
    answer = _Answer("image", acquisition=projection.acquisition, sha256=sha256_of(pixels), dtype=pixels.dtype.str, shape=(height, width))
    return answer, pixels.data.cast("B")
