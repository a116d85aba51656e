"""The worker: asks for a projection, subtracts its background, answers. Stateless: whatever it loses, the hub still has."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Protocol

import msgspec
import numpy as np

from aet_stream import __version__, failpoints
from aet_stream.config import Config, Denoise
from aet_stream.denoise.denoiser import Denoiser
from aet_stream.elsewhere.curve import RelayLink
from aet_stream.layout import SUBTRACTED
from aet_stream.messages import WIRE_VERSION, AnyMessage, Done, Failed, Job, Ready, ToHub, Working
from aet_stream.projection import Array
from aet_stream.service import BEAT_S, notify, still_at_it
from aet_stream.status import WorkerStatus, in_words
from aet_stream.transport import HubLink

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 0.5


class Link(Protocol):
    """The way to a hub, as the worker needs it (transport.HubLink)."""

    def send(self, message: ToHub, pixels: Array | None = None) -> bool: ...
    def beat(self, status: WorkerStatus) -> bool: ...
    def receive(self, timeout_s: float) -> Iterator[tuple[AnyMessage, Array | None]]: ...


class Worker:
    """Owns the accelerator."""

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        denoiser: Denoiser | None = None,
        link: Link | None = None,
        elsewhere: Callable[[], RelayLink] | None = None,
        compress: bool = False,
    ) -> None:
        """
        Parameters
        ----------
        denoiser, link : what to subtract with, and the way to the hub; with both of them it need not be started. Who makes it closes it
        elsewhere : makes the link to the relay of another computer, which says how to work; else the hub is here
        compress : that link is slow, and has pixels compressed
        """
        self.name = name
        self._config = config
        self._denoiser = denoiser
        self._elsewhere = elsewhere
        self._compress = compress
        self._link = link
        self._own = ExitStack()
        """What was made here, and is closed with it."""
        self._asked_at = 0.0
        self._told_at = 0.0
        self._done = 0
        self._failed = 0

    def start(self) -> None:
        """Load the network and run it once, so that the first projection is as fast as the next."""
        settings = self._config.denoise
        if self._elsewhere is not None:
            link = self._own.enter_context(closing(self._elsewhere()))
            self._link = link
            welcome = link.join(lambda: still_at_it(self.name))
            settings = as_told(welcome.denoise, settings)
            logger.info("let in as %s:%s", welcome.host, self.name)
        if self._denoiser is None:
            self._denoiser = Denoiser(settings)
        self._denoiser.warm_up()
        logger.info("model %s (%s)", self._denoiser.name, self._denoiser.sha256[:12])
        if self._link is None:
            self._link = self._own.enter_context(closing(HubLink(self._config.output_root, name=self.name)))

    def step(self) -> None:
        if self._link is None or self._denoiser is None:
            return
        for message, pixels in self._link.receive(0.2 if self._asked_at else 0.05):  # soon again, until the hub was there once
            if isinstance(message, Job) and pixels is not None:
                self._ask(at=message.job_id)
                self._do(message, pixels)
                self._asked_at = time.monotonic()  # it was asked ahead, and hears that this one is done
                return  # the next one waits in the socket; between two, whoever wants us to stop is heard
        if time.monotonic() - self._asked_at > ASK_AGAIN_S:  # and nothing waits there
            self._ask()

    def _ask(self, *, at: str = "") -> None:
        """For a projection; `at` one, for the next."""
        if self._link is not None and self._denoiser is not None:
            ready = Ready(name=self.name, model_sha256=self._denoiser.sha256, wire=WIRE_VERSION, version=__version__)
            ready = msgspec.structs.replace(ready, at=at, compress=self._compress)
            if self._link.send(ready):  # else there is no hub yet: the next step asks
                self._asked_at = time.monotonic()

    def _do(self, job: Job, pixels: Array) -> None:
        if self._link is None or self._denoiser is None:
            return
        failpoints.reach("worker.received")
        link, began = self._link, time.monotonic()
        try:
            result = self._denoiser.subtract(pixels, beat=lambda: self._working(job))
        except Exception as error:  # whatever it is, it costs this projection a try, and no other
            logger.exception("%s image %d", job.visit.path, job.visit.image)
            self._failed += 1
            link.send(Failed(job_id=job.job_id, reason=f"{type(error).__name__}: {error}"))
            return
        self._done += 1
        failpoints.reach("worker.send")
        planes = {plane.name: getattr(result, plane.name) for plane in SUBTRACTED}
        done = Done(job_id=job.job_id, quality=result.quality, network_s=time.monotonic() - began, planes=tuple(planes))
        link.send(done, result.clean if len(planes) == 1 else np.stack([*planes.values()]))
        failpoints.reach("worker.sent")

    def _working(self, job: Job) -> None:
        """Signs of life, once a second: a subtraction may take minutes, and the loop does not turn meanwhile."""
        now = time.monotonic()
        if self._link is None or now - self._told_at < BEAT_S:
            return
        self._told_at = now
        self._link.send(Working(job_id=job.job_id))
        self.beat()
        notify(self.name, "WATCHDOG=1")

    def beat(self) -> str:
        if self._link is None or self._denoiser is None:
            return ""
        model = self._denoiser
        said = WorkerStatus(model=model.name, model_sha256=model.sha256, device=model.device, done=self._done, failed=self._failed)
        self._link.beat(said)
        return in_words(said)

    def close(self) -> None:
        self._own.close()


def as_told(theirs: Denoise, own: Denoise) -> Denoise:
    """How to work for another computer: what pixels depend on is said there, devices, threads and where the weights lie here."""
    model = theirs.model if own.model == Denoise().model else own.model
    return msgspec.structs.replace(theirs, model=model, device=own.device, threads=own.threads, tile_px=own.tile_px)
