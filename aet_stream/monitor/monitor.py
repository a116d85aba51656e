"""The monitor's turn: hear the hub's status, serve it for a while. The heartbeat comes from the loop that serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from aet_stream.config import Config
from aet_stream.errors import AetError
from aet_stream.monitor.metrics import StatusCollector
from aet_stream.transport import EventStream, HubLink

logger = logging.getLogger(__name__)

TURN_S = 0.1
STALE_S = 5.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_WELCOME = """aet-stream monitor

/status.json  everything
/metrics      for Prometheus
/livez        is it alive
/readyz       is it fit for work
"""


class Monitor:
    """Serves what the hub said last."""

    name = "monitor"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._collector = StatusCollector()
        self._heard_at = 0.0
        self.url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stream: EventStream | None = None
        self._link: HubLink | None = None

    # -- life -------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the port, then listen to the hub.

        Raises
        ------
        AetError : the port is taken
        """
        where = self._config.monitor
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((where.host, where.port))
        except OSError as error:
            listener.close()
            raise AetError(
                f"port {where.port} on {where.host} is taken ({error.strerror}): set monitor.port (0 takes any free one)"
            ) from error
        port = listener.getsockname()[1]
        self.url = f"http://{f'[{where.host}]' if ':' in where.host else where.host}:{port}"
        settings = uvicorn.Config(self.app(), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self._server = _Server(settings)
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._server.serve(sockets=[listener]))
        self._stream = EventStream(self._config.output_root, "status")
        self._link = HubLink(self._config.output_root, role="monitor", name=self.name)
        logger.info("status at %s/status.json", self.url)

    def step(self) -> None:
        if self._loop is None or self._stream is None or self._link is None or self._serving is None:
            return
        self._loop.run_until_complete(asyncio.sleep(TURN_S))
        if self._serving.done():
            raise AetError(f"the web server ended by itself: {self._serving.exception()}")
        for _, status in self._stream.receive(0):
            self._collector.status, self._heard_at = status, time.monotonic()
        for _ in self._link.receive(0):
            pass  # pulses are noted inside

    def beat(self) -> None:
        if self._link is not None:
            self._link.beat({"url": self.url})

    def close(self) -> None:
        if self._loop is not None and self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._loop.run_until_complete(asyncio.wait([self._serving], timeout=2))
            self._loop.close()
        for part in (self._stream, self._link):
            if part is not None:
                part.close()

    # -- answers ----------------------------------------------------------------------------------------------------------------

    def app(self) -> Starlette:
        """GET only, for this machine's own names only."""
        routes = [
            Route("/", self._welcome),
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            Route("/status.json", self._status_json),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
        return Starlette(routes=routes, middleware=[hosts])

    def silence_s(self) -> float:
        """Since when the hub has said nothing; infinite if it never has."""
        return time.monotonic() - self._heard_at if self._heard_at else float("inf")

    def troubles(self) -> list[str]:
        """Why the daemon is not fit for work."""
        if self.silence_s() > STALE_S:
            return ["the hub is silent"]
        status = self._collector.status
        fresh = {role["role"] for role in status.get("roles", {}).values() if role["age_s"] < STALE_S}
        found = [f"no {role}" for role in ("watch", "worker") if role not in fresh]
        watch = status.get("roles", {}).get("watch", {}).get("status", {})
        if watch.get("root_there") is False:
            found.append("the watched folder is not there")
        return found + ([f"paused: {status['paused']}"] if status.get("paused") else [])

    async def _welcome(self, request: Request) -> Response:
        return PlainTextResponse(_WELCOME, headers=_HEADERS)

    async def _livez(self, request: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_HEADERS)

    async def _readyz(self, request: Request) -> Response:
        troubles = self.troubles()
        return PlainTextResponse("; ".join(troubles) + "\n" if troubles else "ready\n", 503 if troubles else 200, headers=_HEADERS)

    async def _metrics(self, request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(self._collector)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST, headers=_HEADERS)

    async def _status_json(self, request: Request) -> Response:
        silence_s = self.silence_s()
        if not self._heard_at:
            return JSONResponse({"daemon": "the hub has not been heard yet"}, 503, headers=_HEADERS)
        answer: dict[str, Any] = {**self._collector.status, "age_s": round(silence_s, 2)}
        if silence_s > STALE_S:
            answer["daemon"] = f"the hub has not been heard for {silence_s:.0f} s"
        return JSONResponse(answer, 503 if silence_s > STALE_S else 200, headers=_HEADERS)


class _Server(uvicorn.Server):
    """Signals belong to the loop around step(), not to the web server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
