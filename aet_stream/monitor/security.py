"""Who may read: this machine; others with a token. Headers, refusals and slow clients are dealt with here, once for all routes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import ssl
import stat
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from aet_stream.config import Monitor
from aet_stream.errors import ConfigError
from aet_stream.monitor import origin
from aet_stream.naming import shown

logger = logging.getLogger(__name__)

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers post the log-in with "Origin: null"
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
OPENER = "cross-origin-opener-policy"
"""Only where browsers heed it: elsewhere they complain about it."""
OPEN_TO_ALL = frozenset({"/livez", "/readyz", "/login", "/static/page.css", "/static/icon.svg"})
MAX_FORM_BYTES = 4096
FORM_S = 5.0
TRIES, TRIES_S = 10, 60.0
"""Wrong tokens that are answered within this time; after that everybody waits."""
ORDINARY = frozenset({401, 404, 503})
"""Answers that belong to every day: asked without the token, gone meanwhile, not ready yet."""
HEADER_S = 10.0
"""Time to say what one wants."""
UNREAD_S = 60.0
"""Time to take the answer."""


def token_for(settings: Monitor, run_folder: Path) -> str:
    """The token that requests need; empty where none is needed. Made at the first start, readable by its owner only.

    Raises
    ------
    ConfigError : the file is open to others, empty or cannot be made
    """
    if origin.only_this_computer(settings) and settings.token == "auto":
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


class Refusals:
    """What the log hears of them: the same (but for its figures) once a minute, and of all that a scanner may ask for only so many."""

    AGAIN_S, MOST = 60.0, 50

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def note(self, asked: origin.Asked, path: str, code: int, reason: str) -> None:
        """`reason`: as the client was told."""
        line = f"{asked.client[: origin.LONGEST]} asked for {path[: origin.LONGEST]}: {code}, {reason.strip()}"
        kind, now = re.sub(r"\d+", "", line), time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at < self.AGAIN_S}
        if kind not in self._said and len(self._said) < self.MOST:
            self._said[kind] = now
            logger.log(logging.INFO if code in ORDINARY else logging.WARNING, "%s", shown(line))


class Guard:
    """Around all routes: only under our names, only GET (and the log-in), only our own pages, only with the token where one is needed."""

    def __init__(self, app: ASGIApp, *, settings: Monitor, token: str) -> None:
        self._app = app
        self._token = token
        self._base = settings.base_path
        self._entrance = origin.Entrance(settings)
        self._refusals = Refusals()
        # The cookie is made from the token: it outlives a restart of the monitor and does not give the token away. Its name is this
        # monitor's own, because cookies of one host are sent to all its ports.
        self._cookie = self._made_from_token("cookie")
        self._cookie_name = f"aet_monitor_{settings.port}_{self._made_from_token('name')[:8]}"
        self._wrong: deque[float] = deque(maxlen=TRIES)

    def _made_from_token(self, purpose: str) -> str:
        return hmac.new(self._token.encode(), purpose.encode(), hashlib.sha256).hexdigest() if self._token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = self._below_base(scope)
        asked = self._entrance.asked(scope)
        answer = await self._answer(scope, receive, asked)
        await (answer or self._app)(scope, receive, self._said_and_noted(scope, asked, send))

    def _below_base(self, scope: Scope) -> Scope:
        """The request as it would be without `base_path`, which a proxy may have taken away or not."""
        inside = self._base and scope["path"].startswith(f"{self._base}/")
        return {**scope, "path": scope["path"].removeprefix(self._base)} if inside else scope

    def _said_and_noted(self, scope: Scope, asked: origin.Asked, send: Send) -> Send:
        """Puts our headers on an answer, and a refusal into the log."""
        code = 200

        async def tell(message: Message) -> None:
            nonlocal code
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                code = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if asked.confidential:
                    headers.setdefault(OPENER, "same-origin")
            elif code >= 400 and message.get("body"):
                self._refusals.note(asked, scope["path"], code, message["body"][:1000].decode("utf-8", "replace"))
                code = 200
            await send(message)

        return tell

    async def _answer(self, scope: Scope, receive: Receive, asked: origin.Asked) -> Response | None:
        """Our own answer, or None to let it pass. Judged by the raw path: a trick with the Host header does not change it."""
        path, method = scope["path"], scope.get("method", "GET")
        if reason := self._entrance.unknown_name(scope):
            return refused(400, reason)
        if self._base and path == self._base:
            return RedirectResponse(f"{path.rpartition('/')[2]}/", 307)
        if path == "/login" and method == "POST":
            return await self._log_in(Request(scope, receive), asked)
        if method not in ("GET", "HEAD"):
            return refused(405, "read only", allow="GET, HEAD")
        if scope["type"] == "websocket" and (reason := self._entrance.foreign_page(scope, Headers(scope=scope).get("origin"))):
            return refused(403, reason)
        if path in OPEN_TO_ALL or self._known(scope):
            return None
        if "text/html" in Headers(scope=scope).get("accept", ""):
            return RedirectResponse(f"{'../' * (path.count('/') - 1)}login", 303)
        return refused(401, "a token is needed: Authorization: Bearer TOKEN", **{"www-authenticate": "Bearer"})

    def _known(self, scope: Scope) -> bool:
        if not self._token:
            return True
        headers = Headers(scope=scope)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return True
        # SimpleCookie would drop what follows a neighbour's cookie that it dislikes
        ours = cookie_parser(headers.get("cookie", "")).get(self._cookie_name, "")
        return hmac.compare_digest(ours.encode(), self._cookie.encode())

    async def _log_in(self, request: Request, asked: origin.Asked) -> Response:
        if not self._token:
            return RedirectResponse("./", 303)
        page = request.headers.get("origin")
        if page is None:
            return refused(403, "the request does not say which page it comes from (no Origin)")
        if reason := self._entrance.foreign_page(request.scope, page):
            return refused(403, reason)
        now = time.monotonic()
        if len(self._wrong) == TRIES and now - self._wrong[0] < TRIES_S:
            return refused(429, "too many wrong tokens: wait a minute", **{"retry-after": "60"})
        try:
            body = await asyncio.wait_for(_small_body(request), FORM_S)
        except TimeoutError:
            return refused(408, "too slow", connection="close")
        if body is None:
            return refused(413, "too large", connection="close")
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            self._wrong.append(now)
            self._refusals.note(asked, "/login", 403, "a wrong token")
            return RedirectResponse("login?wrong", 303)
        answer = RedirectResponse("./", 303)
        # No path: the browser takes the folder that it sees /login in, which a proxy may have put anywhere. Lax: whoever follows a link
        # from elsewhere is known, and nothing can be changed here.
        how: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": asked.scheme == "https", "path": None}
        answer.set_cookie(self._cookie_name, self._cookie, max_age=30 * 86400, **how)
        return answer


def refused(code: int, reason: str, **headers: str) -> Response:
    """A refusal with its reason, as a line of text; that goes into the log, too."""
    return PlainTextResponse(f"{reason}\n", code, headers=headers)


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
