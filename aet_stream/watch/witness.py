"""What watch says of images it has looked at and read: to the hub, and to a person who asks what would be done with them."""

from __future__ import annotations

import datetime
import sys
from dataclasses import replace

import numpy as np

from aet_stream.config import Config
from aet_stream.messages import Acquired
from aet_stream.projection import Acquisition, Array, Candidate, Projection, VisitKey
from aet_stream.readers.angle import resolve
from aet_stream.readers.child import Reading
from aet_stream.readers.looking import Look, Unit
from aet_stream.readers.plan import load_plan
from aet_stream.reasons import Reason, why
from aet_stream.watch.visits import Frame, Visit
from aet_stream.watch.whole import Image, doubts


class Witness:
    """Weighs statements about a tilt by the rules of the settings.

    Raises
    ------
    ConfigError : the tilt plan cannot be read
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._plan = load_plan(config.angle.plan)

    def frames(self, path: str, look: Look, *, closed_at: float, now: float, lenient: bool = False) -> list[Frame]:
        """The images of a file that can be taken, with what their sources, and the file as a whole, say of each."""
        frames = [self._frame(path, look, unit, closed_at, now, lenient=lenient) for unit in look.units]
        images = [Image(frame, unit.acquisition) for frame, unit in zip(frames, look.units, strict=True)]
        odd = doubts(images, self._config, growing=look.probe.container)
        return [replace(frame, doubt=odd[frame.image]) if frame.image in odd else frame for frame in frames]

    def _frame(self, path: str, look: Look, unit: Unit, closed_at: float, now: float, *, lenient: bool) -> Frame:
        stated, hold = self._resolve(path, unit, look.probe.promised)
        return Frame(
            path=path,
            image=unit.image,
            state=unit.stamp,
            images=look.probe.promised,
            nbytes=look.probe.nbytes_per_image,
            closed_at=closed_at,
            taken_at=_taken_at(unit.acquisition) or closed_at,
            tilt_deg=None if hold else stated[0].tilt_deg,
            lenient=lenient,
            seen_at=now,
            of_images=unit.of_images,
            detector=sys.intern(unit.acquisition.detector),
            is_projection=not unit.acquisition.no_projection,
        )

    def _resolve(self, path: str, unit: Unit, images: int) -> tuple[tuple[Candidate, ...], Reason | None]:
        return resolve(unit.acquisition, unit.tilts, path, images, self._config.angle, remark=unit.remark, plan=self._plan)

    def stated(self, frame: Frame, look: Look) -> tuple[Candidate, ...]:
        """Every statement about the tilt of an image of a file that was looked at."""
        unit = next(unit for unit in look.units if unit.image == frame.image)
        return self._resolve(frame.path, unit, frame.images)[0]

    def acquired(self, visit: Visit, projection: Projection, reading: Reading) -> tuple[Acquired, Array]:
        """A visit that was read, and its planes: (height, width), or (n, height, width) with what is kept beside the image behind it."""
        frames = visit.frames
        answers = [self._resolve(frame.path, unit, frame.images) for frame, unit in zip(frames, reading.units, strict=True)]
        hold = next((objection for _, objection in answers if objection), None) or self._apart(
            [stated[0].tilt_deg for stated, _ in answers]
        )
        planes = projection.pixels if projection.extras is None else np.concatenate([projection.pixels[None], projection.extras])
        made_of = tuple(key for frame in frames for key in frame.made_of)
        said = Acquired(
            visit=VisitKey(*visit.key, visit.stamp),
            sha256=reading.sha256,
            acquisition=projection.acquisition,
            candidates=answers[0][0],
            members=made_of if len(made_of) > 1 else (),
            drift=projection.drift,
            extras=reading.extras,
            extras_dtype=reading.extras_dtype,
            hold=hold,
            doubt=next((frame.doubt for frame in frames if frame.doubt), None),
        )
        return said, planes

    def _apart(self, tilts_deg: list[float]) -> Reason | None:
        """Why these cannot be the tilts of frames of one visit, or None."""
        apart = max(abs(tilt_deg - tilts_deg[0]) for tilt_deg in tilts_deg)
        if apart <= self._config.frames.tolerance_deg:
            return None
        return why("frames_apart", apart_deg=apart)


def _taken_at(acquisition: Acquisition) -> float:
    """When an image was taken: unix seconds; 0 where the file does not say. Local times count as UTC: only differences matter."""
    text = acquisition.acquired_utc or acquisition.acquired_local
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
