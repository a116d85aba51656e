"""The monitor's turn: hear the hub, serve the page for a while. The heartbeat comes from the loop that serves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

import uvicorn

from aet_stream.config import Config
from aet_stream.errors import AetError
from aet_stream.monitor import origin, security
from aet_stream.monitor.examination import Examination
from aet_stream.monitor.live import Live
from aet_stream.monitor.metrics import Metrics
from aet_stream.monitor.series_cache import SeriesCache
from aet_stream.monitor.web import Web
from aet_stream.status import MonitorStatus, in_words
from aet_stream.transport import EventStream, HubLink, run_folder

logger = logging.getLogger(__name__)

TURN_S = 0.1
SILENT_AFTER_S = 2.0
CONNECTIONS = 256
MAX_HEADER_BYTES = 16384
MAX_MESSAGE_BYTES = 4096


class Monitor:
    """Shows what the hub says and what the disk holds."""

    name = "monitor"

    def __init__(self, config: Config) -> None:
        self._config = config
        self.live = Live(config, SeriesCache(config.output_root))
        self._examination = Examination(config, self.live.hear_doctor)
        self._metrics = Metrics(lambda: self.live.status, lambda: len(self.live.viewers))
        self.url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stream: EventStream | None = None
        self._link: HubLink | None = None
        self._stirred = asyncio.Event()

    # -- life -------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the port, then listen to the hub.

        Raises
        ------
        AetError : the port is taken, or the token cannot be used
        """
        where = self._config.monitor
        token = security.token_for(where, run_folder(self._config.output_root))
        secure = security.tls_settings(where)
        if token and not secure and not origin.is_loopback(where.host) and not where.trusted_proxies:
            logger.warning("the token travels unencrypted: set monitor.tls_cert and tls_key, or put a TLS proxy or `ssh -L` in front")
        logging.getLogger("uvicorn.error").addFilter(_not_of_refusals)
        listener = self._listen()
        settings = uvicorn.Config(
            Web(where, self.live, self._metrics, token).app(),
            http=security.ImpatientProtocol,
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE_BYTES,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            limit_concurrency=CONNECTIONS,
            proxy_headers=False,  # whom to believe is told in our own settings (origin.py)
            log_config=None,  # into the log of this role, like all else
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=1,
            **secure,
        )
        self._server = _Server(settings)
        self._loop = asyncio.new_event_loop()
        self._stream = EventStream(self._config.output_root)
        self._link = HubLink(self._config.output_root, name=self.name)
        self._loop.add_reader(self._stream.fileno(), self._stirred.set)
        self._serving = self._loop.create_task(self._server.serve(sockets=[listener]))
        self.live.start(self._loop)
        self._examination.start(self._loop)
        logger.info("page at %s%s", self.url, " (asks for the token)" if token else "")

    def _listen(self) -> socket.socket:
        where = self._config.monitor
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((where.host, where.port))
            listener.listen(128)  # READY is said before the first turn: who connects until then waits
        except OSError as error:
            listener.close()
            port_is_wrong = error.errno in (errno.EADDRINUSE, errno.EACCES)
            remedy = "set monitor.port (0 takes any free one)" if port_is_wrong else "set monitor.host to an address of this computer"
            raise AetError(f"port {where.port} on {where.host} cannot be used ({error.strerror}): {remedy}") from error
        name = f"[{where.host}]" if ":" in where.host else where.host or "0.0.0.0"
        self.url = f"{'https' if where.tls_cert else 'http'}://{name}:{listener.getsockname()[1]}"
        return listener

    def step(self) -> None:
        if self._loop is None or self._stream is None or self._link is None or self._serving is None:
            return
        self._loop.run_until_complete(self._turn())
        if self._serving.done():
            raise AetError(f"the web server ended by itself: {self._serving.exception()}")
        for topic, content in self._stream.receive(0):
            if topic == "projection.stored":
                self._metrics.stored(content["stages"])
            self.live.hear(topic, content)
        for _ in self._link.receive(0):
            pass  # pulses are noted inside

    async def _turn(self) -> None:
        """Serve until the hub says something, at most `TURN_S`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stirred.wait(), TURN_S)
        self._stirred.clear()

    def beat(self) -> str:
        said = MonitorStatus(url=self.url, viewers=len(self.live.viewers))
        if self._link is not None:
            self._link.beat(said)
        if self.live.silence_s() > SILENT_AFTER_S:
            self.live.tell_state()  # nobody else says that nobody says anything
        return in_words(said)

    def close(self) -> None:
        if self._loop is not None and self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._loop.run_until_complete(asyncio.wait([self._serving], timeout=2))
            self._loop.run_until_complete(self._examination.stop())
            self._loop.run_until_complete(self.live.stop())
            self._loop.close()
        for part in (self._stream, self._link):
            if part is not None:
                part.close()


def _not_of_refusals(record: logging.LogRecord) -> bool:
    """Uvicorn calls every WebSocket that is refused with a reason an error of ours (github.com/Kludex/uvicorn/pull/3138)."""
    return "without completing handshake" not in record.getMessage()


class _Server(uvicorn.Server):
    """Signals belong to the loop around step(), not to the web server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
