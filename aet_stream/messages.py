"""Everything that is said on the queue. Headers are msgpack, pixels follow as one raw buffer; never pickle.

watch --Offer--> hub --Want--> watch --Acquired + pixels--> hub --Job + pixels--> worker --Done + pixels--> hub
trigger --EventPlease--> hub --Event, EventOff--> trigger --EventDone--> hub
any role --Beat--> hub --Pulse--> role            a person --Command--> hub --Reply--> a person
a worker elsewhere --Hello--> relay --Welcome, Refusal--> it; then the relay speaks for it with the hub, and says when it is Gone
a helper elsewhere --HelperReady--> relay; a step --HelperPlease--> relay --Assigned, Refusal--> step; then the relay passes on:
step --Task--> helper --Working, TaskDone--> step --TaskOff--> helper; whoever needs a file --Fetch--> the other --Chunk--> it
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from aet_stream.config import Config, Denoise
from aet_stream.projection import Acquisition, Candidate, Drift, Quality, VisitKey
from aet_stream.reasons import Reason
from aet_stream.status import AnyHeard, StepName

#: Raised whenever a message changes; roles of different versions refuse each other.
WIRE_VERSION = 11


class ArraySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the pixel buffer behind a header is; checked before anything is allocated."""

    dtype: str
    height: int
    width: int
    crc32: int
    planes: int = 1
    """Images of this size in the buffer."""
    compressed: bool = False
    """The buffer is compressed (compression.py)."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """A header. `array` describes the pixels that follow, if any."""

    array: ArraySpec | None = None


class Beat(Message, frozen=True, tag="beat"):
    """Once a second from every role: it lives, and this is its whole status."""

    name: str
    wire: int
    said: AnyHeard


class Pulse(Message, frozen=True, tag="pulse"):
    """The hub's answer to a beat. A new `hub_id` means that the hub has started anew and knows no offers."""

    hub_id: str
    newer_than_s: float = 0.0
    """Unix seconds: what was written before may have to be left out; 0: nothing."""


class FileOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a file is complete, before the hub has seen its pixels."""

    path: str
    """Relative to watch.root, with forward slashes."""
    visits: tuple[tuple[int, str], ...]
    """(image, stamp) of each; the stamp changes whenever the image may have, or what its sidecar says."""
    nbytes: int
    """Pixel bytes of one image."""
    closed_at: float
    """When the file took its final form: unix seconds."""


class Offer(Message, frozen=True, tag="offer"):
    """Settled files shown to the hub."""

    files: tuple[FileOffer, ...]


class Want(Message, frozen=True, tag="want"):
    """The hub asks watch for the pixels of one image."""

    visit: VisitKey


class Acquired(Message, frozen=True, tag="acquired"):
    """The pixels of one image and all that is known about them."""

    visit: VisitKey
    sha256: str
    acquisition: Acquisition
    candidates: tuple[Candidate, ...]
    """Every statement about the tilt; the hub stores them, the first agreed one counts."""
    members: tuple[tuple[str, int], ...] = ()
    """(path, image) of each image that went into this visit, when there are several."""
    drift: Drift = Drift()
    extras: Literal["", "variance", "frames"] = ""
    """What the planes behind the first one are."""
    extras_dtype: str = ""
    hold: Reason | None = None
    """Why its tilt is not known."""
    doubt: Reason | None = None
    """What is odd about its file as a whole, so that a person should look."""


class NotAcquired(Message, frozen=True, tag="not_acquired"):
    """No pixels: `bad` for ever, `later` (try again when the file changes), `gone`, or the reader `died` over them."""

    visit: VisitKey
    why: Literal["bad", "later", "gone", "died"]
    reason: Reason


class OlderFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image that was last written before `watch.newer_than`. Times are unix seconds."""

    path: str
    stamp: str
    written_at: float
    changed_at: float
    """When it took its place on its disk, as far as the disk knows."""


class Older(Message, frozen=True, tag="older"):
    """Files that watch leaves alone unless the hub wants them taken, because they were not there from the first."""

    files: tuple[OlderFile, ...]
    last: bool
    """All that there are have been named."""


class NoReader(Message, frozen=True, tag="no_reader"):
    """All files below the watched folder that may be images, and that nobody can read: (folder, how they are called, how many)."""

    folders: tuple[tuple[str, str, int], ...]


class SeriesEnd(Message, frozen=True, tag="series_end"):
    """The instrument says that a series has ended: a sentinel file lies in its folder."""

    path: str
    there: bool = True
    """False: it was taken away, and ends nothing more."""


class Taken(Message, frozen=True, tag="taken"):
    """These older files are to be taken all the same."""

    paths: tuple[str, ...]


class Ready(Message, frozen=True, tag="ready"):
    """A worker is free, or soon will be. Said again every half second while it is free, because the hub may have restarted."""

    name: str
    model_sha256: str
    at: str = ""
    """Id of the job that it begins now: the next one may wait in its socket meanwhile. Empty: it has none."""
    wire: int = 0
    """WIRE_VERSION of the worker; another one gets no work."""
    version: str = ""
    """Of its aet_stream; the relay wants its own."""
    host: str = ""
    """The computer it works on, as the relay has it; empty: this one."""
    compress: bool = False
    """The link to it is slow: pixels are compressed on their way."""


class Job(Message, frozen=True, tag="job"):
    """One projection to subtract; the raw pixels follow."""

    job_id: str
    series: str
    visit: VisitKey


class Working(Message, frozen=True, tag="working"):
    """The worker is still at it: the lease is good for another while."""

    job_id: str


class Done(Message, frozen=True, tag="done"):
    """The pixels without background follow."""

    job_id: str
    quality: Quality
    network_s: float
    planes: tuple[str, ...] = ("clean",)
    """Which of `layout.SUBTRACTED` they are, one behind the other."""


class Failed(Message, frozen=True, tag="failed"):
    """The worker could not do it."""

    job_id: str
    reason: str


class Gone(Message, frozen=True, tag="gone"):
    """The relay has lost the link to a worker: what it had is another's, and nobody died over it. Or a step its helper, or it the step."""


class Hello(Message, frozen=True, tag="hello"):
    """A worker on another computer asks the relay how to work. This, `Welcome` and `Refusal` are read by every version."""

    wire: int
    version: str


class Welcome(Message, frozen=True, tag="welcome"):
    """How to work here."""

    host: str
    """What the computer is called here: the name of its key."""
    denoise: Denoise
    model_sha256: str
    """Of the model that these settings mean here."""


class Refusal(Message, frozen=True, tag="refusal"):
    """No work, why, and what to do about it."""

    text: str


class HelperReady(Message, frozen=True, tag="helper_ready"):
    """A helper on another computer is free. Said again every half second."""

    name: str
    takes: tuple[StepName, ...]
    wire: int
    version: str
    at: str = ""
    """Key of the task that it is at, whose step it has lost: free for that one alone."""
    compress: bool = False
    """The link to it is slow: files are compressed on their way."""


class HelperPlease(Message, frozen=True, tag="helper_please"):
    """A step looks for a helper."""

    key: str
    """Of its task: of the same step, settings and files it is the same."""
    step: StepName
    series: str
    avoid: tuple[str, ...] = ()
    """Helpers that have failed it."""


class Assigned(Message, frozen=True, tag="assigned"):
    """This one does it."""

    helper: str
    compress: bool = False


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file that travels is; checked when it has come."""

    name: str
    """Within the folder of its series."""
    nbytes: int
    sha256: str


class Task(Message, frozen=True, tag="task"):
    """What a helper is to do, in a folder with these files. Said again to go on with it."""

    key: str
    step: StepName
    series: str
    settings: Config
    """Of steps and denoising; all else is as it is by default."""
    files: tuple[FileSpec, ...]
    makes: tuple[str, ...]
    """Names of the files that are wanted."""


class Fetch(Message, frozen=True, tag="fetch"):
    """The receiver of a file asks for the chunk that begins there."""

    sha256: str
    offset: int


class Chunk(Message, frozen=True, tag="chunk"):
    """The chunk."""

    sha256: str
    offset: int
    data: bytes
    crc32: int
    """Of the chunk as it lies on the disk."""
    compressed: bool = False


class TaskDone(Message, frozen=True, tag="task_done"):
    """The helper has ended; these files are there to be fetched."""

    key: str
    ok: bool
    detail: str
    files: tuple[FileSpec, ...] = ()


class TaskOff(Message, frozen=True, tag="task_off"):
    """The step has what it wanted, or wants it no more: it may be forgotten."""

    key: str


class EventPlease(Message, frozen=True, tag="event_please"):
    """The trigger is free to act on the next event at each of these sinks."""

    sinks: tuple[str, ...]


class Event(Message, frozen=True, tag="event"):
    """Something happened to a series that a sink wants to know; leased until EventDone or silence."""

    event_id: str
    """Follows from what happened: the same for every sink, in every try, and after a rebuilt ledger."""
    event: str
    """For example `series.closed`."""
    series: str
    at: float
    """Unix seconds."""
    data: dict[str, Any]
    sink: str
    attempt: int


class EventOff(Message, frozen=True, tag="event_off"):
    """What is being done at this sink is of no use any more: stop."""

    event_id: str
    sink: str


class EventDone(Message, frozen=True, tag="event_done"):
    """How it went."""

    event_id: str
    sink: str
    ok: bool
    detail: str
    again_s: float = 0.0
    """Not 0: no failed try, but wanted again after so long."""


class Command(Message, frozen=True, tag="command"):
    """What a person asks: status, close, release, requeue, events, resend, idle."""

    name: str
    arguments: dict[str, Any] = {}


class Reply(Message, frozen=True, tag="reply"):
    """The hub's answer to a command."""

    ok: bool
    text: str
    data: dict[str, Any] = {}


ToHub = (
    Beat
    | Offer
    | Acquired
    | NotAcquired
    | Older
    | NoReader
    | SeriesEnd
    | Ready
    | Working
    | Done
    | Failed
    | Gone
    | EventPlease
    | EventDone
    | Command
)
FromHub = Pulse | Want | Taken | Job | Event | EventOff | Reply
ToHelper = Task | Fetch | Chunk | TaskOff | Gone
ToStep = Assigned | Refusal | Working | TaskDone | Fetch | Chunk | Gone
FromStep = HelperPlease | Task | Fetch | Chunk | TaskOff
ToRelay = Hello | Beat | Ready | Working | Done | Failed | HelperReady | Fetch | Chunk | TaskDone
FromRelay = Welcome | Refusal | Pulse | Job | ToHelper
AnyMessage = ToHub | FromHub | ToRelay | FromRelay | ToStep | FromStep
