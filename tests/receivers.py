"""Receivers of events for tests: an HTTP server, a REP socket and a program, each keeping what it was given and honouring ids."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import zmq


class Receiver:
    """What arrived, in order: `tries` has everything, `effects` every id once."""

    def __init__(self) -> None:
        self.tries: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.effects: list[dict[str, Any]] = []
        self.answers: list[int | tuple[int, dict[str, str]]] = []
        """What to answer to the next tries; 200 when empty."""
        self.before_answer: Callable[[dict[str, Any]], None] = lambda event: None
        self.after_answer: Callable[[dict[str, Any]], None] = lambda event: None
        self.address = ""

    def take(self, event: dict[str, Any]) -> tuple[int, dict[str, str]]:
        self.tries.append(event)
        self.before_answer(event)
        answer = self.answers.pop(0) if self.answers else 200
        code, headers = answer if isinstance(answer, tuple) else (answer, {})
        if code < 300 and event["id"] not in {known["id"] for known in self.effects}:
            self.effects.append(event)
        return code, headers


@contextmanager
def http_receiver(port: int = 0) -> Iterator[Receiver]:
    """Listens on loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
            receiver.bodies.append(body)
            event = json.loads(body)
            code, headers = receiver.take(event)
            try:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.wfile.flush()
            except OSError:
                pass  # whoever asked is dead
            receiver.after_answer(event)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver.address = f"http://127.0.0.1:{server.server_address[1]}/hook?x=1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def zmq_receiver(folder: Path) -> Iterator[Receiver]:
    """A REP socket that answers with the id."""
    receiver, stop = Receiver(), threading.Event()
    receiver.address = f"ipc://{folder}/receiver"

    def serve() -> None:
        socket = zmq.Context.instance().socket(zmq.REP)
        socket.bind(receiver.address)
        while not stop.is_set():
            if socket.poll(20):
                name, content = socket.recv_multipart()
                event = json.loads(content)
                assert event["id"] == name.decode()
                code, _ = receiver.take(event)
                socket.send(name if code < 300 else b"no")
                receiver.after_answer(event)
        socket.close(0)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield receiver
    finally:
        stop.set()
        thread.join()


PROGRAM = """
import json, os, sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
event = json.load(sys.stdin)
assert event["id"] == os.environ["AET_EVENT_ID"] and event["event"] == os.environ["AET_EVENT"]
event |= {"attempt": os.environ["AET_ATTEMPT"], "argv": sys.argv[2:]}
with (folder / "tries").open("a") as tries: tries.write(json.dumps(event) + "\\n")
ask = folder / "answer"
while (folder / "wait").exists(): time.sleep(0.02)
code = int(ask.read_text()) if ask.exists() else 0
if code == 0:
    try: (folder / f"effect.{event['id']}").open("x").close()
    except FileExistsError: pass
sys.exit(code)
"""


class Program:
    """A command hook that keeps what it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "program.py").write_text(PROGRAM)
        self.argv = [sys.executable, str(folder / "program.py"), str(folder), "two words; $HOME"]

    def answer(self, code: int) -> None:
        (self.folder / "answer").write_text(str(code))

    @property
    def tries(self) -> list[dict[str, Any]]:
        path = self.folder / "tries"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def effects_in_order(self) -> list[str]:
        """By the first try of each."""
        return [name for name in dict.fromkeys(event["id"] for event in self.tries) if name in self.effects]

    @property
    def effects(self) -> set[str]:
        return {path.suffix[1:] for path in self.folder.glob("effect.*")}


def slow(seconds: float) -> Callable[[dict[str, Any]], None]:
    """A receiver that takes its time."""
    return lambda event: time.sleep(seconds)
