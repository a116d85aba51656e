"""The disk guard: what is accepted can be stored, and its series closed. Before the disk is full, intake waits."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

AGAIN = 0.05
"""So much more than what is kept free lets intake go on: else it would stop and go with every projection."""


class Room:
    """Of the output's disk."""

    def __init__(self, root: Path, keep_free_mib: int, closing_bytes: Callable[[], int]) -> None:
        """
        Parameters
        ----------
        closing_bytes : what the open series, and what is in flight to them, need until they are closed
        """
        self._root = root
        self._keep = keep_free_mib << 20
        self._closing_bytes = closing_bytes
        self.complaint = ""
        """Why nothing is accepted now."""

    def there(self) -> bool:
        """May more be accepted?"""
        if not self._keep:
            return True
        free, closing = shutil.disk_usage(self._root).free, self._closing_bytes()
        if free < closing + self._keep * (1 + AGAIN * bool(self.complaint)):
            self._wait(free, closing)
        elif self.complaint:
            self.complaint = ""
            logger.info("%s: there is room again (%d MiB): intake goes on", self._root, free >> 20)
        return not self.complaint

    def _wait(self, free: int, closing: int) -> None:
        new = not self.complaint
        self.complaint = (
            f"{free >> 20} MiB free on the disk of {self._root}; {self._keep >> 20} MiB (output.keep_free_mib) are kept free, and"
            f" {closing >> 20} MiB for open series to be closed: nothing more is accepted until there is room; files wait where they are;"
            " `aet-stream prune SERIES` removes the projection files of a closed series"
        )
        if new:
            logger.error("%s", self.complaint)
