"""What stands between browsers and monitors in tests: an nginx as docs/monitor.md sets it up, certificates, somebody else's site."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aet_stream.config_file import load
from aet_stream.monitor.monitor import Monitor
from tests.harness import wait_for

PRINTED = re.search(r"```nginx\n(.*?)```", (Path(__file__).parent.parent / "docs" / "monitor.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
NGINX = """
daemon off;
pid nginx.pid;
error_log stderr;
{user}
events {{ }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
{site}
}}
"""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """Certificate and key for these names, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=aet -addext subjectAltName={','.join(names)}"
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@contextlib.contextmanager
def serving(root: Path, *words: str) -> Iterator[Monitor]:
    """A monitor of an output folder, without a daemon, turned by a thread of this process."""
    monitor = Monitor(load(None, [f"output.root={root}", "monitor.port=0", "monitor.doctor_every_s=0", *words]))
    up, stop = threading.Event(), threading.Event()

    def turn() -> None:
        beaten_at = 0.0
        try:
            monitor.start()
            up.set()
            while not stop.is_set():
                monitor.step()
                if time.monotonic() - beaten_at > 1:
                    beaten_at = time.monotonic()
                    monitor.beat()
        finally:
            monitor.close()

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        wait_for(lambda: up.is_set() or not thread.is_alive(), what="the monitor")
        yield monitor
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def nginx(folder: Path, site: str) -> Iterator[None]:
    """A real nginx with these servers; the test skips where there is none."""
    executable = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if executable is None:
        pytest.skip("no nginx is installed (Debian: apt-get install nginx-light)")
    folder.mkdir()
    (folder / "nginx.conf").write_text(NGINX.format(user="user root;" if os.geteuid() == 0 else "", site=site))
    host, port = re.findall(r"listen (\S+):(\d+)", site)[0]
    command = [executable, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            wait_for(lambda: process.poll() is not None or _answers(host, int(port)), what="nginx")
            assert process.poll() is None, (folder / "log").read_text()
            yield
        finally:
            process.terminate()


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def site(page: str) -> Iterator[int]:
    """Somebody else's web site of one page; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
