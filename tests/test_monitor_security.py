"""Who may look at the monitor: loopback, or the holder of the token; nothing a client sends becomes a path or holds a connection."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from aet_stream.config import Config, Monitor, load
from aet_stream.errors import ConfigError
from aet_stream.monitor import security
from aet_stream.monitor.live import Live
from aet_stream.monitor.metrics import Metrics
from aet_stream.monitor.monitor import Monitor as Role
from aet_stream.monitor.shelf import Shelf
from aet_stream.monitor.web import Web

TOKEN = "t" * 43


def client(folder: Path, token: str = TOKEN, **headers: str) -> TestClient:
    live = Live(Config(), Shelf(folder))
    web = Web(Monitor(), live, Metrics(lambda: live.status, lambda: 0), token)
    return TestClient(web.app(), base_url="http://127.0.0.1:8571", headers=headers, follow_redirects=False)


def test_without_the_token_nothing_is_shown(tmp_path: Path) -> None:
    """No token, a wrong one, another's cookie: refused; the right one: served; liveness is open to all."""
    web = client(tmp_path)
    for path in ("/api/v1/state", "/status.json", "/metrics", "/api/v1/series", "/static/main.js"):
        assert web.get(path).status_code == 401
        assert web.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert web.get(path, headers={"cookie": f"{security.COOKIE}={TOKEN}"}).status_code == 401
    assert web.get("/", headers={"accept": "text/html"}).headers["location"] == "/login"
    assert web.get("/livez").status_code == 200
    assert web.get("/api/v1/state", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}):
        with pytest.raises(WebSocketDisconnect), web.websocket_connect("/api/v1/events", headers=headers):
            pass


def test_logging_in_gives_a_cookie_that_is_not_the_token(tmp_path: Path) -> None:
    """HttpOnly, SameSite=Strict; another site's form, a large one and too many tries are refused."""
    web = client(tmp_path)
    own = {"origin": "http://127.0.0.1:8571"}
    assert web.post("/login", data={"token": TOKEN}).status_code == 403
    assert web.post("/login", data={"token": TOKEN}, headers={"origin": "http://evil.example"}).status_code == 403
    assert web.post("/login", data={"token": "x" * 5000}, headers=own).status_code == 413
    answer = web.post("/login", data={"token": TOKEN}, headers=own)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert web.get("/api/v1/state").status_code == 200
    codes = [web.post("/login", data={"token": "no"}, headers=own).status_code for _ in range(security.TRIES + 1)]
    assert codes[-1] == 429


def test_foreign_names_and_origins_are_refused(tmp_path: Path) -> None:
    """Host and Origin are checked, for pages and for the socket; every answer carries the headers."""
    web = client(tmp_path, token="")
    assert web.get("/", headers={"host": "evil.example"}).status_code == 400
    assert web.get("/", headers={"host": "127.0.0.1/../x"}).status_code == 400
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null"):
        with pytest.raises(WebSocketDisconnect), web.websocket_connect("/api/v1/events", headers={"origin": origin}):
            pass
    answer = web.get("/")
    assert answer.headers["content-security-policy"] == security.CSP
    assert "unsafe" not in security.CSP
    assert answer.headers["x-content-type-options"] == "nosniff"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert web.request(method, "/api/v1/state").status_code == 405


def test_the_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """0600, the same at the next start; a file open to others, or every address without a name, refuses to start."""
    settings = Monitor(host="192.0.2.1")
    token = security.token_for(settings, tmp_path)
    path = tmp_path / "monitor.token"
    assert len(token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert security.token_for(settings, tmp_path) == token
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        security.token_for(settings, tmp_path)
    assert security.token_for(Monitor(), tmp_path) == ""
    with pytest.raises(ConfigError, match=r"monitor\.names"):
        load(None, ["monitor.host=0.0.0.0"])


@pytest.fixture
def role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A monitor without a hub, at a free port, that waits only half a second for what a client wants."""
    monkeypatch.setattr(security, "HEADER_S", 0.5)
    config = load(None, [f"output.root={tmp_path}", "monitor.port=0"])
    monitor = Role(config)
    monitor.start()
    yield monitor
    monitor.close()


def turned(role: Role, client: socket.socket, limit_s: float = 20.0) -> bytes:
    """What the client is sent until the server closes, while the monitor's loop turns."""
    client.setblocking(False)
    said, until = b"", time.monotonic() + limit_s
    while time.monotonic() < until:
        role.step()
        try:
            piece = client.recv(65536)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return said
        if not piece:
            return said
        said += piece
    raise AssertionError(f"still open after {limit_s} s, said {said[:200]!r}")


def test_who_never_says_what_he_wants_is_shown_the_door(role: Role) -> None:
    """Slow loris: half a request, then nothing; and a header without end."""
    address = ("127.0.0.1", int(role.url.rsplit(":", 1)[1]))
    for opening in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "):
        with socket.create_connection(address) as client:
            client.sendall(opening)
            assert turned(role, client) == b""
    with socket.create_connection(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Large: " + b"a" * 40000)
        assert b" 400 " in turned(role, client)[:40]


def test_a_slow_viewer_loses_messages_and_hears_how_many() -> None:
    """Its queue is short and drops the oldest: nobody waits for it."""
    from aet_stream.monitor.live import QUEUE, Viewer

    viewer = Viewer()
    for number in range(QUEUE + 5):
        viewer.put({"number": number})
    first = asyncio.run(viewer.next())
    assert first == {"number": 5, "dropped": 5}
