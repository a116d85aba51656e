"""Who may read: this machine; others with a token. Names, origins, headers and slow clients are dealt with here, once for all routes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import ssl
import stat
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from aet_stream.config import Monitor
from aet_stream.errors import ConfigError

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "aet_monitor"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
OPEN_TO_ALL = frozenset({"/livez", "/readyz", "/login", "/static/page.css"})
MAX_FORM_BYTES = 4096
FORM_S = 5.0
TRIES, TRIES_S = 10, 60.0
"""Wrong tokens that are answered within this time; after that everybody waits."""
HEADER_S = 10.0
"""Time to say what one wants."""
UNREAD_S = 60.0
"""Time to take the answer."""


def is_loopback(host: str) -> bool:
    return host in LOOPBACK


def host_names(settings: Monitor) -> list[str]:
    """The names under which requests are answered."""
    own = [] if settings.host in ("", "0.0.0.0", "::") else [settings.host]
    return [f"[{name}]" if ":" in name else name for name in dict.fromkeys([*LOOPBACK, *own, *settings.names])]


def token_for(settings: Monitor, run_folder: Path) -> str:
    """The token that requests need; empty where none is needed. Made at the first start, readable by its owner only.

    Raises
    ------
    ConfigError : the file is open to others, empty or cannot be made
    """
    if is_loopback(settings.host) and settings.token == "auto":
        return ""
    path = Path(settings.token_file).expanduser() if settings.token_file else run_folder / "monitor.token"
    try:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
            logger.info("a new token for the page is in %s", path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others: chmod 600 {path}")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: no token for the monitor: {error}; set monitor.token_file, or remove the file to have it made"
        ) from error
    if len(token) < 32:
        raise ConfigError(f"{path}: a token has at least 32 characters; remove the file to have one made")
    return token


def same_origin(scope: Scope) -> bool:
    """Does the page that asks come from here? Scripts send no Origin and are judged by their token alone."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is None:
        return True
    secure = scope["scheme"] in ("https", "wss")
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme == ("https" if secure else "http") and parts.netloc.lower() == headers.get("host", "").lower()


class Guard:
    """Around all routes: only GET (and the log-in), only our own pages, only with the token where one is needed."""

    def __init__(self, app: ASGIApp, *, token: str, secure: bool) -> None:
        self._app = app
        self._token = token
        self._secure = secure
        # The cookie is made from the token: it outlives a restart of the monitor and does not give the token away.
        self._cookie = hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest() if token else ""
        self._wrong: deque[float] = deque(maxlen=TRIES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            if same_origin(scope) and self._known(scope):
                await self._app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008})  # before accepting: the client sees 403
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = await self._answer(Request(scope, receive))
        await (answer or self._app)(scope, receive, with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """Our own answer, or None to let it pass. Judged by the raw path: a trick with the Host header does not change it."""
        path = request.scope["path"]
        if path == "/login" and request.method == "POST":
            return await self._log_in(request)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("read only\n", 405, headers={"allow": "GET, HEAD"})
        if path in OPEN_TO_ALL or self._known(request.scope):
            return None
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return PlainTextResponse("a token is needed: Authorization: Bearer TOKEN\n", 401, headers={"www-authenticate": "Bearer"})

    def _known(self, scope: Scope) -> bool:
        if not self._token:
            return True
        headers = Headers(scope=scope)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return True
        # SimpleCookie would drop what follows a neighbour's cookie that it dislikes
        return hmac.compare_digest(cookie_parser(headers.get("cookie", "")).get(COOKIE, "").encode(), self._cookie.encode())

    async def _log_in(self, request: Request) -> Response:
        if not self._token:
            return RedirectResponse("/", 303)
        if request.headers.get("origin") is None or not same_origin(request.scope):
            return PlainTextResponse("the form of this server only\n", 403)
        now = time.monotonic()
        if len(self._wrong) == TRIES and now - self._wrong[0] < TRIES_S:
            return PlainTextResponse("too many wrong tokens: wait a minute\n", 429, headers={"retry-after": "60"})
        try:
            body = await asyncio.wait_for(_small_body(request), FORM_S)
        except TimeoutError:
            return PlainTextResponse("too slow\n", 408, headers={"connection": "close"})
        if body is None:
            return PlainTextResponse("too large\n", 413, headers={"connection": "close"})
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            self._wrong.append(now)
            return RedirectResponse("/login?wrong", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._cookie, httponly=True, samesite="strict", secure=self._secure, max_age=30 * 86400)
        return answer


async def _small_body(request: Request) -> bytes | None:
    """The body, or None if it is larger than a token can be."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            return None
    return body


class ImpatientProtocol(H11Protocol):
    """Closes connections that take their time to say what they want, or never take the answer (slow loris, slow read)."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        upgraded = self.transport.get_protocol() is not self  # h11 never hears how a WebSocket's request ends
        if upgraded or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self._deadline is None:
            self._wait_for_headers()

    def pause_writing(self) -> None:
        """What was written waits for the client to take it."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._taken()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._taken()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(UNREAD_S, self.transport.abort)

    def _wait_for_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_S, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _taken(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def tls_settings(settings: Monitor) -> dict[str, Any]:
    """For uvicorn.

    Raises
    ------
    ConfigError : certificate or key cannot be read, or they are none, or not each other's
    """
    if not settings.tls_cert:
        return {}
    for key, name in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key)):
        if not os.access(name, os.R_OK):
            raise ConfigError(f"monitor.{key} {name} cannot be read")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except OSError as error:
        raise ConfigError(
            f"monitor.tls_cert {settings.tls_cert}, monitor.tls_key {settings.tls_key}: {error}; "
            "give a certificate and its own private key, both as PEM and without a password"
        ) from error
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
