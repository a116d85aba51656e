"""Every failure that a user can be told about. The docstring is the default message.

Permanent and transient failures are different classes, because they end differently: a permanent one is
quarantined with its reason, a transient one is tried again.
"""

from __future__ import annotations


class AetError(Exception):
    """Something went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())


def complaint(error: Exception, path: str) -> str:
    """What is wrong with a file, for somebody who names it himself."""
    return str(error).removeprefix(f"{path.rpartition('/')[2]}: ")


class ConfigError(AetError):
    """The configuration is wrong."""


class AlreadyRunning(AetError):
    """Another aet-stream already writes to this output folder."""


class NotRunning(AetError):
    """No aet-stream daemon answers for this output folder."""


class SourceError(AetError):
    """The source file can never be read as it is now: quarantine it."""


class NoProjection(SourceError):
    """The source file itself says that this image is no projection."""


class SourceNotReady(AetError):
    """The source file is not complete, changed while it was read, or is briefly unreadable: try again."""


class SourceStillZero(SourceNotReady):
    """The source file is whole by its header, but ends in zeros: perhaps not written yet."""


class SourceGone(AetError):
    """The source file is no longer there."""


class ReaderDied(AetError):
    """The reading process died, hung or ran out of memory over this file."""


class WireError(AetError):
    """A message broke the rules of the queue: wrong parts, size, dtype, shape or checksum."""


class StoreError(AetError):
    """A series on disk is damaged or does not match what is asked of it."""


class Unstorable(AetError):
    """What is known about a projection cannot be written, whatever the disk: quarantine it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class NewerLayout(AetError):
    """A later version of this program wrote the file."""


class OutputFull(AetError):
    """The output cannot be written now (disk full, read-only or failing); intake waits until it can."""


class ModelError(AetError):
    """The network's weights cannot be loaded."""


class ReconstructionError(AetError):
    """The volume could not be computed."""


class TooFewProjections(ReconstructionError):
    """There is nothing to make a volume of, now or later."""


class NoAtoms(ReconstructionError):
    """No atoms can be told here, now or later; the message says why."""
