"""The real hub, queue and worker in one small process that can be killed at a named place, some hundred times a minute.

Watch is played by a script, so that each case exposes the same units; the real one has its turn in the campaigns. Cases run in processes
forked from a server that has everything imported.
"""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aet_stream import config_file, edition, failpoints, worker
from aet_stream.edition import Maker
from aet_stream.errors import AetError
from aet_stream.hub.core import Core
from aet_stream.hub.hub import Hub
from aet_stream.hub.ledger import Ledger
from aet_stream.hub.timing import Timing
from aet_stream.messages import Acquired, FileOffer, NotAcquired, Offer, Want
from aet_stream.projection import Acquisition, Candidate, Quality, Subtracted, VisitKey, sha256_of
from aet_stream.reasons import Reason
from aet_stream.series import Series
from aet_stream.service import Stop
from aet_stream.status import WatchStatus
from aet_stream.transport import HubLink
from tests.durability.oracle import Exposure, Fate

REMOVED = {"minus seven": 7.0, "minus nine": 9.0, "minus eleven": 11.0}
"""Model of an edition -> what it takes away; the first is the worker's."""
BACKGROUND = REMOVED["minus seven"]
GOOD, COPY_OF, BROKEN, HELD, SURVEY = 6, 2, "s/broken.npy", "s/held.npy", "s/a_survey_+0.00deg.npy"
LATE = "s/late_+60.00deg.npy"
"""Comes when its series is closed and pruned."""
RESTORED, EXCLUDED = "s/image_001_+3.00deg.npy", "s/image_003_+9.00deg.npy"
"""What a person excludes while the series is open, and takes back once it is closed; and what is excluded then."""
LIMIT_S = 240.0
STUCK, HUNG = 9, 99
"""Exit codes of a run that was not done by then, and of one that did not even say so"""
NO_NUMPY = Reason("unreadable", {"error": "not a NumPy file"})


def expose(root: Path, *, late: bool = False) -> list[Exposure]:
    """A survey of another size, six images, a copy of one of them, one without a tilt, and a file that nobody can read; or one more."""
    from tests.harness import known_image

    (root / "s").mkdir(parents=True)

    def written(path: str, tilt_deg: float, index: int, fate: Fate, size_px: int = 32) -> Exposure:
        buffer, pixels = io.BytesIO(), known_image(index, size_px)
        np.save(buffer, pixels)
        (root / path).write_bytes(buffer.getvalue())
        return Exposure(path, tilt_deg, pixels, hashlib.sha256(buffer.getvalue()).hexdigest(), fate)

    survey = written(SURVEY, 0.0, GOOD + 2, "aside", 48)
    exposures = []
    for index in [*range(GOOD), GOOD]:
        known = COPY_OF if index == GOOD else index
        exposures.append(written(f"s/image_{index:03d}_{3.0 * known:+.2f}deg.npy", 3.0 * known, known, "stored"))
    (root / BROKEN).write_bytes(b"no image")
    held = written(HELD, 0.0, GOOD + 1, "held")
    if late:
        exposures.append(written(LATE, 60.0, GOOD + 3, "stored"))
    return [*exposures, survey, held, Exposure(BROKEN, 0.0, None, hashlib.sha256(b"no image").hexdigest(), "quarantined")]


class MinusSeven:
    """A denoiser whose answer anybody can check."""

    name, sha256, device = "minus seven", "7" * 64, "cpu"

    def warm_up(self) -> None: ...

    def subtract(self, pixels: np.ndarray, beat: object) -> Subtracted:
        beat()  # type: ignore[operator]
        return Subtracted(pixels.astype("<f4") - np.float32(BACKGROUND), Quality(self.name, self.sha256))


class Makers:
    """Play the children that make editions: one after the other, each again until its edition is shown."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._folder = core.root / "s"
        self._made: set[int] = set()

    def shown(self, number: int) -> bool:
        """Is the edition of maker `number` the one that is shown? If not, something is done for it."""
        try:
            if number not in self._made:
                self._make(maker_of(number))
                self._made.add(number)
            return self._core.archive.take("s", maker_of(number).key, use=True) is not None and self._said(number)
        except (AetError, OSError):
            logging.exception("maker")  # it is tried again
            self._made.clear()
            return False

    def _said(self, number: int) -> bool:
        """A person's word, said again and again: is all done that follows from it?"""
        obey, store = self._core.commands.obey, self._core.archive.store("s")
        ids = {record.visit.path: f"s:{record.number}" for record in store.records}
        if number == 1:
            obey("exclude", {"ids": [ids[RESTORED]], "reason": "by the rig"})
            held = [row.id for row in self._core.ledger.in_state("held") if row.path == HELD]
            obey("discard", {"ids": held or [self._discarded()], "reason": "by the rig"})
        else:
            obey("restore", {"ids": [ids[RESTORED]]})
            obey("exclude", {"ids": [ids[EXCLUDED]], "reason": "by the rig"})
        return bool(obey("settled", {"series": ["s"]})[1]["settled"])

    def _discarded(self) -> int:
        return int(self._core.ledger.in_state("discarded")[0].id)

    def _make(self, maker: Maker) -> None:
        with Series(self._folder / "series.h5") as series:
            covered = edition.covered(series)
            if edition.find(self._folder, maker, covered) is None:
                with edition.writing(self._folder, "s", maker, covered, series.shape) as draft:
                    for row in range(len(series)):
                        clean = series.raw(row).astype("<f4") - np.float32(REMOVED[maker.model])
                        draft.row(clean, Quality(maker.model, maker.model_sha256))


def maker_of(number: int) -> Maker:
    return Maker("reprocess", [*REMOVED][number], f"{number}" * 64)


class ScriptedWatch:
    """Offers every file of a folder, the survey before the others; answers what is wanted."""

    def __init__(self, output: Path, root: Path, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        self._link = HubLink(output, name="watch")
        self._asked: list[Want] = []
        self._hub_id = ""
        self._beaten_at = self._offered_at = 0.0
        self.late = ledger.dealt_with(LATE, 0)
        """Is the last one there, too?"""

    def step(self) -> None:
        now = time.monotonic()
        if now - self._beaten_at > 0.1:
            self._beaten_at = now
            self._link.beat(WatchStatus(asked=tuple(want.visit.source for want in self._asked)))
        for message, _ in self._link.receive(0.0):
            if isinstance(message, Want):
                self._answer(message)
        if self._link.hub_id != self._hub_id or now - self._offered_at > 0.1:
            self._hub_id, self._offered_at = self._link.hub_id, now
            alone = not self._ledger.dealt_with(SURVEY, 0)
            for path in [self._root / SURVEY] if alone else sorted(self._root.rglob("*.npy")):
                if path == self._root / LATE and not self.late:
                    continue
                name, stamp = path.relative_to(self._root).as_posix(), str(path.stat().st_mtime_ns)
                if name == BROKEN:
                    self._link.send(NotAcquired(visit=VisitKey(name, 0, stamp), why="bad", reason=NO_NUMPY))
                else:
                    self._link.send(Offer(files=(FileOffer(name, ((0, stamp),), path.stat().st_size, path.stat().st_ctime),)))

    def _answer(self, want: Want) -> None:
        path = self._root / want.visit.path
        if not path.exists():
            self._link.send(NotAcquired(visit=want.visit, why="gone", reason=Reason("unreadable", {"error": f"{want.visit.path} is gone"})))
            return
        if want.visit.path == BROKEN:
            self._link.send(NotAcquired(visit=want.visit, why="bad", reason=NO_NUMPY))
            return
        pixels = np.load(path)
        tilt_deg = 0.0 if want.visit.path == HELD else float(path.stem.rsplit("_", 1)[1].removesuffix("deg"))
        said = () if want.visit.path == HELD else (Candidate("filename", path.stem, tilt_deg),)
        answer = Acquired(visit=want.visit, sha256=sha256_of(pixels), acquisition=Acquisition(), candidates=said)
        self._link.send(answer, pixels)


@dataclass(frozen=True)
class Case:
    """One run of the rig."""

    folder: Path
    """With `in`, made by `expose`; `out` and `log.txt` come beside it."""
    spec: str = ""
    """Failpoint to arm."""
    close: bool = True
    """Close the series at the end; False stops when everything is stored."""
    editions: bool = False
    """Make two more editions and have them shown: one while the series is open, one when it is closed."""
    prune: bool = False
    """Prune it then; one more image comes, and it is closed and pruned again. With editions."""


def run(case: Case) -> None:
    """In a process of its own: until all is done, or the failpoint has its way. Exit code 0 means done."""
    with (case.folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, force=True)
    worker.ASK_AGAIN_S = 0.05
    settings = [f"watch.root={case.folder / 'in'}", f"output.root={case.folder / 'out'}", "output.fold_rows=2", "output.group_s=0.0",
                f"output.prune={str(case.prune).lower()}", "output.prune_after_h=0", "queue.credit=2", "preview.enabled=false", "report.on_close=false", "film.enabled=false", "reconstruct.on_close=false", "queue.attempts=50"]  # fmt: skip
    loaded = config_file.load(None, settings)
    if case.spec:
        failpoints.arm(case.spec)
    hub = Hub(
        loaded,
        timing=Timing(pause_s=0.05, look_for_closing_s=0.02, forgotten_s=0.4, crossing_s=0.4, look_for_pruning_s=0, prune_again_s=0.1),
    )
    hub.start()
    role, stop = worker.Worker(loaded, name="worker-0", denoiser=MinusSeven()), Stop()  # type: ignore[arg-type]
    role.start()

    def turn() -> None:
        while not stop.asked:
            role.step()

    thread = threading.Thread(target=_or_die, args=(turn,), daemon=True)
    thread.start()
    watch = ScriptedWatch(case.folder / "out", case.folder / "in", hub.core.ledger)
    makers = Makers(hub.core)
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        watch.step()
        hub.step()
        if _finished(hub.core, makers, watch, case):
            break
    else:
        os._exit(STUCK)
    stop.asked = True
    thread.join(5)
    hub.close()
    os._exit(0)


def _or_die(work: object) -> None:
    """A worker that meets an exception nobody expects ends its process, as in production."""
    try:
        work()  # type: ignore[operator]
    except BaseException:
        logging.exception("worker")
        os._exit(1)


def _finished(core: Core, makers: Makers, watch: ScriptedWatch, case: Case) -> bool:
    totals, late = core.ledger.totals(), core.ledger.dealt_with(LATE, 0)
    projections, waiting = totals.stored + totals.duplicates - totals.odd, totals.held + totals.discarded + totals.odd
    if (projections, totals.quarantined, waiting) != (GOOD + 1 + late, 1, 2) or core.in_hand():
        return False
    if not case.close:
        return True
    closed = all(row["state"] == "closed" for row in core.ledger.series())
    if case.editions and not late and not makers.shown(2 if closed else 1):
        return False
    if not closed:
        core.closing.ask("s")
    if not case.prune:
        return closed
    pruned = core.ledger.pruned_at("s") is not None
    watch.late |= pruned
    return pruned and late


context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.durability.rig", "tests.durability.roles"])


def attempt(case: Case) -> int:
    """Exit code of one run; negative for the signal that ended it."""
    process = context.Process(target=run, args=(case,))
    process.start()
    process.join(LIMIT_S + 30)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
        return HUNG
    process.close()
    return code
