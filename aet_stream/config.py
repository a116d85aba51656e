"""Every setting, once: its unit, its limits, its default, and what 0 means.

`config.toml` at the top of the repository shows the same keys with their defaults. Read once (config_file.py), handed down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from aet_stream.tilts import SAME_TILT_DEG

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


EventName = Literal[
    "projection.stored", "coverage.milestone", "series.closed", "series.revised", "edition.done", "edition.chosen", "reconstruction.done",
    "atoms.done", "projection.excluded", "projection.restored", "projection.discarded", "held", "quarantined",
]  # fmt: skip


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of config.toml."""


class Product(NamedTuple):
    """A file that a sink leaves beside its series, and the event that tells of it."""

    event: EventName
    name: str
    """What the event calls it."""
    file: str


class Sink(Section, frozen=True):
    """A table that is named like a sink: somebody who acts upon events. How it does that stands in `trigger/sinks.py`."""

    only_while_growing: ClassVar[tuple[EventName, ...]] = ()
    """Events of which only the latest of a series counts, and none once it is closed."""
    after: ClassVar[tuple[str, ...]] = ()
    """Sinks that have to be done with an event, well or not, before this one is given it."""
    product: ClassVar[Product | None] = None

    @property
    def given(self) -> tuple[EventName, ...]:
        """The events that it is given; none: nobody has configured it."""
        raise NotImplementedError

    def tries(self, usual: int) -> int:
        """How often it is given one before that is put aside as failed."""
        return usual


class Watch(Section, frozen=True):
    """Where files appear, and when one is complete."""

    root: str = ""
    """The folder that your microscope writes to (required). A series is a folder directly under it (`series.by`); files that lie in it
    directly form a series named after it."""
    scan_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Time between full scans. Events only make a scan come sooner; the scan is the truth."""
    events: bool = True
    """Use file system events. Where there are none (NFS, SMB, FUSE) it scans, whatever this says."""
    settle_s: Seconds = 1.0
    """How long size and time must stand still when the writer was not seen to close the file."""
    incomplete_s: Seconds = 60.0
    """A file whose own header asks for more bytes than it has is quarantined after this long without a change."""
    zero_grace_s: Seconds = 300.0
    """A file that is whole by its header but ends in zeros is stored, flagged, after this long unchanged. Longer than a tilt takes."""
    exclude: tuple[str, ...] = (
        ".*", "*~", "*.tmp", "*.part", "*.partial", "*downloading*", "*_override.*",
        "#recycle", "@Recycle", "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "DfsrPrivate", "lost+found",
        "found.???", "Network Trash Folder", "__MACOSX", "#snapshot", "~snapshot", "@Recently-Snapshot", "@eaDir", "@tmp",
    )  # fmt: skip
    """Names of files and folders (shell patterns, without regard to case) that are never looked at: drafts, and what Windows, macOS,
    Synology, QNAP and NetApp keep on a share beside its data: trash, snapshots, indices, what a check of the disk found."""
    newer_than: str = ""
    """Files that are there at the first start and were written before are left out: `start` (the first start on this output), a date
    (`2026-11-29`), or so long before the first start (`30 d`). What comes later is always taken. Empty: everything."""
    reader_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Time to read one image. A file that takes longer costs the reading process its life."""
    reader_memory_mib: AtLeastOne = 4096
    """Address space of the reading process."""
    max_file_mib: AtLeastOne = 8192
    """Larger files are quarantined unread."""


class Readers(Section, frozen=True):
    """Which formats are read."""

    enabled: tuple[str, ...] = ()
    """Readers of other packages, by the name of their entry point in the group `aet_stream.readers`; `rsciio` opens the door to
    RosettaSciIO (if installed)."""


class Frames(Section, frozen=True):
    """Several images of one visit to one tilt: registered, averaged, one row of the series."""

    group: Literal["container", "pattern", "window"] = "container"
    """`container`: only what a file itself calls frames. `pattern`: files whose names differ only in the group `frame` of `pattern`.
    `window`: images of the same folder and tilt that were taken within `window_s`."""
    pattern: str = r"_f(?P<frame>\d+)(?=\.)"
    """Searched in the file name; group `frame` tells the frames of one tilt apart."""
    expected: Count = 0
    """Frames per tilt. 0: not known, a tilt is complete when no further frame has come for `window_s`."""
    window_s: Seconds = 10.0
    """Longest time between two frames of one tilt."""
    tolerance_deg: Seconds = SAME_TILT_DEG
    """Frames whose tilts differ by more are no frames of one tilt."""
    max_shift: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.25
    """Drift between frames beyond this share of the edge is not believed: averaged as they are, flagged."""
    keep: Literal["moments", "frames", "none"] = "moments"
    """Beside the mean: `moments` (the variance over the frames), `frames` (all of them) or `none`."""


class Angle(Section, frozen=True):
    """Where tilt angles come from. Nothing is ever guessed: missing or disagreeing sources hold the projection."""

    order: tuple[Literal["metadata", "sidecar", "filename"], ...] = ("metadata", "sidecar", "filename")
    """Which sources are asked, the most trusted first. One that is left out is not believed at all."""
    filename_regex: str = r"(?P<angle>(?:[+\u2212\u2013-](?:\s+|\d+_)(?=\d))?[^\s_()\[\]=]*\d[^\s_()\[\]=]*)deg(?:rees?)?(?![A-Za-z])"
    """Searched in the file name; group `angle` is the tilt, an optional group `sign` its sign. Empty: names say nothing.

    By default the whole word before `deg`, and a sign or digits torn from it (`- 12`, `-12_5`), so that nothing is lost unseen.
    For names like probe_-34.5.dm3: '_(?P<angle>[+-]\\d+(?:\\.\\d+)?)(?=\\.\\w+$)'
    """
    no_tilt_words: tuple[str, ...] = (
        "step", "steps", "stepsize", "tiltstep", "increment", "incr", "inc", "interval", "spacing", "every", "each", "per",
        "range", "tiltrange", "wedge",
        "scan", "scanning", "scanrot", "scanrotation", "scandir", "fastscan", "dir", "direction",
        "rot", "rotate", "rotated", "rotation", "cw", "ccw", "clockwise", "azimuth", "inplane",
        "alpha", "beta", "phi", "psi", "pretilt", "precession",
    )  # fmt: skip
    """Words beside a number in a name (lower case) that make it no tilt (`2deg_step_001`, `scan_90deg`, `rotation_angle_90deg`): the
    projection is held. The axis that is tilted (angle.axis) is none of them."""
    filename_unit: Literal["deg", "rad"] = "deg"
    """What numbers in names and sidecars without a unit of their own count in."""
    metadata_unit: Literal["file", "deg", "rad"] = "file"
    """What metadata count in. `file`: what the format says; `deg` and `rad` overrule it."""
    signs: dict[str, str] = msgspec.field(default_factory=lambda: {"n": "-", "m": "-", "p": "+"})
    """Letters that stand for a sign, in the group `sign` or at the front of `angle`, as in n12.5."""
    tolerance_deg: Seconds = 0.5
    """Sources that differ by more hold the projection."""
    axis: Literal["alpha", "beta"] = "alpha"
    """Which axis of the stage is tilted, `alpha` or `beta`. Sidecars and names are believed to speak of it."""
    scale: Annotated[float, msgspec.Meta(ge=-1, le=1)] = 1.0
    """1, or -1 for a stage that counts the other way. Applied to every source but a person's word."""
    min_deg: float = -180.0
    """A tilt below this is no tilt: the projection is held."""
    max_deg: float = 180.0
    """And above this."""
    plan: str = ""
    """A CSV file with the planned tilts (degrees, after `scale`), one a line or in a column `tilt`. What is not planned is held; `status`
    says what is missing. Empty: no plan."""
    plan_tolerance_deg: Seconds = 0.5
    """A tilt this close to a planned one is that one."""


class Orientation(Section, frozen=True):
    """How pixels are turned when they are read, so that the hand is right and the tilt axis lies along y or is known."""

    transpose: bool = False
    """First of the three: rows become columns."""
    flip_y: bool = False
    """Then the order of rows is reversed."""
    flip_x: bool = False
    """Then that of columns."""
    tilt_axis_deg: Annotated[float, msgspec.Meta(ge=-180, le=180)] | Literal["file"] = "file"
    """Where the tilt axis lies after that, in degrees from +y (towards higher rows) towards -x: as IMOD and SerialEM count it, who show the
    first row at the bottom, from the vertical counterclockwise; with the first row at the top, clockwise. Images are stored as they are; it
    is the volume that is made of turned ones. `file`: what an mdoc or Euler angles beside a `.mat` say (of the pixels before they are
    transposed or flipped), else 0."""

    def axis_deg(self, stated_deg: float | None) -> float:
        """Where the axis lies in pixels that have been turned so, degrees; NaN where neither this nor the file says it.

        A flip decides about the hand, so it turns the axis as a line only; a transposed image has it within a right angle of y.
        """
        if self.tilt_axis_deg != "file":
            return self.tilt_axis_deg
        if stated_deg is None:
            return float("nan")
        turned = (90 - stated_deg + 90) % 180 - 90 if self.transpose else stated_deg
        return -turned if self.flip_y != self.flip_x else turned

    @property
    def letters(self) -> str:
        """As a record has it: `t` transposed, `y` and `x` flipped along that axis."""
        return "t" * self.transpose + "y" * self.flip_y + "x" * self.flip_x


class Series(Section, frozen=True):
    """What is one tilt series, and when it ends."""

    by: Literal["folder", "leaf", "file", "pattern", "path_pattern"] = "folder"
    """`folder`: the one directly under the watched folder, whatever lies deeper in it. `leaf`: every folder that images lie in, called
    `user~date~np1`. `file`: every file (a stack, a container), called `folder~file`. `pattern`: the group `series` of `pattern` in the file
    name; `path_pattern`: in the path below the watched folder; what does not match goes by folder."""
    pattern: str = ""
    """A regular expression, for `pattern` and `path_pattern`."""
    detector: str = ""
    """Of several detectors, the one whose images are used (`HAADF`); the others are recorded, not stored. Empty: a second one is held."""
    expected: Count = 0
    """Projections per series; the series closes once that many are stored; a retaken one counts once. 0: not known."""
    sentinel: str = ""
    """A file of this name (shell pattern, `*.done`) in a series folder says that the series has ended. Empty: none."""
    idle_close_s: Seconds = 1800.0
    """Close a series this long after its last projection. 0: only by `aet-stream close`."""


class Queue(Section, frozen=True):
    """How much may be in memory, and for how long a unit may be away."""

    credit: AtLeastOne = 8
    """Projections in the hub's memory at once; the rest wait in the instrument's own files."""
    credit_mib: AtLeastOne = 256
    """The same bound in pixels; one projection is always let in."""
    lease_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """A reader or worker that is silent for this long has lost its unit."""
    attempts: AtLeastOne = 3
    """Deaths a unit may cause before it is tried once more, alone."""
    alone_pause_s: Seconds = 5.0
    """Pause before that last try."""


class Output(Section, frozen=True):
    """Where results go."""

    root: str = ""
    """A folder on a local disk, never inside `watch.root` (required)."""
    keep_free_mib: Count = 2048
    """Room on that disk that is left alone. With less than that, and what open series need for their closing, nothing more is accepted
    until there is room again; the microscope's own files wait. 0: until the disk is full."""
    group_s: Seconds = 0.1
    """Under load, `series.h5` is rewritten at most this often, and for at most a tenth of the time. 0: for every projection."""
    prune: bool = False
    """Remove the projection files of a closed series. Everything in them is found in `series.h5` and `editions/01.h5` first, byte by byte;
    raw, and every edition, stay. `aet-stream prune SERIES` does it by hand."""
    prune_after_h: Annotated[float, msgspec.Meta(ge=0)] = 24.0
    """So long after a series was closed: a program that opened it before reads them still, and would be shown zeros without an error."""
    fold_rows: Annotated[int, msgspec.Meta(ge=2, le=500)] = 256
    """Open series: this many projection files are folded into one segment, so that `series.h5` never spans too many files."""


class Denoise(Section, frozen=True):
    """The background and who computes it."""

    model: str = "default"
    """A shipped network (`default`, `dncnn-2019`), a path to weights of your own, or a classical estimator: `constant`, `polynomial`,
    `laplace`, `expert` (the steps that experts do by hand) or `gaussian-process`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`, `float32` or `bfloat16`; `auto` takes bfloat16 where the hardware has it and the network's card allows it."""
    fusion: bool = True
    """Weigh the network against what vacuum and lattice fringes say of the background under the particle. `false`: the network alone."""
    tile_px: Count = 0
    """Edge of the tiles given to the network at once. 0: chosen from the memory there is."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    """Worker processes that `run` starts."""
    threads: Count = 0
    """CPU threads per worker. 0: two for the default network, if there are cores for them; all cores for networks at full resolution."""


AlignStep = Literal["common-line", "center-of-mass", "axis-angle", "projection-matching"]


class Film(Sink, frozen=True):
    """The films behind the particle, from all projections of a series at once: what they are where one tilt hides them and another shows
    them. An edition of the series' backgrounds when it closes, before its volume; while it grows, what the monitor shows of them."""

    enabled: bool = True
    """Do this at all. Where it is off, `aet-stream film SERIES` does it by hand."""
    use: bool = True
    """Show the edition in `series.h5` once it is there, and make the volume of it. Where the series cannot foretell what is seen around
    the particle, its projections are as they were."""
    tilts_each_side: AtLeastOne = 5
    """It begins once there are so many tilts on both sides of 0: what one side hides, only the other shows."""
    while_growing: bool = True
    """Again whenever coverage has grown (`preview.every_deg`), from the model before."""
    memory_mib: Annotated[int, msgspec.Meta(ge=256)] = 1536
    """Bound on its memory."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """One that takes longer is stopped, and is a failed try."""
    only_while_growing = ("coverage.milestone",)

    @property
    def given(self) -> tuple[EventName, ...]:
        growing: tuple[EventName, ...] = ("coverage.milestone",) if self.while_growing else ()
        return ("series.closed", *growing) if self.enabled else ()

    def tries(self, usual: int) -> int:
        return 3


class Reconstruct(Sink, frozen=True):
    """The volume that the trigger makes when a series closes."""

    after = ("film",)

    on_close: bool = True
    """Make one whenever a series closes."""
    method: str = "auto"
    """`auto`, `nesterov-sirt`, `tomopy:ALGORITHM` or `astra:ALGORITHM`."""
    iterations: Count = 0
    """0: the built-in solver stops by its rule, others after what is usual for them."""
    align: tuple[AlignStep, ...] = ("common-line", "center-of-mass", "axis-angle", "projection-matching")
    """Steps of the alignment before it; none that does harm is kept. Empty: the projections are taken as they lie."""
    quality: bool = True
    """Judge the volume by its halves (twice the work) and by each projection's residual."""
    weighted: bool = True
    """The built-in solver lets a projection count for less where its background may be wrong, by its expected error."""
    threads: Count = 0
    """0: all cores."""
    memory_mib: Count = 0
    """Bound on the memory of the solver. 0: four fifths of what this process may have, or of what the GPU has free. A volume that takes
    more than half of it is made slab by slab."""
    device: str = "cpu"
    """Of the built-in solver: `cpu`, `cuda`, `cuda:0`, ... A GPU that the worker uses too makes intake wait."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 7200.0
    """A reconstruction that takes longer is stopped and counts as a failed try."""
    silence_s: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """tomopy or ASTRA, which hand over a few slices at a time, hang when nothing has come for so long, and are stopped."""
    attempts: AtLeastOne = 3
    """Tries before it is put aside as failed."""
    product = Product("reconstruction.done", "volume", "reconstruction.h5")

    @property
    def given(self) -> tuple[EventName, ...]:
        return ("series.closed", "series.revised") if self.on_close else ()

    def tries(self, usual: int) -> int:
        return self.attempts


class Atoms(Sink, frozen=True):
    """The atoms of the volume, refined against the projections that it was made from, as soon as it is there; and while the series grows,
    about how many there are. Needs projections as they were recorded, with pixels of at most 0.8 angstrom: refused otherwise."""

    enabled: bool = False
    """Do this at all. Off, because most series do not resolve atoms: `aet-stream atoms RECONSTRUCTION.h5` does it by hand."""
    elements: tuple[str, ...] = ()
    """Chemical symbols, the heaviest first. Empty: not known, and not guessed."""
    kinds: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    """How many species there are. 0: as many as `elements`, or as many as the weights speak for."""
    pixel_angstrom: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    """What a pixel measures. 0: as the files say; where they do not, there are no atoms."""
    while_growing: bool = True
    """Count them whenever coverage has grown (`preview.every_deg`), from a slab of the particle at full resolution."""
    threads: Count = 0
    """0: all cores."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    """One that takes longer is stopped, and is a failed try."""
    only_while_growing = ("coverage.milestone",)
    after = ("preview",)
    product = Product("atoms.done", "atoms", "atoms.h5")

    @property
    def given(self) -> tuple[EventName, ...]:
        growing: tuple[EventName, ...] = ("coverage.milestone",) if self.while_growing else ()
        return ("reconstruction.done", *growing) if self.enabled else ()

    def tries(self, usual: int) -> int:
        return 2


class Preview(Sink, frozen=True):
    """A small volume of a series that is still growing, for the monitor: made at low priority whenever coverage has grown."""

    enabled: bool = True
    """Make previews, as `preview.h5` beside the series."""
    every_deg: Annotated[float, msgspec.Meta(ge=1, le=180)] = 15.0
    """A new one each time this much more of the 180 degrees of directions is covered (each tilt covers a degree to both sides)."""
    size_px: Annotated[int, msgspec.Meta(ge=16, le=1024)] = 128
    """Projections are binned to at most this width."""
    iterations: AtLeastOne = 10
    """Of the solver: few, because it is only looked at."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """A preview that takes longer is stopped."""
    only_while_growing = ("coverage.milestone",)

    @property
    def given(self) -> tuple[EventName, ...]:
        return ("coverage.milestone",) if self.enabled else ()

    def tries(self, usual: int) -> int:
        return 2


class Report(Sink, frozen=True):
    """The page about a series that is kept beside it as `report.html`."""

    on_close: bool = True
    """Made when a series closes, and again when its volume is there, and its atoms if there are to be some."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """A report that takes longer is stopped, and is a failed try."""
    after = ("film", "atoms")

    @property
    def given(self) -> tuple[EventName, ...]:
        return ("series.closed", "series.revised", "reconstruction.done") if self.on_close else ()

    def tries(self, usual: int) -> int:
        return 3


class Trigger(Section, frozen=True):
    """How hard the outbox tries. What happened to one series is told in order; a failed try holds up that series at that sink only."""

    attempts: AtLeastOne = 10
    """Tries of a command, webhook or ZeroMQ receiver before an event is put aside as failed (`aet-stream resend` sends it again)."""
    longest_pause_s: Seconds = 300.0
    """The pause between tries doubles from 1 s up to this."""
    again_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Pause after a receiver said "again later" (exit code 75, HTTP 503 or 429); that counts as no try."""


class Command(Sink, frozen=True):
    """A program of your own that is run for every event, without a shell: 0 done, 75 again later, anything else a failed try.

    It gets the event as JSON on standard input, and in the environment AET_EVENT, AET_EVENT_ID (the same in every try), AET_SERIES,
    AET_SERIES_FILE, AET_OUTPUT_ROOT and AET_ATTEMPT.
    """

    argv: tuple[str, ...] = ()
    """Program and arguments. Empty: none."""
    events: tuple[EventName, ...] = ("series.closed", "reconstruction.done", "held", "quarantined")
    """Which events it is run for."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """A program that runs longer is stopped, and is a failed try."""

    @property
    def given(self) -> tuple[EventName, ...]:
        return self.events if self.argv else ()


class Webhook(Sink, frozen=True):
    """An HTTP POST for every event, signed as standardwebhooks.com says; 2xx is success. Its `webhook-id` is the same in every try."""

    url: str = ""
    """http or https. Empty: none."""
    secret_file: str = ""
    """A file whose first line is the shared secret (`whsec_` and base64, or any text). Empty: unsigned."""
    events: tuple[EventName, ...] = ("series.closed", "reconstruction.done", "held", "quarantined")
    """Which events are sent."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Time for the answer."""

    @property
    def given(self) -> tuple[EventName, ...]:
        return self.events if self.url else ()


class Zeromq(Sink, frozen=True):
    """A request to a REP socket for every event: (id, JSON); the answer is the id. Its `id` is the same in every try."""

    endpoint: str = ""
    """For example tcp://127.0.0.1:5599. Empty: none."""
    events: tuple[EventName, ...] = ("projection.stored", "series.closed", "reconstruction.done")
    """Which events are sent."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Time for the answer."""

    @property
    def given(self) -> tuple[EventName, ...]:
        return self.events if self.endpoint else ()


class Monitor(Section, frozen=True):
    """The page and status for people and machines over HTTP. It reads only."""

    enabled: bool = True
    """Serve it."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but loopback needs a token, which is made at the first start."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8571
    """0 takes any free port."""
    names: tuple[str, ...] = ()
    """Further host names under which people reach it, a reverse proxy's among them; requests for any other name are refused."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies that are believed what they say of the browser's side: X-Forwarded-Host, -Proto, -For."""
    base_path: str = ""
    """Path under which a reverse proxy passes requests on, as `/aet`. Empty: none, or the proxy takes it away."""
    token: Literal["auto", "always"] = "auto"
    """`auto`: asked for unless `host` is loopback and neither `names` nor `trusted_proxies` let others in. `always`: there too, for
    computers with several users."""
    token_file: str = ""
    """Readable by its owner only. Empty: `run/monitor.token` under the output folder."""
    doctor_every_s: Seconds = 86400.0
    """So often `aet-stream doctor` is run as this service, for the page; after ten minutes again when it found something. 0: never."""
    tls_cert: str = ""
    """Certificate (PEM) for HTTPS. Empty: plain HTTP."""
    tls_key: str = ""
    """Its private key (PEM)."""


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Advice(Section, frozen=True):
    """When the monitor advises to look again or to retake a tilt. Advice only: nothing is held, changed or left out."""

    enabled: bool = True
    """Advise at all."""
    clipped_above: Share = 0.001
    """Share of the raw pixels at the detector's highest value."""
    trust_below: Share = 0.3
    """`trust_in_series` of the subtraction."""
    drift_above: Share = 0.05
    """Distance of the centre of mass from its law over tilt, as a share of the frame's width."""
    row_jump_above: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """Step between two neighbouring rows over what is usual around them: the beam jumped."""
    noise_above: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    """Noise of the vacuum over the series' median."""
    intensity_change_above: Share = 0.35
    """Change of the total intensity against the series' median: particle lost, or another one in view."""
    edge_above: Share = 0.1
    """Share of the frame's border that the particle covers."""
    damage_likeness_below: Annotated[float, msgspec.Meta(ge=-1, le=1)] = 0.9
    """Correlation with the first image at the same tilt, best displacement."""
    damage_intensity_above: Share = 0.1
    """Change of the total intensity since the first image at the same tilt."""
    same_tilt_deg: Seconds = SAME_TILT_DEG
    """Tilts that differ by no more are repeats."""


class Relay(Section, frozen=True):
    """The door for workers on other computers: authenticated and encrypted (CURVE), no shared disk ([how](docs/elsewhere.md))."""

    listen: str = ""
    """Where they are let in, `tcp://ADDRESS:PORT`; `tcp://0.0.0.0:8572` is every address of this computer. Empty: nowhere."""
    keys: str = ""
    """Folder of this computer's key and of the list of those that are let in (`aet-stream keys`), its owner's only. Empty: `run/keys` under
    the output folder."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    """Let in at once."""


class Supervise(Section, frozen=True):
    """How `run` looks after its roles."""

    stop_s: Seconds = 10.0
    """Time a role has to end after SIGTERM before it is killed."""
    stall_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """A role whose loop has not turned for this long is killed and started again."""


class Config(Section, frozen=True):
    """All settings."""

    watch: Watch = Watch()
    readers: Readers = Readers()
    frames: Frames = Frames()
    angle: Angle = Angle()
    orientation: Orientation = Orientation()
    series: Series = Series()
    queue: Queue = Queue()
    output: Output = Output()
    denoise: Denoise = Denoise()
    film: Film = Film()
    reconstruct: Reconstruct = Reconstruct()
    atoms: Atoms = Atoms()
    preview: Preview = Preview()
    report: Report = Report()
    trigger: Trigger = Trigger()
    command: Command = Command()
    webhook: Webhook = Webhook()
    zeromq: Zeromq = Zeromq()
    monitor: Monitor = Monitor()
    advice: Advice = Advice()
    relay: Relay = Relay()
    supervise: Supervise = Supervise()

    @property
    def watch_root(self) -> Path:
        root = Path(self.watch.root).expanduser().absolute()
        return root.resolve() if ".." in root.parts else root  # its name may become that of a series

    @property
    def output_root(self) -> Path:
        return Path(self.output.root).expanduser().absolute()

    @property
    def sinks(self) -> dict[str, Sink]:
        """Who acts upon events, by the name of its table."""
        tables = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: table for name, table in tables.items() if isinstance(table, Sink) and table.given}


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are kept with a series: of a webhook its host, of a command its program; the rest of both may be secret."""
    webhook, command = settings.get("webhook", {}), settings.get("command", {})
    address = urlsplit(webhook.get("url", ""))
    webhook = {**webhook, "url": f"{address.scheme}://{address.netloc}" if address.netloc else ""}
    return {**settings, "webhook": webhook, "command": {**command, "argv": command.get("argv", ())[:1]}}
