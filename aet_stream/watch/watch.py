"""The watch's turn: take hints, scan, offer what is complete, read what the hub wants."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from aet_stream.config import Config
from aet_stream.errors import ReaderDied, SourceError, SourceGone, SourceNotReady
from aet_stream.messages import Acquired, FileOffer, NotAcquired, Offer, Want
from aet_stream.projection import Projection
from aet_stream.readers import SUFFIXES, Probe
from aet_stream.readers.sidecar import sidecar_names, tilt_from_sidecar
from aet_stream.transport import HubLink
from aet_stream.watch.angle import resolve
from aet_stream.watch.events import Hints
from aet_stream.watch.settle import Candidate, Settling

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.25
OFFERS_AT_ONCE = 32
LOOK_BUDGET_S = 0.3


class Reader(Protocol):
    """Reads files somewhere that may die without harm (readers.child.ReaderChild)."""

    def probe(self, path: Path) -> Probe: ...
    def read(self, path: Path, image: int) -> tuple[Projection, str]: ...
    def close(self) -> None: ...


class Watch:
    """The only one that looks at source files; it never changes, moves or locks one."""

    name = "watch"

    def __init__(self, config: Config, reader: Reader) -> None:
        self._config = config
        self.root = config.watch_root
        self._reader = reader
        self._hints = Hints()
        self._settling = Settling(
            self.root,
            exclude=config.watch.exclude,
            settle_s=config.watch.settle_s,
            suffixes=SUFFIXES,
            sidecars_of=sidecar_names,
        )
        self._asked: deque[Want] = deque()
        self._images: dict[str, int] = {}
        self._link: HubLink | None = None
        self._hub_id = ""
        self._scan_at = 0.0
        self._listening = False
        self._there = False
        self._scans = 0

    def start(self) -> None:
        self._link = HubLink(self._config.output_root, role="watch", name=self.name, wake_fd=self._hints.wake_fd)
        self._look_for_root()
        self._scan(time.monotonic())

    def _look_for_root(self) -> None:
        there = self.root.is_dir()
        if there and self._config.watch.events and not self._listening:
            self._listening = self._hints.start(self.root)
        if not there and (self._there or not self._scans):
            logger.warning("watch.root %s is not there: waiting for it", self.root)
        self._there = there

    def _scan(self, now: float) -> None:
        self._look_for_root()
        if self._there:
            self._settling.scan(now)
        self._scans += 1
        self._scan_at = now + self._config.watch.scan_s

    @property
    def link(self) -> HubLink:
        if self._link is None:
            raise SourceNotReady("watch has not been started")
        return self._link

    def step(self) -> None:
        now = time.monotonic()
        wait_s = 0.0 if self._asked else min(0.25, max(0.0, self._scan_at - now), self._settling.next_look_s(now))
        for message, _ in self.link.receive(wait_s):
            if isinstance(message, Want):
                self._asked.append(message)
        if self.link.hub_id != self._hub_id:
            self._hub_id = self.link.hub_id  # a new hub knows no offers: show it everything
            self._settling.seen.clear()
            self._asked.clear()
            self._scan_at = 0.0
        now = time.monotonic()
        rescan = [self._settling.hint(path, now, closed=closed) for path, closed in self._hints.take()]
        if any(rescan) or now >= self._scan_at:
            self._scan(now)
        if self._hub_id:
            self._offer(now)
            if self._asked:
                self._answer(self._asked.popleft())

    # -- offering ---------------------------------------------------------------------------------------------------------------

    def _offer(self, now: float) -> None:
        """Show complete files to the hub, a bounded number a turn."""
        offers = []
        for path, candidate in self._settling.settled(now):
            try:
                probe = self._reader.probe(self.root / path)
            except SourceGone:
                continue  # the next scan forgets it
            except (SourceNotReady, SourceError, ReaderDied) as error:
                self._not_yet(path, candidate, str(error), now)
                continue
            offers.append(FileOffer(path, candidate.stamp, probe.images, probe.nbytes_per_image, candidate.final_at))
            self._images[path] = probe.images
            if len(offers) >= OFFERS_AT_ONCE or time.monotonic() - now > LOOK_BUDGET_S:
                break
        if offers and self.link.send(Offer(files=tuple(offers))):
            for offer in offers:
                self._settling.pass_on(offer.path)

    def _not_yet(self, path: str, candidate: Candidate, complaint: str, now: float) -> None:
        """Not complete, or not readable: look again later; for long enough the same, and it is quarantined."""
        if complaint != candidate.complaint:
            logger.info("%s: waiting: %s", path, complaint)
        candidate.complaint = complaint
        still_s = now - candidate.changed_at
        candidate.look_at = now + min(max(LOOK_AGAIN_S, still_s / 2), self._config.watch.incomplete_s / 4 + LOOK_AGAIN_S)
        if still_s >= self._config.watch.incomplete_s:
            reason = f"{complaint} (unchanged for {still_s:.0f} s)"
            if self.link.send(NotAcquired(path=path, stamp=candidate.stamp, image=0, why="bad", reason=reason)):
                self._settling.pass_on(path)

    # -- answering --------------------------------------------------------------------------------------------------------------

    def _answer(self, want: Want) -> None:
        """Read one image for the hub, or say why not."""
        if self._settling.current(want.path) != want.stamp:
            self._refuse(want, "later" if (self.root / want.path).exists() else "gone", "the file changed since it was offered")
            self._scan_at = 0.0
            return
        try:
            projection, sha256 = self._reader.read(self.root / want.path, want.image)
            images = self._images.get(want.path, 1)
            sidecar = tilt_from_sidecar(self.root / want.path, want.image, images)
        except SourceGone as error:
            self._refuse(want, "gone", str(error))
        except SourceNotReady as error:
            self._settling.again(want.path)
            self._refuse(want, "later", str(error))
        except SourceError as error:
            self._refuse(want, "bad", str(error))
        except ReaderDied as error:
            self._refuse(want, "died", str(error))
        else:
            candidates, hold = resolve(projection.acquisition, sidecar, want.path, images, self._config.angle)
            answer = Acquired(
                path=want.path,
                stamp=want.stamp,
                image=want.image,
                sha256=sha256,
                acquisition=projection.acquisition,
                candidates=candidates,
                hold=hold,
            )
            self.link.send(answer, projection.pixels)

    def _refuse(self, want: Want, why: str, reason: str) -> None:
        logger.debug("%s image %d: %s: %s", want.path, want.image, why, reason)
        self.link.send(NotAcquired(path=want.path, stamp=want.stamp, image=want.image, why=why, reason=reason))  # type: ignore[arg-type]

    # -- status -----------------------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        moving = {path: candidate.complaint for path, candidate in list(self._settling.candidates.items())[:20]}
        self.link.beat(
            {
                "hub_id": self._hub_id,
                "busy": bool(self._settling.candidates or self._asked or not self._scans),
                "asked": [[want.path, want.image] for want in self._asked],
                "root": str(self.root),
                "root_there": self._there,
                "events": self._listening,
                "files": len(self._settling.seen),
                "moving": len(self._settling.candidates),
                "waiting_for": moving,
                "ignored": sorted(self._settling.ignored)[:20],
            }
        )

    def close(self) -> None:
        self._reader.close()
        self._hints.close()
        if self._link is not None:
            self._link.close()


def describe(path: Path, reader: Reader, config: Config) -> tuple[bool, str]:
    """What would be done with a file, in words; False when it could not be stored as it is."""
    try:
        probe = reader.probe(path)
        lines = [f"{path}: {probe.reader}, {probe.images} image(s) of {probe.shape[0]} x {probe.shape[1]} px {probe.dtype}"]
        held = False
        for image in range(probe.images):
            projection, _ = reader.read(path, image)
            sidecar = tilt_from_sidecar(path, image, probe.images)
            candidates, hold = resolve(projection.acquisition, sidecar, path.name, probe.images, config.angle)
            said = f"held: {hold}" if hold else f"tilt {candidates[0].tilt_deg:+.3f} deg from {candidates[0].source}"
            held |= bool(hold)
            lines.append(f"  [{image}] {said}")
    except (SourceError, SourceNotReady, SourceGone, ReaderDied) as error:
        return False, f"{path}: {error}"
    return not held, "\n".join(lines)
