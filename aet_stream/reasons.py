"""Why an image has not become a row: a code, its values, and the text and remedy that are made from them.

Whoever decides something by a reason looks at its code. What people read stands in `KINDS`, and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Kind(NamedTuple):
    """How one kind of reason is said, and what helps."""

    text: str
    """Filled with the reason's values."""
    remedy: str = ""
    command: str = ""
    """Of `aet-stream`, which then does the rest; ID stands for the number that `status` shows."""


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reason, as it is sent and stored."""

    code: str
    values: dict[str, str | int | float] = {}

    def __str__(self) -> str:
        """One sentence without its remedy."""
        kind = KINDS.get(self.code)
        return f"{self.code} {self.values or ''}".rstrip() if kind is None else kind.text.format_map(self.values)

    @property
    def remedy(self) -> str:
        """What a person can do; empty: nothing needs to be done."""
        return KINDS[self.code].remedy.format_map(self.values) if self.code in KINDS else ""

    @property
    def command(self) -> str:
        """The words behind `aet-stream` that do it, with ID for the number; empty: no command helps."""
        return KINDS[self.code].command.format_map(self.values) if self.code in KINDS else ""

    def with_remedy(self) -> str:
        """The whole of it, for somebody who sees no more than this line."""
        command = f": `aet-stream {self.command}`" if self.command else ""
        text = str(self)
        return f"{text}{'' if text.endswith('?') else ';'} {self.remedy}{command}" if self.remedy else text


def why(code: str, **values: str | int | float) -> Reason:
    """A reason; its values are those that the text of its code asks for."""
    return Reason(code, values)


def json_of(reason: Reason) -> str:
    """As the ledger keeps it."""
    return msgspec.json.encode(reason).decode()


def reason_of(text: str) -> Reason | None:
    """What the ledger kept; None for nothing. Sentences are of an earlier version, whose ledger no hub has opened since."""
    if not text:
        return None
    return msgspec.json.decode(text, type=Reason) if text.startswith("{") else why("noted", text=text)


_SAY_TILT, _RELEASE, _AGAIN = "say its tilt", "release ID --angle DEG", "requeue ID"
_MEND = "mend or replace the file: it is read again by itself; or have the same file tried again"
_OWN_FOLDER = "put it into a folder of its own"

KINDS = {
    # -- the tilt
    "no_tilt": Kind("no tilt angle in metadata, sidecar or file name{because}", _SAY_TILT, _RELEASE),
    "tilt_unit": Kind(
        "the {source} says {raw}, but not whether in degrees or radians",
        "set angle.metadata_unit to deg or rad, start the daemon again and have it read again; or say its tilt",
        _RELEASE,
    ),
    "tilt_no_number": Kind("the {source} says {raw}, which is no number{because}", _SAY_TILT, _RELEASE),
    "tilt_out_of_range": Kind("the {source} says {raw}: {tilt_deg:g} deg is outside {min_deg:g}..{max_deg:g}", _SAY_TILT, _RELEASE),
    "tilts_disagree": Kind("sources disagree by more than {tolerance_deg:g} deg: {stated}", "say which is right", _RELEASE),
    "tilt_word": Kind(
        "the {source} says {raw}, which is no tilt by the word beside the number",
        "take the word out of angle.no_tilt_words if it is one; or say its tilt",
        _RELEASE,
    ),
    "unplanned": Kind(
        "{tilt_deg:g} deg is not in the tilt plan (nearest: {nearest_deg:g} deg; angle.plan_tolerance_deg is {tolerance_deg:g})",
        "if it was taken all the same, say its tilt",
        _RELEASE,
    ),
    "frames_apart": Kind("its frames differ by {apart_deg:g} deg in tilt (frames.tolerance_deg)", _SAY_TILT, _RELEASE),
    "tilt_changed": Kind(
        "stored as projection {number} at {stored_deg:g} deg, but its sources now say {tilt_deg:g} deg", "say which is right", _RELEASE
    ),
    # -- the file as a whole
    "which_image": Kind(
        "images {images} {of} were taken at one time and are no frames of one dataset: which one is the projection?",
        "{choice}say the tilt of the one that is",
        "release ID --angle {tilt}",
    ),
    "no_detector": Kind(
        "the file names no detector of this image, beside those of {others}: is it a projection?",
        "if it is one, say its tilt",
        "release ID --angle {tilt}",
    ),
    "one_tilt": Kind(
        "all images of the file say {tilt_deg:g} deg, as programs write that know no tilt",
        "if it is true, say so",
        "release ID --angle {tilt_deg:g}",
    ),
    # -- beside the rows of its series
    "other_detector": Kind(
        "detector {detector}, but the series has {used}",
        "set series.detector to the one to use, start the daemon again and have it read again",
        _AGAIN,
    ),
    "other_shape": Kind("{height} x {width} px of {dtype}, but the series has {its_height} x {its_width} px of {its_dtype}", _OWN_FOLDER),
    "other_pixel_size": Kind(
        "pixel size {pixel_size_nm:.4g} nm, but the series has {used_nm:.4g} nm",
        f"{_OWN_FOLDER}; only if it belongs to this series all the same, say its tilt",
        _RELEASE,
    ),
    "other_orientation": Kind(
        "orientation {turn}, but the series has {used}",
        f"set orientation.* as it was, start the daemon again and have it read again; or {_OWN_FOLDER}",
        _AGAIN,
    ),
    "other_root": Kind(
        "watch.root was {used} for this series, now it is {root}",
        "put it into a folder of another name; only if the watched folder is the same under another name, say the tilt of one: "
        "those after it follow",
        _RELEASE,
    ),
    "copy": Kind("same pixels and tilt as {path} image {image} (projection {number})"),
    "untouched": Kind("projection {number}: the file was touched, its pixels were not"),
    # -- set aside by the others
    "odd": Kind("odd: {its}, but two after it agree on {theirs}", "{remedy}", "exclude ID --reason survey"),
    # -- a person's word
    "by_person": Kind("{text}", "if it should count again", "restore ID"),
    "discarded": Kind("discarded: {text}", "if it should not have been", "restore ID"),
    # -- recorded, not stored
    "left_out": Kind("detector {detector}; series.detector is {used}", "if it should not be, set it and have it read again", _AGAIN),
    "no_projection": Kind("no projection, as the file itself says: {because}", "if it is one, say its tilt", _RELEASE),
    # -- what a series cannot know of its films
    "nothing_turns": Kind(
        "the background does not turn with the specimen as a film does, but is fixed to the particle, or another in every projection:"
        " the series leaves {left_percent} % of what each projection alone leaves open",
        "a particle that is cleaner, or farther from other matter, would show more",
    ),
    "film_at_axis": Kind(
        "the film lies at the height of the tilt axis ({radii:g} radii of the particle from it): what it hides at one tilt, it hides at"
        " all; the series leaves {left_percent} % of what each projection alone leaves open",
        "of a particle that lies wholly above or below its film, more can be known",
    ),
    "film_thick": Kind(
        "what is seen around the particle, held back, all tilts together foretell no better than each alone (error {times:g} times): the"
        " film is too thick, or there are too many",
        "of a particle over a thinner place, or over an edge, more can be known",
    ),
    "film_unseen": Kind(
        "of what the particle hides of the film, {unseen_percent} % shows in no projection: there the background is a guess by what lies"
        " around",
        "tilts farther to both sides, or a particle that stands higher above its film, would show more",
    ),
    # -- the file cannot be read
    "unreadable": Kind("{error}", _MEND, _AGAIN),
    "incomplete": Kind("{error} (unchanged for {still_s:.0f} s)", _MEND, _AGAIN),
    "cut_off": Kind("{nbytes} bytes of image {image} are there, and no more have come for {still_s:.0f} s", _MEND, _AGAIN),
    "deadly": Kind("{error} ({deaths} reading processes died over it)", _MEND, _AGAIN),
    "nameless": Kind("its name, or that of a folder it lies in, is not UTF-8", "rename it"),
    "gone": Kind("{error}", "put the file back: it is read again by itself"),
    "changed": Kind("the file changed since it was offered"),
    "unstorable": Kind("{error}", _MEND, _AGAIN),
    # -- somebody died over it
    "reader_died": Kind("{error}"),
    "worker_died": Kind("{worker} died over it"),
    "worker_silent": Kind("the worker was silent for {silent_s:g} s"),
    "worker_lost": Kind("the link to {worker} was lost over it"),
    "worker_failed": Kind("the worker failed: {error}"),
    "worker_wrong": Kind("the worker answered with {answer}"),
    "too_often": Kind("{because}; tried {attempts} times, the last time alone", _MEND, _AGAIN),
    # -- not for ever
    "again": Kind("to be read again"),
    "zeros_so_far": Kind("image(s) {images} end in zeros so far"),
    "announced": Kind("{announced} images announced, {there} are there"),
    "noted": Kind("{text}", _SAY_TILT, _RELEASE),  # by a version that kept sentences
}
