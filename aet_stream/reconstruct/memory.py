"""How much memory there is to be had: the machine's, or less where a container or systemd's MemoryMax says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def machine_bytes(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of the machine's memory and of the limits of all control groups that this process is in (cgroups(7), versions 1 and 2)."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([most, *_limits(own, groups)])


def _limits(own: Path, groups: Path) -> Iterator[int]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            try:
                yield int((place / name).read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue  # no limit there ("max"), or not ours to see
