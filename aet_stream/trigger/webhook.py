"""An event as an HTTP POST, signed as Standard Webhooks (www.standardwebhooks.com) describe: receivers find libraries for it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import socket
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from aet_stream import __version__
from aet_stream.errors import ConfigError
from aet_stream.work import Outcome

AGAIN_LATER = (429, 503)


def secret_of(file: str) -> bytes | None:
    """The shared secret in the first line of a file; None without a file.

    Raises
    ------
    ConfigError : no readable file, or nothing in it
    """
    if not file:
        return None
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"webhook.secret_file {file}: {error}") from error
    if not text.removeprefix("whsec_"):
        raise ConfigError(f"webhook.secret_file {file}: no secret in its first line; put the shared one there")
    if not text.startswith("whsec_"):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"webhook.secret_file {file}: after whsec_ there must be base64: {error}") from error


def signature(secret: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over id, time and body, with dots between."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def post(url: str, secret: bytes | None, event_id: str, body: bytes, *, timeout_s: float, again_s: float) -> Outcome:
    """One try. 2xx is success, 429 and 503 mean again later (after Retry-After), anything else, a redirect too, is a failed try.

    Raises
    ------
    OSError : nobody there, or no whole answer within `timeout_s` of being connected
    """
    where, now = urlsplit(url), int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"aet-stream/{__version__}",
        "Idempotency-Key": event_id,
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
    }
    if secret is not None:
        headers["webhook-signature"] = signature(secret, event_id, now, body)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.hostname or "", where.port, timeout=timeout_s)
    try:
        connection.connect()
        # The socket's own timeout starts anew with every byte.
        until, cut = time.monotonic() + timeout_s, threading.Timer(timeout_s, _cut, [connection.sock])
        cut.start()
        try:
            connection.request("POST", (where.path or "/") + (f"?{where.query}" if where.query else ""), body, headers)
            answer = connection.getresponse()
        except OSError as error:
            if time.monotonic() >= until:  # it was cut, which a receiver that goes on writing answers with a reset
                raise TimeoutError(f"no whole answer within {timeout_s:g} s") from error
            raise
        finally:
            cut.cancel()
        if time.monotonic() >= until:
            raise TimeoutError(f"no whole answer within {timeout_s:g} s")
        said = f"HTTP {answer.status} {answer.reason}"
        if answer.status in AGAIN_LATER:
            return Outcome(False, said, _retry_after_s(answer.getheader("Retry-After"), again_s))
        return Outcome(200 <= answer.status < 300, said)
    except http.client.HTTPException as error:
        return Outcome(False, f"no HTTP answer: {type(error).__name__}")
    finally:
        connection.close()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)


def _retry_after_s(text: str | None, otherwise_s: float) -> float:
    """Seconds or a date (RFC 9110, 10.2.3), between a second and a day."""
    if not text:
        return otherwise_s
    try:
        wait_s = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return otherwise_s
    return min(86400.0, max(1.0, wait_s))
