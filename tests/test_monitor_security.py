"""Who may look at the monitor: loopback, or the holder of the token; nothing a client sends becomes a path or holds a connection."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.sync.client import connect

from aet_stream.config import Config, Monitor
from aet_stream.config_file import load
from aet_stream.errors import AetError, ConfigError
from aet_stream.monitor import security
from aet_stream.monitor.live import Live
from aet_stream.monitor.metrics import Metrics
from aet_stream.monitor.monitor import CONNECTIONS
from aet_stream.monitor.monitor import Monitor as Role
from aet_stream.monitor.series_cache import SeriesCache
from aet_stream.monitor.web import Web
from tests.harness import running, wait_for
from tests.proxy import certificate as made_certificate
from tests.test_monitor import address

TOKEN = "t" * 43
EVENTS = "ws://127.0.0.1:8571/api/v1/events"


def client(folder: Path, token: str = TOKEN, peer: str = "127.0.0.1", **settings: Any) -> TestClient:
    live = Live(Config(), SeriesCache(folder))
    web = Web(Monitor(**settings), live, Metrics(lambda: live.status, lambda: 0), token)
    return TestClient(web.app(), base_url="http://127.0.0.1:8571", follow_redirects=False, client=(peer, 50000))


def log_in(web: TestClient, **headers: str) -> str:
    """The cookie, with all that is said of it."""
    answer = web.post("/login", data={"token": TOKEN}, headers={"origin": "http://127.0.0.1:8571", **headers})
    assert (answer.status_code, answer.headers["location"]) == (303, "./"), answer.text
    return str(answer.headers["set-cookie"])


def refusal(web: TestClient, headers: dict[str, str]) -> tuple[int, str]:
    """Of the WebSocket: code and words."""
    with pytest.raises(WebSocketDenialResponse) as found, web.websocket_connect(EVENTS, headers=headers):
        pass
    return found.value.status_code, found.value.text


def test_without_the_token_nothing_is_shown(tmp_path: Path) -> None:
    """No token, a wrong one, another's cookie: refused; the right one: served; liveness is open to all."""
    web = client(tmp_path)
    name = log_in(client(tmp_path)).partition("=")[0]
    for path in ("/api/v1/state", "/status.json", "/metrics", "/api/v1/series", "/static/main.js"):
        assert web.get(path).status_code == 401
        assert web.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert web.get(path, headers={"cookie": f"{name}={TOKEN}"}).status_code == 401
    for path, way in (("/", "login"), ("/api/v1/series/0000000000000000/report.html", "../../../../login")):
        assert web.get(path, headers={"accept": "text/html"}).headers["location"] == way
    assert web.get("/livez").status_code == 200
    assert web.get("/api/v1/state", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert refusal(web, headers)[0] == 401


def test_logging_in_gives_a_cookie_that_is_not_the_token(tmp_path: Path) -> None:
    """HttpOnly, SameSite=Lax, good beside any neighbour; another site's form, a large one and too many tries are refused."""
    web = client(tmp_path)
    own = {"origin": "http://127.0.0.1:8571"}
    for foreign in ({}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "https://127.0.0.1:8571"}):
        assert web.post("/login", data={"token": TOKEN}, headers=foreign).status_code == 403
    assert web.post("/login", data={"token": "x" * 5000}, headers=own).status_code == 413
    cookie = log_in(web)
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert "path=" not in cookie.lower()  # it holds where the browser sees the page, which a proxy may have put anywhere
    assert TOKEN not in cookie
    assert web.get("/api/v1/state").status_code == 200
    ours = cookie.split(";")[0]
    for neighbours in (f'prefs={{"a": 1}}; {ours}', f"{ours}; a[b]=ü,;=;x", f'"; {ours}'):
        assert client(tmp_path).get("/api/v1/state", headers={"cookie": neighbours.encode()}).status_code == 200
    name = cookie.partition("=")[0]
    for wrong in (f"{ours}x", name, f"{name}=", f"x{ours}", f"{name}=ü"):
        assert client(tmp_path).get("/api/v1/state", headers={"cookie": wrong.encode()}).status_code == 401
    codes = [web.post("/login", data={"token": "no"}, headers=own).status_code for _ in range(security.TRIES + 1)]
    assert codes[-1] == 429


def test_a_cookie_is_named_for_port_and_token(tmp_path: Path) -> None:
    """Another port, or another token at the same port of another path: another name; after a restart the same."""
    name = log_in(client(tmp_path)).partition("=")[0]
    assert log_in(client(tmp_path)).partition("=")[0] == name
    assert log_in(client(tmp_path, port=8572)).partition("=")[0] != name
    web = client(tmp_path, "u" * 43)
    answer = web.post("/login", data={"token": "u" * 43}, headers={"origin": "http://127.0.0.1:8571"})
    assert answer.headers["set-cookie"].partition("=")[0] != name
    assert TOKEN[:8] not in name


PROXIED = {"origin": "https://lab.example", "x-forwarded-host": "lab.example:443", "x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("trusted", "peer", "believed"),
    [
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.0/24", "10.0.0.5", True),
        ("10.0.0.5", "::ffff:10.0.0.5", True),
        ("fd00::/8", "fd00::5", True),
        ("10.0.0.5", "10.0.0.6", False),
        ("fd00::/8", "10.0.0.5", False),
        ("127.0.0.1", "nonsense", False),
    ],
)
def test_only_a_trusted_proxy_is_believed(tmp_path: Path, trusted: str, peer: str, believed: bool) -> None:
    """What it says of name and scheme opens the log-in and the socket, and makes the cookie Secure; of all others nothing counts."""
    web = client(tmp_path, peer=peer, names=("lab.example",), trusted_proxies=(trusted,))
    if believed:
        assert "; Secure" in log_in(web, **PROXIED)
        with web.websocket_connect(EVENTS, headers={**PROXIED, "authorization": f"Bearer {TOKEN}"}) as events:
            assert events.receive_json()["type"] == "snapshot"
        assert "; Secure" not in log_in(web)
        chain = {**PROXIED, "x-forwarded-host": "evil.example, lab.example", "x-forwarded-proto": "http, https"}
        assert "; Secure" in log_in(web, **chain)  # each proxy adds to what came: the nearest has the last word
        assert web.get("/livez", headers={"x-forwarded-host": "evil.example"}).status_code == 400
        assert web.get("/livez", headers={**PROXIED, "host": "evil.example"}).status_code == 400
    else:
        answer = web.post("/login", data={"token": TOKEN}, headers=PROXIED)
        assert answer.status_code == 403
        assert "trusted_proxies" in answer.text
        assert web.get("/livez", headers={"x-forwarded-host": "evil.example"}).status_code == 200


def test_a_path_before_ours_may_stay_or_be_taken_away(tmp_path: Path) -> None:
    """`base_path`: with it, without it, and as people write it, without its last /; no other path is let in by it."""
    web = client(tmp_path, base_path="/deep/aet")
    for path in ("/deep/aet/livez", "/livez"):
        assert web.get(path).status_code == 200
    assert web.get("/deep/aet").headers["location"] == "aet/"
    assert web.get("/deep/aet/", headers={"accept": "text/html"}).headers["location"] == "login"
    for path in ("/deep/aet/api/v1/state", "/deep/aetx/livez", "/deep/aet/deep/aet/livez", "/aet/livez"):
        assert web.get(path).status_code == 401


def test_ways_in_that_cannot_be_are_mistakes() -> None:
    """Each named with its setting and value."""
    for word in (
        'names=["https://lab.example"]', 'names=["lab.example:8443"]', 'names=["*.example"]', 'names=[""]',
        'trusted_proxies=["lab.example"]', 'trusted_proxies=["10.0.0.5/24"]',
        "base_path=aet", "base_path=/aet/", "base_path=/", "base_path=/..",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"monitor\.{word.partition('=')[0]} '"):
            load(None, [f"monitor.{word}"])
    load(None, ['monitor.names=["lab.example", "192.0.2.1", "fd00::1"]', "monitor.base_path=/a.b/c-d_e~f"])


def test_foreign_names_and_origins_are_refused(tmp_path: Path) -> None:
    """Host and Origin are checked, for pages and for the socket; every answer carries the headers."""
    web = client(tmp_path, token="")
    assert web.get("/", headers={"host": "evil.example"}).status_code == 400
    assert web.get("/", headers={"host": "127.0.0.1/../x"}).status_code == 400
    assert web.get("/livez", headers={"host": "LOCALHOST.:8571"}).status_code == 200
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null", "http://["):
        code, said = refusal(web, {"origin": origin})
        assert code == 403
        assert "trusted_proxies" in said or "Origin: null" in said
    with web.websocket_connect(EVENTS, headers={"origin": "http://127.0.0.1:8571"}) as events:
        assert events.receive_json()["type"] == "snapshot"
    answer = web.get("/")
    assert answer.headers["content-security-policy"] == security.CSP
    assert "unsafe" not in security.CSP
    assert answer.headers["x-content-type-options"] == "nosniff"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert web.request(method, "/api/v1/state").status_code == 405
    assert web.get(f"/api/v1/series/{'0' * 16}/frames/{'9' * 5000}/raw").status_code == 404


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
    path.chmod(0o600)
    for others in (Monitor(names=("lab.example",)), Monitor(trusted_proxies=("127.0.0.1",)), Monitor(token="always")):
        assert security.token_for(others, tmp_path) == token
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


def turned(role: Role, client: socket.socket, limit_s: float = 20.0, *, until_said: bytes = b"") -> bytes:
    """What the client is sent until the server closes, or has said this, while the monitor's loop turns."""
    client.setblocking(False)
    said, until = b"", time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            piece = client.recv(65536)
        except BlockingIOError:
            role.step()
            continue
        except ConnectionResetError:
            return said
        if not piece:
            return said
        said += piece
        if until_said and until_said in said:
            return said
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


def test_who_promises_a_body_and_never_sends_it_is_shown_the_door(role: Role) -> None:
    """The answer needs no body, so nobody would ever miss it; a byte of it now and then keeps nothing open."""
    with socket.create_connection(("127.0.0.1", int(role.url.rsplit(":", 1)[1]))) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n")
        assert b" 200 " in turned(role, client, until_said=b"alive\n")
        client.setblocking(True)
        client.sendall(b"x")
        assert turned(role, client) == b""


def asked(role: Role, request: bytes) -> bytes:
    """What a client that sends exactly these bytes is answered, until the server closes."""
    with socket.create_connection(("127.0.0.1", int(role.url.rsplit(":", 1)[1]))) as client:
        client.sendall(request)
        return turned(role, client)


HOST = b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "target",
    [
        b"/static/../web.py",
        b"/static/..%2fweb.py",
        b"/static/%2e%2e/%2e%2e/config.py",
        b"//etc/passwd",
        b"/static//etc/passwd",
        b"/static/main.js%00.css",
        b"/api/v1/series/../../state",
        b"/api/v1/series/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        b"/api/v1/series/0000000000000000/frames/0/..%2f..%2fraw",
        b"http://evil.example/static/web.py",
        b"/status.json/",
    ],
)
def test_tricks_with_paths_find_nothing(role: Role, target: bytes) -> None:
    """As the client wrote it, not as a library tidied it: no file but the page's own, no series but by its id."""
    answer = asked(role, b"GET " + target + b" HTTP/1.1" + HOST)
    assert answer.split(b" ")[1] in (b"307", b"400", b"404")
    assert not any(word in answer for word in (b"root:", b"import ", b"frozen=True", b'"level"'))


@pytest.mark.parametrize(
    "host", [b"Host: evil.example", b"Host: 127.0.0.1.evil.example", b"Host: evil@127.0.0.1", b"Host: 127.0.0.1/x", b"Host:", b"X: y"]
)
def test_a_bad_host_is_refused_as_it_comes(role: Role, host: bytes) -> None:
    """Another's name, one that only begins like ours, none, nothing: 400."""
    answer = asked(role, b"GET /status.json HTTP/1.1\r\n" + host + b"\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1] == b"400"


UPGRADE = (
    b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


def test_an_open_page_outlives_the_time_to_say_what_one_wants(role: Role) -> None:
    """Its socket has said what it wants: a silent connection that came later is cut, and it still answers a ping."""
    address = ("127.0.0.1", int(role.url.rsplit(":", 1)[1]))
    with socket.create_connection(address) as page:
        page.sendall(UPGRADE)
        turned(role, page, until_said=b'"snapshot"')
        with socket.create_connection(address) as silent:
            assert turned(role, silent) == b""
        page.setblocking(True)
        page.sendall(bytes([0x89, 0x80 | 6]) + bytes(4) + b"there?")
        assert b"there?" in turned(role, page, until_said=b"there?")


def test_oversized_requests_are_refused(role: Role) -> None:
    """An address, a header, a message to the socket that nobody needs: refused, not kept."""
    assert asked(role, b"GET /" + b"a" * 40000).split(b" ")[1] == b"400"
    lots = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(400))
    assert asked(role, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + lots).split(b" ")[1] == b"400"
    masked = bytes([0x82, 0x80 | 126]) + (8192).to_bytes(2, "big") + bytes(4) + bytes(8192)
    with socket.create_connection(("127.0.0.1", int(role.url.rsplit(":", 1)[1]))) as client:
        client.sendall(UPGRADE)
        assert turned(role, client, until_said=b'"snapshot"').startswith(b"HTTP/1.1 101")
        client.setblocking(True)
        client.sendall(masked)
        too_big = (1009).to_bytes(2, "big")
        assert too_big in turned(role, client, until_said=too_big)


def test_a_form_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow loris in the body of the log-in."""
    monkeypatch.setattr(security, "FORM_S", 0.5)
    monitor = Role(load(None, [f"output.root={tmp_path}", "monitor.port=0", "monitor.token=always"]))
    (tmp_path / "run").mkdir()
    monitor.start()
    try:
        own = monitor.url.encode()
        head = b"POST /login HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nContent-Length: 1000\r\n\r\ntok" % (own[7:], own)
        assert asked(monitor, head).split(b" ")[1] == b"408"
    finally:
        monitor.close()


def test_many_who_say_nothing_keep_nobody_out_for_long(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """More silent connections than there is room for: all are shown the door, and the next request is answered."""
    address = ("127.0.0.1", int(role.url.rsplit(":", 1)[1]))
    monkeypatch.setattr(security, "HEADER_S", 5.0)
    crowd: list[socket.socket] = []
    try:
        while len(crowd) < CONNECTIONS + 20:
            crowd.append(socket.create_connection(address))
            if len(crowd) % 60 == 0:
                role.step()  # the kernel keeps only so many waiting
        assert b" 503 " in asked(role, b"GET /livez HTTP/1.1" + HOST)[:40]
        for one in crowd:
            assert turned(role, one) == b""
        assert asked(role, b"GET /livez HTTP/1.1" + HOST).endswith(b"alive\n")
    finally:
        for one in crowd:
            one.close()


def test_who_never_takes_his_answers_is_shown_the_door(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow read: one file after the other is asked for and none taken, so the server's buffers fill; the connection is cut, others live."""
    monkeypatch.setattr(security, "UNREAD_S", 0.5)
    requests = b"GET /static/main.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50

    def cut() -> bool:
        role.step()
        try:
            client.send(requests)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(role.url.rsplit(":", 1)[1])))
        client.setblocking(False)
        wait_for(cut, limit_s=60, what="the connection to be cut")
    assert asked(role, b"GET /livez HTTP/1.1" + HOST).endswith(b"alive\n")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return made_certificate(tmp_path, "IP:127.0.0.1")


def test_with_a_certificate_all_is_encrypted(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """HTTPS and WSS with the certificate that was given, a Secure cookie; plain HTTP gets nothing; no key, no start."""
    cert, key = certificate
    settings = {"monitor__tls_cert": str(cert), "monitor__tls_key": str(key), "monitor__token": "always"}
    with running(tmp_path / "daemon", monitor__enabled=True, monitor__port=0, **settings) as daemon:
        url = address(daemon)
        assert url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=str(cert))
        token = (daemon.out / "run" / "monitor.token").read_text().strip()
        bearer = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{url}/api/v1/state", headers=bearer)
        with urllib.request.urlopen(request, context=trust, timeout=10) as answer:
            assert answer.status == 200
        connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=trust, timeout=10)
        connection.request("POST", "/login", f"token={token}", {"Origin": url, "Content-Type": "application/x-www-form-urlencoded"})
        assert "; secure" in (connection.getresponse().getheader("set-cookie") or "").lower()
        connection.close()
        where = url.replace("https", "wss") + "/api/v1/events"
        with connect(where, ssl=trust, additional_headers=bearer, proxy=None) as events:
            assert json.loads(events.recv(timeout=10))["type"] == "snapshot"
        with pytest.raises((OSError, http.client.HTTPException)):
            urllib.request.urlopen(url.replace("https", "http") + "/livez", timeout=10)
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{url}/livez", timeout=10)
    with pytest.raises(ConfigError, match="belong together"):
        load(None, [f"monitor.tls_cert={cert}"])
    key.unlink()
    with pytest.raises(ConfigError, match=r"tls_key .* cannot be read"):
        security.tls_settings(Monitor(tls_cert=str(cert), tls_key=str(key)))


def test_an_address_of_another_computer_is_told_apart_from_a_taken_port(tmp_path: Path) -> None:
    """The remedy names the setting that is wrong."""
    (tmp_path / "run").mkdir()
    words = [f"output.root={tmp_path}", "monitor.port=0", "monitor.host=192.0.2.1"]
    with pytest.raises(AetError, match=r"192\.0\.2\.1 cannot be used .*: set monitor\.host to an address of this computer"):
        Role(load(None, words)).start()


def test_a_certificate_that_is_none_is_named_at_the_start(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """No PEM, another's key, a key with a password: one line with setting and file, not a monitor that dies later."""
    cert, key = certificate
    none, other, locked = (tmp_path / name for name in ("none.pem", "other.pem", "locked.pem"))
    none.write_text("no certificate\n")
    subprocess.run(["openssl", "genrsa", "-out", str(other), "2048"], check=True, capture_output=True)
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:locked", "-in", str(key), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    for wrong in ((none, key), (cert, none), (cert, other), (cert, locked)):
        with pytest.raises(ConfigError, match=rf"^monitor\.tls_cert {wrong[0]}, monitor\.tls_key {wrong[1]}: .+PEM.+$"):
            security.tls_settings(Monitor(tls_cert=str(wrong[0]), tls_key=str(wrong[1])))
    assert security.tls_settings(Monitor(tls_cert=str(cert), tls_key=str(key)))


def test_a_slow_viewer_loses_messages_and_hears_how_many() -> None:
    """Its queue is short and drops the oldest: nobody waits for it."""
    from aet_stream.monitor.live import QUEUE, Viewer

    viewer = Viewer()
    for number in range(QUEUE + 5):
        viewer.put({"number": number})
    first = asyncio.run(viewer.next())
    assert first == {"number": 5, "dropped": 5}
